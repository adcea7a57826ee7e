use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Resources, TaskState, UnixNanos, names};
use crate::model::{Str, is_default};

/// An allocation: one instance of a group on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Alloc {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: Str,
    /// `job.group[index]`
    pub name: Str,
    pub job_name: Str,
    /// The version of the job that it was made from; the state keeps its specification.
    pub job_version: u64,
    pub group: Str,
    /// Below the group's count; one live allocation has it at a time.
    pub index: u32,
    #[serde(rename = "NodeID")]
    pub node_id: Str,
    /// The node's name.
    pub node: Str,
    pub desired_status: DesiredStatus,
    /// Why it is to stop.
    pub desired_description: Str,
    pub client_status: ClientStatus,
    pub client_description: Str,
    /// Where the tasks are reached from this node; empty until the network is there.
    pub address: Str,
    pub ports: Vec<AllocPort>,
    /// What it reserves, all tasks and sidecars together.
    pub resources: Resources,
    /// By name of the task.
    pub task_states: BTreeMap<Str, TaskState>,
    /// The allocation that this one took the place of.
    #[serde(skip_serializing_if = "is_default")]
    pub previous_alloc: Str,
    /// How many allocations in a row, before this one, failed at this index.
    #[serde(skip_serializing_if = "is_default")]
    pub failures: u32,
    /// Why here.
    pub placement: Arc<Placement>,
    pub create_index: u64,
    /// When anything of it last changed.
    pub modify_index: u64,
    /// When what its node has to know last changed: the desired status.
    pub alloc_modify_index: u64,
    pub create_time: UnixNanos,
    pub modify_time: UnixNanos,
    /// When it was told to stop; 0: it was not.
    pub stop_time: UnixNanos,
    /// When its client status became a final one.
    pub end_time: UnixNanos,
}

impl Alloc {
    /// The name of the allocation with this place in a job.
    pub fn name_of(job: &str, group: &str, index: u32) -> Str {
        format!("{job}.{group}[{index}]").into()
    }

    /// Whether it may still run somewhere. While it is live it holds its index, its ports and its
    /// resources, also when it is told to stop already.
    pub fn is_live(&self) -> bool {
        !self.client_status.is_final()
    }

    /// Whether it is to run and has not ended.
    pub fn is_wanted(&self) -> bool {
        self.desired_status == DesiredStatus::Run && self.is_live()
    }

    pub fn port(&self, label: &str) -> Option<&AllocPort> {
        self.ports.iter().find(|port| &*port.label == label)
    }
}

/// What the servers want of an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredStatus {
    #[default]
    Run,
    Stop,
}

names!(DesiredStatus { Run => "run", Stop => "stop" });

/// What became of an allocation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ClientStatus {
    /// Not every task has started.
    #[default]
    Pending,
    Running,
    /// It ended as it was told, or by itself without an error.
    Complete,
    Failed,
    /// Its node was lost. Decided by the servers; when the node returns it stops what it still has.
    Lost,
}

names!(ClientStatus {
    Pending => "pending",
    Running => "running",
    Complete => "complete",
    Failed => "failed",
    Lost => "lost",
});

impl ClientStatus {
    /// Whether nothing of the allocation runs, or ever will.
    pub fn is_final(self) -> bool {
        !matches!(self, ClientStatus::Pending | ClientStatus::Running)
    }
}

/// A port as an allocation has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AllocPort {
    pub label: Str,
    /// The port of the node.
    pub value: u16,
    /// The port that the task listens on in its own network.
    pub to: u16,
}

/// Why the scheduler chose the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    /// Nodes that were looked at.
    pub nodes_evaluated: u32,
    /// Those of them that were not able to take it.
    pub nodes_filtered: u32,
    /// The scores of the best candidates, best first.
    pub scores: Vec<NodeScore>,
}

/// How good a node was, by each scorer, and on the whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeScore {
    #[serde(rename = "NodeID")]
    pub node_id: Str,
    pub node: Str,
    pub scores: BTreeMap<Str, f64>,
    /// The weighted mean of the scores, from -1 to 1.
    pub final_score: f64,
}

/// What a node reports of one of its allocations: always the whole of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AllocUpdate {
    #[serde(rename = "ID")]
    pub id: Str,
    pub client_status: ClientStatus,
    pub client_description: Str,
    pub address: Str,
    pub task_states: BTreeMap<Str, TaskState>,
}
