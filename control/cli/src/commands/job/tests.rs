use std::io::Write as _;

use serde_json::json;

use crate::stub::{Asked, Reply, Stub};

const FILE: &str = r#"
job "web" {
  group "web" {
    count = 1
    task "web" {
      driver  = "exec"
      command = "/bin/true"
    }
  }
}
"#;

const CREATED: i64 = 1_800_000_000_000_000_000;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".hcl").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn detail(status: &str, running: u32, failures: serde_json::Value) -> String {
    json!({
        "Name": "web", "Groups": [], "Version": 0, "Stop": status == "dead", "Status": status,
        "Summary": {"web": {"Desired": 1, "Running": running, "Healthy": running}},
        "PlacementFailures": failures,
    })
    .to_string()
}

fn alloc(status: &str, index: u64, events: serde_json::Value) -> serde_json::Value {
    json!({
        "ID": "3f2a91c0-1111", "Name": "web.web[0]", "Node": "n1", "ClientStatus": status,
        "ClientDescription": "task web ended with code 1", "ModifyIndex": index,
        "CreateIndex": 8, "AllocModifyIndex": 8, "CreateTime": CREATED, "EndTime": CREATED + 9,
        "TaskStates": {"web": {"Events": events}},
    })
}

/// An agent on which the allocation passes through these states, one a look.
fn agent(states: Vec<serde_json::Value>, end: String) -> Stub {
    let mut left = states.clone().into_iter();
    let mut now = left.next();
    Stub::new(move |asked: &Asked| {
        let is = |line: &str| asked.line.starts_with(line);
        if is("PUT /v1/jobs") {
            let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            assert_eq!(body["Name"], "web");
            return Reply::ok(r#"{"Name":"web","Version":0,"JobModifyIndex":7,"Index":7}"#);
        }
        if is("GET /v1/job/web/allocations") {
            if is("GET /v1/job/web/allocations?index") {
                now = left.next().or(now.take());
            }
            let rows: Vec<_> = now.iter().collect();
            let index = rows
                .first()
                .map_or(1, |row| row["ModifyIndex"].as_u64().unwrap());
            return Reply::ok(serde_json::to_vec(&rows).unwrap()).header("x-consul-index", index);
        }
        if is("GET /v1/allocation/") {
            return Reply::ok(now.as_ref().unwrap().to_string());
        }
        let last = left.len() == 0;
        Reply::ok(if last {
            end.clone()
        } else {
            detail("pending", 0, json!([]))
        })
    })
}

#[test]
fn a_start_is_followed_to_its_end() {
    let event = json!({"Time": CREATED + 1, "Type": "Started", "Message": "pid 7"});
    let states = vec![
        alloc("pending", 8, json!([])),
        alloc("running", 9, json!([event])),
    ];
    let agent = agent(states, detail("running", 1, json!([])));
    let file = file(FILE);
    let printed = agent.wharf(&["job", "run", file.path().to_str().unwrap()]);
    assert_eq!(printed.code, 0, "{printed:?}");
    let lines: Vec<&str> = printed.out.lines().collect();
    assert_eq!(lines[0], r#"Job "web" registered: version 0, index 7"#);
    assert!(
        lines[1].ends_with("3f2a91c0  web.web[0]  Placed      on node n1"),
        "{}",
        printed.out
    );
    assert!(
        lines[2].ends_with("3f2a91c0  web.web[0]  Started     web: pid 7"),
        "{}",
        printed.out
    );
    assert_eq!(lines[3], r#"Job "web" runs: 1/1 instances"#);
    assert_eq!(lines.len(), 4, "each event once: {}", printed.out);
}

#[test]
fn what_runs_and_does_not_pass_is_waited_for() {
    let unhealthy = detail("running", 1, json!([])).replace(r#""Healthy":1"#, r#""Healthy":0"#);
    let agent = agent(vec![alloc("running", 9, json!([]))], unhealthy);
    let file = file(FILE);
    let path = file.path().to_str().unwrap();
    let printed = agent.wharf(&["job", "run", "-timeout=300ms", path]);
    assert_eq!(printed.code, 1);
    assert_eq!(
        printed.err,
        "not all of job \"web\" runs after 300ms\n  cause: 0 of 1 healthy\n  try:   wharf job status web\n"
    );
}

#[test]
fn a_start_that_fails_ends_with_the_reason() {
    let event = json!({"Time": 5, "Type": "Terminated", "Message": "exit code 1"});
    let states = vec![
        alloc("pending", 8, json!([])),
        alloc("failed", 9, json!([event])),
    ];
    let agent = agent(states, detail("pending", 0, json!([])));
    let file = file(FILE);
    let printed = agent.wharf(&["job", "run", file.path().to_str().unwrap()]);
    assert_eq!(printed.code, 1);
    assert_eq!(
        printed.err,
        "web.web[0] failed: task web ended with code 1\n  cause: web: Terminated exit code 1\n  \
         try:   wharf alloc status 3f2a91c0\n"
    );
}

#[test]
fn what_finds_no_node_is_told_by_dimension() {
    let failures = json!([{"Group": "web", "Count": 1, "Reason": "none of 1 node can take it: port 80 taken on 1 node"}]);
    let mut looks = 0;
    let agent = Stub::new(move |asked: &Asked| match &*asked.line {
        line if line.starts_with("PUT") => {
            Reply::ok(r#"{"Name":"web","Version":0,"JobModifyIndex":7,"Index":7}"#)
        }
        line if line.starts_with("GET /v1/job/web/allocations") => {
            looks += 1;
            Reply::ok("[]").header("x-consul-index", looks)
        }
        _ => Reply::ok(detail("pending", 0, failures.clone())),
    });
    let file = file(FILE);
    let printed = agent.wharf(&["job", "run", file.path().to_str().unwrap()]);
    assert_eq!(printed.code, 1);
    assert!(
        printed.err.starts_with(
            "1 instance of group \"web\" found no node: none of 1 node can take it: port 80 taken on 1 node\n"
        ),
        "{}",
        printed.err
    );
}

#[test]
fn a_file_that_is_no_job_is_refused_with_its_line_and_no_agent_is_asked() {
    let agent = Stub::new(|_: &Asked| Reply::new(500, "not asked"));
    let file = file(&FILE.replace("count", "cuont"));
    let path = file.path().to_str().unwrap();
    for verb in ["run", "validate"] {
        let printed = agent.wharf(&["job", verb, path]);
        assert_eq!(printed.code, 1);
        assert_eq!(
            printed.err,
            format!(
                "{path} is not a job\n  cause: {path}:4:5: unknown key \"group[0].cuont\" (did you mean \"count\"?)\n"
            )
        );
    }
    assert!(agent.asked().is_empty());
    let good = self::file(FILE);
    let printed = agent.wharf(&["job", "validate", good.path().to_str().unwrap()]);
    assert_eq!(printed.out, "Job \"web\" is valid: 1 group, 1 instances\n");
}

#[test]
fn tables_begin_with_the_name() {
    let agent = Stub::new(|asked: &Asked| match &*asked.line {
        "GET /v1/jobs" => Reply::ok(
            r#"[{"Name":"web","Type":"service","Version":3,"SubmitTime":0,"Status":"running",
                 "Summary":{"web":{"Desired":3,"Running":2}}}]"#,
        ),
        _ => Reply::ok("[]"),
    });
    let printed = agent.wharf(&["job", "status"]);
    assert_eq!(
        printed.out,
        "Name  Type     Status   Running  Version  Age\nweb   service  running  2/3      3        -\n"
    );
    let printed = agent.wharf(&["alloc", "status"]);
    assert_eq!((printed.code, &*printed.out), (0, ""));
}

#[test]
fn scaling_takes_the_group_or_leaves_it_out() {
    let answer = r#"{"Name":"web","Version":1,"JobModifyIndex":9,"Index":9}"#;
    let agent = Stub::new(move |_: &Asked| Reply::ok(answer));
    let printed = agent.wharf(&["job", "scale", "-detach", "web", "5"]);
    assert_eq!(printed.out, "Job \"web\" scaled to 5: version 1, index 9\n");
    agent.wharf(&["job", "scale", "-detach", "web", "api", "2"]);
    let bodies: Vec<String> = agent
        .asked()
        .into_iter()
        .map(|asked| String::from_utf8(asked.body).unwrap())
        .collect();
    assert_eq!(
        bodies,
        [r#"{"Count":5,"Group":""}"#, r#"{"Count":2,"Group":"api"}"#]
    );
    let printed = agent.wharf(&["job", "scale", "web", "many"]);
    assert!(
        printed
            .err
            .starts_with("\"many\" is not a number of instances")
    );
}
