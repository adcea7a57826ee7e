//! The whole state in a file, and back.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::json;
use wharf_tests::{Agent, Ports, SOON, eventually};

#[test]
fn what_was_saved_comes_back_in_another_cluster_and_wakes_who_waits() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.snap");
    let file = file.to_str().unwrap();
    let source = Agent::dev();
    for number in 0..50 {
        let path = format!("/v1/kv/key/{number}");
        source.http.put(&path, "v".repeat(number * 100)).ok();
    }
    let node = json!({
        "Node": "ext", "Address": "10.0.0.1",
        "Service": {"Service": "db", "Port": 5432}, "Check": {"Name": "up", "Status": "passing"},
    });
    source
        .http
        .put("/v1/catalog/register", node.to_string())
        .ok();
    let entry = source.http.get("/v1/kv/key/7").json();
    let saved = source.run(&["snapshot", "save", file]).success();
    assert!(
        saved.starts_with("Saved and verified snapshot to index "),
        "{saved}"
    );
    let mode = fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let inspected = source.run(&["snapshot", "inspect", file]).success();
    let keys = inspected.lines().find(|line| line.starts_with("KV "));
    let count = keys.and_then(|line| line.split_whitespace().nth(1));
    assert_eq!(count, Some("50"), "{inspected}");
    drop(source);

    let data = directory.path().join("data");
    let target = Agent::durable(&data, Ports::choose());
    target.http.put("/v1/kv/mine", "x").ok();
    let before = target.http.get("/v1/kv/mine").json()[0]["ModifyIndex"]
        .as_u64()
        .unwrap();
    let waiting = target.http;
    let waiter = std::thread::spawn(move || {
        let path = format!("/v1/kv/mine?index={before}&wait=60s");
        let reply = waiting.get(&path);
        (
            reply.status,
            reply.header("x-consul-index").unwrap().to_owned(),
        )
    });
    assert!(eventually(SOON, || target.metric("wharf_watchers") > 0.0));
    let restored = target.run(&["snapshot", "restore", file]).success();
    assert_eq!(restored, "Restored snapshot\n");
    let (status, index) = waiter.join().unwrap();
    assert_eq!(status, 404, "it is not in what was restored");
    assert!(index.parse::<u64>().unwrap() > before);

    assert_eq!(target.http.get("/v1/kv/key/7").json(), entry);
    let db = target.http.get("/v1/health/service/db?passing").json();
    assert_eq!(db[0]["Node"]["Address"], "10.0.0.1");
    // The agent itself is there again, and everything after a crash.
    let own = || target.http.get("/v1/catalog/service/consul").json();
    assert!(eventually(SOON, || own()
        .as_array()
        .is_some_and(|rows| !rows.is_empty())));
    target.http.put("/v1/kv/later", "y").ok();
    let later = target.http.get("/v1/kv/later").json();
    assert!(later[0]["ModifyIndex"].as_u64() > index.parse().ok());
    let ports = target.kill();
    let target = Agent::durable(&data, ports);
    assert_eq!(target.http.get("/v1/kv/key/7").json(), entry);
    assert_eq!(target.http.get("/v1/kv/later").json(), later);
}

#[test]
fn a_damaged_or_cut_archive_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let agent = Agent::dev();
    agent.http.put("/v1/kv/a", "saved").ok();
    agent.run(&["snapshot", "save", &path("good")]).success();
    // What is no file stays what it is.
    let error = agent.run(&["snapshot", "save", "/dev/null"]).failure();
    assert!(error.contains("no file"), "{error}");
    let null = std::fs::metadata("/dev/null").unwrap();
    assert!(!null.is_file());
    agent.http.put("/v1/kv/a", "newer").ok();
    let good = fs::read(path("good")).unwrap();
    let half = good.len() / 2;
    let mut flipped = good.clone();
    flipped[half] ^= 0x10;
    for (name, bytes) in [
        ("cut", &good[..half]),
        ("short", &good[..good.len() - 1]),
        ("flipped", &flipped),
        ("text", b"this is no archive"),
        ("empty", b""),
    ] {
        fs::write(path(name), bytes).unwrap();
        let error = agent.run(&["snapshot", "restore", &path(name)]).failure();
        assert!(
            error.contains("500 (failed to read snapshot file"),
            "{name}: {error}"
        );
        let error = agent.run(&["snapshot", "inspect", &path(name)]).failure();
        assert!(
            error.starts_with("Error verifying snapshot"),
            "{name}: {error}"
        );
        assert_eq!(agent.http.get("/v1/kv/a?raw").text(), "newer");
    }
    let error = agent
        .run(&["snapshot", "save", &path("no/such/place")])
        .failure();
    assert!(error.contains("No such file or directory"), "{error}");
    let error = agent
        .run(&["snapshot", "restore", &path("missing")])
        .failure();
    assert!(error.starts_with("Error opening snapshot file"), "{error}");
    agent.run(&["snapshot", "restore", &path("good")]).success();
    assert_eq!(agent.http.get("/v1/kv/a?raw").text(), "saved");
}
