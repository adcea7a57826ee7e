//! What was acknowledged is there after a crash.

use std::{path::Path, process::Command, time::Duration};

use rustix::process::Signal;
use serde_json::json;
use wharf_tests::{Agent, Ports, SOON, SmallDisk, eventually, run};

/// `EX_IOERR` of sysexits.h: what an agent ends with that cannot write its log.
const EXIT_IO_ERROR: i32 = 74;

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

/// The newest file of the log of an agent that was killed.
fn newest_chunk(data: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(data.join("raft/log")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let chunks = files.filter(|path| path.extension().is_some_and(|extension| extension == "wal"));
    chunks.max().unwrap()
}

#[test]
fn a_torn_tail_is_dropped_and_a_flipped_bit_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::durable(directory.path(), Ports::choose());
    for number in 0..50 {
        agent
            .http
            .put(&format!("/v1/kv/{number}"), value(number))
            .ok();
    }
    let ports = agent.kill();
    // Half of what would have been the next entry.
    let chunk = newest_chunk(directory.path());
    let bytes = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, &bytes[..bytes.len() - 3]).unwrap();
    let agent = Agent::durable(directory.path(), ports);
    for number in 0..49 {
        assert!(agent.http.get(&format!("/v1/kv/{number}?raw")).text() == value(number));
    }
    agent.http.put("/v1/kv/after", "value").ok();
    let ports = agent.kill();

    let mut bytes = std::fs::read(&chunk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&chunk, &bytes).unwrap();
    let flags = server_flags(directory.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let error = run(&mut Agent::command(ports, &flags)).failure();
    assert!(error.contains("is damaged"), "{error}");
    bytes[middle] ^= 1;
    std::fs::write(&chunk, &bytes).unwrap();
    let agent = Agent::durable(directory.path(), ports);
    assert_eq!(agent.http.get("/v1/kv/after?raw").text(), "value");
}

#[test]
fn the_data_of_a_newer_wharf_and_of_another_node_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::durable(directory.path(), Ports::choose());
    agent.http.put("/v1/kv/a", "b").ok();
    let ports = agent.kill();
    let refusal = || {
        let flags = server_flags(directory.path());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        run(&mut Agent::command(ports, &flags)).failure()
    };
    let path = |name: &str| directory.path().join(name);
    let version = std::fs::read_to_string(path("raft/VERSION")).unwrap();
    std::fs::write(path("raft/VERSION"), version.replacen('2', "3", 1)).unwrap();
    let error = refusal();
    assert!(
        error.contains("was written by a newer wharf (format 3"),
        "{error}"
    );
    std::fs::write(path("raft/VERSION"), &version).unwrap();
    // The node's id of another directory, or the log of another node.
    let node = std::fs::read_to_string(path("node-id")).unwrap();
    let other = "11111111-2222-3333-4444-555555555555";
    std::fs::write(path("node-id"), other).unwrap();
    let error = refusal();
    assert!(
        error.contains(&format!("belongs to server {}", node.trim())),
        "{error}"
    );
    assert!(error.contains(other), "{error}");
    std::fs::write(path("node-id"), node).unwrap();
    let agent = Agent::durable(directory.path(), ports);
    assert_eq!(agent.http.get("/v1/kv/a?raw").text(), "b");
}

fn server_flags(directory: &Path) -> [String; 4] {
    let data = format!("-data-dir={}", directory.display());
    ["-server", "-bootstrap", "-bind=127.0.0.1", &data].map(str::to_owned)
}

/// The value of a key: as long as a page of a log, and different for each.
fn value(number: usize) -> String {
    format!("{number:08}").repeat(8 << 10)
}

/// Writes to an agent until it can write no more. It has to say so, and to end; what it acknowledged
/// has to be there when `recovered` has started one that has room.
fn acknowledged_writes_survive_the_end_of_space(
    mut agent: Agent,
    recovered: impl FnOnce(Ports) -> Agent,
) {
    let path = |number: usize| format!("/v1/kv/full/{number}");
    let mut acknowledged = 0;
    let refused = loop {
        assert!(acknowledged < 1000, "the space does not end");
        let body = value(acknowledged);
        match agent
            .http
            .request("PUT", &path(acknowledged), &[], body.as_bytes())
        {
            Ok(reply) if reply.status == 200 => acknowledged += 1,
            other => break other,
        }
    };
    assert!(acknowledged > 0);
    // An answer that still came does not claim that nothing happened.
    if let Ok(reply) = refused {
        assert_eq!(reply.status, 500, "{}", reply.text());
        assert!(reply.text().contains("unknown"), "{}", reply.text());
    }
    let status = agent.process.ended(SOON).expect("it ends");
    assert_eq!(status.code(), Some(EXIT_IO_ERROR), "{status}");
    let reason = agent.process.line("cannot go on safely", SOON);
    let reason = reason.expect("it says why");
    assert!(reason.contains("os error"), "{reason}");

    let agent = recovered(agent.ports);
    for number in 0..acknowledged {
        let kept = agent.http.get(&format!("{}?raw", path(number)));
        assert_eq!(kept.status, 200, "{number} of {acknowledged} is lost");
        assert!(kept.text() == value(number), "{number} has another value");
    }
    agent.http.put("/v1/kv/after", "it goes on").ok();
}

#[test]
fn a_log_that_cannot_grow_ends_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let ports = Ports::choose();
    let flags = server_flags(directory.path());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = Agent::command(ports, &flags);
    // Files end at some megabytes. A write beyond that is an error, not a signal.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$@\"", "sh"])
        .arg(agent.get_program())
        .args(agent.get_args());
    for (name, value) in agent.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let agent = Agent::of_command(ports, &mut limited).unwrap();
    acknowledged_writes_survive_the_end_of_space(agent, |ports| {
        Agent::durable(directory.path(), ports)
    });
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path(), "24m") else {
        wharf_tests::missing("right to mount a small file system (it takes root)");
        return;
    };
    let data = directory.path().join("data");
    let mut agent = Agent::durable(&data, Ports::choose());
    let path = |number: usize| format!("/v1/kv/full/{number}");
    let put = |agent: &Agent, number: usize| {
        let body = value(number);
        agent.http.put(&path(number), body)
    };
    let mut acknowledged = 0;
    let refused = loop {
        assert!(acknowledged < 1000, "the space does not end");
        let reply = put(&agent, acknowledged);
        if reply.status != 200 {
            break reply;
        }
        acknowledged += 1;
    };
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(
        refused.text().contains("the disk of the leader is full"),
        "{}",
        refused.text()
    );
    assert!(acknowledged > 100, "{acknowledged}");
    let said = agent.process.line("the disk is full", SOON);
    assert!(said.is_some_and(|said| said.contains("WARN")));
    // For as long as one likes: nothing is written, everything can be read.
    for number in 0..acknowledged {
        assert_eq!(put(&agent, acknowledged).status, 507);
        let kept = agent.http.get(&format!("{}?raw&consistent", path(number)));
        assert_eq!(kept.status, 200);
        assert!(kept.text() == value(number), "{number} has another value");
    }
    assert!(agent.process.ended(Duration::ZERO).is_none());

    // Others fill the rest. A vote at a restart fits in what is kept back.
    disk.fill(400 << 10);
    let agent = Agent::durable(&data, agent.kill());
    assert_eq!(put(&agent, acknowledged).status, 507);
    assert!(agent.http.get(&format!("{}?raw", path(0))).text() == value(0));

    disk.resize("64m");
    disk.clear();
    assert!(eventually(SOON, || put(&agent, acknowledged).status == 200));
    assert!(
        agent
            .process
            .line("the disk has room again", SOON)
            .is_some()
    );
    let agent = Agent::durable(&data, agent.kill());
    for number in 0..=acknowledged {
        let kept = agent.http.get(&format!("{}?raw", path(number)));
        assert_eq!(kept.status, 200, "{number} of {acknowledged} is lost");
        assert!(kept.text() == value(number), "{number} has another value");
    }
}
