//! The catalog: nodes, the instances of services on them, and their checks.
//!
//! A node owns its instances and checks. Beside that, every service keeps the list of its instances
//! joined with their node and checks ([`Instance`]): what a health query, DNS and a proxy ask for is
//! built once per change, not once per question. The cost of a change is that of the rows it
//! touches, never of the table.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use super::{State, Touched};
use crate::{
    command::{Deregister, DeregisterTarget, Refusal, Register},
    model::{CheckStatus, HealthCheck, Node, NodeService, Str, fold_name},
    watch::WatchKey,
};

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
    /// As the newest instance spells it.
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
#[derive(Clone, Debug)]
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

impl State {
    pub(super) fn register(
        &mut self,
        index: u64,
        register: &Register,
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        self.validate(register)?;
        let key = self.ensure_node(index, register, touched);
        if let Some(service) = &register.service {
            self.ensure_service(index, &key, service, touched);
        }
        for check in &register.checks {
            self.ensure_check(index, &key, check, touched);
        }
        Ok(())
    }

    /// Everything that can refuse a registration, before anything changes.
    fn validate(&self, register: &Register) -> Result<(), Refusal> {
        let node = &register.node;
        if node.name.is_empty() {
            return Err(Refusal::NodeNameMissing);
        }
        if node.address.is_empty() && !register.skip_node_update {
            return Err(Refusal::AddressMissing);
        }
        let key = fold_name(&node.name);
        let existing = self.nodes.get(&key);
        if let Some(holder) = existing
            && !node.id.is_empty()
            && !holder.node.id.is_empty()
            && holder.node.id != node.id
            && !holder.has_failed()
        {
            return Err(Refusal::NodeNameReserved {
                name: node.name.clone(),
                holder_id: holder.node.id.clone(),
                holder_name: holder.node.name.clone(),
                holder_address: holder.node.address.clone(),
            });
        }
        if let Some(service) = &register.service
            && service.name.is_empty()
        {
            return Err(Refusal::ServiceNameMissing);
        }
        for check in &register.checks {
            if check.id.is_empty() && check.name.is_empty() {
                return Err(Refusal::CheckIdMissing);
            }
            if !check.node.is_empty() && fold_name(&check.node) != key {
                return Err(Refusal::WrongNode {
                    check: check.id.clone(),
                    other: check.node.clone(),
                    node: node.name.clone(),
                });
            }
            let registered = register.service.as_ref().map(service_id);
            let known = check.service_id.is_empty()
                || registered == Some(&check.service_id)
                || existing.is_some_and(|entry| entry.services.contains_key(&check.service_id));
            if !known {
                return Err(Refusal::UnknownService(
                    check.service_id.clone(),
                    check.id.clone(),
                ));
            }
        }
        Ok(())
    }

    /// Creates or updates the node and returns its key. A known id under another name is a rename.
    fn ensure_node(&mut self, index: u64, register: &Register, touched: &mut Touched) -> Str {
        let wanted = &register.node;
        let key = fold_name(&wanted.name);
        if !wanted.id.is_empty()
            && let Some(old) = self.node_ids.get(&wanted.id).cloned()
            && old != key
        {
            self.remove_node(index, &old, touched);
        }
        let existing = self.nodes.get(&key);
        if existing.is_some() && register.skip_node_update {
            return key;
        }
        let mut node = wanted.clone();
        if let Some(existing) = existing {
            if node.id.is_empty() {
                node.id = existing.node.id.clone();
            }
            if node.is_same(&existing.node) {
                return key;
            }
            if !existing.node.id.is_empty() && existing.node.id != node.id {
                self.node_ids.remove(&existing.node.id.clone());
            }
        }
        if let Some(existing) = existing {
            self.addresses.remove_node(&existing.node.address, &key);
        }
        self.addresses.add_node(&node.address, &key);
        let existing = self.nodes.get(&key);
        node.create_index = existing.map_or(index, |entry| entry.node.create_index);
        node.modify_index = index;
        if !node.id.is_empty() {
            self.node_ids.insert(node.id.clone(), key.clone());
        }
        let entry = NodeEntry {
            node: Arc::new(node),
            services: existing
                .map(|entry| entry.services.clone())
                .unwrap_or_default(),
            checks: existing
                .map(|entry| entry.checks.clone())
                .unwrap_or_default(),
            checks_by_service: existing
                .map(|entry| entry.checks_by_service.clone())
                .unwrap_or_default(),
            index,
        };
        self.nodes.insert(key.clone(), Arc::new(entry));
        self.indexes.nodes = index;
        touched.add(WatchKey::Nodes);
        touched.add(WatchKey::Node(key.clone()));
        self.refresh_instances(index, &key, None, touched);
        key
    }

    fn ensure_service(
        &mut self,
        index: u64,
        key: &Str,
        wanted: &NodeService,
        touched: &mut Touched,
    ) {
        let mut service = wanted.clone();
        service.id = service_id(wanted).clone();
        let Some(entry) = self.nodes.get(key) else {
            return;
        };
        let previous = entry.services.get(&service.id).cloned();
        if let Some(previous) = &previous {
            if previous.is_same(&service) {
                return;
            }
            service.create_index = previous.create_index;
        } else {
            service.create_index = index;
        }
        service.modify_index = index;
        let same_name = previous
            .as_ref()
            .is_some_and(|old| fold_name(&old.name) == fold_name(&service.name));
        if let Some(previous) = &previous
            && !same_name
        {
            self.remove_instance(index, key, previous, touched);
        }
        let names_change =
            !same_name || previous.as_ref().is_none_or(|old| old.tags != service.tags);
        let id = service.id.clone();
        self.change_node(index, key, touched, |entry| {
            entry.services.insert(id.clone(), Arc::new(service));
        });
        self.indexes.services = index;
        touched.add(WatchKey::Services);
        if names_change {
            self.indexes.service_names = index;
            touched.add(WatchKey::ServiceNames);
        }
        self.refresh_instances(index, key, Some(&id), touched);
    }

    fn ensure_check(&mut self, index: u64, key: &Str, wanted: &HealthCheck, touched: &mut Touched) {
        let Some(entry) = self.nodes.get(key) else {
            return;
        };
        let mut check = wanted.clone();
        check.node = entry.node.name.clone();
        if check.id.is_empty() {
            check.id = check.name.clone();
        }
        if let Some(service) = entry.services.get(&check.service_id) {
            check.service_name = service.name.clone();
            check.service_tags = service.tags.clone();
        }
        let previous = entry.checks.get(&check.id).cloned();
        check.create_index = previous.as_ref().map_or(index, |old| old.create_index);
        check.modify_index = index;
        if previous.as_ref().is_some_and(|old| old.is_same(&check)) {
            return;
        }
        let service = check.service_id.clone();
        self.change_node(index, key, touched, |entry| {
            entry.insert_check(Arc::new(check));
        });
        self.indexes.checks = index;
        touched.add(WatchKey::Checks);
        // A check that moved from one instance to another concerns both.
        if let Some(old) = previous.filter(|old| old.service_id != service) {
            self.refresh_for_check(index, key, &old.service_id, touched);
        }
        self.refresh_for_check(index, key, &service, touched);
    }

    pub(super) fn deregister(
        &mut self,
        index: u64,
        deregister: &Deregister,
        touched: &mut Touched,
    ) {
        let key = fold_name(&deregister.node);
        match &deregister.target {
            DeregisterTarget::Node => self.remove_node(index, &key, touched),
            DeregisterTarget::Service(id) => self.remove_service(index, &key, id, touched),
            DeregisterTarget::Check(id) => self.remove_check(index, &key, id, touched),
        }
    }

    fn remove_node(&mut self, index: u64, key: &Str, touched: &mut Touched) {
        let Some(entry) = self.nodes.remove(key) else {
            return;
        };
        self.addresses.remove_node(&entry.node.address, key);
        if !entry.node.id.is_empty() {
            self.node_ids.remove(&entry.node.id);
        }
        for service in entry.services.values() {
            self.remove_instance(index, key, service, touched);
        }
        if !entry.services.is_empty() {
            self.indexes.services = index;
            touched.add(WatchKey::Services);
        }
        if !entry.checks.is_empty() {
            self.indexes.checks = index;
            touched.add(WatchKey::Checks);
        }
        self.indexes.nodes = index;
        self.indexes.node_extinction = index;
        touched.add(WatchKey::Nodes);
        touched.add(WatchKey::Node(key.clone()));
    }

    fn remove_service(&mut self, index: u64, key: &Str, id: &Str, touched: &mut Touched) {
        let Some(entry) = self.nodes.get(key) else {
            return;
        };
        let Some(service) = entry.services.get(id).cloned() else {
            return;
        };
        let checks: Vec<Str> = entry.checks_of(id).map(|check| check.id.clone()).collect();
        if !checks.is_empty() {
            self.indexes.checks = index;
            touched.add(WatchKey::Checks);
        }
        self.change_node(index, key, touched, |entry| {
            entry.services.remove(id);
            for check in &checks {
                entry.remove_check(check);
            }
        });
        self.indexes.services = index;
        touched.add(WatchKey::Services);
        self.remove_instance(index, key, &service, touched);
    }

    fn remove_check(&mut self, index: u64, key: &Str, id: &Str, touched: &mut Touched) {
        let Some(entry) = self.nodes.get(key) else {
            return;
        };
        let Some(check) = entry.checks.get(id).cloned() else {
            return;
        };
        self.change_node(index, key, touched, |entry| {
            entry.remove_check(id);
        });
        self.indexes.checks = index;
        touched.add(WatchKey::Checks);
        self.refresh_for_check(index, key, &check.service_id, touched);
    }

    /// Changes what is on a node and moves the node's index.
    fn change_node(
        &mut self,
        index: u64,
        key: &Str,
        touched: &mut Touched,
        change: impl FnOnce(&mut NodeEntry),
    ) {
        if let Some(entry) = self.nodes.get_mut(key) {
            let entry = Arc::make_mut(entry);
            change(entry);
            entry.index = index;
            touched.add(WatchKey::Node(key.clone()));
        }
    }

    /// Rebuilds what a check of `service_id` shows up in: one instance, or all of the node's.
    fn refresh_for_check(
        &mut self,
        index: u64,
        key: &Str,
        service_id: &Str,
        touched: &mut Touched,
    ) {
        let only = (!service_id.is_empty()).then_some(service_id);
        self.refresh_instances(index, key, only, touched);
    }

    /// Rebuilds the instances of one service id of a node, or of all.
    fn refresh_instances(
        &mut self,
        index: u64,
        key: &Str,
        only: Option<&Str>,
        touched: &mut Touched,
    ) {
        let Some(node) = self.nodes.get(key).cloned() else {
            return;
        };
        let services: Vec<&Arc<NodeService>> = match only {
            Some(id) => node.services.get(id).into_iter().collect(),
            None => node.services.values().collect(),
        };
        for service in services {
            let instance = Arc::new(Instance::new(&node, service));
            let name = fold_name(&service.name);
            let instance_key = (key.clone(), service.id.clone());
            let mut previous = None;
            self.change_service(index, name.clone(), touched, |entry| {
                entry.name = service.name.clone();
                previous = entry.instances.insert(instance_key.clone(), instance);
            });
            let previous = previous.as_ref().map(|old| &old.service.address);
            if previous != Some(&service.address) {
                if let Some(previous) = previous {
                    self.addresses
                        .remove_instance(previous, &name, &instance_key);
                }
                self.addresses
                    .add_instance(&service.address, &name, &instance_key);
            }
        }
    }

    /// Takes an instance out of its service, and the service away with its last instance.
    fn remove_instance(
        &mut self,
        index: u64,
        key: &Str,
        service: &NodeService,
        touched: &mut Touched,
    ) {
        let name = fold_name(&service.name);
        let instance_key = (key.clone(), service.id.clone());
        let mut last = false;
        self.change_service(index, name.clone(), touched, |entry| {
            entry.instances.remove(&instance_key);
            last = entry.instances.is_empty();
        });
        self.addresses
            .remove_instance(&service.address, &name, &instance_key);
        if last {
            self.services.remove(&name);
            self.indexes.service_extinction = index;
        }
        self.indexes.service_names = index;
        touched.add(WatchKey::ServiceNames);
    }

    fn change_service(
        &mut self,
        index: u64,
        name: Str,
        touched: &mut Touched,
        change: impl FnOnce(&mut ServiceEntry),
    ) {
        let mut entry = self.services.get(&name).cloned().unwrap_or_default();
        {
            let entry = Arc::make_mut(&mut entry);
            entry.answers = Answers::default();
            entry.index = index;
            change(entry);
        }
        self.services.insert(name.clone(), entry);
        touched.add(WatchKey::Service(name));
    }
}

impl NodeEntry {
    pub(super) fn new(node: Arc<Node>, index: u64) -> NodeEntry {
        NodeEntry {
            node,
            services: OrdMap::new(),
            checks: OrdMap::new(),
            checks_by_service: OrdSet::new(),
            index,
        }
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

    pub(super) fn insert_check(&mut self, check: Arc<HealthCheck>) {
        self.remove_check(&check.id.clone());
        self.checks_by_service
            .insert((check.service_id.clone(), check.id.clone()));
        self.checks.insert(check.id.clone(), check);
    }

    fn remove_check(&mut self, id: &Str) {
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

/// The id of an instance: its name when none was given.
fn service_id(service: &NodeService) -> &Str {
    if service.id.is_empty() {
        &service.name
    } else {
        &service.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Outcome};

    fn node(name: &str, id: &str, address: &str) -> Node {
        Node {
            name: name.into(),
            id: id.into(),
            address: address.into(),
            ..Node::default()
        }
    }

    fn service(id: &str, name: &str) -> NodeService {
        NodeService {
            id: id.into(),
            name: name.into(),
            port: 80,
            ..NodeService::default()
        }
    }

    fn check(id: &str, service_id: &str, status: CheckStatus) -> HealthCheck {
        HealthCheck {
            id: id.into(),
            service_id: service_id.into(),
            status,
            ..HealthCheck::default()
        }
    }

    fn apply(state: &mut State, command: Command) -> (Outcome, Vec<WatchKey>) {
        let mut touched = Touched::default();
        let outcome = state.apply(state.applied() + 1, &command, &mut touched);
        (outcome, touched.iter().cloned().collect())
    }

    fn register(state: &mut State, register: Register) -> (Outcome, Vec<WatchKey>) {
        apply(state, Command::Register(Box::new(register)))
    }

    fn deregister(state: &mut State, node: &str, target: DeregisterTarget) -> Vec<WatchKey> {
        apply(
            state,
            Command::Deregister(Deregister {
                node: node.into(),
                target,
            }),
        )
        .1
    }

    fn web_on(name: &str) -> Register {
        Register {
            node: node(name, "", "10.0.0.1"),
            service: Some(service("web-1", "web")),
            checks: vec![check("service:web-1", "web-1", CheckStatus::Passing)],
            ..Register::default()
        }
    }

    #[test]
    fn the_same_registration_again_changes_nothing() {
        let mut state = State::default();
        let (_, first) = register(&mut state, web_on("n1"));
        let before = state.indexes;
        let (outcome, second) = register(&mut state, web_on("n1"));
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(
            first.len(),
            6,
            "nodes, the node, services, the service, the names, the checks"
        );
        assert!(second.is_empty());
        assert_eq!(
            state.indexes,
            super::super::Indexes {
                applied: 2,
                ..before
            }
        );
    }

    #[test]
    fn a_service_is_as_healthy_as_its_worst_check() {
        let mut state = State::default();
        register(&mut state, web_on("n1"));
        let status = |state: &State| {
            state.services["web"]
                .instances
                .values()
                .next()
                .unwrap()
                .status
        };
        assert_eq!(status(&state), CheckStatus::Passing);
        register(
            &mut state,
            Register {
                node: node("n1", "", "10.0.0.1"),
                checks: vec![check("disk", "", CheckStatus::Warning)],
                ..Register::default()
            },
        );
        assert_eq!(status(&state), CheckStatus::Warning);
        assert_eq!(
            state.services["web"].index, 2,
            "a node check moves the node's services"
        );
        deregister(&mut state, "N1", DeregisterTarget::Check("disk".into()));
        assert_eq!(status(&state), CheckStatus::Passing);
    }

    #[test]
    fn a_change_to_one_service_does_not_touch_another() {
        let mut state = State::default();
        register(&mut state, web_on("n1"));
        let other = Register {
            node: node("n2", "", "10.0.0.2"),
            service: Some(service("db", "db")),
            ..Register::default()
        };
        let (_, touched) = register(&mut state, other);
        assert!(touched.contains(&WatchKey::Service("db".into())));
        assert!(!touched.contains(&WatchKey::Service("web".into())));
        assert!(!touched.contains(&WatchKey::Node("n1".into())));
        assert_eq!(state.services["web"].index, 1);
    }

    #[test]
    fn the_last_instance_takes_the_service_away() {
        let mut state = State::default();
        register(&mut state, web_on("n1"));
        let touched = deregister(&mut state, "n1", DeregisterTarget::Service("web-1".into()));
        assert!(state.services.is_empty());
        assert!(
            state.nodes["n1"].checks.is_empty(),
            "its checks went with it"
        );
        assert_eq!(state.indexes.service_extinction, 2);
        assert!(touched.contains(&WatchKey::Service("web".into())));
        assert!(deregister(&mut state, "n1", DeregisterTarget::Service("web-1".into())).is_empty());
    }

    #[test]
    fn an_id_under_a_new_name_renames_the_node() {
        let mut state = State::default();
        register(
            &mut state,
            Register {
                node: node("old", "u1", "10.0.0.1"),
                ..Register::default()
            },
        );
        register(
            &mut state,
            Register {
                node: node("new", "u1", "10.0.0.1"),
                ..Register::default()
            },
        );
        assert_eq!(
            state.nodes.keys().map(|key| &**key).collect::<Vec<_>>(),
            ["new"]
        );
        assert_eq!(&*state.node_ids["u1"], "new");
    }

    #[test]
    fn a_name_is_reserved_until_its_node_has_failed() {
        let mut state = State::default();
        let alive = Register {
            node: node("n1", "u1", "10.0.0.1"),
            checks: vec![check("serfHealth", "", CheckStatus::Passing)],
            ..Register::default()
        };
        register(&mut state, alive.clone());
        let thief = Register {
            node: node("n1", "u2", "10.0.0.9"),
            ..Register::default()
        };
        let (outcome, touched) = register(&mut state, thief.clone());
        assert!(matches!(
            outcome,
            Outcome::Refused(Refusal::NodeNameReserved { .. })
        ));
        assert!(touched.is_empty());
        let dead = Register {
            checks: vec![check("serfHealth", "", CheckStatus::Critical)],
            ..alive
        };
        register(&mut state, dead);
        assert_eq!(register(&mut state, thief).0, Outcome::Done);
        assert_eq!(&*state.nodes["n1"].node.address, "10.0.0.9");
        assert!(!state.node_ids.contains_key("u1"));
    }

    #[test]
    fn a_refused_registration_leaves_nothing_behind() {
        let mut state = State::default();
        let bad = Register {
            checks: vec![check("c", "missing", CheckStatus::Passing)],
            ..web_on("n1")
        };
        let (outcome, _) = register(&mut state, bad);
        assert!(matches!(
            outcome,
            Outcome::Refused(Refusal::UnknownService(..))
        ));
        assert!(state.nodes.is_empty() && state.services.is_empty());
    }

    #[test]
    fn an_instance_that_changes_its_name_leaves_the_old_service() {
        let mut state = State::default();
        register(&mut state, web_on("n1"));
        let renamed = Register {
            node: node("n1", "", "10.0.0.1"),
            service: Some(service("web-1", "api")),
            ..Register::default()
        };
        let (_, touched) = register(&mut state, renamed);
        assert_eq!(
            state.services.keys().map(|key| &**key).collect::<Vec<_>>(),
            ["api"]
        );
        assert!(touched.contains(&WatchKey::Service("web".into())));
        assert!(touched.contains(&WatchKey::Service("api".into())));
    }
}
