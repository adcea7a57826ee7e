//! The `wharf` command against a running agent.

use std::{fs, process::Command};

use rustix::process::Signal;
use serde_json::Value;
use wharf_tests::{Agent, Process, SOON, as_consul, eventually, run, wharf};

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

#[test]
fn keys() {
    let agent = Agent::dev();
    let put = agent.run(&["kv", "put", "app/a", "one"]).success();
    assert_eq!(put.trim(), "Success! Data written to: app/a");
    assert_eq!(agent.run(&["kv", "get", "app/a"]).success(), "one\n");
    agent
        .run_with_input(&["kv", "put", "app/b", "-"], b"from input")
        .success();
    assert_eq!(agent.run(&["kv", "get", "app/b"]).success(), "from input\n");
    let detailed = agent.run(&["kv", "get", "-detailed", "app/a"]).success();
    assert!(detailed.contains("ModifyIndex"), "{detailed}");
    assert_eq!(
        agent.run(&["kv", "get", "-keys", "app/"]).success(),
        "app/a\napp/b\n"
    );
    assert_eq!(
        agent.run(&["kv", "get", "-recurse", "app/"]).success(),
        "app/a:one\napp/b:from input\n"
    );
    let missing = agent.run(&["kv", "get", "app/none"]).failure();
    assert!(missing.contains("No key exists at: app/none"), "{missing}");
    let stale = agent
        .run(&["kv", "put", "-cas", "-modify-index=1", "app/a", "x"])
        .failure();
    assert!(stale.contains("CAS"), "{stale}");

    // What is exported can be imported elsewhere.
    let exported = agent.run(&["kv", "export", "app/"]).success();
    assert_eq!(json(&exported)[0]["key"], "app/a");
    let other = Agent::dev();
    other
        .run_with_input(&["kv", "import", "-"], exported.as_bytes())
        .success();
    assert_eq!(
        other.run(&["kv", "get", "-recurse", "app/"]).success(),
        "app/a:one\napp/b:from input\n"
    );

    agent.run(&["kv", "delete", "-recurse", "app/"]).success();
    assert_eq!(agent.run(&["kv", "get", "-keys", ""]).success().trim(), "");
}

#[test]
fn services_from_a_file() {
    let agent = Agent::dev();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.hcl");
    let text = r#"
        service {
          id   = "web-1"
          name = "web"
          port = 8080
          tags = ["v1"]
          check {
            id  = "alive"
            ttl = "1h"
          }
        }
    "#;
    fs::write(&path, text).unwrap();
    let file = path.to_str().unwrap();
    // Validation is of a whole configuration, which needs a place for its data.
    let whole = directory.path().join("agent.hcl");
    let data = format!(
        "data_dir = \"{}\"\n",
        directory.path().join("data").display()
    );
    fs::write(&whole, data).unwrap();
    let valid = agent
        .run(&["validate", directory.path().to_str().unwrap()])
        .success();
    assert!(valid.contains("Configuration is valid"), "{valid}");
    agent.run(&["services", "register", file]).success();
    assert!(eventually(SOON, || agent
        .run(&["catalog", "services"])
        .success()
        .contains("web\n")));
    let tags = agent.run(&["catalog", "services", "-tags"]).success();
    assert!(tags.contains("v1"), "{tags}");
    let nodes = agent.run(&["catalog", "nodes", "-service=web"]).success();
    assert!(nodes.contains("127.0.0.1"), "{nodes}");
    assert_eq!(agent.run(&["catalog", "datacenters"]).success(), "dc1\n");

    agent
        .run(&["maint", "-enable", "-service=web-1", "-reason=upgrade"])
        .success();
    let maint = agent.run(&["maint"]).success();
    assert!(
        maint.contains("web-1") && maint.contains("upgrade"),
        "{maint}"
    );
    agent
        .run(&["maint", "-disable", "-service=web-1"])
        .success();

    agent
        .run(&["services", "deregister", "-id=web-1"])
        .success();
    assert!(eventually(SOON, || !agent
        .run(&["catalog", "services"])
        .success()
        .contains("web\n")));
    let unknown = agent
        .run(&["services", "deregister", "-id=web-1"])
        .failure();
    assert!(unknown.contains("web-1"), "{unknown}");

    fs::write(&path, "service {\n  name = \"web\"\n  prot = 80\n}\n").unwrap();
    let error = agent.run(&["validate", file]).failure();
    assert!(
        error.contains("web.hcl:3") && error.contains("port"),
        "{error}"
    );
}

#[test]
fn config_entries() {
    let agent = Agent::dev();
    let entry = b"Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\n";
    let written = agent
        .run_with_input(&["config", "write", "-"], entry)
        .success();
    assert_eq!(written.trim(), "Config entry written: service-defaults/web");
    let read = agent
        .run(&["config", "read", "-kind=service-defaults", "-name=web"])
        .success();
    assert_eq!(json(&read)["Protocol"], "http");
    assert_eq!(
        agent
            .run(&["config", "list", "-kind=service-defaults"])
            .success(),
        "web\n"
    );
    agent
        .run(&["config", "delete", "-kind=service-defaults", "-name=web"])
        .success();
    agent
        .run(&["config", "read", "-kind=service-defaults", "-name=web"])
        .failure();
}

#[test]
fn the_agent_as_others_see_it() {
    let agent = Agent::start(&["-dev", "-node=alpha"]);
    let members = agent.run(&["members"]).success();
    assert!(
        members.contains("alpha") && members.contains("alive"),
        "{members}"
    );
    let info = agent.run(&["info"]).success();
    assert!(
        info.contains("raft:") && info.contains("leader = true"),
        "{info}"
    );
    let version = json(&agent.run(&["version", "-format=json"]).success());
    assert!(
        version["Version"].as_str().unwrap().split('.').count() >= 3,
        "{version}"
    );
    let nodes = json(&agent.run(&["catalog", "nodes", "-format=json"]).success());
    assert_eq!(nodes[0]["Node"], "alpha");
}

#[test]
fn called_as_consul_it_is_consul() {
    let agent = Agent::dev();
    let directory = tempfile::tempdir().unwrap();
    let consul = as_consul(directory.path()).unwrap();
    let version = run(Command::new(&consul).args(["version", "-format=json"])).success();
    let version = json(&version)["Version"].as_str().unwrap().to_owned();
    assert!(version.starts_with("1.21."), "{version}");
    let plain = run(Command::new(&consul).arg("version")).success();
    assert!(plain.starts_with("Consul v1.21."), "{plain}");
    let address = format!("-http-addr=127.0.0.1:{}", agent.ports.http);
    let put = run(Command::new(&consul).args(["kv", "put", &address, "a", "b"])).success();
    assert_eq!(put.trim(), "Success! Data written to: a");
}

#[test]
fn monitor_follows_the_log() {
    let agent = Agent::dev();
    let mut monitor = Process::start(&mut agent.cli(&["monitor", "-log-level=debug"]));
    // What it shows is what happens after it is there.
    assert!(eventually(SOON, || {
        agent.http.get("/v1/kv/shown-by-monitor");
        monitor.text().contains("shown-by-monitor")
    }));
    // An interrupt ends it also while lines are coming.
    monitor.signal(Signal::INT);
    let status = monitor.ended(SOON);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
fn it_says_what_is_wrong() {
    let help = run(Command::new(wharf()).arg("--help")).success();
    for command in ["agent", "kv", "connect", "services", "catalog"] {
        assert!(help.contains(command), "{command} is not in:\n{help}");
    }
    let unknown = run(Command::new(wharf()).arg("catalogue"));
    assert_ne!(unknown.code, Some(0));
    assert!(unknown.err.contains("catalog"), "{}", unknown.err);
    let port = wharf_tests::free_port();
    let mut command = Command::new(wharf());
    command
        .args(["kv", "get", "a"])
        .arg(format!("-http-addr=127.0.0.1:{port}"));
    let error = run(&mut command).failure();
    assert!(
        error.contains(&port.to_string()) && error.contains("refused"),
        "{error}"
    );
}
