//! Three servers, clients on all of them, and somebody who kills, pauses, restarts and wipes servers at random.
//!
//! Each writer has a register of its own, counts it up on a server of its choice, and reads it from another in a
//! consistent mode: what it reads is never older than what was acknowledged before. In the end every acknowledged
//! key is on every server. `WHARF_CHAOS_SECONDS` plays longer, `WHARF_CHAOS_SEED` plays the same choices again (not the
//! same timing: the processes are real).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use wharf_tests::{Chance, Http, SOON, chaos_duration, chaos_seed, eventually};

use super::servers::{Server, Site, assert_everywhere};

const WRITERS: u64 = 6;

/// What the writers have to show.
#[derive(Default)]
struct History {
    acknowledged: Vec<(Instant, String)>,
    /// Reads that were older than what the reader had been told.
    stale: Vec<String>,
    reads: usize,
}

fn writer(number: u64, seed: u64, servers: [Http; 3], end: Instant, history: &Mutex<History>) {
    let mut choice = Chance::new(seed.wrapping_mul(31).wrapping_add(number));
    let mut known: u64 = 0;
    let mut value: u64 = 0;
    while Instant::now() < end {
        value += 1;
        let path = format!("/v1/kv/register/{number}");
        let there = servers[choice.below(3) as usize];
        let written = there.request("PUT", &path, &[], value.to_string().as_bytes());
        if written.is_ok_and(|reply| reply.status == 200) {
            known = value;
            let key = format!("chaos/{number}/{value}");
            let kept = there.request("PUT", &format!("/v1/kv/{key}"), &[], b"v");
            if kept.is_ok_and(|reply| reply.status == 200) {
                history
                    .lock()
                    .unwrap()
                    .acknowledged
                    .push((Instant::now(), key));
            }
        } else {
            thread::sleep(Duration::from_millis(10));
        }
        let consistency = ["", "&consistent"][choice.below(2) as usize];
        let other = servers[choice.below(3) as usize];
        let read = other.request("GET", &format!("{path}?raw{consistency}"), &[], b"");
        let Ok(reply) = read else {
            continue;
        };
        let found = match reply.status {
            200 => reply.text().parse().unwrap_or(0),
            404 => 0,
            _ => continue,
        };
        let mut history = history.lock().unwrap();
        history.reads += 1;
        if found < known {
            history.stale.push(format!(
                "{number}: {found} from {} with {consistency:?} after {known}",
                other.address
            ));
        }
    }
}

/// What happens to the servers until `end`. Returns what did, and how often.
fn play(
    site: &Site,
    servers: &mut BTreeMap<u8, Server>,
    choice: &mut Chance,
    end: Instant,
) -> BTreeMap<&'static str, usize> {
    let mut played = BTreeMap::new();
    while Instant::now() < end {
        thread::sleep(choice.millis(300, 1500));
        let number = 1 + choice.below(3) as u8;
        let what = match choice.below(20) {
            0..7 => "kill",
            7..12 => "pause",
            12..16 => "end",
            16..18 => "kill all",
            _ => "wipe",
        };
        *played.entry(what).or_default() += 1;
        match what {
            "pause" => {
                let server = &servers[&number];
                server.process.signal(Signal::STOP);
                thread::sleep(choice.millis(100, 3000));
                server.process.signal(Signal::CONT);
            }
            "kill all" => {
                for server in std::mem::take(servers).into_values() {
                    server.kill();
                }
                for number in 1..=3 {
                    servers.insert(number, site.expecting(number));
                }
            }
            _ => {
                let Some(mut server) = servers.remove(&number) else {
                    continue;
                };
                if what == "end" {
                    server.process.stop(Signal::TERM);
                } else {
                    server.kill();
                    thread::sleep(choice.millis(50, 1500));
                }
                if what == "wipe" {
                    std::fs::remove_dir_all(site.data_dir(number)).unwrap();
                }
                servers.insert(number, site.expecting(number));
                if what == "wipe" {
                    // Two at once without their data would be a majority that has forgotten.
                    servers[&number].wait_for_peers(3);
                    let others = (1..=3).filter(|other| *other != number);
                    let whole = eventually(SOON, || {
                        others.clone().all(|other| servers[&other].is_voter(number))
                    });
                    assert!(whole, "s{number} did not get its place back");
                }
            }
        }
    }
    played
}

#[test]
fn whatever_happens_nothing_acknowledged_is_lost_and_no_read_goes_back() {
    let (seed, duration) = (chaos_seed(), chaos_duration());
    println!("WHARF_CHAOS_SEED={seed} for {duration:?}");
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 1000"]);
    let mut servers: BTreeMap<u8, Server> = site
        .three()
        .into_iter()
        .map(|server| (server.number, server))
        .collect();
    let addresses = [1, 2, 3].map(|number| Http {
        timeout: Duration::from_secs(12),
        ..servers[&number].http
    });
    let end = Instant::now() + duration;
    let history = Arc::new(Mutex::new(History::default()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let history = history.clone();
            thread::spawn(move || writer(number, seed, addresses, end, &history))
        })
        .collect();
    let played = play(&site, &mut servers, &mut Chance::new(seed), end);
    for writer in writers {
        writer.join().unwrap();
    }
    let servers: Vec<Server> = servers.into_values().collect();
    for server in &servers {
        server.wait_for_peers(3);
    }
    let history = std::mem::take(&mut *history.lock().unwrap());
    let mut times: Vec<Instant> = history.acknowledged.iter().map(|(at, _)| *at).collect();
    times.sort();
    let mut pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    pauses.sort();
    let longest: Vec<_> = pauses.iter().rev().take(5).collect();
    println!(
        "{} writes, {} reads, {played:?}, longest pauses {longest:?}",
        history.acknowledged.len(),
        history.reads
    );
    assert!(
        history.stale.is_empty(),
        "seed {seed}: {:#?}",
        history.stale
    );
    assert!(!history.acknowledged.is_empty(), "nothing was written");
    let keys: Vec<String> = history
        .acknowledged
        .into_iter()
        .map(|(_, key)| key)
        .collect();
    assert_everywhere(&servers, "chaos/", &keys);
}
