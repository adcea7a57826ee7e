//! What the leader does now and then.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wharf_registry::{
    Command, View,
    command::{Deregister, DeregisterTarget, KvCommand, RestoreCommand},
    model::{CheckStatus, Str},
};

use crate::{cluster::Cluster, local::SERF_HEALTH, platform::unix_now};

/// How long deletions of keys are remembered (Consul's tombstone TTL).
const TOMBSTONE_TTL: Duration = Duration::from_secs(15 * 60);
/// How exactly.
const GRANULARITY: Duration = Duration::from_secs(30);

/// Now, and again and again until it is over.
struct Rounds {
    ticks: Interval,
    stop: CancellationToken,
}

impl Rounds {
    fn until(stop: CancellationToken) -> Rounds {
        let mut ticks = tokio::time::interval(GRANULARITY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Rounds { ticks, stop }
    }

    /// False: it is over.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.ticks.tick() => true,
            () = self.stop.cancelled() => false,
        }
    }
}

/// Forgets deletions of keys once they are old. The state machine has no clock: this remembers which
/// index was reached when.
pub(crate) async fn reap_tombstones(cluster: Arc<dyn Cluster>, stop: CancellationToken) {
    let mut reached: VecDeque<(Instant, u64)> = VecDeque::new();
    let mut rounds = Rounds::until(stop);
    while rounds.next().await {
        let now = Instant::now();
        let view = cluster.registry().view();
        reached.push_back((now, view.indexes().kv));
        let mut old = None;
        while let Some((_, index)) = reached.pop_front_if(|(at, _)| now - *at >= TOMBSTONE_TTL) {
            old = Some(index);
        }
        let Some(up_to) = old.filter(|up_to| view.has_tombstones(*up_to)) else {
            continue;
        };
        if !cluster.leader().is_some_and(|leader| leader.is_self) {
            continue;
        }
        let reap = Command::Kv(KvCommand::ReapTombstones { up_to });
        if let Err(error) = cluster.write(reap).await {
            tracing::debug!(%error, "old deletions stay for now");
        }
    }
}

/// How long the parts of a restore are kept of which none comes any more: whoever sent them is gone.
const RESTORE_TTL: Duration = Duration::from_secs(10 * 60);

/// Forgets restores that nobody finishes.
pub(crate) async fn abandon_restores(cluster: Arc<dyn Cluster>, stop: CancellationToken) {
    let mut rounds = Rounds::until(stop);
    while rounds.next().await {
        let view = cluster.registry().view();
        let Some(restoring) = view.restoring() else {
            continue;
        };
        let age = unix_now().saturating_sub(restoring.time());
        let is_old = u64::try_from(age).is_ok_and(|age| Duration::from_nanos(age) > RESTORE_TTL);
        if !is_old || !cluster.leader().is_some_and(|leader| leader.is_self) {
            continue;
        }
        let id = restoring.id().clone();
        tracing::warn!(%id, "a restore that was not finished is forgotten");
        let abandon = Command::Restore(RestoreCommand::Abandon { id });
        if let Err(error) = cluster.write(abandon).await {
            tracing::debug!(%error, "it stays for now");
        }
    }
}

/// The nodes that are dead, and the index at which whoever looks after them said so.
fn dead_nodes(view: &View) -> impl Iterator<Item = (Str, u64)> {
    view.nodes().filter_map(|entry| {
        let check = entry.checks.get(SERF_HEALTH)?;
        let is_dead = check.status == CheckStatus::Critical;
        is_dead.then(|| (entry.node.name.clone(), check.modify_index))
    })
}

/// Takes nodes out of the catalog that have been dead for `after` (Consul's `reconnect_timeout`), with everything on
/// them. The catalog does not say since when: every server remembers when it saw it first, and whoever leads goes by
/// its own memory. So it is never too early, and later after a restart. What it knows may be late all the same: a node of
/// which something else has been said since is left alone.
pub(crate) async fn reap_dead_nodes(
    cluster: Arc<dyn Cluster>,
    after: Duration,
    stop: CancellationToken,
) {
    let mut since: HashMap<(Str, u64), Instant> = HashMap::new();
    let mut rounds = Rounds::until(stop);
    while rounds.next().await {
        let now = Instant::now();
        let view = cluster.registry().view();
        let before = std::mem::take(&mut since);
        since = dead_nodes(&view)
            .map(|dead| {
                let at = before.get(&dead).copied().unwrap_or(now);
                (dead, at)
            })
            .collect();
        drop(view);
        if !cluster.leader().is_some_and(|leader| leader.is_self) {
            continue;
        }
        // Those that have a place among the servers are for autopilot to judge.
        let servers = cluster.servers();
        let is_server = |name: &Str| {
            let mut servers = servers.iter();
            servers.any(|server| server.name.eq_ignore_ascii_case(name))
        };
        let long_dead = since
            .iter()
            .filter(|((name, _), at)| now - **at >= after && !is_server(name));
        for ((name, index), _) in long_dead {
            tracing::warn!(%name, "a node that has been dead for {after:?} is taken out of the catalog");
            let reap = Command::Deregister(Deregister {
                node: name.clone(),
                target: DeregisterTarget::NodeAt {
                    check: SERF_HEALTH.into(),
                    index: *index,
                },
            });
            if let Err(error) = cluster.write(reap).await {
                tracing::debug!(%error, "it stays for now");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wharf_registry::{
        command::Register,
        model::{HealthCheck, Node},
    };

    use super::*;
    use crate::{cluster::testing::Solo, local::serf_health};

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stays_dead_is_taken_out_and_one_that_comes_back_is_not() {
        let cluster = Arc::new(Solo::new());
        let object: Arc<dyn Cluster> = cluster.clone();
        let stop = CancellationToken::new();
        let after = Duration::from_secs(72 * 3600);
        let task = tokio::spawn(reap_dead_nodes(object.clone(), after, stop.clone()));
        let register = |name: &'static str, check: Option<HealthCheck>| {
            let register = Register {
                node: Node {
                    name: name.into(),
                    address: "10.0.0.1".into(),
                    ..Node::default()
                },
                checks: check.into_iter().collect(),
                ..Register::default()
            };
            object.write(Command::Register(Box::new(register)))
        };
        let says =
            |name: &'static str, alive| register(name, Some(serf_health(&name.into(), alive)));
        for name in ["alive", "dead", "moody", "quick"] {
            says(name, true).await.unwrap();
        }
        // Registered by somebody else, who also has to take it out.
        register("external", None).await.unwrap();
        says("dead", false).await.unwrap();
        says("moody", false).await.unwrap();
        says("quick", false).await.unwrap();
        tokio::time::sleep(after - 2 * GRANULARITY).await;
        says("moody", true).await.unwrap();
        tokio::time::sleep(GRANULARITY).await;
        says("moody", false).await.unwrap();
        // Back between two looks.
        says("quick", true).await.unwrap();
        says("quick", false).await.unwrap();
        let names = || -> Vec<String> {
            let view = cluster.registry().view();
            view.nodes()
                .map(|entry| entry.node.name.to_string())
                .collect()
        };
        assert_eq!(names(), ["alive", "dead", "external", "moody", "quick"]);
        tokio::time::sleep(4 * GRANULARITY).await;
        assert_eq!(names(), ["alive", "external", "moody", "quick"]);
        tokio::time::sleep(after).await;
        assert_eq!(names(), ["alive", "external"]);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_restore_that_nobody_finishes_is_forgotten() {
        let cluster = Arc::new(Solo::new());
        let object: Arc<dyn Cluster> = cluster.clone();
        let stop = CancellationToken::new();
        let task = tokio::spawn(abandon_restores(object.clone(), stop.clone()));
        let ttl = i64::try_from(RESTORE_TTL.as_nanos()).unwrap();
        for (age, kept) in [(0, true), (2 * ttl, false)] {
            let part = RestoreCommand::Part {
                id: "r".into(),
                at: 0,
                bytes: vec![1].into(),
                time: unix_now() - age,
            };
            object
                .write(Command::Restore(RestoreCommand::Abandon { id: "r".into() }))
                .await
                .unwrap();
            object.write(Command::Restore(part)).await.unwrap();
            tokio::time::sleep(3 * GRANULARITY).await;
            let is_kept = cluster.registry().view().restoring().is_some();
            assert_eq!(is_kept, kept);
        }
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn deletions_are_forgotten_when_they_are_old() {
        let cluster = Arc::new(Solo::new());
        let object: Arc<dyn Cluster> = cluster.clone();
        let stop = CancellationToken::new();
        let task = tokio::spawn(reap_tombstones(object.clone(), stop.clone()));
        let entry = wharf_registry::model::KvEntry {
            key: "k".into(),
            ..Default::default()
        };
        object
            .write(Command::Kv(KvCommand::Set { entry }))
            .await
            .unwrap();
        object
            .write(Command::Kv(KvCommand::Delete { key: "k".into() }))
            .await
            .unwrap();
        let has = || cluster.registry().view().has_tombstones(u64::MAX);
        tokio::time::sleep(TOMBSTONE_TTL - GRANULARITY).await;
        assert!(has(), "still remembered");
        tokio::time::sleep(3 * GRANULARITY).await;
        assert!(!has(), "forgotten");
        stop.cancel();
        task.await.unwrap();
    }
}
