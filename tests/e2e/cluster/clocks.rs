//! Clocks that are set while servers run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use wharf_tests::eventually;

use super::servers::{Load, Site, assert_everywhere, leader_of};

/// Where Debian has it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Leases and elections go by a clock that nobody sets; the time of day only says when something was.
#[test]
fn a_clock_that_is_set_by_an_hour_costs_no_leader_and_no_write() {
    if !Path::new(LIBRARY).exists() {
        wharf_tests::missing("libfaketime");
        return;
    }
    let site = Site::new(&[]);
    let clocks = tempfile::tempdir().unwrap();
    let clock = |number: u8| -> PathBuf { clocks.path().join(number.to_string()) };
    let join = format!("-retry-join={}", site.server_address(1));
    let other = format!("-retry-join={}", site.server_address(2));
    let servers: Vec<_> = (1..=3)
        .map(|number| {
            fs::write(clock(number), "+0").unwrap();
            let flags = ["-bootstrap-expect=3", &join, &other];
            site.start_in(number, &flags, |command| {
                command
                    .env("LD_PRELOAD", LIBRARY)
                    .env("FAKETIME_TIMESTAMP_FILE", clock(number))
                    .env("FAKETIME_NO_CACHE", "1")
                    .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            })
        })
        .collect();
    for server in &servers {
        server.wait_for_peers(3);
    }
    let leader = leader_of(&servers);
    let term = |at: usize| {
        let reply = servers[at].http.get("/v1/agent/self").json();
        reply["Stats"]["raft"]["term"].as_str().map(str::to_owned)
    };
    let before = term(leader);
    assert!(before.is_some());
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    for (at, step) in [
        (leader, "+3600"),
        ((leader + 1) % 3, "-3600"),
        (leader, "-3600"),
        (leader, "+0"),
    ] {
        fs::write(clock(servers[at].number), step).unwrap();
        // It is in force.
        let date = || {
            servers[at]
                .http
                .get("/v1/status/leader")
                .header("date")
                .map(str::to_owned)
        };
        let set = date();
        let stepped = Instant::now();
        load.wait_for_writes_after(stepped + Duration::from_secs(2), 50);
        let gap = load.longest_gap_after(stepped);
        println!(
            "{step} on {}: longest pause {gap:?}, its clock says {set:?}",
            servers[at].name()
        );
        assert!(gap < Duration::from_secs(1), "{gap:?}");
        assert_eq!(leader_of(&servers), leader);
    }
    assert_eq!(term(leader), before);
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);
    assert!(eventually(Duration::from_secs(10), || {
        (1..=3).all(|n| servers[0].health_of(&format!("s{n}")) == "passing")
    }));
}
