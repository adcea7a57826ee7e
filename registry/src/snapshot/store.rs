//! Where the snapshots of a server are.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes};

use super::{SnapshotError, SnapshotMeta, SnapshotReader, SnapshotWriter};
use crate::{
    log::LogId,
    state::{Record, State},
};

/// How many are kept: the newest, and the one before it in case the newest is damaged.
const KEEP: usize = 2;
const SUFFIX: &str = ".snapshot";
const BUFFER: usize = 256 << 10;
/// How many records are written between two looks at whether to stop.
const STOP_CHECK: usize = 1024;

/// A finished snapshot that can be read any number of times, also after the store dropped it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    meta: SnapshotMeta,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Memory(Bytes),
    File(Arc<File>),
}

#[derive(Debug, Default)]
struct Kept {
    current: Option<Snapshot>,
    /// The last entry of the one before it.
    previous: Option<LogId>,
}

/// The snapshots of one server: files in a directory, or the same bytes in memory.
#[derive(Debug)]
pub struct SnapshotStore {
    directory: Option<PathBuf>,
    kept: Mutex<Kept>,
    /// Tells temporary files apart.
    serial: AtomicU64,
    stopping: AtomicBool,
    room: RoomCheck,
}

/// Asked before so many more bytes are written to the file system: an error says that there is no room.
struct RoomCheck(Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>);

impl fmt::Debug for RoomCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoomCheck")
    }
}

impl Snapshot {
    /// What there is before the first one: it stands nowhere and holds nothing.
    pub(crate) fn none() -> Snapshot {
        Snapshot {
            meta: SnapshotMeta::default(),
            content: Content::Memory(Bytes::new()),
        }
    }

    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    pub(crate) fn meta_mut(&mut self) -> &mut SnapshotMeta {
        &mut self.meta
    }

    /// How many bytes it has.
    pub fn size(&self) -> io::Result<u64> {
        match &self.content {
            Content::Memory(bytes) => Ok(bytes.len() as u64),
            Content::File(file) => Ok(file.metadata()?.len()),
        }
    }

    /// The bytes, from the start.
    pub fn bytes(&self) -> impl Read + Send + use<> {
        let content = match &self.content {
            Content::Memory(bytes) => Cursor::Memory(bytes.clone().reader()),
            Content::File(file) => Cursor::File {
                file: file.clone(),
                offset: 0,
            },
        };
        BufReader::with_capacity(BUFFER, content)
    }

    pub fn reader(&self) -> Result<SnapshotReader<impl Read + Send + use<>>, SnapshotError> {
        SnapshotReader::new(self.bytes())
    }
}

/// A position of its own in a snapshot that others read too.
enum Cursor {
    Memory(bytes::buf::Reader<Bytes>),
    File { file: Arc<File>, offset: u64 },
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Cursor::Memory(reader) => reader.read(buffer),
            Cursor::File { file, offset } => {
                let read = file.read_at(buffer, *offset)?;
                *offset += read as u64;
                Ok(read)
            }
        }
    }
}

impl SnapshotStore {
    pub fn in_memory() -> SnapshotStore {
        SnapshotStore::new(None, None)
    }

    /// One in memory, of a server that has been there before.
    #[cfg(test)]
    pub(crate) fn holding(current: Option<Snapshot>) -> SnapshotStore {
        SnapshotStore::new(None, current)
    }

    /// Opens the snapshots in `directory`, which exists. The newest that is whole becomes the
    /// current one: a damaged one is said and set aside, and the one before it may still do, as
    /// long as the log reaches back to it.
    pub fn open(directory: PathBuf) -> Result<SnapshotStore, SnapshotError> {
        let mut current = None;
        for path in files(&directory)?.into_iter().rev() {
            match open_verified(&path) {
                Ok(snapshot) => {
                    current = Some(snapshot);
                    break;
                }
                // A newer format is not damage: the file stays, and we do not go on without it.
                Err(error @ (SnapshotError::Version { .. } | SnapshotError::Io(_))) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "snapshot refused");
                    let mut aside = path.clone().into_os_string();
                    aside.push(".damaged");
                    fs::rename(&path, aside)?;
                }
            }
        }
        for leftover in names(&directory, ".tmp")? {
            fs::remove_file(leftover)?;
        }
        // Whoever wrote the newest may have been killed before its name was durable, and the log is going to be
        // shortened after it.
        File::open(&directory)?.sync_all()?;
        Ok(SnapshotStore::new(Some(directory), current))
    }

    fn new(directory: Option<PathBuf>, current: Option<Snapshot>) -> SnapshotStore {
        SnapshotStore {
            directory,
            kept: Mutex::new(Kept {
                current,
                previous: None,
            }),
            serial: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            room: RoomCheck(Box::new(|_| Ok(()))),
        }
    }

    /// Writes no more than `room` allows.
    pub(crate) fn within(
        mut self,
        room: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static,
    ) -> SnapshotStore {
        self.room = RoomCheck(Box::new(room));
        self
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<Snapshot> {
        self.lock().current.clone()
    }

    /// Where the log may begin: at the end of the snapshot before the newest, so that this one
    /// still does should the newest turn out to be damaged.
    pub fn log_needed_after(&self) -> Option<LogId> {
        self.lock().previous
    }

    /// Writes a snapshot of `records` and makes it the current one. Blocks; when it returns, the
    /// snapshot is durable, and until then the previous one stays current.
    pub fn write(
        &self,
        meta: &SnapshotMeta,
        records: impl Iterator<Item = Record>,
    ) -> Result<Snapshot, SnapshotError> {
        self.put(meta, |out| {
            let mut writer = SnapshotWriter::new(out, meta)?;
            for (number, record) in records.enumerate() {
                if number % STOP_CHECK == 0 && self.stopping.load(Ordering::Relaxed) {
                    return Err(SnapshotError::Interrupted);
                }
                writer.push(&record)?;
            }
            writer.finish()?;
            Ok(())
        })
    }

    /// Makes a snapshot that came from elsewhere the current one. Blocks. The caller has read it to
    /// the end and found it whole.
    pub fn adopt(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        if self.lock().current.as_ref().map(Snapshot::meta) == Some(snapshot.meta()) {
            return Ok(());
        }
        self.put(snapshot.meta(), |out| {
            io::copy(&mut snapshot.bytes(), out)?;
            Ok(())
        })?;
        Ok(())
    }

    /// Reads a snapshot from elsewhere to its end and verifies it while it is written down, its records included. What
    /// is returned is whole; it is not the current one before it is adopted. Blocks.
    pub fn receive(&self, input: impl Read) -> Result<Snapshot, SnapshotError> {
        let Some(directory) = &self.directory else {
            let mut bytes = Vec::new();
            let meta = verified_copy(input, &mut bytes)?;
            let content = Content::Memory(bytes.into());
            return Ok(Snapshot { meta, content });
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("received.{serial}.tmp"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        // It has no name from now on, and is gone with the last who reads it.
        fs::remove_file(&path)?;
        let mut out = self.buffered(file);
        let meta = verified_copy(input, &mut out)?;
        let file = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .file;
        let content = Content::File(Arc::new(file));
        Ok(Snapshot { meta, content })
    }

    /// Makes a write in progress give up soon.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn put(
        &self,
        meta: &SnapshotMeta,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), SnapshotError>,
    ) -> Result<Snapshot, SnapshotError> {
        let content = match &self.directory {
            None => {
                let mut bytes = Vec::new();
                fill(&mut bytes)?;
                Content::Memory(bytes.into())
            }
            Some(directory) => Content::File(Arc::new(self.put_file(directory, meta, fill)?)),
        };
        let snapshot = Snapshot {
            meta: meta.clone(),
            content,
        };
        let mut kept = self.lock();
        let newest = kept.current.as_ref().and_then(|current| current.meta.last);
        // A peer's snapshot may have overtaken the one that we were writing.
        if kept.current.is_none() || newest < meta.last {
            kept.previous = newest;
            kept.current = Some(snapshot.clone());
        }
        Ok(snapshot)
    }

    fn put_file(
        &self,
        directory: &Path,
        meta: &SnapshotMeta,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), SnapshotError>,
    ) -> Result<File, SnapshotError> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let term = meta.last.map_or(0, |id| id.term);
        // Zero-padded, so that names sort as snapshots do.
        let name = format!("{:020}-{term:020}{SUFFIX}", meta.index());
        let temporary = directory.join(format!("{name}.{serial}.tmp"));
        let filled = self.fill_file(&temporary, fill);
        let file = match filled {
            Ok(file) => file,
            Err(error) => {
                // What could not be written is of no use; the error that matters is the first one.
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
        };
        fs::rename(&temporary, directory.join(name))?;
        File::open(directory)?.sync_all()?;
        let mut kept = files(directory)?;
        kept.truncate(kept.len().saturating_sub(KEEP));
        for old in kept {
            fs::remove_file(old)?;
        }
        Ok(file)
    }

    fn fill_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), SnapshotError>,
    ) -> Result<File, SnapshotError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut out = self.buffered(file);
        fill(&mut out)?;
        let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.file.sync_all()?;
        Ok(out.file)
    }

    fn buffered(&self, file: File) -> BufWriter<Bounded<'_>> {
        let room = &self.room;
        BufWriter::with_capacity(BUFFER, Bounded { file, room })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that grows as long as there is room.
struct Bounded<'s> {
    file: File,
    room: &'s RoomCheck,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.room.0)(bytes.len() as u64)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Copies what is read, and says of what it is a snapshot once all of it has been found good: also that a state can be
/// made of it, as it will be, which is thrown away here. Checksums say only that it is what its writer meant.
fn verified_copy(input: impl Read, out: impl Write) -> Result<SnapshotMeta, SnapshotError> {
    let reader = SnapshotReader::new(Tee { input, out })?;
    let meta = reader.meta().clone();
    let mut state = State::restored(meta.index())?;
    for record in reader {
        state.insert(record?)?;
    }
    Ok(meta)
}

/// Writes what it reads.
struct Tee<R, W> {
    input: R,
    out: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.out.write_all(&buffer[..read])?;
        Ok(read)
    }
}

fn open_verified(path: &Path) -> Result<Snapshot, SnapshotError> {
    let content = Content::File(Arc::new(File::open(path)?));
    let mut snapshot = Snapshot {
        meta: SnapshotMeta::default(),
        content,
    };
    let reader = snapshot.reader()?;
    let meta = reader.meta().clone();
    reader.verify()?;
    snapshot.meta = meta;
    Ok(snapshot)
}

/// The snapshots in a directory, oldest first.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = names(directory, SUFFIX)?;
    files.sort();
    Ok(files)
}

fn names(directory: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(suffix) {
            names.push(path);
        }
    }
    Ok(names)
}
