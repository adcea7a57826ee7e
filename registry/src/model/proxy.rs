use serde::{Deserialize, Serialize};

use super::{Settings, Str, is_default};

/// How a proxy instance is set up (`Proxy` of a registration).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConnectProxy {
    /// The service this proxy speaks for.
    #[serde(skip_serializing_if = "is_default")]
    pub destination_service_name: Str,
    /// The instance this proxy stands beside; empty when it serves any instance of the name.
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "is_default")]
    pub destination_service_id: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_address: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_socket_path: Str,
    pub mode: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub transparent_proxy: TransparentProxy,
    #[serde(skip_serializing_if = "is_default")]
    pub config: Settings,
    #[serde(skip_serializing_if = "is_default")]
    pub upstreams: Vec<Upstream>,
    pub mesh_gateway: MeshGateway,
    pub expose: ExposeConfig,
}

/// A service that a proxy reaches for its application, on a local port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Upstream {
    /// `service` (also when empty) or `prepared_query`.
    pub destination_type: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub destination_namespace: Str,
    pub destination_name: Str,
    pub datacenter: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_address: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub config: Settings,
    pub mesh_gateway: MeshGateway,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MeshGateway {
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TransparentProxy {
    #[serde(skip_serializing_if = "is_default")]
    pub outbound_listener_port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub dialed_directly: bool,
}

/// Paths of the application that stay reachable without the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposeConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub checks: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub paths: Vec<ExposePath>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposePath {
    #[serde(skip_serializing_if = "is_default")]
    pub listener_port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub path: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub local_path_port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Str,
}
