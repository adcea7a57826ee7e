//! One at a time for each key.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Mutexes by key, which exist while somebody uses them.
#[derive(Debug)]
pub(super) struct Keyed<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for Keyed<K> {
    fn default() -> Self {
        Keyed(Mutex::default())
    }
}

impl<K: Hash + Eq + Copy> Keyed<K> {
    /// Runs `work` while nobody else runs any for `key`.
    pub(super) fn alone<T>(&self, key: K, work: impl FnOnce() -> T) -> T {
        let own = {
            let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            map.entry(key).or_default().clone()
        };
        // A panic of another holder has left nothing half: what is guarded is on disk.
        let guard = own.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        drop(guard);
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and this one: nobody waits.
        if Arc::strong_count(&own) == 2 {
            map.remove(&key);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn no_two_work_on_one_key_and_nothing_stays() {
        let keyed = Keyed::default();
        let (inside, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        keyed.alone(7, || {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            total.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::SeqCst), 800);
        assert!(keyed.0.lock().unwrap().is_empty());
    }
}
