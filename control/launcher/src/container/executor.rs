//! The last steps of a container's first process, inside everything: find the program, install the filter, become
//! the program; and how the shim hears of it.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::OwnedFd,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::Spec as Configuration;
use rustix::fs::{Access, AtFlags, CWD};
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

use super::{init, oci::DEFAULT_PATH, seccomp};
use crate::sys;

/// What becomes of a container, told over a pipe that its first process keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Everything is set up; the container's first process waits for the sign to begin.
    Created { pid: u32 },
    /// The command cannot be run. Comes from inside the container.
    Command { message: String },
    /// The command runs, or has just said that it cannot.
    Running,
    /// The command has ended; the first process is about to.
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// The container cannot be made.
    Failed { message: String },
}

/// The longest line that is accepted from a container's first process.
const LINE: usize = 16 << 10;

/// Puts together what is read from the pipe.
#[derive(Debug, Default)]
pub struct ProgressReader {
    pending: Vec<u8>,
}

impl ProgressReader {
    /// The messages that `bytes` completes. What is none is passed over.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Progress> {
        self.pending.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            messages.extend(serde_json::from_slice::<Progress>(&line));
        }
        if self.pending.len() > LINE {
            self.pending.clear();
        }
        messages
    }
}

impl Progress {
    /// Writes the message. A reader that is gone is no concern of a process that is about to end or to become
    /// another program.
    pub(crate) fn tell(&self, pipe: impl std::os::fd::AsFd) {
        if let Ok(mut line) = serde_json::to_vec(self) {
            line.push(b'\n');
            let mut rest = line.as_slice();
            while !rest.is_empty() {
                match rustix::io::write(&pipe, rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        }
    }
}

/// Runs inside the container in place of libcontainer's own executor, which sets no filter.
#[derive(Clone)]
pub(crate) struct TaskExecutor {
    filter: Rc<BpfProgram>,
    progress: Rc<OwnedFd>,
}

impl TaskExecutor {
    pub(crate) fn new(filter: BpfProgram, progress: Rc<OwnedFd>) -> Self {
        Self {
            filter: Rc::new(filter),
            progress,
        }
    }

    fn refuse(&self, message: String) -> String {
        Progress::Command {
            message: message.clone(),
        }
        .tell(&*self.progress);
        message
    }
}

impl Executor for TaskExecutor {
    fn exec(&self, spec: &Configuration) -> Result<(), ExecutorError> {
        let failed = |message: String| ExecutorError::Other(self.refuse(message));
        let (argv, env) = words(spec);
        let path = find(spec).map_err(failed)?;
        let c_strings = |words: &[String]| {
            words
                .iter()
                .map(|word| CString::new(word.as_bytes()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| failed("the command or its environment holds a NUL byte".into()))
        };
        let (argv, env) = (c_strings(argv)?, c_strings(env)?);
        let program = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| failed("the command holds a NUL byte".into()))?;
        // If the shim dies, so does the container: nobody would collect its output or its exit. The parent of
        // this process is the shim (it was cloned as its sibling), from the first moment on.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|error| failed(format!("PR_SET_PDEATHSIG: {error}")))?;
        seccomp::install(&self.filter).map_err(|error| failed(error.to_string()))?;
        init::split(&*self.progress).map_err(|error| failed(format!("no process: {error}")))?;
        let error = sys::execve(&program, &argv, &env);
        let _ = failed(format!("{}: {}", path.display(), explain(&error)));
        // Only the first process may go back to where it came from.
        sys::exit_now(127)
    }

    fn validate(&self, spec: &Configuration) -> Result<(), ExecutorValidationError> {
        find(spec)
            .map(|_| ())
            .map_err(|message| ExecutorValidationError::ArgValidationError(self.refuse(message)))
    }

    /// Nothing: the program gets its environment from [`sys::execve`], not from this process.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// The command with its arguments, and the environment.
fn words(spec: &Configuration) -> (&[String], &[String]) {
    let process = spec.process().as_ref();
    (
        process
            .and_then(|process| process.args().as_deref())
            .unwrap_or(&[]),
        process
            .and_then(|process| process.env().as_deref())
            .unwrap_or(&[]),
    )
}

/// Where the command is, as `execvp` would find it.
fn find(spec: &Configuration) -> Result<PathBuf, String> {
    let (argv, env) = words(spec);
    let command = argv.first().ok_or("no command is given")?;
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    if command.contains('/') {
        let path = PathBuf::from(command);
        return executable(&path)
            .map(|()| path)
            .map_err(|why| format!("{command}: {why}"));
    }
    let mut found = None;
    for directory in path.split(':') {
        let candidate = Path::new(directory).join(command);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(why) if candidate.exists() => {
                found.get_or_insert(format!("{}: {why}", candidate.display()));
            }
            Err(_) => {}
        }
    }
    Err(found.unwrap_or_else(|| {
        format!("command {command:?} is in none of the directories of PATH ({path})")
    }))
}

/// Whether this process, as the user it now is, may run the file at `path`.
fn executable(path: &Path) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| explain(&error))?;
    if metadata.is_dir() {
        return Err("it is a directory".into());
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|_| {
        format!(
            "user {} may not execute it",
            rustix::process::geteuid().as_raw()
        )
    })
}

/// The system's error in words that fit a program which is not there.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file, or its interpreter is missing".into(),
        Some(libc::ENOEXEC) => "it is no program for this machine".into(),
        Some(libc::EACCES) => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_any_pieces() {
        let mut text = serde_json::to_vec(&Progress::Created { pid: 7 }).unwrap();
        text.extend(b"\nrubbish\n");
        text.extend(
            serde_json::to_vec(&Progress::Command {
                message: "no\nway".into(),
            })
            .unwrap(),
        );
        text.push(b'\n');
        let mut reader = ProgressReader::default();
        let seen: Vec<Progress> = text.iter().flat_map(|byte| reader.feed(&[*byte])).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0], Progress::Created { pid: 7 });
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut reader = ProgressReader::default();
        for _ in 0..100 {
            assert!(reader.feed(&[b'x'; 4096]).is_empty());
            assert!(reader.pending.len() <= LINE + 4096);
        }
    }
}
