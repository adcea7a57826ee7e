//! The loop over a registry in memory, with a node that reports what it is told to do.

use std::collections::BTreeSet;

use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{
            Alloc, AllocUpdate, ClientStatus, DesiredStatus, Driver, DriverHealth, Job,
            PlatformNode, Resources, Task, TaskGroup,
        },
    },
    watch::WatchKey,
};

use super::*;
use crate::{
    cluster::testing::{Solo, agent_is_there},
    platform::unix_now,
};

struct Scene {
    cluster: Arc<dyn Cluster>,
    decisions: Decisions,
    stop: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Scene {
    /// With a leader that schedules.
    fn new() -> Scene {
        let cluster: Arc<dyn Cluster> = Arc::new(Solo::new());
        let decisions = Decisions::default();
        let stop = CancellationToken::new();
        let scheduling = Scheduling::new(cluster.clone(), decisions.clone());
        tokio::spawn(scheduling.run(stop.clone()));
        Scene {
            cluster,
            decisions,
            stop,
        }
    }

    async fn write(&self, command: PlatformCommand) {
        self.cluster
            .write(Command::Platform(command))
            .await
            .unwrap();
    }

    /// A node that starts what it is to run and ends what it is to stop.
    async fn node(&self, id: &str, cpu: u64) {
        let healthy = DriverHealth {
            healthy: true,
            reason: "".into(),
        };
        let node = PlatformNode {
            id: id.into(),
            name: id.into(),
            resources: Resources {
                cpu,
                memory_mb: 10_000,
                memory_max_mb: 0,
            },
            drivers: [(Driver::Exec, healthy)].into(),
            ..PlatformNode::default()
        };
        self.write(PlatformCommand::RegisterNode {
            node: Box::new(node),
            time: 1,
        })
        .await;
        agent_is_there(&*self.cluster, id, id).await;
        let (cluster, id) = (self.cluster.clone(), Str::from(id));
        let stop = self.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut changed = cluster.registry().watch(WatchKey::NodeAllocs(id.clone()));
            loop {
                let view = cluster.registry().view();
                let updates: Vec<AllocUpdate> = view
                    .node_allocs(&id)
                    .filter_map(|alloc| {
                        let status = match (alloc.desired_status, alloc.client_status) {
                            (DesiredStatus::Stop, _) if alloc.is_live() => ClientStatus::Complete,
                            (DesiredStatus::Run, ClientStatus::Pending) => ClientStatus::Running,
                            _ => return None,
                        };
                        Some(update(alloc, status))
                    })
                    .collect();
                if updates.is_empty() {
                    changed.changed().await;
                    continue;
                }
                let command = PlatformCommand::UpdateAllocs {
                    node_id: id.clone(),
                    updates,
                    time: unix_now(),
                };
                cluster.write(Command::Platform(command)).await.unwrap();
            }
        }));
    }

    async fn run(&self, count: u32, command: &str, cpu: u64) {
        let group = TaskGroup {
            name: "web".into(),
            count,
            tasks: vec![Task {
                name: "web".into(),
                driver: Driver::Exec,
                command: command.into(),
                resources: Resources {
                    cpu,
                    memory_mb: 10,
                    memory_max_mb: 0,
                },
                ..Task::default()
            }],
            ..TaskGroup::default()
        };
        let job = Job {
            name: "web".into(),
            groups: vec![Arc::new(group)],
            ..Job::default()
        };
        self.write(PlatformCommand::RegisterJob {
            job: Box::new(job),
            check_index: None,
            time: unix_now(),
        })
        .await;
    }

    /// Waits until the state is as it should be.
    async fn until(&self, holds: impl Fn(&View) -> bool) -> Arc<View> {
        let mut watcher = self.cluster.registry().watch(WatchKey::Allocs);
        let wait = async {
            loop {
                let view = self.cluster.registry().view();
                if holds(&view) {
                    return view;
                }
                watcher.changed().await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), wait).await {
            Ok(view) => view,
            Err(_) => {
                let view = self.cluster.registry().view();
                panic!("it does not come: {:#?}", view.allocs().collect::<Vec<_>>());
            }
        }
    }
}

fn update(alloc: &Alloc, client_status: ClientStatus) -> AllocUpdate {
    AllocUpdate {
        id: alloc.id.clone(),
        client_status,
        ..AllocUpdate::default()
    }
}

/// The indexes that run, of one version.
fn running(view: &View, version: u64) -> BTreeSet<u32> {
    view.allocs()
        .filter(|alloc| alloc.client_status == ClientStatus::Running)
        .filter(|alloc| alloc.job_version == version)
        .map(|alloc| alloc.index)
        .collect()
}

#[tokio::test]
async fn a_job_is_run_scaled_changed_and_stopped() {
    let scene = Scene::new();
    scene.node("n1", 10_000).await;
    scene.run(3, "/bin/one", 100).await;
    scene
        .until(|view| running(view, 0) == [0, 1, 2].into())
        .await;
    let scale = |count| PlatformCommand::ScaleJob {
        name: "web".into(),
        group: "".into(),
        count,
        time: unix_now(),
    };
    scene.write(scale(5)).await;
    scene.until(|view| running(view, 1) == [3, 4].into()).await;
    scene.write(scale(2)).await;
    let live = |view: &View| view.allocs().filter(|alloc| alloc.is_live()).count();
    let view = scene.until(|view| live(view) == 2).await;
    assert_eq!(running(&view, 0), [0, 1].into());
    scene.run(2, "/bin/two", 100).await;
    scene
        .until(|view| running(view, 3) == [0, 1].into() && live(view) == 2)
        .await;
    scene
        .write(PlatformCommand::DeregisterJob {
            name: "web".into(),
            purge: false,
            time: unix_now(),
        })
        .await;
    scene.until(|view| live(view) == 0).await;
    assert!(!scene.decisions.recent("web").is_empty());
    assert_eq!(scene.decisions.recent("other"), []);
}

#[tokio::test]
async fn what_finds_no_room_is_told_and_placed_when_a_node_comes() {
    let scene = Scene::new();
    scene.node("n1", 1_000).await;
    scene.run(3, "/bin/one", 500).await;
    scene.until(|view| running(view, 0).len() == 2).await;
    let failures = scene.decisions.failures("web");
    let [failure] = &failures[..] else {
        panic!("{failures:?}")
    };
    assert_eq!((&*failure.group, failure.count), ("web", 1));
    assert!(
        failure.reason.contains("cpu exhausted on 1 node"),
        "{}",
        failure.reason
    );
    scene.node("n2", 1_000).await;
    scene.until(|view| running(view, 0).len() == 3).await;
    assert_eq!(scene.decisions.failures("web"), []);
}

#[tokio::test]
async fn an_allocation_that_a_user_stops_is_replaced() {
    let scene = Scene::new();
    scene.node("n1", 1_000).await;
    scene.run(1, "/bin/one", 500).await;
    let view = scene.until(|view| running(view, 0).len() == 1).await;
    let first = view.allocs().next().unwrap().id.clone();
    scene
        .write(PlatformCommand::StopAlloc {
            id: first.clone(),
            time: unix_now(),
        })
        .await;
    let view = scene
        .until(|view| {
            view.allocs().any(|alloc| {
                alloc.client_status == ClientStatus::Running && alloc.previous_alloc == first
            })
        })
        .await;
    assert_eq!(view.allocs().len(), 2);
}

#[tokio::test]
async fn a_failed_instance_waits_and_running_the_job_again_ends_the_wait() {
    let scene = Scene::new();
    scene.node("n1", 1_000).await;
    scene.run(1, "/bin/one", 500).await;
    let view = scene.until(|view| running(view, 0).len() == 1).await;
    let alloc = view.allocs().next().unwrap().clone();
    scene
        .write(PlatformCommand::UpdateAllocs {
            node_id: "n1".into(),
            updates: vec![update(&alloc, ClientStatus::Failed)],
            time: unix_now(),
        })
        .await;
    // Nothing takes its place for half a minute; but a user who runs the job again asks for it now.
    scene.run(1, "/bin/one", 500).await;
    let view = scene.until(|view| running(view, 0).len() == 1).await;
    let new = view.allocs().find(|alloc| alloc.is_live()).unwrap();
    assert_eq!(new.previous_alloc, alloc.id);
    let old = view.alloc(&alloc.id).unwrap();
    assert_eq!(old.desired_status, DesiredStatus::Stop);
}

#[tokio::test]
async fn an_update_goes_on_when_the_service_of_the_new_instance_passes() {
    use wharf_registry::{
        command::Register,
        model::{CheckStatus, HealthCheck, Node, NodeService, platform::JobService},
    };

    use crate::platform::health::service_id;

    let scene = Scene::new();
    scene.node("n1", 10_000).await;
    let service = JobService {
        name: "web".into(),
        ..JobService::default()
    };
    let run = async |command: &str| {
        let group = TaskGroup {
            name: "web".into(),
            count: 2,
            services: vec![service.clone()],
            tasks: vec![Task {
                name: "web".into(),
                driver: Driver::Exec,
                command: command.into(),
                ..Task::default()
            }],
            ..TaskGroup::default()
        };
        let job = Job {
            name: "web".into(),
            groups: vec![Arc::new(group)],
            ..Job::default()
        };
        scene
            .write(PlatformCommand::RegisterJob {
                job: Box::new(job),
                check_index: None,
                time: unix_now(),
            })
            .await;
    };
    let register = async |alloc: &Alloc, status: CheckStatus| {
        let id = service_id(&alloc.id, &alloc.group, &service);
        let register = Register {
            node: Node {
                name: "n1".into(),
                address: "127.0.0.1".into(),
                ..Node::default()
            },
            service: Some(NodeService {
                id: id.clone(),
                name: "web".into(),
                ..NodeService::default()
            }),
            checks: vec![HealthCheck {
                id: format!("service:{id}").into(),
                service_id: id,
                status,
                ..HealthCheck::default()
            }],
            ..Register::default()
        };
        scene
            .cluster
            .write(Command::Register(Box::new(register)))
            .await
            .unwrap();
    };
    run("/bin/one").await;
    let view = scene.until(|view| running(view, 0).len() == 2).await;
    for alloc in view.allocs() {
        register(alloc, CheckStatus::Passing).await;
    }
    run("/bin/two").await;
    let view = scene.until(|view| running(view, 1).len() == 1).await;
    assert_eq!(running(&view, 0).len(), 1, "one at a time");
    let new = view
        .allocs()
        .find(|alloc| alloc.job_version == 1)
        .unwrap()
        .clone();
    register(&new, CheckStatus::Critical).await;
    register(&new, CheckStatus::Passing).await;
    scene.until(|view| running(view, 1).len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_made_again() {
    let cluster = Arc::new(Solo::new());
    let scene = Scene {
        cluster: cluster.clone(),
        decisions: Decisions::default(),
        stop: CancellationToken::new(),
    };
    scene.node("n1", 1_000).await;
    scene.run(1, "/bin/one", 100).await;
    *cluster.failure.lock().unwrap() = Some(ClusterError::Overloaded);
    let scheduling = Scheduling::new(scene.cluster.clone(), scene.decisions.clone());
    tokio::spawn(scheduling.run(scene.stop.clone()));
    tokio::time::sleep(3 * RETRY).await;
    assert_eq!(cluster.registry().view().allocs().len(), 0);
    *cluster.failure.lock().unwrap() = None;
    scene.until(|view| running(view, 0).len() == 1).await;
}
