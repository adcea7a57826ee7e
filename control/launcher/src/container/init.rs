//! The first process of a container, when it is not the command itself: it passes signals on, reaps what is
//! orphaned, and ends with the command.
//!
//! Without it the command would be process 1, for which the kernel ignores every signal that has no handler: most
//! small programs could only be killed. It costs no program of its own: it is the process that set the container up,
//! which forks once more instead of becoming the command. It holds the container's user, capabilities and filter, is
//! not dumpable, and keeps no descriptor but the one it reports through.

use std::{io, os::fd::AsFd};

use rustix::process::{WaitOptions, wait};

use super::Progress;
use crate::sys::{self, Forked};

/// Splits into the first process, which does not return, and the one that is to become the command, which does, with
/// the pipe through which it tells that it could not: its end is closed by `execve`.
///
/// # Errors
/// No process or pipe is to be had.
pub(crate) fn split(progress: impl AsFd) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    sys::hold_signals();
    match sys::fork()? {
        Forked::Child => {
            // The end that matters closes with this process, by becoming the command or by failing to.
            drop(reader);
            std::mem::forget(writer);
            sys::default_signals();
            Ok(())
        }
        Forked::Parent(command) => {
            drop(writer);
            first(command, progress, reader)
        }
    }
}

fn first(command: i32, progress: impl AsFd, started: rustix::fd::OwnedFd) -> ! {
    let _ = rustix::thread::set_name(c"wharf-init");
    // Blocks until the command is a program or gone.
    let mut byte = [0];
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(&started, &mut byte) {}
    Progress::Running.tell(&progress);
    let progress = std::os::fd::AsRawFd::as_raw_fd(&progress.as_fd());
    // The output ends when the command's processes end, not when this one does.
    if let Ok(null) = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    sys::close_all_but(progress);
    loop {
        let signal = sys::next_signal();
        if signal != libc::SIGCHLD {
            sys::kill(command, signal);
            continue;
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_nonzero().get() != command {
                continue;
            }
            let (code, signal) = (status.exit_status(), status.terminating_signal());
            if code.is_some() || signal.is_some() {
                Progress::Ended { code, signal }.tell(sys::leaked(progress));
                sys::exit_now(code.unwrap_or(128 + signal.unwrap_or(0)));
            }
        }
    }
}
