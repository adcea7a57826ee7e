//! Plans of the scheduler, verified once more where nothing can come in between.

use std::sync::Arc;

use super::PlatformState;
use crate::{
    command::{PlacementRefusal, Plan, PlanOutcome},
    model::platform::{Alloc, ClientStatus, DesiredStatus},
    state::Touched,
};

impl PlatformState {
    pub(super) fn apply_plan(
        &mut self,
        index: u64,
        plan: &Plan,
        touched: &mut Touched,
    ) -> PlanOutcome {
        for stop in &plan.stops {
            let Some(old) = self.allocs.get(&stop.id) else {
                continue;
            };
            let mut alloc = Alloc::clone(old);
            if old.desired_status == DesiredStatus::Run {
                alloc.desired_status = DesiredStatus::Stop;
                alloc.desired_description = stop.description.clone();
                alloc.stop_time = plan.time;
                alloc.alloc_modify_index = index;
            }
            if stop.lost && old.is_live() {
                alloc.client_status = ClientStatus::Lost;
                alloc.client_description = stop.description.clone();
                alloc.end_time = plan.time;
            }
            if alloc == **old {
                continue;
            }
            alloc.modify_time = plan.time;
            self.put_alloc(index, alloc, touched);
        }
        let mut outcome = PlanOutcome::default();
        for planned in &plan.placements {
            match self.verify(planned) {
                Err(refusal) => outcome.left_out.push((planned.id.clone(), refusal)),
                Ok(()) => {
                    let alloc = Alloc {
                        create_index: index,
                        alloc_modify_index: index,
                        create_time: plan.time,
                        modify_time: plan.time,
                        stop_time: 0,
                        end_time: 0,
                        ..Alloc::clone(planned)
                    };
                    self.put_alloc(index, alloc, touched);
                    outcome.placed += 1;
                }
            }
        }
        outcome
    }

    fn verify(&self, planned: &Arc<Alloc>) -> Result<(), PlacementRefusal> {
        let name = &planned.job_name;
        let entry = self.jobs.get(name);
        let Some((entry, job)) = entry.and_then(|entry| {
            let job = entry.job.as_ref().filter(|job| !job.stop)?;
            Some((entry, job))
        }) else {
            return Err(PlacementRefusal::NoJob(name.clone()));
        };
        if job.version != planned.job_version {
            return Err(PlacementRefusal::OtherVersion {
                job: name.clone(),
                planned: planned.job_version,
                now: job.version,
            });
        }
        if job
            .group(&planned.group)
            .is_none_or(|group| planned.index >= group.count)
            || !planned.is_wanted()
        {
            return Err(PlacementRefusal::NoInstance {
                job: name.clone(),
                group: planned.group.clone(),
                index: planned.index,
            });
        }
        if self.allocs.contains_key(&planned.id) {
            return Err(PlacementRefusal::IdTaken(planned.id.clone()));
        }
        let holder = self.allocs_of(Some(&entry.allocs)).find(|other| {
            other.is_live() && other.group == planned.group && other.index == planned.index
        });
        if let Some(holder) = holder {
            return Err(PlacementRefusal::IndexTaken {
                name: planned.name.clone(),
                holder: holder.id.clone(),
            });
        }
        let Some(node) = self
            .nodes
            .get(&planned.node_id)
            .filter(|entry| entry.node.is_candidate())
        else {
            return Err(PlacementRefusal::NoNode(planned.node_id.clone()));
        };
        for other in self.allocs_of(Some(&node.allocs)) {
            if !other.is_live() {
                continue;
            }
            let taken = |port: u16| other.ports.iter().any(|own| own.value == port);
            if let Some(port) = planned.ports.iter().find(|port| taken(port.value)) {
                return Err(PlacementRefusal::PortTaken {
                    node: node.node.name.clone(),
                    port: port.value,
                    holder: other.id.clone(),
                });
            }
        }
        Ok(())
    }
}
