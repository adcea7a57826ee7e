//! What registrations and deregistrations change: the rows they name, and the instances that show them.

use std::sync::Arc;

use super::{Answers, Instance, NodeEntry, ServiceEntry};
use crate::{
    command::{Deregister, DeregisterTarget, Refusal, Register},
    model::{HealthCheck, NodeService, Str, fold_name},
    state::{State, Touched},
    watch::WatchKey,
};

impl State {
    pub(in crate::state) fn register(
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

    pub(in crate::state) fn deregister(
        &mut self,
        index: u64,
        deregister: &Deregister,
        touched: &mut Touched,
    ) {
        let key = fold_name(&deregister.node);
        match &deregister.target {
            DeregisterTarget::Node => self.remove_node(index, &key, touched),
            DeregisterTarget::NodeAt { check, index: at } => {
                let entry = self.nodes.get(&key);
                if entry.is_some_and(|entry| entry.says_still(check, *at)) {
                    self.remove_node(index, &key, touched);
                }
            }
            DeregisterTarget::Member(departure) => self.depart(index, &key, departure, touched),
            DeregisterTarget::LeftMember { time } => self.forget(&key, *time),
            DeregisterTarget::Service(id) => self.remove_service(index, &key, id, touched),
            DeregisterTarget::Check(id) => self.remove_check(index, &key, id, touched),
        }
    }

    pub(in crate::state) fn remove_node(&mut self, index: u64, key: &Str, touched: &mut Touched) {
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
        let renamed = {
            let entry = Arc::make_mut(&mut entry);
            entry.answers = Answers::default();
            entry.index = index;
            change(entry);
            entry.take_name()
        };
        if renamed {
            self.indexes.service_names = index;
            touched.add(WatchKey::ServiceNames);
        }
        self.services.insert(name.clone(), entry);
        touched.add(WatchKey::Service(name));
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
