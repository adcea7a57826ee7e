//! A job in a few numbers.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use wharf_registry::{
    View,
    model::{
        Str,
        platform::{ClientStatus, DesiredStatus, Job},
    },
};

/// How a job is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Something of it is not there yet.
    #[default]
    Pending,
    /// Every instance runs, in the version that is asked for.
    Running,
    /// It is stopped, and nothing of it runs any more.
    Dead,
    /// It is stopped, and something of it runs still.
    Stopping,
}

impl JobStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Pending => "pending",
            JobStatus::Running => "running",
            JobStatus::Dead => "dead",
            JobStatus::Stopping => "stopping",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The allocations of a group, counted. Those that are to run are counted by what became of them; `Stopping`
/// are those that are not, and run still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GroupSummary {
    pub desired: u32,
    pub pending: u32,
    pub running: u32,
    /// Those of the running whose tasks run now and whose services pass in the catalog.
    pub healthy: u32,
    pub stopping: u32,
    /// Those of the pending and running that an update has not replaced yet.
    pub outdated: u32,
    /// All that ended so, as far as they are remembered.
    pub failed: u32,
    pub complete: u32,
    pub lost: u32,
}

impl GroupSummary {
    /// Whether exactly what is asked for runs.
    pub fn is_complete(&self) -> bool {
        self.running == self.desired && self.outdated == 0
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobSummary {
    pub status: JobStatus,
    /// By name of the group.
    pub summary: BTreeMap<Str, GroupSummary>,
}

impl JobSummary {
    pub fn of(view: &View, job: &Job) -> JobSummary {
        let mut summary: BTreeMap<Str, GroupSummary> = BTreeMap::new();
        for group in job.groups.iter().filter(|_| !job.stop) {
            summary.entry(group.name.clone()).or_default().desired = group.count;
        }
        let mut live = false;
        for alloc in view.job_allocs(&job.name) {
            let group = summary.entry(alloc.group.clone()).or_default();
            live |= alloc.is_live();
            let count = match (alloc.client_status, alloc.desired_status) {
                (ClientStatus::Pending | ClientStatus::Running, DesiredStatus::Stop) => {
                    &mut group.stopping
                }
                (ClientStatus::Pending, _) => &mut group.pending,
                (ClientStatus::Running, _) => &mut group.running,
                (ClientStatus::Complete, _) => &mut group.complete,
                (ClientStatus::Failed, _) => &mut group.failed,
                (ClientStatus::Lost, _) => &mut group.lost,
            };
            *count += 1;
            let wanted = alloc.desired_status == DesiredStatus::Run;
            group.healthy += u32::from(wanted && super::health::is_healthy(view, alloc));
            let version = view.job_version(&job.name, alloc.job_version);
            let old = version.and_then(|version| version.group(&alloc.group));
            let is_current = match (old, job.group(&alloc.group)) {
                (Some(old), Some(new)) => old.is_same_instance(new),
                _ => false,
            };
            group.outdated += u32::from(alloc.is_wanted() && !is_current);
        }
        let status = match (job.stop, live) {
            (true, true) => JobStatus::Stopping,
            (true, false) => JobStatus::Dead,
            (false, _) if summary.values().all(GroupSummary::is_complete) => JobStatus::Running,
            (false, _) => JobStatus::Pending,
        };
        JobSummary { status, summary }
    }

    /// Whether exactly what is asked for runs, and does its work.
    pub fn is_healthy(&self) -> bool {
        let healthy = |group: &GroupSummary| group.healthy == group.desired;
        self.status == JobStatus::Running && self.summary.values().all(healthy)
    }

    /// How many of all groups together pass.
    pub fn healthy(&self) -> u32 {
        self.summary.values().map(|group| group.healthy).sum()
    }

    /// `3/3` of all groups together.
    pub fn running(&self) -> (u32, u32) {
        self.summary
            .values()
            .fold((0, 0), |(running, desired), group| {
                (running + group.running, desired + group.desired)
            })
    }
}
