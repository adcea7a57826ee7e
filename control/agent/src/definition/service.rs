//! Service definitions.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;
use wharf_registry::model::{
    ConnectProxy, NodeService, ServiceAddress, ServiceConnect, ServiceKind, Str, StrMap, Weights,
};

use super::{
    CheckDefinition, CheckError, InvalidMeta, Origin, ScriptPolicy, ServiceCheck, dns_warning,
    is_default, validate_meta,
};
use crate::config::Secret;

/// A service as it is registered (`AgentServiceRegistration` of Consul's API).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceDefinition {
    #[serde(skip_serializing_if = "is_default")]
    pub kind: ServiceKind,
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: Str,
    pub name: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<Str>,
    #[serde(skip_serializing_if = "is_default")]
    pub port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub address: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub socket_path: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub tagged_addresses: BTreeMap<Str, ServiceAddress>,
    #[serde(skip_serializing_if = "is_default")]
    pub enable_tag_override: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub meta: StrMap,
    #[serde(skip_serializing_if = "is_default")]
    pub weights: Option<WeightsDefinition>,
    #[serde(skip_serializing_if = "is_default")]
    pub check: Option<Box<CheckDefinition>>,
    #[serde(skip_serializing_if = "is_default")]
    pub checks: Vec<CheckDefinition>,
    #[serde(skip_serializing_if = "is_default")]
    pub proxy: Option<ConnectProxy>,
    #[serde(skip_serializing_if = "is_default")]
    pub connect: Option<ConnectDefinition>,
    #[serde(skip_serializing_if = "is_default")]
    pub locality: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub token: Secret,
    /// Enterprise names. Anything but `default` is refused.
    #[serde(skip_serializing_if = "is_default")]
    pub namespace: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub partition: Str,
}

/// Weights as given; see [`ServiceDefinition::weights`] for what an absent one means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightsDefinition {
    pub passing: Option<i64>,
    pub warning: Option<i64>,
}

/// The mesh side of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConnectDefinition {
    /// The application speaks the mesh protocol itself.
    #[serde(skip_serializing_if = "is_default")]
    pub native: bool,
    /// A proxy to register beside the service.
    #[serde(skip_serializing_if = "is_default")]
    pub sidecar_service: Option<Box<SidecarDefinition>>,
}

/// What differs from the default in a service's sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SidecarDefinition {
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub name: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<Str>,
    #[serde(skip_serializing_if = "is_default")]
    pub port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub address: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub tagged_addresses: BTreeMap<Str, ServiceAddress>,
    #[serde(skip_serializing_if = "is_default")]
    pub enable_tag_override: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub meta: StrMap,
    #[serde(skip_serializing_if = "is_default")]
    pub weights: Option<WeightsDefinition>,
    #[serde(skip_serializing_if = "is_default")]
    pub check: Option<Box<CheckDefinition>>,
    #[serde(skip_serializing_if = "is_default")]
    pub checks: Vec<CheckDefinition>,
    #[serde(skip_serializing_if = "is_default")]
    pub proxy: Option<ConnectProxy>,
    #[serde(skip_serializing_if = "is_default")]
    pub locality: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub token: Secret,
    /// Only here to be refused.
    #[serde(skip_serializing_if = "is_default")]
    pub connect: Option<Box<ConnectDefinition>>,
}

/// Why a service is refused, in the words of Consul's API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    #[error("Missing service name")]
    MissingName,
    #[error("Invalid service address")]
    Address,
    #[error("Invalid Service Meta: {0}")]
    Meta(#[from] InvalidMeta),
    #[error("Invalid Weights: {0}")]
    Weights(&'static str),
    #[error("Invalid check: {0}")]
    Check(#[from] CheckError),
    #[error("Proxy.DestinationServiceName must be non-empty for Connect proxy services")]
    NoDestination,
    #[error("Proxy.DestinationServiceName must not be a wildcard for Connect proxy services")]
    WildcardDestination,
    #[error("Port or SocketPath must be set for a Connect proxy")]
    NoProxyPort,
    #[error("A Proxy cannot also be Connect Native, only typical services")]
    NativeProxy,
    #[error("upstreams[{index}]: {problem}")]
    Upstream {
        index: usize,
        problem: UpstreamError,
    },
    #[error("SidecarService can't have an ID specified")]
    SidecarId,
    #[error("SidecarService can't have a nested SidecarService")]
    NestedSidecar,
    #[error("Invalid {field}: {name:?}: namespaces and partitions are a Consul Enterprise feature")]
    Enterprise { field: &'static str, name: Str },
}

/// Why one upstream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    #[error("unknown upstream destination type: {0:?}")]
    DestinationType(Str),
    #[error("upstream destination name cannot be empty")]
    NoName,
    #[error("upstream destination name cannot be a wildcard")]
    Wildcard,
    #[error("upstream local bind port or local socket path must be defined and nonzero")]
    NoPort,
    #[error(
        "upstreams cannot contain duplicates by local bind address and port: {0} is specified twice"
    )]
    Duplicate(String),
}

impl ServiceDefinition {
    /// The id of the instance: its own, or the name of the service.
    pub fn id(&self) -> &Str {
        if self.id.is_empty() {
            &self.name
        } else {
            &self.id
        }
    }

    /// The weights of the instance. An absent weight is 1 in a file; in a request, as in Go, it is 0 once the
    /// other one is given.
    pub fn weights(&self, origin: Origin) -> Weights {
        let Some(weights) = self.weights else {
            return Weights::default();
        };
        let or_default = |weight: Option<i64>| {
            let absent = if origin == Origin::File { 1 } else { 0 };
            u32::try_from(weight.unwrap_or(absent)).unwrap_or_default()
        };
        Weights {
            passing: or_default(weights.passing),
            warning: or_default(weights.warning),
        }
    }

    /// Every check of the service, with the ids and names that those without any get.
    pub fn service_checks(&self) -> Vec<ServiceCheck> {
        let all: Vec<&CheckDefinition> = self
            .check
            .as_deref()
            .into_iter()
            .chain(&self.checks)
            .collect();
        let several = all.len() > 1;
        let with_id = |(index, definition): (usize, &CheckDefinition)| {
            let id = match definition.id() {
                id if !id.is_empty() => id.clone(),
                _ if several => format!("service:{}:{}", self.id(), index + 1).into(),
                _ => format!("service:{}", self.id()).into(),
            };
            let name = match &definition.name {
                name if !name.is_empty() => name.clone(),
                _ => format!("Service '{}' check", self.name).into(),
            };
            let mut definition = definition.clone();
            definition.service_id = self.id().clone();
            ServiceCheck {
                id,
                name,
                definition,
            }
        };
        all.into_iter().enumerate().map(with_id).collect()
    }

    /// Whether this agent takes the registration.
    pub fn validate(&self, origin: Origin, scripts: ScriptPolicy) -> Result<(), DefinitionError> {
        if self.name.is_empty() {
            return Err(DefinitionError::MissingName);
        }
        for (field, name) in [
            ("Namespace", &self.namespace),
            ("Partition", &self.partition),
        ] {
            if !name.is_empty() && !name.eq_ignore_ascii_case("default") {
                return Err(DefinitionError::Enterprise {
                    field,
                    name: name.clone(),
                });
            }
        }
        let addresses = self.tagged_addresses.values().map(|tagged| &tagged.address);
        if std::iter::once(&self.address)
            .chain(addresses)
            .any(|address| is_unspecified(address))
        {
            return Err(DefinitionError::Address);
        }
        validate_meta(&self.meta)?;
        validate_weights(self.weights, origin)?;
        for check in self.check.as_deref().into_iter().chain(&self.checks) {
            check.validate(origin, scripts)?;
        }
        if self.kind == ServiceKind::ConnectProxy {
            self.validate_proxy()?;
        }
        if let Some(sidecar) = self
            .connect
            .as_ref()
            .and_then(|connect| connect.sidecar_service.as_deref())
        {
            if !sidecar.id.is_empty() {
                return Err(DefinitionError::SidecarId);
            }
            if sidecar
                .connect
                .as_ref()
                .is_some_and(|connect| connect.sidecar_service.is_some())
            {
                return Err(DefinitionError::NestedSidecar);
            }
            // The port comes later; any other one stands for it.
            self.sidecar(sidecar.port.max(1))
                .map_or(Ok(()), |sidecar| sidecar.validate(origin, scripts))?;
        }
        Ok(())
    }

    fn validate_proxy(&self) -> Result<(), DefinitionError> {
        let unset = ConnectProxy::default();
        let proxy = self.proxy.as_ref().unwrap_or(&unset);
        if proxy.destination_service_name.is_empty() {
            return Err(DefinitionError::NoDestination);
        }
        if &*proxy.destination_service_name == "*" {
            return Err(DefinitionError::WildcardDestination);
        }
        if self.port == 0 && self.socket_path.is_empty() {
            return Err(DefinitionError::NoProxyPort);
        }
        if self.connect.as_ref().is_some_and(|connect| connect.native) {
            return Err(DefinitionError::NativeProxy);
        }
        let mut binds = HashSet::new();
        for (index, upstream) in proxy.upstreams.iter().enumerate() {
            let name = &*upstream.destination_name;
            let address = match &*upstream.local_bind_address {
                "" => "127.0.0.1",
                address => address,
            };
            let problem = match &*upstream.destination_type {
                "" | "service" | "prepared_query" if name.is_empty() => UpstreamError::NoName,
                "" | "service" | "prepared_query" if name == "*" => UpstreamError::Wildcard,
                // Under transparent proxying an upstream only carries settings.
                "" | "service" | "prepared_query" if upstream.local_bind_port == 0 => {
                    if &*proxy.mode == "transparent" {
                        continue;
                    }
                    UpstreamError::NoPort
                }
                "" | "service" | "prepared_query" => {
                    if binds.insert((address, upstream.local_bind_port)) {
                        continue;
                    }
                    UpstreamError::Duplicate(format!("{address}:{}", upstream.local_bind_port))
                }
                _ => UpstreamError::DestinationType(upstream.destination_type.clone()),
            };
            return Err(DefinitionError::Upstream { index, problem });
        }
        Ok(())
    }

    /// What to warn about in a registration that is accepted.
    pub fn warnings(&self) -> Vec<String> {
        let name = dns_warning("Service name", &self.name);
        let tags = self
            .tags
            .iter()
            .filter_map(|tag| dns_warning("Service tag", tag));
        name.into_iter().chain(tags).collect()
    }

    /// The instance as the catalog keeps it.
    pub fn to_node_service(&self, origin: Origin) -> NodeService {
        NodeService {
            kind: self.kind,
            id: self.id().clone(),
            name: self.name.clone(),
            tags: self.tags.as_slice().into(),
            address: self.address.clone(),
            tagged_addresses: self.tagged_addresses.clone(),
            meta: self.meta.clone(),
            port: self.port,
            socket_path: self.socket_path.clone(),
            weights: self.weights(origin),
            enable_tag_override: self.enable_tag_override,
            proxy: self.proxy.clone().map(Arc::new),
            connect: ServiceConnect {
                native: self.connect.as_ref().is_some_and(|connect| connect.native),
            },
            locality: self.locality.clone(),
            ..NodeService::default()
        }
    }

    /// The port that the sidecar of this service asks for; `Some(0)`: any free one; `None`: there is no sidecar.
    pub fn sidecar_port(&self) -> Option<u16> {
        Some(self.connect.as_ref()?.sidecar_service.as_deref()?.port)
    }

    /// The registration of this service's sidecar, which listens on `port`; `None` if it asks for no sidecar.
    ///
    /// Defaults, as in Consul: named after the service, with its tags and metadata unless it has its own, checked
    /// by a connection to its port and by the service's own health.
    pub fn sidecar(&self, port: u16) -> Option<ServiceDefinition> {
        let sidecar = self.connect.as_ref()?.sidecar_service.as_deref()?;
        let mut proxy = sidecar.proxy.clone().unwrap_or_default();
        if proxy.destination_service_name.is_empty() {
            proxy.destination_service_name = self.name.clone();
        }
        if proxy.destination_service_id.is_empty() {
            proxy.destination_service_id = self.id().clone();
        }
        if proxy.local_service_port == 0 && proxy.local_service_socket_path.is_empty() {
            proxy.local_service_port = self.port;
            proxy.local_service_socket_path = self.socket_path.clone();
        }
        if proxy.local_service_address.is_empty() && proxy.local_service_socket_path.is_empty() {
            proxy.local_service_address = "127.0.0.1".into();
        }
        let mut checks = sidecar.checks.clone();
        if sidecar.check.is_none() && checks.is_empty() {
            let host = if sidecar.address.is_empty() {
                "127.0.0.1"
            } else {
                &sidecar.address
            };
            checks = vec![
                CheckDefinition {
                    name: "Connect Sidecar Listening".into(),
                    tcp: match host.parse() {
                        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
                        _ => format!("{host}:{port}"),
                    },
                    interval: GoDuration::from_secs(10),
                    ..CheckDefinition::default()
                },
                CheckDefinition {
                    name: format!("Connect Sidecar Aliasing {}", self.id()).into(),
                    alias_service: self.id().clone(),
                    ..CheckDefinition::default()
                },
            ];
        }
        let or_own = |given: &Str, own: Str| if given.is_empty() { own } else { given.clone() };
        Some(ServiceDefinition {
            kind: ServiceKind::ConnectProxy,
            id: format!("{}-sidecar-proxy", self.id()).into(),
            name: or_own(&sidecar.name, format!("{}-sidecar-proxy", self.name).into()),
            tags: if sidecar.tags.is_empty() {
                self.tags.clone()
            } else {
                sidecar.tags.clone()
            },
            port,
            address: or_own(&sidecar.address, self.address.clone()),
            tagged_addresses: sidecar.tagged_addresses.clone(),
            enable_tag_override: sidecar.enable_tag_override,
            meta: if sidecar.meta.is_empty() {
                self.meta.clone()
            } else {
                sidecar.meta.clone()
            },
            weights: sidecar.weights.or(self.weights),
            check: sidecar.check.clone(),
            checks,
            proxy: Some(proxy),
            locality: sidecar.locality.clone().or_else(|| self.locality.clone()),
            token: if sidecar.token.is_empty() {
                self.token.clone()
            } else {
                sidecar.token.clone()
            },
            ..ServiceDefinition::default()
        })
    }
}

/// Whether an address means "all of this machine", which nobody else can connect to.
fn is_unspecified(address: &str) -> bool {
    let address = address.trim_start_matches('[').trim_end_matches(']');
    address.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified())
}

fn validate_weights(
    weights: Option<WeightsDefinition>,
    origin: Origin,
) -> Result<(), DefinitionError> {
    let Some(WeightsDefinition { passing, warning }) = weights else {
        return Ok(());
    };
    let absent = if origin == Origin::File { 1 } else { 0 };
    let (passing, warning) = (passing.unwrap_or(absent), warning.unwrap_or(absent));
    if passing < 1 {
        return Err(DefinitionError::Weights("Passing must be greater than 0"));
    }
    if warning < 0 {
        return Err(DefinitionError::Weights(
            "Warning must be greater or equal than 0",
        ));
    }
    if passing > 65535 || warning > 65535 {
        return Err(DefinitionError::Weights(
            "DNS Weight must be between 0 and 65535",
        ));
    }
    Ok(())
}
