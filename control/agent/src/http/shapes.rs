//! Shapes of answers that are not a model's own.

use std::collections::BTreeMap;

use serde::Serialize;
use wharf_registry::{
    model::{
        ConnectProxy, HealthCheck, Node, NodeService, ServiceAddress, ServiceConnect, Str, StrMap,
        Weights,
    },
    state::Instance,
};

/// One instance with its node in one flat row (`/v1/catalog/service`).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CatalogService<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'a str,
    tagged_addresses: &'a StrMap,
    node_meta: &'a StrMap,
    service_kind: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [Str],
    service_address: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_tagged_addresses: &'a BTreeMap<Str, ServiceAddress>,
    service_weights: Weights,
    service_meta: &'a StrMap,
    service_port: u16,
    service_socket_path: &'a str,
    service_enable_tag_override: bool,
    service_proxy: ConnectProxy,
    service_connect: &'a ServiceConnect,
    create_index: u64,
    modify_index: u64,
}

impl<'a> CatalogService<'a> {
    pub(crate) fn new(instance: &'a Instance) -> CatalogService<'a> {
        let (node, service) = (&*instance.node, &*instance.service);
        CatalogService {
            id: &node.id,
            node: &node.name,
            address: &node.address,
            datacenter: &node.datacenter,
            tagged_addresses: &node.tagged_addresses,
            node_meta: &node.meta,
            service_kind: service.kind.as_str(),
            service_id: &service.id,
            service_name: &service.name,
            service_tags: &service.tags,
            service_address: &service.address,
            service_tagged_addresses: &service.tagged_addresses,
            service_weights: service.weights,
            service_meta: &service.meta,
            service_port: service.port,
            service_socket_path: &service.socket_path,
            service_enable_tag_override: service.enable_tag_override,
            service_proxy: service.proxy.as_deref().cloned().unwrap_or_default(),
            service_connect: &service.connect,
            create_index: service.create_index,
            modify_index: service.modify_index,
        }
    }
}

/// The node of a catalog row.
pub(crate) fn by_node<'a>(row: &'a CatalogService<'_>) -> &'a str {
    row.node
}

/// One instance with its node and checks (`/v1/health/service`).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HealthService<'a> {
    pub(crate) node: &'a Node,
    pub(crate) service: &'a NodeService,
    pub(crate) checks: Vec<&'a HealthCheck>,
}

impl<'a> HealthService<'a> {
    pub(crate) fn new(instance: &'a Instance) -> HealthService<'a> {
        HealthService {
            node: &instance.node,
            service: &instance.service,
            checks: instance.checks.iter().map(|check| &**check).collect(),
        }
    }
}
