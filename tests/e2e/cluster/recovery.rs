//! A cluster that has lost its majority for good, and the file that brings it back.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;
use wharf_tests::{Http, SOON, eventually, run};

use super::servers::{Load, Server, Site, assert_everywhere, leader_of};

/// The id of the server of this number, as a server says it that knows no leader.
fn id_of(asked: &Server, number: u8) -> String {
    let reply = asked
        .http
        .get("/v1/operator/raft/configuration?stale")
        .json();
    let servers = reply["Servers"].as_array().cloned().unwrap_or_default();
    let found = servers
        .iter()
        .find(|server| server["Node"] == format!("s{number}"));
    found.unwrap()["ID"].as_str().unwrap().to_owned()
}

#[test]
fn one_of_three_goes_on_with_a_peers_file_and_those_given_up_do_not_come_back() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 200);
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);
    for lost in servers.split_off(1) {
        lost.kill();
    }
    let mut left = servers.remove(0);
    assert!(eventually(SOON, || left.leader().is_empty()));
    let id = id_of(&left, 1);
    assert!(left.process.stop(Signal::TERM).success());

    // A file that is wrong changes nothing, and is said.
    let file = site.data_dir(1).join("raft/peers.json");
    let address = site.server_address(1);
    let other = "00000000-0000-0000-0000-000000000001";
    for (text, reason) in [
        ("[{".to_owned(), "is not a list of servers"),
        (json!([address]).to_string(), "is not a list of servers"),
        (
            json!([{"id": other, "address": address}]).to_string(),
            "does not name this server",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let mut refused = site.expecting(1);
        let status = refused.process.ended(SOON).expect("it does not start");
        assert!(!status.success());
        assert!(
            refused.process.line(reason, SOON).is_some(),
            "{}",
            refused.process.text()
        );
        assert!(file.exists());
    }

    fs::write(
        &file,
        json!([{"id": id, "address": address, "non_voter": false}]).to_string(),
    )
    .unwrap();
    let left = site.expecting(1);
    left.wait_for_peers(1);
    assert!(
        left.process
            .line("has the members of raft/peers.json", SOON)
            .is_some()
    );
    assert!(!file.exists(), "it is read once");
    assert!(left.put("load/after", b"value"));
    assert_everywhere(std::slice::from_ref(&left), "load/", &keys);

    // Two that were given up come back together: they would be a majority of what they know.
    let given_up = [site.expecting(2), site.expecting(3)];
    for server in &given_up {
        let refused = server
            .process
            .line("is in another cluster than this one", SOON);
        assert!(refused.is_some(), "{}", server.process.text());
        let reply = server.http.get("/v1/kv/load/after?stale");
        assert_eq!(reply.status, 404, "it has nothing of what came after");
    }
    left.wait_for_peers(1);
    assert!(left.put("load/alone", b"value"));
    for server in given_up {
        let number = server.number;
        server.kill();
        fs::remove_dir_all(site.data_dir(number)).unwrap();
    }
    // New ones join, and have everything.
    let servers = [left, site.expecting(2), site.expecting(3)];
    for server in &servers {
        server.wait_for_peers(3);
    }
    assert!(servers[2].put("load/three", b"value"));
    assert_everywhere(&servers, "load/", &keys);
    let later = ["load/after", "load/alone", "load/three"].map(str::to_owned);
    assert_everywhere(&servers, "load/", &later);
    // And it starts again as any other.
    let [first, second, third] = servers;
    first.kill();
    let first = site.expecting(1);
    first.wait_for_peers(3);
    assert_everywhere(&[first, second, third], "load/", &later);
}

#[test]
fn two_of_five_go_on_with_the_same_file() {
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 60"]);
    let mut servers = site.five();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 200);
    let keys = load.stop();
    let ids = [1, 2].map(|number| id_of(&servers[0], number));
    for server in servers.drain(..) {
        server.kill();
    }
    let peers = json!([
        {"id": ids[0], "address": site.server_address(1)},
        {"id": ids[1], "address": site.server_address(2)},
    ]);
    for number in [1, 2] {
        fs::write(
            site.data_dir(number).join("raft/peers.json"),
            peers.to_string(),
        )
        .unwrap();
    }
    let servers = [1, 2].map(|number| site.one_of_five(number));
    for server in &servers {
        server.wait_for_peers(2);
    }
    // What was acknowledged is on three of five, and so on one of these two at least, except where the three are
    // those that were lost. What one of them has, both have.
    assert!(eventually(SOON, || servers[0].put("load/after", b"value")));
    assert_everywhere(&servers, "load/", &["load/after".to_owned()]);
    let found = servers[0].keys("load/", "stale");
    assert_eq!(found, servers[1].keys("load/", "stale"));
    assert!(
        found.len() + 20 > keys.len(),
        "{} of {}",
        found.len(),
        keys.len()
    );
}

/// The leader of before has more entries, which nobody ever agreed on; the other has what was agreed without it.
#[test]
fn of_two_survivors_with_different_ends_the_one_with_what_was_agreed_leads() {
    let site = Site::new(&[]);
    let mut servers = site.five();
    let former = servers.remove(leader_of(&servers));
    let ids = [&former, &servers[0]].map(|server| (server.number, id_of(&former, server.number)));
    assert!(former.put("before", b"value"));
    let last = |server: &Server| {
        let stats = server.http.get("/v1/agent/self").json()["Stats"]["raft"].clone();
        let index = stats["last_log_index"].as_str().unwrap_or_default();
        index.parse::<u64>().unwrap()
    };
    let agreed = last(&former);
    let numbers: Vec<u8> = servers.iter().map(|server| server.number).collect();
    for server in servers {
        server.kill();
    }
    let hasty = Http {
        timeout: Duration::from_millis(500),
        ..former.http
    };
    std::thread::scope(|scope| {
        for n in 0..60 {
            let hasty = &hasty;
            scope.spawn(move || {
                // Nobody is there who could agree.
                let path = format!("/v1/kv/lost/{n}");
                assert!(hasty.request("PUT", &path, &[], b"value").is_err());
            });
        }
    });
    // More than the others are going to have.
    assert!(last(&former) > agreed + 15);
    former.kill();
    let servers: Vec<Server> = numbers
        .iter()
        .map(|number| site.one_of_five(*number))
        .collect();
    let leader = &servers[leader_of(&servers)];
    let keys: Vec<String> = (0..10).map(|n| format!("kept/{n}")).collect();
    for key in &keys {
        assert!(leader.put(key, b"value"));
    }
    assert!(eventually(SOON, || servers[0].keys("kept/", "stale") == keys));
    for server in servers {
        server.kill();
    }

    let peers = ids
        .each_ref()
        .map(|(number, id)| json!({"id": id, "address": site.server_address(*number)}));
    for (number, _) in &ids {
        fs::write(
            site.data_dir(*number).join("raft/peers.json"),
            json!(peers).to_string(),
        )
        .unwrap();
    }
    let servers = ids.map(|(number, _)| site.one_of_five(number));
    for server in &servers {
        server.wait_for_peers(2);
    }
    assert!(servers[0].put("after", b"value"));
    assert_everywhere(&servers, "kept/", &keys);
    assert_everywhere(&servers, "after", &["after".to_owned()]);
    assert_everywhere(&servers, "before", &["before".to_owned()]);
    for server in &servers {
        assert_eq!(server.keys("lost/", "stale"), Vec::<String>::new());
    }
}

/// A backup that is started elsewhere, or a cloned machine.
#[test]
fn a_copy_of_a_server_ends_and_takes_nobodys_place() {
    let site = Site::new(&[]);
    let mut servers = site.three();
    let copied = servers.remove(1);
    copied.kill();
    let copy = run(std::process::Command::new("cp")
        .arg("-a")
        .args([site.data_dir(2), site.data_dir(4)]));
    copy.success();
    servers.push(site.expecting(2));
    leader_of(&servers);
    let before: Vec<String> = servers.iter().map(Server::leader).collect();

    let mut copy = site.expecting(4);
    let status = copy.process.ended(SOON).expect("it ends by itself");
    assert!(!status.success());
    let why = copy.process.line("has the id of this one", SOON);
    assert!(why.is_some(), "{}", copy.process.text());
    for server in &servers {
        server.wait_for_peers(3);
        let peers = server.http.get("/v1/status/peers").text();
        assert!(peers.contains(&site.server_address(2)), "{peers}");
        assert!(!peers.contains(&site.server_address(4)), "{peers}");
    }
    let after: Vec<String> = servers.iter().map(Server::leader).collect();
    assert_eq!(after, before, "nobody was disturbed");
    assert!(servers[2].put("after", b"value"));
}
