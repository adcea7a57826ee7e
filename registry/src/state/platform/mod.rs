//! The platform: jobs, their allocations, and the nodes that carry them.
//!
//! What must hold, whatever order commands come in:
//! * no two live allocations have one index of a group ([`Alloc::is_live`]);
//! * an allocation that ended stays ended;
//! * while an allocation refers to a version of a job, or to a node, that is kept.

mod alloc;
mod gc;
mod job;
mod node;
mod plan;
mod records;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::Touched;
use crate::{
    command::{Outcome, PlatformCommand, PlatformRefusal, Refusal},
    model::{
        Str,
        platform::{Alloc, Job, PlatformNode},
    },
    watch::WatchKey,
};

pub use records::PlatformRecord;

/// The tables of the platform.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlatformState {
    /// By name.
    pub(crate) jobs: OrdMap<Str, Arc<JobEntry>>,
    /// By id.
    pub(crate) allocs: OrdMap<Str, Arc<Alloc>>,
    /// By id.
    pub(crate) nodes: OrdMap<Str, Arc<NodeEntry>>,
    pub(crate) indexes: PlatformIndexes,
}

/// When the answers to questions about the platform last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformIndexes {
    /// Any job.
    pub jobs: u64,
    /// Any allocation.
    pub allocs: u64,
    /// Any node.
    pub nodes: u64,
    /// The last trace of a job was removed.
    pub job_extinction: u64,
    /// An allocation was forgotten.
    pub alloc_extinction: u64,
    /// A node was removed.
    pub node_extinction: u64,
}

/// A job with what belongs to it. It outlives the job while there are allocations of it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEntry {
    pub name: Str,
    /// `None`: it was purged, and its last allocations are not forgotten yet.
    pub job: Option<Arc<Job>>,
    /// The current one, the last few, and those that an allocation was made from.
    pub versions: OrdMap<u64, Arc<Job>>,
    /// The ids of its allocations, ended ones included.
    pub allocs: OrdSet<Str>,
    /// When the job or its versions last changed.
    pub index: u64,
    /// When an allocation of it last changed.
    pub allocs_index: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeEntry {
    pub(crate) node: Arc<PlatformNode>,
    pub(crate) allocs: OrdSet<Str>,
    pub(crate) allocs_index: u64,
}

impl PlatformState {
    pub(super) fn apply(
        &mut self,
        index: u64,
        command: &PlatformCommand,
        touched: &mut Touched,
    ) -> Outcome {
        let result = match command {
            PlatformCommand::RegisterJob {
                job,
                check_index,
                time,
            } => self.register_job(index, job, *check_index, *time, touched),
            PlatformCommand::DeregisterJob { name, purge, time } => {
                self.deregister_job(index, name, *purge, *time, touched)
            }
            PlatformCommand::ScaleJob {
                name,
                group,
                count,
                time,
            } => self.scale_job(index, name, group, *count, *time, touched),
            PlatformCommand::ApplyPlan(plan) => {
                return Outcome::Planned(self.apply_plan(index, plan, touched));
            }
            PlatformCommand::UpdateAllocs {
                node_id,
                updates,
                time,
            } => {
                for update in updates {
                    self.update_alloc(index, node_id, update, *time, touched);
                }
                Ok(())
            }
            PlatformCommand::StopAlloc { id, time } => self.stop_alloc(index, id, *time, touched),
            PlatformCommand::RegisterNode { node, time } => {
                self.register_node(index, node, *time, touched)
            }
            PlatformCommand::SetNodeStatus {
                id,
                status,
                description,
                time,
            } => self.change_node(index, id, touched, |node| {
                if node.status != *status {
                    node.status_time = *time;
                }
                node.status = *status;
                node.status_description = description.clone();
            }),
            PlatformCommand::SetNodeEligibility { id, eligible } => {
                self.change_node(index, id, touched, |node| node.eligible = *eligible)
            }
            PlatformCommand::Gc {
                allocs,
                jobs,
                nodes,
            } => {
                self.gc(index, allocs, jobs, nodes, touched);
                Ok(())
            }
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(Refusal::Platform(refusal)),
        }
    }

    fn job_or_refuse(&self, name: &Str) -> Result<&Arc<Job>, PlatformRefusal> {
        self.jobs
            .get(name)
            .and_then(|entry| entry.job.as_ref())
            .ok_or_else(|| PlatformRefusal::UnknownJob(name.clone()))
    }

    /// The allocations with these ids.
    pub(crate) fn allocs_of<'a>(
        &'a self,
        ids: Option<&'a OrdSet<Str>>,
    ) -> impl Iterator<Item = &'a Arc<Alloc>> {
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.allocs.get(id))
    }

    /// Puts an allocation, new or changed, into its place and moves every index that it is in.
    fn put_alloc(&mut self, index: u64, mut alloc: Alloc, touched: &mut Touched) {
        alloc.modify_index = index;
        let id = alloc.id.clone();
        self.alloc_changed(index, &alloc, touched, |ids| {
            ids.insert(id.clone());
        });
        self.allocs.insert(alloc.id.clone(), Arc::new(alloc));
    }

    /// Moves the indexes of an allocation's questions, and changes the sets that it is in.
    fn alloc_changed(
        &mut self,
        index: u64,
        alloc: &Alloc,
        touched: &mut Touched,
        change: impl Fn(&mut OrdSet<Str>),
    ) {
        if let Some(entry) = self.jobs.get_mut(&alloc.job_name) {
            let entry = Arc::make_mut(entry);
            change(&mut entry.allocs);
            entry.allocs_index = index;
        }
        if let Some(entry) = self.nodes.get_mut(&alloc.node_id) {
            let entry = Arc::make_mut(entry);
            change(&mut entry.allocs);
            entry.allocs_index = index;
        }
        self.indexes.allocs = index;
        touched.add(WatchKey::Allocs);
        touched.add(WatchKey::JobAllocs(alloc.job_name.clone()));
        touched.add(WatchKey::NodeAllocs(alloc.node_id.clone()));
        touched.add(WatchKey::Alloc(alloc.id.clone()));
    }
}

#[cfg(test)]
mod tests;
