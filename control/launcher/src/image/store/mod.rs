//! The images of a node, on disk.
//!
//! ```text
//! lock                    flock: shared while something is added, exclusive while something is removed
//! tmp/                    what is being written; swept when the store is opened
//! blobs/sha256/<hex>      configurations, manifests and layers as they were transferred
//! layers/<hex>/           layers unpacked, by the digest of what they unpack to (their diff ID)
//! images/<hex>.json       complete images, by the digest that names them
//! refs/<hex>.json         names, by the digest of the name
//! pins/<hex>.json         who runs which image, by the digest of the user
//! ```
//!
//! Everything comes into being under `tmp/`, is verified, made durable, and renamed to its place: what has a
//! place is whole, whatever happened in between. An image is written after all its blobs, so an image that
//! is listed can be prepared. The lock holds between processes and between the threads of one.

mod blob;
mod collect;
mod image;
mod pin;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use blob::BlobWriter;
pub use collect::Removed;
pub use image::{Image, Layer, Listed, Origin};

use super::{Digest, document::DocumentError, keyed::Keyed, limits::Limits, unpack::UnpackError};

/// How long removing waits for those who add.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// A store of images. Cheap to clone; safe to use from many threads and processes at once.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    limits: Limits,
    next_temporary: AtomicU64,
    /// One thread unpacks a layer; the others that want it wait.
    unpacking: Keyed<Digest>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.inner.root).finish()
    }
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("no space is left on the disk of {path}; nothing was kept")]
    DiskFull { path: PathBuf },
    #[error("{what} has the digest {actual}, not {expected}")]
    WrongDigest {
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{what} is {actual} bytes long, not {expected}")]
    WrongSize {
        what: String,
        expected: u64,
        actual: u64,
    },
    #[error("blob {digest} is {bytes} bytes long; at most {limit} are taken")]
    BlobTooLarge {
        digest: Digest,
        bytes: u64,
        limit: u64,
    },
    #[error("blob {0} is not in the store")]
    NoBlob(Digest),
    #[error("there is no image {0} on this node")]
    NoImage(String),
    #[error("{count} images begin with {prefix}: give more of the digest")]
    AmbiguousImage { prefix: String, count: usize },
    #[error("image {image} is in use by what runs on this node")]
    InUse { image: String },
    #[error("images are being added at the moment; try again")]
    Busy,
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("layer {index} of {image} ({digest}): {source}")]
    Unpack {
        image: Digest,
        index: usize,
        digest: Digest,
        source: Box<UnpackError>,
    },
}

impl StoreError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull {
                path: path.to_owned(),
            },
            _ => StoreError::File {
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// While this lives nothing is removed from the store.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "the lock ends with the file")] File);

/// Something under `tmp/`, removed unless it was renamed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to its place.
    pub(super) fn keep(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            remove_all(&self.path);
        }
    }
}

/// Removes a file or a tree. What cannot be removed is left for the sweep at the next start.
fn remove_all(path: &Path) {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a temporary file stays behind");
        }
        _ => {}
    }
}

impl Store {
    /// Opens the store in `directory`, which is made if it is missing, and sweeps what a crash left behind.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Store, StoreError> {
        Store::open_with(directory, Limits::default())
    }

    /// [`Store::open`] with other limits.
    pub fn open_with(directory: impl Into<PathBuf>, limits: Limits) -> Result<Store, StoreError> {
        let root = directory.into();
        for part in [
            "",
            "tmp",
            "blobs",
            "blobs/sha256",
            "layers",
            "images",
            "refs",
            "pins",
        ] {
            let path = match part {
                "" => root.clone(),
                part => root.join(part),
            };
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreError::file(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(StoreError::file(&path))?;
        }
        let store = Store {
            inner: Arc::new(Inner {
                root,
                limits,
                next_temporary: AtomicU64::new(0),
                unpacking: Keyed::default(),
            }),
        };
        // If somebody else is at work in the store, some of what is in tmp/ is theirs.
        if let Ok(_alone) = store.alone(Duration::ZERO) {
            let tmp = store.path("tmp");
            for entry in fs::read_dir(&tmp).map_err(StoreError::file(&tmp))? {
                remove_all(&entry.map_err(StoreError::file(&tmp))?.path());
            }
        }
        Ok(store)
    }

    pub fn directory(&self) -> &Path {
        &self.inner.root
    }

    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.inner.root.join(relative)
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.inner.root.join("layers").join(diff_id.hex())
    }

    pub(super) fn unpacking(&self) -> &Keyed<Digest> {
        &self.inner.unpacking
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.path("lock");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::file(&path))
    }

    /// Keeps everybody from removing anything, for as long as the answer lives. Waits for those who are
    /// removing something now.
    pub fn hold(&self) -> Result<Hold, StoreError> {
        let file = self.lock_file()?;
        file.lock_shared()
            .map_err(StoreError::file(&self.path("lock")))?;
        Ok(Hold(file))
    }

    /// Keeps everybody from adding anything. Those who add may take long, so the wait has an end.
    fn alone(&self, patience: Duration) -> Result<Hold, StoreError> {
        let file = self.lock_file()?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Hold(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => return Err(StoreError::Busy),
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::file(&self.path("lock"))(error));
                }
            }
        }
    }

    /// A name under `tmp/` that nobody else uses. Only under a [`Hold`]: the sweep of another process
    /// would take it away.
    pub(super) fn temporary(&self) -> Temporary {
        let count = self.inner.next_temporary.fetch_add(1, Ordering::Relaxed);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        // Two openings of one store in one process count alike; the time tells them apart.
        let own = Arc::as_ptr(&self.inner) as usize;
        let name = format!(
            "{:x}-{own:x}-{count:x}-{:x}",
            std::process::id(),
            now.as_nanos()
        );
        Temporary {
            path: self.path("tmp").join(name),
            kept: false,
        }
    }

    /// Writes a small file whole, or not at all.
    fn write_whole(&self, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary();
        let write = || -> io::Result<()> {
            let mut file = create(temporary.path())?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_all()
        };
        write().map_err(StoreError::file(temporary.path()))?;
        temporary.keep(to).map_err(StoreError::file(to))?;
        sync_parent(to)
    }
}

/// A new file that is nobody else's.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes a rename durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::file(parent))
}

#[cfg(test)]
mod tests;
