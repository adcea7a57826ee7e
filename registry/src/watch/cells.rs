//! One cell per watched key: a version, and those who wait for it to move.
//!
//! The order that makes this safe: a reader first enters the cell and notes its version, then loads the
//! view; a writer first publishes the view, then moves the version. A reader that saw the old view
//! therefore sees the version move. `tests/loom.rs` tries every interleaving of it.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    task::{Context, Poll, Waker},
};

use slab::Slab;

use super::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

/// A panic while one of these was locked cannot leave it half changed: each critical section is one
/// operation on a map, or two assignments.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Cell(Mutex<Moves>);

#[derive(Default)]
struct Moves {
    version: u64,
    /// One place for everybody who has waited, with a waker while they do.
    waiting: Slab<Option<Waker>>,
}

impl Cell {
    /// Foreign code runs in a waker, and in its drop: never while the cell is locked.
    fn wake(&self) {
        let woken: Vec<Waker> = {
            let mut moves = lock(&self.0);
            moves.version += 1;
            let places = moves.waiting.iter_mut();
            places.filter_map(|(_, place)| place.take()).collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A cell, and how many are interested in it.
struct Entered {
    cell: Arc<Cell>,
    interests: usize,
}

/// The cells of all keys that somebody is interested in.
pub(super) struct Cells<K, S = RandomState> {
    shards: [Mutex<HashMap<K, Entered, S>>; SHARDS],
    hasher: S,
}

/// One interest in a key: what was seen of it. To be given back with [`Cells::leave`].
pub(super) struct Interest {
    cell: Arc<Cell>,
    seen: u64,
    place: Option<usize>,
}

impl<K: Clone + Eq + Hash, S: BuildHasher + Clone> Cells<K, S> {
    pub(super) fn with_hasher(hasher: S) -> Cells<K, S> {
        Cells {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))),
            hasher,
        }
    }

    /// What is [woken](Cells::wake) from now on is seen by [`Interest::poll_changed`].
    pub(super) fn enter(&self, key: &K) -> Interest {
        let cell = {
            let mut shard = lock(self.shard(key));
            let entered = shard.entry(key.clone()).or_insert_with(|| Entered {
                cell: Arc::new(Cell(Mutex::new(Moves::default()))),
                interests: 0,
            });
            entered.interests += 1;
            entered.cell.clone()
        };
        let seen = lock(&cell.0).version;
        Interest {
            cell,
            seen,
            place: None,
        }
    }

    /// Ends an interest. The cell goes with the last one.
    pub(super) fn leave(&self, key: &K, interest: &mut Interest) {
        let waker = interest.place.take().map(|place| {
            let mut moves = lock(&interest.cell.0);
            moves.waiting.remove(place)
        });
        drop(waker);
        let mut shard = lock(self.shard(key));
        if let Some(entered) = shard.get_mut(key) {
            entered.interests -= 1;
            if entered.interests == 0 {
                shard.remove(key);
            }
        }
    }

    /// Wakes those who are interested in the key, after the view with its change is published. False: nobody is.
    pub(super) fn wake(&self, key: &K) -> bool {
        let shard = lock(self.shard(key));
        let cell = shard.get(key).map(|entered| entered.cell.clone());
        drop(shard);
        if let Some(cell) = &cell {
            cell.wake();
        }
        cell.is_some()
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        for shard in &self.shards {
            let cells: Vec<Arc<Cell>> = lock(shard)
                .values()
                .map(|entered| entered.cell.clone())
                .collect();
            cells.iter().for_each(|cell| cell.wake());
        }
    }

    /// Whether anybody is interested in the key.
    pub(super) fn contains(&self, key: &K) -> bool {
        lock(self.shard(key)).contains_key(key)
    }

    fn shard(&self, key: &K) -> &Mutex<HashMap<K, Entered, S>> {
        // The low bits say where in the shard's map: others have to say which shard.
        let hash = self.hasher.hash_one(key).rotate_right(32);
        &self.shards[hash as usize % SHARDS]
    }
}

#[cfg(test)]
impl<K, S> Cells<K, S> {
    pub(super) fn count(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| lock(shard).len()).sum()
    }
}

impl<K, S> fmt::Debug for Cells<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells").finish_non_exhaustive()
    }
}

impl Interest {
    /// Whether the key was woken since the interest began, or since this was last ready; several times are one.
    /// If not, the task of `context` is woken by the next time, in the place of who asked before.
    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut moves = lock(&self.cell.0);
        if moves.version != self.seen {
            self.seen = moves.version;
            return Poll::Ready(());
        }
        let waker = context.waker();
        let place = *self.place.get_or_insert_with(|| moves.waiting.insert(None));
        let before = match &mut moves.waiting[place] {
            Some(before) if before.will_wake(waker) => None,
            slot => slot.replace(waker.clone()),
        };
        // Its drop may be anything, so not while the cell is locked.
        drop(moves);
        drop(before);
        Poll::Pending
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interest")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
