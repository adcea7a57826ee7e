//! The few calls to the kernel that have no safe binding. Each function says why it may be called where it is.
//!
//! Everything here is used by a shim or by a child of one: processes with exactly one thread. That is what makes
//! `fork` and the process-wide calls below sound.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::Command,
    ptr,
};

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent(i32),
    Child,
}

/// Copies the process. Refused when it has more than one thread, as a lock that another thread holds would stay
/// held in the child for ever.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "fork in a process with {threads} threads"
        )));
    }
    // SAFETY: there is one thread, so the child's memory is consistent and no lock is held by anyone else.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Ends this process without running exit handlers, which belong to the process it was forked from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives this process a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS alone leaves descriptors and memory as they are; one thread, so nothing else is surprised.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks `signals` and returns a descriptor that tells when one is pending.
pub(crate) fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read; the descriptor returned is new and ours.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Size of one record read from a [`signal_descriptor`]; the number of the signal is its first four bytes.
pub(crate) const SIGNAL_RECORD: usize = mem::size_of::<libc::signalfd_siginfo>();

/// Gives every signal its default action and lets all through, as a program expects to find them.
///
/// A blocked or ignored signal survives `execve`: the shim blocks what it reads by descriptor, and Rust's start-up
/// code ignores SIGPIPE.
pub(crate) fn default_signals() {
    // SAFETY: SIG_DFL is no function of ours; the set is initialised before use. Signals whose action cannot be
    // changed answer EINVAL, which is what we want for them.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Replaces the program. Returns only when that failed.
pub(crate) fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words
            .iter()
            .map(|word| word.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and, like what they point to, live until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Lets the child of `command` join the network namespace behind `netns`, with default signals and with SIGKILL
/// as soon as this process is gone.
pub(crate) fn in_network(command: &mut Command, netns: Option<OwnedFd>) {
    // SAFETY: runs between fork and exec of a process with one thread; makes system calls only.
    unsafe {
        command.pre_exec(move || {
            default_signals();
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(netns) = &netns
                && libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// A descriptor that `raw` of this process stays open behind, for as long as the program runs.
///
/// Only for numbers that were taken out of an [`OwnedFd`] with `into_raw_fd` and are never closed.
pub(crate) fn leaked(raw: i32) -> BorrowedFd<'static> {
    // SAFETY: the caller gave up the owner without closing it, so the number stays valid.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

/// Holds back every signal, so that [`next_signal`] gets it, also where nothing would handle it.
pub(crate) fn hold_signals() {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Waits for a signal that is held back.
pub(crate) fn next_signal() -> i32 {
    // SAFETY: the set is initialised before use; no details are asked for.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut set);
        loop {
            let signal = libc::sigwaitinfo(&set, ptr::null_mut());
            if signal > 0 {
                return signal;
            }
        }
    }
}

/// Closes every descriptor from 3 on except `kept`.
pub(crate) fn close_all_but(kept: i32) {
    // SAFETY: called where no owner of a descriptor other than `kept` is used or dropped any more.
    unsafe {
        if kept > 3 {
            libc::syscall(libc::SYS_close_range, 3, kept - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, kept.max(2) + 1, i32::MAX, 0);
    }
}

/// Sends `signal` to `pid`.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: plain numbers. A signal or process that does not exist is an error nobody needs.
    unsafe { libc::kill(pid, signal) };
}
