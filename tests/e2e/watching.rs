//! The promises of a watch, whichever way one watches: by blocking queries, by a gRPC stream, by `wharf watch`. Over a
//! history in which the servers restart and change their leader, with watchers that go to another server when theirs is
//! lost, and resume with what they saw last.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tonic::{Status, transport::Channel};
use wharf_proto::v1::{
    KeyValueTarget, WatchRequest, registry_client::RegistryClient, watch_request::Target,
    watch_response::Event,
};
use wharf_tests::{
    Agent, Http, Ports, Process, SOON, StopOnDrop, eventually, eventually_some,
    promises::{self, Shown},
};

use crate::cluster::servers::{Server, Site, leader_of};

/// The key that is watched. It counts.
const KEY: &str = "watched";
/// How many writes happen between two things that happen to servers.
const STRETCH: usize = 40;

/// Where one can ask.
#[derive(Clone)]
struct Place {
    http: Http,
    grpc: String,
}

impl Place {
    fn of(http: Http, grpc: u16) -> Place {
        let grpc = format!("http://{}:{grpc}", http.address.ip());
        let timeout = Duration::from_secs(5);
        let http = Http { timeout, ..http };
        Place { http, grpc }
    }

    fn of_server(server: &Server) -> Place {
        Place::of(server.http, server.ports().grpc)
    }

    /// The key as it is now, if it is newer than `index`; asked for `wait` at most.
    fn ask(&self, index: u64, wait: &str) -> Option<Shown<u64>> {
        let path = format!("/v1/kv/{KEY}?raw&index={index}&wait={wait}");
        let reply = self.http.request("GET", &path, &[], b"").ok()?;
        let answer = reply.text().parse().ok()?;
        (reply.status == 200).then(|| Shown {
            index: reply.index(),
            answer,
        })
    }
}

/// What one watcher was shown.
type Seen = Arc<Mutex<Vec<Shown<u64>>>>;

/// Blocking queries, one after the other, and at another place when one fails.
fn ask_again_and_again(places: &[Place], stop: &AtomicBool, seen: &Seen) {
    let mut index = 0;
    let mut places = places.iter().cycle();
    let mut place = places.next().unwrap();
    while !stop.load(Ordering::Relaxed) {
        match place.ask(index, "1s") {
            Some(shown) if shown.index == index => {}
            Some(shown) => {
                index = shown.index;
                seen.lock().unwrap().push(shown);
            }
            None => {
                place = places.next().unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A gRPC watch, resumed at another place when it ends. `told` are the indexes up to which everything was told.
async fn listen(places: Vec<Place>, seen: Seen, told: Seen) {
    let mut resume_index = 0;
    for place in places.iter().cycle() {
        // However it ends, it is resumed.
        let _ = listen_at(place, &mut resume_index, &seen, &told).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn listen_at(
    place: &Place,
    resume: &mut u64,
    seen: &Seen,
    told: &Seen,
) -> Result<(), Status> {
    let channel = Channel::from_shared(place.grpc.clone()).unwrap();
    let channel = channel
        .connect_timeout(Duration::from_secs(2))
        .connect()
        .await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = WatchRequest {
        target: Some(Target::KeyValue(KeyValueTarget { prefix: KEY.into() })),
        resume_index: *resume,
    };
    let mut stream = RegistryClient::new(channel)
        .watch(request)
        .await?
        .into_inner();
    while let Some(response) = stream.message().await? {
        if let Some(Event::KeyUpserted(pair)) = &response.event {
            let text = String::from_utf8_lossy(&pair.value);
            seen.lock().unwrap().push(Shown {
                index: pair.modify_index,
                answer: text.parse().unwrap(),
            });
        }
        if response.index > 0 {
            *resume = response.index;
            told.lock().unwrap().push(Shown {
                index: response.index,
                answer: 0,
            });
        }
    }
    Ok(())
}

/// What the handler of `wharf watch` was given: a line of JSON, and a line with the index.
fn handled(watch: &Process) -> Vec<Shown<u64>> {
    let text = watch.text();
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let index = pair[1].strip_prefix("index=")?.parse().ok()?;
        let given: Value = serde_json::from_str(pair[0]).ok()?;
        if given.is_null() && index == 1 {
            // It began before the first write.
            return None;
        }
        assert_eq!(given["ModifyIndex"], index);
        let encoded = given["Value"].as_str()?;
        Some(Shown {
            index,
            answer: decode(encoded),
        })
    });
    pairs.collect()
}

/// Base64 of digits (RFC 4648).
fn decode(text: &str) -> u64 {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0_u128;
    let mut count = 0;
    for sign in text.bytes().filter(|sign| *sign != b'=') {
        let six = ALPHABET.iter().position(|other| *other == sign).unwrap();
        bits = bits << 6 | six as u128;
        count += 6;
    }
    let bytes = (bits >> (count % 8)).to_be_bytes();
    let digits = &bytes[bytes.len() - count / 8..];
    String::from_utf8_lossy(digits).parse().unwrap()
}

/// Counts the key up, at one place after the other, and remembers each of its states.
struct Counting {
    truth: Seen,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Counting {
    fn at(places: Vec<Place>) -> Counting {
        let (truth, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let (states, stopped) = (truth.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut places = places.iter().cycle();
            let mut place = places.next().unwrap();
            for number in 1_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let path = format!("/v1/kv/{KEY}");
                let text = number.to_string();
                let reply = place.http.request("PUT", &path, &[], text.as_bytes());
                if !reply.is_ok_and(|reply| reply.status == 200) {
                    place = places.next().unwrap();
                }
                // Also where it is unknown whether it was written; nobody else writes.
                let state = eventually_some(SOON, || {
                    let path = format!("/v1/kv/{KEY}?raw&consistent");
                    let reply = place.http.request("GET", &path, &[], b"");
                    let reply = reply
                        .ok()
                        .filter(|reply| [200, 404].contains(&reply.status));
                    if reply.is_none() {
                        place = places.next().unwrap();
                    }
                    reply
                });
                let state = state.expect("somebody answers");
                if state.status == 200 && state.text() == text {
                    states.lock().unwrap().push(Shown {
                        index: state.index(),
                        answer: number,
                    });
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Counting {
            truth,
            stop,
            thread,
        }
    }

    /// Waits for so many more states.
    #[track_caller]
    fn wait_for(&self, more: usize) {
        let count = || self.truth.lock().unwrap().len();
        let before = count();
        assert!(eventually(2 * SOON, || count() >= before + more));
    }

    fn last(&self) -> Shown<u64> {
        self.truth.lock().unwrap().last().unwrap().clone()
    }

    fn stop(self) -> Vec<Shown<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.truth.lock().unwrap().clone()
    }
}

/// The promises, of one watcher's sights.
fn judge(who: &str, truth: &[Shown<u64>], seen: &[Shown<u64>]) {
    let holds = truth.last().unwrap();
    for kept in [
        promises::ordered(truth, seen),
        promises::without_gap(holds, seen),
        promises::without_duplicates(seen),
        promises::index_grows(seen),
    ] {
        kept.unwrap_or_else(|broken| panic!("{who}: {broken}"));
    }
    println!("{who}: shown {} of {} states", seen.len(), truth.len());
    assert!(seen.len() > STRETCH, "{who} was shown too little to judge");
}

/// Watches in every way at all places, while `history` happens. `steady` is a place that stays.
fn watch(places: &[Place], steady: Process, history: impl FnOnce(&Counting)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let counting = Counting::at(places.to_vec());
    counting.wait_for(1);
    let stop = AtomicBool::new(false);
    let mut watchers: Vec<(String, Seen)> = Vec::new();
    let mut told: Vec<Seen> = Vec::new();
    thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        for at in 0..places.len() {
            // Each begins at a place of its own.
            let mut order = places.to_vec();
            order.rotate_left(at);
            let (queries, stream, indexes) = (Seen::default(), Seen::default(), Seen::default());
            watchers.push((format!("queries {at}"), queries.clone()));
            watchers.push((format!("stream {at}"), stream.clone()));
            told.push(indexes.clone());
            // Ends with the runtime.
            runtime.spawn(listen(order.clone(), stream, indexes));
            scope.spawn(move || ask_again_and_again(&order, stop, &queries));
        }
        counting.wait_for(STRETCH);
        let left_with = counting.last();
        history(&counting);
        counting.wait_for(STRETCH);
        let truth = counting.stop();
        let holds = truth.last().unwrap();
        // All is quiet.
        for (_, seen) in &watchers {
            eventually(SOON, || {
                promises::without_gap(holds, &seen.lock().unwrap()).is_ok()
            });
        }
        eventually(SOON, || {
            promises::without_gap(holds, &handled(&steady)).is_ok()
        });
        stop.store(true, Ordering::Relaxed);
        for (who, seen) in &watchers {
            judge(who, &truth, &seen.lock().unwrap());
        }
        judge("wharf watch", &truth, &handled(&steady));
        for told in &told {
            let kept = promises::index_grows(&told.lock().unwrap());
            kept.unwrap_or_else(|broken| panic!("what was told: {broken}"));
        }
        for place in places {
            let shown = place.ask(left_with.index, "10s");
            let kept = promises::resumable(&left_with, holds, shown.as_ref());
            kept.unwrap_or_else(|broken| panic!("{}: {broken}", place.grpc));
            // It has nothing to wake for, and says so when the time is over.
            let asked = Instant::now();
            let shown = place.ask(holds.index, "200ms");
            assert!(asked.elapsed() >= Duration::from_millis(200));
            let shown = shown.filter(|shown| shown.index != holds.index);
            let kept = promises::resumable(holds, holds, shown.as_ref());
            kept.unwrap_or_else(|broken| panic!("{}: {broken}", place.grpc));
        }
    });
    runtime.shutdown_background();
}

const HANDLER: &str = "cat; echo index=$CONSUL_INDEX";

#[test]
fn watches_of_one_server_keep_their_promises_over_its_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let ports = Ports::choose();
    let mut agent = Some(Agent::durable(directory.path(), ports));
    let place = Place::of(Http::local(ports.http), ports.grpc);
    let words = ["watch", "-type=key", &format!("-key={KEY}"), HANDLER];
    let steady = Process::start(&mut agent.as_ref().unwrap().cli(&words));
    watch(&[place], steady, |counting| {
        for _ in 0..2 {
            agent.take().unwrap().kill();
            agent = Some(Agent::durable(directory.path(), ports));
            counting.wait_for(STRETCH);
        }
    });
}

#[test]
fn watches_of_a_cluster_keep_their_promises_over_changes_of_the_leader() {
    let site = Site::new(&["-hcl=platform { enabled = false } raft_snapshot_threshold = 100"]);
    let mut servers = site.three();
    let client = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    let mut places: Vec<Place> = servers.iter().map(Place::of_server).collect();
    // With whom it is, it finds out by itself.
    places.push(Place::of_server(&client));
    let words = ["watch", "-type=key", &format!("-key={KEY}"), HANDLER];
    let steady = client.start_command(&words);
    watch(&places, steady, |counting| {
        // By a kill, by its word, and by a kill again.
        for by_word in [false, true, false] {
            let leader = leader_of(&servers);
            let number = servers[leader].number;
            if by_word {
                servers[leader]
                    .run(&["operator", "raft", "transfer-leader"])
                    .success();
            } else {
                servers.remove(leader).kill();
                counting.wait_for(STRETCH / 2);
                servers.push(site.expecting(number));
                servers[2].wait_for_peers(3);
            }
            counting.wait_for(STRETCH);
        }
    });
}
