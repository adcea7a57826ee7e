//! What has to be written so that the catalog says of this node what the agent says. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use wharf_registry::{
    Command,
    command::{Deregister, DeregisterTarget, Register},
    model::{HealthCheck, Node, NodeService, Str},
    state::NodeEntry,
};

use crate::local::{Dirty, Rows, SERF_HEALTH, SERVER_SERVICE};

/// What the agent says.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    pub(super) node: Arc<Node>,
    pub(super) rows: Rows,
    /// What a server adds of its own.
    pub(super) server: Option<Server>,
}

/// The rows of the catalog that say that this node is a server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) service: NodeService,
    pub(super) check: HealthCheck,
}

/// How much is compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    /// Every row of this node on either side, or only what may have changed.
    pub(super) everything: bool,
    pub(super) dirty: &'a Dirty,
}

/// The writes, and which rows each of them settles.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The node itself: before everything else.
    pub(super) node: Option<Register>,
    /// The others, in any order: no two of them touch the same row.
    pub(super) writes: Vec<Write>,
    /// Instances that take the catalog's tags.
    pub(super) adopted: Vec<Adopted>,
}

/// Tags of an instance that give way to those that the catalog has.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) id: Str,
    pub(super) ours: Arc<[Str]>,
    pub(super) theirs: Arc<[Str]>,
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) command: Command,
    /// What is behind if this fails.
    pub(super) settles: Dirty,
}

/// Compares the two sides of a node, `catalog` being `None` when it has no such node.
pub(super) fn plan(local: &Local, catalog: Option<&NodeEntry>, scope: Scope<'_>) -> Plan {
    let Local { rows, .. } = local;
    let Scope { everything, dirty } = scope;
    let mut plan = Plan {
        node: node(local, catalog, scope),
        ..Plan::default()
    };
    let (mut services, mut checks) = (dirty.services.clone(), dirty.checks.clone());
    if everything {
        services.extend(rows.services.keys().cloned());
        checks.extend(rows.checks.keys().cloned());
        if let Some(catalog) = catalog {
            services.extend(catalog.services.keys().cloned());
            checks.extend(catalog.checks.keys().cloned());
        }
    }
    let there = |id: &Str| catalog.and_then(|entry| entry.services.get(id));

    // By instance, and the empty id for the node: one command each.
    let mut groups: BTreeMap<Str, Register> = BTreeMap::new();
    let mut removed: BTreeSet<&Str> = BTreeSet::new();
    for id in &services {
        match (rows.services.get(id), there(id)) {
            (None, None) => {}
            (None, Some(_)) if is_protected_service(local, id) => {}
            (None, Some(_)) => {
                removed.insert(id);
                plan.writes
                    .push(deregister(local, DeregisterTarget::Service(id.clone())));
            }
            (Some(service), there) => {
                let adopted = there
                    .filter(|_| service.enable_tag_override && !dirty.retagged.contains(id))
                    .filter(|there| there.tags != service.tags)
                    .map(|there| there.tags.clone());
                let mut wanted = NodeService::clone(service);
                if let Some(theirs) = adopted {
                    let ours = std::mem::replace(&mut wanted.tags, theirs.clone());
                    let id = id.clone();
                    plan.adopted.push(Adopted { id, ours, theirs });
                }
                if there.is_none_or(|there| !there.is_same(&wanted)) {
                    group(&mut groups, local, id).service = Some(wanted);
                }
            }
        }
    }
    for id in &checks {
        let there = catalog.and_then(|entry| entry.checks.get(id));
        match (rows.checks.get(id), there) {
            (None, None) => {}
            // Whether the node is there is not for the node to say.
            (None, Some(_)) if **id == *SERF_HEALTH => {}
            // It goes with its instance.
            (None, Some(there)) if removed.contains(&there.service_id) => {}
            (None, Some(_)) => {
                plan.writes
                    .push(deregister(local, DeregisterTarget::Check(id.clone())));
            }
            (Some(check), there) => {
                let deferred = rows.deferred.contains(id);
                if there.is_none_or(|there| !is_same_check(check, there, deferred)) {
                    let group = group(&mut groups, local, &check.service_id);
                    group.checks.push(HealthCheck::clone(check));
                }
            }
        }
    }
    for (id, mut register) in groups {
        // The catalog takes no check of an instance that it does not have.
        if register.service.is_none() && !id.is_empty() && there(&id).is_none() {
            register.service = rows.services.get(&id).map(|service| (**service).clone());
        }
        let mut settles = Dirty::default();
        settles
            .services
            .extend(register.service.iter().map(|service| service.id.clone()));
        settles
            .checks
            .extend(register.checks.iter().map(|check| check.id.clone()));
        if dirty.retagged.contains(&id) {
            settles.retagged.insert(id);
        }
        plan.writes.push(Write {
            command: Command::Register(Box::new(register)),
            settles,
        });
    }
    plan
}

/// The registration of the node with what makes it a server, if any of it differs.
fn node(local: &Local, catalog: Option<&NodeEntry>, scope: Scope<'_>) -> Option<Register> {
    if !scope.everything && !scope.dirty.node && catalog.is_some() {
        return None;
    }
    let differs = catalog.is_none_or(|entry| {
        // A node without an id has the one that the catalog knows.
        let mut node = Node::clone(&local.node);
        if node.id.is_empty() {
            node.id = entry.node.id.clone();
        }
        !node.is_same(&entry.node)
    });
    let service = local
        .server
        .as_ref()
        .map(|server| &server.service)
        .filter(|service| {
            catalog
                .and_then(|entry| entry.services.get(&service.id))
                .is_none_or(|there| !there.is_same(service))
        });
    let check = local
        .server
        .as_ref()
        .map(|server| &server.check)
        .filter(|check| {
            catalog
                .and_then(|entry| entry.checks.get(&check.id))
                .is_none_or(|there| !there.is_same(check))
        });
    (differs || service.is_some() || check.is_some()).then(|| Register {
        node: Node::clone(&local.node),
        skip_node_update: false,
        service: service.cloned(),
        checks: check.cloned().into_iter().collect(),
    })
}

fn group<'a>(groups: &'a mut BTreeMap<Str, Register>, local: &Local, id: &Str) -> &'a mut Register {
    groups.entry(id.clone()).or_insert_with(|| Register {
        node: Node::clone(&local.node),
        skip_node_update: true,
        ..Register::default()
    })
}

fn deregister(local: &Local, target: DeregisterTarget) -> Write {
    let mut settles = Dirty::default();
    match &target {
        DeregisterTarget::Service(id) => settles.services.insert(id.clone()),
        DeregisterTarget::Check(id) => settles.checks.insert(id.clone()),
        DeregisterTarget::Node
        | DeregisterTarget::NodeAt { .. }
        | DeregisterTarget::Member(_)
        | DeregisterTarget::LeftMember { .. } => false,
    };
    Write {
        command: Command::Deregister(Deregister {
            node: local.node.name.clone(),
            target,
        }),
        settles,
    }
}

/// The service of the servers is written by the server that it is about.
fn is_protected_service(local: &Local, id: &str) -> bool {
    id == SERVER_SERVICE && local.server.is_some()
}

fn is_same_check(here: &HealthCheck, there: &HealthCheck, any_output: bool) -> bool {
    if !any_output || here.output == there.output {
        return here.is_same(there);
    }
    let mut here = here.clone();
    here.output = there.output.clone();
    here.is_same(there)
}
