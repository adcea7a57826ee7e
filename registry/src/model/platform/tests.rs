use wharf_config::{Mode, decode_json_bytes};

use super::*;

fn job(json: &str) -> Job {
    decode_json_bytes(json.as_bytes(), Mode::Strict).unwrap()
}

const WEB: &str = r#"{
    "Name": "web",
    "Groups": [{
        "Name": "web", "Count": 3,
        "Network": {"Ports": [{"Label": "http", "To": 8080}]},
        "Services": [{
            "Name": "web", "Port": "http",
            "Checks": [{"Type": "http", "Path": "/health"}],
            "Connect": {"SidecarService": {"Proxy": {"Upstreams": [
                {"DestinationName": "db", "LocalBindPort": 5432}
            ]}}}
        }],
        "Tasks": [{"Name": "web", "Driver": "exec", "Command": "/bin/web",
                   "Resources": {"CPU": "250m", "MemoryMB": "1GiB"}}]
    }]
}"#;

#[test]
fn a_job_is_read_completed_and_valid() {
    let job = job(WEB);
    assert_eq!(job.validate(), Ok(()));
    let group = &job.groups[0];
    let task = &group.tasks[0];
    assert_eq!((task.resources.cpu, task.resources.memory_mb), (250, 1024));
    assert!(task.readonly_rootfs);
    assert_eq!(task.kill_timeout.to_string(), "5s");
    assert_eq!(group.restart.attempts, 2);
    assert_eq!(group.network.mode, NetworkMode::Bridge);
    assert_eq!(group.services[0].checks[0].interval.to_string(), "10s");
    assert_eq!(
        group.resources(),
        Resources {
            cpu: 300,
            memory_mb: 1056,
            memory_max_mb: 0
        },
        "the sidecar counts"
    );
}

#[test]
fn json_and_messagepack_give_back_the_same() {
    let mut job = job(WEB);
    job.version = 3;
    job.modify_index = 7;
    let json = serde_json::to_string(&job).unwrap();
    assert_eq!(serde_json::from_str::<Job>(&json).unwrap(), job);
    let packed = rmp_serde::to_vec_named(&job).unwrap();
    assert_eq!(rmp_serde::from_slice::<Job>(&packed).unwrap(), job);
    let mut alloc = Alloc {
        id: "a".into(),
        ..Alloc::default()
    };
    alloc.task_states.insert(
        "web".into(),
        TaskState {
            exit_code: Some(1),
            ..TaskState::default()
        },
    );
    let packed = rmp_serde::to_vec_named(&alloc).unwrap();
    assert_eq!(rmp_serde::from_slice::<Alloc>(&packed).unwrap(), alloc);
    let mut node = PlatformNode::default();
    node.drivers.insert(Driver::Exec, DriverHealth::default());
    let json = serde_json::to_string(&node).unwrap();
    assert!(json.contains(r#""exec":{"#), "{json}");
    assert_eq!(serde_json::from_str::<PlatformNode>(&json).unwrap(), node);
}

/// What is wrong with the job above after one key of it is set to another value.
fn problems(pointer: &str, value: serde_json::Value) -> Vec<String> {
    let mut json: serde_json::Value = serde_json::from_str(WEB).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    let job: Job = serde_json::from_value(json).unwrap();
    let problems = job.validate().err().unwrap_or_default();
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn what_cannot_be_is_said_with_its_place() {
    use serde_json::json;

    let group = "/Groups/0";
    let cases: Vec<(&str, serde_json::Value, &str)> = vec![
        (
            "/Name",
            json!("Web_1"),
            r#"Name: "Web_1" is not a name for DNS"#,
        ),
        ("/Name", json!("-web"), "Name: "),
        ("/Name", json!(""), "Name: a job needs a name"),
        ("/ID", json!("other"), r#"ID: "other" is not the name"#),
        (
            "/Groups",
            json!([]),
            "Groups: a job needs at least one group",
        ),
        (
            "/Count",
            json!(10_001),
            "Groups[0].Count: 10001 are too many",
        ),
        (
            "/Tasks",
            json!([]),
            "Groups[0].Tasks: a group needs at least one task",
        ),
        (
            "/Network/Ports",
            json!([{"Label": "http", "Static": 80}, {"Label": "https", "Static": 80}]),
            "Groups[0].Network.Ports[1].Static: port 80 is there twice",
        ),
        (
            "/Network/Ports",
            json!([{"Label": "http"}, {"Label": "http"}]),
            r#"Groups[0].Network.Ports[1]: "http" is there twice"#,
        ),
        (
            "/Network/Ports",
            json!([{"Label": "http"}, {"Label": "8080"}]),
            r#"Groups[0].Network.Ports[1].Label: "8080" is not a label"#,
        ),
        (
            "/Network/Mode",
            json!("host"),
            "Groups[0].Network.Ports[0].To: ports are not mapped",
        ),
        (
            "/Services/0/Port",
            json!("htp"),
            r#"Groups[0].Services[0].Port: there is no port "htp": the group's network has http"#,
        ),
        (
            "/Services/0/Port",
            json!(""),
            "Groups[0].Services[0].Checks[0].Port: neither",
        ),
        (
            "/Services/0/Checks/0/Path",
            json!("health"),
            r#"Groups[0].Services[0].Checks[0].Path: "health" is not a path"#,
        ),
        (
            "/Services/0/Checks/0/Interval",
            json!("0s"),
            "Groups[0].Services[0].Checks[0].Interval: 0s is too short: at least 1s",
        ),
        (
            "/Services/0/Checks/0/Type",
            json!("tcp"),
            "Groups[0].Services[0].Checks[0].Path: a tcp check has none",
        ),
        (
            "/Services/0/Connect/SidecarService/Proxy/Upstreams/0/LocalBindPort",
            json!(0),
            "Groups[0].Services[0].Connect.SidecarService.Proxy.Upstreams[0].LocalBindPort: an upstream needs",
        ),
        (
            "/Tasks/0/Command",
            json!(""),
            "Groups[0].Tasks[0].Command: an exec task needs a command",
        ),
        (
            "/Tasks/0/Driver",
            json!("container"),
            "Groups[0].Tasks[0].Image: a container needs an image",
        ),
        (
            "/Tasks/0/Image",
            json!("web:1"),
            "Groups[0].Tasks[0].Image: an exec task runs on",
        ),
        (
            "/Tasks/0/KillSignal",
            json!("SIGNOPE"),
            r#"Groups[0].Tasks[0].KillSignal: there is no signal "SIGNOPE""#,
        ),
        (
            "/Tasks/0/KillTimeout",
            json!("25h"),
            "Groups[0].Tasks[0].KillTimeout: 25h0m0s is too long",
        ),
        (
            "/Tasks/0/Resources",
            json!({"CPU": 0}),
            "Groups[0].Tasks[0].Resources.CPU: 0 is not from 1",
        ),
        (
            "/Tasks/0/Resources",
            json!({"MemoryMB": 1}),
            "Groups[0].Tasks[0].Resources.MemoryMB: 1 is not from 4",
        ),
        (
            "/Tasks/0/Resources",
            json!({"MemoryMB": 64, "MemoryMaxMB": 32}),
            "Groups[0].Tasks[0].Resources.MemoryMaxMB: 32 is not from",
        ),
        (
            "/Tasks/0/WorkDir",
            json!("srv"),
            r#"Groups[0].Tasks[0].WorkDir: "srv" is not an absolute path"#,
        ),
        (
            "/Tasks/0/Env",
            json!({"A=B": "c"}),
            r#"Groups[0].Tasks[0].Env: "A=B" is not a name"#,
        ),
        (
            "/Tasks/0/ImageDigest",
            json!("sha256:12"),
            "Groups[0].Tasks[0].ImageDigest: ",
        ),
        (
            "/Restart",
            json!({"Interval": "0s"}),
            "Groups[0].Restart.Interval: 0s is too short",
        ),
    ];
    for (pointer, value, expected) in cases {
        let pointer = match pointer {
            "/Name" | "/ID" | "/Groups" => pointer.to_owned(),
            below => format!("{group}{below}"),
        };
        let found = problems(&pointer, value);
        assert!(
            found.iter().any(|problem| problem.starts_with(expected)),
            "{pointer}: expected {expected:?} among {found:?}"
        );
    }
}

#[test]
fn types_that_are_not_built_are_told_from_what_never_was() {
    let refused = |kind: &str| {
        let json = format!(r#"{{"Name": "x", "Type": "{kind}"}}"#);
        decode_json_bytes::<Job>(json.as_bytes(), Mode::Strict)
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused("batch").contains("not built yet"),
        "{}",
        refused("batch")
    );
    assert!(
        refused("bach").contains("unknown job type"),
        "{}",
        refused("bach")
    );
}

#[test]
fn a_restart_waits_longer_each_time() {
    let restart = Restart::default();
    let delays: Vec<u128> = (0..7)
        .map(|earlier| restart.delay_after(earlier).as_millis())
        .collect();
    assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 15000, 15000]);
    assert_eq!(restart.delay_after(u32::MAX).as_millis(), 15000);
}

#[test]
fn the_newest_events_are_kept() {
    let mut state = TaskState::default();
    for time in 0..50 {
        state.record(TaskEvent {
            time,
            ..TaskEvent::default()
        });
    }
    assert_eq!(state.events.len(), MAX_TASK_EVENTS);
    assert_eq!((state.events[0].time, state.events[19].time), (30, 49));
}

#[test]
fn signals_have_names() {
    assert_eq!(signal_number("SIGTERM"), Some(15));
    assert_eq!(signal_number("usr1"), Some(10));
    assert_eq!(signal_number("TERMINATE"), None);
}
