//! Which nodes are there: a node whose agent is not heard of is down, and what it ran counts as lost.
//!
//! Whether an agent is there the catalog says (`serfHealth`), for all purposes alike. Its containers may well go on
//! while it is away, and a restart of an agent must not move them: so a node has a while to come back. And when many
//! would be lost at once, it is more likely the network, or this leader, that is at fault than all of them: then they are
//! given up a few at a time, and whoever comes back in between was never lost.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        CheckStatus, Str,
        platform::{NodeStatus, PlatformNode},
    },
};

use crate::{
    cluster::{Cluster, ClusterError},
    local::SERF_HEALTH,
    platform::unix_now,
};

const TICK: Duration = Duration::from_secs(1);
/// How long a node may be missing.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);
/// Within that time, one of so many nodes is given up; but always one.
const SHARE: usize = 5;

/// What this leader has seen. A new one begins anew: then everybody has the whole time again.
#[derive(Debug, Default)]
struct Liveness {
    missing: BTreeMap<Str, Instant>,
    given_up: VecDeque<Instant>,
    held_back: bool,
}

/// Keeps the status of the nodes, until a write fails.
pub(super) async fn watch_over_nodes(cluster: &dyn Cluster) -> ClusterError {
    let mut liveness = Liveness::default();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let view = cluster.registry().view();
        for command in liveness.look(&view, Instant::now()) {
            if let Err(error) = cluster.write(Command::Platform(command)).await {
                return error;
            }
        }
    }
}

impl Liveness {
    fn look(&mut self, view: &View, now: Instant) -> Vec<PlatformCommand> {
        self.missing.retain(|id, _| {
            view.platform_node(id)
                .is_some_and(|node| !is_there(view, node))
        });
        while self
            .given_up
            .pop_front_if(|at| now.saturating_duration_since(*at) >= LOST_AFTER)
            .is_some()
        {}
        let mut commands = Vec::new();
        let mut overdue = Vec::new();
        for node in view.platform_nodes() {
            let there = is_there(view, node);
            match (node.status, there) {
                (NodeStatus::Down, true) => {
                    tracing::info!(node = &*node.name, "a node is back");
                    commands.push(set(node, NodeStatus::Ready, ""));
                }
                (NodeStatus::Ready, false) => {
                    let since = *self.missing.entry(node.id.clone()).or_insert(now);
                    if now.saturating_duration_since(since) >= LOST_AFTER {
                        overdue.push((since, node));
                    }
                }
                (NodeStatus::Ready, true) | (NodeStatus::Down, false) => {}
            }
        }
        overdue.sort_by_key(|(since, node)| (*since, node.id.clone()));
        let at_once = (view.platform_nodes().len() / SHARE).max(1);
        let room = at_once.saturating_sub(self.given_up.len());
        let hold_back = overdue.len() > room;
        if hold_back && !self.held_back {
            let (missing, given_up) = (overdue.len(), at_once);
            tracing::warn!(
                missing,
                given_up,
                "many nodes are missing at once: they are given up a few at a time"
            );
        }
        self.held_back = hold_back;
        for (_, node) in overdue.into_iter().take(room) {
            tracing::warn!(node = &*node.name, "a node is lost");
            self.given_up.push_back(now);
            commands.push(set(node, NodeStatus::Down, "its agent is not heard of"));
        }
        commands
    }
}

/// Whether the agent of a node is there, as far as the catalog knows.
fn is_there(view: &View, node: &PlatformNode) -> bool {
    let Some(entry) = view.node(&node.name) else {
        return false;
    };
    // Another one may have its name now.
    let check = entry.checks.get(SERF_HEALTH);
    *entry.node.id == *node.id && check.is_some_and(|check| check.status != CheckStatus::Critical)
}

fn set(node: &PlatformNode, status: NodeStatus, description: &str) -> PlatformCommand {
    PlatformCommand::SetNodeStatus {
        id: node.id.clone(),
        status,
        description: description.into(),
        time: unix_now(),
    }
}

#[cfg(test)]
mod tests {
    use wharf_registry::{
        Committed, Replica,
        command::Register,
        model::{HealthCheck, Node},
    };

    use super::*;

    /// Nodes with their agents.
    struct Scene {
        replica: Replica,
        index: u64,
        liveness: Liveness,
        start: Instant,
    }

    impl Scene {
        fn new(nodes: usize) -> Scene {
            let mut scene = Scene {
                replica: Replica::new(),
                index: 0,
                liveness: Liveness::default(),
                start: Instant::now(),
            };
            for number in 0..nodes {
                let name = format!("n{number}");
                let node = PlatformNode {
                    id: name.as_str().into(),
                    name: name.as_str().into(),
                    ..PlatformNode::default()
                };
                scene.apply(&Command::Platform(PlatformCommand::RegisterNode {
                    node: Box::new(node),
                    time: 1,
                }));
                scene.agent(&name, &name, CheckStatus::Passing);
            }
            scene
        }

        fn apply(&mut self, command: &Command) {
            self.index += 1;
            let entry = Committed {
                index: self.index,
                command: Some(command.encode()),
            };
            self.replica.apply(&[entry]).unwrap();
        }

        fn agent(&mut self, name: &str, id: &str, status: CheckStatus) {
            self.apply(&Command::Register(Box::new(Register {
                node: Node {
                    name: name.into(),
                    id: id.into(),
                    address: "10.0.0.1".into(),
                    ..Node::default()
                },
                checks: vec![HealthCheck {
                    node: name.into(),
                    id: SERF_HEALTH.into(),
                    name: "Serf Health Status".into(),
                    status,
                    ..HealthCheck::default()
                }],
                ..Register::default()
            })));
        }

        /// Looks so many seconds after the start, and does what comes of it: the nodes and their new status.
        fn look(&mut self, seconds: u64) -> Vec<(String, NodeStatus)> {
            let view = self.replica.registry().view();
            let now = self.start + Duration::from_secs(seconds);
            let commands = self.liveness.look(&view, now);
            let mut changes = Vec::new();
            for command in commands {
                let PlatformCommand::SetNodeStatus { id, status, .. } = &command else {
                    panic!("{command:?}");
                };
                changes.push((id.to_string(), *status));
                self.apply(&Command::Platform(command));
            }
            changes
        }
    }

    fn down(name: &str) -> (String, NodeStatus) {
        (name.to_owned(), NodeStatus::Down)
    }

    #[test]
    fn a_node_has_a_while_to_come_back_and_is_back_at_once() {
        let mut scene = Scene::new(3);
        assert_eq!(scene.look(0), []);
        scene.agent("n1", "n1", CheckStatus::Critical);
        assert_eq!(scene.look(1), []);
        assert_eq!(scene.look(10), []);
        // It was only restarted; then it is missing again, and has the whole time again.
        scene.agent("n1", "n1", CheckStatus::Passing);
        assert_eq!(scene.look(11), []);
        scene.agent("n1", "n1", CheckStatus::Critical);
        assert_eq!(scene.look(12), []);
        assert_eq!(scene.look(21), []);
        assert_eq!(scene.look(22), [down("n1")]);
        assert_eq!(scene.look(23), []);
        scene.agent("n1", "n1", CheckStatus::Passing);
        assert_eq!(scene.look(24), [("n1".to_owned(), NodeStatus::Ready)]);
        assert_eq!(scene.look(25), []);
    }

    #[test]
    fn a_node_whose_name_another_has_is_missing() {
        let mut scene = Scene::new(2);
        scene.agent("n1", "n1", CheckStatus::Critical);
        scene.agent("n1", "new-id", CheckStatus::Passing);
        assert_eq!(scene.look(0), []);
        assert_eq!(scene.look(10), [down("n1")]);
    }

    #[test]
    fn of_many_that_are_missing_a_few_are_given_up_at_a_time() {
        let mut scene = Scene::new(10);
        for number in 0..6 {
            scene.agent(
                &format!("n{number}"),
                &format!("n{number}"),
                CheckStatus::Critical,
            );
        }
        assert_eq!(scene.look(0), []);
        assert_eq!(scene.look(10), [down("n0"), down("n1")]);
        assert_eq!(scene.look(11), []);
        // The others were there all the time.
        for number in 3..6 {
            scene.agent(
                &format!("n{number}"),
                &format!("n{number}"),
                CheckStatus::Passing,
            );
        }
        assert_eq!(scene.look(19), []);
        assert_eq!(scene.look(20), [down("n2")]);
    }
}
