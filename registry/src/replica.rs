//! One copy of the state: entries go in at one end, views come out at the other.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    command::{Command, DecodeError, Outcome},
    state::{Record, RecordError, State, Touched},
    view::View,
    watch::{WatchKey, Watcher, Watches},
};

/// A committed log entry as the state machine sees it.
#[derive(Clone, Debug)]
pub struct Committed {
    pub index: u64,
    /// An encoded [`Command`]; `None` for entries of the log itself, such as membership.
    pub command: Option<Bytes>,
}

/// The owner of the mutable state. Used by one task, in log order.
#[derive(Debug, Default)]
pub struct Replica {
    state: State,
    registry: Registry,
}

/// The reading side of a [`Replica`], for any number of readers.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    view: Arc<ArcSwap<View>>,
    watches: Arc<Watches>,
}

/// A committed command that this binary cannot read. To go on without it would make this replica
/// differ from the others: the caller must stop.
#[derive(Debug, thiserror::Error)]
#[error("log entry {index} cannot be applied: {source}")]
pub struct Unreadable {
    pub index: u64,
    pub source: DecodeError,
}

impl Replica {
    pub fn new() -> Replica {
        Replica::default()
    }

    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Applies a batch of entries, publishes one view of the result, then wakes each key that they
    /// touched, once. The outcomes are in the order of the entries.
    ///
    /// On an error the entries before the unreadable one are applied and published, it and those
    /// after it are not.
    pub fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Outcome>, Unreadable> {
        let mut touched = Touched::default();
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut unreadable = None;
        for Committed { index, command } in batch {
            let outcome = match command.as_deref().map(Command::decode) {
                None => {
                    self.state.skip(*index);
                    Outcome::Done
                }
                Some(Ok(command)) => self.state.apply(*index, &command, &mut touched),
                Some(Err(source)) => {
                    unreadable = Some(Unreadable {
                        index: *index,
                        source,
                    });
                    break;
                }
            };
            outcomes.push(outcome);
        }
        self.registry.publish(&self.state, &touched);
        match unreadable {
            None => Ok(outcomes),
            Some(unreadable) => Err(unreadable),
        }
    }

    /// The place in the log of the last entry applied.
    pub fn last_applied(&self) -> u64 {
        self.state.log_index()
    }

    /// The state as it is now, for a snapshot; costs a few pointers.
    pub fn freeze(&self) -> Arc<View> {
        self.registry.view()
    }

    /// Replaces the state by that of a snapshot taken at `index`, and wakes every watcher. The new
    /// state is built beside the old one: on an error nothing has changed.
    pub fn restore<E>(
        &mut self,
        records: impl IntoIterator<Item = Result<Record, E>>,
        index: u64,
    ) -> Result<(), E>
    where
        E: From<RecordError>,
    {
        let mut state = State::restored(index)?;
        for record in records {
            state.insert(record?)?;
        }
        self.state = state;
        self.registry
            .view
            .store(Arc::new(View::new(self.state.clone())));
        self.registry.watches.wake_all();
        Ok(())
    }
}

impl Registry {
    /// Shows readers a new state, and wakes who watches what is different in it.
    pub(crate) fn publish(&self, state: &State, touched: &Touched) {
        self.view.store(Arc::new(View::new(state.clone())));
        match touched.is_everything() {
            true => self.watches.wake_all(),
            false => self.watches.wake(touched),
        }
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Starts to watch a key. To miss nothing, watch first and load the view after.
    pub fn watch(&self, key: WatchKey) -> Watcher {
        self.watches.watch(key)
    }

    pub fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }
}

#[cfg(test)]
mod tests;
