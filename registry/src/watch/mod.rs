//! Waiting for a change.
//!
//! One cell per watched key: a version, and the tasks that wait for it to move. The state machine
//! says which keys a batch of entries touched; after the new view is published each of their cells
//! is woken once. The cost is that of the change and of those who watch it: nothing is done for a
//! key that nobody watches, and nobody is woken for a key they do not watch.
//!
//! Who watches first and loads the view then misses no change: the module `cells` says why.

mod cells;
mod prefixes;
mod sync;

use std::{
    future,
    hash::RandomState,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use cells::{Cells, Interest};
use prefixes::PrefixLengths;

use crate::{
    model::{ConfigEntryKind, Str},
    state::Touched,
};

/// Something whose changes can be waited for. Node and service names are folded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WatchKey {
    /// The list of nodes.
    Nodes,
    /// One node, with its instances and checks.
    Node(Str),
    /// The names of all services, with their tags.
    ServiceNames,
    /// Any instance, in what it says of itself.
    Services,
    /// One service: its instances, with their nodes and checks.
    Service(Str),
    /// Any check.
    Checks,
    /// One key.
    Kv(Str),
    /// Every key that starts with this.
    KvPrefix(Str),
    /// Any configuration entry.
    Config,
    ConfigEntry(ConfigEntryKind, Str),
    /// Any job.
    Jobs,
    /// One job, with its kept versions.
    Job(Str),
    /// Any allocation.
    Allocs,
    /// The allocations of one job.
    JobAllocs(Str),
    /// The allocations on one node of the platform, by its id.
    NodeAllocs(Str),
    /// One allocation, by its id.
    Alloc(Str),
    /// Any node of the platform.
    PlatformNodes,
    /// One node of the platform, by its id.
    PlatformNode(Str),
}

/// All that somebody watches.
#[derive(Debug)]
pub struct Watches {
    cells: Cells<WatchKey>,
    prefix_lengths: PrefixLengths,
    watchers: AtomicUsize,
    wakes: AtomicU64,
}

impl Default for Watches {
    fn default() -> Self {
        Watches {
            cells: Cells::with_hasher(RandomState::new()),
            prefix_lengths: PrefixLengths::default(),
            watchers: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
        }
    }
}

impl Watches {
    /// Starts to watch `key`. What changes from now on is seen by [`Watcher::changed`].
    pub fn watch(self: &Arc<Self>, key: WatchKey) -> Watcher {
        if let WatchKey::KvPrefix(prefix) = &key {
            self.prefix_lengths.add(prefix.len());
        }
        let interest = self.cells.enter(&key);
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher {
            watches: self.clone(),
            key,
            interest,
            counted: true,
        }
    }

    /// Wakes whoever watches what a batch touched. Called after the batch's view is published.
    pub fn wake(&self, touched: &Touched) {
        for key in touched.iter() {
            self.wake_key(key);
            if let WatchKey::Kv(name) = key {
                self.wake_prefixes_of(name);
            }
        }
    }

    /// Wakes every watcher: the state was replaced.
    pub fn wake_all(&self) {
        self.cells.wake_all();
    }

    /// How many watchers there are, without the [standing](Watcher::standing) ones.
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// How many cells were woken since the start.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Whether anybody watches the key.
    pub fn is_watched(&self, key: &WatchKey) -> bool {
        self.cells.contains(key)
    }

    fn wake_key(&self, key: &WatchKey) {
        if self.cells.wake(key) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake_prefixes_of(&self, key: &Str) {
        for length in self.prefix_lengths.up_to(key.len()) {
            if let Some(prefix) = key.get(..length) {
                self.wake_key(&WatchKey::KvPrefix(prefix.into()));
            }
        }
    }
}

/// One interest in a key. Dropping it ends the watch and frees the cell with the last one.
#[derive(Debug)]
pub struct Watcher {
    watches: Arc<Watches>,
    key: WatchKey,
    interest: Interest,
    /// Somebody's, not the agent's own.
    counted: bool,
}

impl Watcher {
    /// The watch of a part of the agent itself, there as long as it runs: it does not count, so that
    /// [`Watches::watchers`] tells how many clients wait.
    #[must_use]
    pub fn standing(mut self) -> Watcher {
        let before = std::mem::replace(&mut self.counted, false);
        self.watches
            .watchers
            .fetch_sub(usize::from(before), Ordering::Relaxed);
        self
    }

    /// Completes when the key changed since the watch began, or since the last completion. Several
    /// changes in between are one. Cancel safe.
    pub async fn changed(&mut self) {
        future::poll_fn(|context| self.interest.poll_changed(context)).await;
    }

    pub fn key(&self) -> &WatchKey {
        &self.key
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let watches = &self.watches;
        watches
            .watchers
            .fetch_sub(usize::from(self.counted), Ordering::Relaxed);
        watches.cells.leave(&self.key, &mut self.interest);
        if let WatchKey::KvPrefix(prefix) = &self.key {
            watches.prefix_lengths.remove(prefix.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(keys: &[WatchKey]) -> Touched {
        let mut touched = Touched::default();
        for key in keys {
            touched.add(key.clone());
        }
        touched
    }

    /// Whether a change is there to be seen, without waiting for one.
    fn is_changed(watcher: &mut Watcher) -> bool {
        use futures_util::FutureExt as _;
        watcher.changed().now_or_never().is_some()
    }

    #[test]
    fn a_change_after_the_watch_began_is_seen_once() {
        let watches = Arc::new(Watches::default());
        let mut watcher = watches.watch(WatchKey::Service("web".into()));
        assert!(!is_changed(&mut watcher));
        watches.wake(&touched(&[WatchKey::Service("web".into())]));
        watches.wake(&touched(&[WatchKey::Service("web".into())]));
        assert!(is_changed(&mut watcher));
        assert!(!is_changed(&mut watcher));
    }

    #[test]
    fn others_are_not_woken() {
        let watches = Arc::new(Watches::default());
        let mut web = watches.watch(WatchKey::Service("web".into()));
        let _db = watches.watch(WatchKey::Service("db".into()));
        watches.wake(&touched(&[
            WatchKey::Service("db".into()),
            WatchKey::Checks,
        ]));
        assert!(!is_changed(&mut web));
        assert_eq!(watches.wakes(), 1, "nobody watches the checks");
    }

    #[test]
    fn a_prefix_is_woken_by_the_keys_below_it() {
        let watches = Arc::new(Watches::default());
        let mut below = watches.watch(WatchKey::KvPrefix("app/".into()));
        let mut all = watches.watch(WatchKey::KvPrefix("".into()));
        let mut deeper = watches.watch(WatchKey::KvPrefix("app/web/é".into()));
        watches.wake(&touched(&[WatchKey::Kv("app/web".into())]));
        assert!(is_changed(&mut below) && is_changed(&mut all) && !is_changed(&mut deeper));
        watches.wake(&touched(&[WatchKey::Kv("app/web/éa".into())]));
        assert!(is_changed(&mut below) && is_changed(&mut deeper));
        watches.wake(&touched(&[WatchKey::Kv("apple".into())]));
        assert!(!is_changed(&mut below) && is_changed(&mut all));
    }

    #[test]
    fn cells_go_with_their_last_watcher() {
        let watches = Arc::new(Watches::default());
        let first = watches.watch(WatchKey::KvPrefix("a".into()));
        let second = watches.watch(WatchKey::KvPrefix("a".into()));
        drop(first);
        let cells = || watches.cells.count();
        assert_eq!((cells(), watches.watchers()), (1, 1));
        let own = watches.watch(WatchKey::Jobs).standing();
        assert_eq!((cells(), watches.watchers()), (2, 1));
        drop((own, second));
        assert_eq!((cells(), watches.watchers()), (0, 0));
        assert!(watches.prefix_lengths.up_to(usize::MAX).is_empty());
    }

    #[tokio::test]
    async fn a_parked_watcher_wakes_and_wake_all_reaches_everyone() {
        let watches = Arc::new(Watches::default());
        let mut one = watches.watch(WatchKey::Nodes);
        let mut two = watches.watch(WatchKey::Kv("k".into()));
        let parked = tokio::spawn(async move {
            one.changed().await;
            two.changed().await;
        });
        tokio::task::yield_now().await;
        watches.wake_all();
        parked.await.unwrap();
    }
}
