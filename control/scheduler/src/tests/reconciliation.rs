use std::time::Duration;

use wharf_registry::{
    model::platform::{ClientStatus, DesiredStatus, NodeStatus},
    state::JobEntry,
};

use super::*;
use crate::{ClusterView, Input, Reconciled, reconcile, reschedule_delay};

const SECOND: i64 = 1_000_000_000;

/// The job web at version 1 with `count` instances; version 0 ran another command.
struct Scene {
    entry: JobEntry,
    allocs: Vec<Arc<Alloc>>,
    nodes: Vec<Arc<PlatformNode>>,
    unhealthy: Vec<&'static str>,
    now: i64,
}

impl Scene {
    fn new(count: u32) -> Scene {
        let mut old = group("web", count, 1, 1);
        old.tasks[0].command = "/bin/false".into();
        let old = Arc::new(job("web", vec![old]));
        let mut new = job("web", vec![group("web", count, 1, 1)]);
        new.version = 1;
        let new = Arc::new(new);
        Scene {
            entry: JobEntry {
                name: "web".into(),
                job: Some(new.clone()),
                versions: [(0u64, old), (1u64, new)].into_iter().collect(),
                allocs: Default::default(),
                index: 1,
                allocs_index: 1,
            },
            allocs: Vec::new(),
            nodes: vec![node("n1", 1000, 1000)],
            unhealthy: Vec::new(),
            now: 1000 * SECOND,
        }
    }

    fn change_job(&mut self, change: impl FnOnce(&mut Job)) {
        let mut job = Job::clone(self.entry.job.as_ref().unwrap());
        change(&mut job);
        let job = Arc::new(job);
        self.entry.versions.insert(job.version, job.clone());
        self.entry.job = Some(job);
    }

    /// Adds an allocation; the later it is added, the larger its create index.
    fn add(
        &mut self,
        id: &str,
        index: u32,
        version: u64,
        status: ClientStatus,
        change: impl FnOnce(&mut Alloc),
    ) {
        let mut alloc = alloc(id, index, "n1");
        alloc.job_version = version;
        alloc.client_status = status;
        alloc.create_index = self.allocs.len() as u64 + 1;
        if status.is_final() {
            alloc.end_time = 990 * SECOND;
            alloc.create_time = 980 * SECOND;
        }
        change(&mut alloc);
        self.allocs.push(Arc::new(alloc));
    }

    fn look(&self) -> Reconciled {
        reconcile(&Input {
            entry: &self.entry,
            allocs: &self.allocs,
            cluster: &ClusterView::new(&self.nodes, &self.allocs),
            healthy: &|alloc| !self.unhealthy.contains(&&*alloc.id),
            now: self.now,
        })
    }

    fn stops(&self) -> Vec<(String, String, bool)> {
        let stops = self.look().stops.into_iter();
        stops
            .map(|stop| (stop.id.to_string(), stop.description.to_string(), stop.lost))
            .collect()
    }

    fn missing(&self) -> Vec<(u32, Option<String>, u32)> {
        let missing = self.look().missing.into_iter();
        missing
            .map(|missing| {
                let previous = missing.previous.map(|alloc| alloc.id.to_string());
                (missing.index, previous, missing.failures)
            })
            .collect()
    }
}

use ClientStatus::{Complete, Failed, Lost, Pending, Running};

fn stop(id: &str, why: &str, lost: bool) -> (String, String, bool) {
    (id.to_owned(), why.to_owned(), lost)
}

#[test]
fn what_is_missing_is_placed_lowest_index_first() {
    let mut scene = Scene::new(3);
    scene.add("b", 1, 1, Pending, |_| {});
    assert_eq!(scene.missing(), [(0, None, 0), (2, None, 0)]);
    assert_eq!(scene.stops(), []);
}

#[test]
fn a_complete_job_asks_for_nothing() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Running, |_| {});
    assert_eq!(scene.look(), Reconciled::default());
}

#[test]
fn scaling_down_takes_the_highest_indexes() {
    let mut scene = Scene::new(2);
    for (id, index) in [("a", 0), ("b", 1), ("c", 2), ("d", 3)] {
        scene.add(id, index, 1, Running, |_| {});
    }
    let why = "the group was scaled down to 2";
    assert_eq!(
        scene.stops(),
        [stop("c", why, false), stop("d", why, false)]
    );
    assert_eq!(scene.missing(), []);
}

#[test]
fn a_stopped_or_purged_job_and_a_removed_group_take_everything_with_them() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Running, |_| {});
    scene.add("told", 0, 1, Running, |alloc| {
        alloc.desired_status = DesiredStatus::Stop;
    });
    scene.add("ended", 0, 1, Failed, |_| {});
    scene.change_job(|job| job.stop = true);
    assert_eq!(scene.stops(), [stop("a", "the job is stopped", false)]);
    scene.change_job(|job| {
        job.stop = false;
        job.groups = vec![Arc::new(group("api", 0, 1, 1))];
    });
    let why = r#"the job has no group "web" any more"#;
    assert_eq!(scene.stops(), [stop("a", why, false)]);
    scene.entry.job = None;
    assert_eq!(scene.stops(), [stop("a", "the job was purged", false)]);
    assert_eq!(scene.missing(), []);
}

#[test]
fn an_index_waits_until_what_has_it_has_ended() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Running, |alloc| {
        alloc.desired_status = DesiredStatus::Stop;
    });
    assert_eq!(scene.missing(), []);
    scene.allocs.clear();
    scene.add("a", 0, 1, Complete, |alloc| {
        alloc.desired_status = DesiredStatus::Stop;
    });
    assert_eq!(scene.missing(), [(0, Some("a".into()), 0)]);
}

#[test]
fn a_failure_waits_longer_each_time() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Failed, |alloc| alloc.failures = 2);
    let due = 990 * SECOND + 120 * SECOND;
    assert_eq!(scene.look().look_again, Some(due));
    assert_eq!(scene.missing(), []);
    scene.now = due;
    assert_eq!(scene.missing(), [(0, Some("a".into()), 3)]);
    assert_eq!(scene.look().look_again, None);

    let delays: Vec<u64> = (0..9).map(|n| reschedule_delay(n).as_secs()).collect();
    assert_eq!(delays, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    assert_eq!(reschedule_delay(u32::MAX), Duration::from_secs(3600));
}

#[test]
fn a_failure_after_a_long_run_counts_as_the_first() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Failed, |alloc| {
        alloc.failures = 5;
        alloc.create_time = 0;
    });
    assert_eq!(scene.look().look_again, Some(1020 * SECOND));
    scene.now = 1020 * SECOND;
    assert_eq!(scene.missing(), [(0, Some("a".into()), 1)]);
}

#[test]
fn registering_the_job_again_or_changing_it_ends_the_wait() {
    let mut scene = Scene::new(1);
    scene.add("a", 0, 1, Failed, |alloc| alloc.failures = 4);
    scene.change_job(|job| job.submit_time = 995 * SECOND);
    assert_eq!(scene.missing(), [(0, Some("a".into()), 0)]);

    let mut scene = Scene::new(1);
    scene.add("a", 0, 0, Failed, |alloc| alloc.failures = 4);
    assert_eq!(scene.missing(), [(0, Some("a".into()), 0)]);
}

#[test]
fn what_is_on_a_lost_node_is_replaced_at_once() {
    let mut scene = Scene::new(2);
    scene.add("a", 0, 1, Running, |_| {});
    scene.add("b", 1, 1, Running, |alloc| alloc.node_id = "n9".into());
    let mut down = PlatformNode::clone(&scene.nodes[0]);
    down.status = NodeStatus::Down;
    scene.nodes = vec![Arc::new(down)];
    assert_eq!(
        scene.stops(),
        [
            stop("a", "node n1 is down", true),
            stop("b", "node n1 is gone", true)
        ]
    );
    let replaced = [(0, Some("a".to_owned()), 0), (1, Some("b".to_owned()), 0)];
    assert_eq!(scene.missing(), replaced);
    // And once that is known, the same.
    scene.allocs.clear();
    scene.add("a", 0, 1, Lost, |alloc| {
        alloc.desired_status = DesiredStatus::Stop;
    });
    scene.add("b", 1, 1, Lost, |alloc| {
        alloc.desired_status = DesiredStatus::Stop;
    });
    assert_eq!(scene.stops(), []);
    assert_eq!(scene.missing(), replaced);
}

#[test]
fn a_changed_job_replaces_one_at_a_time_the_next_when_the_new_one_is_healthy() {
    let mut scene = Scene::new(3);
    for (id, index) in [("a", 0), ("b", 1), ("c", 2)] {
        scene.add(id, index, 0, Running, |_| {});
    }
    let why = "replaced by version 1";
    assert_eq!(scene.stops(), [stop("a", why, false)]);
    // It ends, and its place is taken.
    Arc::make_mut(&mut scene.allocs[0]).desired_status = DesiredStatus::Stop;
    assert_eq!((scene.stops(), scene.missing()), (vec![], vec![]));
    assert!(scene.look().waits_for_health);
    Arc::make_mut(&mut scene.allocs[0]).client_status = Complete;
    assert_eq!(scene.missing(), [(0, Some("a".into()), 0)]);
    assert_eq!(scene.stops(), []);
    scene.add("a2", 0, 1, Pending, |_| {});
    assert_eq!((scene.stops(), scene.missing()), (vec![], vec![]));
    Arc::make_mut(&mut scene.allocs[3]).client_status = Running;
    scene.unhealthy = vec!["a2"];
    assert_eq!(scene.stops(), []);
    assert!(scene.look().waits_for_health);
    scene.unhealthy.clear();
    assert_eq!(scene.stops(), [stop("b", why, false)]);
    // What serves nobody goes before what does.
    scene.unhealthy = vec!["c"];
    assert_eq!(scene.stops(), [stop("c", why, false)]);
}

#[test]
fn a_change_of_the_count_alone_replaces_nothing() {
    let mut scene = Scene::new(2);
    scene.add("a", 0, 1, Running, |_| {});
    scene.add("b", 1, 1, Running, |_| {});
    scene.change_job(|job| {
        job.version = 2;
        job.groups = vec![Arc::new(group("web", 3, 1, 1))];
    });
    assert_eq!(scene.stops(), []);
    assert_eq!(scene.missing(), [(2, None, 0)]);
}

#[test]
fn two_at_one_index_become_one() {
    let mut scene = Scene::new(1);
    scene.add("pending", 0, 1, Pending, |_| {});
    scene.add("running", 0, 1, Running, |_| {});
    scene.add("old", 0, 0, Running, |_| {});
    let why = "allocation running has its place";
    assert_eq!(
        scene.stops(),
        [stop("pending", why, false), stop("old", why, false)]
    );
}
