//! Waiting for a change of one local instance, or of its health.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;
use wharf_registry::model::Str;

use super::LocalState;

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

/// An interest in one instance or its health.
#[derive(Debug)]
pub struct LocalWatch {
    local: LocalState,
    key: LocalKey,
    cell: watch::Receiver<()>,
}

impl LocalWatch {
    /// Completes when there was a change since the watch began, or since the last completion. Cancel safe.
    pub async fn changed(&mut self) {
        if self.cell.changed().await.is_err() {
            // The cell lives as long as its watchers; should it not, there is nothing to wait for.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.local.shared.watches.release(&self.key);
    }
}

impl LocalState {
    /// Starts to watch an instance or its health. To miss nothing, watch first and read after.
    pub fn watch(&self, key: LocalKey) -> LocalWatch {
        let cell = self.shared.watches.subscribe(&key);
        LocalWatch {
            local: self.clone(),
            key,
            cell,
        }
    }
}

/// A hash of what an answer says, for `?hash=` blocking. The same within one run of the agent.
pub fn content_hash(content: &impl Serialize) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(&serde_json::to_vec(content).unwrap_or_default());
    format!("{:016x}", hasher.finish())
}
