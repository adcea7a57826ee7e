//! Commands of the platform: jobs, plans, what nodes report.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    Str,
    platform::{Alloc, AllocUpdate, ClientStatus, Job, NodeStatus, PlatformNode, UnixNanos},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PlatformCommand {
    /// Puts a job in place of the one with its name. It is valid already. The same specification
    /// again keeps its version, and asks for what failed to be tried at once.
    RegisterJob {
        job: Box<Job>,
        /// Only if the job's `JobModifyIndex` is this; 0: only if there is no such job.
        #[serde(default)]
        check_index: Option<u64>,
        time: UnixNanos,
    },
    /// Stops a job, or with `purge` forgets it: what runs of it is stopped all the same.
    DeregisterJob {
        name: Str,
        #[serde(default)]
        purge: bool,
        time: UnixNanos,
    },
    /// Changes the count of a group; an empty name means the job's only one.
    ScaleJob {
        name: Str,
        group: Str,
        count: u32,
        time: UnixNanos,
    },
    ApplyPlan(Plan),
    /// What a node says of its allocations.
    UpdateAllocs {
        node_id: Str,
        updates: Vec<AllocUpdate>,
        time: UnixNanos,
    },
    /// Ends one allocation at a user's wish; the scheduler replaces it while its job wants it.
    StopAlloc {
        id: Str,
        time: UnixNanos,
    },
    /// Adds a node or changes what it says of itself. What an operator set of it stays.
    RegisterNode {
        node: Box<PlatformNode>,
        time: UnixNanos,
    },
    SetNodeStatus {
        id: Str,
        status: NodeStatus,
        description: Str,
        time: UnixNanos,
    },
    SetNodeEligibility {
        id: Str,
        eligible: bool,
    },
    /// Forgets what has ended. What is still needed is left alone.
    Gc {
        #[serde(default)]
        allocs: Vec<Str>,
        #[serde(default)]
        jobs: Vec<Str>,
        #[serde(default)]
        nodes: Vec<Str>,
    },
}

/// What the scheduler decided, for any number of jobs.
///
/// Stops come first. Then each placement is verified against the state as it is *now*, and left out
/// when it would break what must hold: that its job, version, group and node are those that the
/// scheduler saw, that nothing live has its index, and that its ports are free. The others of the
/// plan take place all the same; the scheduler is told, and looks at the job again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub time: UnixNanos,
    #[serde(default)]
    pub stops: Vec<PlanStop>,
    #[serde(default)]
    pub placements: Vec<Arc<Alloc>>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty() && self.placements.is_empty()
    }
}

/// That an allocation is to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStop {
    pub id: Str,
    pub description: Str,
    /// Its node is gone: it counts as ended from now on.
    #[serde(default)]
    pub lost: bool,
}

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanOutcome {
    pub placed: usize,
    /// By the allocation's id.
    pub left_out: Vec<(Str, PlacementRefusal)>,
}

/// Why a placement was left out of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PlacementRefusal {
    #[error("job {0:?} is gone, or stopped")]
    NoJob(Str),
    #[error("job {job:?} is at version {now}, not {planned}")]
    OtherVersion { job: Str, planned: u64, now: u64 },
    #[error("job {job:?} has no instance {index} of group {group:?}")]
    NoInstance { job: Str, group: Str, index: u32 },
    #[error("{name} is live already: allocation {holder}")]
    IndexTaken { name: Str, holder: Str },
    #[error("there is an allocation {0} already")]
    IdTaken(Str),
    #[error("node {0} is gone, down, or not eligible")]
    NoNode(Str),
    #[error("port {port} of node {node} is taken by allocation {holder}")]
    PortTaken { node: Str, port: u16, holder: Str },
}

/// Why a command about the platform was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PlatformRefusal {
    #[error("a job needs a name")]
    JobNameMissing,
    #[error("there is no job {0:?}")]
    UnknownJob(Str),
    #[error("job {name:?} exists already: its JobModifyIndex is {index}")]
    JobExists { name: Str, index: u64 },
    #[error("job {name:?} was changed in between: its JobModifyIndex is {index}, not {expected}")]
    JobChanged {
        name: Str,
        index: u64,
        expected: u64,
    },
    #[error("job {name:?} does not exist, so its JobModifyIndex is not {expected}")]
    JobNotThere { name: Str, expected: u64 },
    #[error("job {0:?} is stopped: run it again first")]
    JobStopped(Str),
    #[error("job {job:?} has no group {group:?}: it has {known}")]
    UnknownGroup { job: Str, group: Str, known: String },
    #[error("job {job:?} has several groups: name one of {known}")]
    WhichGroup { job: Str, known: String },
    #[error("{count} instances are too many: at most {max}")]
    CountTooHigh { count: u32, max: u32 },
    #[error("there is no allocation {0}")]
    UnknownAlloc(Str),
    #[error("allocation {id} has ended already: {status}")]
    AllocEnded { id: Str, status: ClientStatus },
    #[error("there is no node {0}")]
    UnknownNode(Str),
    #[error("a node needs an id and a name")]
    NodeNameMissing,
}
