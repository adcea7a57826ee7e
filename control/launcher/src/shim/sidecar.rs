//! The process beside the tasks: in their network namespace, on the host otherwise, and heard over
//! `NOTIFY_SOCKET` (sd_notify(3)).

use std::{
    fs::File,
    io,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
};

use super::{logs::RotatedLog, protocol::StartSidecar, task::Stream};
use crate::{container::cgroup::Group, sys};

/// Largest notification that is read; systemd's own is a page.
const DATAGRAM: usize = 4096;

/// A sidecar that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) stream: Stream,
}

/// Starts the sidecar in its control group.
///
/// # Errors
/// Why not, as text for a person.
pub(crate) fn spawn(start: &StartSidecar, group: &Group, notify: &Path) -> Result<Running, String> {
    let [program, args @ ..] = &start.argv[..] else {
        return Err("the sidecar has no command".into());
    };
    let netns = match &start.netns {
        Some(path) => {
            Some(File::open(path).map_err(|error| format!("{}: {error}", path.display()))?)
        }
        None => None,
    };
    let (stream, output) = Stream::new("sidecar", RotatedLog::open(&start.logs, "sidecar"))
        .map_err(|error| error.to_string())?;
    let same = output
        .try_clone()
        .map_err(|error: io::Error| error.to_string())?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&start.env)
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::null())
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(same));
    sys::in_network(&mut command, netns.map(Into::into));
    group.create(None).map_err(|error| error.to_string())?;
    let child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let pid = child.id();
    // Its exit is collected with everybody's. The score is the shim's otherwise, and the shim's is for nobody else.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
    if let Err(error) = group.enter(pid) {
        // Outside of its group nobody would find it again.
        sys::kill(pid.cast_signed(), libc::SIGKILL);
        return Err(error.to_string());
    }
    Ok(Running { pid, stream })
}

/// Whether one of the waiting notifications says `READY=1`.
pub(crate) fn ready(notify: &UnixDatagram) -> bool {
    let mut ready = false;
    let mut datagram = [0; DATAGRAM];
    while let Ok(length) = notify.recv(&mut datagram) {
        ready |= says_ready(&datagram[..length]);
    }
    ready
}

fn says_ready(datagram: &[u8]) -> bool {
    datagram
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_a_line_of_its_own() {
        assert!(says_ready(b"STATUS=up\nREADY=1\n"));
        assert!(says_ready(b"READY=1"));
        for other in [
            &b"READY=0"[..],
            b"XREADY=1",
            b"STATUS=READY=1",
            b"",
            b"READY=1 ",
        ] {
            assert!(!says_ready(other));
        }
    }
}
