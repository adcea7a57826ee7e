//! The largest values, as fast as they can be sent.
//!
//! A few seconds of it run with the other tests; `WHARF_CHAOS_SECONDS=180` makes it three minutes.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use wharf_tests::{Chance, Distribution, Http, SOON, chaos_duration, eventually};

use super::{
    servers::{Server, Site, leader_of},
    snapshots::assert_same_state,
};

const LIMIT: usize = 512 << 10;
/// Of each server; each has a key of its own.
const WRITERS: usize = 48;
/// So many of them may be connected to a server at once. The log keeps between one and two times 200 entries.
const FLAG: &str = "-hcl=limits { http_max_conns_per_client = 32 } raft_snapshot_threshold = 200";
/// Of a server, beyond what it had before. The state is 72 MiB, 64 MiB may be in flight, bodies are on their way in, and a
/// snapshot that is being written keeps the state that it began with.
const MEMORY: u64 = 512 << 20;

/// What became of the writes.
#[derive(Default)]
struct Account {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
    /// The last number that was acknowledged for each writer's key.
    last: Mutex<BTreeMap<usize, u64>>,
}

fn key_of(writer: usize) -> String {
    format!("/v1/kv/large/{writer}")
}

fn writer(number: usize, http: Http, stop: &AtomicBool, account: &Account) {
    let mut chance = Chance::new(number as u64);
    let mut value: Vec<u8> = (0..LIMIT).map(|_| chance.below(256) as u8).collect();
    for count in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        value[..8].copy_from_slice(&count.to_be_bytes());
        match http.request("PUT", &key_of(number), &[], &value) {
            Ok(reply) if reply.status == 200 => {
                account.acknowledged.fetch_add(1, Ordering::Relaxed);
                account.last.lock().unwrap().insert(number, count);
            }
            Ok(reply) if [429, 503].contains(&reply.status) => {
                account.refused.fetch_add(1, Ordering::Relaxed);
                thread::sleep(chance.millis(50, 200));
            }
            Ok(reply) => {
                let what = format!("{} {}", reply.status, reply.text().trim());
                *account.failed.lock().unwrap().entry(what).or_default() += 1;
                thread::sleep(chance.millis(50, 200));
            }
            Err(error) => {
                let what = error.to_string();
                *account.failed.lock().unwrap().entry(what).or_default() += 1;
            }
        }
    }
}

/// How long others wait for their answers meanwhile.
#[derive(Default)]
struct Others {
    reads: Distribution,
    writes: Distribution,
    refused: u64,
}

/// A connection from an address that has no other.
fn connect(to: SocketAddr) -> TcpStream {
    let socket = net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    net::bind(&socket, &SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();
    net::connect(&socket, &to).unwrap();
    socket.into()
}

/// Somebody with small wishes.
fn other(http: Http, stop: &AtomicBool, others: &Mutex<Others>) {
    let ask = |method: &str, path: &str, body: &str| {
        let asked = Instant::now();
        let stream = connect(http.address);
        let reply = http.request_over(stream, method, path, &[], body.as_bytes());
        (reply.unwrap(), asked.elapsed())
    };
    for count in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (reply, read) = ask("GET", "/v1/kv/small?stale", "");
        assert!([200, 404].contains(&reply.status), "{}", reply.text());
        let (reply, written) = ask("PUT", "/v1/kv/small", &count.to_string());
        let mut others = others.lock().unwrap();
        others.reads.add(read);
        // What is not done is said in time, too.
        others.writes.add(written);
        others.refused += u64::from(reply.status != 200);
        drop(others);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of the files of a directory.
fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    // One may go meanwhile.
    let sizes = files.filter_map(|file| file.metadata().ok().map(|file| file.len()));
    sizes.sum()
}

#[test]
fn without_a_leader_no_more_is_held_than_may_be_in_flight() {
    const WAITING: usize = 190;
    let site = Site::new(&["-hcl=raft_snapshot_threshold = 200"]);
    let mut servers = site.three();
    servers.remove(2).kill();
    servers.remove(1).kill();
    let alone = &servers[0];
    assert!(eventually(SOON, || alone.leader().is_empty()));
    let memory = alone.process.resident();
    let value = vec![b'v'; LIMIT];
    let replies: Mutex<BTreeMap<(u16, String), usize>> = Mutex::default();
    thread::scope(|scope| {
        for number in 0..WAITING {
            let (value, replies) = (&value, &replies);
            scope.spawn(move || {
                let reply = alone.http.put(&key_of(number), value);
                let what = (reply.status, reply.text().trim().to_owned());
                *replies.lock().unwrap().entry(what).or_default() += 1;
            });
        }
    });
    let replies = replies.into_inner().unwrap();
    let grown = alone.process.resident().saturating_sub(memory) >> 20;
    println!("{replies:?}, grown by {grown} MiB");
    let count = |status: u16, text: &str| replies.get(&(status, text.to_owned())).copied();
    let held = count(500, "No cluster leader").unwrap_or(0);
    let refused = count(429, "too many writes in flight: try again later").unwrap_or(0);
    assert_eq!(held + refused, WAITING, "{replies:?}");
    // They are held for seven seconds, and 64 MiB of them at once.
    assert!(held >= 100 && refused >= 40, "{replies:?}");
}

#[test]
fn the_largest_values_at_full_speed_cost_bounded_memory_and_lose_nothing() {
    let site = Site::new(&[FLAG]);
    let servers = site.three();
    let leader = leader_of(&servers);
    let too_large = servers[leader].http.put(&key_of(0), vec![b'v'; LIMIT + 1]);
    assert_eq!(too_large.status, 413);
    let said = format!(
        "Request body({} bytes) too large, max size: {LIMIT} bytes.",
        LIMIT + 1
    );
    assert!(too_large.text().starts_with(&said), "{}", too_large.text());

    let duration = chaos_duration(5);
    let before: Vec<u64> = servers
        .iter()
        .map(|server| server.process.resident())
        .collect();
    let mut most = before.clone();
    let (account, others) = (Account::default(), Mutex::<Others>::default());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (account, others, stop) = (&account, &others, &stop);
        for (place, server) in servers.iter().enumerate() {
            for number in place * WRITERS..(place + 1) * WRITERS {
                scope.spawn(move || writer(number, server.http, stop, account));
            }
            scope.spawn(move || other(server.http, stop, others));
        }
        let end = Instant::now() + duration;
        while Instant::now() < end {
            for (most, server) in most.iter_mut().zip(&servers) {
                *most = server.process.resident().max(*most);
            }
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mib = |bytes: &u64| bytes >> 20;
    let acknowledged = account.acknowledged.load(Ordering::Relaxed);
    println!(
        "{acknowledged} acknowledged ({:.0} MiB/s), {} refused, failed {:?}",
        acknowledged as f64 / 2.0 / duration.as_secs_f64(),
        account.refused.load(Ordering::Relaxed),
        account.failed.lock().unwrap()
    );
    println!(
        "resident MiB: {:?} before, {:?} at most",
        before.iter().map(mib).collect::<Vec<_>>(),
        most.iter().map(mib).collect::<Vec<_>>()
    );
    {
        let others = others.lock().unwrap();
        println!("stale reads of others: {}", others.reads);
        println!(
            "their writes: {}, {} of them refused",
            others.writes, others.refused
        );
        assert!(others.reads.worst() < Duration::from_secs(5));
        assert!(others.writes.worst() < Duration::from_secs(15));
    }
    assert!(acknowledged > 0);
    assert!(
        account.refused.load(Ordering::Relaxed) > 0,
        "nothing was refused"
    );
    let failed = account.failed.into_inner().unwrap();
    // A processor that has no time for heartbeats costs a leader, and that is said.
    let honest = |what: &String| what.contains("unknown") || what.contains("No cluster leader");
    assert!(failed.keys().all(honest), "{failed:?}");
    for (before, most) in before.iter().zip(&most) {
        assert!(most - before < MEMORY, "{} MiB", mib(most));
    }

    // What was acknowledged is there, or what came after it, on every server.
    let last = account.last.into_inner().unwrap();
    assert_same_state(&servers);
    for (writer, count) in &last {
        let value = servers[writer % 3]
            .http
            .get(&format!("{}?raw&stale", key_of(*writer)));
        assert_eq!(value.body.len(), LIMIT);
        let found = u64::from_be_bytes(value.body[..8].try_into().unwrap());
        assert!(found >= *count, "{writer}: {found} after {count}");
    }

    // And its place in the log is given back.
    let logs: Vec<_> = (1..=3)
        .map(|number| site.data_dir(number).join("raft/log"))
        .collect();
    let sizes = || logs.iter().map(|log| size(log) >> 20).collect::<Vec<_>>();
    println!("MiB of log: {:?}", sizes());
    let small = |server: &Server| server.put("small", b"value");
    let mut writes = 0;
    let short = eventually(3 * SOON, || {
        for _ in 0..50 {
            assert!(small(&servers[leader]));
        }
        writes += 50;
        sizes().iter().all(|size| *size <= 24)
    });
    println!("MiB of log after {writes} small writes: {:?}", sizes());
    assert!(short);
}
