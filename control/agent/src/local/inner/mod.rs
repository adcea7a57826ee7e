//! The tables behind [`super::LocalState`] and what a change of them entails. No IO, no clock, no
//! waiting: `now` is passed in, and what is to be written elsewhere is noted in sets.

mod checks;
mod reports;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;
use wharf_registry::model::{CheckStatus, HealthCheck, NodeService, Str};

use super::{
    Options,
    spec::{CheckSpec, Source},
    store::FileKey,
    watch::LocalWatches,
};
use crate::authz::Token;

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) services: BTreeMap<Str, ServiceEntry>,
    pub(super) checks: BTreeMap<Str, CheckEntry>,
    /// What the catalog has not been told.
    pub(super) dirty: Dirty,
    /// Moves with every addition to `dirty`.
    pub(super) revision: u64,
    /// Checks of which only the output changed, and when the catalog is told.
    pub(super) deferred: BTreeMap<Str, Instant>,
    /// Files that are behind.
    pub(super) unsaved: BTreeSet<FileKey>,
    /// Checks that came, went or changed since their runners were last looked at.
    pub(super) restarted: BTreeSet<Str>,
    /// Reports from before the agent was restarted, until the checks they belong to are registered.
    pub(super) earlier_reports: BTreeMap<Str, EarlierReport>,
    /// Checks from before the agent was restarted of instances that files define: they wait for those.
    pub(super) orphans: Vec<CheckSpec>,
    last_generation: u64,
}

/// What a TTL check was told before the agent was restarted.
#[derive(Debug)]
pub(super) struct EarlierReport {
    pub(super) status: CheckStatus,
    pub(super) output: Str,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) service: Arc<NodeService>,
    pub(super) token: Option<Token>,
    pub(super) source: Source,
    /// The tags as registered; with `EnableTagOverride` the catalog's may have replaced them.
    pub(super) registered_tags: Arc<[Str]>,
    /// The instance this one was registered as a sidecar of.
    pub(super) sidecar_of: Option<Str>,
    pub(super) sidecar: Option<Str>,
    pub(super) checks: BTreeSet<Str>,
}

#[derive(Debug)]
pub(super) struct CheckEntry {
    pub(super) spec: Arc<CheckSpec>,
    /// Another one for each spec: a result of an earlier one is not taken.
    pub(super) generation: u64,
    pub(super) health: Arc<HealthCheck>,
    pub(super) critical_since: Option<Instant>,
    pub(super) ttl_deadline: Option<Instant>,
}

/// Rows that may differ between here and the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    pub(crate) node: bool,
    pub(crate) services: BTreeSet<Str>,
    pub(crate) checks: BTreeSet<Str>,
    /// Instances of which the registrant changed the tags: those go to the catalog even under
    /// `EnableTagOverride`.
    pub(crate) retagged: BTreeSet<Str>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        !self.node && self.services.is_empty() && self.checks.is_empty()
    }

    pub(crate) fn merge(&mut self, other: Dirty) {
        self.node |= other.node;
        self.services.extend(other.services);
        self.checks.extend(other.checks);
        self.retagged.extend(other.retagged);
    }
}

/// What surrounds a change.
pub(super) struct Context<'a> {
    pub(super) node: Str,
    pub(super) options: &'a Options,
    pub(super) watches: &'a LocalWatches,
    pub(super) now: Instant,
}

/// What holds when a check is registered again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// What the check said before holds.
    Kept,
    /// A status in the registration wins over what the check said before.
    Stated,
    /// What it said before a restart is not known to hold: critical, so as to send nobody to an instance that
    /// may be gone.
    Unknown,
}

impl Inner {
    /// The next time an output is due at the catalog.
    pub(super) fn next_deferred(&self) -> Option<Instant> {
        self.deferred.values().min().copied()
    }

    /// What the catalog is to be told now.
    pub(super) fn take_dirty(&mut self, now: Instant) -> Dirty {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.deferred.retain(|id, at| {
            let waits = *at > now;
            if !waits {
                dirty.checks.insert(id.clone());
            }
            waits
        });
        dirty
    }
}
