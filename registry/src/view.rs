//! What readers see: the state as it was after a batch of entries, frozen.
//!
//! A view is one pointer away, never locked and never changed; a reader holds it for as long as its
//! answer takes. Every read that can block comes with the index of its answer and the
//! [`WatchKey`] that announces the next one.

use std::{net::IpAddr, sync::Arc};

use imbl::ordmap::DiffItem;

use crate::{
    model::{ConfigEntry, ConfigEntryKind, HealthCheck, KvEntry, Str, fold_name},
    state::{Indexes, Instance, NodeEntry, Record, ServiceEntry, State, kv::prefix_range},
    watch::WatchKey,
};

/// The whole state at one index.
#[derive(Clone, Debug, Default)]
pub struct View {
    state: State,
}

impl View {
    pub(crate) fn new(state: State) -> View {
        View { state }
    }

    /// The last log entry that this view has seen.
    pub fn applied(&self) -> u64 {
        self.state.indexes.applied
    }

    /// When the answers to whole-table questions last changed.
    pub fn indexes(&self) -> &Indexes {
        &self.state.indexes
    }

    // === catalog ===

    /// All nodes by folded name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<NodeEntry>> {
        self.state.nodes.values()
    }

    pub fn node(&self, name: &str) -> Option<&Arc<NodeEntry>> {
        self.state.nodes.get(&fold_name(name))
    }

    /// When the node, or anything on it, last changed. For a node that does not exist: when a node
    /// was last removed.
    pub fn node_index(&self, name: &str) -> u64 {
        match self.node(name) {
            Some(entry) => entry.index,
            None => self.state.indexes.node_extinction,
        }
    }

    /// All services that have an instance, by folded name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceEntry>> {
        self.state.services.values()
    }

    pub fn service(&self, name: &str) -> Option<&Arc<ServiceEntry>> {
        self.state.services.get(&fold_name(name))
    }

    /// When any instance of the service, its node or its checks last changed. For a service without
    /// instances: when a service last lost its last one.
    pub fn service_index(&self, name: &str) -> u64 {
        match self.service(name) {
            Some(entry) => entry.index,
            None => self.state.indexes.service_extinction,
        }
    }

    /// The nodes with this address, by folded name.
    pub fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<NodeEntry>> {
        let names = self.state.addresses.nodes_at(address);
        names.filter_map(|name| self.state.nodes.get(name))
    }

    /// The instances that have this address themselves, with their services, in the order of
    /// [`View::services`]. One that has only its node's is not among them.
    pub fn instances_at(
        &self,
        address: IpAddr,
    ) -> impl Iterator<Item = (&Arc<ServiceEntry>, &Arc<Instance>)> {
        let keys = self.state.addresses.instances_at(address);
        keys.filter_map(|(service, key)| {
            let entry = self.state.services.get(service)?;
            Some((entry, entry.instances.get(key)?))
        })
    }

    /// Every check of every node.
    pub fn checks(&self) -> impl Iterator<Item = &Arc<HealthCheck>> {
        self.state
            .nodes
            .values()
            .flat_map(|node| node.checks.values())
    }

    // === key-value ===

    pub fn kv(&self, key: &str) -> Option<&Arc<KvEntry>> {
        self.state.kv.get(key)
    }

    /// The entries whose key starts with `prefix`, in key order.
    pub fn kv_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KvEntry>> {
        prefix_range(&self.state.kv, prefix).map(|(_, entry)| entry)
    }

    /// When the key was last changed or deleted; at least 1.
    pub fn kv_index(&self, key: &str) -> u64 {
        self.state.kv_key_index(key)
    }

    /// When anything below the prefix was last changed or deleted; at least 1.
    pub fn kv_prefix_index(&self, prefix: &str) -> u64 {
        self.state.kv_prefix_index(prefix)
    }

    /// How the entries below the prefix differ from those of an earlier view, in key order. What the
    /// two views share is not looked at: the cost is that of what changed in between.
    pub fn kv_changes<'a>(
        &'a self,
        earlier: &'a View,
        prefix: &'a str,
    ) -> impl Iterator<Item = KvChange<'a>> {
        let all = earlier.state.kv.diff(&self.state.kv);
        let changes = all.map(|item| match item {
            DiffItem::Add(_, entry) => KvChange::Upserted(entry),
            DiffItem::Update { new, .. } => KvChange::Upserted(new.1),
            DiffItem::Remove(key, _) => KvChange::Removed(key),
        });
        changes.filter(move |change| change.key().starts_with(prefix))
    }

    /// The keys below the prefix that were deleted after `index` and are still away. `None` when
    /// that is no longer known: tombstones were reaped, or a whole tree was deleted at once.
    pub fn kv_removed_since(&self, prefix: &str, index: u64) -> Option<Vec<Str>> {
        self.state.kv_removed_since(prefix, index)
    }

    /// Whether a deletion up to this index is still remembered. Looks at all of them.
    pub fn has_tombstones(&self, up_to: u64) -> bool {
        self.state
            .tombstones
            .values()
            .any(|stone| stone.index <= up_to)
    }

    /// How many keys there are.
    pub fn kv_len(&self) -> usize {
        self.state.kv.len()
    }

    // === configuration entries ===

    pub fn config_entry(&self, kind: ConfigEntryKind, name: &str) -> Option<&Arc<ConfigEntry>> {
        self.state.config.get(&(kind, Str::from(name)))
    }

    /// All entries, by kind and name.
    pub fn config_entries(&self) -> impl Iterator<Item = &Arc<ConfigEntry>> {
        self.state.config.values()
    }

    // === snapshot ===

    /// The whole state as records, in the order of a snapshot.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.state.records()
    }
}

/// A difference between two views of the key-value tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvChange<'a> {
    Upserted(&'a Arc<KvEntry>),
    Removed(&'a Str),
}

impl<'a> KvChange<'a> {
    pub fn key(&self) -> &'a Str {
        match self {
            KvChange::Upserted(entry) => &entry.key,
            KvChange::Removed(key) => key,
        }
    }
}

impl WatchKey {
    /// The key under which changes of the named node are announced.
    pub fn node(name: &str) -> WatchKey {
        WatchKey::Node(fold_name(name))
    }

    /// The key under which changes of the named service are announced.
    pub fn service(name: &str) -> WatchKey {
        WatchKey::Service(fold_name(name))
    }
}
