//! What each node has, and what is taken of it.

use std::{collections::BTreeMap, sync::Arc};

use wharf_registry::model::{
    Str,
    platform::{Alloc, PlatformNode, Resources},
};

/// What the nodes have left. Changed one node and one allocation at a time: keeping it up to date costs
/// what changed, not what there is.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    nodes: BTreeMap<Str, Candidate>,
    /// The node that each live allocation is counted on.
    holders: BTreeMap<Str, Str>,
}

/// A node with what is taken of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// `None`: there are allocations on it, and it is not known (yet).
    node: Option<Arc<PlatformNode>>,
    used: Resources,
    /// By port of the node: the allocation that has it.
    ports: BTreeMap<u16, Str>,
    allocs: BTreeMap<Str, Arc<Alloc>>,
    /// How many allocations of a job's group are here.
    of_group: BTreeMap<(Str, Str), u32>,
}

impl ClusterView {
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Arc<PlatformNode>>,
        allocs: impl IntoIterator<Item = &'a Arc<Alloc>>,
    ) -> ClusterView {
        let mut view = ClusterView::default();
        for node in nodes {
            view.set_node(node.clone());
        }
        for alloc in allocs {
            view.set_alloc(alloc);
        }
        view
    }

    /// Adds a node, or puts it in place of what it was.
    pub fn set_node(&mut self, node: Arc<PlatformNode>) {
        let candidate = self.nodes.entry(node.id.clone()).or_default();
        candidate.node = Some(node);
    }

    pub fn remove_node(&mut self, id: &str) {
        if let Some(candidate) = self.nodes.get_mut(id) {
            candidate.node = None;
            if candidate.allocs.is_empty() {
                self.nodes.remove(id);
            }
        }
    }

    /// Counts an allocation as it is now: while it is live it holds what it reserves, also when it is told
    /// to stop.
    pub fn set_alloc(&mut self, alloc: &Arc<Alloc>) {
        self.remove_alloc(&alloc.id);
        if alloc.is_live() {
            self.holders.insert(alloc.id.clone(), alloc.node_id.clone());
            let candidate = self.nodes.entry(alloc.node_id.clone()).or_default();
            candidate.add(alloc);
        }
    }

    pub fn remove_alloc(&mut self, id: &str) {
        let Some(node) = self.holders.remove(id) else {
            return;
        };
        if let Some(candidate) = self.nodes.get_mut(&node) {
            candidate.remove(id);
            if candidate.node.is_none() && candidate.allocs.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    /// The known nodes by id.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.nodes
            .values()
            .filter(|candidate| candidate.node.is_some())
    }

    pub fn node(&self, id: &str) -> Option<&Arc<PlatformNode>> {
        self.nodes.get(id)?.node.as_ref()
    }
}

impl Default for Candidate {
    fn default() -> Self {
        Candidate {
            node: None,
            used: Resources::NONE,
            ports: BTreeMap::new(),
            allocs: BTreeMap::new(),
            of_group: BTreeMap::new(),
        }
    }
}

impl Candidate {
    pub fn node(&self) -> Option<&Arc<PlatformNode>> {
        self.node.as_ref()
    }

    /// What allocations may use on it, all together.
    pub fn total(&self) -> Resources {
        self.node
            .as_ref()
            .map_or(Resources::NONE, |node| node.resources)
    }

    pub fn used(&self) -> Resources {
        self.used
    }

    pub fn free_cpu(&self) -> u64 {
        self.total().cpu.saturating_sub(self.used.cpu)
    }

    pub fn free_memory_mb(&self) -> u64 {
        self.total().memory_mb.saturating_sub(self.used.memory_mb)
    }

    /// Whether an allocation, or the node itself, has the port.
    pub fn is_port_taken(&self, port: u16) -> bool {
        let reserved = self
            .node
            .as_ref()
            .is_some_and(|node| node.reserved_ports.contains(&port));
        reserved || self.ports.contains_key(&port)
    }

    /// How many live allocations of the group are here.
    pub fn count_of(&self, job: &Str, group: &Str) -> u32 {
        let key = (job.clone(), group.clone());
        self.of_group.get(&key).copied().unwrap_or(0)
    }

    fn add(&mut self, alloc: &Arc<Alloc>) {
        self.used.cpu += alloc.resources.cpu;
        self.used.memory_mb += alloc.resources.memory_mb;
        for port in &alloc.ports {
            self.ports.insert(port.value, alloc.id.clone());
        }
        *self.of_group.entry(group_of(alloc)).or_default() += 1;
        self.allocs.insert(alloc.id.clone(), alloc.clone());
    }

    fn remove(&mut self, id: &str) {
        let Some(alloc) = self.allocs.remove(id) else {
            return;
        };
        self.used.cpu -= alloc.resources.cpu;
        self.used.memory_mb -= alloc.resources.memory_mb;
        for port in &alloc.ports {
            if self.ports.get(&port.value) == Some(&alloc.id) {
                self.ports.remove(&port.value);
            }
        }
        let key = group_of(&alloc);
        if let Some(count) = self.of_group.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.of_group.remove(&key);
            }
        }
    }
}

fn group_of(alloc: &Alloc) -> (Str, Str) {
    (alloc.job_name.clone(), alloc.group.clone())
}
