//! A disk that takes its time, and loses in a crash what it has not finished.

use std::{collections::VecDeque, io, ops::Range, sync::Weak};

use wharf_tests::Chance;

use super::*;
use crate::log::{Entry, LogId, LogState, OnDurable, Vote};

/// What is wrong with a disk, to see whether it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Appends are said to be durable before they are.
    EarlyFsync,
    /// Votes are said to be durable, and are so with the next append only.
    VoteNotSynced,
    /// Of two commands that are read together the second comes first.
    OutOfOrder,
}

#[derive(Clone, Debug)]
enum Change {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(Option<LogId>),
    Purge(LogId),
    Commit(LogId),
}

#[derive(Debug)]
pub(super) struct LossyDisk(Mutex<State>);

#[derive(Debug)]
struct State {
    safe: MemoryLog,
    pending: VecDeque<Change>,
    /// How many changes were asked for, the pending ones included.
    issued: u64,
    /// Told apart from those before the last crash.
    generation: u64,
    busy_until: tokio::time::Instant,
    chance: Chance,
    flaw: Option<Flaw>,
}

/// The log on it, from a start to a crash.
#[derive(Debug)]
pub(super) struct LossyLog {
    disk: Arc<LossyDisk>,
    generation: u64,
    seen: MemoryLog,
    /// For the tasks that finish writes.
    own: Weak<LossyLog>,
}

fn ignored() -> OnDurable {
    OnDurable::new(|_| {})
}

fn perform(log: &MemoryLog, change: Change) -> io::Result<()> {
    match change {
        Change::Append(entries) => log.append(entries, ignored()),
        Change::Vote(vote) => log.save_vote(vote, ignored()),
        Change::Truncate(last) => log.truncate_after(last),
        Change::Purge(up_to) => log.purge(up_to),
        Change::Commit(id) => log.save_committed(Some(id)),
    }
}

fn copy(log: &MemoryLog) -> MemoryLog {
    let copy = MemoryLog::new();
    if let Some(purged) = log.state().purged {
        copy.purge(purged).unwrap();
    }
    let entries = log.read(0..u64::MAX, usize::MAX).unwrap();
    copy.append(entries, ignored()).unwrap();
    copy.save_committed(log.committed()).unwrap();
    if let Some(vote) = log.vote() {
        copy.save_vote(vote, ignored()).unwrap();
    }
    copy
}

impl LossyDisk {
    pub(super) fn new(seed: u64, flaw: Option<Flaw>) -> Arc<LossyDisk> {
        Arc::new(LossyDisk(Mutex::new(State {
            safe: MemoryLog::new(),
            pending: VecDeque::new(),
            issued: 0,
            generation: 0,
            busy_until: tokio::time::Instant::now(),
            chance: Chance::new(seed),
            flaw,
        })))
    }

    pub(super) fn open(self: &Arc<Self>) -> Arc<LossyLog> {
        let state = self.0.lock().unwrap();
        Arc::new_cyclic(|own| LossyLog {
            disk: self.clone(),
            generation: state.generation,
            seen: copy(&state.safe),
            own: own.clone(),
        })
    }

    /// From now on nothing more gets onto it but some of what is on its way.
    pub(super) fn crash(&self) {
        let mut state = self.0.lock().unwrap();
        let most = state.pending.len() as u64 + 1;
        let kept = state.chance.below(most);
        let until = state.issued - (most - 1) + kept;
        state.sync(until);
        state.pending.clear();
        state.generation += 1;
    }
}

impl State {
    /// The first `until` changes are durable.
    fn sync(&mut self, until: u64) {
        while self.issued - (self.pending.len() as u64) < until {
            let Some(change) = self.pending.pop_front() else {
                return;
            };
            perform(&self.safe, change).unwrap();
        }
    }

    fn flawed(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

impl LossyLog {
    /// Returns how many changes there are with it, or an error of a server that is not to run any more.
    fn change(&self, change: Change) -> io::Result<u64> {
        let mut state = self.disk.0.lock().unwrap();
        if state.generation != self.generation {
            return Err(io::Error::other("the power is off"));
        }
        perform(&self.seen, change.clone())?;
        state.pending.push_back(change);
        state.issued += 1;
        Ok(state.issued)
    }

    /// Calls back once the first `until` changes are durable.
    fn finish(&self, until: u64, millis: u64, done: Option<OnDurable>) {
        let at = {
            let mut state = self.disk.0.lock().unwrap();
            let delay = Duration::from_millis(1 + state.chance.below(millis));
            state.busy_until = state.busy_until.max(tokio::time::Instant::now()) + delay;
            state.busy_until
        };
        let own = self.own.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(log) = own.upgrade() else { return };
            {
                let mut state = log.disk.0.lock().unwrap();
                if state.generation != log.generation {
                    return;
                }
                state.sync(until);
            }
            if let Some(done) = done {
                done.call(Ok(()));
            }
        });
    }

    fn flawed(&self, flaw: Flaw) -> bool {
        self.disk.0.lock().unwrap().flawed(flaw)
    }
}

impl LogStore for LossyLog {
    fn append(&self, entries: Vec<Entry>, done: OnDurable) -> io::Result<()> {
        let until = self.change(Change::Append(entries))?;
        if self.flawed(Flaw::EarlyFsync) {
            done.call(Ok(()));
            self.finish(until, 1000, None);
        } else {
            self.finish(until, 8, Some(done));
        }
        Ok(())
    }

    fn save_vote(&self, vote: Vote, done: OnDurable) -> io::Result<()> {
        let until = self.change(Change::Vote(vote))?;
        match self.flawed(Flaw::VoteNotSynced) {
            true => done.call(Ok(())),
            false => self.finish(until, 8, Some(done)),
        }
        Ok(())
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        self.change(Change::Truncate(last)).map(|_| ())
    }
    fn purge(&self, up_to: LogId) -> io::Result<()> {
        self.change(Change::Purge(up_to)).map(|_| ())
    }
    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.change(Change::Commit(id)).map(|_| ()),
            None => Ok(()),
        }
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = self.seen.read(range, max_bytes)?;
        let is_command = |entry: &Entry| matches!(entry.payload, crate::log::Payload::Command(_));
        if self.flawed(Flaw::OutOfOrder)
            && let Some([one, two]) = entries
                .as_mut_slice()
                .first_chunk_mut::<2>()
                .filter(|two| two.iter().all(is_command))
        {
            std::mem::swap(&mut one.payload, &mut two.payload);
        }
        Ok(entries)
    }

    fn state(&self) -> LogState {
        self.seen.state()
    }
    fn vote(&self) -> Option<Vote> {
        self.seen.vote()
    }
    fn committed(&self) -> Option<LogId> {
        self.seen.committed()
    }
    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
