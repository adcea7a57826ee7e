//! Real servers, real kills, real partitions, at random; and histories that are checked.
//!
//! A few seconds of it run with the other tests. For as long as one likes:
//!
//! ```text
//! WHARF_CHAOS_SECONDS=600 cargo test -p wharf-tests --test e2e -- --exact chaos::histories_stay_linearizable --nocapture
//! ```
//!
//! The seed is printed, and `WHARF_CHAOS_SEED` repeats the same faults; not the same history, as time is real.

mod lab;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use wharf_tests::{
    Chance, Http, Network, SOON, chaos_duration, chaos_seed, eventually,
    history::{Action, Operation, contradiction, longest_silence},
    in_network,
};

use self::lab::Lab;

const SERVERS: usize = 3;
const CLIENTS: usize = 5;
const KEYS: u64 = 3;

fn any_server(chance: &mut Chance) -> usize {
    usize::try_from(chance.below(SERVERS as u64)).unwrap() + 1
}

/// What is done to the servers, until it is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    KillAll,
    KillLeader,
    Pause,
    PauseLeader,
    /// One hears none of the others, and they do not hear it.
    Isolate,
    IsolateLeader,
    /// One hears none of the others, but they hear it.
    OneWay,
    /// Two do not hear each other, and both hear the third.
    Bridge,
    Loss,
}

const FAULTS: [Fault; 10] = [
    Fault::Kill,
    Fault::KillAll,
    Fault::KillLeader,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::Isolate,
    Fault::IsolateLeader,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Loss,
];

fn others(number: usize) -> impl Iterator<Item = usize> {
    (1..=SERVERS).filter(move |other| *other != number)
}

fn apply(lab: &mut Lab, fault: Fault, chance: &mut Chance) {
    let any = any_server(chance);
    let leader = lab.leader().unwrap_or(any);
    match fault {
        Fault::Kill => lab.kill(any),
        Fault::KillLeader => lab.kill(leader),
        Fault::KillAll => (1..=SERVERS).for_each(|number| lab.kill(number)),
        Fault::Pause => lab.pause(any),
        Fault::PauseLeader => lab.pause(leader),
        Fault::Isolate | Fault::IsolateLeader => {
            let alone = if fault == Fault::Isolate { any } else { leader };
            for other in others(alone) {
                lab.deafen(alone, other);
                lab.deafen(other, alone);
            }
        }
        Fault::OneWay => others(any).for_each(|other| lab.deafen(any, other)),
        Fault::Bridge => {
            let [one, two] = [any, any % SERVERS + 1];
            lab.deafen(one, two);
            lab.deafen(two, one);
        }
        Fault::Loss => (1..=SERVERS).for_each(|number| lab.lose(number, 20)),
    }
}

fn undo(lab: &mut Lab) {
    for number in 1..=SERVERS {
        lab.resume(number);
        lab.heal(number);
        if !lab.is_running(number) {
            lab.start(number);
        }
    }
}

/// One client's operation on one key.
fn operate(http: Http, key: u64, value: u64, chance: &mut Chance) -> Option<Action> {
    let path = format!("/v1/kv/chaos/{key}");
    let read = |consistency: &str| -> Option<(u64, u64)> {
        let reply = http.request("GET", &format!("{path}?raw&{consistency}"), &[], b"");
        let reply = reply.ok()?;
        match reply.status {
            404 => Some((0, 0)),
            200 => Some((reply.text().parse().ok()?, reply.index())),
            _ => None,
        }
    };
    match chance.below(4) {
        0 => read("").map(|(value, _)| Action::Read(value)),
        1 => read("consistent").map(|(value, _)| Action::Read(value)),
        2 => {
            // Not an operation of its own: it only says what to compare with.
            let (from, index) = read("stale")?;
            let path = format!("{path}?cas={index}");
            let text = value.to_string();
            match http.request("PUT", &path, &[], text.as_bytes()) {
                Ok(reply) if reply.status == 200 => {
                    // An index is compared, not a value: that it was another says nothing of the value.
                    (reply.text().trim() == "true").then_some(Action::Swap {
                        from,
                        to: value,
                        swapped: true,
                    })
                }
                _ => Some(Action::MaybeSwap { from, to: value }),
            }
        }
        _ => {
            let text = value.to_string();
            Some(match http.request("PUT", &path, &[], text.as_bytes()) {
                Ok(reply) if reply.status == 200 => Action::Write(value),
                // Refused or cut off: some of these certainly did nothing, and none is believed.
                _ => Action::MaybeWrite(value),
            })
        }
    }
}

#[derive(Default)]
struct Histories(Mutex<BTreeMap<u64, Vec<Operation>>>);

fn client(
    number: usize,
    seed: u64,
    https: &[Http],
    values: &AtomicU64,
    stop: &AtomicBool,
    histories: &Histories,
) {
    let mut chance = Chance::new(seed.wrapping_mul(31).wrapping_add(number as u64));
    while !stop.load(Ordering::Relaxed) {
        let http = https[any_server(&mut chance) - 1];
        let key = chance.below(KEYS);
        let value = values.fetch_add(1, Ordering::Relaxed);
        let called = Instant::now();
        if let Some(action) = operate(http, key, value, &mut chance) {
            let unknown = action.is_unknown();
            let operation = Operation {
                action,
                called,
                returned: (!unknown).then(Instant::now),
            };
            let mut histories = histories.0.lock().unwrap();
            histories.entry(key).or_default().push(operation);
        }
        // The check is of what they see of each other, not of how fast they are.
        thread::sleep(chance.millis(5, 40));
    }
}

#[test]
fn histories_stay_linearizable() {
    in_network(|| {
        let Some(mut lab) = Lab::new(SERVERS) else {
            return;
        };
        let (seed, duration) = (chaos_seed(), chaos_duration());
        println!("WHARF_CHAOS_SEED={seed} for {duration:?}");
        (1..=SERVERS).for_each(|number| lab.start(number));
        assert!(
            eventually(SOON, || lab.leader().is_some()),
            "{}",
            lab.output()
        );
        let https: Vec<Http> = (1..=SERVERS).map(|number| lab.http(number)).collect();
        let (values, stop) = (AtomicU64::new(1), AtomicBool::new(false));
        let histories = Histories::default();
        let network = Network::current();
        let mut faults: BTreeMap<Fault, u32> = BTreeMap::new();
        let began = Instant::now();
        thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (https, values, stop) = (&https, &values, &stop);
                let (histories, network) = (&histories, &network);
                scope.spawn(move || {
                    network.enter();
                    client(number, seed, https, values, stop, histories);
                });
            }
            let mut chance = Chance::new(seed);
            while began.elapsed() < duration {
                let fault = FAULTS[usize::try_from(chance.below(FAULTS.len() as u64)).unwrap()];
                *faults.entry(fault).or_default() += 1;
                apply(&mut lab, fault, &mut chance);
                thread::sleep(chance.millis(300, 4000));
                undo(&mut lab);
                thread::sleep(chance.millis(300, 3000));
            }
            // All is well again, and it has to be seen.
            let healed = Instant::now();
            let path = "/v1/kv/chaos/healed";
            let answers = eventually(SOON, || {
                https.iter().all(|http| {
                    let reply = http.request("PUT", path, &[], b"1");
                    reply.is_ok_and(|reply| reply.status == 200)
                })
            });
            println!(
                "all servers write {:?} after the last fault",
                healed.elapsed()
            );
            stop.store(true, Ordering::Relaxed);
            assert!(answers, "{}", lab.output());
        });
        let ended = Instant::now();
        let histories = histories.0.into_inner().unwrap();
        let all = || histories.values().flatten();
        let unknown = all()
            .filter(|operation| operation.returned.is_none())
            .count();
        println!(
            "{} operations, {unknown} of them with an unknown outcome, longest silence {:?}; {faults:?}",
            all().count(),
            longest_silence(all(), began, ended)
        );
        assert!(all().count() > 50, "{}", lab.output());
        for (key, history) in &histories {
            if let Some(operation) = contradiction(history) {
                let mut near: Vec<_> = history.clone();
                near.sort_by_key(|operation| operation.called);
                let at = near
                    .iter()
                    .position(|other| other.called == operation.called)
                    .unwrap_or(0);
                let near = &near[at.saturating_sub(20)..near.len().min(at + 20)];
                panic!(
                    "seed {seed}: no order explains the history of key {key} at {operation:?}, among\n{near:#?}"
                );
            }
        }
    });
}
