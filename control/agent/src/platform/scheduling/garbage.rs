//! What is old enough to be forgotten.

use std::time::Duration;

use wharf_registry::{
    View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{DesiredStatus, NodeStatus, UnixNanos},
    },
};

/// How often the leader looks.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// How long an allocation that ended, and was replaced or is not wanted, is remembered.
const ALLOC_TTL: Duration = Duration::from_secs(60 * 60);
/// How long a stopped job is (Nomad's).
const JOB_TTL: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a node that is down is (Nomad's).
const NODE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// What one command forgets at most.
const BATCH: usize = 1000;

/// What to forget now, if there is anything.
pub(super) fn collect(view: &View, now: UnixNanos) -> Option<PlatformCommand> {
    let older = |time: UnixNanos, ttl: Duration| {
        u128::try_from(now.saturating_sub(time)).is_ok_and(|age| age >= ttl.as_nanos())
    };
    let wanted = |job: &str| view.job(job).is_some_and(|job| !job.stop);
    let allocs: Vec<Str> = view
        .allocs()
        .filter(|alloc| !alloc.is_live() && older(alloc.end_time, ALLOC_TTL))
        .filter(|alloc| alloc.desired_status == DesiredStatus::Stop || !wanted(&alloc.job_name))
        .map(|alloc| alloc.id.clone())
        .take(BATCH)
        .collect();
    let jobs: Vec<Str> = view
        .jobs()
        .filter(|job| job.stop && older(job.submit_time, JOB_TTL))
        .filter(|job| !view.job_allocs(&job.name).any(|alloc| alloc.is_live()))
        .map(|job| job.name.clone())
        .take(BATCH)
        .collect();
    let nodes: Vec<Str> = view
        .platform_nodes()
        .filter(|node| node.status == NodeStatus::Down && older(node.status_time, NODE_TTL))
        .filter(|node| view.node_allocs(&node.id).next().is_none())
        .map(|node| node.id.clone())
        .take(BATCH)
        .collect();
    let nothing = allocs.is_empty() && jobs.is_empty() && nodes.is_empty();
    (!nothing).then_some(PlatformCommand::Gc {
        allocs,
        jobs,
        nodes,
    })
}
