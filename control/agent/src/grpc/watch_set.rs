//! Waiting for any of several keys.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use wharf_registry::{
    Registry,
    watch::{WatchKey, Watcher},
};

/// The keys that one answer depends on, watched.
#[derive(Debug, Default)]
pub(crate) struct WatchSet(BTreeMap<WatchKey, Watcher>);

impl WatchSet {
    /// Watches exactly `keys` from now on. Whether that are more than before: then a view loaded
    /// earlier may have missed a change of a new one.
    pub(crate) fn set(&mut self, registry: &Registry, keys: &BTreeSet<WatchKey>) -> bool {
        self.0.retain(|key, _| keys.contains(key));
        let grows = self.0.len() < keys.len();
        for key in keys {
            if !self.0.contains_key(key) {
                self.0.insert(key.clone(), registry.watch(key.clone()));
            }
        }
        grows
    }

    /// Completes when a key changed, and takes its change. Cancel safe.
    pub(crate) async fn changed(&mut self) -> WatchKey {
        let mut changes: FuturesUnordered<_> = self
            .0
            .values_mut()
            .map(|watcher| async {
                watcher.changed().await;
                watcher.key().clone()
            })
            .collect();
        match changes.next().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }

    /// The keys that changed and were not taken yet, without waiting.
    pub(crate) fn take(&mut self) -> BTreeSet<WatchKey> {
        let changed = self.0.values_mut().filter_map(|watcher| {
            watcher
                .changed()
                .now_or_never()
                .map(|()| watcher.key().clone())
        });
        changed.collect()
    }
}
