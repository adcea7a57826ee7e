//! Waiting for a change.
//!
//! One cell per watched key: a version, and the tasks that wait for it to move. The state machine
//! says which keys a batch of entries touched; after the new view is published each of their cells
//! is woken once. The cost is that of the change and of those who watch it: nothing is done for a
//! key that nobody watches, and nobody is woken for a key they do not watch.
//!
//! The order that makes this safe: a reader first takes the cell, notes its version, then loads the
//! view; a writer first publishes the view, then moves the version. A reader that saw the old view
//! therefore sees the version move.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

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

#[derive(Debug, Default)]
struct Cell {
    version: AtomicU64,
    notify: Notify,
}

impl Cell {
    fn wake(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.notify.notify_waiters();
    }
}

const SHARDS: usize = 16;

/// All cells that somebody watches.
#[derive(Debug)]
pub struct Watches {
    shards: [Mutex<HashMap<WatchKey, Arc<Cell>>>; SHARDS],
    hasher: RandomState,
    /// How many watched prefixes there are of each length, in bytes: a changed key is looked up
    /// under these lengths only.
    prefix_lengths: Mutex<BTreeMap<usize, usize>>,
    watchers: AtomicUsize,
    wakes: AtomicU64,
}

impl Default for Watches {
    fn default() -> Self {
        Watches {
            shards: Default::default(),
            hasher: RandomState::new(),
            prefix_lengths: Mutex::default(),
            watchers: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
        }
    }
}

impl Watches {
    /// Starts to watch `key`. What changes from now on is seen by [`Watcher::changed`].
    pub fn watch(self: &Arc<Self>, key: WatchKey) -> Watcher {
        if let WatchKey::KvPrefix(prefix) = &key {
            *lock(&self.prefix_lengths).entry(prefix.len()).or_default() += 1;
        }
        let cell = lock(self.shard(&key))
            .entry(key.clone())
            .or_default()
            .clone();
        self.watchers.fetch_add(1, Ordering::Relaxed);
        let seen = cell.version.load(Ordering::Acquire);
        Watcher {
            watches: self.clone(),
            key,
            cell,
            seen,
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
        for shard in &self.shards {
            for cell in lock(shard).values() {
                cell.wake();
            }
        }
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
        lock(self.shard(key)).contains_key(key)
    }

    fn wake_key(&self, key: &WatchKey) {
        let cell = lock(self.shard(key)).get(key).cloned();
        if let Some(cell) = cell {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            cell.wake();
        }
    }

    fn wake_prefixes_of(&self, key: &Str) {
        let lengths: Vec<usize> = lock(&self.prefix_lengths)
            .range(..=key.len())
            .map(|(&length, _)| length)
            .collect();
        for length in lengths {
            if let Some(prefix) = key.get(..length) {
                self.wake_key(&WatchKey::KvPrefix(prefix.into()));
            }
        }
    }

    fn shard(&self, key: &WatchKey) -> &Mutex<HashMap<WatchKey, Arc<Cell>>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn release(&self, key: &WatchKey, counted: bool) {
        self.watchers
            .fetch_sub(usize::from(counted), Ordering::Relaxed);
        {
            let mut shard = lock(self.shard(key));
            // The map's own reference, and that of the watcher that is going.
            if shard
                .get(key)
                .is_some_and(|cell| Arc::strong_count(cell) <= 2)
            {
                shard.remove(key);
            }
        }
        if let WatchKey::KvPrefix(prefix) = key {
            let mut lengths = lock(&self.prefix_lengths);
            if let Some(count) = lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&prefix.len());
                }
            }
        }
    }
}

/// A panic while a shard was locked cannot leave it half changed: each critical section is one map
/// operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One interest in a key. Dropping it ends the watch and frees the cell with the last one.
#[derive(Debug)]
pub struct Watcher {
    watches: Arc<Watches>,
    key: WatchKey,
    cell: Arc<Cell>,
    seen: u64,
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
        loop {
            let notified = self.cell.notify.notified();
            tokio::pin!(notified);
            // From here on a wake is not missed; so the version is read after it.
            notified.as_mut().enable();
            let version = self.cell.version.load(Ordering::Acquire);
            if version != self.seen {
                self.seen = version;
                return;
            }
            notified.await;
        }
    }

    pub fn key(&self) -> &WatchKey {
        &self.key
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watches.release(&self.key, self.counted);
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
        let cells = || {
            watches
                .shards
                .iter()
                .map(|shard| lock(shard).len())
                .sum::<usize>()
        };
        assert_eq!((cells(), watches.watchers()), (1, 1));
        let own = watches.watch(WatchKey::Jobs).standing();
        assert_eq!((cells(), watches.watchers()), (2, 1));
        drop((own, second));
        assert_eq!((cells(), watches.watchers()), (0, 0));
        assert!(lock(&watches.prefix_lengths).is_empty());
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
