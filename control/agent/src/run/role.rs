//! What this agent is in the cluster: one of its servers, or a client of them.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;
use wharf_dns::Catalog;
use wharf_registry::{
    consensus::{Consensus, StartError},
    model::NodeService,
};

use super::{
    definitions::bootstrap_entries,
    identity::{catalog_node, join_host_port, server_meta},
    raft::{
        consensus_config, give_up_leadership, introduction, leave_cluster, server_port,
        tell_of_recovery,
    },
};
use crate::{
    anti_entropy::AntiEntropy,
    client::{self, Client, ClientOptions, Names},
    cluster::Cluster,
    config::RuntimeConfig,
    context::NodeInfo,
    housekeeping,
    local::LocalState,
    platform::scheduling::{Decisions, Scheduling},
    rates::Rates,
    server::Server,
    servers::{self, ForAgents, Peers},
    sockets::Sockets,
};

/// The part of the agent that is the cluster, or leads to it.
pub(super) enum Role {
    Server(Box<ServerRole>),
    Client(Client, client::Running),
}

pub(super) struct ServerRole {
    consensus: Consensus,
    peers: Option<Peers>,
    address: String,
    port: u16,
    /// Absent on a development server, which has no others.
    running: Option<servers::Running>,
}

impl Role {
    /// Opens the log, or begins to look for servers.
    pub(super) async fn start(
        config: &RuntimeConfig,
        sockets: &Sockets,
        node: &NodeInfo,
        node_uuid: Uuid,
        rates: &Rates,
    ) -> Result<Role, StartError> {
        let port = server_port(config, sockets);
        if !config.server {
            let (client, running) = client::start(ClientOptions {
                node: catalog_node(node),
                datacenter: config.datacenter.clone(),
                retry_join: config.retry_join.clone(),
                data_dir: config.data_dir.clone(),
                default_port: port,
                hold: config.rpc_hold_timeout,
                rates: rates.clone(),
            });
            return Ok(Role::Client(client, running));
        }
        let address = join_host_port(&config.advertise_addr.to_string(), port);
        let peers = sockets.server.is_some().then(Peers::default);
        let consensus = consensus_config(config, node_uuid, &address, peers.clone());
        Ok(Role::Server(Box::new(ServerRole {
            consensus: Consensus::start(consensus).await?,
            peers,
            address,
            port,
            running: None,
        })))
    }

    pub(super) fn cluster(&self, config: &RuntimeConfig) -> Arc<dyn Cluster> {
        match self {
            Role::Server(server) => Arc::new(Server::new(
                server.consensus.clone(),
                server.peers.clone(),
                server.address.clone(),
                config.rpc_hold_timeout,
            )),
            Role::Client(client, _) => Arc::new(client.clone()),
        }
    }

    /// Says that the cluster was recovered by hand, if it was.
    pub(super) fn tell_of_recovery(&self) {
        if let Role::Server(server) = self {
            tell_of_recovery(&server.consensus);
        }
    }

    /// What DNS answers from.
    pub(super) fn names(&self, cluster: &Arc<dyn Cluster>) -> Arc<dyn Catalog> {
        match self {
            Role::Server(_) => Arc::new(cluster.registry().clone()),
            Role::Client(client, _) => Arc::new(Names(client.clone())),
        }
    }

    pub(super) fn anti_entropy(
        &self,
        local: &LocalState,
        cluster: &Arc<dyn Cluster>,
    ) -> AntiEntropy {
        match self {
            Role::Server(server) => {
                let service = NodeService {
                    port: server.port,
                    meta: server_meta(),
                    ..NodeService::default()
                };
                AntiEntropy::of_server(local.clone(), cluster.clone(), service)
            }
            Role::Client(..) => AntiEntropy::of_client(local.clone(), cluster.clone()),
        }
    }

    /// Serves other servers and client agents.
    pub(super) fn serve(
        &mut self,
        config: &RuntimeConfig,
        sockets: &mut Sockets,
        for_agents: ForAgents,
    ) {
        let Role::Server(server) = self else {
            return;
        };
        if let (Some(listener), Some(peers)) = (sockets.server.take(), &server.peers) {
            server.running = Some(servers::start(
                listener,
                server.consensus.clone(),
                peers.clone(),
                introduction(config, &server.address, server.port),
                for_agents,
            ));
        }
    }

    /// What the servers do beside answering, until `settle`.
    pub(super) fn keep_house(
        &self,
        config: &Arc<RuntimeConfig>,
        cluster: &Arc<dyn Cluster>,
        decisions: Decisions,
        tasks: &TaskTracker,
        settle: &CancellationToken,
    ) {
        let Role::Server(server) = self else {
            return;
        };
        tasks.spawn(housekeeping::reap_tombstones(
            cluster.clone(),
            settle.clone(),
        ));
        tasks.spawn(housekeeping::abandon_restores(
            cluster.clone(),
            settle.clone(),
        ));
        tasks.spawn(housekeeping::reap_dead_nodes(
            cluster.clone(),
            config.reconnect_timeout,
            settle.clone(),
        ));
        if server.running.is_some() {
            tasks.spawn(servers::watch_over_servers(
                cluster.clone(),
                server.consensus.clone(),
                settle.clone(),
            ));
        }
        let scheduling = Scheduling::new(cluster.clone(), decisions);
        tasks.spawn(scheduling.run(settle.clone()));
        tasks.spawn(bootstrap_entries(
            cluster.clone(),
            config.clone(),
            settle.clone(),
        ));
    }

    /// Hands over what others can do, and takes this agent out of the cluster if it `leaves`: an error says that it
    /// did not, and why.
    pub(super) async fn retire(
        &mut self,
        cluster: &dyn Cluster,
        leaves: bool,
    ) -> Result<(), String> {
        match self {
            Role::Server(server) => {
                let Some(running) = &mut server.running else {
                    return Ok(());
                };
                running.stop_looking().await;
                give_up_leadership(&server.consensus).await;
                match leaves {
                    true => leave_cluster(cluster, &server.consensus).await,
                    false => Ok(()),
                }
            }
            Role::Client(client, _) if leaves => client.leave().await,
            Role::Client(..) => Ok(()),
        }
    }

    /// Ends it, after everything that uses the cluster.
    pub(super) async fn stop(self) {
        match self {
            Role::Server(server) => {
                if let Some(running) = server.running {
                    running.stop().await;
                }
                server.consensus.shutdown().await;
            }
            Role::Client(client, running) => {
                client.bye().await;
                running.stop().await;
            }
        }
    }
}
