//! Runners with everybody else played: the order of steps, ends and restarts, and what an agent's death changes.

mod others;

use std::{collections::HashSet, time::Duration};

use wharf_registry::model::platform::{AllocPort, ClientStatus};

use self::others::{Fake, lock};
use super::*;
use crate::shim::protocol::{EventKind, ExitRecord};

struct Bench {
    directory: tempfile::TempDir,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            fake: Fake(Arc::default()),
        }
    }

    fn node(&self) -> Node {
        Node {
            allocs: self.directory.path().join("allocs"),
            run: self.directory.path().join("run"),
            program: "/usr/bin/wharf".into(),
            masked: Vec::new(),
            images: Arc::new(self.fake.clone()),
            networks: Arc::new(self.fake.clone()),
            shims: Arc::new(self.fake.clone()),
            services: Arc::new(self.fake.clone()),
            reports: Arc::new(self.fake.clone()),
        }
    }

    fn start(&self) -> AllocRunner {
        self.start_with(serde_json::json!({}))
    }

    fn start_with(&self, change: serde_json::Value) -> AllocRunner {
        let mut group = serde_json::json!({
            "Name": "web",
            "ShutdownDelay": "3s",
            "Restart": {"Attempts": 1, "Interval": "10m", "Delay": "2s", "MaxDelay": "2s"},
            "Services": [{"Name": "web", "Port": "http", "Connect": {"SidecarService": {}}}],
            "Tasks": [
                {"Name": "app", "Driver": "container", "Image": "app:1"},
                {"Name": "log", "Driver": "exec", "Command": "/bin/log", "Args": ["${WHARF_PORT_http}"]},
            ],
        });
        for (key, value) in change.as_object().unwrap() {
            group[key] = value.clone();
        }
        let group: TaskGroup = serde_json::from_value(group).unwrap();
        let alloc = Alloc {
            id: "0a1b2c3d-0000-0000-0000-000000000000".into(),
            name: "web.web[0]".into(),
            job_name: "web".into(),
            group: "web".into(),
            ports: vec![AllocPort {
                label: "http".into(),
                value: 20_000,
                to: 8080,
            }],
            ..Alloc::default()
        };
        let assignment = Assignment {
            alloc: Arc::new(alloc),
            group: Arc::new(group),
        };
        AllocRunner::start(assignment, Arc::new(self.node()), || {})
    }
}

const UP: [&str; 9] = [
    "image app:1",
    "attach +0",
    "sweep",
    "spawn wharf/0a1b2c3d-0000-0000-0000-000000000000",
    "prepare",
    "sidecar -proxy-id=proxy-id",
    "start app",
    "start log",
    "publish",
];

#[tokio::test(start_paused = true)]
async fn everything_goes_up_and_down_in_order() {
    let bench = Bench::new();
    let mut runner = bench.start();
    bench.fake.running().await;
    assert_eq!(bench.fake.asked(), UP);
    let update = bench.fake.last().unwrap();
    assert_eq!(&*update.address, "172.26.64.2");
    let kinds: Vec<&str> = update.task_states["app"]
        .events
        .iter()
        .map(|e| &*e.kind)
        .collect();
    assert_eq!(kinds, ["Received", "Image", "Started"]);
    let before = tokio::time::Instant::now();
    runner.stop("the job was stopped");
    runner.finished().await;
    assert_eq!(
        bench.fake.asked()[UP.len()..],
        // The image's own signal, and the default one.
        [
            "withdraw",
            "stop app 3",
            "stop log 15",
            "shutdown",
            "sweep",
            "remove",
            "detach",
            "release"
        ]
    );
    assert!(
        before.elapsed() >= Duration::from_secs(3),
        "proxies had time to let go"
    );
    let update = bench.fake.last().unwrap();
    assert_eq!(update.client_status, ClientStatus::Complete);
    assert_eq!(&*update.client_description, "the job was stopped");
    assert!(!bench.directory.path().join("run/0a1b2c3d").exists());
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_known_at_once_and_restarted_after_a_pause() {
    let bench = Bench::new();
    let _runner = bench.start();
    bench.fake.running().await;
    bench.fake.exit(
        "app",
        ExitRecord {
            code: Some(3),
            finished_at: 2_000,
            ..ExitRecord::default()
        },
    );
    let update = bench
        .fake
        .until(|u| u.task_states["app"].restarts == 1)
        .await;
    assert_eq!(update.task_states["app"].exit_code, Some(3));
    assert_eq!(
        bench.fake.asked()[UP.len()..],
        ["down app: ended with code 3"]
    );
    let crashed = tokio::time::Instant::now();
    bench
        .fake
        .until(|u| {
            let app = &u.task_states["app"];
            app.restarts == 1 && app.events.last().is_some_and(|e| &*e.kind == "Started")
        })
        .await;
    assert!(
        crashed.elapsed() >= Duration::from_secs(1),
        "{:?}",
        crashed.elapsed()
    );
    // Its services were registered all the time.
    assert_eq!(
        bench.fake.asked()[UP.len()..],
        ["down app: ended with code 3", "start app", "up app"]
    );
    assert_eq!(
        bench.fake.last().unwrap().client_status,
        ClientStatus::Running
    );
}

#[tokio::test(start_paused = true)]
async fn too_many_crashes_are_a_failure_and_everything_goes() {
    let bench = Bench::new();
    let mut runner = bench.start();
    bench.fake.running().await;
    let killed = || ExitRecord {
        signal: Some(9),
        oom_killed: true,
        finished_at: 2_000,
        ..ExitRecord::default()
    };
    bench.fake.exit("app", killed());
    bench
        .fake
        .until(|u| {
            let app = &u.task_states["app"];
            app.restarts == 1 && app.events.last().is_some_and(|e| &*e.kind == "Started")
        })
        .await;
    bench.fake.exit("app", killed());
    runner.finished().await;
    let update = bench.fake.last().unwrap();
    assert_eq!(update.client_status, ClientStatus::Failed);
    assert!(
        update
            .client_description
            .contains("signal 9: out of memory"),
        "{update:?}"
    );
    assert!(update.task_states["app"].failed);
    assert!(update.task_states["app"].oom_killed);
    let asked = bench.fake.asked();
    let end = &asked[asked.len() - 7..];
    assert_eq!(
        end,
        [
            "withdraw",
            "stop log 15",
            "shutdown",
            "sweep",
            "remove",
            "detach",
            "release"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_to_be_had_is_the_reason() {
    let bench = Bench::new();
    *lock(&bench.fake.0.image_failure) = Some("no such image".into());
    let mut runner = bench.start();
    runner.finished().await;
    let update = bench.fake.last().unwrap();
    assert_eq!(update.client_status, ClientStatus::Failed);
    assert_eq!(&*update.client_description, "image app:1: no such image");
    assert!(
        update.task_states["app"]
            .events
            .iter()
            .any(|e| &*e.kind == "Image Failure")
    );
    // Nothing was there, and all of it is taken down.
    assert!(
        !bench
            .fake
            .asked()
            .iter()
            .any(|what| what.starts_with("spawn"))
    );
    assert!(bench.fake.asked().contains(&"detach".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_touches_nothing_that_runs() {
    let bench = Bench::new();
    let runner = bench.start();
    bench.fake.running().await;
    // As if killed: nothing is stopped.
    drop(runner);
    let events = lock(&bench.fake.0.shim).events.take();
    drop(events);
    lock(&bench.fake.0.asked).clear();
    let told = lock(&bench.fake.0.updates).len();
    let states = bench.fake.last().unwrap().task_states;
    // What happens while nobody listens is told afterwards.
    bench.fake.exit(
        "log",
        ExitRecord {
            code: Some(0),
            finished_at: 5_000,
            ..ExitRecord::default()
        },
    );
    let _runner = bench.start();
    let update = bench
        .fake
        .until(|u| u.task_states["log"].restarts == 1)
        .await;
    assert_eq!(
        update.task_states["app"], states["app"],
        "the history is kept"
    );
    let updates = lock(&bench.fake.0.updates)[told..].to_vec();
    assert!(
        updates
            .iter()
            .all(|update| &*update.address == "172.26.64.2"),
        "it is where it was: {updates:?}"
    );
    assert_eq!(
        bench.fake.asked(),
        [
            "image app:1",
            "attach +0",
            "connect true",
            "prepare",
            "down log: ended with code 0"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn much_that_happened_while_nobody_listened_costs_nothing_that_runs() {
    let bench = Bench::new();
    let runner = bench.start();
    bench.fake.running().await;
    drop(runner);
    lock(&bench.fake.0.shim).events.take();
    lock(&bench.fake.0.asked).clear();
    // On a full disk a shim has something to tell every second.
    for _ in 0..500 {
        bench.fake.tell(EventKind::LogLost {
            stream: "app/stdout".into(),
            bytes: 1,
            why: "full".into(),
        });
    }
    let _runner = bench.start();
    let update = bench
        .fake
        .until(|update| {
            let last = update.task_states["app"].events.last();
            last.is_some_and(|event| &*event.kind == "Output Lost")
        })
        .await;
    assert_eq!(update.client_status, ClientStatus::Running, "{update:?}");
    assert_eq!(update.client_description, "its tasks run".into());
    let asked = bench.fake.asked();
    assert!(!asked.iter().any(|asked| asked == "sweep"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_is_gone_is_swept_and_started_over() {
    for while_away in [false, true] {
        let bench = Bench::new();
        let mut runner = bench.start();
        bench.fake.running().await;
        lock(&bench.fake.0.asked).clear();
        if while_away {
            drop(runner);
            bench.fake.kill_shim();
            runner = bench.start();
        } else {
            bench.fake.kill_shim();
        }
        bench
            .fake
            .until(|u| {
                u.task_states.values().all(|state| {
                    state.restarts == 1
                        && state.events.last().is_some_and(|e| &*e.kind == "Started")
                })
            })
            .await;
        let asked = bench.fake.asked();
        let at = |what: &str| {
            asked
                .iter()
                .position(|asked| asked.starts_with(what))
                .expect(what)
        };
        assert!(at("sweep") < at("spawn"), "{asked:?}");
        assert!(
            at("down app: its shim was killed") < at("spawn"),
            "{asked:?}"
        );
        assert!(at("sidecar") < at("start app"), "{asked:?}");
        drop(runner);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_counts_at_any_time_and_is_finished_by_the_next_agent() {
    let bench = Bench::new();
    let runner = bench.start();
    bench.fake.running().await;
    runner.stop("scaled down");
    // The agent dies in the pause for proxies.
    bench
        .fake
        .until(|u| u.client_description.starts_with("stopping: scaled down"))
        .await;
    drop(runner);
    lock(&bench.fake.0.asked).clear();
    let mut runner = bench.start();
    runner.finished().await;
    let update = bench.fake.last().unwrap();
    assert_eq!(update.client_status, ClientStatus::Complete);
    assert_eq!(&*update.client_description, "scaled down");
    assert!(
        bench.fake.asked().contains(&"stop app 3".to_owned()),
        "{:?}",
        bench.fake.asked()
    );
    // And what is done stays done: a third agent only tells it again.
    lock(&bench.fake.0.asked).clear();
    bench.start().finished().await;
    assert!(bench.fake.asked().is_empty());
    assert_eq!(
        bench.fake.last().unwrap().client_status,
        ClientStatus::Complete
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_does_not_hold_the_rest() {
    let bench = Bench::new();
    let mut runner = bench.start();
    bench.fake.running().await;
    lock(&bench.fake.0.shim).deaf = true;
    runner.stop("now");
    runner.finished().await;
    assert_eq!(
        bench.fake.last().unwrap().client_status,
        ClientStatus::Complete
    );
    assert!(bench.fake.asked().contains(&"sweep".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn two_sidecars_are_refused_in_words() {
    let bench = Bench::new();
    let service = |name: &str| serde_json::json!({"Name": name, "Port": "http", "Connect": {"SidecarService": {}}});
    let mut runner =
        bench.start_with(serde_json::json!({"Services": [service("a"), service("b")]}));
    runner.finished().await;
    let update = bench.fake.last().unwrap();
    assert!(
        update
            .client_description
            .contains("more than one in a group is not built yet"),
        "{update:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_swept_everywhere_even_if_one_of_them_fails() {
    let bench = Bench::new();
    bench.node().sweep(&HashSet::from(["a".to_owned()])).await;
    assert_eq!(
        bench.fake.asked(),
        [
            "sweep networks but {\"a\"}",
            "sweep services but {\"a\"}",
            "sweep images but {\"a\"}"
        ]
    );
}
