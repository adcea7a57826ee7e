//! What readers see: the state as it was after a batch of entries, frozen.
//!
//! A view is one pointer away, never locked and never changed; a reader holds it for as long as its
//! answer takes. Every read that can block comes with the index of its answer and the
//! [`WatchKey`] that announces the next one.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    model::{
        AutopilotConfig, ConfigEntry, ConfigEntryKind, HealthCheck, KvEntry, Str, fold_name,
        platform::{Alloc, Job, PlatformNode},
    },
    snapshot::{SnapshotError, SnapshotMeta, SnapshotWriter},
    state::{
        Indexes, Instance, JobEntry, LeftMember, NodeEntry, PlatformIndexes, PlatformRecord,
        Record, Restoring, ServiceEntry, State, kv::prefix_range,
    },
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

    /// The place in the log of the last entry that this view has seen.
    pub fn log_index(&self) -> u64 {
        self.state.log_index()
    }

    /// When the whole state was last replaced by that of a snapshot, 0: never. Whatever was read before is
    /// older, also where its own index says less.
    pub fn restored(&self) -> u64 {
        self.state.indexes.restored
    }

    /// The restore that is under way.
    pub fn restoring(&self) -> Option<&Restoring> {
        self.state.restoring.as_ref()
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

    /// The node with this id.
    pub fn node_with_id(&self, id: &str) -> Option<&Arc<NodeEntry>> {
        self.state.nodes.get(self.state.node_ids.get(id)?)
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

    /// Whether the configuration entries are those of another view, as far as is seen at once.
    pub(crate) fn has_same_config(&self, other: &View) -> bool {
        self.state.config.ptr_eq(&other.state.config)
    }

    pub(crate) fn config_table(&self) -> &OrdMap<(ConfigEntryKind, Str), Arc<ConfigEntry>> {
        &self.state.config
    }

    // === servers ===

    /// Who was a member of the cluster and left, as far as it is remembered, by name.
    pub fn left_members(&self) -> impl ExactSizeIterator<Item = &Arc<LeftMember>> {
        self.state.left.values()
    }

    pub fn left_member(&self, name: &str) -> Option<&Arc<LeftMember>> {
        self.state.left.get(&fold_name(name))
    }

    /// The settings of the autopilot; the defaults where nobody has set any.
    pub fn autopilot(&self) -> Arc<AutopilotConfig> {
        self.state.autopilot.clone().unwrap_or_default()
    }

    /// Whether somebody has.
    pub fn has_autopilot(&self) -> bool {
        self.state.autopilot.is_some()
    }

    // === platform ===

    /// When the answers to whole-table questions about the platform last changed.
    pub fn platform_indexes(&self) -> &PlatformIndexes {
        &self.state.platform.indexes
    }

    /// All jobs by name, those that were purged left out.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        let entries = self.state.platform.jobs.values();
        entries.filter_map(|entry| entry.job.as_ref())
    }

    /// The names of all jobs, purged ones with allocations left included.
    pub fn job_names(&self) -> impl ExactSizeIterator<Item = &Str> {
        self.state.platform.jobs.keys()
    }

    pub fn job(&self, name: &str) -> Option<&Arc<Job>> {
        self.job_entry(name)?.job.as_ref()
    }

    /// A job with its kept versions; also of a purged job that has allocations left.
    pub fn job_entry(&self, name: &str) -> Option<&Arc<JobEntry>> {
        self.state.platform.jobs.get(name)
    }

    /// The specification that an allocation was made from.
    pub fn job_version(&self, name: &str, version: u64) -> Option<&Arc<Job>> {
        self.job_entry(name)?.versions.get(&version)
    }

    /// When the job or its kept versions last changed. For a job that does not exist: when the last
    /// trace of one was removed.
    pub fn job_index(&self, name: &str) -> u64 {
        match self.job_entry(name) {
            Some(entry) => entry.index,
            None => self.state.platform.indexes.job_extinction,
        }
    }

    /// All allocations by id.
    pub fn allocs(&self) -> impl ExactSizeIterator<Item = &Arc<Alloc>> {
        self.state.platform.allocs.values()
    }

    pub fn alloc(&self, id: &str) -> Option<&Arc<Alloc>> {
        self.state.platform.allocs.get(id)
    }

    /// The allocations whose id starts with `prefix`.
    pub fn allocs_with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Alloc>> {
        prefix_range(&self.state.platform.allocs, prefix).map(|(_, alloc)| alloc)
    }

    /// The allocations, by id, that are not what they were in an earlier view. As for
    /// [`View::kv_changes`], the cost is that of the changes.
    pub fn changed_allocs<'a>(
        &'a self,
        earlier: &'a View,
    ) -> impl Iterator<Item = (&'a Str, Change<'a, Arc<Alloc>>)> {
        changes(&earlier.state.platform.allocs, &self.state.platform.allocs)
    }

    /// The same for the nodes of the platform.
    pub fn changed_platform_nodes<'a>(
        &'a self,
        earlier: &'a View,
    ) -> impl Iterator<Item = (&'a Str, Change<'a, Arc<PlatformNode>>)> {
        let all = changes(&earlier.state.platform.nodes, &self.state.platform.nodes);
        all.map(|(id, change)| (id, change.map(|entry| &entry.node)))
            // An allocation that came or went changes the entry, not the node.
            .filter(|(_, change)| change.old.map(Arc::as_ptr) != change.new.map(Arc::as_ptr))
    }

    /// The names of the jobs whose specification or versions are not what they were.
    pub fn changed_jobs<'a>(&'a self, earlier: &'a View) -> impl Iterator<Item = &'a Str> {
        let all = changes(&earlier.state.platform.jobs, &self.state.platform.jobs);
        all.filter(|(_, change)| {
            change.old.map(|entry| entry.index) != change.new.map(|entry| entry.index)
        })
        .map(|(name, _)| name)
    }

    /// When the allocation last changed. For one that does not exist: when one was last forgotten.
    pub fn alloc_index(&self, id: &str) -> u64 {
        match self.alloc(id) {
            Some(alloc) => alloc.modify_index,
            None => self.state.platform.indexes.alloc_extinction,
        }
    }

    /// The allocations of a job by id, ended ones included.
    pub fn job_allocs(&self, name: &str) -> impl Iterator<Item = &Arc<Alloc>> {
        let platform = &self.state.platform;
        platform.allocs_of(platform.jobs.get(name).map(|entry| &entry.allocs))
    }

    /// When an allocation of the job last changed.
    pub fn job_allocs_index(&self, name: &str) -> u64 {
        match self.job_entry(name) {
            Some(entry) => entry.allocs_index,
            None => self.state.platform.indexes.job_extinction,
        }
    }

    /// The allocations on a node by id, ended ones included.
    pub fn node_allocs(&self, node_id: &str) -> impl Iterator<Item = &Arc<Alloc>> {
        let platform = &self.state.platform;
        platform.allocs_of(platform.nodes.get(node_id).map(|entry| &entry.allocs))
    }

    /// When an allocation on the node last changed.
    pub fn node_allocs_index(&self, node_id: &str) -> u64 {
        match self.state.platform.nodes.get(node_id) {
            Some(entry) => entry.allocs_index,
            None => self.state.platform.indexes.node_extinction,
        }
    }

    /// The nodes of the platform by id.
    pub fn platform_nodes(&self) -> impl ExactSizeIterator<Item = &Arc<PlatformNode>> {
        self.state.platform.nodes.values().map(|entry| &entry.node)
    }

    pub fn platform_node(&self, id: &str) -> Option<&Arc<PlatformNode>> {
        self.state.platform.nodes.get(id).map(|entry| &entry.node)
    }

    /// When the node last changed. For one that does not exist: when one was last removed.
    pub fn platform_node_index(&self, id: &str) -> u64 {
        match self.platform_node(id) {
            Some(node) => node.modify_index,
            None => self.state.platform.indexes.node_extinction,
        }
    }

    /// Whether nothing happened to a node of the platform since another view, as far as is seen at once.
    pub(crate) fn has_same_platform_node(&self, other: &View, id: &str) -> bool {
        let (own, other) = (&self.state.platform, &other.state.platform);
        if own.indexes.jobs != other.indexes.jobs {
            return false;
        }
        match (own.nodes.get(id), other.nodes.get(id)) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// A node of the platform with its allocations, and of the jobs what these were made from: records, in the
    /// order of a snapshot.
    pub(crate) fn platform_node_records(&self, id: &str) -> Vec<PlatformRecord> {
        self.state.platform.node_records(id)
    }

    // === snapshot ===

    /// The hash of the whole state, and of nothing else: servers that have applied the same log have the same. Takes as
    /// long as writing a snapshot; blocks.
    pub fn hash(&self) -> Result<[u8; 32], SnapshotError> {
        let mut writer = SnapshotWriter::new(std::io::sink(), &SnapshotMeta::default())?;
        for record in self.records() {
            writer.push(&record)?;
        }
        Ok(writer.finish()?.1.hash)
    }

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

/// What a row was, and what it is; `None` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a, T> {
    pub old: Option<&'a T>,
    pub new: Option<&'a T>,
}

impl<'a, T> Change<'a, T> {
    fn map<U>(self, mut part: impl FnMut(&'a T) -> &'a U) -> Change<'a, U> {
        Change {
            old: self.old.map(&mut part),
            new: self.new.map(&mut part),
        }
    }
}

/// The rows that differ between two states of a table, in the order of their keys.
fn changes<'a, T: PartialEq + Clone>(
    earlier: &'a OrdMap<Str, Arc<T>>,
    later: &'a OrdMap<Str, Arc<T>>,
) -> impl Iterator<Item = (&'a Str, Change<'a, Arc<T>>)> {
    earlier.diff(later).map(|item| {
        let (key, old, new) = match item {
            DiffItem::Add(key, new) => (key, None, Some(new)),
            DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(key, old) => (key, Some(old), None),
        };
        (key, Change { old, new })
    })
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
