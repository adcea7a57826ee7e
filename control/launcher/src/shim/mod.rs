//! One shim per allocation: the parent of its containers and of its sidecar.
//!
//! A shim is this program under another subcommand, in a process of its own that outlives the agent: it has one
//! thread and no runtime, because libcontainer changes the process it works in and because it should cost next to
//! nothing while it waits. It collects output and exits, and knows nothing of jobs, restarts or services: the agent
//! decides, over a socket, and finds everything as it was when it comes back.

mod client;
mod logs;
mod machine;
pub mod protocol;
mod server;
mod sidecar;
mod task;

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process,
};

pub use client::{Client, ClientError, Spawn, SpawnError};
pub use logs::{LogReader, indexes as log_indexes};
pub use task::recorded as recorded_exit;

use crate::{
    container::cgroup::{CgroupError, Hierarchy},
    sys::{self, Forked},
};

/// Groups of an allocation that are no task's. `@` is in no task's name.
pub(crate) const SHIM_GROUP: &str = "@shim";
pub(crate) const SIDECAR_GROUP: &str = "@sidecar";

/// What a shim is told when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The socket to serve.
    socket: PathBuf,
    /// The sidecar's `NOTIFY_SOCKET`.
    notify: PathBuf,
    /// The allocation's control group, `wharf/<alloc>`.
    group: PathBuf,
}

impl Settings {
    const USAGE: &'static str = "usage: wharf shim --socket PATH --notify PATH --group wharf/ALLOC\n\
         This is how an agent holds the containers of one allocation. It is not for people.";

    fn parse(words: &[OsString]) -> Option<Self> {
        let mut values = [const { None }; 3];
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            let at = ["--socket", "--notify", "--group"]
                .iter()
                .position(|known| name == known)?;
            values[at] = Some(PathBuf::from(value));
        }
        let [socket, notify, group] = values;
        Some(Self {
            socket: socket?,
            notify: notify?,
            group: group?,
        })
    }
}

/// Why a shim does not come to serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("{path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("{0}: another shim serves there")]
    Taken(PathBuf),
}

/// The `shim` subcommand; `words` are those after it. To be called before any thread exists. The calling process
/// ends when the shim serves (0) or has said on standard error why it does not (1).
pub fn run(words: &[OsString]) -> ! {
    let Some(settings) = Settings::parse(words) else {
        say(Settings::USAGE);
        process::exit(2);
    };
    match detach() {
        Ok(Detached::Starter { mut shim }) => {
            let mut answer = String::new();
            let _ = shim.read_to_string(&mut answer);
            match answer.strip_prefix("ok") {
                Some(_) => process::exit(0),
                None if answer.is_empty() => say("the shim ended before it served"),
                None => say(&answer),
            }
            process::exit(1);
        }
        Ok(Detached::Shim { mut starter }) => match prepare(&settings) {
            Ok((hierarchy, listener, notify)) => {
                let served = starter.write_all(b"ok");
                drop(starter);
                if served.is_err() {
                    // Whoever wanted a shim is gone before it was one.
                    process::exit(1);
                }
                server::serve(settings, hierarchy, listener, notify);
                process::exit(0);
            }
            Err(error) => {
                let _ = starter.write_all(error.to_string().as_bytes());
                process::exit(1);
            }
        },
        Err(error) => {
            say(&error.to_string());
            process::exit(1);
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "wharf shim: {text}");
}

/// The two halves of a process that goes to the background.
enum Detached {
    Starter { shim: UnixStream },
    Shim { starter: UnixStream },
}

fn detach() -> io::Result<Detached> {
    let (shim, starter) = UnixStream::pair()?;
    match sys::fork()? {
        Forked::Parent(_) => Ok(Detached::Starter { shim }),
        Forked::Child => {
            drop(shim);
            Ok(Detached::Shim { starter })
        }
    }
}

type Prepared = (Hierarchy, UnixListener, UnixDatagram);

/// Makes this process independent of the one that started it, and binds the sockets.
fn prepare(settings: &Settings) -> Result<Prepared, StartError> {
    rustix::process::setsid().map_err(io::Error::from)?;
    std::env::set_current_dir("/")?;
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).map_err(io::Error::from)?;
    rustix::stdio::dup2_stdout(&null).map_err(io::Error::from)?;
    rustix::stdio::dup2_stderr(&null).map_err(io::Error::from)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // What a task or the sidecar leaves behind comes to this process, to be reaped.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(io::Error::from)?;
    // It is small, and without it nobody could say how its tasks ended. Not every root may.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    let hierarchy = Hierarchy::detect()?;
    let group = hierarchy.group(&settings.group.join(SHIM_GROUP));
    group.create(None)?;
    group.enter(process::id())?;
    let listener = bind(&settings.socket)?;
    let notify = match fs::remove_file(&settings.notify) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixDatagram::bind(&settings.notify),
    };
    let notify = notify.map_err(|source| StartError::Socket {
        path: settings.notify.clone(),
        source,
    })?;
    listener.set_nonblocking(true)?;
    notify.set_nonblocking(true)?;
    Ok((hierarchy, listener, notify))
}

/// Binds the socket where a shim before may have left its own.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let at = |source| StartError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(at)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(StartError::Taken(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = listener.map_err(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn all_settings_are_needed_and_no_others_known() {
        let full = "--socket /s --group wharf/a --notify /n";
        let settings = Settings::parse(&words(full)).unwrap();
        assert_eq!(settings.group, Path::new("wharf/a"));
        assert_eq!(settings.socket, Path::new("/s"));
        for text in [
            "",
            "--socket /s",
            "--socket",
            "--socket /s --group g --notify /n --x y",
        ] {
            assert_eq!(Settings::parse(&words(text)), None, "{text}");
        }
    }

    #[test]
    fn a_socket_that_is_served_is_not_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/shim.sock");
        let first = bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(bind(&path), Err(StartError::Taken(_))));
        drop(first);
        bind(&path).unwrap();
    }
}
