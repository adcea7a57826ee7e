use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ExposeConfig, MeshGateway, Settings, Str, StrMap, TransparentProxy, is_default};

/// The kinds of configuration entries that are built. The mesh brings the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConfigEntryKind {
    #[serde(rename = "proxy-defaults")]
    ProxyDefaults,
    #[serde(rename = "service-defaults")]
    ServiceDefaults,
}

/// A kind of configuration entry that does not exist, or is not built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownKind {
    #[error("invalid config entry kind: {0}")]
    Invalid(String),
    #[error(
        "config entries of kind {0:?} are not built yet: only service-defaults and proxy-defaults are"
    )]
    NotBuilt(String),
}

impl ConfigEntryKind {
    pub const ALL: [ConfigEntryKind; 2] = [
        ConfigEntryKind::ProxyDefaults,
        ConfigEntryKind::ServiceDefaults,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ConfigEntryKind::ProxyDefaults => "proxy-defaults",
            ConfigEntryKind::ServiceDefaults => "service-defaults",
        }
    }
}

impl fmt::Display for ConfigEntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kinds that Consul has and wharf does not have yet.
const LATER: [&str; 16] = [
    "service-router",
    "service-splitter",
    "service-resolver",
    "service-intentions",
    "ingress-gateway",
    "terminating-gateway",
    "mesh",
    "exported-services",
    "sameness-group",
    "api-gateway",
    "bound-api-gateway",
    "inline-certificate",
    "file-system-certificate",
    "http-route",
    "tcp-route",
    "jwt-provider",
];

impl FromStr for ConfigEntryKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        match text {
            "proxy-defaults" => Ok(ConfigEntryKind::ProxyDefaults),
            "service-defaults" => Ok(ConfigEntryKind::ServiceDefaults),
            other if LATER.contains(&other) => Err(UnknownKind::NotBuilt(other.to_owned())),
            other => Err(UnknownKind::Invalid(other.to_owned())),
        }
    }
}

/// Cluster-wide configuration of a service, or of every proxy.
///
/// Stored with its variant as a tag; the API shows [`ConfigEntry::to_json`], where `Kind` is a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ConfigEntry {
    ServiceDefaults(Box<ServiceDefaults>),
    ProxyDefaults(Box<ProxyDefaults>),
}

impl ConfigEntry {
    pub fn kind(&self) -> ConfigEntryKind {
        match self {
            ConfigEntry::ServiceDefaults(_) => ConfigEntryKind::ServiceDefaults,
            ConfigEntry::ProxyDefaults(_) => ConfigEntryKind::ProxyDefaults,
        }
    }

    pub fn name(&self) -> &Str {
        match self {
            ConfigEntry::ServiceDefaults(entry) => &entry.name,
            ConfigEntry::ProxyDefaults(entry) => &entry.name,
        }
    }

    /// The entry as the API shows it.
    pub fn to_json(&self) -> Value {
        let json = match self {
            ConfigEntry::ServiceDefaults(entry) => serde_json::to_value(entry),
            ConfigEntry::ProxyDefaults(entry) => serde_json::to_value(entry),
        };
        json.unwrap_or_default()
    }

    /// (create index, modify index)
    pub fn indexes(&self) -> (u64, u64) {
        match self {
            ConfigEntry::ServiceDefaults(entry) => (entry.create_index, entry.modify_index),
            ConfigEntry::ProxyDefaults(entry) => (entry.create_index, entry.modify_index),
        }
    }

    pub fn set_indexes(&mut self, create: u64, modify: u64) {
        match self {
            ConfigEntry::ServiceDefaults(entry) => {
                (entry.create_index, entry.modify_index) = (create, modify);
            }
            ConfigEntry::ProxyDefaults(entry) => {
                (entry.create_index, entry.modify_index) = (create, modify);
            }
        }
    }
}

/// How every instance of one service is spoken to, and what its clients assume of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceDefaults {
    pub kind: Str,
    pub name: Str,
    /// `tcp` (when empty), `http`, `http2` or `grpc`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Str,
    pub transparent_proxy: TransparentProxy,
    #[serde(rename = "MutualTLSMode", skip_serializing_if = "is_default")]
    pub mutual_tls_mode: Str,
    pub mesh_gateway: MeshGateway,
    pub expose: ExposeConfig,
    #[serde(rename = "ExternalSNI", skip_serializing_if = "is_default")]
    pub external_sni: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub upstream_config: Option<UpstreamOverrides>,
    #[serde(skip_serializing_if = "is_default")]
    pub destination: Option<Destination>,
    #[serde(skip_serializing_if = "is_default")]
    pub max_inbound_connections: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub local_connect_timeout_ms: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub local_request_timeout_ms: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub balance_inbound_connections: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub rate_limits: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub envoy_extensions: Vec<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub meta: StrMap,
    pub create_index: u64,
    pub modify_index: u64,
}

/// Settings towards upstreams: for all of them, then for named ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpstreamOverrides {
    #[serde(skip_serializing_if = "is_default")]
    pub overrides: Vec<UpstreamSettings>,
    #[serde(skip_serializing_if = "is_default")]
    pub defaults: Option<UpstreamSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpstreamSettings {
    #[serde(skip_serializing_if = "is_default")]
    pub name: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub connect_timeout_ms: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub passive_health_check: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub mesh_gateway: MeshGateway,
    #[serde(skip_serializing_if = "is_default")]
    pub balance_outbound_connections: Str,
}

/// A service outside the mesh, by address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Destination {
    pub addresses: Vec<Str>,
    pub port: u16,
}

/// What holds for every proxy. There is one entry, named `global`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProxyDefaults {
    pub kind: Str,
    pub name: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub config: Settings,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Str,
    pub transparent_proxy: TransparentProxy,
    #[serde(rename = "MutualTLSMode", skip_serializing_if = "is_default")]
    pub mutual_tls_mode: Str,
    pub mesh_gateway: MeshGateway,
    pub expose: ExposeConfig,
    #[serde(skip_serializing_if = "is_default")]
    pub access_logs: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub envoy_extensions: Vec<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub failover_policy: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub prioritize_by_locality: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub meta: StrMap,
    pub create_index: u64,
    pub modify_index: u64,
}
