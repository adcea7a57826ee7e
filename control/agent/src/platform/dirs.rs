//! Where the platform keeps what it has.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;
use wharf_launcher::container::cgroup::{self, Hierarchy};

/// Below it, short paths for sockets and pinned namespaces: `sun_path` has 108 bytes.
const RUN_ROOT: &str = "/run/wharf";

/// What the directories of agents without a data directory begin with.
const TEMPORARY: &str = "wharf-dev-";
/// Locked for as long as the agent of a temporary directory runs.
const LOCK: &str = "lock";

/// A directory that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct DirsError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directories of one agent, its owner's alone.
#[derive(Debug)]
pub struct Dirs {
    state: PathBuf,
    run: PathBuf,
    /// All of it goes with the agent, whose lock this is.
    temporary: Option<File>,
}

impl Dirs {
    /// `<data_dir>/platform`, or without a data directory a new one that [`Dirs::close`] removes; and the directory
    /// below `/run/wharf` that belongs to it.
    pub fn open(data_dir: Option<&Path>) -> Result<Dirs, DirsError> {
        Dirs::open_below(data_dir, Path::new(RUN_ROOT))
    }

    fn open_below(data_dir: Option<&Path>, run_root: &Path) -> Result<Dirs, DirsError> {
        // What runs has a control group.
        let hierarchy = Hierarchy::detect();
        let runs = |alloc: &str| {
            let group = Path::new(cgroup::ROOT).join(alloc);
            hierarchy
                .as_ref()
                .map_or(true, |hierarchy| hierarchy.group(&group).exists())
        };
        Dirs::open_in(data_dir, run_root, &std::env::temp_dir(), runs)
    }

    fn open_in(
        data_dir: Option<&Path>,
        run_root: &Path,
        temporary_root: &Path,
        runs: impl Fn(&str) -> bool,
    ) -> Result<Dirs, DirsError> {
        let state = match data_dir {
            Some(directory) => directory.join("platform"),
            None => {
                remove_abandoned(temporary_root, run_root, runs);
                temporary_root.join(format!("{TEMPORARY}{}", Uuid::new_v4().simple()))
            }
        };
        create(&state)?;
        let state = fs::canonicalize(&state).map_err(failed("find", &state))?;
        let run = run_root.join(short_hash(&state));
        create(&run)?;
        let temporary = match data_dir {
            Some(_) => None,
            None => Some(lock(&state)?),
        };
        let dirs = Dirs {
            state,
            run,
            temporary,
        };
        create(&dirs.allocs())?;
        Ok(dirs)
    }

    /// What outlives a restart of the agent.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What is of this boot of the machine: sockets, namespaces.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// A directory for each allocation.
    pub fn allocs(&self) -> PathBuf {
        self.state.join("allocs")
    }

    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The agent's gRPC, for the sidecars of this node.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// At the end of the agent: takes its socket away, and everything if nothing of it is to stay.
    pub fn close(&self) {
        let gone = |result: io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot be removed");
            }
            _ => {}
        };
        let socket = self.agent_socket();
        gone(fs::remove_file(&socket), &socket);
        // Where nothing runs, nothing is in these.
        let _ = fs::remove_dir(self.run.join("netns"));
        let _ = fs::remove_dir(&self.run);
        if self.temporary.is_some() {
            gone(fs::remove_dir_all(&self.run), &self.run);
            gone(fs::remove_dir_all(&self.state), &self.state);
        }
    }
}

fn lock(state: &Path) -> Result<File, DirsError> {
    let path = state.join(LOCK);
    let file = File::create(&path).map_err(failed("create", &path))?;
    // It is new, so nobody else has it.
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

/// Removes what agents left that were killed: their temporary directories, unless allocations of theirs still run.
fn remove_abandoned(temporary_root: &Path, run_root: &Path, runs: impl Fn(&str) -> bool) {
    let entries = fs::read_dir(temporary_root).into_iter().flatten().flatten();
    let temporary =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY));
    for state in temporary.map(|entry| entry.path()) {
        let free = File::open(state.join(LOCK)).is_ok_and(|file| file.try_lock().is_ok());
        let empty = fs::read_dir(state.join("allocs")).is_ok_and(|allocs| {
            let mut names = allocs.flatten().map(|entry| entry.file_name());
            !names.any(|name| runs(&name.to_string_lossy()))
        });
        if let (true, true, Ok(state)) = (free, empty, fs::canonicalize(&state)) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(run_root.join(short_hash(&state)));
            let _ = fs::remove_dir_all(&state);
        }
    }
}

fn create(path: &Path) -> Result<(), DirsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirsError {
    let path = path.to_owned();
    move |source| DirsError { what, path, source }
}

/// Eight digits of the SHA-256 of a path.
fn short_hash(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, path.as_os_str().as_bytes());
    let first = digest.as_ref().iter().take(4);
    first.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_data_directory_has_one_place_and_keeps_it() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, run) = (root.path().join("data"), root.path().join("run"));
        let dirs = Dirs::open_below(Some(&data), &run).expect("opened");
        let mode = fs::metadata(dirs.state())
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(dirs.allocs().join("x"), "").expect("written");
        let again = Dirs::open_below(Some(&data), &run).expect("opened");
        assert_eq!(again.run(), dirs.run());
        assert!(again.agent_socket().as_os_str().len() < 100);
        fs::create_dir_all(dirs.run().join("netns/x")).expect("created");
        dirs.close();
        assert!(dirs.allocs().join("x").exists());
        assert!(dirs.run().exists(), "something may run");
        fs::remove_dir(dirs.run().join("netns/x")).expect("removed");
        dirs.close();
        assert!(!dirs.run().exists());
    }

    #[test]
    fn without_one_everything_goes() {
        let root = tempfile::tempdir().expect("a directory");
        let run = root.path().join("run");
        let open = || Dirs::open_in(None, &run, root.path(), |_| true).expect("opened");
        let (first, second) = (open(), open());
        assert_ne!(first.run(), second.run());
        for dirs in [first, second] {
            dirs.close();
            assert!(!dirs.state().exists() && !dirs.run().exists());
        }
    }

    #[test]
    fn what_a_killed_agent_left_goes_with_the_next_one_unless_something_may_run() {
        let root = tempfile::tempdir().expect("a directory");
        let run = root.path().join("run");
        let runs = |alloc: &str| alloc == "a";
        let open = || Dirs::open_in(None, &run, root.path(), runs).expect("opened");
        let (killed, running, alive) = (open(), open(), open());
        fs::create_dir(running.allocs().join("a")).expect("created");
        fs::create_dir(killed.allocs().join("b")).expect("created");
        let paths = [killed.state().to_owned(), killed.run().to_owned()];
        let kept = [
            running.state().to_owned(),
            running.run().to_owned(),
            alive.state().to_owned(),
        ];
        drop((killed, running));
        let _next = open();
        assert!(paths.iter().all(|path| !path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
    }
}
