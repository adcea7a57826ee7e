//! Processes that end with the demo.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::failure::Failure;

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process of this program, with a log file. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(super) fn start(
        directory: &Path,
        name: &str,
        arguments: &[String],
    ) -> Result<Process, Failure> {
        let failed = |error: io::Error| Failure::new(format!("cannot start {name}")).because(error);
        let program = std::env::current_exe().map_err(failed)?;
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // Ctrl-C is for the demo, which ends the rest in order.
            .process_group(0)
            .kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("CONSUL_") || text.starts_with("WHARF_") || text == "NOTIFY_SOCKET"
            {
                command.env_remove(&variable);
            }
        }
        Ok(Process {
            child: command.spawn().map_err(failed)?,
            log,
        })
    }

    /// Waits until it ends. Cancel safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// As `kill -9` does. It is not waited for.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.child.start_kill()
    }

    /// Asks it to end, and ends it if it takes too long.
    pub(super) async fn stop(&mut self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
        {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// The last lines that it has written.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

/// A port of loopback that neither TCP nor UDP has just now.
pub(super) fn free_port() -> Result<u16, Failure> {
    for _ in 0..100 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let Ok(port) = listener
            .as_ref()
            .map_err(drop)
            .and_then(|listener| listener.local_addr().map_err(drop))
        else {
            continue;
        };
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port.port())).is_ok() {
            return Ok(port.port());
        }
    }
    Err(Failure::new("no port is free on 127.0.0.1"))
}
