//! The state machine: tables, and how a command changes them.
//!
//! Pure and deterministic: no clock, no randomness, no IO, and every collection has an order. The
//! tables are persistent, so a copy of the whole state is a handful of pointers; that copy is what
//! readers get ([`crate::view::View`]) and what a snapshot is written from.
//!
//! Besides the rows, the state keeps *indexes*: the log index at which the answer to a kind of
//! question last changed. A blocking query compares its index with one of them, and each is moved
//! together with the watch key that wakes the query ([`Touched`]).

mod addresses;
mod autopilot;
mod catalog;
mod config_entry;
pub(crate) mod kv;
mod left;
pub(crate) mod platform;
mod records;
mod restore;

use std::{collections::BTreeSet, sync::Arc};

use imbl::OrdMap;

use crate::{
    command::{Command, Outcome},
    model::{AutopilotConfig, ConfigEntry, ConfigEntryKind, KvEntry, Str},
    watch::WatchKey,
};

pub use catalog::{Instance, InstanceKey, NodeEntry, ServiceEntry};
pub use left::LeftMember;
pub use platform::{JobEntry, PlatformIndexes, PlatformRecord};
pub use records::{Record, RecordError};
pub use restore::Restoring;

/// All replicated state of the platform at one index.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By folded name.
    pub(crate) nodes: OrdMap<Str, Arc<NodeEntry>>,
    /// Node id to folded name, for the nodes that have an id.
    pub(crate) node_ids: OrdMap<Str, Str>,
    /// By folded name; a service without instances has no entry.
    pub(crate) services: OrdMap<Str, Arc<ServiceEntry>>,
    /// Of nodes and instances; derived from the two tables above.
    pub(crate) addresses: addresses::Addresses,
    pub(crate) kv: OrdMap<Str, Arc<KvEntry>>,
    /// Keys that were deleted, until reaped: a watcher of a prefix must see its index move.
    pub(crate) tombstones: OrdMap<Str, kv::Tombstone>,
    pub(crate) config: OrdMap<(ConfigEntryKind, Str), Arc<ConfigEntry>>,
    pub(crate) platform: platform::PlatformState,
    /// By folded name.
    pub(crate) left: OrdMap<Str, Arc<LeftMember>>,
    /// `None` until somebody has set them.
    pub(crate) autopilot: Option<Arc<AutopilotConfig>>,
    /// The parts of a restore that have come so far.
    pub(crate) restoring: Option<Restoring>,
    /// By how much indexes are above those of the log. A restored state brings larger ones from the log that it was
    /// saved from, and no index goes back.
    pub(crate) offset: u64,
    pub(crate) indexes: Indexes,
}

/// When the answer to a whole-table question last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indexes {
    /// The last entry applied.
    pub applied: u64,
    /// The list of nodes.
    pub nodes: u64,
    /// Any instance.
    pub services: u64,
    /// The names of services and their tags.
    pub service_names: u64,
    /// Any check.
    pub checks: u64,
    /// Any key.
    pub kv: u64,
    /// The newest tombstone that was reaped: watchers older than it may have missed deletions.
    pub kv_reaped: u64,
    /// Any configuration entry.
    pub config: u64,
    /// A node was removed.
    pub node_extinction: u64,
    /// A service lost its last instance.
    pub service_extinction: u64,
    /// The whole state was replaced: the answer to every question is at least as new.
    pub restored: u64,
}

/// The watch keys whose answers a batch of commands changed, each once.
#[derive(Debug, Default)]
pub struct Touched {
    keys: BTreeSet<WatchKey>,
    everything: bool,
}

impl Touched {
    pub(crate) fn add(&mut self, key: WatchKey) {
        self.keys.insert(key);
    }

    /// The state was replaced.
    pub(crate) fn add_everything(&mut self) {
        self.everything = true;
    }

    /// Whether every key is touched, also one that [`Touched::iter`] does not name.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    pub fn iter(&self) -> impl Iterator<Item = &WatchKey> {
        self.keys.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.everything
    }
}

impl State {
    /// Applies one entry. `index` is the entry's log index and must be above every earlier one.
    pub fn apply(&mut self, index: u64, command: &Command, touched: &mut Touched) -> Outcome {
        let log_index = index;
        let index = index + self.offset;
        debug_assert!(
            index > self.indexes.applied,
            "entries are applied in order, once"
        );
        let outcome = match command {
            Command::Register(register) => match self.register(index, register, touched) {
                Ok(()) => Outcome::Done,
                Err(refusal) => Outcome::Refused(refusal),
            },
            Command::Deregister(deregister) => {
                self.deregister(index, deregister, touched);
                Outcome::Done
            }
            Command::Kv(command) => self.apply_kv(index, command, touched),
            Command::Config(command) => self.apply_config(index, command, touched),
            Command::Platform(command) => self.platform.apply(index, command, touched),
            Command::Autopilot(command) => self.apply_autopilot(index, command),
            Command::Restore(command) => {
                // It may bring another offset.
                let outcome = self.apply_restore(log_index, command, touched);
                self.indexes.applied = log_index + self.offset;
                return outcome;
            }
        };
        self.indexes.applied = index;
        outcome
    }

    /// Passes an entry that carries no command. The very first entry of a log is one, and its index
    /// is 0.
    pub fn skip(&mut self, index: u64) {
        debug_assert!(
            index + self.offset > self.indexes.applied || index == 0,
            "entries are applied in order, once"
        );
        self.indexes.applied = index + self.offset;
    }

    /// The index of the last entry.
    pub fn applied(&self) -> u64 {
        self.indexes.applied
    }

    /// The place of the last entry in the log.
    pub fn log_index(&self) -> u64 {
        self.indexes.applied - self.offset
    }
}
