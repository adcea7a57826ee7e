//! A registry to compile from, for tests.

use serde_json::{Value, json};
use wharf_proto::v1::{
    AdHocProxy, ProxySnapshot, ProxyUpstream, proxy_configuration_request::Target,
    proxy_configuration_response::Update,
};
use wharf_registry::{
    Command, Committed, Outcome, Registry, Replica, View,
    command::{ConfigCommand, Deregister, DeregisterTarget, Register},
    model::{CheckStatus, ConfigEntry, HealthCheck, Node, NodeService},
};

use crate::Place;

#[derive(Debug)]
pub(crate) struct Catalog {
    replica: Replica,
    pub(crate) registry: Registry,
}

pub(crate) fn place() -> Place {
    Place {
        node: "n1".into(),
        datacenter: "dc1".into(),
    }
}

impl Catalog {
    pub(crate) fn new() -> Catalog {
        let replica = Replica::new();
        let registry = replica.registry();
        Catalog { replica, registry }
    }

    pub(crate) fn view(&self) -> std::sync::Arc<View> {
        self.registry.view()
    }

    pub(crate) fn apply(&mut self, command: Command) {
        let entry = Committed {
            index: self.replica.last_applied() + 1,
            command: Some(command.encode()),
        };
        let outcome = self.replica.apply(&[entry]).unwrap().remove(0);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }

    /// Registers an instance given as JSON of the API, with one check.
    pub(crate) fn instance(&mut self, node: &str, service: Value, status: CheckStatus) {
        let service: NodeService = serde_json::from_value(service).unwrap();
        let check = HealthCheck {
            id: format!("service:{}", service.id).into(),
            service_id: service.id.clone(),
            status,
            ..HealthCheck::default()
        };
        self.apply(Command::Register(Box::new(Register {
            node: Node {
                name: node.into(),
                address: format!("10.0.0.{}", node.trim_start_matches('n')).into(),
                ..Node::default()
            },
            service: Some(service),
            checks: vec![check],
            ..Register::default()
        })));
    }

    pub(crate) fn remove(&mut self, node: &str, id: &str) {
        self.apply(Command::Deregister(Deregister {
            node: node.into(),
            target: DeregisterTarget::Service(id.into()),
        }));
    }

    pub(crate) fn service_defaults(&mut self, entry: Value) {
        let entry = ConfigEntry::ServiceDefaults(serde_json::from_value(entry).unwrap());
        self.apply(Command::Config(ConfigCommand::Upsert { entry }));
    }

    pub(crate) fn proxy_defaults(&mut self, config: Value) {
        let entry = json!({"Kind": "proxy-defaults", "Name": "global", "Config": config});
        let entry = ConfigEntry::ProxyDefaults(serde_json::from_value(entry).unwrap());
        self.apply(Command::Config(ConfigCommand::Upsert { entry }));
    }
}

pub(crate) fn ad_hoc(upstreams: &[(&str, u32)]) -> Target {
    Target::AdHoc(AdHocProxy {
        service: "client".into(),
        upstreams: upstreams
            .iter()
            .map(|(name, port)| ProxyUpstream {
                destination: (*name).into(),
                local_bind_port: *port,
                ..ProxyUpstream::default()
            })
            .collect(),
    })
}

/// What a proxy makes of an update.
pub(crate) fn applied(mut old: ProxySnapshot, update: Option<Update>) -> ProxySnapshot {
    let delta = match update {
        None => return old,
        Some(Update::Snapshot(snapshot)) => return snapshot,
        Some(Update::Delta(delta)) => delta,
    };
    old.listeners.retain(|l| {
        !delta.removed_listeners.contains(&l.name)
            && delta.listeners.iter().all(|new| new.name != l.name)
    });
    old.clusters.retain(|c| {
        !delta.removed_clusters.contains(&c.name)
            && delta.clusters.iter().all(|new| new.name != c.name)
    });
    old.listeners.extend(delta.listeners);
    old.clusters.extend(delta.clusters);
    old.listeners.sort_by(|a, b| a.name.cmp(&b.name));
    old.clusters.sort_by(|a, b| a.name.cmp(&b.name));
    old
}
