//! Random histories of the platform, and the questions that may be asked about it.

use std::{collections::BTreeSet, sync::Arc};

use super::*;
use crate::{
    command::{Plan, PlanStop, PlatformCommand},
    model::platform::{
        Alloc, AllocPort, AllocUpdate, ClientStatus, Job, NodeStatus, PlatformNode, Task, TaskGroup,
    },
};

const JOBS: &[&str] = &["web", "db"];
const GROUPS: &[&str] = &["one", "two"];
const NODES: &[&str] = &["n1", "n2"];
const ALLOCS: &[&str] = &["a1", "a2", "a3", "a4", "a5", "b1"];

fn job() -> impl Strategy<Value = Job> {
    let group = (name(GROUPS), 0u32..4, 0u16..3).prop_map(|(name, count, command)| {
        Arc::new(TaskGroup {
            name,
            count,
            tasks: vec![Task {
                name: "task".into(),
                command: command.to_string().into(),
                ..Task::default()
            }],
            ..TaskGroup::default()
        })
    });
    (name(JOBS), proptest::collection::vec(group, 1..3)).prop_map(|(name, groups)| Job {
        name,
        groups,
        ..Job::default()
    })
}

fn client_status() -> impl Strategy<Value = ClientStatus> {
    proptest::sample::select(&[
        ClientStatus::Pending,
        ClientStatus::Running,
        ClientStatus::Complete,
        ClientStatus::Failed,
    ])
}

fn placement() -> impl Strategy<Value = Arc<Alloc>> {
    let place = (name(JOBS), name(GROUPS), 0u32..3, 0u64..2);
    (name(ALLOCS), place, name(NODES), 0u16..4).prop_map(|(id, place, node_id, port)| {
        let (job_name, group, index, job_version) = place;
        let port = AllocPort {
            label: "http".into(),
            value: 8000 + port,
            to: 0,
        };
        Arc::new(Alloc {
            id,
            name: Alloc::name_of(&job_name, &group, index),
            job_name,
            job_version,
            group,
            index,
            node_id,
            ports: vec![port],
            ..Alloc::default()
        })
    })
}

fn some(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Str>> {
    proptest::collection::vec(name(names), 0..3)
}

fn plan() -> impl Strategy<Value = PlatformCommand> {
    let stop = (name(ALLOCS), proptest::bool::ANY).prop_map(|(id, lost)| PlanStop {
        id,
        description: "not needed".into(),
        lost,
    });
    let parts = (
        proptest::collection::vec(stop, 0..2),
        proptest::collection::vec(placement(), 0..4),
    );
    (parts, 0i64..1000).prop_map(|((stops, placements), time)| {
        PlatformCommand::ApplyPlan(Plan {
            time,
            stops,
            placements,
        })
    })
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    let update = (name(ALLOCS), client_status()).prop_map(|(id, client_status)| AllocUpdate {
        id,
        client_status,
        ..AllocUpdate::default()
    });
    let time = 0i64..1000;
    prop_oneof![
        4 => (job(), proptest::option::of(0u64..60), time).prop_map(
            |(job, check_index, time)| PlatformCommand::RegisterJob {
                job: Box::new(job), check_index, time,
            }),
        1 => (name(JOBS), proptest::bool::ANY).prop_map(
            |(name, purge)| PlatformCommand::DeregisterJob { name, purge, time: 1 }),
        1 => (name(JOBS), name(&["", "one", "two"]), 0u32..5).prop_map(
            |(name, group, count)| PlatformCommand::ScaleJob { name, group, count, time: 2 }),
        8 => plan(),
        4 => (name(NODES), proptest::collection::vec(update, 1..3)).prop_map(
            |(node_id, updates)| PlatformCommand::UpdateAllocs { node_id, updates, time: 3 }),
        1 => name(ALLOCS).prop_map(|id| PlatformCommand::StopAlloc { id, time: 4 }),
        4 => (name(NODES), name(&["10.0.0.1", "10.0.0.2"])).prop_map(|(id, address)| {
            let node = PlatformNode {
                name: id.clone(), id, address, ..PlatformNode::default()
            };
            PlatformCommand::RegisterNode { node: Box::new(node), time: 5 }
        }),
        1 => (name(NODES), proptest::bool::ANY).prop_map(|(id, down)| {
            PlatformCommand::SetNodeStatus {
                id,
                status: if down { NodeStatus::Down } else { NodeStatus::Ready },
                description: "".into(),
                time: 6,
            }
        }),
        1 => (name(NODES), proptest::bool::ANY).prop_map(
            |(id, eligible)| PlatformCommand::SetNodeEligibility { id, eligible }),
        1 => (some(ALLOCS), some(JOBS), some(NODES)).prop_map(
            |(allocs, jobs, nodes)| PlatformCommand::Gc { allocs, jobs, nodes }),
    ]
    .prop_map(Command::Platform)
}

pub(super) fn questions() -> Vec<Question> {
    let mut questions: Vec<Question> = vec![
        (WatchKey::Jobs, |view, _| {
            let jobs: Vec<_> = view.jobs().collect();
            (view.platform_indexes().jobs, format!("{jobs:?}"))
        }),
        (WatchKey::Allocs, |view, _| {
            let allocs: Vec<_> = view.allocs().collect();
            (view.platform_indexes().allocs, format!("{allocs:?}"))
        }),
        (WatchKey::PlatformNodes, |view, _| {
            let nodes: Vec<_> = view.platform_nodes().collect();
            (view.platform_indexes().nodes, format!("{nodes:?}"))
        }),
    ];
    for job in JOBS {
        questions.push((WatchKey::Job((*job).into()), |view, key| {
            let WatchKey::Job(name) = key else {
                unreachable!()
            };
            let versions = view.job_entry(name).map(|entry| &entry.versions);
            let answer = format!("{:?} {versions:?}", view.job(name));
            (view.job_index(name), answer)
        }));
        questions.push((WatchKey::JobAllocs((*job).into()), |view, key| {
            let WatchKey::JobAllocs(name) = key else {
                unreachable!()
            };
            let allocs: Vec<_> = view.job_allocs(name).collect();
            (view.job_allocs_index(name), format!("{allocs:?}"))
        }));
    }
    for node in NODES {
        questions.push((WatchKey::NodeAllocs((*node).into()), |view, key| {
            let WatchKey::NodeAllocs(id) = key else {
                unreachable!()
            };
            let allocs: Vec<_> = view.node_allocs(id).collect();
            (view.node_allocs_index(id), format!("{allocs:?}"))
        }));
        questions.push((WatchKey::PlatformNode((*node).into()), |view, key| {
            let WatchKey::PlatformNode(id) = key else {
                unreachable!()
            };
            let node = view.platform_node(id);
            (view.platform_node_index(id), format!("{node:?}"))
        }));
    }
    for alloc in ALLOCS {
        questions.push((WatchKey::Alloc((*alloc).into()), |view, key| {
            let WatchKey::Alloc(id) = key else {
                unreachable!()
            };
            (view.alloc_index(id), format!("{:?}", view.alloc(id)))
        }));
    }
    questions
}

/// A history that gets somewhere: nodes and jobs first, then mostly plans for them.
pub(super) fn history() -> impl Strategy<Value = Vec<Command>> {
    let nodes = NODES.iter().map(|id| {
        let node = PlatformNode {
            id: (*id).into(),
            name: (*id).into(),
            ..PlatformNode::default()
        };
        PlatformCommand::RegisterNode {
            node: Box::new(node),
            time: 0,
        }
    });
    let jobs = JOBS.iter().map(|name| {
        let group = |name: &&str| {
            Arc::new(TaskGroup {
                name: (*name).into(),
                count: 3,
                ..TaskGroup::default()
            })
        };
        let job = Job {
            name: (*name).into(),
            groups: GROUPS.iter().map(group).collect(),
            ..Job::default()
        };
        PlatformCommand::RegisterJob {
            job: Box::new(job),
            check_index: None,
            time: 0,
        }
    });
    let start: Vec<Command> = nodes.chain(jobs).map(Command::Platform).collect();
    let then = prop_oneof![3 => plan().prop_map(Command::Platform), 1 => command()];
    proptest::collection::vec(then, 1..60)
        .prop_map(move |commands| start.clone().into_iter().chain(commands).collect())
}

proptest! {
    /// No two live allocations have one index, what ended stays ended, what is referred to is there,
    /// ports of a node have one live holder, and the sets by job and by node are those of the table.
    #[test]
    fn the_platform_keeps_its_promises(commands in history()) {
        let mut replica = Replica::new();
        for entry in entries(&commands) {
            let before = replica.freeze();
            replica.apply(&[entry]).unwrap();
            let view = replica.freeze();
            let mut live = BTreeSet::new();
            let mut ports = BTreeSet::new();
            for alloc in view.allocs() {
                if alloc.is_live() {
                    let place = (alloc.job_name.clone(), alloc.group.clone(), alloc.index);
                    prop_assert!(live.insert(place), "{} is live twice", alloc.name);
                    for port in &alloc.ports {
                        prop_assert!(ports.insert((alloc.node_id.clone(), port.value)));
                    }
                }
                let ended = before.alloc(&alloc.id).is_some_and(|old| {
                    !old.is_live() && old.create_index == alloc.create_index
                });
                prop_assert!(!(ended && alloc.is_live()), "{} came back", alloc.id);
                prop_assert!(view.job_version(&alloc.job_name, alloc.job_version).is_some());
                prop_assert!(view.platform_node(&alloc.node_id).is_some());
                prop_assert!(alloc.create_index <= alloc.alloc_modify_index);
                prop_assert!(alloc.alloc_modify_index <= alloc.modify_index);
            }
            let of_jobs: usize = JOBS.iter().map(|job| view.job_allocs(job).count()).sum();
            let of_nodes: usize = NODES.iter().map(|node| view.node_allocs(node).count()).sum();
            prop_assert_eq!(of_jobs, view.allocs().len());
            prop_assert_eq!(of_nodes, view.allocs().len());
            for name in JOBS {
                let Some(entry) = view.job_entry(name) else { continue };
                if let Some(job) = &entry.job {
                    prop_assert_eq!(entry.versions.get(&job.version), Some(job));
                }
                prop_assert!(entry.job.is_some() || !entry.allocs.is_empty());
            }
        }
    }
}

/// The histories above are no use if nothing is ever placed in them.
#[test]
fn random_histories_place_something() {
    use proptest::strategy::ValueTree as _;

    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut placed = 0;
    for _ in 0..50 {
        let commands = history().new_tree(&mut runner).unwrap().current();
        let mut replica = Replica::new();
        for outcome in replica.apply(&entries(&commands)).unwrap() {
            if let Outcome::Planned(outcome) = outcome {
                placed += outcome.placed;
            }
        }
    }
    assert!(placed > 100, "{placed}");
}

proptest! {
    /// Whoever follows the changes from view to view has the tables of the newest.
    #[test]
    fn what_changed_can_be_followed(commands in history(), batch in 1usize..5) {
        let mut replica = Replica::new();
        let (mut allocs, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        let mut before = replica.freeze();
        for batch in entries(&commands).chunks(batch) {
            replica.apply(batch).unwrap();
            let view = replica.freeze();
            for (id, change) in view.changed_allocs(&before) {
                prop_assert_ne!(change.old, change.new);
                match change.new {
                    Some(alloc) => allocs.insert(id.clone(), alloc.clone()),
                    None => allocs.remove(id),
                };
            }
            for (id, change) in view.changed_platform_nodes(&before) {
                match change.new {
                    Some(node) => nodes.insert(id.clone(), node.clone()),
                    None => nodes.remove(id),
                };
            }
            let told: BTreeSet<&Str> = view.changed_jobs(&before).collect();
            for name in JOBS {
                let differs = view.job(name) != before.job(name);
                prop_assert!(!differs || told.contains(&Str::from(*name)));
            }
            before = view;
        }
        prop_assert!(allocs.values().eq(before.allocs()));
        prop_assert!(nodes.values().eq(before.platform_nodes()));
    }
}
