//! The durable log: `raft-log`, a write-ahead log in chunk files with one flushing thread.
//!
//! Vote, entries, truncations, purges and the committed id are records of one sequence, so their
//! order on disk is the order in which they were written. Each record has a checksum. When a log is
//! opened, a record that was cut short at the very end is what a crash leaves of a write nobody was
//! told about, and is dropped, and so is a [write with holes](holes); anything else that does not verify is
//! damage, and is refused. Whatever is shown of a log that was opened is durable: a process that was killed may
//! have left it in the page cache only.
//!
//! Many appends share an fsync (group commit): while one runs, the next ones gather. After a failed
//! write or fsync the flushing thread stops for good, and whoever waits is told.
//!
//! The chunk files are made by the library with the permissions of the process, and kept from others
//! by us: at the start, and with the first append after a new one. The directory around them lets
//! nobody through in between. The process's umask would do it earlier, and reach further: into the
//! files of every script that a check runs, and the sockets and pid files meant for others.

mod holes;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use raft_log::{
    RaftLog, Types,
    api::raft_log_writer::RaftLogWriter,
    codeq::{Decode, Encode, Span},
};

use self::holes::Hole;
use super::{
    Entry, LogId, LogState, LogStore, OnDurable, Payload, Vote,
    codec::{self, CodecError, LOG_ID_LEN, VOTE_LEN},
};

/// Where a log is, and how it spends memory and disk.
#[derive(Clone, Debug)]
pub struct DiskLogConfig {
    /// An existing directory that nothing else uses.
    pub directory: PathBuf,
    /// A chunk file is closed at this size, and removed as a whole once all of it is purged. The
    /// payloads of the open one are in memory.
    pub chunk_bytes: usize,
    /// Payloads of closed chunks that stay in memory for followers and for applying.
    pub cache_bytes: usize,
    /// How long the flushing thread gathers writes before an fsync.
    pub gather: Duration,
}

impl DiskLogConfig {
    pub fn new(directory: PathBuf) -> DiskLogConfig {
        DiskLogConfig {
            directory,
            // Entries are applied, and sent to followers that keep up, right after they were
            // written: more in memory than what is written in a second or two helps nobody. Who is
            // behind reads the files.
            chunk_bytes: 8 << 20,
            cache_bytes: 8 << 20,
            // Long enough to take what is already queued. Waiting for more does not pay: what
            // comes while an fsync runs is gathered by that.
            gather: Duration::from_micros(50),
        }
    }
}

/// A log on disk.
#[derive(Debug)]
pub struct DiskLog {
    /// `None` once closed, or after an error.
    log: Mutex<Option<RaftLog<Stored>>>,
    /// Up to where the log is known to be durable, in bytes since its beginning.
    durable: Arc<AtomicU64>,
    chunk_bytes: u64,
    /// Where the newest chunk begins that nobody else may read. Changed under the lock of the log.
    private_from: AtomicU64,
}

/// The cache is limited by bytes; this only keeps many tiny entries from costing more in
/// bookkeeping than in bytes.
const CACHE_ENTRIES: usize = 200_000;

impl DiskLog {
    /// Opens or creates the log. Blocks while it is read.
    pub fn open(config: DiskLogConfig) -> io::Result<DiskLog> {
        let directory = config.directory;
        let mut settings = raft_log::Config::new(directory.display());
        settings.wal.chunk_max_size = Some(config.chunk_bytes);
        // Only their size closes them.
        settings.wal.chunk_max_records = Some(usize::MAX);
        settings.wal.read_buffer_size = Some(1 << 20);
        settings.wal.flush_batch_wait = Some(config.gather);
        settings.log_cache_capacity = Some(config.cache_bytes);
        settings.log_cache_max_items = Some(CACHE_ENTRIES);
        let settings = Arc::new(settings);
        let opened = RaftLog::open(settings.clone()).or_else(|error| {
            match holes::mend(&settings.wal, &error)? {
                Hole::Cut => RaftLog::open(settings),
                Hole::None => Err(error),
            }
        });
        let log = opened.map_err(|error| refused(&directory, &error))?;
        for file in fs::read_dir(&directory)? {
            let path = file?.path();
            restrict(&path)?;
            File::open(&path)?.sync_data()?;
        }
        let newest = log.stat().open_chunk;
        Ok(DiskLog {
            log: Mutex::new(Some(log)),
            durable: Arc::new(AtomicU64::new(newest.global_end)),
            chunk_bytes: config.chunk_bytes as u64,
            private_from: AtomicU64::new(newest.global_start),
        })
    }

    /// Keeps the chunks that came since the last call from others. `end`: where the log ends now.
    fn restrict_new_chunks(&self, log: &RaftLog<Stored>, end: u64) -> io::Result<()> {
        let known = self.private_from.load(Ordering::Relaxed);
        if end.saturating_sub(known) < self.chunk_bytes {
            return Ok(());
        }
        let stat = log.stat();
        let chunks = stat.closed_chunks.iter().chain([&stat.open_chunk]);
        for chunk in chunks.filter(|chunk| chunk.global_start > known) {
            restrict(log.config().wal.chunk_path(chunk.chunk_id))?;
        }
        self.private_from
            .store(stat.open_chunk.global_start, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<RaftLog<Stored>>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut RaftLog<Stored>) -> io::Result<T>) -> io::Result<T> {
        let mut slot = self.lock();
        let Some(log) = &mut *slot else {
            return Err(io::Error::other("the log is closed"));
        };
        let done = act(log);
        if done.is_err() {
            // What the library has in memory may be more than what it wrote: to go on would acknowledge
            // records that follow a gap.
            *slot = None;
        }
        done
    }

    /// Who is told when the log is durable up to `end`.
    fn flushed(&self, end: u64, done: OnDurable) -> Option<Flushed> {
        Some(Flushed {
            end,
            durable: self.durable.clone(),
            done,
        })
    }
}

/// For the owner alone. A file that is gone was purged.
fn restrict(path: impl AsRef<Path>) -> io::Result<()> {
    match fs::set_permissions(path, PermissionsExt::from_mode(0o600)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn refused(directory: &Path, error: &io::Error) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::Other => "is damaged",
        _ => "cannot be opened",
    };
    io::Error::new(
        error.kind(),
        format!("the log in {} {what}: {error}", directory.display()),
    )
}

impl LogStore for DiskLog {
    fn state(&self) -> LogState {
        let log = self.lock();
        let Some(log) = &*log else {
            return LogState::default();
        };
        LogState {
            purged: log.log_state().purged().copied(),
            last: log.log_state().last().copied(),
        }
    }

    fn vote(&self) -> Option<Vote> {
        self.lock().as_ref()?.log_state().vote().copied()
    }

    fn committed(&self) -> Option<LogId> {
        self.lock().as_ref()?.log_state().committed().copied()
    }

    fn save_vote(&self, vote: Vote, done: OnDurable) -> io::Result<()> {
        self.with(|log| {
            let written = log.save_vote(vote)?;
            log.flush(true, self.flushed(*written.end(), done))
        })
    }

    fn append(&self, entries: Vec<Entry>, done: OnDurable) -> io::Result<()> {
        self.with(|log| {
            let durable = self.durable.load(Ordering::Acquire);
            let records = entries.into_iter().map(|entry| {
                let body = Body {
                    payload: entry.payload,
                    durable,
                };
                (entry.id, body)
            });
            let written = log.append(records)?;
            self.restrict_new_chunks(log, *written.end())?;
            log.flush(true, self.flushed(*written.end(), done))
        })
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        self.with(|log| {
            if last.as_ref() >= log.log_state().last() {
                return Ok(());
            }
            let first_gone = last.map_or(0, |last| last.index + 1);
            log.truncate(first_gone).map(|_| ())
        })
    }

    fn purge(&self, up_to: LogId) -> io::Result<()> {
        // Durable with the next append; until then the chunks stay.
        self.with(|log| log.purge(up_to).map(|_| ()))
    }

    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else {
            return Ok(());
        };
        self.with(|log| {
            let state = log.log_state();
            if Some(&committed) <= state.committed() || Some(&committed) > state.last() {
                return Ok(());
            }
            // Goes to disk with the next append: not worth a write of its own.
            log.commit(committed).map(|_| ())
        })
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.with(|log| {
            let mut entries = Vec::new();
            let mut bytes = 0usize;
            for entry in log.read(range.start, range.end) {
                let (id, Body { payload, .. }) = entry?;
                let entry = Entry { id, payload };
                bytes = bytes.saturating_add(entry.size());
                if !entries.is_empty() && bytes > max_bytes {
                    break;
                }
                entries.push(entry);
            }
            Ok(entries)
        })
    }

    fn close(&self) -> io::Result<()> {
        let Some(mut log) = self.lock().take() else {
            return Ok(());
        };
        let (done, durable) = mpsc::sync_channel(1);
        let done = OnDurable::new(move |result| {
            // The receiver below waits for exactly this.
            let _ = done.send(result);
        });
        let end = log.stat().open_chunk.global_end;
        log.flush(true, self.flushed(end, done))?;
        durable.recv().map_err(io::Error::other)?
        // Dropping the log joins its thread and unlocks the directory.
    }
}

/// What `raft-log` stores for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stored;

impl Types for Stored {
    type LogId = LogId;
    type LogPayload = Body;
    type Vote = Vote;
    type Callback = Flushed;
    /// Not used.
    type UserData = String;

    fn log_index(id: &LogId) -> u64 {
        id.index
    }

    fn payload_size(body: &Body) -> u64 {
        body.payload.size() as u64
    }
}

/// Told by the flushing thread.
#[derive(Debug)]
struct Flushed {
    end: u64,
    durable: Arc<AtomicU64>,
    done: OnDurable,
}

impl raft_log::Callback for Flushed {
    fn send(self, result: io::Result<()>) {
        if result.is_ok() {
            self.durable.fetch_max(self.end, Ordering::Release);
        }
        self.done.call(result);
    }
}

/// A payload as a record holds it: `u32 length, u32 crc32 of the length, u64 durable, bytes`. The highest bit of
/// the length says that there is `durable`, which the first versions did not write.
///
/// The length has a checksum of its own because the library tells a torn tail from damage by
/// whether the bytes end early. A length that was flipped in the middle of the file would send the
/// reader past the end, look torn, and silently cut off every entry after it.
#[derive(Clone, Debug)]
struct Body {
    payload: Payload,
    /// Up to where the log was known to be durable when this was written. See [`holes`].
    durable: u64,
}

const MAX_BODY: usize = 1 << 30;
const HAS_DURABLE: u32 = 1 << 31;

impl Encode for Body {
    fn encode<W: Write>(&self, mut out: W) -> io::Result<usize> {
        let (head, rest) = codec::payload_parts(&self.payload);
        let len = head.len() + rest.len();
        if len > MAX_BODY {
            return Err(io::Error::other("an entry is too large"));
        }
        let written = 16 + len;
        let len = (len as u32 | HAS_DURABLE).to_be_bytes();
        out.write_all(&len)?;
        out.write_all(&crc32fast::hash(&len).to_be_bytes())?;
        out.write_all(&self.durable.to_be_bytes())?;
        out.write_all(&head)?;
        out.write_all(&rest)?;
        Ok(written)
    }
}

impl Decode for Body {
    fn decode<R: Read>(mut input: R) -> io::Result<Body> {
        let word = length_word(&mut input)?;
        let durable = match word & HAS_DURABLE {
            0 => 0,
            _ => u64::from_be_bytes(array(&mut input)?),
        };
        let len = (word & !HAS_DURABLE) as usize;
        if len > MAX_BODY {
            return Err(damaged("an entry is too large"));
        }
        let mut bytes = Vec::new();
        input.take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let payload = codec::decode_payload(Bytes::from(bytes)).map_err(undecodable)?;
        Ok(Body { payload, durable })
    }
}

/// The length of a payload with its bit, once its checksum was found good.
fn length_word(input: &mut impl Read) -> io::Result<u32> {
    let word: [u8; 4] = array(input)?;
    let crc = u32::from_be_bytes(array(input)?);
    if crc32fast::hash(&word) != crc {
        return Err(damaged("the length of an entry has a wrong checksum"));
    }
    Ok(u32::from_be_bytes(word))
}

impl Encode for LogId {
    fn encode<W: Write>(&self, mut out: W) -> io::Result<usize> {
        let mut bytes = [0; LOG_ID_LEN];
        codec::put_log_id(&mut &mut bytes[..], *self);
        out.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for LogId {
    fn decode<R: Read>(mut input: R) -> io::Result<LogId> {
        let bytes: [u8; LOG_ID_LEN] = array(&mut input)?;
        codec::get_log_id(&mut &bytes[..]).map_err(undecodable)
    }
}

impl Encode for Vote {
    fn encode<W: Write>(&self, mut out: W) -> io::Result<usize> {
        let mut bytes = [0; VOTE_LEN];
        codec::put_vote(&mut &mut bytes[..], *self);
        out.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

impl Decode for Vote {
    fn decode<R: Read>(mut input: R) -> io::Result<Vote> {
        let bytes: [u8; VOTE_LEN] = array(&mut input)?;
        codec::get_vote(&mut &bytes[..]).map_err(undecodable)
    }
}

fn array<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn undecodable(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
