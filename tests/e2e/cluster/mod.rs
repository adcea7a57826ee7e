//! Several servers are one registry: whatever happens to one of them.

mod agents;
mod autopilot;
mod clients;
mod clocks;
mod disks;
mod large_values;
mod outcomes;
mod recovery;
mod replacement;
pub(crate) mod servers;
mod snapshots;
mod strangers;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use wharf_tests::{Distribution, SOON, eventually};

use self::servers::{Load, Site, assert_everywhere, leader_of};

#[test]
fn three_servers_are_one_registry() {
    let site = Site::new(&[]);
    let servers = site.three();
    let leader = leader_of(&servers);
    for (n, server) in servers.iter().enumerate() {
        assert!(server.put(&format!("by/{n}"), b"value"));
        // Its own copy has what it acknowledged, also where another server leads.
        let own = server.keys("by/", "stale");
        assert!(own.contains(&format!("by/{n}")), "{own:?}");
        // And every other server answers with it at once, if it is asked for what is fresh.
        for other in &servers {
            for consistency in ["", "consistent"] {
                assert_eq!(other.keys("by/", consistency).len(), n + 1, "{consistency}");
            }
        }
    }
    for server in &servers {
        let reply = server.http.get("/v1/kv/by/0?stale");
        assert_eq!(reply.header("x-consul-knownleader"), Some("true"));
        let contact: u64 = reply
            .header("x-consul-lastcontact")
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            contact == 0,
            server.number == servers[leader].number,
            "{contact}"
        );
        assert!(contact < 5000, "{contact}");
        assert!(eventually(SOON, || {
            (1..=3).all(|n| server.health_of(&format!("s{n}")) == "passing")
        }));
        let members = server.http.get("/v1/agent/members").json();
        let members = members.as_array().unwrap();
        assert_eq!(members.len(), 3);
        assert!(
            members
                .iter()
                .all(|m| m["Status"] == 1 && m["Tags"]["role"] == "consul")
        );
    }
    let peers = servers[(leader + 1) % 3]
        .run(&["operator", "raft", "list-peers"])
        .success();
    assert_eq!(peers.matches("follower").count(), 2, "{peers}");
    assert_eq!(peers.matches("true").count(), 3, "{peers}");

    // A blocking query on a follower is woken by a write elsewhere.
    let follower = &servers[(leader + 1) % 3];
    let index = follower.http.get("/v1/kv/by/0").index();
    let http = follower.http;
    let waiting = thread::spawn(move || http.get(&format!("/v1/kv/by/0?index={index}&wait=30s")));
    assert!(servers[leader].put("by/0", b"changed"));
    let woken = waiting.join().unwrap();
    assert!(woken.index() > index);

    // The largest values, from all sides at once.
    let value = vec![b'v'; 512 << 10];
    let writers: Vec<_> = (0..24)
        .map(|n| {
            let (http, value) = (servers[n % 3].http, value.clone());
            thread::spawn(move || http.put(&format!("/v1/kv/large/{n}"), value).ok())
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let keys: Vec<String> = (0..24).map(|n| format!("large/{n}")).collect();
    assert_everywhere(&servers, "large/", &keys);
    let raw = servers[(leader + 2) % 3]
        .http
        .get("/v1/kv/large/23?raw&stale")
        .body;
    assert!(raw == value);
}

/// How often the leader is killed: `WHARF_FAILOVER_ROUNDS`, or twice.
fn failover_rounds() -> usize {
    let given = std::env::var("WHARF_FAILOVER_ROUNDS").ok();
    given.map_or(2, |text| {
        text.parse().expect("WHARF_FAILOVER_ROUNDS is a number")
    })
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    let mut failovers = Distribution::default();
    for round in 0..failover_rounds() {
        let leader = leader_of(&servers);
        let killed = servers.remove(leader);
        let (number, name) = (killed.number, killed.name());
        let at = Instant::now();
        killed.process.signal(Signal::KILL);
        let first = load.wait_for_write_begun_after(at + Duration::from_millis(20));
        let first = first + Duration::from_millis(20);
        killed.kill();
        failovers.add(first);
        load.wait_for_writes_after(Instant::now(), 20);
        println!(
            "round {round}: first write {first:?} after the kill, longest pause {:?}",
            load.longest_gap_after(at)
        );
        let new = leader_of(&servers);
        assert!(
            eventually(SOON, || servers[new].health_of(&name) == "critical"),
            "the dead server still passes"
        );
        let members = servers[new].http.get("/v1/agent/members").json();
        let failed = members
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["Status"] == 4);
        assert_eq!(failed.count(), 1, "{members}");
        servers.push(site.expecting(number));
        servers[2].wait_for_peers(3);
        assert!(eventually(SOON, || servers[new].health_of(&name) == "passing"));
    }
    println!("from kill -9 of the leader to the next write: {failovers}");
    let acknowledged = load.stop();
    assert_everywhere(&servers, "load/", &acknowledged);
}

#[test]
fn a_leader_that_is_paused_steps_aside_and_serves_nothing_old() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    assert!(servers[0].put("key", b"old"));
    let leader = leader_of(&servers);
    let paused = servers.remove(leader);
    paused.process.signal(Signal::STOP);
    let at = Instant::now();
    assert!(eventually(SOON, || servers[0].put("key", b"new")));
    println!("written {:?} after the pause began", at.elapsed());
    let new = leader_of(&servers);
    let new = servers[new].leader();
    paused.process.signal(Signal::CONT);
    // Its lease is over, and it knows: it asks the new leader.
    let reply = paused
        .http
        .request("GET", "/v1/kv/key?raw", &[], b"")
        .unwrap();
    assert!(
        reply.status != 200 || reply.text() == "new",
        "{} {}",
        reply.status,
        reply.text()
    );
    assert!(
        eventually(SOON, || paused.leader() == new),
        "the paused server follows"
    );
    assert_eq!(paused.http.get("/v1/kv/key?raw").text(), "new");
}

#[test]
fn a_server_that_lost_its_data_takes_its_place_again() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    for n in 0..20 {
        assert!(servers[0].put(&format!("kept/{n}"), b"value"));
    }
    let leader = leader_of(&servers);
    let lost = servers.remove((leader + 1) % 3);
    let ids = |server: &servers::Server| -> Vec<String> {
        let configuration = server.http.get("/v1/operator/raft/configuration").json();
        let servers = configuration["Servers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        servers
            .iter()
            .filter(|server| server["Voter"] == true)
            .map(|server| server["ID"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let before = ids(&servers[0]);
    let number = lost.number;
    lost.kill();
    fs::remove_dir_all(site.data_dir(number)).unwrap();
    servers.push(site.expecting(number));
    let replaced = eventually(SOON, || {
        let now = ids(&servers[0]);
        now.len() == 3 && now != before
    });
    assert!(replaced, "{:?} {:?}", before, ids(&servers[0]));
    let known = ids(&servers[0])
        .iter()
        .filter(|id| before.contains(id))
        .count();
    assert_eq!(known, 2, "the former identity is gone");
    let keys: Vec<String> = (0..20).map(|n| format!("kept/{n}")).collect();
    assert_everywhere(&servers, "kept/", &keys);
    // It counts: without another one there is still a majority.
    servers.remove(0).kill();
    assert!(eventually(SOON, || servers[0].put("kept/after", b"value")));
    assert!(eventually(SOON, || servers[1].put("kept/too", b"value")));
}

#[test]
fn one_server_becomes_three_and_a_late_one_is_fed_by_snapshot() {
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 100"]);
    let join = format!("-retry-join={}", site.server_address(1));
    let mut servers = vec![site.start(1, &["-bootstrap"])];
    servers[0].wait_for_peers(1);
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 600);
    servers.push(site.start(2, &[&join]));
    servers.push(site.start(3, &[&join]));
    for server in &servers {
        server.wait_for_peers(3);
    }
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);
    for server in &servers[1..] {
        assert!(
            server.process.text().contains("receiving a snapshot"),
            "{}",
            server.process.text()
        );
    }
    // The one that was there first is not needed.
    servers.remove(0).kill();
    assert!(eventually(SOON, || servers[0].put("load/after", b"value")));
    assert_everywhere(&servers, "load/", &["load/after".to_owned()]);
}

#[test]
fn two_clusters_that_meet_stay_two() {
    let site = Site::new(&[]);
    let join = |number| format!("-retry-join={}", site.server_address(number));
    let one = site.start(1, &["-bootstrap", &join(2)]);
    let two = site.start(2, &["-bootstrap", &join(1)]);
    for server in [&one, &two] {
        server.wait_for_peers(1);
        let said = server.process.line("is in another cluster", SOON);
        assert!(said.is_some(), "{}", server.process.text());
        assert!(server.put(&format!("of/{}", server.number), b"value"));
    }
    assert_eq!(one.keys("of/", ""), ["of/1"]);
    assert_eq!(two.keys("of/", ""), ["of/2"]);
    // A member of one that is told to join the other says so too, and stays what it is.
    two.kill();
    let two = site.start(2, &[&join(1)]);
    assert!(two.process.line("is in another cluster", SOON).is_some());
    assert_eq!(two.keys("of/", ""), ["of/2"]);
    one.wait_for_peers(1);
}

#[test]
fn servers_that_applied_the_same_have_the_same_hash() {
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 300"]);
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 400);
    // One comes back by its snapshot and the rest of the log, and one by what it was sent.
    let number = servers[2].number;
    servers.remove(2).kill();
    load.wait_for_writes_after(Instant::now(), 200);
    servers.push(site.expecting(number));
    load.wait_for_writes_after(Instant::now(), 200);
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);
    snapshots::assert_same_state(&servers);
    // Also on the command line.
    let said = servers[0].run(&["operator", "raft", "hash"]).success();
    let state = servers[0].http.get("/v1/operator/raft/hash").json();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words.get(2).copied(), state["Hash"].as_str(), "{said}");
}

#[test]
fn a_server_joins_when_it_is_told_to() {
    let site = Site::new(&[]);
    let founder = site.start(1, &["-bootstrap"]);
    founder.wait_for_peers(1);
    let lonely = site.start(2, &[]);
    let nobody = format!("127.0.0.9:{}", site.server_port());
    let refused = lonely.run(&["join", &nobody]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .err
            .contains(&format!("Error joining address '{nobody}'")),
        "{refused:?}"
    );
    assert!(
        refused.err.contains("Failed to join any nodes."),
        "{refused:?}"
    );
    let none = lonely.run(&["join"]).failure();
    assert!(
        none.contains("At least one address to join must be specified."),
        "{none}"
    );
    let itself = lonely
        .http
        .put(&format!("/v1/agent/join/{}", site.server_address(2)), "");
    assert_eq!(itself.status, 500);
    assert!(
        itself
            .text()
            .starts_with("1 error occurred:\n\t* Failed to join"),
        "{}",
        itself.text()
    );

    let joined = lonely.run(&["join", &nobody, "127.0.0.1"]).success();
    assert_eq!(
        joined,
        "Successfully joined cluster by contacting 1 nodes.\n"
    );
    for server in [&founder, &lonely] {
        server.wait_for_peers(2);
    }
    assert!(lonely.put("key", b"value"));
    // One of another cluster is not to be had.
    let other = site.start(3, &["-bootstrap"]);
    other.wait_for_peers(1);
    let refused = other.run(&["join", "127.0.0.1"]);
    assert!(
        refused.err.contains("it is in another cluster"),
        "{refused:?}"
    );
    other.wait_for_peers(1);
}

#[test]
fn a_minority_serves_what_it_may() {
    let site = Site::new(&["-hcl=performance { rpc_hold_timeout = \"500ms\" }"]);
    let mut servers = site.three();
    assert!(servers[0].put("key", b"value"));
    assert_everywhere(&servers, "key", &["key".to_owned()]);
    servers.remove(2).kill();
    servers.remove(1).kill();
    let alone = &servers[0];
    assert!(eventually(SOON, || alone.leader().is_empty()));
    let stale = alone.http.get("/v1/kv/key?raw&stale");
    assert_eq!((stale.status, stale.text().as_str()), (200, "value"));
    assert_eq!(stale.header("x-consul-knownleader"), Some("false"));
    for path in ["/v1/kv/key", "/v1/kv/key?consistent"] {
        let reply = alone.http.get(path);
        assert_eq!(reply.status, 500);
        assert_eq!(reply.text().trim(), "No cluster leader");
    }
    let reply = alone.http.put("/v1/kv/key", "other");
    assert_eq!(
        (reply.status, reply.text().trim()),
        (500, "No cluster leader")
    );
    let operator = alone
        .run(&["operator", "raft", "list-peers", "-stale"])
        .success();
    assert_eq!(operator.lines().count(), 4, "{operator}");

    // One comes back, and with it the majority.
    servers.push(site.expecting(2));
    assert!(eventually(SOON, || servers[0].put("key", b"other")));
    assert_everywhere(&servers, "key", &["key".to_owned()]);
}

#[test]
fn a_leader_that_ends_hands_over_and_one_that_leaves_is_forgotten() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    let leader = leader_of(&servers);
    // To a server of one's choice, asked of another.
    let heir = (leader + 1) % 3;
    let configuration = servers[heir]
        .http
        .get("/v1/operator/raft/configuration")
        .json();
    let id = configuration["Servers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|server| server["Node"] == servers[heir].name())
        .map(|server| server["ID"].as_str().unwrap().to_owned())
        .unwrap();
    let third = &servers[(leader + 2) % 3];
    let said = third
        .run(&["operator", "raft", "transfer-leader", &format!("-id={id}")])
        .success();
    assert_eq!(
        said.trim(),
        format!("Success: {} leads", servers[heir].name())
    );
    assert_eq!(leader_of(&servers), heir);

    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    let mut ending = servers.remove(heir);
    let number = ending.number;
    let at = Instant::now();
    assert!(ending.process.stop(Signal::TERM).success());
    load.wait_for_writes_after(Instant::now(), 20);
    println!(
        "longest pause of a planned end: {:?}",
        load.longest_gap_after(at)
    );
    assert!(ending.process.text().contains("handed the leadership over"));
    servers.push(site.expecting(number));
    servers[2].wait_for_peers(3);
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);

    let leader = leader_of(&servers);
    let mut leaving = servers.remove(leader);
    leaving.run(&["leave"]).success();
    // It is answered when it is done.
    let now = servers[0]
        .http
        .get("/v1/operator/raft/configuration")
        .json();
    assert_eq!(now["Servers"].as_array().unwrap().len(), 2, "{now}");
    assert!(
        leaving.process.ended(SOON).is_some(),
        "{}",
        leaving.process.text()
    );
    for server in &servers {
        server.wait_for_peers(2);
        assert!(eventually(SOON, || server.state_of(&leaving.name()) == "left"));
        assert!(eventually(SOON, || {
            let nodes = server.http.get("/v1/catalog/nodes").json();
            nodes.as_array().is_some_and(|nodes| nodes.len() == 2)
        }));
    }
    assert!(servers[0].put("after", b"value"));
    // The last two: one may not go by force while the other is needed, and what is unknown is said.
    let refused = servers[0]
        .run(&["operator", "raft", "remove-peer", "-address=127.0.0.9:1"])
        .failure();
    assert!(
        refused.contains("was not found in the Raft configuration"),
        "{refused}"
    );
}

#[test]
fn a_dead_server_is_forced_out_and_another_comes() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    let leader = leader_of(&servers);
    let alive = servers[(leader + 2) % 3].name();
    servers[leader].run(&["force-leave", &alive]).success();
    let dead = servers.remove((leader + 1) % 3);
    let (name, number) = (dead.name(), dead.number);
    dead.kill();
    // As soon as it counts as dead.
    assert!(eventually(SOON, || {
        servers[0].run(&["force-leave", &name]).code == Some(0)
            && servers[0]
                .http
                .get("/v1/status/peers")
                .json()
                .as_array()
                .map(Vec::len)
                == Some(2)
    }));
    // On every server, however often it is said.
    for server in &servers {
        assert!(eventually(SOON, || server.state_of(&name) == "left"));
        assert_eq!(server.state_of(&alive), "alive");
        server.run(&["force-leave", &name]).success();
    }
    let left = servers[0].run(&["members", "-status=left"]).success();
    let row: Vec<&str> = left.lines().nth(1).unwrap().split_whitespace().collect();
    let address = format!("127.0.0.{number}:8301");
    assert_eq!(row[..4], [&*name, &*address, "left", "server"], "{left}");
    servers[0].run(&["force-leave", "-prune", &name]).success();
    for server in &servers {
        assert!(eventually(SOON, || server.state_of(&name).is_empty()));
    }
    let unknown = servers[0].run(&["force-leave", "-prune", &name]).failure();
    assert!(unknown.contains("No node found"), "{unknown}");
    let unknown = servers[0].run(&["force-leave", "nobody"]).failure();
    assert!(
        unknown.contains("No node found with name 'nobody'"),
        "{unknown}"
    );

    // It does not know of it when it comes back, learns it from the others, and is let in again.
    let back = site.expecting(number);
    for server in servers.iter().chain([&back]) {
        server.wait_for_peers(3);
        assert!(eventually(SOON, || server.state_of(&name) == "alive"));
    }

    // A fourth of another name and at another address, found by name.
    let join = format!("-retry-join=localhost:{}", site.server_port());
    let others: Vec<String> = servers
        .iter()
        .map(|server| format!("-retry-join={}", site.server_address(server.number)))
        .collect();
    let flags: Vec<&str> = others
        .iter()
        .map(String::as_str)
        .chain([join.as_str()])
        .collect();
    servers.extend([back, site.start(4, &flags)]);
    for server in &servers {
        server.wait_for_peers(4);
    }
    assert!(servers[3].put("after", b"value"));
}
