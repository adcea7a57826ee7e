//! Waiting for a change of one local instance, or of its health.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use wharf_registry::model::Str;

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LocalKey {
    /// The definition of the instance with this id.
    Service(Str),
    /// The checks of the instance with this id; an empty id: the checks of the node itself.
    Health(Str),
}

/// One cell per watched key; a key that nobody watches costs nothing.
#[derive(Debug, Default)]
pub(super) struct LocalWatches(Mutex<HashMap<LocalKey, watch::Sender<()>>>);

impl LocalWatches {
    fn lock(&self) -> MutexGuard<'_, HashMap<LocalKey, watch::Sender<()>>> {
        // Each critical section is one map operation: a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self, key: &LocalKey) -> watch::Receiver<()> {
        self.lock()
            .entry(key.clone())
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe()
    }

    pub(super) fn wake(&self, key: &LocalKey) {
        if let Some(cell) = self.lock().get(key) {
            cell.send_replace(());
        }
    }

    /// Called by a watcher of the key before it goes: the last one frees the cell.
    pub(super) fn release(&self, key: &LocalKey) {
        let mut cells = self.lock();
        if cells
            .get(key)
            .is_some_and(|cell| cell.receiver_count() <= 1)
        {
            cells.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}
