//! Whether a server's disk is fit for leading: it has room, and finishes in time what it is given.

mod flushes;
mod space;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

pub(super) use flushes::Flushes;
pub use space::DiskFull;
#[cfg(test)]
pub(super) use space::Extent;
pub(super) use space::{Room, Space};

use crate::log::ServerId;

/// What a server says of its disk when it answers a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskState {
    /// Said by nobody, or by a server that does not say it.
    #[default]
    Unknown,
    Fine,
    /// A flush took long lately, or still does.
    Slow,
    /// There is no room for more than the consensus itself needs.
    Full,
}

/// The disk of this server.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) space: Arc<Space>,
    pub(super) flushes: Arc<Flushes>,
    /// How long a leader's flush may take before somebody else had better lead.
    pub(super) patience: Duration,
}

impl Disk {
    /// As other servers are told.
    pub(super) fn state(&self) -> DiskState {
        if self.space.look() != Room::Enough {
            DiskState::Full
        } else if self.flushes.longest_lately() >= self.patience / 2 {
            DiskState::Slow
        } else {
            DiskState::Fine
        }
    }

    /// Why this server should not lead, if there is anybody who could better.
    pub(super) fn unfit_to_lead(&self) -> Option<Unfit> {
        if self.space.look() != Room::Enough {
            return Some(Unfit::Full);
        }
        let waiting = self.flushes.oldest().filter(|age| *age >= self.patience)?;
        Some(Unfit::Stalled(waiting))
    }
}

/// What is wrong with the disk of a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("its disk is full")]
    Full,
    #[error("its disk has not finished a write for {0:?}")]
    Stalled(Duration),
}

/// What the others said last, and when.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerDisks(Arc<Mutex<BTreeMap<ServerId, (Instant, DiskState)>>>);

impl PeerDisks {
    pub(super) fn told(&self, server: ServerId, state: DiskState) {
        self.lock().insert(server, (Instant::now(), state));
    }

    /// What each said within the last `within`; forgets the others.
    pub(super) fn lately(&self, within: Duration) -> BTreeMap<ServerId, DiskState> {
        let mut peers = self.lock();
        peers.retain(|_, (at, _)| at.elapsed() < within);
        peers.iter().map(|(id, (_, state))| (*id, *state)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, (Instant, DiskState)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
