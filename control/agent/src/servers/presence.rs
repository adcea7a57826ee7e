//! Which servers are there, as the catalog says it.
//!
//! Every server writes its own node, with the service `consul` and the check `serfHealth`, as long as it
//! runs. That it does not run any more only others can say: the leader, who hears of each of them several
//! times a second.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wharf_registry::{
    Command, View,
    command::Register,
    consensus::{Consensus, Member},
    model::Str,
    state::NodeEntry,
};

use super::left::{self, is_failed, left_behind};
use crate::{
    cluster::Cluster,
    local::{SERF_HEALTH, serf_health},
    platform::unix_now,
};

const TICK: Duration = Duration::from_secs(1);
/// A new leader has to hear of everybody first.
const GRACE: Duration = Duration::from_secs(5);
/// A node of a server is removed when the server has been out of the membership for so many looks.
const GONE_AFTER: u32 = 5;

/// While this server leads, keeps `serfHealth` of the servers true, and takes away what those that left
/// for good leave behind.
pub(crate) async fn watch_over_servers(
    cluster: Arc<dyn Cluster>,
    consensus: Consensus,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leading_since = None;
    let mut gone: BTreeMap<Str, u32> = BTreeMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if !consensus.is_leader() {
            leading_since = None;
            gone.clear();
            continue;
        }
        let now = Instant::now();
        let settled = now - *leading_since.get_or_insert(now) >= GRACE;
        let members = consensus.members();
        let view = cluster.registry().view();
        let left_behind: Vec<&NodeEntry> = left_behind(&members, &view).collect();
        gone.retain(|node, _| left_behind.iter().any(|entry| entry.node.name == *node));
        let mut commands = match settled {
            true => corrections(&members, &view),
            false => Vec::new(),
        };
        commands.extend(left::over(&members, &view, unix_now()));
        for entry in left_behind {
            let node = &entry.node.name;
            let looks = gone.entry(node.clone()).or_default();
            *looks += 1;
            if (settled && *looks >= GONE_AFTER) || is_failed(entry) {
                tracing::info!(%node, "a server that left is taken out of the catalog");
                commands.push(left::take_out(entry));
            }
        }
        drop(view);
        for command in commands {
            if let Err(error) = cluster.write(command).await {
                tracing::debug!(%error, "the catalog does not say which servers are there yet");
            }
        }
    }
}

/// The checks that do not say what is so.
fn corrections(members: &[Member], view: &View) -> Vec<Command> {
    let wrong = members.iter().filter_map(|member| {
        let entry = view.node(&member.name)?;
        let check = entry.checks.get(SERF_HEALTH)?;
        let found = serf_health(&entry.node.name, member.is_alive());
        if check.status == found.status {
            return None;
        }
        match member.is_alive() {
            true => tracing::info!(name = member.name, "a server is back"),
            false => tracing::warn!(name = member.name, "a server is dead or out of reach"),
        }
        Some(Command::Register(Box::new(Register {
            node: (*entry.node).clone(),
            skip_node_update: true,
            service: None,
            checks: vec![found],
        })))
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wharf_registry::{
        Committed, Replica,
        consensus::DiskState,
        log::ServerId,
        model::{CheckStatus, Node, NodeService},
    };

    use super::*;
    use crate::local::SERVER_SERVICE;

    fn server(name: &str) -> Command {
        Command::Register(Box::new(Register {
            node: Node {
                name: name.into(),
                address: "10.0.0.1".into(),
                ..Node::default()
            },
            skip_node_update: false,
            service: Some(NodeService {
                id: SERVER_SERVICE.into(),
                name: SERVER_SERVICE.into(),
                ..NodeService::default()
            }),
            checks: vec![serf_health(&name.into(), true)],
        }))
    }

    fn member(name: &str, heard: Option<u64>) -> Member {
        Member {
            id: ServerId(Uuid::from_u128(1)),
            name: name.into(),
            address: "10.0.0.1:8300".into(),
            voter: true,
            leader: false,
            replicated: None,
            heard: heard.map(Duration::from_secs),
            disk: DiskState::Fine,
            healthy: None,
            stable_for: None,
        }
    }

    fn apply(replica: &mut Replica, commands: Vec<Command>) {
        for command in commands {
            let entry = Committed {
                index: replica.last_applied() + 1,
                command: Some(command.encode()),
            };
            replica.apply(&[entry]).unwrap();
        }
    }

    #[test]
    fn a_dead_server_turns_critical_and_a_living_one_passing_and_nothing_else_is_written() {
        let mut replica = Replica::new();
        apply(&mut replica, vec![server("a"), server("b")]);
        let registry = replica.registry();
        let status = |name: &str| {
            let view = registry.view();
            let check = view.node(name).unwrap().checks[SERF_HEALTH].clone();
            (check.status, check.output.to_string())
        };
        let all_alive = [member("a", Some(0)), member("b", Some(1))];
        assert!(corrections(&all_alive, &registry.view()).is_empty());
        for heard in [None, Some(60)] {
            let members = [
                member("a", Some(0)),
                member("b", heard),
                member("new", None),
            ];
            let commands = corrections(&members, &registry.view());
            assert_eq!(commands.len(), 1);
            apply(&mut replica, commands);
            assert_eq!(
                status("b"),
                (
                    CheckStatus::Critical,
                    "Agent not live or unreachable".to_owned()
                )
            );
            assert_eq!(status("a").0, CheckStatus::Passing);
            assert!(corrections(&members, &registry.view()).is_empty());
            apply(&mut replica, corrections(&all_alive, &registry.view()));
            assert_eq!(
                status("b"),
                (CheckStatus::Passing, "Agent alive and reachable".to_owned())
            );
        }
    }

    #[test]
    fn only_nodes_of_servers_are_left_behind() {
        let mut replica = Replica::new();
        let plain = Command::Register(Box::new(Register {
            node: Node {
                name: "plain".into(),
                address: "10.0.0.9".into(),
                ..Node::default()
            },
            ..Register::default()
        }));
        apply(&mut replica, vec![server("a"), server("b"), plain]);
        let view = replica.registry().view();
        let members = [member("a", Some(0))];
        let left_behind = left_behind(&members, &view);
        let names = left_behind.map(|entry| entry.node.name.clone());
        assert_eq!(names.collect::<Vec<_>>(), [Str::from("b")]);
        // Nobody waits for one that said that it leaves.
        assert!(!is_failed(view.node("b").unwrap()));
        let leaving = Command::Register(Box::new(Register {
            node: (*view.node("b").unwrap().node).clone(),
            skip_node_update: true,
            service: None,
            checks: vec![serf_health(&"b".into(), false)],
        }));
        apply(&mut replica, vec![leaving]);
        let view = replica.registry().view();
        assert!(is_failed(view.node("b").unwrap()));
    }
}
