//! The part that this server takes in the consensus: its settings, its start and its end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;
use wharf_registry::{
    Command,
    command::Register,
    consensus::{Consensus, ConsensusConfig, MembershipError, SnapshotPolicy, Timings, Transport},
    log::Server,
};

use crate::{
    cluster::{Cluster, ClusterError},
    config::RuntimeConfig,
    local::serf_health,
    servers::{Introduction, Peers},
    sockets::Sockets,
};

/// Consul's default of `performance.raft_multiplier`, at which our timings are as they are.
const DEFAULT_MULTIPLIER: f64 = 5.0;

/// Consul's default of `raft_snapshot_threshold`. Where nobody chose another, ours holds: it keeps enough of
/// the log for a server that was away for a minute under load.
const CONSUL_SNAPSHOT_THRESHOLD: u64 = 16_384;
/// Consul's default of `raft_trailing_logs`, which is less than that.
const CONSUL_TRAILING_LOGS: u64 = 10_240;

/// How long a server tries to leave, and how often it asks.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
const LEAVE_PAUSE: Duration = Duration::from_millis(250);
/// How long it tries to say that it leaves before it does.
const SAY_WITHIN: Duration = Duration::from_secs(1);

/// The port that other servers are told, and that they are expected at: the one that is listened on, or the configured
/// one.
pub(super) fn server_port(config: &RuntimeConfig, sockets: &Sockets) -> u16 {
    let bound = sockets.server.as_ref();
    let bound = bound.and_then(|listener| listener.local_addr().ok());
    let address = bound.or(config.listen.server);
    address.map_or(config.join_port, |address| address.port())
}

pub(super) fn consensus_config(
    config: &RuntimeConfig,
    node_uuid: Uuid,
    server_address: &str,
    peers: Option<Peers>,
) -> ConsensusConfig {
    let timings = match peers {
        None => Timings::single(),
        // More patience than usual can be had, less cannot: it would only bring needless elections.
        Some(_) => {
            let factor = f64::from(config.raft.multiplier) / DEFAULT_MULTIPLIER;
            Timings::lan().stretched(factor.max(1.0))
        }
    };
    let mut snapshots = SnapshotPolicy::default();
    if config.raft.snapshot_threshold != CONSUL_SNAPSHOT_THRESHOLD {
        snapshots.entries = config.raft.snapshot_threshold.max(1);
    }
    if config.raft.trailing_logs != CONSUL_TRAILING_LOGS {
        snapshots.trailing = config.raft.trailing_logs;
    }
    ConsensusConfig {
        data_dir: config.data_dir.clone(),
        node_uuid_reused: config.node_id.is_some(),
        bootstrap: config.bootstrap,
        transport: peers.map(|peers| Arc::new(peers) as Arc<dyn Transport>),
        timings,
        hold: config.rpc_hold_timeout,
        snapshots,
        ..ConsensusConfig::single(&config.node_name, node_uuid, server_address)
    }
}

pub(super) fn introduction(
    config: &RuntimeConfig,
    server_address: &str,
    server_port: u16,
) -> Introduction {
    Introduction {
        server: Server {
            name: config.node_name.clone(),
            address: server_address.to_owned(),
        },
        datacenter: config.datacenter.clone(),
        expect: config.bootstrap_expect,
        retry_join: config.retry_join.clone(),
        default_port: server_port,
    }
}

/// There was no log yet when it took place.
pub(super) fn tell_of_recovery(consensus: &Consensus) {
    if let Some(recovered) = consensus.recovered() {
        tracing::warn!(
            voters = recovered.voters.join(" "),
            index = recovered.index,
            "the cluster has the members of raft/peers.json, which is gone now: the one of them that has most leads, and \
             a server that the file does not name has to begin with an empty data directory"
        );
    }
}

/// Before a leader ends: another one leads at once, instead of after a timeout.
pub(super) async fn give_up_leadership(consensus: &Consensus) {
    if !consensus.is_leader() {
        return;
    }
    match consensus.hand_over(None).await {
        Ok(leader) => tracing::info!(to = leader.name, "handed the leadership over"),
        // Alone, or the last one of several to end.
        Err(MembershipError::NotReady(_)) => {}
        Err(error) => tracing::warn!(%error, "the leadership was not handed over"),
    }
}

/// Takes this server out of the cluster, for good. Whoever leads takes its node out of the catalog then, which says already
/// that it leaves. An error says why it stays a member.
pub(super) async fn leave_cluster(
    cluster: &dyn Cluster,
    consensus: &Consensus,
) -> Result<(), String> {
    let others = consensus.members().len() > 1;
    let Some(operator) = cluster.operator().filter(|_| others) else {
        return Ok(());
    };
    say_that_it_leaves(cluster, consensus).await;
    let own = consensus.id();
    let deadline = Instant::now() + LEAVE_WITHIN;
    loop {
        let mut removed = operator.remove(own).await;
        let is_unclear = matches!(
            removed,
            Err(ClusterError::OutcomeUnknown(_) | ClusterError::Operation(_))
        );
        if is_unclear
            && let Ok((members, _)) = operator.configuration().await
            && members.iter().all(|member| member.id != own)
        {
            // It was done, and the answer was lost.
            removed = Ok(());
        }
        match removed {
            Ok(()) => {
                tracing::info!("left the cluster");
                return Ok(());
            }
            // A new leader, such as the one that this server made, has to hear of the others first.
            Err(error) if Instant::now() < deadline => {
                tracing::debug!(%error, "this server asks again to leave the cluster");
                tokio::time::sleep(LEAVE_PAUSE).await;
            }
            Err(error) => {
                return Err(format!(
                    "this server ends, and stays a member of the cluster: {error}"
                ));
            }
        }
    }
}

/// So that nobody is sent to this server any more: from here on it may end at any time. Whether it succeeds or not, the
/// leader finds out soon.
async fn say_that_it_leaves(cluster: &dyn Cluster, consensus: &Consensus) {
    let own = consensus.id();
    let members = consensus.members();
    let node = members
        .iter()
        .find(|member| member.id == own)
        .and_then(|member| {
            let view = cluster.registry().view();
            view.node(&member.name).map(|entry| (*entry.node).clone())
        });
    let Some(node) = node else {
        return;
    };
    let leaving = Command::Register(Box::new(Register {
        checks: vec![serf_health(&node.name, false)],
        node,
        skip_node_update: true,
        service: None,
    }));
    match tokio::time::timeout(SAY_WITHIN, cluster.write(leaving)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "nobody knows that this server leaves"),
        Err(_) => tracing::debug!("nobody knows that this server leaves"),
    }
}
