//! Servers and clients, with everything that may go wrong at once, on a clock that jumps.
//!
//! Disks lose what was not synced, messages are lost and late, links are cut in every shape, servers crash one by
//! one and all together, join and leave. Clients read, write and compare-and-set through servers of their choice,
//! and watch keys. In the end the history of each key must be that of a single register, every watch must have
//! kept its promises, and all servers must hold the same.
//!
//! `WHARF_SIM_SEEDS` plays more of it, `WHARF_SIM_SEED` one of them: the same faults and operations, but for the
//! timeouts of elections, which are openraft's own dice.
//!
//! Whether it would notice is known as well: [`Break`]s are mistakes, each of which has to be found.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use wharf_tests::{
    Chance,
    history::{Action, Operation, contradiction},
    promises::{self, Shown},
};

use super::{
    super::lossy::Flaw,
    net::{Disks, Net},
    *,
};
use crate::{command::KvCommand, model::KvEntry, watch::WatchKey};

/// How many histories a test run plays.
const SEEDS: u64 = 8;
const STEPS: u64 = 8;
const CLIENTS: u64 = 4;
const KEYS: u64 = 3;
const MOST_SERVERS: usize = 7;

/// A mistake that the simulation has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Disk(Flaw),
    /// A server that takes itself for the leader reads without asking whether its lease holds.
    LeaseNotChecked,
    /// A watch begins after the view was loaded.
    WakeMissed,
}

/// What clients share.
#[derive(Clone)]
struct Shared {
    net: Arc<Net>,
    histories: Arc<Mutex<BTreeMap<u64, Vec<Operation>>>>,
    values: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    broken: Option<Break>,
}

fn key(number: u64) -> String {
    format!("register-{number}")
}

fn value_of(entry: Option<&Arc<KvEntry>>) -> u64 {
    let text = entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap());
    text.map_or(0, |text| text.parse().unwrap())
}

/// One of them, if there is any.
fn any<T>(chance: &mut Chance, mut all: Vec<T>) -> Option<T> {
    let count = all.len() as u64;
    (count > 0).then(|| all.swap_remove(usize::try_from(chance.below(count)).unwrap()))
}

impl Shared {
    async fn read(&self, at: &Consensus, key: &str, consistency: Consistency) -> Option<u64> {
        let leads = || at.inner.raft.metrics().borrow_watched().state.is_leader();
        if self.broken == Some(Break::LeaseNotChecked) && leads() {
            return Some(value_of(at.registry().view().kv(key)));
        }
        match at.read_barrier(consistency).await {
            Ok(()) => {}
            Err(ReadError::NotLeader { leader }) => {
                let leader = self.net.server(&leader.address)?;
                let index = leader.read_index(consistency).await.ok()?;
                at.wait_applied(index).await.ok()?;
            }
            Err(_) => return None,
        }
        Some(value_of(at.registry().view().kv(key)))
    }

    /// `None`: it certainly did nothing.
    async fn propose(&self, at: &Consensus, command: &Command) -> Option<Result<Outcome, ()>> {
        let refused = match at.propose(command).await {
            Err(ProposeError::NotLeader { leader }) => {
                let leader = self.net.server(&leader.address)?;
                leader.propose(command).await
            }
            answer => answer,
        };
        match refused {
            Ok(outcome) => Some(Ok(outcome)),
            Err(ProposeError::NotLeader { .. } | ProposeError::NoLeader) => None,
            Err(_) => Some(Err(())),
        }
    }

    async fn operate(&self, at: &Consensus, key: &str, what: u64) -> Option<Action> {
        let patience = Duration::from_secs(4);
        let entry = |value: u64| KvEntry {
            key: key.into(),
            value: value.to_string().into(),
            ..KvEntry::default()
        };
        match what {
            0 | 1 => {
                let consistency = match what {
                    0 => Consistency::Default,
                    _ => Consistency::Consistent,
                };
                let read = tokio::time::timeout(patience, self.read(at, key, consistency));
                read.await.ok().flatten().map(Action::Read)
            }
            2 => {
                let view = at.registry().view();
                let from = value_of(view.kv(key));
                let index = view.kv(key).map_or(0, |entry| entry.modify_index);
                let to = self.values.fetch_add(1, Ordering::Relaxed);
                let entry = entry(to);
                let swap = Command::Kv(KvCommand::CompareAndSet { entry, index });
                match tokio::time::timeout(patience, self.propose(at, &swap)).await {
                    Ok(None) => None,
                    Ok(Some(Ok(outcome))) => {
                        let swapped = true;
                        (outcome == Outcome::Applied(true)).then_some(Action::Swap {
                            from,
                            to,
                            swapped,
                        })
                    }
                    Ok(Some(Err(()))) | Err(_) => Some(Action::MaybeSwap { from, to }),
                }
            }
            _ => {
                let value = self.values.fetch_add(1, Ordering::Relaxed);
                let entry = entry(value);
                let set = Command::Kv(KvCommand::Set { entry });
                match tokio::time::timeout(patience, self.propose(at, &set)).await {
                    Ok(None) => None,
                    Ok(Some(Ok(_))) => Some(Action::Write(value)),
                    Ok(Some(Err(()))) | Err(_) => Some(Action::MaybeWrite(value)),
                }
            }
        }
    }

    async fn client(self, seed: u64) {
        let mut chance = Chance::new(seed);
        let now = || tokio::time::Instant::now().into_std();
        while !self.stop.load(Ordering::Relaxed) {
            let number = chance.below(KEYS);
            let what = chance.below(4);
            if let Some(at) = any(&mut chance, self.net.servers()) {
                let called = now();
                if let Some(action) = self.operate(&at, &key(number), what).await {
                    let returned = (!action.is_unknown()).then(now);
                    let mut histories = self.histories.lock().unwrap();
                    histories.entry(number).or_default().push(Operation {
                        action,
                        called,
                        returned,
                    });
                }
            }
            tokio::time::sleep(chance.millis(20, 150)).await;
        }
    }

    /// Watches a key on a server, as a client with blocking queries, until all is over.
    async fn watcher(self, at: Consensus, number: u64, seen: Arc<Mutex<Vec<Shown<u64>>>>) {
        let key = key(number);
        let watch = || at.registry().watch(WatchKey::Kv(key.as_str().into()));
        loop {
            let begun = (self.broken != Some(Break::WakeMissed)).then(watch);
            let view = at.registry().view();
            let now = Shown {
                index: view.kv_index(&key),
                answer: value_of(view.kv(&key)),
            };
            {
                let mut seen = seen.lock().unwrap();
                if seen.last().is_none_or(|last| last.index != now.index) {
                    seen.push(now);
                    continue;
                }
            }
            // A thread may be interrupted anywhere, and for long.
            tokio::time::sleep(Duration::from_millis(25)).await;
            let mut watcher = begun.unwrap_or_else(watch);
            watcher.changed().await;
        }
    }
}

/// Undoes nothing, and does one thing.
async fn nemesis(cluster: &mut Cluster, chance: &mut Chance, next_id: &mut u128) {
    let running: Vec<usize> = cluster.running().map(|(at, _)| at).collect();
    let ids: Vec<ServerId> = cluster.machines.iter().map(|m| m.id).collect();
    let leader = cluster
        .running()
        .find(|(_, server)| server.is_leader())
        .map(|(at, _)| at);
    let one = any(chance, running.clone());
    let (Some(one), leader) = (one, leader) else {
        return;
    };
    let others =
        |at: usize| -> Vec<ServerId> { ids.iter().copied().filter(|id| *id != ids[at]).collect() };
    match chance.below(13) {
        0 => cluster.crash(one).await,
        1 => cluster.crash(leader.unwrap_or(one)).await,
        2 => {
            for at in running {
                cluster.crash(at).await;
            }
        }
        3 => cluster.net.partition(&[ids[one]], &others(one)),
        4 => {
            let at = leader.unwrap_or(one);
            cluster.net.partition(&[ids[at]], &others(at));
        }
        5 => {
            let split = 1 + usize::try_from(chance.below(ids.len() as u64 - 1)).unwrap();
            cluster.net.partition(&ids[..split], &ids[split..]);
        }
        // The leader reaches one, which reaches the rest.
        6 => {
            let at = leader.unwrap_or(one);
            cluster.net.partition(&[ids[at]], &others(at)[1..]);
        }
        7 => others(one)
            .into_iter()
            .for_each(|other| cluster.net.cut_one_way(other, ids[one])),
        8 => cluster
            .net
            .lose_one_of(chance.below(1 << 40), 4 + chance.below(20) as u32),
        9 => cluster.net.delay(chance.below(1 << 40)),
        // Whoever votes next does so, and crashes before it hears of what it voted for.
        10 => {
            cluster.net.cut_next_voter();
            let at = leader.unwrap_or(one);
            cluster.net.partition(&[ids[at]], &others(at));
            for _ in 0..400 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Some(voter) = cluster.net.cut_voter() {
                    let at = ids.iter().position(|id| *id == voter).unwrap();
                    cluster.crash(at).await;
                    // The former leader is back before the new one.
                    for other in others(at) {
                        cluster.net.heal_between(ids[leader.unwrap_or(one)], other);
                    }
                    cluster.net.heal_between(ids[leader.unwrap_or(one)], voter);
                    cluster.start(at).await;
                    break;
                }
            }
        }
        11 if cluster.machines.len() < MOST_SERVERS => {
            *next_id += 1;
            let name = format!("s{next_id}");
            let at = cluster.add(*next_id, &name, &format!("a{next_id}")).await;
            let (id, server) = (cluster.machines[at].id, cluster.machines[at].server.clone());
            if let Some(leader) = leader {
                let admitted = cluster.at(leader).admit(id, server);
                // It may take longer, or not succeed: then it is no member in the end.
                let _ = tokio::time::timeout(Duration::from_secs(3), admitted).await;
            }
        }
        12 if leader
            .is_some_and(|leader| leader != one && voters(cluster.at(leader)).len() > 3) =>
        {
            let removed = cluster.at(leader.unwrap()).remove(ids[one]);
            let _ = tokio::time::timeout(Duration::from_secs(3), removed).await;
        }
        _ => {}
    }
}

async fn heal(cluster: &mut Cluster) {
    cluster.net.heal();
    for at in 0..cluster.machines.len() {
        if !cluster.runs(at) {
            cluster.start(at).await;
        }
    }
}

/// Plays one history. Panics with what is wrong.
async fn history(seed: u64, broken: Option<Break>) -> usize {
    let mut chance = Chance::new(seed);
    let count = 3 + u128::from(chance.below(2)) * 2;
    let flaw = match broken {
        Some(Break::Disk(flaw)) => {
            // One server alone, or all of them would agree on the wrong order.
            let only = (flaw == Flaw::OutOfOrder).then(|| server_id(2));
            Some((flaw, only))
        }
        _ => None,
    };
    let mut cluster = Cluster::empty();
    cluster.snapshots.entries = 20 + chance.below(200);
    cluster.disks = Some(Disks {
        chance: Chance::new(chance.below(1 << 60)),
        flaw,
    });
    let mut cluster = cluster.found(count).await;
    let shared = Shared {
        net: cluster.net.clone(),
        histories: Arc::default(),
        values: Arc::new(AtomicU64::new(1)),
        stop: Arc::default(),
        broken,
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(shared.clone().client(seed * 100 + number)))
        .collect();
    let mut watches = Vec::new();
    let mut next_id = 100;
    for step in 0..STEPS {
        nemesis(&mut cluster, &mut chance, &mut next_id).await;
        tokio::time::sleep(chance.millis(50, 2500)).await;
        if chance.below(3) > 0 {
            heal(&mut cluster).await;
            tokio::time::sleep(chance.millis(50, 1500)).await;
        }
        if let Some(at) = any(&mut chance, cluster.net.servers()) {
            let (number, seen) = (step % KEYS, Arc::new(Mutex::new(Vec::new())));
            let watcher = shared.clone().watcher(at.clone(), number, seen.clone());
            watches.push((at, number, seen, tokio::spawn(watcher)));
        }
    }
    heal(&mut cluster).await;
    shared.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    // Those that came or went in the meantime are in, or out.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let leader = cluster.leader().await;
    let members: BTreeSet<_> = cluster.at(leader).members().iter().map(|m| m.id).collect();
    for at in 0..cluster.machines.len() {
        if !members.contains(&cluster.machines[at].id) {
            cluster.crash(at).await;
        }
    }
    let now = || tokio::time::Instant::now().into_std();
    for (_, server) in cluster.running() {
        for number in 0..KEYS {
            let called = now();
            let key = key(number);
            let read = shared.read(server, &key, Consistency::Consistent);
            let read = tokio::time::timeout(Duration::from_secs(30), read).await;
            let value = read.ok().flatten().expect("a healed server answers");
            let mut histories = shared.histories.lock().unwrap();
            histories.entry(number).or_default().push(Operation {
                action: Action::Read(value),
                called,
                returned: Some(now()),
            });
        }
    }
    let histories = shared.histories.lock().unwrap().clone();
    for (number, history) in &histories {
        if let Some(operation) = contradiction(history) {
            panic!("no order explains the history of key {number} at {operation:?}");
        }
    }
    let attached: BTreeSet<_> = cluster.running().map(|(_, server)| server.id()).collect();
    // Changes close to each other, and then none for a while: a watch that missed one has nothing to wake it.
    for round in 0..10 {
        let leader = cluster.at(cluster.leader().await).clone();
        for number in 0..KEYS {
            for burst in 0..3 {
                let (key, text) = (key(number), (1_000_000 + round * 10 + burst).to_string());
                let (leader, pause) = (leader.clone(), chance.millis(0, 5));
                tokio::spawn(async move { leader.propose(&set(&key, &text)).await });
                tokio::time::sleep(pause).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (at, number, seen, _) in &watches {
            let seen = seen.lock().unwrap();
            let view = at.registry().view();
            let holds = Shown {
                index: view.kv_index(&key(*number)),
                answer: value_of(view.kv(&key(*number))),
            };
            // Of a server that went its watchers learn nothing more.
            let gone = at.inner.stopping.load(Ordering::Relaxed) || !attached.contains(&at.id());
            let gap = match gone {
                true => Ok(()),
                false => promises::without_gap(&holds, &seen),
            };
            let kept = [
                gap,
                promises::without_duplicates(&seen),
                promises::index_grows(&seen),
            ];
            for kept in kept {
                kept.unwrap_or_else(|broken| panic!("a watch of key {number}: {broken}"));
            }
        }
    }
    watches.into_iter().for_each(|(.., task)| task.abort());
    cluster.agree_on(&[]).await;
    histories.values().map(Vec::len).sum()
}

/// Plays it on a clock of its own. An error is what was found.
fn play(seed: u64, broken: Option<Break>) -> Result<usize, String> {
    paused(history(seed, broken))
}

fn paused<T>(history: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let played = AssertUnwindSafe(|| runtime.block_on(history));
    catch_unwind(played).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_default()
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn histories_are_linearizable_and_watches_keep_their_promises() {
    let seeds = match number("WHARF_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WHARF_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut operations = 0;
    for seed in seeds.clone() {
        match play(seed, None) {
            Ok(number) => operations += number,
            Err(wrong) => panic!("WHARF_SIM_SEED={seed}: {wrong}"),
        }
    }
    println!("{operations} operations in {} histories", seeds.count());
}

/// Plays until the mistake is found.
fn is_found(broken: Break, within: u64) {
    let found = (0..within).find_map(|seed| Some((seed, play(seed, Some(broken)).err()?)));
    let (seed, wrong) = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
    println!("{broken:?} is found by history {}: {wrong}", seed + 1);
}

/// A server votes for another, crashes before it hears more of it, and meets the former leader. If it has forgotten
/// its vote, it helps that one to acknowledge what the new leader has never heard of.
async fn forgotten_vote(seed: u64, flaw: Option<Flaw>) {
    let mut cluster = Cluster::empty();
    cluster.disks = Some(Disks {
        chance: Chance::new(seed),
        flaw: flaw.map(|flaw| (flaw, None)),
    });
    let mut cluster = cluster.found(3).await;
    assert!(cluster.write("before").await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let former = cluster.leader().await;
    let ids: Vec<ServerId> = cluster.machines.iter().map(|m| m.id).collect();
    let others: Vec<ServerId> = ids
        .iter()
        .copied()
        .filter(|id| *id != ids[former])
        .collect();
    cluster.net.cut_next_voter();
    cluster.net.partition(&[ids[former]], &others);
    let voter = loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(voter) = cluster.net.cut_voter() {
            break ids.iter().position(|id| *id == voter).unwrap();
        }
    };
    cluster.crash(voter).await;
    cluster.net.heal_between(ids[former], ids[voter]);
    cluster.start(voter).await;
    let between = set("between", "v");
    let acknowledged = async {
        loop {
            for at in [former, voter] {
                let proposed = cluster.at(at).propose(&between);
                let proposed = tokio::time::timeout(Duration::from_secs(1), proposed).await;
                if let Ok(Ok(_)) = proposed {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let acknowledged = tokio::time::timeout(Duration::from_secs(60), acknowledged).await;
    assert!(acknowledged.is_ok(), "two of three do not get on");
    cluster.net.heal();
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster
        .agree_on(&["before".to_owned(), "between".to_owned()])
        .await;
}

#[test]
fn an_fsync_that_is_reported_early_is_found() {
    is_found(Break::Disk(Flaw::EarlyFsync), 40);
}

#[test]
fn a_vote_that_is_not_synced_is_found() {
    let flaw = Some(Flaw::VoteNotSynced);
    for seed in 0..5 {
        paused(forgotten_vote(seed, None)).unwrap();
    }
    let found = (0..20).find_map(|seed| Some((seed, paused(forgotten_vote(seed, flaw)).err()?)));
    let (seed, wrong) = found.expect("a forgotten vote goes unnoticed");
    println!("{flaw:?} is found by history {}: {wrong}", seed + 1);
}

#[test]
fn a_read_after_the_lease_is_found() {
    is_found(Break::LeaseNotChecked, 40);
}

#[test]
fn a_missed_wake_is_found() {
    is_found(Break::WakeMissed, 40);
}

#[test]
fn an_entry_that_is_applied_before_its_turn_is_found() {
    is_found(Break::Disk(Flaw::OutOfOrder), 40);
}
