//! Processes: started on a core, looked at through /proc, ended with their owner.

use std::{
    error::Error,
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A child that does not outlive this program.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Ends it at once, as dropping does.
    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// `taskset` becomes the program, so the process id is the program's.
pub fn pinned(core: &str, program: &str, args: &[&str]) -> Result<Process, Box<dyn Error>> {
    start(core, program, args, Stdio::null(), Stdio::null())
}

/// The same, with what it prints going to a file.
pub fn pinned_logging(
    core: &str,
    program: &str,
    args: &[&str],
    log: fs::File,
) -> Result<Process, Box<dyn Error>> {
    let errors = log.try_clone()?;
    start(core, program, args, log.into(), errors.into())
}

fn start(
    core: &str,
    program: &str,
    args: &[&str],
    output: Stdio,
    errors: Stdio,
) -> Result<Process, Box<dyn Error>> {
    let child = Command::new("taskset")
        .args(["-c", core, program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot run taskset: {error}"))?;
    Ok(Process(child))
}

/// This program in one of its other roles.
pub fn own(core: &str, args: &[&str]) -> Result<Process, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    pinned(core, &program.to_string_lossy(), args)
}

/// Keeps this program, and the threads it starts from now on, on one core.
pub fn pin_self(core: &str) -> Result<(), Box<dyn Error>> {
    let id = std::process::id().to_string();
    let output = Command::new("taskset").args(["-cp", core, &id]).output();
    let output = output.map_err(|error| format!("cannot run taskset: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("taskset -cp {core} {id}: {}", message.trim()).into());
    }
    Ok(())
}

/// A program by its name: among `also`, or in PATH.
pub fn find(name: &str, also: &[&Path]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .collect();
    also.iter()
        .map(|program| program.to_path_buf())
        .chain(in_path)
        .find(|program| program.is_file())
}

/// The first line with text that a program prints when called with `args`; empty when there is none.
pub fn first_line(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    text.lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What else the machine does: the load averages of 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

pub fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Waits until something listens.
pub fn listening(port: u16) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
    Err(format!("nothing listens on port {port}").into())
}

/// User and system time of all threads so far. Ticks are 1/100 s on Linux: precise to a percent within a second.
pub fn cpu(pid: u32) -> Result<Duration, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; what follows are numbers. proc(5).
    let (_, fields) = stat.rsplit_once(") ").ok_or("no name in stat")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || {
        fields
            .next()
            .and_then(|f| f.parse::<u64>().ok())
            .ok_or("no times in stat")
    };
    Ok(Duration::from_millis((ticks()? + ticks()?) * 10))
}

pub fn resident_mb(pid: u32) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kb = status.lines().find_map(|l| {
        l.strip_prefix("VmRSS:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<f64>()
            .ok()
    });
    Ok(kb.ok_or("no resident size in status")? / 1024.0)
}
