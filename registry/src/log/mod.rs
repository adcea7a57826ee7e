//! The replicated log of one server: what it must promise, and the two stores that do.
//!
//! [`LogStore`] is ours, so that the consensus library on one side and the file format on the other
//! can be replaced without touching each other. The promises are those of Raft: what was
//! acknowledged as durable is there after a crash, and a vote that left the server is never
//! forgotten. Breaking one loses acknowledged writes, silently, so each is said where it applies.

pub mod codec;
mod disk;
mod entry;
mod memory;

use std::{fmt, io, ops::Range};

pub use disk::{DiskLog, DiskLogConfig};
pub use entry::{Entry, LogId, Membership, Payload, Server, ServerId, Vote};
pub use memory::MemoryLog;

/// The ends of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was purged, if any ever was.
    pub purged: Option<LogId>,
    /// The last entry; after everything was purged, the last that was purged.
    pub last: Option<LogId>,
}

/// A log with its vote. One writer at a time, any number of readers.
///
/// Calls are ordered: what a later one wrote is never durable without what an earlier one wrote. An
/// error of any of them, or one handed to an [`OnDurable`], means that the store is broken: the
/// caller stops the process and does not try again (a page that failed to reach the disk may look
/// clean afterwards).
pub trait LogStore: fmt::Debug + Send + Sync + 'static {
    fn state(&self) -> LogState;

    fn vote(&self) -> Option<Vote>;

    /// The last entry known to be committed when it was saved; may be older than the truth.
    fn committed(&self) -> Option<LogId>;

    /// Calls back once the vote is durable; until then it must not be acted on.
    fn save_vote(&self, vote: Vote, done: OnDurable) -> io::Result<()>;

    /// Adds entries that follow the last one. They can be read when this returns, and are durable
    /// when it calls back.
    fn append(&self, entries: Vec<Entry>, done: OnDurable) -> io::Result<()>;

    /// Removes every entry after `last`; all of them if it is `None`.
    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()>;

    /// Removes every entry up to and including `up_to`, which may lie beyond the last one.
    fn purge(&self, up_to: LogId) -> io::Result<()>;

    /// Best effort: may be forgotten in a crash.
    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()>;

    /// The entries in `range` that are there, up to about `max_bytes` of them, but at least one if
    /// there is one.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>>;

    /// Makes everything durable and lets go of the files. Blocks. The store is not used afterwards.
    fn close(&self) -> io::Result<()>;
}

/// Called once, when a write is durable or has failed. Dropped uncalled, it reports a failure: a
/// store that dies with writes in its queue must not leave anybody waiting.
pub struct OnDurable(Option<Callback>);

type Callback = Box<dyn FnOnce(io::Result<()>) + Send>;

impl OnDurable {
    pub fn new(callback: impl FnOnce(io::Result<()>) + Send + 'static) -> OnDurable {
        OnDurable(Some(Box::new(callback)))
    }

    pub fn call(mut self, result: io::Result<()>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl Drop for OnDurable {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(io::Error::other(
                "the log stopped before the write was durable",
            )));
        }
    }
}

impl fmt::Debug for OnDurable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDurable")
    }
}
