//! Servers and clients, with everything that may go wrong at once, on a clock that jumps.
//!
//! Disks lose what was not synced, messages are lost and late, links are cut in every shape, servers crash one by one
//! and all together, are stopped and go on, join and leave, and their clocks differ. Clients read, write and
//! compare-and-set through servers of their choice, and watch keys. In the end the history of each key must be that of
//! a single register, every watch must have kept its promises, and all servers must hold the same. Client agents go from
//! server to server; what they hold must be what their server has, whenever they are told something.
//!
//! A seed repeats all of it, down to each message: [`super::super::process`] has the dice, and nothing else is left to
//! chance. `WHARF_SIM_SEED` plays one, `WHARF_SIM_SEEDS` so many (from `WHARF_SIM_FROM` on), and with
//! `WHARF_SIM_TRACE` what happened is written to that file.
//!
//! Whether it would notice is known as well: [`Break`]s are mistakes, each of which has to be found. More, of votes
//! and of clocks, are found by histories that lead there (`vote`, `pause`, `drift`).

mod agents;
mod clients;
mod drift;
mod judgement;
mod loss;
mod nemesis;
mod pause;
mod vote;

use std::panic::{AssertUnwindSafe, catch_unwind};

use wharf_tests::Chance;

use self::{
    agents::Agent,
    clients::{Shared, Watch},
};
use super::{
    super::lossy::Flaw,
    machines::{Cluster, Disks, server_id},
    net::Net,
    *,
};

/// How many histories a test run plays.
const SEEDS: u64 = 200;
/// Tests that play them, so that several processors are used.
const PARTS: u64 = 4;
const STEPS: u64 = 8;
const CLIENTS: u64 = 4;
const AGENTS: u64 = 2;
const KEYS: u64 = 3;
const MOST_SERVERS: usize = 7;
/// How much clocks may gain or lose, in millionths.
const CLOCKS_DIFFER_BY: i64 = 30_000;

/// A mistake that the simulation has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Disk(Flaw),
    /// A server that takes itself for the leader reads without asking whether its lease holds.
    LeaseNotChecked,
    /// A watch begins after the view was loaded.
    WakeMissed,
}

/// One of them, if there is any.
fn any<T>(chance: &mut Chance, mut all: Vec<T>) -> Option<T> {
    let count = all.len() as u64;
    (count > 0).then(|| all.swap_remove(usize::try_from(chance.below(count)).unwrap()))
}

/// How much was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Played {
    histories: usize,
    operations: usize,
    /// Of agents with servers, and what they changed there.
    sessions: usize,
    changes: usize,
}

/// Plays one history. Panics with what is wrong.
async fn history(seed: u64, broken: Option<Break>, net: Arc<Net>) -> Played {
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
    cluster.net = net;
    cluster.snapshots.entries = 20 + chance.below(200);
    cluster.chance = Chance::new(chance.below(1 << 60));
    cluster.clocks_differ_by = CLOCKS_DIFFER_BY;
    cluster.disks = Some(Disks {
        chance: Chance::new(chance.below(1 << 60)),
        flaw,
    });
    let mut cluster = cluster.found(count).await;
    let shared = Shared::new(cluster.net.clone(), broken);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(shared.clone().client(seed * 100 + number)))
        .collect();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| Agent::start(&shared, number.into(), chance.below(1 << 60)))
        .collect();
    let mut watches = Vec::new();
    let mut next_id = 100;
    for step in 0..STEPS {
        nemesis::strike(&mut cluster, &agents, &mut chance, &mut next_id).await;
        tokio::time::sleep(chance.millis(50, 2500)).await;
        if chance.below(3) > 0 {
            nemesis::heal(&mut cluster, &agents).await;
            tokio::time::sleep(chance.millis(50, 1500)).await;
        }
        if let Some(at) = any(&mut chance, cluster.net.hosts()) {
            watches.push(Watch::begin(at, step % KEYS, broken));
        }
    }
    nemesis::heal(&mut cluster, &agents).await;
    shared.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    judgement::judge(&mut cluster, &shared, &watches, &agents, &mut chance).await;
    let histories = shared.histories.lock().unwrap();
    let figures = agents.iter().map(Agent::figures);
    Played {
        histories: 1,
        operations: histories.values().map(Vec::len).sum(),
        sessions: figures.clone().map(|figures| figures.0).sum(),
        changes: figures.map(|figures| figures.1).sum(),
    }
}

/// Plays it on a clock of its own. An error is what was found.
fn play(seed: u64, broken: Option<Break>) -> Result<Played, String> {
    paused(async { history(seed, broken, Arc::default()).await })
}

/// Plays it and returns everything that happened, too.
fn play_traced(seed: u64, broken: Option<Break>) -> (Result<Played, String>, Vec<String>) {
    let mut net = None;
    let played = paused(async {
        let traced = net.insert(Arc::new(Net::traced())).clone();
        history(seed, broken, traced).await
    });
    (played, net.map(|net| net.events()).unwrap_or_default())
}

fn paused<T>(history: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
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

/// Plays one part of the histories.
fn histories(part: u64) {
    let from = number("WHARF_SIM_FROM").unwrap_or(0);
    let seeds = match number("WHARF_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("WHARF_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let trace = std::env::var_os("WHARF_SIM_TRACE");
    let (mut all, mut wrong) = (Played::default(), Vec::new());
    for seed in seeds.filter(|seed| seed % PARTS == part) {
        let played = match &trace {
            None => play(seed, None),
            Some(path) => {
                let (played, events) = play_traced(seed, None);
                std::fs::write(path, events.join("\n")).unwrap();
                played
            }
        };
        match played {
            Ok(played) => {
                all.histories += played.histories;
                all.operations += played.operations;
                all.sessions += played.sessions;
                all.changes += played.changes;
            }
            Err(reason) => wrong.push(format!("WHARF_SIM_SEED={seed}: {reason}")),
        }
    }
    println!("{all:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let few = all.operations < 50 * all.histories || all.sessions < 2 * all.histories;
    assert!(!few && all.changes >= 5 * all.histories, "little happened");
}

#[test]
fn histories_are_linearizable_and_watches_keep_their_promises_1() {
    histories(0);
}

#[test]
fn histories_are_linearizable_and_watches_keep_their_promises_2() {
    histories(1);
}

#[test]
fn histories_are_linearizable_and_watches_keep_their_promises_3() {
    histories(2);
}

#[test]
fn histories_are_linearizable_and_watches_keep_their_promises_4() {
    histories(3);
}

/// The same faults, operations, messages and leaders, at the same times.
#[test]
fn a_seed_repeats_its_history() {
    for seed in 0..6 {
        let (first, again) = (play_traced(seed, None), play_traced(seed, None));
        let pairs = first.1.iter().zip(&again.1).enumerate();
        for (at, (one, other)) in pairs {
            assert_eq!(one, other, "event {at} of seed {seed}");
        }
        assert_eq!(first.1.len(), again.1.len(), "events of seed {seed}");
        assert_eq!(first.0, again.0);
        assert!(first.1.len() > 1000, "nothing happened");
    }
}

/// Plays until the mistake is found.
fn is_found(broken: Break, within: u64) {
    let found = (0..within).find_map(|seed| Some((seed, play(seed, Some(broken)).err()?)));
    let (seed, wrong) = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
    println!("{broken:?} is found by history {}: {wrong}", seed + 1);
}

#[test]
fn an_fsync_that_is_reported_early_is_found() {
    is_found(Break::Disk(Flaw::EarlyFsync), 40);
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
