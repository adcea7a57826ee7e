//! Processes: started on a core, looked at through /proc, ended with their owner.

use std::{
    error::Error,
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A child that does not outlive this program.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `taskset` becomes the program, so the process id is the program's.
pub(crate) fn pinned(core: &str, program: &str, args: &[&str]) -> Result<Process, Box<dyn Error>> {
    let child = Command::new("taskset")
        .args(["-c", core, program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run taskset: {error}"))?;
    Ok(Process(child))
}

/// This program in one of its other roles.
pub(crate) fn own(core: &str, args: &[&str]) -> Result<Process, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    pinned(core, &program.to_string_lossy(), args)
}

pub(crate) fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Waits until something listens.
pub(crate) fn listening(port: u16) -> Result<(), Box<dyn Error>> {
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
pub(crate) fn cpu(pid: u32) -> Result<Duration, Box<dyn Error>> {
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

pub(crate) fn resident_mb(pid: u32) -> Result<f64, Box<dyn Error>> {
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
