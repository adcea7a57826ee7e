//! Disks of servers that are full, or hang.

use std::time::{Duration, Instant};

use wharf_tests::{FreezableDisk, SOON, SmallDisk, eventually};

use super::{
    agents::NO_PLATFORM,
    servers::{Load, Server, Site, assert_everywhere, leader_of},
};

/// Longer than a leader waits for its disk.
const PATIENCE: Duration = Duration::from_secs(2);

fn mounted<D>(site: &Site, mount: impl Fn(&std::path::Path) -> Option<D>) -> Option<Vec<D>> {
    let disks = (1..=3).map(|number| mount(&site.data_dir(number)));
    let disks = disks.collect();
    if Option::is_none(&disks) {
        wharf_tests::missing(
            "right or tool to mount and freeze small file systems (it takes root)",
        );
    }
    disks
}

fn disk_of<'d, D>(disks: &'d [D], server: &Server) -> &'d D {
    &disks[usize::from(server.number) - 1]
}

#[test]
fn a_full_leader_hands_over_and_a_full_follower_comes_back_when_there_is_room() {
    let site = Site::new(&[]);
    let Some(disks) = mounted(&site, |directory| SmallDisk::mount(directory, "200m")) else {
        return;
    };
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    let old = leader_of(&servers);
    // It is with the one that will be full, the only one that it knows at first.
    let agent = site.client_of(&[servers[old].number], 21, &[NO_PLATFORM]);
    assert!(eventually(SOON, || agent.put("agent/first", b"value")));
    // A twentieth is kept back; half of that is left, and then nothing.
    let disk = disk_of(&disks, &servers[old]);
    let filled = Instant::now();
    disk.fill(5 << 20);
    assert!(eventually(SOON, || {
        let leader = servers[old].leader();
        !leader.is_empty() && leader != site.server_address(servers[old].number)
    }));
    println!(
        "another one leads {:?} after the disk was full",
        filled.elapsed()
    );
    load.wait_for_writes_after(Instant::now(), 50);
    println!("longest pause: {:?}", load.longest_gap_after(filled));
    let new = leader_of(&servers);
    assert_ne!(new, old);
    // Not in one moment: faster than anybody can look, the log would meet the end.
    disk.fill(1 << 20);
    let said = servers[old].process.line("takes no entries", SOON);
    assert!(said.is_some(), "{}", servers[old].process.text());
    disk.fill(0);
    load.wait_for_writes_after(Instant::now() + Duration::from_secs(1), 200);
    assert!(
        servers[old]
            .process
            .text()
            .contains("handed the leadership over")
    );
    assert!(servers[old].process.ended(Duration::ZERO).is_none());
    assert_eq!(
        servers[old].http.get("/v1/kv/load/0/0?stale&raw").status,
        200
    );
    // What it does not get it does not wait for, and says why; what is written through it is done all the same.
    let asked = Instant::now();
    let behind = servers[old].http.get("/v1/kv/load/0/0?consistent&raw");
    assert_eq!(behind.status, 500, "{}", behind.text());
    assert!(
        behind.text().contains("its disk is full"),
        "{}",
        behind.text()
    );
    assert!(servers[old].put("full/through", b"value"));
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(
        servers[new].http.get("/v1/kv/full/through?raw").text(),
        "value"
    );
    // Its agents go elsewhere.
    assert!(eventually(SOON, || {
        agent.put("agent/then", b"value") && agent.http.get("/v1/kv/agent/then").status == 200
    }));
    // Through a change of the leader too, for which it cannot even vote.
    let third = 3 - old - new;
    let id = servers[new]
        .http
        .get("/v1/operator/raft/configuration")
        .json()["Servers"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["Node"] == servers[third].name()))
        .map(|one| one["ID"].as_str().unwrap_or_default().to_owned());
    let to = format!("-id={}", id.unwrap());
    servers[new]
        .run(&["operator", "raft", "transfer-leader", &to])
        .success();
    load.wait_for_writes_after(Instant::now() + Duration::from_secs(2), 200);
    assert!(servers[old].process.ended(Duration::ZERO).is_none());
    let keys = load.stop();
    assert_everywhere(&[servers.remove(new)], "load/", &keys);

    disk.clear();
    assert_everywhere(&servers, "load/", &keys);
}

#[test]
fn a_leader_whose_disk_hangs_hands_over() {
    let site = Site::new(&[]);
    let Some(disks) = mounted(&site, FreezableDisk::mount) else {
        return;
    };
    let mut servers = site.three();
    let load = Load::on(&servers);
    load.wait_for_writes_after(Instant::now(), 50);
    let old = leader_of(&servers);
    let disk = disk_of(&disks, &servers[old]);
    let frozen = Instant::now();
    disk.freeze();
    let others: Vec<_> = (0..3).filter(|at| *at != old).collect();
    let address = site.server_address(servers[old].number);
    assert!(eventually(SOON, || others.iter().all(|at| {
        let leader = servers[*at].leader();
        !leader.is_empty() && leader != address
    })));
    let after = frozen.elapsed();
    println!("another one leads {after:?} after the disk hung");
    assert!(after > PATIENCE / 2 && after < PATIENCE * 4, "{after:?}");
    load.wait_for_writes_after(Instant::now() + Duration::from_secs(2), 200);
    println!("longest pause: {:?}", load.longest_gap_after(frozen));
    // What needs no disk is answered.
    assert_eq!(
        servers[old].http.get("/v1/kv/load/0/0?stale&raw").status,
        200
    );
    disk.thaw();
    let keys = load.stop();
    assert_everywhere(&servers, "load/", &keys);
    assert!(servers[old].process.ended(Duration::ZERO).is_none());
}
