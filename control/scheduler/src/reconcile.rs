//! What a job asks for, compared with what there is of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use wharf_registry::{
    command::PlanStop,
    model::{
        Str,
        platform::{Alloc, ClientStatus, DesiredStatus, Job, NodeStatus, TaskGroup, UnixNanos},
    },
    state::JobEntry,
};

use crate::ClusterView;

/// The first wait before an instance that failed is replaced; it doubles with each failure in a row.
const FIRST_DELAY: Duration = Duration::from_secs(30);
const MAX_DELAY: Duration = Duration::from_secs(60 * 60);
/// An instance that ran this long before it failed did work: the count of failures begins anew.
const LONG_RUN: Duration = Duration::from_secs(10 * 60);

/// What is looked at.
pub struct Input<'a> {
    pub entry: &'a JobEntry,
    /// All allocations of the job, ended ones included.
    pub allocs: &'a [Arc<Alloc>],
    /// Which nodes are there.
    pub cluster: &'a ClusterView,
    /// Whether an allocation that runs is in good health.
    pub healthy: &'a dyn Fn(&Alloc) -> bool,
    pub now: UnixNanos,
}

/// What has to happen to a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reconciled {
    pub stops: Vec<PlanStop>,
    /// In the order in which they are to be placed.
    pub missing: Vec<Missing>,
    /// When time alone makes a difference.
    pub look_again: Option<UnixNanos>,
    /// Instances of an older version go on when those of the new one are healthy.
    pub waits_for_health: bool,
}

/// An instance that is to be placed.
#[derive(Clone, Debug, PartialEq)]
pub struct Missing {
    pub group: Arc<TaskGroup>,
    pub index: u32,
    /// Whose place it takes.
    pub previous: Option<Arc<Alloc>>,
    /// How many before it failed in a row.
    pub failures: u32,
}

/// How long an instance that failed waits to be replaced, when `earlier` before it failed in a row.
pub fn reschedule_delay(earlier: u32) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1u32.checked_shl(earlier).unwrap_or(u32::MAX));
    doubled.min(MAX_DELAY)
}

/// Compares. The same input gives the same answer, and once the answer is carried out, an empty one.
///
/// * What no longer belongs to the job is stopped; of too many instances, those with the highest indexes.
/// * An allocation on a node that is down or gone is lost, and replaced at once.
/// * One that ended by itself is replaced after a delay ([`reschedule_delay`]), at once if the job was
///   registered since.
/// * One of another specification is stopped when all instances of its group are there and healthy: one at
///   a time. The next follows when its replacement is healthy.
/// * Nothing is placed at an index until what had it has ended.
pub fn reconcile(input: &Input<'_>) -> Reconciled {
    let mut out = Reconciled::default();
    let job = input.entry.job.as_ref().filter(|job| !job.stop);
    let mut places: BTreeMap<(&str, u32), Place<'_>> = BTreeMap::new();
    for alloc in input.allocs {
        let node = input.cluster.node(&alloc.node_id);
        let lost = alloc.is_live() && node.is_none_or(|node| node.status == NodeStatus::Down);
        if lost {
            let description = match node {
                Some(node) => format!("node {} is down", node.name),
                None => format!("node {} is gone", alloc.node),
            };
            out.stop(alloc, description, true);
        }
        if let Err(reason) = belongs(job, input.entry, alloc) {
            if alloc.is_wanted() && !lost {
                out.stop(alloc, reason, false);
            }
            continue;
        }
        let place = places.entry((&*alloc.group, alloc.index)).or_default();
        if alloc.is_live() && !lost {
            place.live.push(alloc);
        } else if place
            .ended
            .is_none_or(|(other, _)| other.create_index <= alloc.create_index)
        {
            place.ended = Some((alloc, lost));
        }
    }
    let Some(job) = job else {
        return out;
    };
    for group in &job.groups {
        reconcile_group(input, job, group, &places, &mut out);
    }
    out
}

/// What is at one index of a group.
#[derive(Default)]
struct Place<'a> {
    /// One at most, unless something went wrong.
    live: Vec<&'a Arc<Alloc>>,
    /// The latest that has ended, and whether it was found to be lost only now.
    ended: Option<(&'a Arc<Alloc>, bool)>,
}

/// Whether the job still asks for this instance; if not, why it goes.
fn belongs(job: Option<&Arc<Job>>, entry: &JobEntry, alloc: &Alloc) -> Result<(), String> {
    let Some(job) = job else {
        return Err(match entry.job {
            Some(_) => "the job is stopped".to_owned(),
            None => "the job was purged".to_owned(),
        });
    };
    match job.group(&alloc.group) {
        None => Err(format!("the job has no group {:?} any more", alloc.group)),
        Some(group) if alloc.index >= group.count => {
            Err(format!("the group was scaled down to {}", group.count))
        }
        Some(_) => Ok(()),
    }
}

fn reconcile_group(
    input: &Input<'_>,
    job: &Arc<Job>,
    group: &Arc<TaskGroup>,
    places: &BTreeMap<(&str, u32), Place<'_>>,
    out: &mut Reconciled,
) {
    let is_current = |alloc: &Alloc| {
        alloc.job_version == job.version
            || input
                .entry
                .versions
                .get(&alloc.job_version)
                .and_then(|version| version.group(&alloc.group))
                .is_some_and(|old| old.is_same_instance(group))
    };
    let is_healthy =
        |alloc: &Alloc| alloc.client_status == ClientStatus::Running && (input.healthy)(alloc);
    // Instances that are not there, or are and not in good health: while there is one, no other is given up.
    let mut unsettled = false;
    let mut outdated: Vec<&Arc<Alloc>> = Vec::new();
    for index in 0..group.count {
        let place = places.get(&(&*group.name, index));
        let live = place.map_or(&[][..], |place| place.live.as_slice());
        if live.is_empty() {
            unsettled = true;
            let ended = place.and_then(|place| place.ended);
            let (due, failures) = match ended {
                Some((previous, lost)) => next_attempt(job, previous, lost, is_current(previous)),
                None => (UnixNanos::MIN, 0),
            };
            if due <= input.now {
                out.missing.push(Missing {
                    group: group.clone(),
                    index,
                    previous: ended.map(|(previous, _)| previous.clone()),
                    failures,
                });
            } else {
                out.look_again = Some(out.look_again.map_or(due, |other| other.min(due)));
            }
            continue;
        }
        // The best of those that are to stay; the others are one too many.
        let mut wanted: Vec<&Arc<Alloc>> = live
            .iter()
            .copied()
            .filter(|alloc| alloc.is_wanted())
            .collect();
        wanted.sort_by_key(|alloc| {
            let running = alloc.client_status == ClientStatus::Running;
            (!is_current(alloc), !running, alloc.create_index)
        });
        let Some((kept, rest)) = wanted.split_first() else {
            unsettled = true;
            continue;
        };
        for alloc in rest {
            out.stop(
                alloc,
                format!("allocation {} has its place", kept.id),
                false,
            );
        }
        if !is_current(kept) {
            outdated.push(*kept);
        } else if !is_healthy(kept) {
            unsettled = true;
        }
    }
    if outdated.is_empty() {
        return;
    }
    if unsettled {
        out.waits_for_health = true;
        return;
    }
    // What serves nobody goes first.
    let next = outdated
        .iter()
        .find(|alloc| !is_healthy(alloc))
        .unwrap_or(&outdated[0]);
    out.waits_for_health = true;
    out.stop(next, format!("replaced by version {}", job.version), false);
}

/// When the instance after `previous` may be placed, and how many failed in a row before it.
fn next_attempt(job: &Job, previous: &Alloc, lost: bool, current: bool) -> (UnixNanos, u32) {
    let ended_by_itself = previous.desired_status == DesiredStatus::Run
        && matches!(
            previous.client_status,
            ClientStatus::Failed | ClientStatus::Complete
        );
    if !current || (ended_by_itself && job.submit_time > previous.end_time) {
        return (UnixNanos::MIN, 0);
    }
    if !ended_by_itself {
        // A user, or an update, ended it; or it was not its own fault.
        let own_fault = previous.client_status == ClientStatus::Failed && !lost;
        return (UnixNanos::MIN, previous.failures + u32::from(own_fault));
    }
    let ran = previous.end_time.saturating_sub(previous.create_time);
    let earlier = match Duration::from_nanos(ran.max(0) as u64) >= LONG_RUN {
        true => 0,
        false => previous.failures,
    };
    let delay = i64::try_from(reschedule_delay(earlier).as_nanos()).unwrap_or(i64::MAX);
    (previous.end_time.saturating_add(delay), earlier + 1)
}

impl Reconciled {
    fn stop(&mut self, alloc: &Alloc, description: String, lost: bool) {
        self.stops.push(PlanStop {
            id: alloc.id.clone(),
            description: Str::from(description),
            lost,
        });
    }
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("job", &self.entry.name)
            .field("allocs", &self.allocs.len())
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}
