//! What the scheduler decided lately, and why. In memory, bounded, and gone with the leadership: the state has
//! what came of it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use wharf_registry::{
    model::{Str, platform::UnixNanos},
    state::JobEntry,
};
use wharf_scheduler::Scheduled;

/// How many decisions are kept.
const KEPT: usize = 256;

/// One look at a job that led to something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Decision {
    pub time: UnixNanos,
    pub job_name: Str,
    pub job_version: u64,
    /// `web.web[0] on n1`
    pub placed: Vec<String>,
    pub stopped: usize,
    pub unplaced: Vec<PlacementFailure>,
}

/// Instances that wait for a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlacementFailure {
    pub group: Str,
    pub count: u32,
    /// Which dimension lacks, on how many nodes.
    pub reason: String,
    /// Since when it has been so.
    pub since: UnixNanos,
}

/// The decision log. Clones are handles to one log.
#[derive(Clone, Debug, Default)]
pub struct Decisions(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    recent: VecDeque<Decision>,
    failures: BTreeMap<Str, Vec<PlacementFailure>>,
}

impl Decisions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each critical section leaves a whole log behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of the job finds no node, as of the latest look at it.
    pub fn failures(&self, job: &str) -> Vec<PlacementFailure> {
        self.lock().failures.get(job).cloned().unwrap_or_default()
    }

    /// The latest decisions about a job, or about all for an empty name, newest last.
    pub fn recent(&self, job: &str) -> Vec<Decision> {
        let inner = self.lock();
        let about = |decision: &&Decision| job.is_empty() || &*decision.job_name == job;
        inner.recent.iter().filter(about).cloned().collect()
    }

    pub(super) fn record(&self, entry: &JobEntry, scheduled: &Scheduled, now: UnixNanos) {
        let mut inner = self.lock();
        let before = inner.failures.remove(&entry.name).unwrap_or_default();
        let unplaced: Vec<PlacementFailure> = scheduled
            .unplaced
            .iter()
            .map(|unplaced| PlacementFailure {
                group: unplaced.group.clone(),
                count: unplaced.count,
                reason: unplaced.nowhere.to_string(),
                since: before
                    .iter()
                    .find(|failure| failure.group == unplaced.group)
                    .map_or(now, |failure| failure.since),
            })
            .collect();
        let news = unplaced != before;
        if !unplaced.is_empty() {
            inner.failures.insert(entry.name.clone(), unplaced.clone());
        }
        if scheduled.plan.is_empty() && !news {
            return;
        }
        if news {
            for failure in &unplaced {
                let (job, group, count) = (&*entry.name, &*failure.group, failure.count);
                tracing::warn!(
                    job,
                    group,
                    count,
                    reason = failure.reason,
                    "no node for instances"
                );
            }
        }
        let placed = scheduled.plan.placements.iter();
        inner.recent.push_back(Decision {
            time: now,
            job_name: entry.name.clone(),
            job_version: entry.job.as_ref().map_or(0, |job| job.version),
            placed: placed
                .map(|alloc| format!("{} on {}", alloc.name, alloc.node))
                .collect(),
            stopped: scheduled.plan.stops.len(),
            unplaced,
        });
        if inner.recent.len() > KEPT {
            inner.recent.pop_front();
        }
    }

    pub(super) fn forget_job(&self, job: &Str) {
        self.lock().failures.remove(job);
    }

    /// Another agent leads, and decides.
    pub(super) fn forget(&self) {
        *self.lock() = Inner::default();
    }
}
