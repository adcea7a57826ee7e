//! The processes and descriptors of one task, as the shim holds them.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use rustix::{
    event::{PollFd, PollFlags},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    logs::RotatedLog,
    protocol::{ExitRecord, StartTask},
};
use crate::{
    container::{
        Progress, ProgressReader, Stdio,
        cgroup::{Group, Hierarchy, OomWatch},
        launch,
    },
    sys::{self, Forked},
};

/// Most of a stream that is read in one turn, so that a chatty task does not keep the shim from the others.
const TURN: usize = 1 << 20;

/// One of a task's output streams: from a pipe to its files.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: String,
    pipe: Option<OwnedFd>,
    log: RotatedLog,
}

impl Stream {
    /// The stream, and the end of its pipe that the process gets.
    pub(crate) fn new(name: &str, log: RotatedLog) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        let stream = Self {
            name: name.to_owned(),
            pipe: Some(reader),
            log,
        };
        Ok((stream, writer))
    }

    pub(crate) fn poll(&self) -> Option<PollFd<'_>> {
        self.pipe
            .as_ref()
            .map(|pipe| PollFd::new(pipe, PollFlags::IN))
    }

    /// Moves what is there to the log.
    pub(crate) fn drain(&mut self, scratch: &mut [u8]) {
        let mut moved = 0;
        while let Some(pipe) = &self.pipe
            && moved < TURN
        {
            match rustix::io::read(pipe, &mut *scratch) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.log.write(&scratch[..count]);
                    moved += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// What was lost since this was last asked: bytes, and why.
    pub(crate) fn take_lost(&mut self) -> Option<(u64, String)> {
        self.log.take_lost()
    }
}

/// A task that was launched and is not cleaned yet.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) start: StartTask,
    pub(crate) group: Group,
    launcher: i32,
    pidfd: Option<OwnedFd>,
    progress: Option<OwnedFd>,
    reader: ProgressReader,
    pub(crate) streams: [Stream; 2],
    oom: Option<OomWatch>,
}

impl Process {
    /// Forks the launcher of a container.
    ///
    /// # Errors
    /// No pipe or process is to be had.
    pub(crate) fn launch(start: StartTask, hierarchy: &Hierarchy) -> io::Result<Self> {
        let (progress, teller) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&progress, true)?;
        let (out, stdout) = Stream::new("stdout", RotatedLog::open(&start.logs, "stdout"))?;
        let (err, stderr) = Stream::new("stderr", RotatedLog::open(&start.logs, "stderr"))?;
        let group = hierarchy.group(&start.spec.cgroup);
        let launcher = match sys::fork()? {
            Forked::Parent(pid) => pid,
            Forked::Child => {
                let teller = Rc::new(teller);
                let stdio = Stdio { stdout, stderr };
                let told = match launch(&start.spec, stdio, hierarchy, teller.clone()) {
                    Ok(pid) => Progress::Created { pid },
                    Err(error) => Progress::Failed {
                        message: error.to_string(),
                    },
                };
                told.tell(&*teller);
                sys::exit_now(0)
            }
        };
        Ok(Self {
            start,
            group,
            launcher,
            pidfd: None,
            progress: Some(progress),
            reader: ProgressReader::default(),
            streams: [out, err],
            oom: None,
        })
    }

    pub(crate) fn abort(&self) {
        sys::kill(self.launcher, libc::SIGKILL);
    }

    /// Takes hold of the container's first process, which is a child of this one and not reaped yet.
    pub(crate) fn attach(&mut self, pid: u32) {
        self.pidfd = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Without the watch an exit is still explained: the counter is read then.
        self.oom = self.group.watch_oom().ok();
    }

    pub(crate) fn signal(&self, signal: i32) {
        if let (Some(pidfd), Some(signal)) = (&self.pidfd, Signal::from_named_raw(signal)) {
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }

    pub(crate) fn progress(&self) -> Option<PollFd<'_>> {
        self.progress
            .as_ref()
            .map(|pipe| PollFd::new(pipe, PollFlags::IN))
    }

    /// What the launcher and the container have told; and whether that was all.
    pub(crate) fn told(&mut self, scratch: &mut [u8]) -> (Vec<Progress>, bool) {
        let mut messages = Vec::new();
        while let Some(pipe) = &self.progress {
            match rustix::io::read(pipe, &mut *scratch) {
                Ok(0) => {
                    self.progress = None;
                    return (messages, true);
                }
                Ok(count) => messages.extend(self.reader.feed(&scratch[..count])),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => self.progress = None,
            }
        }
        (messages, false)
    }

    pub(crate) fn oom(&self) -> Option<PollFd<'_>> {
        match self.oom.as_ref()? {
            OomWatch::Counter(fd) => Some(PollFd::new(fd, PollFlags::IN)),
            OomWatch::Events(fd) => Some(PollFd::new(fd, PollFlags::PRI)),
        }
    }

    /// Takes the news from behind [`Process::oom`]. On version 2 any event of the group's memory wakes; the counter
    /// tells which it was.
    pub(crate) fn oom_happened(&mut self) -> bool {
        let readable = |fd: BorrowedFd<'_>| {
            let mut counter = [0; 8];
            rustix::io::read(fd, &mut counter).is_ok()
        };
        match &self.oom {
            // Also signalled when the group is removed.
            Some(OomWatch::Counter(fd)) if readable(fd.as_fd()) => {}
            Some(OomWatch::Events(fd)) => {
                // Reading from the start re-arms the event.
                let _ = rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0));
                let mut text = [0; 512];
                let _ = rustix::io::read(fd, &mut text);
            }
            _ => {}
        }
        self.group.oom_kills() > 0
    }
}

/// Puts `record` at `path`, whole or not at all, and on the disk before this returns.
pub(crate) fn record(path: &Path, record: &ExitRecord) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// The record at `path`, if there is a whole one.
pub fn recorded(path: &Path) -> Option<ExitRecord> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(64 << 10)
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        assert_eq!(recorded(&path), None);
        for code in [1, 2] {
            let exit = ExitRecord {
                code: Some(code),
                finished_at: 5,
                ..ExitRecord::default()
            };
            record(&path, &exit).unwrap();
            assert_eq!(recorded(&path), Some(exit));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(recorded(&path), None);
    }
}
