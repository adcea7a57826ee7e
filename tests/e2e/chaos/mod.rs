//! Real servers and client agents, real kills, real partitions, at random; and histories that are checked.
//!
//! A few seconds of it run with the other tests. For as long as one likes:
//!
//! ```text
//! WHARF_CHAOS_SECONDS=600 cargo test -p wharf-tests --test e2e -- --exact chaos::whatever_happens_all_promises_are_kept --nocapture
//! ```
//!
//! The seed is printed, and `WHARF_CHAOS_SEED` repeats the same faults; not the same history, as time is real.

mod clients;
mod faults;
mod lab;
mod liveness;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use wharf_tests::{
    Chance, Distribution, Http, Network, SOON, StopOnDrop, chaos_duration, chaos_seed, eventually,
    eventually_some,
    history::{contradiction, longest_silence},
    in_network,
};

use self::{
    clients::{Histories, Ledger, Registered, service_of},
    faults::{Fault, any_agent, any_fault, take_away, undo},
    lab::{AGENTS, Lab, agents, everybody, is_server, name, servers},
    liveness::{Liveness, status_of},
};

const CLIENTS: usize = 5;
/// How long an agent that is gone may count as alive: a lease, one more for a leader that is new, and some time to see it.
const SEEN_WITHIN: Duration = Duration::from_secs(40);

/// What everybody remembers.
#[derive(Default)]
struct Memory {
    histories: Histories,
    ledger: Ledger,
    registered: [Mutex<Registered>; AGENTS],
    liveness: Liveness,
}

/// What is told of the faults in the end.
struct Account {
    began: Instant,
    faults: BTreeMap<Fault, u32>,
    /// From the loss of the leader alone to the next write that was acknowledged.
    failovers: BTreeMap<Fault, Distribution>,
    /// From when an agent is gone until it counts as dead.
    seen: BTreeMap<Fault, Distribution>,
}

/// Waits until an agent answers through servers and counts as alive.
fn await_return(lab: &Lab, memory: &Memory, agent: usize) {
    let back = eventually(SOON, || {
        let path = "/v1/kv/chaos/0?consistent";
        let reply = lab.http(agent).request("GET", path, &[], b"");
        reply.is_ok_and(|reply| [200, 404].contains(&reply.status))
            && servers()
                .any(|server| status_of(lab.http(server), agent).as_deref() == Some("passing"))
    });
    assert!(back, "{} does not come back\n{}", name(agent), lab.output());
    memory.liveness.is_back(agent);
}

/// One fault, for a moment.
fn play_one(lab: &mut Lab, memory: &Memory, chance: &mut Chance, account: &mut Account) {
    let fault = any_fault(chance);
    println!("{:?}: {fault:?}", account.began.elapsed());
    *account.faults.entry(fault).or_default() += 1;
    // Who is concerned shows afterwards: until then nobody is believed.
    agents().for_each(|agent| memory.liveness.goes(agent));
    let struck = fault.strike(lab, chance);
    let unconcerned = agents().filter(|agent| !struck.away.contains(agent));
    unconcerned.for_each(|agent| memory.liveness.stays(agent));
    if let Some((since, gone)) = struck.leaderless {
        let next = eventually_some(SOON, || memory.ledger.first_after(gone));
        let next = next.unwrap_or_else(|| panic!("no write after {fault:?}\n{}", lab.output()));
        account
            .failovers
            .entry(fault)
            .or_default()
            .add(next - since);
        thread::sleep(chance.millis(0, 2000));
    } else {
        thread::sleep(chance.millis(300, 4000));
    }
    undo(lab);
    for agent in struck.away {
        await_return(lab, memory, agent);
    }
}

/// One agent is gone until it counts as dead, and comes back.
fn play_absence(lab: &mut Lab, memory: &Memory, chance: &mut Chance, account: &mut Account) {
    let agent = any_agent(chance);
    memory.liveness.goes(agent);
    let since = Instant::now();
    let way = take_away(lab, agent, chance);
    println!(
        "{:?}: {way:?} {} until it is seen",
        account.began.elapsed(),
        name(agent)
    );
    let dead = eventually(SEEN_WITHIN, || {
        servers().any(|server| status_of(lab.http(server), agent).as_deref() == Some("critical"))
    });
    assert!(
        dead,
        "{} is gone ({way:?}), and counts as alive\n{}",
        name(agent),
        lab.output()
    );
    account.seen.entry(way).or_default().add(since.elapsed());
    undo(lab);
    await_return(lab, memory, agent);
}

/// Everything at random, for so long.
fn play(lab: &mut Lab, memory: &Memory, seed: u64, duration: Duration) -> Account {
    let mut chance = Chance::new(seed);
    let mut account = Account {
        began: Instant::now(),
        faults: BTreeMap::new(),
        failovers: BTreeMap::new(),
        seen: BTreeMap::new(),
    };
    while account.began.elapsed() < duration {
        // That takes a lease: at the end it comes in any case.
        if duration > Duration::from_secs(60) && chance.below(20) == 0 {
            play_absence(lab, memory, &mut chance, &mut account);
        } else {
            play_one(lab, memory, &mut chance, &mut account);
        }
        thread::sleep(chance.millis(300, 3000));
    }
    play_absence(lab, memory, &mut chance, &mut account);
    account
}

/// All is well again, and it has to be seen.
fn assert_healed(lab: &Lab) {
    let healed = Instant::now();
    let writes = |number| {
        let reply = lab.http(number).request("PUT", "/v1/kv/healed", &[], b"1");
        reply.is_ok_and(|reply| reply.status == 200)
    };
    assert!(
        eventually(SOON, || everybody().all(writes)),
        "{}",
        lab.output()
    );
    println!(
        "everybody writes {:?} after the last fault",
        healed.elapsed()
    );
    let all: Vec<usize> = servers().collect();
    let whole = || servers().all(|server| lab.has_voters(server, &all));
    assert!(
        eventually(SOON, whole),
        "a server has no vote\n{}",
        lab.output()
    );
}

/// Every key that was acknowledged is in every server's own copy.
fn assert_nothing_is_lost(lab: &Lab, memory: &Memory) {
    let kept = memory.ledger.keys();
    for server in servers() {
        let mut lost = Vec::new();
        let there = eventually(SOON, || {
            let path = "/v1/kv/ledger/?keys&stale";
            let reply = lab.http(server).request("GET", path, &[], b"");
            let Some(reply) = reply.ok().filter(|reply| reply.status == 200) else {
                return false;
            };
            let found: BTreeSet<String> = serde_json::from_slice(&reply.body).unwrap();
            lost = kept.iter().filter(|key| !found.contains(*key)).collect();
            lost.is_empty()
        });
        assert!(
            there,
            "s{server} lacks {} of {} acknowledged writes, such as {:?}",
            lost.len(),
            kept.len(),
            lost.first()
        );
    }
    println!("{} acknowledged keys are on every server", kept.len());
    assert!(
        eventually(SOON, || lab.agrees()),
        "the servers hold different states"
    );
}

/// What the agents were told is in every server's catalog, and what they were told to forget is not.
fn assert_instances(lab: &Lab, memory: &Memory) {
    for (agent, registered) in agents().zip(&memory.registered) {
        let registered = registered.lock().unwrap();
        assert!(!registered.there.is_empty());
        for server in servers() {
            let mut found = BTreeSet::new();
            let path = format!("/v1/health/service/{}?passing&stale", service_of(agent));
            let there = eventually(SOON, || {
                let reply = lab.http(server).request("GET", &path, &[], b"");
                let Some(reply) = reply.ok().filter(|reply| reply.status == 200) else {
                    return false;
                };
                let rows = reply.json().as_array().cloned().unwrap_or_default();
                let ids = rows.iter().filter_map(|row| row["Service"]["ID"].as_str());
                found = ids.map(str::to_owned).collect();
                registered.there.is_subset(&found) && registered.gone.is_disjoint(&found)
            });
            assert!(
                there,
                "s{server} has {found:?} of {}, where {:?} have to be\n{}",
                name(agent),
                registered.there,
                lab.output()
            );
        }
    }
}

/// For each of the common keys there is an order of what was done that one register explains.
fn assert_linearizable(memory: &Memory, seed: u64) {
    let histories = memory.histories.of.lock().unwrap();
    for (key, history) in &*histories {
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
}

fn print(account: &Account, memory: &Memory) {
    let began = account.began;
    let histories = memory.histories.of.lock().unwrap();
    let all = || histories.values().flatten();
    let unknown = all()
        .filter(|operation| operation.returned.is_none())
        .count();
    println!(
        "{} faults: {:?}",
        account.faults.values().sum::<u32>(),
        account.faults
    );
    println!(
        "{} operations on common keys, {unknown} of them with an unknown outcome; longest silence {:?}",
        all().count(),
        longest_silence(all(), began, Instant::now())
    );
    println!(
        "{} acknowledged writes of new keys; longest silence {:?}",
        memory.ledger.keys().len(),
        memory.ledger.longest_silence(began)
    );
    for (fault, failovers) in &account.failovers {
        println!("from {fault:?} to the next acknowledged write: {failovers}");
    }
    for (way, seen) in &account.seen {
        println!("from {way:?} until the agent counted as dead: {seen}");
    }
    println!("{} looks at the agents", memory.liveness.count());
}

/// A lab in which everybody runs and is known; `None` where there can be none.
fn started(seed: u64, duration: Duration) -> Option<Lab> {
    let mut lab = Lab::new()?;
    println!("WHARF_CHAOS_SEED={seed} for {duration:?}");
    everybody().for_each(|number| lab.start(number));
    let passing = |agent| status_of(lab.http(1), agent).as_deref() == Some("passing");
    let there = eventually(SOON, || agents().all(passing));
    assert!(there, "{}", lab.output());
    Some(lab)
}

fn assert_no_mistakes(liveness: &Liveness, since: Instant, lab: &Lab, seed: u64) {
    let mistakes = liveness.mistakes(since);
    assert!(
        mistakes.is_empty(),
        "seed {seed}: taken for dead without being away:\n{}\n{}",
        mistakes.join("\n"),
        lab.output()
    );
}

#[test]
fn whatever_happens_all_promises_are_kept() {
    in_network(|| {
        let (seed, duration) = (chaos_seed(), chaos_duration(15));
        let Some(mut lab) = started(seed, duration) else {
            return;
        };
        let all: Vec<Http> = everybody().map(|number| lab.http(number)).collect();
        let memory = Memory::default();
        let (stop, network) = (AtomicBool::new(false), Network::current());
        let account = thread::scope(|scope| {
            let (memory, stop, network) = (&memory, &stop, &network);
            let mut lanes = 0_u64;
            let mut chance = || {
                lanes += 1;
                Chance::new(seed.wrapping_mul(31).wrapping_add(lanes))
            };
            for _ in 0..CLIENTS {
                let (all, chance) = (all.clone(), chance());
                inside(scope, network, move || {
                    clients::client(&all, chance, stop, &memory.histories);
                });
            }
            for (number, http) in everybody().zip(all.iter().copied()) {
                let chance = chance();
                inside(scope, network, move || {
                    clients::writer(number, http, chance, stop, &memory.ledger);
                });
            }
            for (agent, registered) in agents().zip(&memory.registered) {
                let (http, chance) = (lab.http(agent), chance());
                inside(scope, network, move || {
                    clients::registrar(agent, http, chance, stop, registered);
                });
            }
            for server in servers() {
                let http = lab.http(server);
                inside(scope, network, move || {
                    memory.liveness.look(server, http, stop)
                });
            }
            // Whatever happens here, the others end.
            let _stop = StopOnDrop(stop);
            let account = play(&mut lab, memory, seed, duration);
            assert_healed(&lab);
            account
        });
        print(&account, &memory);
        assert_instances(&lab, &memory);
        assert_nothing_is_lost(&lab, &memory);
        assert_no_mistakes(&memory.liveness, account.began, &lab, seed);
        assert_linearizable(&memory, seed);
    });
}

/// Packets between agents and servers get lost: connections stall for seconds, and agents leave their servers. None of them
/// may be taken for dead, but the one that is killed.
///
/// ```text
/// WHARF_CHAOS_SECONDS=1800 cargo test -p wharf-tests --test e2e -- --exact chaos::lost_packets_kill_nobody --nocapture
/// ```
#[test]
fn lost_packets_kill_nobody() {
    in_network(|| {
        let (seed, duration) = (chaos_seed(), chaos_duration(15));
        let Some(mut lab) = started(seed, duration) else {
            return;
        };
        let mut chance = Chance::new(seed);
        for number in everybody() {
            let percent = 20 + u32::try_from(chance.below(11)).unwrap();
            println!("{} loses {percent} % of what comes", name(number));
            // Not between servers: no leader would lead for as long as it takes to find somebody dead.
            match is_server(number) {
                true => lab.lose(number, agents(), percent),
                false => lab.lose(number, servers(), percent),
            }
        }
        let (liveness, began) = (Liveness::default(), Instant::now());
        let (stop, network) = (AtomicBool::new(false), Network::current());
        thread::scope(|scope| {
            let (liveness, stop, network) = (&liveness, &stop, &network);
            for server in servers() {
                let http = lab.http(server);
                inside(scope, network, move || liveness.look(server, http, stop));
            }
            let _stop = StopOnDrop(stop);
            thread::sleep(duration);
            let agent = any_agent(&mut chance);
            liveness.goes(agent);
            let killed = Instant::now();
            lab.kill(agent);
            let dead = eventually(SEEN_WITHIN, || {
                let status = |server| status_of(lab.http(server), agent);
                servers().any(|server| status(server).as_deref() == Some("critical"))
            });
            assert!(
                dead,
                "{} is gone, and counts as alive\n{}",
                name(agent),
                lab.output()
            );
            println!("a kill was seen after {:?}", killed.elapsed());
        });
        println!("{} looks at the agents", liveness.count());
        assert_no_mistakes(&liveness, began, &lab, seed);
    });
}

/// Somebody at work in the same network.
fn inside<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    network: &'scope Network,
    work: impl FnOnce() + Send + 'scope,
) {
    scope.spawn(move || {
        network.enter();
        work();
    });
}
