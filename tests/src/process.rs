//! Child processes: what they print, how they end, and that they do.

use std::{
    io::{BufRead, BufReader, Read, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::SOON;

/// How many of its last lines are shown of a process in a failing test.
const SHOWN: usize = 100;

/// A process that runs while a test looks at it. It is killed when this is dropped; what it printed
/// is shown if the test is failing.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Arc<Output>,
    readers: Vec<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Output {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    /// Streams at their end, of two.
    ended: u8,
}

impl Process {
    /// Starts `command` with both output streams collected and nothing to read.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        if let Some(stream) = child.stdout.take() {
            readers.push(collect(stream, output.clone()));
        }
        if let Some(stream) = child.stderr.take() {
            readers.push(collect(stream, output.clone()));
        }
        Process {
            child,
            output,
            readers,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        let text = self
            .output
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        text.lines.join("\n")
    }

    /// Waits for a line that contains `needle` and returns it; `None` when the output ends or the
    /// time passes without.
    pub fn line(&self, needle: &str, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        let mut text = self
            .output
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut seen = 0;
        loop {
            if let Some(line) = text.lines[seen..].iter().find(|line| line.contains(needle)) {
                return Some(line.clone());
            }
            seen = text.lines.len();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || usize::from(text.ended) == self.readers.len() {
                return None;
            }
            text = self
                .output
                .grown
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for the end; `None` when it does not come in time.
    pub fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        crate::eventually_some(limit, || self.child.try_wait().ok().flatten())
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    ///
    /// When the end does not come.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended(SOON)
            .unwrap_or_else(|| panic!("still running long after {signal:?}:\n{}", self.text()))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kilobytes.unwrap_or(0) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if thread::panicking() {
            let text = self.text();
            let lines = text.lines().count();
            let tail: Vec<_> = text.lines().skip(lines.saturating_sub(SHOWN)).collect();
            println!(
                "--- process {} printed at last:\n{}\n---",
                self.id(),
                tail.join("\n")
            );
        }
    }
}

fn collect(stream: impl Read + Send + 'static, output: Arc<Output>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line);
            let mut text = output.text.lock().unwrap_or_else(PoisonError::into_inner);
            match read {
                Ok(0) | Err(_) => {
                    text.ended += 1;
                    output.grown.notify_all();
                    return;
                }
                Ok(_) => text
                    .lines
                    .push(String::from_utf8_lossy(&line).trim_end().to_owned()),
            }
            output.grown.notify_all();
        }
    })
}

/// What a command that ran to its end has left.
#[derive(Clone, Debug)]
pub struct Ended {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// The standard output of a success.
    ///
    /// # Panics
    ///
    /// When it was none.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// The error output of a failure that exits with 1.
    ///
    /// # Panics
    ///
    /// When it ended otherwise.
    #[track_caller]
    pub fn failure(self) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        self.err
    }
}

/// Runs a command to its end, which has to come soon.
pub fn run(command: &mut Command) -> Ended {
    run_with_input(command, b"")
}

/// The same, with something to read.
///
/// # Panics
///
/// When it cannot be started or does not end.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is no failure of this.
        let _ = stdin.write_all(input);
    }
    let out = read_all(child.stdout.take());
    let err = read_all(child.stderr.take());
    let status = crate::eventually_some(3 * SOON, || child.try_wait().ok().flatten());
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let join = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let (out, err) = (join(out), join(err));
    let Some(status) = status else {
        panic!("{command:?} did not end; it printed:\n{out}{err}");
    };
    Ended {
        code: status.code(),
        out,
        err,
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
