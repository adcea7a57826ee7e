//! What is registered: instances and checks, in the form the agent works with.
//!
//! Definitions from files and requests convert into these; files under `data_dir` hold them.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;
use wharf_registry::model::{CheckStatus, HealthCheck, NodeService, Str};

use crate::authz::Token;

/// The check that takes a node out of service.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// The check that says whether the node itself is there.
pub const SERF_HEALTH: &str = "serfHealth";
/// The service that the servers of a cluster are instances of.
pub const SERVER_SERVICE: &str = "consul";

/// [`SERF_HEALTH`] of a node, in Consul's words.
pub fn serf_health(node: &Str, alive: bool) -> HealthCheck {
    let (status, output) = match alive {
        true => (CheckStatus::Passing, "Agent alive and reachable"),
        false => (CheckStatus::Critical, "Agent not live or unreachable"),
    };
    HealthCheck {
        node: node.clone(),
        id: SERF_HEALTH.into(),
        name: "Serf Health Status".into(),
        status,
        output: output.into(),
        ..HealthCheck::default()
    }
}

/// The id of the check that takes one instance out of service.
pub fn service_maintenance(service_id: &str) -> Str {
    format!("_service_maintenance:{service_id}").into()
}

/// Who registered something, and with that how long it stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// A configuration file. Belongs to the set that a reload replaces; not written to disk.
    Config,
    /// A request. Stays until it is deregistered, over restarts too.
    #[default]
    Api,
    /// An open stream. Ends with it; not written to disk.
    Lease,
    /// An allocation of this node. Ends with it; kept by the platform.
    Platform,
}

/// An instance to register, with all that belongs to it. Ids and names are set.
#[derive(Debug, Default)]
pub struct Registration {
    pub service: NodeService,
    pub checks: Vec<CheckSpec>,
    pub sidecar: Option<SidecarRequest>,
    pub token: Option<Token>,
    pub source: Source,
    /// Removes the checks of an earlier registration that are not among `checks`.
    pub replace_existing_checks: bool,
}

/// A proxy to register beside an instance, as soon as its port is known.
pub struct SidecarRequest {
    /// The id of the proxy's own instance.
    pub id: Str,
    /// The port it asks for; 0: any free one of the agent's range.
    pub port: u16,
    /// Its registration when it listens on this port.
    pub build: Box<dyn FnOnce(u16) -> Registration + Send>,
}

impl fmt::Debug for SidecarRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SidecarRequest")
            .field("id", &self.id)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A check to register.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckSpec {
    /// Unique on the node.
    pub id: Str,
    pub name: Str,
    pub notes: Str,
    /// Empty: the check speaks for the whole node.
    pub service_id: Str,
    pub kind: CheckKind,
    /// How often it runs; what is under a second counts as one.
    pub interval: Duration,
    /// Zero: the default of the kind.
    pub timeout: Duration,
    pub thresholds: Thresholds,
    /// After how long in critical state its instance is deregistered. Zero: never.
    pub deregister_after: Duration,
    /// The status until the first result. `None`: critical.
    pub status: Option<CheckStatus>,
    /// The most output that is kept, in bytes. Zero: the agent's limit.
    pub output_max_size: usize,
    #[serde(with = "token_text", skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// Only what came in by the API is ever written.
    #[serde(skip)]
    pub source: Source,
    /// Runs at once when it is registered, and again soon until it has passed: somebody waits for it. Others begin
    /// after a random part of their interval.
    #[serde(skip)]
    pub eager: bool,
}

impl Default for CheckSpec {
    fn default() -> Self {
        CheckSpec {
            id: Str::default(),
            name: Str::default(),
            notes: Str::default(),
            service_id: Str::default(),
            kind: CheckKind::Lease,
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            thresholds: Thresholds::default(),
            deregister_after: Duration::ZERO,
            status: None,
            output_max_size: 0,
            token: None,
            source: Source::default(),
            eager: false,
        }
    }
}

/// How many results in a row it takes to change the status; 0 and 1 both mean the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thresholds {
    pub success_before_passing: u32,
    /// `None`: as many as for critical, so that there is no warning on the way.
    pub failures_before_warning: Option<u32>,
    pub failures_before_critical: u32,
}

/// How a check comes to its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The service reports; silence for this long is critical.
    Ttl(Duration),
    Http(Box<HttpCheck>),
    Tcp {
        address: Str,
        tls: Option<CheckTls>,
    },
    Udp {
        address: Str,
    },
    Grpc {
        /// `host:port`
        address: Str,
        /// The service within that server; empty: the server itself.
        service: Str,
        tls: Option<CheckTls>,
    },
    H2Ping {
        address: Str,
        tls: Option<CheckTls>,
    },
    Script {
        args: Vec<Str>,
    },
    /// Says what the checks of another instance, or of a node, say.
    Alias {
        /// Empty: this node.
        node: Str,
        /// The id of an instance; empty: the checks of the node itself.
        service: Str,
    },
    /// An open stream stands for the instance.
    Lease,
    /// The launcher says whether the tasks behind the instance run.
    Tasks,
    /// An operator took the node or instance out of service.
    Maintenance,
}

impl CheckKind {
    /// The `Type` of the check in the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            CheckKind::Ttl(_) => "ttl",
            CheckKind::Http(_) => "http",
            CheckKind::Tcp { .. } => "tcp",
            CheckKind::Udp { .. } => "udp",
            CheckKind::Grpc { .. } => "grpc",
            CheckKind::H2Ping { .. } => "h2ping",
            CheckKind::Script { .. } => "script",
            CheckKind::Alias { .. } => "alias",
            CheckKind::Lease => "lease",
            CheckKind::Tasks => "tasks",
            CheckKind::Maintenance => "maintenance",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpCheck {
    pub url: Str,
    /// Empty: GET.
    pub method: Str,
    pub headers: BTreeMap<Str, Vec<Str>>,
    pub body: Str,
    pub disable_redirects: bool,
    /// For `https` URLs.
    pub tls: CheckTls,
}

/// How a check speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckTls {
    /// Empty: the host that is called.
    pub server_name: Str,
    pub skip_verify: bool,
}

impl CheckSpec {
    /// The check as the API and the catalog show it, before any result.
    pub(super) fn health_check(&self, node: &Str) -> HealthCheck {
        HealthCheck {
            node: node.clone(),
            id: self.id.clone(),
            name: self.name.clone(),
            status: self.status.unwrap_or(CheckStatus::Critical),
            notes: self.notes.clone(),
            service_id: self.service_id.clone(),
            kind: self.kind.as_str().into(),
            interval: GoDuration::from(self.interval).to_string().into(),
            timeout: GoDuration::from(self.timeout).to_string().into(),
            ..HealthCheck::default()
        }
    }
}

mod token_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::authz::Token;

    pub(super) fn serialize<S: Serializer>(
        token: &Option<Token>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(token.as_ref().map_or("", Token::secret))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Token>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Token::new(&text))
    }
}
