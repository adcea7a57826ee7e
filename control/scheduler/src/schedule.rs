//! One job: compared, placed, planned.

use std::{fmt, sync::Arc};

use wharf_registry::{
    command::{Plan, PlanStop},
    model::{
        Str,
        platform::{Alloc, ClientStatus, DesiredStatus, UnixNanos},
    },
    state::JobEntry,
};

use crate::{Ask, ClusterView, Input, Nowhere, Random, Scheduler, reconcile};

/// What was decided about a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scheduled {
    /// To be applied; its placements are counted in the cluster already.
    pub plan: Plan,
    /// Instances for which there is no node.
    pub unplaced: Vec<Unplaced>,
    pub look_again: Option<UnixNanos>,
    pub waits_for_health: bool,
}

/// Instances of one group that found no node, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    pub group: Str,
    pub count: u32,
    pub nowhere: Nowhere,
}

/// What decisions rest on besides their jobs.
pub struct Round<'a> {
    pub scheduler: &'a Scheduler,
    /// What is placed counts here, so that the next job finds it taken.
    pub cluster: &'a mut ClusterView,
    pub healthy: &'a dyn Fn(&Alloc) -> bool,
    pub now: UnixNanos,
    pub random: &'a mut Random,
    /// Gives the ids of new allocations.
    pub new_id: &'a mut dyn FnMut() -> Str,
}

impl fmt::Debug for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round")
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Round<'_> {
    /// Decides about one job.
    pub fn schedule(&mut self, entry: &JobEntry, allocs: &[Arc<Alloc>]) -> Scheduled {
        let compared = reconcile(&Input {
            entry,
            allocs,
            cluster: &*self.cluster,
            healthy: self.healthy,
            now: self.now,
        });
        let mut scheduled = Scheduled {
            plan: Plan {
                time: self.now,
                stops: compared.stops,
                placements: Vec::new(),
            },
            unplaced: Vec::new(),
            look_again: compared.look_again,
            waits_for_health: compared.waits_for_health,
        };
        for stop in &scheduled.plan.stops {
            if stop.lost {
                self.cluster.remove_alloc(&stop.id);
            }
        }
        let version = entry.job.as_ref().map_or(0, |job| job.version);
        for missing in compared.missing {
            let group = &missing.group;
            // The cluster only gets fuller: what found no place once finds none the second time.
            let same = |unplaced: &&mut Unplaced| unplaced.group == group.name;
            if let Some(unplaced) = scheduled.unplaced.iter_mut().find(same) {
                unplaced.count += 1;
                continue;
            }
            let previous = missing.previous.as_deref();
            let failed = previous.filter(|alloc| alloc.client_status == ClientStatus::Failed);
            let ask = Ask::new(&entry.name, group, failed.map(|alloc| &alloc.node_id));
            let placed = match self.scheduler.place(&ask, self.cluster, self.random) {
                Ok(placed) => placed,
                Err(nowhere) => {
                    scheduled.unplaced.push(Unplaced {
                        group: group.name.clone(),
                        count: 1,
                        nowhere,
                    });
                    continue;
                }
            };
            let alloc = Arc::new(Alloc {
                id: (self.new_id)(),
                name: Alloc::name_of(&entry.name, &group.name, missing.index),
                job_name: entry.name.clone(),
                job_version: version,
                group: group.name.clone(),
                index: missing.index,
                node_id: placed.node.id.clone(),
                node: placed.node.name.clone(),
                ports: placed.ports,
                resources: ask.resources,
                previous_alloc: previous.map_or_else(Str::default, |alloc| alloc.id.clone()),
                failures: missing.failures,
                placement: Arc::new(placed.placement),
                ..Alloc::default()
            });
            self.cluster.set_alloc(&alloc);
            if let Some(previous) = previous
                && previous.desired_status == DesiredStatus::Run
                && !previous.is_live()
            {
                scheduled.plan.stops.push(PlanStop {
                    id: previous.id.clone(),
                    description: format!("replaced by allocation {}", alloc.id).into(),
                    lost: false,
                });
            }
            scheduled.plan.placements.push(alloc);
        }
        scheduled
    }
}
