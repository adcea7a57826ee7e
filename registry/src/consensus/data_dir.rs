//! The directory in which a server keeps its part of the cluster.
//!
//! ```text
//! <data_dir>/raft/LOCK        held while a process uses the directory
//!                 VERSION     format of the directory, whose it is, and the server's id in the cluster
//!                 CLUSTER     the cluster that the server belongs to (see [`super::identity`])
//!                 log/        the write-ahead log
//!                 snapshots/  the newest snapshots
//! ```
//!
//! Two processes on one log destroy it, so the lock is taken before anything is looked at. The
//! node's id is kept with the data: data that belongs to another node must not be taken for our
//! own, for its votes and acknowledgements were given under another name.
//!
//! The server's id is that of its node where the node made it up together with the directory. A node whose
//! id was configured may have lost an earlier directory, and what it acknowledged with it; it gets a new
//! server id with every new directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::log::ServerId;

/// The format that this binary writes.
/// 2: entries of the log say up to where it was durable.
const VERSION: u32 = 2;

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another process", path = path.display())]
    Locked { path: PathBuf },
    #[error(
        "{path} was written by a newer wharf (format {found}, this binary knows {VERSION}): \
         run that version, or start with another data directory",
        path = path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{path} is not readable as a version file", path = path.display())]
    Malformed { path: PathBuf },
    #[error(
        "{path} belongs to server {found}, and this is server {expected}: \
         give each server a data directory of its own",
        path = path.display()
    )]
    OtherServer {
        path: PathBuf,
        found: Uuid,
        expected: Uuid,
    },
}

/// An open data directory. The lock goes with it.
#[derive(Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    server: ServerId,
    _lock: File,
}

impl DataDir {
    /// Creates what is missing, takes the lock, and checks whose the data is. `reused`: the node's id
    /// was not made up for this directory.
    pub(super) fn open(data_dir: &Path, node: Uuid, reused: bool) -> Result<DataDir, DataDirError> {
        let root = data_dir.join("raft");
        make_dir(&root)?;
        let lock = lock(&root.join("LOCK"))?;
        let server = check_version(&root, node, reused)?;
        let dir = DataDir {
            root,
            server,
            _lock: lock,
        };
        make_dir(&dir.log())?;
        make_dir(&dir.snapshots())?;
        // An fsync of what is in a directory does nothing for the directory's own name. Nor is a name durable
        // only because it is seen: whoever wrote it may have been killed before its fsync.
        for path in [dir.root.as_path(), data_dir] {
            sync_dir(path).map_err(failed(path))?;
        }
        Ok(dir)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The id under which the server with this data votes and acknowledges.
    pub(super) fn server(&self) -> ServerId {
        self.server
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }
}

fn make_dir(path: &Path) -> Result<(), DataDirError> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    // One that was there before may be open to others.
    let made = made.and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o700)));
    made.map_err(failed(path))
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::Locked {
            path: path.parent().unwrap_or(path).to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(path)(source)),
    }
}

/// The server's id, if the directory is this node's.
fn check_version(root: &Path, node: Uuid, reused: bool) -> Result<ServerId, DataDirError> {
    let path = root.join("VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let server = if reused { Uuid::new_v4() } else { node };
            write_version(root, node, server).map_err(failed(&path))?;
            return Ok(ServerId(server));
        }
        Err(error) => return Err(failed(&path)(error)),
    };
    let malformed = || DataDirError::Malformed { path: path.clone() };
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.parse().ok());
    let version: u32 = version.ok_or_else(malformed)?;
    // The lines after the first may mean anything in a newer format.
    if version > VERSION {
        return Err(DataDirError::Newer {
            path: root.to_owned(),
            found: version,
        });
    }
    let found = lines.next().and_then(|line| line.parse().ok());
    let found: Uuid = found.ok_or_else(malformed)?;
    if found != node {
        return Err(DataDirError::OtherServer {
            path: root.to_owned(),
            found,
            expected: node,
        });
    }
    let server: Uuid = match lines.next() {
        // As the first version of wharf wrote it.
        None => node,
        Some(line) => line.parse().map_err(|_| malformed())?,
    };
    if version < VERSION {
        // Before anything is written that an older wharf would take for damage.
        write_version(root, node, server).map_err(failed(&path))?;
    }
    Ok(ServerId(server))
}

fn write_version(root: &Path, node: Uuid, server: Uuid) -> io::Result<()> {
    let text = format!("{VERSION}\n{node}\n{server}\n");
    replace(&root.join("VERSION"), text.as_bytes())
}

/// Gives a file of the directory this content, durably, and to its owner alone. Whole or not at all: a crash leaves what
/// was there before, or this.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes durable that a file of the directory came or went.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &tempfile::TempDir, server: u128) -> Result<DataDir, DataDirError> {
        DataDir::open(dir.path(), Uuid::from_u128(server), false)
    }

    #[test]
    fn is_used_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&dir, 1).unwrap();
        assert!(matches!(open(&dir, 1), Err(DataDirError::Locked { .. })));
        drop(first);
        open(&dir, 1).unwrap();
    }

    #[test]
    fn belongs_to_one_server() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir, 1).unwrap());
        let error = open(&dir, 2).unwrap_err();
        assert!(matches!(error, DataDirError::OtherServer { .. }), "{error}");
    }

    #[test]
    fn a_reused_node_id_is_no_server_id() {
        let node = Uuid::from_u128(1);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(&dir, 1).unwrap().server(), ServerId(node));
        let other = tempfile::tempdir().unwrap();
        let reused = |dir: &Path| DataDir::open(dir, node, true).unwrap().server();
        let first = reused(other.path());
        assert_ne!(first, ServerId(node));
        assert_eq!(reused(other.path()), first);
        // What it had before it was configured stays.
        assert_eq!(reused(dir.path()), ServerId(node));
        // As the first version wrote it.
        fs::write(dir.path().join("raft/VERSION"), format!("1\n{node}\n")).unwrap();
        assert_eq!(reused(dir.path()), ServerId(node));
        // From here on it is one that the first version refuses.
        let version = fs::read_to_string(dir.path().join("raft/VERSION")).unwrap();
        assert_eq!(version, format!("{VERSION}\n{node}\n{node}\n"));
    }

    #[test]
    fn a_newer_format_is_refused_clearly() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir, 1).unwrap());
        fs::write(dir.path().join("raft/VERSION"), "3\nwhatever comes\n").unwrap();
        let error = open(&dir, 1).unwrap_err();
        assert!(matches!(error, DataDirError::Newer { found: 3, .. }));
        assert!(error.to_string().contains("written by a newer wharf"));
    }

    #[test]
    fn nobody_else_may_look_in() {
        let dir = tempfile::tempdir().unwrap();
        let open = open(&dir, 1).unwrap();
        for path in [open.root.clone(), open.log(), open.snapshots()] {
            assert_eq!(
                fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o700
            );
        }
        for file in ["LOCK", "VERSION"] {
            let mode = fs::metadata(open.root.join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
