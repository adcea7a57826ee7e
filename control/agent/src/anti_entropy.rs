//! Keeps the catalog equal to what this agent says of its node.
//!
//! The agent is the authority for its own services and checks ([`crate::local`]); the catalog follows.
//! A change is written at once, one command per instance with its checks; a check whose output alone
//! changed waits for `check_update_interval`. Beside that everything is compared now and then: rows
//! that somebody else changed are put right, and rows that the agent does not know are removed. That
//! is also what makes a deregistration durable. Nothing is written where both sides agree.
//!
//! The intervals are those of Consul: a full comparison every minute, more seldom in clusters of more
//! than 128 nodes, and within three seconds of a change of leader.

mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wharf_registry::{Command, model::NodeService, watch::WatchKey};

use self::plan::{Adopted, Local, Plan, Scope, Server, Write, plan};
use crate::{
    cluster::{Cluster, ClusterError, Consistency},
    local::{Dirty, LocalState, SERVER_SERVICE, random_up_to, serf_health},
};

/// How often everything is compared in a cluster of up to [`SCALE_THRESHOLD`] nodes.
const FULL_INTERVAL: Duration = Duration::from_secs(60);
const SCALE_THRESHOLD: usize = 128;
/// The agents of a cluster spread their comparison over this time after a change of leader.
const LEADER_SPREAD: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// Writes that are on their way at the same time.
const IN_FLIGHT: usize = 64;

/// The task that writes this node's rows.
#[derive(Debug)]
pub struct AntiEntropy {
    local: LocalState,
    cluster: Arc<dyn Cluster>,
    server: Option<Server>,
}

/// What is still to be written after a pass, and why.
#[derive(Debug, Default)]
struct Behind {
    /// To be tried again soon.
    rows: Dirty,
    /// Everything has to be compared again.
    everything: bool,
    failure: Option<ClusterError>,
    failures: usize,
}

impl Behind {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.everything
    }

    fn log(&self) {
        let retry = !self.is_empty();
        match &self.failure {
            None => {}
            // Elections have their own lines in the log.
            Some(ClusterError::NoLeader | ClusterError::NoServers) => {
                tracing::debug!(retry, "the catalog waits for a leader");
            }
            Some(error) => {
                tracing::warn!(%error, failures = self.failures, retry, "the catalog is behind this agent");
            }
        }
    }

    fn note(&mut self, settles: Dirty, error: ClusterError) {
        // What is refused will be refused again: it is left to the next full comparison.
        if !matches!(error, ClusterError::Refused(_)) {
            self.rows.merge(settles);
        }
        self.failures += 1;
        self.failure.get_or_insert(error);
    }
}

impl AntiEntropy {
    /// Of a client agent: whether its node is there is said by the servers.
    pub fn of_client(local: LocalState, cluster: Arc<dyn Cluster>) -> AntiEntropy {
        AntiEntropy {
            local,
            cluster,
            server: None,
        }
    }

    /// Of a server, which listens to its peers on `service.port`: it also says that it is one.
    /// The id and name of `service` are given here.
    pub fn of_server(
        local: LocalState,
        cluster: Arc<dyn Cluster>,
        mut service: NodeService,
    ) -> AntiEntropy {
        service.id = SERVER_SERVICE.into();
        service.name = SERVER_SERVICE.into();
        let check = serf_health(&local.node().name, true);
        AntiEntropy {
            local,
            cluster,
            server: Some(Server { service, check }),
        }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.follow() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self) {
        let mut behind = Behind {
            everything: true,
            ..Behind::default()
        };
        let mut retry = Retry::default();
        let mut next_full = Instant::now();
        let mut next_retry = None;
        // Kept over passes, so as to see a change that falls into one.
        let mut leader_changed = self.cluster.leader_changed();
        loop {
            let deferred = self.local.next_deferred();
            let everything = tokio::select! {
                () = self.local.dirtied() => false,
                () = at(deferred) => false,
                () = at(next_retry) => behind.everything,
                () = sleep_until(next_full) => true,
                () = &mut leader_changed => {
                    leader_changed = self.cluster.leader_changed();
                    next_full = next_full.min(Instant::now() + self.leader_spread());
                    retry.reset();
                    continue;
                }
            };
            let now = Instant::now();
            let retried = everything || next_retry.is_some_and(|at| at <= now);
            if let Err(error) = self.local.save().await {
                tracing::warn!(%error, "cannot keep the registrations of this agent");
            }
            let (mut dirty, revision) = self.local.take_dirty();
            if retried {
                dirty.merge(std::mem::take(&mut behind.rows));
                behind.everything = false;
            }
            if everything || !dirty.is_empty() {
                let scope = Scope {
                    everything,
                    dirty: &dirty,
                };
                let result = self.pass(scope).await;
                result.log();
                behind.rows.merge(result.rows);
                behind.everything |= result.everything;
            }
            self.local.mark_synced(revision);
            let now = Instant::now();
            if everything {
                let interval = FULL_INTERVAL * scale(self.cluster.node_count());
                next_full = now + interval + random_up_to(interval);
            }
            if behind.is_empty() {
                retry.reset();
                next_retry = None;
            } else if retried || next_retry.is_none() {
                next_retry = Some(now + retry.next());
            }
        }
    }

    /// Compares and writes once; returns what is left.
    async fn pass(&self, scope: Scope<'_>) -> Behind {
        let mut behind = Behind::default();
        // What we wrote last is in the view. What others wrote, and what was written before a restart, may
        // not be there yet.
        if scope.everything
            && let Err(error) = self.cluster.barrier(Consistency::Default).await
        {
            behind.everything = true;
            behind.note(scope.dirty.clone(), error);
            return behind;
        }
        let node = self.local.node();
        if let Err(error) = self.cluster.have(&[WatchKey::node(&node.name)]).await {
            behind.everything = scope.everything;
            behind.note(scope.dirty.clone(), error);
            return behind;
        }
        let local = Local {
            node,
            rows: self.local.rows((!scope.everything).then_some(scope.dirty)),
            server: self.server.clone(),
        };
        let view = self.cluster.registry().view();
        let catalog = view.node(&local.node.name).map(|entry| &**entry);
        let Plan {
            node,
            writes,
            adopted,
        } = plan(&local, catalog, scope);
        drop(view);
        for Adopted { id, ours, theirs } in &adopted {
            self.local.adopt_tags(id, ours, theirs);
        }
        if let Some(register) = node {
            let command = Command::Register(Box::new(register));
            if let Err(error) = self.cluster.write(command).await {
                // Without its node nothing else can be written.
                behind.everything = scope.everything;
                let mut rows = scope.dirty.clone();
                rows.node = true;
                behind.note(rows, error);
                return behind;
            }
        }
        let attempts = writes.into_iter().map(|Write { command, settles }| async {
            let result = self.cluster.write(command).await;
            result.err().map(|error| (settles, error))
        });
        let mut attempts = futures_util::stream::iter(attempts).buffer_unordered(IN_FLIGHT);
        while let Some(result) = attempts.next().await {
            if let Some((settles, error)) = result {
                behind.note(settles, error);
            }
        }
        behind
    }

    /// How long to wait with a comparison after a change of leader. Who is the leader itself waits for
    /// nobody.
    fn leader_spread(&self) -> Duration {
        match self.cluster.leader() {
            Some(leader) if leader.is_self => Duration::ZERO,
            _ => random_up_to(LEADER_SPREAD),
        }
    }
}

/// How long to wait before what failed is tried again: longer each time, never the same on two agents.
#[derive(Debug, Default)]
struct Retry {
    failures: u32,
}

impl Retry {
    fn next(&mut self) -> Duration {
        let whole = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(8))
            .min(LAST_RETRY);
        self.failures += 1;
        whole / 2 + random_up_to(whole / 2)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// By how much the interval of full comparisons grows with the cluster, as in Consul: by one for every
/// doubling beyond [`SCALE_THRESHOLD`].
fn scale(nodes: usize) -> u32 {
    if nodes <= SCALE_THRESHOLD {
        return 1;
    }
    let doublings = (nodes as f64 / SCALE_THRESHOLD as f64).log2();
    doublings.ceil() as u32 + 1
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
