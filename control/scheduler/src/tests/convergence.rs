//! From any state that commands can bring about, with nodes that do what they are told.

use std::collections::BTreeSet;

use proptest::prelude::*;
use wharf_registry::{
    Command, Committed, Outcome, Replica, View,
    command::{PlanStop, PlatformCommand},
    model::platform::{AllocUpdate, ClientStatus, DesiredStatus, NodeStatus},
};

use super::*;
use crate::{ClusterView, Random, Round, Scheduled, Scheduler};

const SECOND: i64 = 1_000_000_000;
const JOBS: [&str; 2] = ["web", "db"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Something that happens from outside.
#[derive(Clone, Debug)]
enum Event {
    Run {
        job: usize,
        count: u32,
        command: u8,
        groups: usize,
    },
    Scale {
        job: usize,
        count: u32,
    },
    Stop {
        job: usize,
        purge: bool,
    },
    Node {
        node: usize,
        down: bool,
    },
    /// The nth allocation fails, or is stopped by a user, or a plan stops it.
    Fails(usize),
    StopAlloc(usize),
    Planned(usize),
    /// The scheduler is asked.
    Round,
    /// The nodes do what they have to.
    Nodes,
    Wait(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0usize..2, 0u32..5, 0u8..3, 1usize..3).prop_map(|(job, count, command, groups)| {
            Event::Run { job, count, command, groups }
        }),
        1 => (0usize..2, 0u32..5).prop_map(|(job, count)| Event::Scale { job, count }),
        1 => (0usize..2, proptest::bool::ANY).prop_map(|(job, purge)| Event::Stop { job, purge }),
        2 => (0usize..3, proptest::bool::ANY).prop_map(|(node, down)| Event::Node { node, down }),
        3 => (0usize..20).prop_map(Event::Fails),
        1 => (0usize..20).prop_map(Event::StopAlloc),
        1 => (0usize..20).prop_map(Event::Planned),
        6 => Just(Event::Round),
        4 => Just(Event::Nodes),
        1 => (0i64..5000).prop_map(Event::Wait),
    ]
}

struct World {
    replica: Replica,
    scheduler: Scheduler,
    random: Random,
    ids: u64,
    now: i64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            replica: Replica::new(),
            scheduler: Scheduler::default(),
            random: Random::new(seed),
            ids: 0,
            now: SECOND,
        };
        for id in NODES {
            world.register(id, false);
        }
        world
    }

    fn apply(&mut self, command: PlatformCommand) -> Outcome {
        let entry = Committed {
            index: self.replica.last_applied() + 1,
            command: Some(Command::Platform(command).encode()),
        };
        let outcome = self.replica.apply(&[entry]).unwrap().remove(0);
        self.check_promises();
        outcome
    }

    fn view(&self) -> Arc<View> {
        self.replica.freeze()
    }

    fn check_promises(&self) {
        let view = self.view();
        let mut live = BTreeSet::new();
        for alloc in view.allocs().filter(|alloc| alloc.is_live()) {
            let place = (alloc.job_name.clone(), alloc.group.clone(), alloc.index);
            assert!(live.insert(place), "{} is live twice", alloc.name);
        }
    }

    fn register(&mut self, id: &str, down: bool) {
        let mut node = PlatformNode::clone(&node(id, 3000, 3000));
        if down {
            node.status = NodeStatus::Down;
        }
        let command = PlatformCommand::RegisterNode {
            node: Box::new(node),
            time: self.now,
        };
        self.apply(command);
    }

    fn nth(&self, n: usize) -> Option<Arc<Alloc>> {
        self.view().allocs().nth(n).cloned()
    }

    fn report(&mut self, alloc: &Alloc, status: ClientStatus) {
        let command = PlatformCommand::UpdateAllocs {
            node_id: alloc.node_id.clone(),
            updates: vec![AllocUpdate {
                id: alloc.id.clone(),
                client_status: status,
                ..AllocUpdate::default()
            }],
            time: self.now,
        };
        self.apply(command);
    }

    /// Each node that is up takes one step with each of its allocations.
    fn nodes_act(&mut self) -> bool {
        let mut acted = false;
        for alloc in self.view().allocs() {
            let view = self.view();
            let up = view
                .platform_node(&alloc.node_id)
                .is_some_and(|node| node.status == NodeStatus::Ready);
            if !up || !alloc.is_live() {
                continue;
            }
            match (alloc.desired_status, alloc.client_status) {
                (DesiredStatus::Stop, _) => self.report(alloc, ClientStatus::Complete),
                (_, ClientStatus::Pending) => self.report(alloc, ClientStatus::Running),
                _ => continue,
            }
            acted = true;
        }
        acted
    }

    /// Asks the scheduler about each job, and applies what it says in one entry.
    fn round(&mut self) -> Vec<Scheduled> {
        let view = self.view();
        let mut cluster = ClusterView::new(view.platform_nodes(), view.allocs());
        let mut all = Vec::new();
        let mut plan = wharf_registry::command::Plan {
            time: self.now,
            ..Default::default()
        };
        for name in view.job_names() {
            let entry = view.job_entry(name).unwrap();
            let allocs: Vec<Arc<Alloc>> = view.job_allocs(name).cloned().collect();
            let ids = &mut self.ids;
            let mut round = Round {
                scheduler: &self.scheduler,
                cluster: &mut cluster,
                healthy: &|alloc| alloc.client_status == ClientStatus::Running,
                now: self.now,
                random: &mut self.random,
                new_id: &mut || {
                    *ids += 1;
                    format!("alloc-{ids:04}").into()
                },
            };
            let scheduled = round.schedule(entry, &allocs);
            plan.stops.extend(scheduled.plan.stops.iter().cloned());
            plan.placements
                .extend(scheduled.plan.placements.iter().cloned());
            all.push(scheduled);
        }
        if !plan.is_empty() {
            match self.apply(PlatformCommand::ApplyPlan(plan)) {
                Outcome::Planned(outcome) => {
                    assert_eq!(outcome.left_out, [], "the scheduler planned what cannot be")
                }
                other => panic!("{other:?}"),
            }
        }
        all
    }

    fn happens(&mut self, event: &Event) {
        self.now += SECOND;
        let time = self.now;
        match *event {
            Event::Run {
                job: at,
                count,
                command,
                groups,
            } => {
                let groups = (0..groups).map(|n| {
                    let mut group = group(["web", "api"][n], count, 100, 100);
                    group.tasks[0].command = format!("/bin/v{command}").into();
                    // A static port: one a node.
                    if at == 1 && n == 0 {
                        group.count = count.min(2);
                        group = with_port(group, "http", 8080, 0);
                    }
                    group
                });
                let job = Box::new(job(JOBS[at], groups.collect()));
                self.apply(PlatformCommand::RegisterJob {
                    job,
                    check_index: None,
                    time,
                });
            }
            Event::Scale { job, count } => {
                // The group with the static port stays small enough for the nodes.
                if job == 0 {
                    let (name, group) = (text(JOBS[job]), text("web"));
                    self.apply(PlatformCommand::ScaleJob {
                        name,
                        group,
                        count,
                        time,
                    });
                }
            }
            Event::Stop { job, purge } => {
                let name = text(JOBS[job]);
                self.apply(PlatformCommand::DeregisterJob { name, purge, time });
            }
            Event::Node { node, down } => self.register(NODES[node], down),
            Event::Fails(n) => {
                if let Some(alloc) = self.nth(n) {
                    self.report(&alloc, ClientStatus::Failed);
                }
            }
            Event::StopAlloc(n) => {
                if let Some(alloc) = self.nth(n) {
                    let id = alloc.id.clone();
                    self.apply(PlatformCommand::StopAlloc { id, time });
                }
            }
            Event::Planned(n) => {
                if let Some(alloc) = self.nth(n) {
                    let stop = PlanStop {
                        id: alloc.id.clone(),
                        description: "by hand".into(),
                        lost: false,
                    };
                    let plan = wharf_registry::command::Plan {
                        time,
                        stops: vec![stop],
                        placements: vec![],
                    };
                    self.apply(PlatformCommand::ApplyPlan(plan));
                }
            }
            Event::Round => {
                self.round();
            }
            Event::Nodes => {
                self.nodes_act();
            }
            Event::Wait(seconds) => self.now += seconds * SECOND,
        }
    }

    /// Lets nodes and scheduler work, and time pass when both wait for it, until nothing moves.
    fn settle(&mut self) {
        for _ in 0..500 {
            let before = self.replica.last_applied();
            let all = self.round();
            let acted = self.nodes_act();
            self.now += SECOND;
            if acted || self.replica.last_applied() != before {
                continue;
            }
            match all.iter().filter_map(|one| one.look_again).min() {
                Some(due) => self.now = self.now.max(due),
                None => return,
            }
        }
        panic!(
            "it does not come to rest: {:?}",
            self.view().allocs().collect::<Vec<_>>()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// With room enough, exactly the instances that are asked for run, in the version that is asked for;
    /// asked again, the scheduler has nothing to say; and at no time were two live at one index.
    #[test]
    fn it_comes_to_rest_with_what_was_asked_for(
        events in proptest::collection::vec(event(), 1..60),
        seed: u64,
    ) {
        let mut world = World::new(seed);
        for event in &events {
            world.happens(event);
        }
        for id in NODES {
            world.register(id, false);
        }
        world.settle();
        let view = world.view();
        let mut wanted = BTreeSet::new();
        for job in view.jobs().filter(|job| !job.stop) {
            for group in &job.groups {
                for index in 0..group.count {
                    wanted.insert(Alloc::name_of(&job.name, &group.name, index));
                }
            }
        }
        let running: Vec<&Arc<Alloc>> = view.allocs().filter(|alloc| alloc.is_live()).collect();
        let names: BTreeSet<Str> = running.iter().map(|alloc| alloc.name.clone()).collect();
        prop_assert_eq!(names.len(), running.len());
        prop_assert_eq!(names, wanted);
        for alloc in running {
            prop_assert_eq!(alloc.client_status, ClientStatus::Running);
            let now = view.job(&alloc.job_name).unwrap().group(&alloc.group).unwrap();
            let then = view.job_version(&alloc.job_name, alloc.job_version).unwrap();
            let then = then.group(&alloc.group).unwrap();
            prop_assert!(then.is_same_instance(now), "{} is outdated", alloc.name);
        }
        let before = world.replica.last_applied();
        for scheduled in world.round() {
            prop_assert!(scheduled.plan.is_empty() && scheduled.unplaced.is_empty());
        }
        prop_assert_eq!(world.replica.last_applied(), before);
    }

    /// What is planned twice from the same state is the same, whatever the state.
    #[test]
    fn one_state_and_one_seed_make_one_plan(
        events in proptest::collection::vec(event(), 1..40),
        seed: u64,
    ) {
        let (mut one, mut other) = (World::new(seed), World::new(seed));
        for event in &events {
            one.happens(event);
            other.happens(event);
        }
        let records = |world: &World| world.view().records().collect::<Vec<_>>();
        prop_assert_eq!(records(&one), records(&other));
    }
}

#[test]
fn an_update_never_has_more_than_one_instance_away() {
    let mut world = World::new(7);
    let run = |command| Event::Run {
        job: 0,
        count: 4,
        command,
        groups: 1,
    };
    world.happens(&run(0));
    world.settle();
    world.happens(&run(1));
    let mut steps = 0;
    loop {
        let before = world.replica.last_applied();
        world.round();
        world.nodes_act();
        let view = world.view();
        let serving = view
            .allocs()
            .filter(|alloc| alloc.is_wanted() && alloc.client_status == ClientStatus::Running)
            .count();
        assert!(serving >= 3, "{serving} of 4 serve");
        if world.replica.last_applied() == before {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 8, "{steps}");
    let view = world.view();
    let new = view.allocs().filter(|alloc| alloc.is_live());
    assert!(new.into_iter().all(|alloc| alloc.job_version == 1));
}

#[test]
fn what_finds_no_room_waits_and_says_why() {
    let mut world = World::new(3);
    let big = Box::new(job("web", vec![group("web", 4, 2000, 100)]));
    world.apply(PlatformCommand::RegisterJob {
        job: big,
        check_index: None,
        time: 1,
    });
    let all = world.round();
    assert_eq!(all[0].plan.placements.len(), 3);
    let [unplaced] = &all[0].unplaced[..] else {
        panic!()
    };
    assert_eq!(unplaced.count, 1);
    assert_eq!(
        unplaced.nowhere.to_string(),
        "none of 3 nodes can take it: cpu exhausted on 3 nodes: it needs 2000m, 1000m free at most"
    );
    let mut large = PlatformNode::clone(&node("n4", 4000, 4000));
    large.name = "n4".into();
    world.apply(PlatformCommand::RegisterNode {
        node: Box::new(large),
        time: 1,
    });
    assert_eq!(world.round()[0].plan.placements.len(), 1);
}
