//! Our [`LogStore`] as openraft's log storage.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use futures_util::{Stream, StreamExt, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    disk::Flushes,
    raft::{self, RaftEntryOf, RaftLogId, RaftVote, TypeConfig},
    recovery::NewMembers,
};
use crate::log::{Entry, LogStore, OnDurable};

/// What one read takes from the log, in bytes: the size of a replication message, and of the steps
/// in which a restarting server works through its log.
const READ_BYTES: usize = 2 << 20;

#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) log: Arc<dyn LogStore>,
    /// Told of everything that is given to the log.
    pub(super) flushes: Arc<Flushes>,
    members: Option<Arc<NewMembers>>,
}

impl Storage {
    /// `members`: who they are instead of those that a part of the log names.
    pub(super) fn new(log: Arc<dyn LogStore>, members: Option<Arc<NewMembers>>) -> Storage {
        let flushes = Arc::default();
        Storage {
            log,
            flushes,
            members,
        }
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<RaftEntryOf>> {
        let mut entries = self.log.read(range, max_bytes)?;
        if let Some(members) = &self.members {
            entries.iter_mut().for_each(|entry| members.correct(entry));
        }
        entries.into_iter().map(raft::raft_entry).collect()
    }
}

impl RaftLogReader<TypeConfig> for Storage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntryOf>> {
        self.read(bounds(&range), usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.vote().map(raft::raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntryOf>> {
        self.read(start..end, READ_BYTES)
    }

    /// What is to be applied. In steps: the whole range may be larger than the memory we want to spend on it.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntryOf>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let storage = self.clone();
        let steps = stream::try_unfold(bounds(&range), move |left| {
            let step = storage.read(left.clone(), READ_BYTES);
            async move {
                let step = step?;
                for (expected, entry) in (left.start..).zip(&step) {
                    // To apply what follows a gap would be to lose what was acknowledged, silently.
                    if entry.log_id.index != expected {
                        return Err(io::Error::other(format!(
                            "the log lacks entry {expected}, and goes on with entry {}",
                            entry.log_id.index
                        )));
                    }
                }
                let next = step.last().map(|last| last.log_id.index + 1);
                Ok(next.map(|next| (step, next..left.end)))
            }
        });
        steps
            .map(|step: io::Result<Vec<RaftEntryOf>>| {
                stream::iter(match step {
                    Ok(entries) => entries.into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                })
            })
            .flatten()
            .boxed()
    }
}

impl RaftLogStorage<TypeConfig> for Storage {
    type LogReader = Storage;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(raft::raft_log_id),
            last_log_id: state.last.map(raft::raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Storage {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        let flush = self.flushes.begin(0);
        let done = OnDurable::new(move |result| {
            drop(flush);
            // The core waits for it, unless it is being torn down.
            let _ = done.send(result);
        });
        self.log.save_vote(raft::vote(vote), done)?;
        durable
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the log dropped a vote")))
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.log
            .save_committed(committed.as_ref().map(raft::log_id))
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.committed().map(raft::raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntryOf> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().map(raft::entry).collect();
        self.flushes.room().await;
        let flush = self.flushes.begin(entries.iter().map(Entry::size).sum());
        let done = OnDurable::new(move |result| {
            drop(flush);
            callback.io_completed(result);
        });
        self.log.append(entries, done)
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.log.truncate_after(last.as_ref().map(raft::log_id))
    }

    async fn purge(&mut self, up_to: RaftLogId) -> io::Result<()> {
        self.log.purge(raft::log_id(&up_to))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
