//! A registry to ask, for tests.

use std::sync::Arc;

use wharf_registry::{
    Command, Committed, Registry, Replica,
    command::Register,
    model::{CheckStatus, HealthCheck, Node, NodeService, Str, Weights},
};

/// Fills a registry, one registration after the other.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    replica: Replica,
}

impl Catalog {
    pub(crate) fn registry(&self) -> Registry {
        self.replica.registry()
    }

    pub(crate) fn register(&mut self, register: Register) {
        let command = Command::Register(Box::new(register)).encode();
        let index = self.replica.last_applied() + 1;
        let entry = Committed {
            index,
            command: Some(command),
        };
        self.replica.apply(&[entry]).unwrap();
    }

    pub(crate) fn node(&mut self, name: &str, address: &str) {
        self.register(Register {
            node: node(name, address),
            ..Register::default()
        });
    }

    /// Registers an instance with its one check.
    pub(crate) fn instance(&mut self, node: Node, service: NodeService, status: CheckStatus) {
        let check = HealthCheck {
            id: format!("check:{}", service.id).into(),
            service_id: service.id.clone(),
            status,
            ..HealthCheck::default()
        };
        self.register(Register {
            node,
            service: Some(service),
            checks: vec![check],
            ..Register::default()
        });
    }

    /// Passing instances of `name` on `count` nodes.
    pub(crate) fn instances(&mut self, name: &str, count: usize) {
        for at in 0..count {
            let address = format!("10.1.{}.{}", at / 250, at % 250 + 1);
            let node = node(&format!("{name}-node-{at}"), &address);
            self.instance(node, service(name, "", 8000), CheckStatus::Passing);
        }
    }
}

pub(crate) fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.into(),
        address: address.into(),
        ..Node::default()
    }
}

/// An instance whose id is the name of its service.
pub(crate) fn service(name: &str, address: &str, port: u16) -> NodeService {
    NodeService {
        id: name.into(),
        name: name.into(),
        address: address.into(),
        port,
        weights: Weights::default(),
        ..NodeService::default()
    }
}

pub(crate) fn tagged(mut service: NodeService, tags: &[&str]) -> NodeService {
    service.tags = tags
        .iter()
        .map(|tag| Str::from(*tag))
        .collect::<Arc<[Str]>>();
    service
}
