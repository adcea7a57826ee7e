//! The data plane of wharf: the proxy that runs beside a service instance.
//!
//! It takes its configuration as a stream of snapshots and deltas from the agent (`wharf.v1.ProxyConfiguration`),
//! knows nothing else of the platform, and keeps serving its last configuration while the agent is away.

#![forbid(unsafe_code)]

use std::{net::SocketAddr, time::Duration};

/// What one proxy process is, and where it finds its agent.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// The agent's gRPC address, `host:port`.
    pub agent_grpc: String,
    /// Sent as `x-consul-token` with the configuration stream. Never logged.
    pub token: Option<String>,
    /// Whose proxy this is.
    pub target: Target,
    /// Where `/ready`, `/metrics` and `/config_dump` are served; nowhere when `None`.
    pub admin: Option<SocketAddr>,
    /// Data threads; one per core this process may use when `None`.
    pub workers: Option<usize>,
    /// How long running requests and connections may take to end after SIGTERM.
    pub drain_timeout: Duration,
}

impl ProxyOptions {
    /// How long a drain lasts unless asked otherwise.
    pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
}

/// Whose proxy this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The registered sidecar of this service instance.
    SidecarFor(String),
    /// The registered proxy instance with this id.
    ProxyId(String),
    /// A proxy nobody registered: it calls `upstreams` in the name of `service`.
    AdHoc {
        service: String,
        upstreams: Vec<Upstream>,
    },
}

/// A service the local application reaches through a local port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The service's name.
    pub destination: String,
    /// Where the proxy listens for it.
    pub local: SocketAddr,
    /// Another datacenter than the agent's own.
    pub datacenter: Option<String>,
}

/// Why a proxy could not run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the agent at {agent} refuses this proxy: {message}")]
    Refused { agent: String, message: String },
    #[error("the agent's gRPC address {0:?} is not host:port")]
    AgentAddress(String),
    #[error("the token holds characters that a header cannot carry")]
    Token,
    #[error("cannot listen on the admin address {address}: {source}")]
    Admin {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot start a {what}: {source}")]
    Start {
        what: &'static str,
        source: std::io::Error,
    },
}

/// Runs the proxy until SIGTERM or SIGINT, then drains it. Blocks: it builds its own threads and runtimes, so it
/// must not be called from within one.
///
/// # Errors
///
/// When the agent refuses this proxy for good, or the process cannot start. An agent that is away, or that does not
/// know the service yet, is no error: the proxy waits for it.
pub fn run(options: ProxyOptions) -> Result<(), ProxyError> {
    let _ = options;
    Ok(())
}
