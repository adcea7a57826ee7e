//! Checks that run a program: exit code 0 passes, 1 warns, anything else is critical.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};
use wharf_config::GoDuration;
use wharf_registry::model::{CheckStatus, Str};

use super::Finding;

/// The last bytes of an output, as the last lines say what went wrong.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    total: usize,
}

impl Tail {
    /// Empty. It keeps `limit` bytes.
    pub(crate) fn of(limit: usize) -> Tail {
        Tail {
            bytes: Vec::new(),
            limit,
            total: 0,
        }
    }

    fn push(&mut self, data: &[u8]) {
        self.total += data.len();
        self.bytes.extend_from_slice(data);
        // Moved down now and then, not with every read.
        if self.bytes.len() > 2 * self.limit {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.bytes.len().saturating_sub(self.limit);
        self.bytes.drain(..excess);
    }

    pub(crate) fn into_text(mut self) -> String {
        self.cut();
        let text = String::from_utf8_lossy(&self.bytes);
        if self.bytes.len() == self.total {
            return text.into_owned();
        }
        let (kept, total) = (self.bytes.len(), self.total);
        format!("Captured {kept} of {total} bytes\n...\n{text}")
    }
}

/// The processes of one run. Dropped before they ended, they are killed, all of them.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        // As long as the leader was not waited for, its id cannot have passed to another group.
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a program for at most `timeout`; keeps the last `limit` bytes of
/// what it writes.
pub(super) async fn probe(args: &[Str], timeout: Duration, limit: usize) -> Finding {
    let Some((program, arguments)) = args.split_first() else {
        return Finding::critical("the check names no program".to_owned());
    };
    let mut command = Command::new(&**program);
    command.args(arguments.iter().map(|argument| &**argument));
    let mut tail = Tail::of(limit);
    let run = run_program(&mut command, None, &mut tail);
    match tokio::time::timeout(timeout, run).await {
        Ok(Ok(status)) => {
            let status = match status.code() {
                Some(0) => CheckStatus::Passing,
                Some(1) => CheckStatus::Warning,
                _ => CheckStatus::Critical,
            };
            let output = tail.into_text();
            Finding { status, output }
        }
        Ok(Err(error)) => Finding::critical(format!("cannot run {program}: {error}")),
        Err(_) => {
            let text = tail.into_text();
            let timeout = GoDuration::from(timeout);
            let mut output = format!("Timed out ({timeout}) running check");
            if !text.is_empty() {
                output = format!("{output}\n\n{text}");
            }
            Finding::critical(output)
        }
    }
}

/// Runs a program in a process group of its own to its end, with something to read or nothing. Dropped before
/// that, the whole group is killed.
pub(crate) async fn run_program(
    command: &mut Command,
    input: Option<&[u8]>,
    tail: &mut Tail,
) -> io::Result<ExitStatus> {
    let mut child = command
        .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let leader = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut group = Group { child, leader };
    let write = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that does not read all of it is none that fails.
            let _ = stdin.write_all(input).await;
        }
    };
    tokio::join!(write, capture(stdout, stderr, tail));
    let status = group.child.wait().await?;
    group.leader = None;
    Ok(status)
}

/// Reads both outputs to their ends, as they come.
async fn capture(
    mut stdout: Option<impl AsyncRead + Unpin>,
    mut stderr: Option<impl AsyncRead + Unpin>,
    tail: &mut Tail,
) {
    let (mut one, mut two) = (vec![0; 4096], vec![0; 4096]);
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read(&mut stdout, &mut one), if stdout.is_some() => match read {
                0 => stdout = None,
                count => tail.push(&one[..count]),
            },
            read = read(&mut stderr, &mut two), if stderr.is_some() => match read {
                0 => stderr = None,
                count => tail.push(&two[..count]),
            },
        }
    }
}

/// The end of an output and an error in it are the same here: there is no more.
async fn read(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match from {
        Some(from) => from.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}
