//! Where the platform keeps what it has.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::abandoned;

/// Below it, short paths for sockets and pinned namespaces: `sun_path` has 108 bytes.
const RUN_ROOT: &str = "/run/wharf";

/// What the directories of agents without a data directory begin with.
pub(super) const TEMPORARY: &str = "wharf-dev-";
/// Locked for as long as the agent of a temporary directory runs.
pub(super) const LOCK: &str = "lock";

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
        if data_dir.is_none() {
            abandoned::clear(&std::env::temp_dir(), run_root);
        }
        Dirs::open_in(data_dir, run_root, &std::env::temp_dir())
    }

    pub(super) fn open_in(
        data_dir: Option<&Path>,
        run_root: &Path,
        temporary_root: &Path,
    ) -> Result<Dirs, DirsError> {
        let (state, temporary) = match data_dir {
            Some(directory) => {
                let state = directory.join("platform");
                create(&state)?;
                (state, None)
            }
            None => {
                let (state, lock) = temporary(temporary_root)?;
                (state, Some(lock))
            }
        };
        let state = fs::canonicalize(&state).map_err(failed("find", &state))?;
        let run = run_root.join(short_hash(&state));
        create(&run)?;
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

/// A new directory and its lock. It gets the name under which others look for what was abandoned when it is locked.
fn temporary(root: &Path) -> Result<(PathBuf, File), DirsError> {
    let name = format!("{TEMPORARY}{}", Uuid::new_v4().simple());
    let unlocked = root.join(format!(".{name}"));
    create(&unlocked)?;
    let path = unlocked.join(LOCK);
    let file = File::create(&path).map_err(failed("create", &path))?;
    // It is new, so nobody else has it.
    file.lock().map_err(failed("lock", &path))?;
    let state = root.join(name);
    fs::rename(&unlocked, &state).map_err(failed("name", &unlocked))?;
    Ok((state, file))
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
pub(super) fn short_hash(path: &Path) -> String {
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
        let open = || Dirs::open_in(None, &run, root.path()).expect("opened");
        let (first, second) = (open(), open());
        assert_ne!(first.run(), second.run());
        for dirs in [first, second] {
            dirs.close();
            assert!(!dirs.state().exists() && !dirs.run().exists());
        }
    }
}
