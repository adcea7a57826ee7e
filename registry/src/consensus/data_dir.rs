//! The directory in which a server keeps its part of the cluster.
//!
//! ```text
//! <data_dir>/raft/LOCK        held while a process uses the directory
//!                 VERSION     format of the directory, and whose it is
//!                 log/        the write-ahead log
//!                 snapshots/  the newest snapshots
//! ```
//!
//! Two processes on one log destroy it, so the lock is taken before anything is looked at. The
//! server's id is kept with the data: data that belongs to another server must not be taken for our
//! own, for its votes and acknowledgements were given under another name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// The format that this binary writes.
const VERSION: u32 = 1;

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
    _lock: File,
}

impl DataDir {
    /// Creates what is missing, takes the lock, and checks whose the data is.
    pub(super) fn open(data_dir: &Path, server: Uuid) -> Result<DataDir, DataDirError> {
        let root = data_dir.join("raft");
        make_dir(&root)?;
        let lock = lock(&root.join("LOCK"))?;
        check_version(&root, server)?;
        let dir = DataDir { root, _lock: lock };
        make_dir(&dir.log())?;
        make_dir(&dir.snapshots())?;
        Ok(dir)
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

fn check_version(root: &Path, server: Uuid) -> Result<(), DataDirError> {
    let path = root.join("VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return write_version(root, server).map_err(failed(&path));
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
    if found != server {
        return Err(DataDirError::OtherServer {
            path: root.to_owned(),
            found,
            expected: server,
        });
    }
    Ok(())
}

/// Whole or not at all: a crash leaves either no version file or a good one.
fn write_version(root: &Path, server: Uuid) -> io::Result<()> {
    let temporary = root.join("VERSION.tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    write!(file, "{VERSION}\n{server}\n")?;
    file.sync_all()?;
    fs::rename(&temporary, root.join("VERSION"))?;
    File::open(root)?.sync_all()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &tempfile::TempDir, server: u128) -> Result<DataDir, DataDirError> {
        DataDir::open(dir.path(), Uuid::from_u128(server))
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
    fn a_newer_format_is_refused_clearly() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir, 1).unwrap());
        fs::write(dir.path().join("raft/VERSION"), "2\nwhatever comes\n").unwrap();
        let error = open(&dir, 1).unwrap_err();
        assert!(matches!(error, DataDirError::Newer { found: 2, .. }));
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
