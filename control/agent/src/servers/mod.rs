//! What servers are to each other: the gRPC on the server port, in both directions.
//!
//! ```text
//! introduction   who is there? -> found a cluster together, join one, or say that two have met
//! client         the transport of the consensus, and what this server's own clients want of the leader
//! intake         what is held of messages that have not come whole, bounded
//! service        the same from the other side: envelope -> message -> consensus
//! left           who was a member and left
//! presence       the leader says in the catalog which servers are alive
//! agents         what client agents ask of this server, and who says which of them are alive
//! ```
//!
//! The consensus lives in the registry and knows nothing of sockets: it is given a
//! [`wharf_registry::consensus::Transport`], which is [`Peers`].

pub(crate) mod agents;
mod client;
mod complaints;
mod intake;
mod introduction;
pub(crate) mod left;
mod parts;
mod presence;
mod service;
mod wire;

use std::sync::Arc;

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_registry::{consensus::Consensus, log::Server};

use self::{agents::Presence, introduction::Introductions, service::Service};
use crate::{
    cluster::Cluster,
    grpc::{GrpcContext, GrpcListener, Watching},
    http::HttpContext,
};

pub(crate) use agents::LEASE;
pub(crate) use client::{CallError, Peers, channel, enveloped, is_connect_error, root_cause};
pub(crate) use complaints::Complaints;
pub(crate) use introduction::{lookup, lookup_place};
pub(crate) use presence::watch_over_servers;
pub(crate) use wire::{read_leader, read_member};

/// The longest message: a command of the largest size, with what is around it.
pub(crate) const MAX_MESSAGE: usize = 20 << 20;
/// What is held of all messages that have not come whole.
const MAX_PENDING: usize = 256 << 20;
/// What may be on its way before the other side has taken it, on a stream and on its connection.
const WINDOW: u32 = 4 << 20;

/// How a server meets others.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// This server, as others reach it.
    pub(crate) server: Server,
    pub(crate) datacenter: String,
    /// How many servers found a cluster; 0: this one founds none with others.
    pub(crate) expect: u32,
    /// Where others may be: `host`, `host:port` or an address.
    pub(crate) retry_join: Vec<String>,
    /// The port of a place without one.
    pub(crate) default_port: u16,
}

/// The tasks of a running server.
#[derive(Debug)]
pub(crate) struct Running {
    stop: CancellationToken,
    serving: JoinHandle<()>,
    looking: JoinHandle<()>,
    stop_looking: CancellationToken,
    /// The sessions of agents, and who looks after them.
    tasks: TaskTracker,
}

/// What this server serves its client agents with.
#[derive(Debug)]
pub(crate) struct ForAgents {
    pub(crate) cluster: Arc<dyn Cluster>,
    pub(crate) http: Arc<HttpContext>,
    pub(crate) grpc: Arc<GrpcContext>,
}

/// Serves other servers and client agents on `listener`, and looks for other servers.
pub(crate) fn start(
    listener: TcpListener,
    consensus: Consensus,
    peers: Peers,
    introduction: Introduction,
    for_agents: ForAgents,
) -> Running {
    let stop = CancellationToken::new();
    let limits = for_agents.http.agent.config.load();
    let connections = match limits.reloadable.limits.rpc_max_conns_per_client {
        0 => usize::MAX,
        most => usize::try_from(most).unwrap_or(usize::MAX),
    };
    drop(limits);
    let presence = Arc::new(Presence::default());
    let tasks = TaskTracker::new();
    let agents = agents::Service {
        own: wire::write_server(consensus.id(), &introduction.server),
        datacenter: introduction.datacenter.clone(),
        consensus: consensus.clone(),
        cluster: for_agents.cluster.clone(),
        presence: presence.clone(),
        api: Arc::new(agents::Api::new(for_agents.http)),
        watching: Watching::new(for_agents.grpc, stop.clone()),
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    tasks.spawn(agents::watch_over_agents(
        presence.clone(),
        for_agents.cluster,
        consensus.clone(),
        peers.clone(),
        stop.clone(),
    ));
    let introductions = Introductions::new(consensus.clone(), peers.clone(), introduction);
    let introductions = Arc::new(introductions);
    peers.introduced_by(&introductions);
    let service = Service {
        consensus,
        introductions: introductions.clone(),
        presence,
        complaints: complaints::Complaints::default(),
    };
    let stop_looking = CancellationToken::new();
    Running {
        serving: service::serve(
            GrpcListener::Plain(listener),
            service,
            agents,
            connections,
            stop.clone(),
        ),
        looking: tokio::spawn(introductions.run(stop_looking.clone())),
        stop,
        stop_looking,
        tasks,
    }
}

impl Running {
    /// Asks to be in no cluster any more: a server that leaves would otherwise find itself taken out, and join again.
    pub(crate) async fn stop_looking(&mut self) {
        self.stop_looking.cancel();
        ended((&mut self.looking).await);
    }

    /// Ends the rest of it; other servers find this one gone.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        ended(self.serving.await);
    }
}

fn ended(task: Result<(), tokio::task::JoinError>) {
    if let Err(error) = task {
        tracing::error!(%error, "what served other servers ended badly");
    }
}
