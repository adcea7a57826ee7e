//! Followers that are fed by snapshot, and a cluster that is given another one's state.

use std::{thread, time::Instant};

use rustix::process::Signal;
use serde_json::json;
use wharf_tests::{Reply, SOON, eventually};

use super::servers::{Load, Server, Site, assert_everywhere, leader_of};

/// The log keeps between one and two times this many entries.
const FLAG: &str = "-hcl=raft_snapshot_threshold = 100";
/// What a follower says when its leader's log begins after its own ends.
const FED: &str = "receiving a snapshot";

/// A figure of the consensus, as the server itself has it.
fn figure(server: &Server, name: &str) -> u64 {
    let reply = server.http.get("/v1/agent/self").json();
    let text = reply["Stats"]["raft"][name].as_str();
    text.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no figure {name} in {reply}"))
}

/// Waits until the leader's log begins after `index`. A follower that is silent counts as lost after five seconds; until
/// then the log is kept for what it is being sent.
#[track_caller]
fn wait_until_purged(leader: &Server, index: u64) {
    let purged = eventually(SOON, || figure(leader, "last_purged_index") > index);
    assert!(purged, "the log does not get shorter");
}

/// Waits until all servers hold the same.
#[track_caller]
pub(super) fn assert_same_state(servers: &[Server]) {
    let mut seen = Vec::new();
    let same = eventually(SOON, || {
        let states = servers.iter().map(|server| {
            let state = server.http.get("/v1/operator/raft/hash").json();
            (state["Index"].clone(), state["Hash"].clone())
        });
        seen = states.collect();
        seen.windows(2).all(|pair| pair[0] == pair[1])
    });
    assert!(same, "{seen:?}");
    assert_eq!(seen[0].1.as_str().map(str::len), Some(64), "{seen:?}");
}

#[test]
fn a_follower_that_is_behind_the_log_catches_up_by_snapshot_while_writes_go_on() {
    let site = Site::new(&[FLAG]);
    let mut servers = site.three();
    // A state that is not sent in one piece.
    let value = vec![b'v'; 256 << 10];
    for key in 0..24 {
        assert!(servers[0].put(&format!("large/{key}"), &value));
    }
    let leader = leader_of(&servers);
    let slow = servers.remove((leader + 1) % 3);
    let leader = leader_of(&servers);
    let load = Load::on(&servers);

    // It hangs, and goes on with what it had.
    let last = figure(&slow, "last_log_index");
    assert!(!slow.process.text().contains(FED));
    slow.process.signal(Signal::STOP);
    wait_until_purged(&servers[leader], last);
    slow.process.signal(Signal::CONT);
    let fed = slow.process.line(FED, SOON);
    assert!(fed.is_some(), "{}", slow.process.text());
    // It hangs again, while much more is written than the log keeps: it is kept for who is sent a snapshot.
    slow.process.signal(Signal::STOP);
    load.wait_for_writes_after(Instant::now(), 400);
    slow.process.signal(Signal::CONT);
    let caught_up =
        |server: &Server, index: u64| eventually(SOON, || figure(server, "applied_index") > index);
    let now = figure(&servers[leader], "last_log_index");
    assert!(caught_up(&slow, now), "{}", slow.process.text());
    load.wait_for_writes_after(Instant::now(), 20);
    println!(
        "stopped: {} snapshots received",
        slow.process.text().matches(FED).count()
    );

    // It comes back with nothing, under a new identity.
    let number = slow.number;
    slow.kill();
    std::fs::remove_dir_all(site.data_dir(number)).unwrap();
    let slow = site.expecting(number);
    let fed = slow.process.line(FED, SOON);
    assert!(fed.is_some(), "{}", slow.process.text());
    slow.wait_for_peers(3);
    let now = figure(&servers[leader], "last_log_index");
    assert!(caught_up(&slow, now), "{}", slow.process.text());
    assert!(eventually(SOON, || servers[leader].is_voter(number)));
    load.wait_for_writes_after(Instant::now(), 20);

    let keys = load.stop();
    servers.push(slow);
    assert_everywhere(&servers, "load/", &keys);
    assert_same_state(&servers);
}

#[test]
fn a_cluster_is_given_another_ones_state_while_it_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.snap");
    let file = file.to_str().unwrap();
    let one = Site::new(&[FLAG]);
    let source = one.three();
    let keys: Vec<String> = (0..300).map(|number| format!("moved/{number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        assert!(source[number % 3].put(key, b"value"));
    }
    let node = json!({
        "Node": "ext", "Address": "10.0.0.1",
        "Service": {"Service": "db", "Port": 5432}, "Check": {"Name": "up", "Status": "passing"},
    });
    source[0]
        .http
        .put("/v1/catalog/register", node.to_string())
        .ok();
    let entry = source[0].http.get("/v1/kv/moved/7").json();
    source[1].run(&["snapshot", "save", file]).success();
    drop(source);

    let other = Site::new(&[FLAG]);
    let mut servers = other.three();
    // Longer than the log that the state comes from.
    for number in 0..400 {
        assert!(servers[number % 3].put(&format!("mine/{}", number % 10), b"value"));
    }
    let known = servers[0].http.get("/v1/kv/mine/?recurse").index();
    let wait = |server: &Server, what: &str| {
        let index = server.http.get(what).index();
        let (http, path) = (server.http, format!("{what}index={index}&wait=60s"));
        thread::spawn(move || (index, http.get(&path)))
    };
    // On each server somebody waits for a key that goes, for one that comes, and for a service.
    let watches = [
        "/v1/kv/mine/1?",
        "/v1/kv/moved/7?",
        "/v1/health/service/db?",
    ];
    let waiting: Vec<_> = servers
        .iter()
        .flat_map(|server| watches.map(|what| (what, wait(server, what))))
        .collect();
    let waits = |server: &Server| {
        let metrics = server
            .http
            .get("/v1/agent/metrics?format=prometheus")
            .text();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("wharf_watchers "));
        value.is_some_and(|value| value.trim().parse().unwrap_or(0.0) >= watches.len() as f64)
    };
    assert!(eventually(SOON, || servers.iter().all(waits)));
    // Asked of a follower.
    let follower = (leader_of(&servers) + 1) % 3;
    let restored = servers[follower]
        .run(&["snapshot", "restore", file])
        .success();
    assert_eq!(restored, "Restored snapshot\n");
    for (what, waiting) in waiting {
        let (index, reply): (u64, Reply) = waiting.join().unwrap();
        assert!(reply.index() > index, "{what}");
        match what {
            "/v1/kv/mine/1?" => assert_eq!(reply.status, 404),
            "/v1/kv/moved/7?" => assert_eq!(reply.json(), entry),
            _ => assert_eq!(reply.json()[0]["Node"]["Address"], "10.0.0.1"),
        }
    }
    assert_everywhere(&servers, "moved/", &keys);
    for server in &servers {
        assert!(server.keys("mine/", "stale").is_empty());
        assert!(server.http.get("/v1/kv/moved/?recurse").index() > known);
        // The servers of this cluster are its members, and come back into the catalog.
        server.wait_for_peers(3);
        let all = || (1..=3).all(|n| server.health_of(&format!("s{n}")) == "passing");
        assert!(eventually(SOON, all), "{}", server.process.text());
    }
    // It is a cluster as before: one is replaced, one fails, and what was restored is there.
    let lost = servers.remove(follower);
    let number = lost.number;
    lost.kill();
    std::fs::remove_dir_all(other.data_dir(number)).unwrap();
    servers.push(other.expecting(number));
    servers[2].wait_for_peers(3);
    assert!(eventually(SOON, || servers[0].is_voter(number)));
    servers.remove(leader_of(&servers)).kill();
    assert!(eventually(SOON, || servers[1].put("after", b"value")));
    assert_everywhere(&servers, "moved/", &keys);
    assert_same_state(&servers);
}
