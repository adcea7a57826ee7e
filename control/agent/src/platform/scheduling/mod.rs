//! The leader's loop: what the state asks for, planned and written.
//!
//! It is level-triggered. A set of dirty job names is fed by what differs between the view it knows and the
//! newest, by timers, and by the health of services that an update waits for; on becoming the leader every job
//! is dirty. What is dirty is compared with what there is, whatever made it so: a wake-up that is lost costs
//! time, never correctness. Plans of a pass go into the log as one entry, or a few for a large pass.
//!
//! A job whose instances find no room is left until capacity changes: an allocation ended, a node came or
//! changed, or the job did.

mod decisions;
mod garbage;
mod leading;
mod liveness;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use wharf_scheduler::Scheduler;

pub use decisions::{Decision, Decisions, PlacementFailure};
use leading::Leading;
use liveness::watch_over_nodes;

use crate::cluster::{Cluster, ClusterError, Consistency};

/// How long the loop waits after a write that failed.
const RETRY: Duration = Duration::from_millis(500);

/// The task that schedules while this agent leads.
#[derive(Debug)]
pub struct Scheduling {
    cluster: Arc<dyn Cluster>,
    scheduler: Scheduler,
    decisions: Decisions,
}

impl Scheduling {
    pub fn new(cluster: Arc<dyn Cluster>, decisions: Decisions) -> Scheduling {
        Scheduling {
            cluster,
            scheduler: Scheduler::default(),
            decisions,
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
        loop {
            // Listening begins before the look: a change in between is not missed.
            let changed = self.cluster.leader_changed();
            if !self.cluster.leader().is_some_and(|leader| leader.is_self) {
                self.decisions.forget();
                changed.await;
                continue;
            }
            let error = tokio::select! {
                error = self.lead() => error,
                error = watch_over_nodes(&*self.cluster) => error,
                () = changed => continue,
            };
            match error {
                // Elections have their own lines in the log.
                ClusterError::NoLeader => {}
                error => tracing::warn!(%error, "the scheduler starts over"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Works until a write fails: what the state is then has to be found out.
    async fn lead(&self) -> ClusterError {
        // Everything that earlier leaders wrote is seen first.
        if let Err(error) = self.cluster.barrier(Consistency::Default).await {
            return error;
        }
        let mut leading = Leading::new(&*self.cluster, &self.scheduler, &self.decisions);
        loop {
            if let Err(error) = leading.pass().await {
                return error;
            }
            leading.changed().await;
        }
    }
}
