//! The platform as an agent serves it: jobs become allocations, allocations become processes.
//!
//! [`scheduling`] is the leader's half: it watches jobs, allocations and nodes, and writes plans. [`Platform`] is the
//! node's: what it needs before anything runs here.

mod abandoned;
mod dirs;
pub mod health;
pub mod images;
mod node;
pub mod scheduling;
pub mod services;
mod summary;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::net::{TcpListener, UdpSocket, UnixListener};
use wharf_launcher::network::{Network, NetworkConfig, NetworkError};
use wharf_registry::model::platform::UnixNanos;

pub(crate) use self::node::{IdleNode, NodeLoop};
pub use self::{
    dirs::{Dirs, DirsError},
    summary::{GroupSummary, JobStatus, JobSummary},
};
use self::{images::Images, services::NodeServices};
use crate::{cluster::Cluster, config::RuntimeConfig, local::LocalState, sockets};

/// Why this node runs nothing. The agent serves the rest.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("it is switched off (platform {{ enabled = false }})")]
    Disabled,
    #[error("containers need root: start the agent as root")]
    NoRoot,
    #[error(transparent)]
    Dirs(#[from] DirsError),
    #[error("cannot listen on {path} for its sidecars: {source}")]
    Socket { path: PathBuf, source: io::Error },
}

/// This node as a place for allocations.
#[derive(Debug)]
pub struct Platform {
    pub dirs: Dirs,
    pub images: Images,
    /// The bridge; or why allocations can only have the node's own network.
    pub network: Result<Network, NetworkError>,
    pub services: Arc<NodeServices>,
}

/// Sockets that the agent's servers serve for the platform.
#[derive(Debug, Default)]
pub(crate) struct PlatformSockets {
    /// `<run>/agent.sock`: gRPC for sidecars, which have networks of their own.
    pub(crate) grpc: Option<UnixListener>,
    /// DNS at the gateway of the bridge, UDP and TCP.
    pub(crate) dns: Option<(UdpSocket, TcpListener)>,
}

impl Platform {
    /// Prepares the node: directories, sockets, the choice of a bridge. Runs nothing yet.
    pub(crate) fn open(
        config: &RuntimeConfig,
        local: LocalState,
        cluster: Arc<dyn Cluster>,
    ) -> Result<(Platform, PlatformSockets), PlatformError> {
        if !config.platform.enabled {
            return Err(PlatformError::Disabled);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(PlatformError::NoRoot);
        }
        let dirs = Dirs::open(config.data_dir.as_deref())?;
        let path = dirs.agent_socket();
        let grpc = sockets::unix(&path, Some(0o600))
            .map_err(|source| PlatformError::Socket { path, source })?;
        let network = Network::open(&NetworkConfig {
            bridge: config.platform.bridge.clone(),
            subnet: config.platform.subnet,
            state_dir: dirs.state().to_owned(),
            run_dir: dirs.run().to_owned(),
            claims_dir: NetworkConfig::CLAIMS_DIR.into(),
        });
        let mut dns = None;
        match &network {
            Ok(network) => dns = gateway_dns(network.gateway()),
            Err(error) => tracing::warn!(%error, "allocations cannot have networks of their own"),
        }
        let services = NodeServices::new(local, cluster, dirs.allocs());
        let insecure_registries = config.platform.insecure_registries.clone();
        let platform = Platform {
            images: Images::open(&dirs.images(), insecure_registries),
            dirs,
            network,
            services: Arc::new(services),
        };
        let grpc = Some(grpc);
        Ok((platform, PlatformSockets { grpc, dns }))
    }
}

impl Platform {
    /// The task that keeps this node as the state wants it.
    pub(crate) fn node_loop(
        &self,
        config: &RuntimeConfig,
        node_id: &str,
        cluster: Arc<dyn Cluster>,
    ) -> NodeLoop {
        let network = self.network.as_ref();
        NodeLoop::new(
            cluster,
            node::Parts {
                id: node_id.to_owned(),
                name: config.node_name.clone(),
                address: config.advertise_addr,
                state: self.dirs.state().to_owned(),
                allocs: self.dirs.allocs(),
                run: self.dirs.run().to_owned(),
                network: network.cloned().map_err(ToString::to_string),
                images: self.images.clone(),
                services: self.services.clone(),
                domain: config.domain.clone(),
                temporary: config.data_dir.is_none(),
            },
        )
    }
}

/// Where allocations ask for names. The address comes and goes with the bridge; the sockets do not mind.
fn gateway_dns(gateway: Ipv4Addr) -> Option<(UdpSocket, TcpListener)> {
    let address = SocketAddr::from((gateway, 53));
    match sockets::dns_anywhere(address) {
        Ok(sockets) => Some(sockets),
        Err(error) => {
            tracing::warn!(%address, %error, "allocations cannot ask this agent for names");
            None
        }
    }
}

/// The time that goes into commands.
pub fn unix_now() -> UnixNanos {
    // A clock before 1970 is no clock.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
