//! The gRPC server of the agent: registration, proxy configuration, health and reflection.
//!
//! ```text
//! accept -> Gate (connections per client, deadline for the preface, TLS) -> HTTP/2 (streams, pings,
//! message sizes) -> caller by its token -> service -> Feed (batches, patience) -> the client
//! ```
//!
//! Whatever a client does costs a bounded amount: see [`Limits`].

mod auth;
mod feed;
mod health;
mod lease;
mod proxy_configuration;
mod registration;
mod registry;
mod status;
mod transport;
mod watch;
mod watch_set;
mod watching;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;
use wharf_proto::v1::{
    proxy_configuration_server::ProxyConfigurationServer, registry_server::RegistryServer,
};

use self::lease::Leases;
pub(crate) use self::{
    feed::FeedStream,
    transport::{Bounds, ConnectionCount, Counted, Gate},
    watch_set::WatchSet,
    watching::Watching,
};
use crate::{
    authz::Authorizer, cluster::Cluster, context::NodeInfo, local::LocalState, rates::Rates,
    tls::ServerTls,
};

/// What the services work with.
#[derive(Clone, Debug)]
pub struct GrpcContext {
    pub cluster: Arc<dyn Cluster>,
    pub local: LocalState,
    pub authorizer: Arc<dyn Authorizer>,
    pub node: NodeInfo,
    pub limits: Limits,
    /// How many requests a second are served, over HTTP and gRPC together.
    pub rates: Rates,
}

/// What one client can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections from one address.
    pub connections_per_client: usize,
    /// Connections from loopback, which all sidecars and applications of this node share.
    pub connections_from_loopback: usize,
    /// Calls and streams at once on one connection.
    pub streams_per_connection: u32,
    /// From accept to HTTP/2, a TLS handshake included.
    pub preface_within: Duration,
    /// How often an HTTP/2 ping looks whether the client is there, and how long it may take to
    /// answer: together the time in which a lease notices that its client is cut off.
    pub ping_every: Duration,
    pub ping_within: Duration,
    /// How long a client may leave a stream unread.
    pub patience: Duration,
    /// How long a watch is silent before it tells how far it has seen. It also bounds how long it
    /// holds a frozen state when nothing that it is about changes.
    pub progress_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_per_client: 100,
            connections_from_loopback: 2000,
            streams_per_connection: 256,
            preface_within: Duration::from_secs(10),
            ping_every: Duration::from_secs(10),
            ping_within: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            progress_every: Duration::from_secs(30),
        }
    }
}

/// The longest message that is read. A watch sends no longer one either: the largest value has
/// 512 KiB.
const MAX_MESSAGE: usize = 4 << 20;

/// How long connections may take to end at a shutdown before they are cut.
const GRACE: Duration = Duration::from_secs(2);

/// A bound socket to serve on.
#[derive(Debug)]
pub enum GrpcListener {
    Plain(TcpListener),
    /// The protocol it offers has to be `h2`.
    Tls(TcpListener, Arc<ServerTls>),
    /// Counts as loopback.
    Unix(UnixListener),
}

/// Why the server ended before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("the descriptors of the gRPC services cannot be read: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What the tasks of the services share.
#[derive(Debug)]
struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    patience: Duration,
}

/// Serves until `shutdown`, then ends the streams, lets the connections close, and returns when all
/// of them are.
pub async fn serve(
    listeners: Vec<GrpcListener>,
    context: GrpcContext,
    shutdown: CancellationToken,
) -> Result<(), GrpcError> {
    // However this ends, also by being dropped, the tasks and connections end with it.
    let shutdown = shutdown.child_token();
    let cut = CancellationToken::new();
    let _ended = (shutdown.clone().drop_guard(), cut.clone().drop_guard());
    let context = Arc::new(context);
    let limits = &context.limits;
    let tasks = Arc::new(Tasks {
        tracker: TaskTracker::new(),
        shutdown: shutdown.clone(),
        patience: limits.patience,
    });
    let gate = Gate::new(
        Bounds {
            per_client: limits.connections_per_client,
            per_loopback: limits.connections_from_loopback,
            preface_within: limits.preface_within,
        },
        cut.clone(),
    );
    let incoming = stream::select_all(
        listeners
            .into_iter()
            .map(|listener| gate.clone().accept(listener).boxed()),
    );

    let health = health::Service {
        cluster: context.cluster.clone(),
        tasks: tasks.clone(),
    };
    let leases = Leases::new(context.local.clone());
    tasks.tracker.spawn(leases.clone().keep(shutdown.clone()));
    let registry = registry::Service {
        context: context.clone(),
        tasks: tasks.clone(),
        leases,
        watching: Watching::of(context.clone(), tasks.clone()),
    };
    let proxies = proxy_configuration::Service {
        context: context.clone(),
        tasks: tasks.clone(),
    };
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_keepalive_interval(Some(limits.ping_every))
        .http2_keepalive_timeout(Some(limits.ping_within))
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(RegistryServer::new(registry).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ProxyConfigurationServer::new(proxies).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended?,
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        } => {
            cut.cancel();
            server.await?;
        }
    }
    tasks.tracker.close();
    tasks.tracker.wait().await;
    Ok(())
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wharf_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // What the details of an error are made of, so that a generic client can show them.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
