//! What a writer is told when nobody can tell it that the write is done.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use wharf_tests::{Reply, SOON, StopOnDrop, eventually};

use super::servers::{Server, Site, leader_of};

/// How writes ended, by their keys.
#[derive(Default)]
struct Ends {
    acknowledged: Vec<String>,
    failed: Vec<(String, Reply, Duration)>,
}

/// Writers that write key after key until one is not acknowledged; `disturb` happens meanwhile.
fn write_until_it_fails(server: &Server, disturb: impl FnOnce()) -> Ends {
    const WRITERS: usize = 8;
    let (ends, stop) = (Mutex::<Ends>::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let (ends, stop) = (&ends, &stop);
        let _stop = StopOnDrop(stop);
        for writer in 0..WRITERS {
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("outcome/{writer}/{number}");
                    let asked = Instant::now();
                    let reply = server.http.put(&format!("/v1/kv/{key}"), "once");
                    let mut ends = ends.lock().unwrap();
                    if reply.status != 200 {
                        ends.failed.push((key, reply, asked.elapsed()));
                        return;
                    }
                    ends.acknowledged.push(key);
                }
            });
        }
        let busy = || ends.lock().unwrap().acknowledged.len() > 5 * WRITERS;
        assert!(eventually(SOON, busy));
        disturb();
        let all = || ends.lock().unwrap().failed.len() == WRITERS;
        assert!(eventually(3 * SOON, all), "a write is not answered");
    });
    ends.into_inner().unwrap()
}

/// The keys as a server has them in its own copy, with the index at which each was made and changed.
fn keys_of(server: &Server) -> Vec<(String, u64, u64)> {
    let reply = server.http.get("/v1/kv/outcome/?recurse&stale").json();
    let rows = reply.as_array().cloned().unwrap_or_default();
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let rows = rows.iter().map(|row| {
        let key = row["Key"].as_str().unwrap().to_owned();
        (key, number(row, "CreateIndex"), number(row, "ModifyIndex"))
    });
    rows.collect()
}

#[test]
fn a_write_without_a_quorum_is_unknown_and_one_that_did_nothing_is_not() {
    let site = Site::new(&["-hcl=performance { rpc_hold_timeout = \"1s\" }"]);
    let servers = site.three();
    let leader = leader_of(&servers);
    let followers: Vec<&Server> = (1..3).map(|n| &servers[(leader + n) % 3]).collect();
    let signal = |signal| {
        for follower in &followers {
            follower.process.signal(signal);
        }
    };
    let ends = write_until_it_fails(&servers[leader], || signal(Signal::STOP));
    let is_unknown = |reply: &Reply| reply.text().contains("outcome of the change is unknown");
    let (unknown, refused): (Vec<_>, Vec<_>) = ends
        .failed
        .iter()
        .partition(|(_, reply, _)| is_unknown(reply));
    for (key, reply, took) in &unknown {
        println!("{key}: {} after {took:?}: {}", reply.status, reply.text());
        assert_eq!(reply.status, 500);
        // It says what may have happened, and what to do.
        let text = reply.text();
        for part in [
            "may or may not have taken place",
            "before it is tried again",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(*took < Duration::from_secs(10), "{took:?}");
    }
    assert!(!unknown.is_empty(), "{:?}", ends.failed);
    // A leader that has known for a while that it has no quorum takes nothing.
    assert!(eventually(SOON, || servers[leader].leader().is_empty()));
    let reply = servers[leader].http.put("/v1/kv/outcome/none", "never");
    assert_eq!(
        (reply.status, reply.text().trim()),
        (500, "No cluster leader")
    );

    signal(Signal::CONT);
    leader_of(&servers);
    let written = || {
        servers
            .iter()
            .all(|server| server.put("outcome/after", b"value"))
    };
    assert!(eventually(SOON, written));
    let mut found = Vec::new();
    assert!(
        eventually(SOON, || {
            found = servers.iter().map(keys_of).collect();
            found.windows(2).all(|pair| pair[0] == pair[1])
        }),
        "{found:?}"
    );
    let there: BTreeSet<&str> = found[0].iter().map(|(key, ..)| key.as_str()).collect();
    for key in &ends.acknowledged {
        assert!(there.contains(key.as_str()), "{key} was acknowledged");
    }
    for (key, reply, _) in &refused {
        assert_eq!(reply.text().trim(), "No cluster leader");
        assert!(!there.contains(key.as_str()), "{key} was refused");
    }
    assert!(!there.contains("outcome/none"));
    let late = unknown
        .iter()
        .filter(|(key, ..)| there.contains(key.as_str()));
    println!(
        "of {} unknown writes {} took place",
        unknown.len(),
        late.count()
    );
    for (key, made, changed) in &found[0] {
        assert!(
            made == changed || key == "outcome/after",
            "{key} was written twice"
        );
    }
}
