use std::sync::Arc;

use super::*;
use crate::{
    command::{Command, PlacementRefusal, Plan, PlanOutcome, PlanStop},
    model::platform::{AllocPort, AllocUpdate, ClientStatus, DesiredStatus, NodeStatus, TaskGroup},
    state::State,
};

/// A state and what has been done to it.
struct Scene {
    state: State,
}

impl Scene {
    /// With the nodes n1 and n2, and the job web of `count` instances.
    fn new(count: u32) -> Scene {
        let mut scene = Scene {
            state: State::default(),
        };
        for id in ["n1", "n2"] {
            let node = PlatformNode {
                id: id.into(),
                name: id.into(),
                ..PlatformNode::default()
            };
            scene.done(PlatformCommand::RegisterNode {
                node: Box::new(node),
                time: 1,
            });
        }
        scene.run(web(count, "v1"), None).unwrap();
        scene
    }

    fn apply(&mut self, command: PlatformCommand) -> Outcome {
        let index = self.state.applied() + 1;
        self.state
            .apply(index, &Command::Platform(command), &mut Touched::default())
    }

    fn done(&mut self, command: PlatformCommand) {
        assert_eq!(self.apply(command), Outcome::Done);
    }

    fn refused(&mut self, command: PlatformCommand) -> String {
        match self.apply(command) {
            Outcome::Refused(refusal) => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, job: Job, check_index: Option<u64>) -> Result<(), String> {
        let command = PlatformCommand::RegisterJob {
            job: Box::new(job),
            check_index,
            time: 10,
        };
        match self.apply(command) {
            Outcome::Done => Ok(()),
            Outcome::Refused(refusal) => Err(refusal.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn plan(&mut self, stops: &[(&str, bool)], placements: &[Alloc]) -> PlanOutcome {
        let plan = Plan {
            time: 20,
            stops: stops
                .iter()
                .map(|(id, lost)| PlanStop {
                    id: (*id).into(),
                    description: "planned".into(),
                    lost: *lost,
                })
                .collect(),
            placements: placements.iter().cloned().map(Arc::new).collect(),
        };
        match self.apply(PlatformCommand::ApplyPlan(plan)) {
            Outcome::Planned(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn report(&mut self, node: &str, id: &str, status: ClientStatus) {
        self.done(PlatformCommand::UpdateAllocs {
            node_id: node.into(),
            updates: vec![AllocUpdate {
                id: id.into(),
                client_status: status,
                ..AllocUpdate::default()
            }],
            time: 30,
        });
    }

    fn job(&self) -> &Job {
        self.state.platform.jobs["web"].job.as_ref().unwrap()
    }

    fn alloc(&self, id: &str) -> &Alloc {
        &self.state.platform.allocs[id]
    }
}

fn web(count: u32, command: &str) -> Job {
    use crate::model::platform::Task;

    Job {
        name: "web".into(),
        groups: vec![Arc::new(TaskGroup {
            name: "web".into(),
            count,
            tasks: vec![Task {
                name: "web".into(),
                command: command.into(),
                ..Task::default()
            }],
            ..TaskGroup::default()
        })],
        ..Job::default()
    }
}

fn placement(id: &str, index: u32, node: &str) -> Alloc {
    Alloc {
        id: id.into(),
        name: Alloc::name_of("web", "web", index),
        job_name: "web".into(),
        group: "web".into(),
        index,
        node_id: node.into(),
        ..Alloc::default()
    }
}

#[test]
fn versions_count_changes_and_nothing_else() {
    let mut scene = Scene::new(1);
    assert_eq!((scene.job().version, scene.job().job_modify_index), (0, 3));
    scene.run(web(1, "v1"), None).unwrap();
    let job = scene.job();
    assert_eq!(
        (job.version, job.job_modify_index, job.modify_index),
        (0, 3, 4)
    );
    scene.run(web(1, "v2"), None).unwrap();
    assert_eq!((scene.job().version, scene.job().job_modify_index), (1, 5));
    let scale = |count| PlatformCommand::ScaleJob {
        name: "web".into(),
        group: "".into(),
        count,
        time: 1,
    };
    scene.done(scale(3));
    assert_eq!((scene.job().version, scene.job().groups[0].count), (2, 3));
    scene.done(scale(3));
    assert_eq!(scene.job().modify_index, 6, "nothing changed");
    for n in 0..9 {
        scene.run(web(1, &format!("v{n}")), None).unwrap();
    }
    let entry = &scene.state.platform.jobs["web"];
    let versions: Vec<u64> = entry.versions.keys().copied().collect();
    assert_eq!(versions, [6, 7, 8, 9, 10, 11]);
}

#[test]
fn a_version_in_use_is_kept() {
    let mut scene = Scene::new(1);
    assert_eq!(scene.plan(&[], &[placement("a", 0, "n1")]).placed, 1);
    for n in 0..9 {
        scene.run(web(1, &format!("v{n}")), None).unwrap();
    }
    let versions = |scene: &Scene| scene.state.platform.jobs["web"].versions.clone();
    assert!(versions(&scene).contains_key(&0));
    assert_eq!(versions(&scene).len(), 7);
    scene.plan(&[("a", false)], &[]);
    scene.report("n1", "a", ClientStatus::Complete);
    scene.done(PlatformCommand::Gc {
        allocs: vec!["a".into()],
        jobs: vec![],
        nodes: vec![],
    });
    assert!(!versions(&scene).contains_key(&0));
    assert!(scene.state.platform.allocs.is_empty());
}

#[test]
fn a_check_index_is_compared() {
    let mut scene = Scene::new(1);
    assert_eq!(
        scene.run(web(2, "v1"), Some(0)).unwrap_err(),
        r#"job "web" exists already: its JobModifyIndex is 3"#
    );
    assert_eq!(
        scene.run(web(2, "v1"), Some(2)).unwrap_err(),
        r#"job "web" was changed in between: its JobModifyIndex is 3, not 2"#
    );
    scene.run(web(2, "v1"), Some(3)).unwrap();
    let mut other = web(1, "v1");
    other.name = "db".into();
    assert_eq!(
        scene.run(other.clone(), Some(7)).unwrap_err(),
        r#"job "db" does not exist, so its JobModifyIndex is not 7"#
    );
    scene.run(other, Some(0)).unwrap();
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let mut scene = Scene::new(1);
    let scale = |name: &str, group: &str, count| PlatformCommand::ScaleJob {
        name: name.into(),
        group: group.into(),
        count,
        time: 1,
    };
    let mut two = web(1, "x");
    two.name = "two".into();
    let mut second = TaskGroup::clone(&two.groups[0]);
    second.name = "worker".into();
    two.groups.push(Arc::new(second));
    scene.run(two, None).unwrap();
    let texts = [
        (scale("nope", "", 1), r#"there is no job "nope""#),
        (
            scale("web", "api", 1),
            r#"job "web" has no group "api": it has web"#,
        ),
        (
            scale("two", "", 1),
            r#"job "two" has several groups: name one of web, worker"#,
        ),
        (
            scale("web", "", 10_001),
            "10001 instances are too many: at most 10000",
        ),
        (
            PlatformCommand::StopAlloc {
                id: "a".into(),
                time: 1,
            },
            "there is no allocation a",
        ),
        (
            PlatformCommand::SetNodeEligibility {
                id: "n9".into(),
                eligible: true,
            },
            "there is no node n9",
        ),
        (
            PlatformCommand::DeregisterJob {
                name: "nope".into(),
                purge: false,
                time: 1,
            },
            r#"there is no job "nope""#,
        ),
    ];
    for (command, text) in texts {
        assert_eq!(scene.refused(command), text);
    }
    scene.done(PlatformCommand::DeregisterJob {
        name: "web".into(),
        purge: false,
        time: 1,
    });
    assert_eq!(
        scene.refused(scale("web", "", 2)),
        r#"job "web" is stopped: run it again first"#
    );
    scene.run(web(1, "v1"), None).unwrap();
    assert!(!scene.job().stop);
    assert_eq!(scene.job().version, 0, "the same specification");
}

#[test]
fn a_placement_that_would_break_a_promise_is_left_out_and_the_rest_takes_place() {
    let mut scene = Scene::new(3);
    let with_port = |mut alloc: Alloc, port| {
        alloc.ports = vec![AllocPort {
            label: "http".into(),
            value: port,
            to: 0,
        }];
        alloc
    };
    let mut old = placement("old", 1, "n1");
    old.job_version = 7;
    let mut elsewhere = placement("other", 1, "n1");
    elsewhere.job_name = "db".into();
    let outcome = scene.plan(
        &[],
        &[
            with_port(placement("a", 0, "n1"), 8080),
            placement("twin", 0, "n2"),
            placement("a", 1, "n1"),
            with_port(placement("clash", 1, "n1"), 8080),
            placement("beyond", 3, "n1"),
            placement("lonely", 1, "n9"),
            old,
            elsewhere,
            with_port(placement("b", 1, "n2"), 8080),
        ],
    );
    assert_eq!(outcome.placed, 2);
    let texts: Vec<String> = outcome
        .left_out
        .iter()
        .map(|(id, refusal)| format!("{id}: {refusal}"))
        .collect();
    assert_eq!(
        texts,
        [
            "twin: web.web[0] is live already: allocation a",
            "a: there is an allocation a already",
            "clash: port 8080 of node n1 is taken by allocation a",
            r#"beyond: job "web" has no instance 3 of group "web""#,
            "lonely: node n9 is gone, down, or not eligible",
            r#"old: job "web" is at version 0, not 7"#,
            r#"other: job "db" is gone, or stopped"#,
        ]
    );
}

#[test]
fn an_index_is_free_when_its_holder_has_ended_not_when_it_is_told_to() {
    let mut scene = Scene::new(1);
    scene.plan(&[], &[placement("a", 0, "n1")]);
    scene.report("n1", "a", ClientStatus::Running);
    let outcome = scene.plan(&[("a", false)], &[placement("b", 0, "n1")]);
    assert!(matches!(
        outcome.left_out[..],
        [(_, PlacementRefusal::IndexTaken { .. })]
    ));
    assert_eq!(scene.alloc("a").desired_status, DesiredStatus::Stop);
    assert_eq!(scene.alloc("a").desired_description, "planned".into());
    scene.report("n1", "a", ClientStatus::Complete);
    assert_eq!(scene.alloc("a").end_time, 30);
    assert_eq!(scene.plan(&[], &[placement("b", 0, "n1")]).placed, 1);
    // The node is lost: the servers decide that it has ended, and another takes its place at once.
    let outcome = scene.plan(&[("b", true)], &[placement("c", 0, "n2")]);
    assert_eq!(outcome.placed, 1);
    assert_eq!(scene.alloc("b").client_status, ClientStatus::Lost);
    // The node returns, with what it ran: that does not bring it back.
    scene.report("n1", "b", ClientStatus::Running);
    assert_eq!(scene.alloc("b").client_status, ClientStatus::Lost);
    scene.report("n1", "b", ClientStatus::Complete);
    assert_eq!(scene.alloc("b").client_status, ClientStatus::Complete);
    assert_eq!(scene.alloc("b").end_time, 20, "it ended for the servers");
}

#[test]
fn a_report_of_another_node_is_dropped() {
    let mut scene = Scene::new(1);
    scene.plan(&[], &[placement("a", 0, "n1")]);
    scene.report("n2", "a", ClientStatus::Failed);
    assert_eq!(scene.alloc("a").client_status, ClientStatus::Pending);
}

#[test]
fn a_purged_job_leaves_its_allocations_until_they_are_forgotten() {
    let mut scene = Scene::new(1);
    scene.plan(&[], &[placement("a", 0, "n1")]);
    scene.run(web(1, "v2"), None).unwrap();
    scene.done(PlatformCommand::DeregisterJob {
        name: "web".into(),
        purge: true,
        time: 1,
    });
    let entry = &scene.state.platform.jobs["web"];
    assert!(entry.job.is_none());
    assert_eq!(entry.versions.len(), 1, "the one that runs");
    // Registered again: the old allocation still tells its own version from the new one.
    scene.run(web(1, "v3"), None).unwrap();
    assert_eq!(scene.job().version, 1);
    scene.done(PlatformCommand::DeregisterJob {
        name: "web".into(),
        purge: true,
        time: 1,
    });
    let gc = PlatformCommand::Gc {
        allocs: vec!["a".into()],
        jobs: vec!["web".into()],
        nodes: vec!["n1".into()],
    };
    scene.done(gc.clone());
    assert!(
        scene.state.platform.allocs.contains_key("a"),
        "it is live still"
    );
    scene.report("n1", "a", ClientStatus::Complete);
    scene.done(PlatformCommand::SetNodeStatus {
        id: "n1".into(),
        status: NodeStatus::Down,
        description: "".into(),
        time: 9,
    });
    scene.done(gc);
    let platform = &scene.state.platform;
    assert!(platform.allocs.is_empty() && platform.jobs.is_empty());
    assert_eq!(platform.nodes.len(), 1);
}

#[test]
fn a_node_keeps_what_an_operator_set() {
    let mut scene = Scene::new(1);
    let eligible = PlatformCommand::SetNodeEligibility {
        id: "n1".into(),
        eligible: false,
    };
    scene.done(eligible);
    let outcome = scene.plan(&[], &[placement("a", 0, "n1")]);
    assert!(matches!(
        outcome.left_out[..],
        [(_, PlacementRefusal::NoNode(_))]
    ));
    let node = PlatformNode {
        id: "n1".into(),
        name: "n1".into(),
        address: "10.0.0.9".into(),
        ..PlatformNode::default()
    };
    scene.done(PlatformCommand::RegisterNode {
        node: Box::new(node),
        time: 50,
    });
    let node = &scene.state.platform.nodes["n1"].node;
    assert_eq!((&*node.address, node.eligible), ("10.0.0.9", false));
}
