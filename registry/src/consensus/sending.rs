//! Snapshots on their way to other servers. Who gets one goes on with the entry after it: so that it is there then, the
//! log is not shortened beyond the end of any of them, as long as they take and for a while after.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::Instant as _;

use super::runtime::{self, Instant};
use crate::log::ServerId;

/// For how long at least the log is kept for who has got a snapshot. For as long as that took, if it took longer: what
/// was written meanwhile goes the same way, and is less.
const CATCH_UP: Duration = Duration::from_secs(30);

/// The snapshots that are being sent. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Sending {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    lanes: Mutex<BTreeMap<ServerId, Lane>>,
    serial: AtomicU64,
    /// By how many bytes the log has grown since the start.
    grown: AtomicU64,
}

#[derive(Debug)]
struct Lane {
    serial: u64,
    /// The end of the snapshot.
    after: u64,
    began: Instant,
    ended: Option<Instant>,
    /// By how much the log had grown when it began.
    grown: u64,
}

/// A snapshot on its way; dropped when it has come, or will not.
#[derive(Debug)]
pub(super) struct Underway {
    shared: Arc<Shared>,
    to: ServerId,
    serial: u64,
}

impl Sending {
    pub(super) fn grew(&self, bytes: u64) {
        self.shared.grown.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A snapshot that ends with the entry at `after` goes to this server, instead of any before.
    pub(super) fn begin(&self, to: ServerId, after: u64) -> Underway {
        let shared = self.shared.clone();
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        let lane = Lane {
            serial,
            after,
            began: runtime::now(),
            ended: None,
            grown: shared.grown.load(Ordering::Relaxed),
        };
        shared.lock().insert(to, lane);
        Underway { shared, to, serial }
    }

    /// After which entry the log is needed for those that get snapshots. For none of them it is kept when it has
    /// grown by more than `most` bytes since: who is so slow does not come up to it.
    pub(super) fn needed_after(&self, most: u64) -> Option<u64> {
        let now = runtime::now();
        let grown = self.shared.grown.load(Ordering::Relaxed);
        let mut lanes = self.shared.lock();
        lanes.retain(|_, lane| !lane.is_over(now) && grown.saturating_sub(lane.grown) <= most);
        lanes.values().map(|lane| lane.after).min()
    }
}

impl Lane {
    fn is_over(&self, now: Instant) -> bool {
        self.ended.is_some_and(|ended| {
            let took = ended.saturating_duration_since(self.began);
            now.saturating_duration_since(ended) >= took.max(CATCH_UP)
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(lane) = self.shared.lock().get_mut(&self.to)
            && lane.serial == self.serial
        {
            lane.ended = Some(runtime::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> ServerId {
        ServerId(Uuid::from_u128(number))
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_kept_while_a_snapshot_is_sent_and_for_as_long_again() {
        let sending = Sending::default();
        assert_eq!(sending.needed_after(100), None);
        let first = sending.begin(id(2), 10);
        let second = sending.begin(id(3), 20);
        pass(100).await;
        assert_eq!(sending.needed_after(100), Some(10));
        drop(first);
        pass(99).await;
        assert_eq!(sending.needed_after(100), Some(10));
        pass(1).await;
        assert_eq!(sending.needed_after(100), Some(20));
        // It failed, and a newer one is sent; only then the former is let go of.
        let third = sending.begin(id(3), 30);
        drop(second);
        assert_eq!(sending.needed_after(100), Some(30));
        drop(third);
        pass(29).await;
        assert_eq!(sending.needed_after(100), Some(30));
        pass(1).await;
        assert_eq!(sending.needed_after(100), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_does_not_grow_without_bound_for_one_that_is_slow() {
        let sending = Sending::default();
        sending.grew(1_000);
        let _slow = sending.begin(id(2), 10);
        sending.grew(100);
        assert_eq!(sending.needed_after(100), Some(10));
        sending.grew(1);
        assert_eq!(sending.needed_after(100), None);
    }
}
