//! Servers that are replaced by new ones, one after the other.

use std::{
    fs,
    time::{Duration, Instant},
};

use wharf_tests::{SOON, eventually};

use super::{
    servers::{Load, Site, assert_everywhere, leader_of},
    snapshots::assert_same_state,
};

/// How often each server is replaced.
const ROUNDS: usize = 3;

#[test]
fn each_server_is_replaced_in_turn_and_nothing_is_lost() {
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 300"]);
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    let began = Instant::now();
    for round in 0..ROUNDS {
        for number in 1..=3 {
            let place = servers.iter().position(|server| server.number == number);
            let old = servers.remove(place.unwrap());
            let id = old.http.get("/v1/agent/self").json()["Config"]["NodeID"].clone();
            let leads = old.leader() == site.server_address(number);
            let at = Instant::now();
            old.kill();
            fs::remove_dir_all(site.data_dir(number)).unwrap();
            let new = site.expecting(number);
            new.wait_for_peers(3);
            let there = || servers.iter().all(|server| server.is_voter(number));
            assert!(
                eventually(SOON, there),
                "s{number} did not get its place\n{}",
                new.process.text()
            );
            let now = new.http.get("/v1/agent/self").json()["Config"]["NodeID"].clone();
            assert_ne!(id, now, "a new identity");
            println!(
                "round {round}: s{number}{} replaced after {:?}, longest pause {:?}",
                if leads { ", the leader," } else { "" },
                at.elapsed(),
                load.longest_gap_after(at)
            );
            servers.push(new);
            load.wait_for_writes_after(Instant::now(), 20);
        }
    }
    // With default settings a lost leader costs a second; nothing else costs more.
    let gap = load.longest_gap_after(began);
    assert!(gap < Duration::from_secs(8), "{gap:?}");
    let keys = load.stop();
    leader_of(&servers);
    assert_everywhere(&servers, "load/", &keys);
    assert_same_state(&servers);
    println!("{} acknowledged keys are on every server", keys.len());
}
