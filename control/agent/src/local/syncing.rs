//! What [`crate::anti_entropy`] writes to the catalog, and how far it has come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wharf_registry::model::{HealthCheck, NodeService, Str};

use super::{Dirty, LocalState};

impl LocalState {
    /// Completes when anti-entropy has tried to write to the catalog what was changed before this call, or
    /// after `at_most`. Says which of the two; whether the attempt succeeded is not told: it is repeated
    /// until it does.
    pub async fn synced(&self, at_most: Duration) -> bool {
        let wanted = self.lock().revision;
        let mut synced = self.shared.synced.subscribe();
        let attempt = synced.wait_for(|&done| done >= wanted);
        tokio::time::timeout(at_most, attempt).await.is_ok()
    }

    /// Completes when there is something to tell the catalog, now or later. May complete without.
    pub(crate) async fn dirtied(&self) {
        self.shared.dirty.notified().await;
    }

    /// When the next deferred output is due.
    pub(crate) fn next_deferred(&self) -> Option<Instant> {
        self.lock().next_deferred()
    }

    /// What the catalog is to be told now, and the revision that this reaches.
    pub(crate) fn take_dirty(&self) -> (Dirty, u64) {
        let mut inner = self.lock();
        let dirty = inner.take_dirty(Instant::now());
        (dirty, inner.revision)
    }

    /// Everything up to this revision was tried.
    pub(crate) fn mark_synced(&self, revision: u64) {
        self.shared.synced.send_if_modified(|synced| {
            let moved = *synced < revision;
            *synced = revision.max(*synced);
            moved
        });
    }

    /// The rows that anti-entropy compares with the catalog: all, or those that `only` names, with the
    /// instances that its checks belong to.
    pub(crate) fn rows(&self, only: Option<&Dirty>) -> Rows {
        let inner = self.lock();
        let mut rows = Rows::default();
        let Some(only) = only else {
            let services = inner.services.iter();
            rows.services = services
                .map(|(id, entry)| (id.clone(), entry.service.clone()))
                .collect();
            let checks = inner.checks.iter();
            rows.checks = checks
                .map(|(id, entry)| (id.clone(), entry.health.clone()))
                .collect();
            rows.deferred = inner.deferred.keys().cloned().collect();
            return rows;
        };
        let mut services: BTreeSet<&Str> = only.services.iter().collect();
        for id in &only.checks {
            if let Some(entry) = inner.checks.get(id) {
                services.insert(&entry.spec.service_id);
                rows.checks.insert(id.clone(), entry.health.clone());
                if inner.deferred.contains_key(id) {
                    rows.deferred.insert(id.clone());
                }
            }
        }
        for id in services {
            if let Some(entry) = inner.services.get(id) {
                rows.services.insert(id.clone(), entry.service.clone());
            }
        }
        rows
    }

    /// The catalog's tags take the place of ours, if those are still the ones that were compared.
    pub(crate) fn adopt_tags(&self, id: &Str, ours: &Arc<[Str]>, theirs: &Arc<[Str]>) {
        self.change(|inner, context| inner.adopt_tags(id, ours, theirs, context.watches));
    }
}

/// Rows as anti-entropy compares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) services: BTreeMap<Str, Arc<NodeService>>,
    pub(crate) checks: BTreeMap<Str, Arc<HealthCheck>>,
    /// Checks of which the catalog may show an older output for now.
    pub(crate) deferred: BTreeSet<Str>,
}
