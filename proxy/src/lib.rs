//! The data plane of wharf: the proxy that runs beside a service instance.
//!
//! It takes its configuration as a stream of snapshots and deltas from the agent (`wharf.v1.ProxyConfiguration`),
//! knows nothing else of the platform, and keeps serving its last configuration while the agent is away.

#![forbid(unsafe_code)]

mod admin;
mod balance;
mod binder;
mod config;
mod control;
mod drain;
mod http;
mod metrics;
mod notify;
mod source;
mod tcp;
#[cfg(test)]
mod tests;
mod tuning;
mod worker;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::tuning::Tuning;

/// What one proxy process is, and where it finds its agent.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// The agent's gRPC address: `host:port`, or `unix:///path` of a socket.
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
    /// Where to say that the proxy is ready, as `NOTIFY_SOCKET` has it (sd_notify(3)): the path of a datagram socket,
    /// or `@` and an abstract name. Whoever waits there learns in time what cannot work: a proxy that cannot have all
    /// ports of its first configuration then ends with an error, instead of trying again.
    pub notify: Option<String>,
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
    #[error("the agent's gRPC address {0:?} is neither host:port nor unix:///path")]
    AgentAddress(String),
    #[error("the token holds characters that a header cannot carry")]
    Token,
    #[error("cannot listen on the admin address {address}: {source}")]
    Admin {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot say that the proxy is ready at {address:?} (NOTIFY_SOCKET): {source}")]
    Notify {
        address: String,
        source: std::io::Error,
    },
    #[error("the listener {listener} cannot have {address}: {reason}")]
    Listen {
        listener: String,
        address: SocketAddr,
        reason: String,
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
    raise_file_limit();
    let start = |source| ProxyError::Start {
        what: "runtime",
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(start)?;
    runtime.block_on(async {
        let (stop, stopped) = mpsc::channel(1);
        let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
        let signals = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                // When the proxy has ended, so does this.
                if stop.send(()).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            ended = control::run(options, Tuning::default(), stopped) => ended,
            () = signals => Ok(()),
        }
    })
}

/// Each proxied connection takes two descriptors; the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(error = %io::Error::from(error), "cannot raise the limit of open files");
        }
    }
}
