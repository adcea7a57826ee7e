use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ConnectProxy, Settings, Str, StrMap, is_default, map_or_null};

/// What an instance is to the mesh.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum ServiceKind {
    /// An ordinary service.
    #[default]
    #[serde(rename = "")]
    Typical,
    #[serde(rename = "connect-proxy")]
    ConnectProxy,
    #[serde(rename = "mesh-gateway")]
    MeshGateway,
    #[serde(rename = "terminating-gateway")]
    TerminatingGateway,
    #[serde(rename = "ingress-gateway")]
    IngressGateway,
    #[serde(rename = "api-gateway")]
    ApiGateway,
}

impl ServiceKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceKind::Typical => "",
            ServiceKind::ConnectProxy => "connect-proxy",
            ServiceKind::MeshGateway => "mesh-gateway",
            ServiceKind::TerminatingGateway => "terminating-gateway",
            ServiceKind::IngressGateway => "ingress-gateway",
            ServiceKind::ApiGateway => "api-gateway",
        }
    }
}

/// How often DNS and load balancing choose an instance, by its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Weights {
    pub passing: u32,
    pub warning: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Weights {
            passing: 1,
            warning: 1,
        }
    }
}

/// An address with a port, by network name in [`NodeService::tagged_addresses`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceAddress {
    pub address: Str,
    pub port: u16,
}

/// Mesh settings of an instance as the catalog keeps them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceConnect {
    /// The application speaks the mesh protocol itself.
    #[serde(skip_serializing_if = "is_default")]
    pub native: bool,
}

/// One instance of a service on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeService {
    #[serde(skip_serializing_if = "is_default")]
    pub kind: ServiceKind,
    /// Unique on the node.
    #[serde(rename = "ID")]
    pub id: Str,
    #[serde(rename = "Service")]
    pub name: Str,
    pub tags: Arc<[Str]>,
    /// Empty: the node's address.
    pub address: Str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<Str, ServiceAddress>,
    #[serde(with = "map_or_null")]
    pub meta: StrMap,
    pub port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub socket_path: Str,
    pub weights: Weights,
    /// The catalog's tags win over the agent's at anti-entropy.
    pub enable_tag_override: bool,
    /// `None` for an instance that is no proxy. The API shows an empty object for it.
    #[serde(
        serialize_with = "proxy_or_default",
        deserialize_with = "proxy_unless_default"
    )]
    pub proxy: Option<Arc<ConnectProxy>>,
    pub connect: ServiceConnect,
    #[serde(skip_serializing_if = "is_default")]
    pub locality: Option<serde_json::Value>,
    pub create_index: u64,
    pub modify_index: u64,
}

fn proxy_or_default<S: Serializer>(
    proxy: &Option<Arc<ConnectProxy>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match proxy {
        Some(proxy) => proxy.serialize(serializer),
        None => ConnectProxy::default().serialize(serializer),
    }
}

fn proxy_unless_default<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Arc<ConnectProxy>>, D::Error> {
    let proxy = Option::<ConnectProxy>::deserialize(deserializer)?;
    Ok(proxy
        .filter(|proxy| *proxy != ConnectProxy::default())
        .map(Arc::new))
}

impl NodeService {
    /// Whether `other` says the same, indexes aside.
    pub fn is_same(&self, other: &NodeService) -> bool {
        self.kind == other.kind
            && self.id == other.id
            && self.name == other.name
            && self.tags == other.tags
            && self.address == other.address
            && self.tagged_addresses == other.tagged_addresses
            && self.meta == other.meta
            && self.port == other.port
            && self.socket_path == other.socket_path
            && self.weights == other.weights
            && self.enable_tag_override == other.enable_tag_override
            && self.proxy == other.proxy
            && self.connect == other.connect
            && self.locality == other.locality
    }

    /// Whether the instance carries `tag`, without case, as Consul compares tags.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
    }

    /// The proxy's free-form settings, where this is a proxy.
    pub fn proxy_settings(&self) -> Option<&Settings> {
        self.proxy.as_deref().map(|proxy| &proxy.config)
    }
}
