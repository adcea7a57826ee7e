//! The catalog: nodes, the instances of services on them, and their checks.
//!
//! A node owns its instances and checks. Beside that, every service keeps the list of its instances
//! joined with their node and checks ([`Instance`]): what a health query, DNS and a proxy ask for is
//! built once per change, not once per question. The cost of a change is that of the rows it
//! touches, never of the table.

mod change;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use crate::model::{CheckStatus, HealthCheck, Node, NodeService, Str};

/// A node with what is on it.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    pub node: Arc<Node>,
    /// By service id.
    pub services: OrdMap<Str, Arc<NodeService>>,
    /// By check id.
    pub checks: OrdMap<Str, Arc<HealthCheck>>,
    /// Service id, empty for the node's own checks, and check id: an instance among thousands finds
    /// its checks without looking at all of them.
    checks_by_service: OrdSet<(Str, Str)>,
    /// When the node or anything on it last changed.
    pub index: u64,
}

/// Folded node name and service id: the order of a service's instances.
pub type InstanceKey = (Str, Str);

/// A service: all its instances.
#[derive(Clone, Debug, Default)]
pub struct ServiceEntry {
    /// As the first of its instances spells it: the same on every server, and after a restore.
    pub name: Str,
    pub instances: OrdMap<InstanceKey, Arc<Instance>>,
    /// When any instance, its node or its checks last changed.
    pub index: u64,
    /// Answers that were already computed from exactly these instances.
    pub answers: Answers,
}

/// What readers computed from a [`ServiceEntry`], kept as long as it does not change.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    tags: OnceLock<Arc<[Str]>>,
    health: OnceLock<Bytes>,
    health_passing: OnceLock<Bytes>,
}

/// One instance as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub node: Arc<Node>,
    pub service: Arc<NodeService>,
    /// The node's own checks, then the instance's, each by id.
    pub checks: Arc<[Arc<HealthCheck>]>,
    /// The worst of all checks; passing when there is none.
    pub status: CheckStatus,
}

impl Instance {
    pub(super) fn new(node: &NodeEntry, service: &Arc<NodeService>) -> Instance {
        let of_node = node.checks_of("");
        let own = node.checks_of(&service.id);
        let checks: Arc<[_]> = of_node.chain(own).cloned().collect();
        let status = checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(CheckStatus::Passing);
        Instance {
            node: node.node.clone(),
            service: service.clone(),
            checks,
            status,
        }
    }

    /// Where the instance is reached: its own address, or its node's.
    pub fn address(&self) -> &Str {
        if self.service.address.is_empty() {
            &self.node.address
        } else {
            &self.service.address
        }
    }
}

impl ServiceEntry {
    /// Takes the name from the instances that there are now, and says whether it has become another one.
    pub(super) fn take_name(&mut self) -> bool {
        match self.instances.values().next() {
            Some(first) if first.service.name != self.name => {
                self.name = first.service.name.clone();
                true
            }
            _ => false,
        }
    }

    /// Every tag that an instance carries, sorted, each once.
    pub fn tags(&self) -> &Arc<[Str]> {
        self.answers.tags.get_or_init(|| {
            let all = self
                .instances
                .values()
                .flat_map(|instance| instance.service.tags.iter());
            let sorted: std::collections::BTreeSet<&Str> = all.collect();
            sorted.into_iter().cloned().collect()
        })
    }

    /// The encoded list of all instances, or of the passing ones, if a reader left it here.
    pub fn encoded_health(&self, passing: bool) -> Option<Bytes> {
        self.health_cell(passing).get().cloned()
    }

    /// Leaves the encoded list for the next reader, until the service changes.
    pub fn keep_encoded_health(&self, passing: bool, encoded: &Bytes) {
        // Who comes second has computed the same.
        let _ = self.health_cell(passing).set(encoded.clone());
    }

    fn health_cell(&self, passing: bool) -> &OnceLock<Bytes> {
        if passing {
            &self.answers.health_passing
        } else {
            &self.answers.health
        }
    }
}

impl NodeEntry {
    pub(crate) fn new(node: Arc<Node>, index: u64) -> NodeEntry {
        NodeEntry {
            node,
            services: OrdMap::new(),
            checks: OrdMap::new(),
            checks_by_service: OrdSet::new(),
            index,
        }
    }

    /// Whether this check is there, and has not been changed after `index`.
    pub(crate) fn says_still(&self, check: &str, index: u64) -> bool {
        let check = self.checks.get(check);
        check.is_some_and(|check| check.modify_index <= index)
    }

    /// The checks of one instance, or of the node itself when the id is empty, by check id.
    pub fn checks_of<'a>(
        &'a self,
        service_id: &str,
    ) -> impl Iterator<Item = &'a Arc<HealthCheck>> + use<'a> {
        let first: (Str, Str) = (service_id.into(), "".into());
        let service_id = first.0.clone();
        self.checks_by_service
            .range(first..)
            .take_while(move |(service, _)| *service == service_id)
            .filter_map(|(_, check)| self.checks.get(check))
    }

    pub(crate) fn insert_check(&mut self, check: Arc<HealthCheck>) {
        self.remove_check(&check.id.clone());
        self.checks_by_service
            .insert((check.service_id.clone(), check.id.clone()));
        self.checks.insert(check.id.clone(), check);
    }

    pub(crate) fn remove_check(&mut self, id: &Str) {
        if let Some(check) = self.checks.remove(id) {
            self.checks_by_service
                .remove(&(check.service_id.clone(), check.id.clone()));
        }
    }

    /// The node's liveness check says it is gone: its name may be taken over.
    fn has_failed(&self) -> bool {
        self.checks
            .get("serfHealth")
            .is_some_and(|check| check.status == CheckStatus::Critical)
    }
}

#[cfg(test)]
mod tests;
