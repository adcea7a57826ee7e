//! The instances of one service.

use std::sync::Arc;

use wharf_proto::v1::{self, InstanceKey, ServiceInstance, watch_response::Event};
use wharf_registry::{
    View,
    model::{CheckStatus, NodeService},
    state::{Instance, ServiceEntry},
    watch::WatchKey,
};

use super::{Events, Subject};
use crate::authz::{Access, Caller, Resource};

#[derive(Debug)]
pub(in crate::grpc) struct Instances {
    pub(super) name: String,
    pub(super) tags: Vec<String>,
    pub(super) passing_only: bool,
    pub(super) caller: Caller,
}

impl Instances {
    fn may_see(&self, instance: &Instance) -> bool {
        self.tags.iter().all(|tag| instance.service.has_tag(tag))
            && (!self.passing_only || instance.status == CheckStatus::Passing)
            && self
                .caller
                .may(Resource::Node(&instance.node.name), Access::Read)
    }
}

impl Subject for Instances {
    type Seen = Option<Arc<ServiceEntry>>;

    fn key(&self) -> WatchKey {
        WatchKey::service(&self.name)
    }

    fn nothing(&self) -> Self::Seen {
        None
    }

    fn see(&self, view: &Arc<View>) -> Self::Seen {
        view.service(&self.name).cloned()
    }

    fn changes<'a>(&'a self, old: &'a Self::Seen, new: &'a Self::Seen) -> Events<'a> {
        let all = |seen: &'a Self::Seen| seen.iter().flat_map(|entry| entry.instances.iter());
        let get = |seen: &'a Self::Seen, key| -> Option<&'a Arc<Instance>> {
            let instance = seen.as_ref()?.instances.get(key)?;
            self.may_see(instance).then_some(instance)
        };
        let removed = all(old)
            .filter(move |(key, instance)| self.may_see(instance) && get(new, *key).is_none())
            .map(|(_, instance)| {
                Event::InstanceRemoved(InstanceKey {
                    node: instance.node.name.to_string(),
                    id: instance.service.id.to_string(),
                })
            });
        let upserted = all(new)
            .filter(move |(key, instance)| {
                self.may_see(instance)
                    && get(old, *key).is_none_or(|before| !is_told_alike(before, instance))
            })
            .map(|(_, instance)| Event::InstanceUpserted(message(instance)));
        Box::new(removed.chain(upserted))
    }

    /// Removed instances leave no trace in the catalog, so only that nothing changed is ever known.
    fn changes_since<'a>(&'a self, view: &'a View, index: u64) -> Option<Events<'a>> {
        (view.service_index(&self.name) <= index)
            .then(|| Box::new(std::iter::empty()) as Events<'a>)
    }
}

/// Whether a client would be told the same of both: the output of a check, for one, is not told.
fn is_told_alike(a: &Arc<Instance>, b: &Arc<Instance>) -> bool {
    let same_service = Arc::ptr_eq(&a.service, &b.service);
    let same_node = Arc::ptr_eq(&a.node, &b.node)
        || (a.node.name == b.node.name && a.node.address == b.node.address);
    Arc::ptr_eq(a, b) || (same_service && same_node && a.status == b.status)
}

fn message(instance: &Instance) -> ServiceInstance {
    let status = match instance.status {
        CheckStatus::Passing => v1::CheckStatus::Passing,
        CheckStatus::Warning => v1::CheckStatus::Warning,
        CheckStatus::Critical => v1::CheckStatus::Critical,
    };
    ServiceInstance {
        node: instance.node.name.to_string(),
        node_address: instance.node.address.to_string(),
        instance: Some(registered(&instance.service)),
        status: status.into(),
        create_index: instance.service.create_index,
        modify_index: instance.service.modify_index,
    }
}

/// The instance as it was registered.
fn registered(service: &NodeService) -> v1::Instance {
    v1::Instance {
        service: service.name.to_string(),
        id: service.id.to_string(),
        address: service.address.to_string(),
        port: service.port.into(),
        tags: service.tags.iter().map(ToString::to_string).collect(),
        meta: service
            .meta
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        weights: Some(v1::Weights {
            passing: service.weights.passing,
            warning: service.weights.warning,
        }),
    }
}
