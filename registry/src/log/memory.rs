//! A log that is gone with the process, for development servers and tests.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Entry, LogId, LogState, LogStore, OnDurable, Vote};

#[derive(Debug, Default)]
pub struct MemoryLog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Without gaps: the entry after `purged` comes first.
    entries: VecDeque<Entry>,
}

impl MemoryLog {
    pub fn new() -> MemoryLog {
        MemoryLog::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No method panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn first_index(&self) -> u64 {
        match self.entries.front() {
            Some(entry) => entry.id.index,
            None => self.purged.map_or(0, |id| id.index + 1),
        }
    }

    /// How many entries lie before `index`.
    fn position(&self, index: u64) -> usize {
        let offset = index.saturating_sub(self.first_index());
        usize::try_from(offset).map_or(self.entries.len(), |at| at.min(self.entries.len()))
    }
}

impl LogStore for MemoryLog {
    fn state(&self) -> LogState {
        let inner = self.lock();
        LogState {
            purged: inner.purged,
            last: inner.entries.back().map(|entry| entry.id).or(inner.purged),
        }
    }

    fn vote(&self) -> Option<Vote> {
        self.lock().vote
    }

    fn committed(&self) -> Option<LogId> {
        self.lock().committed
    }

    fn save_vote(&self, vote: Vote, done: OnDurable) -> io::Result<()> {
        self.lock().vote = Some(vote);
        done.call(Ok(()));
        Ok(())
    }

    fn append(&self, entries: Vec<Entry>, done: OnDurable) -> io::Result<()> {
        {
            let mut inner = self.lock();
            for entry in entries {
                let expected = inner.first_index() + inner.entries.len() as u64;
                let starts = inner.entries.is_empty() && inner.purged.is_none();
                if !starts && entry.id.index != expected {
                    return Err(io::Error::other(format!(
                        "entry {} does not follow the log, which expects index {expected}",
                        entry.id
                    )));
                }
                inner.entries.push_back(entry);
            }
        }
        done.call(Ok(()));
        Ok(())
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        let mut inner = self.lock();
        let keep = match last {
            Some(last) => inner.position(last.index + 1),
            None => 0,
        };
        inner.entries.truncate(keep);
        Ok(())
    }

    fn purge(&self, up_to: LogId) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.purged >= Some(up_to) {
            return Ok(());
        }
        let gone = inner.position(up_to.index + 1);
        inner.entries.drain(..gone);
        inner.purged = Some(up_to);
        Ok(())
    }

    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        self.lock().committed = committed;
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let inner = self.lock();
        let wanted = inner.position(range.start)..inner.position(range.end);
        if wanted.start >= wanted.end {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in inner.entries.range(wanted) {
            bytes += entry.size();
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
