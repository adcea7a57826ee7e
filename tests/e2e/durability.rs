//! What was acknowledged is there after a crash.

use rustix::process::Signal;
use serde_json::json;
use wharf_tests::{Agent, Ports, SOON, eventually, run};

#[test]
fn acknowledged_writes_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::durable(directory.path(), Ports::choose());
    for number in 0..200 {
        let path = format!("/v1/kv/durable/{number}?flags={number}");
        assert_eq!(
            agent
                .http
                .put(&path, format!("value {number}"))
                .ok()
                .text()
                .trim(),
            "true"
        );
    }
    let external = json!({
        "Node": "outside", "Address": "10.1.2.3",
        "Service": {"Service": "database", "Port": 5432, "Tags": ["primary"]},
    });
    agent
        .http
        .put("/v1/catalog/register", external.to_string())
        .ok();
    let entry = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"});
    agent.http.put("/v1/config", entry.to_string()).ok();
    let local = json!({"Name": "web", "ID": "web-1", "Port": 8080, "Check": {"TTL": "1h"}});
    agent
        .http
        .put("/v1/agent/service/register", local.to_string())
        .ok();
    agent
        .http
        .put("/v1/agent/check/pass/service:web-1", "")
        .ok();
    let before = agent.http.get("/v1/kv/durable/?recurse").json();
    let index = agent.http.get("/v1/kv/durable/?recurse").index();
    let node = agent.http.get("/v1/agent/self").json()["Config"]["NodeID"].clone();

    let ports = agent.kill();
    let agent = Agent::durable(directory.path(), ports);
    assert_eq!(agent.http.get("/v1/kv/durable/?recurse").json(), before);
    assert!(agent.http.get("/v1/kv/durable/?recurse").index() >= index);
    let database = agent.http.get("/v1/catalog/service/database").json();
    assert_eq!(database[0]["ServicePort"], 5432);
    assert_eq!(database[0]["ServiceTags"][0], "primary");
    let entry = agent.http.get("/v1/config/service-defaults/web").json();
    assert_eq!(entry["Protocol"], "http");
    assert_eq!(
        agent.http.get("/v1/agent/self").json()["Config"]["NodeID"],
        node
    );
    // The agent's own service came back too, with the state its owner last reported.
    assert!(eventually(SOON, || {
        let rows = agent.http.get("/v1/health/service/web?passing").json();
        rows.as_array().is_some_and(|rows| rows.len() == 1)
    }));
}

#[test]
fn a_clean_end_keeps_everything_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = Agent::durable(directory.path(), Ports::choose());
    agent.http.put("/v1/kv/a", "b").ok();
    assert!(agent.process.stop(Signal::TERM).success());
    let agent = Agent::durable(directory.path(), agent.ports);
    assert_eq!(agent.http.get("/v1/kv/a?raw").text(), "b");
}

#[test]
fn a_data_directory_has_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::durable(directory.path(), Ports::choose());
    let flag = format!("-data-dir={}", directory.path().display());
    let flags = ["-server", "-bootstrap", "-bind=127.0.0.1", flag.as_str()];
    let error = run(&mut Agent::command(Ports::choose(), &flags)).failure();
    let path = directory.path().display().to_string();
    assert!(error.contains(&path), "{error}");
    // The first one did not notice.
    agent.http.put("/v1/kv/a", "b").ok();
}
