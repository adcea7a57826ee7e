//! A leader that is stopped, replaced, and goes on with the reads that have come meanwhile, before it hears of its
//! successor or after: there is an order for every seed.

use wharf_tests::Chance;

use super::{
    super::{net::Host, *},
    paused,
};

/// How many clients ask it.
const READERS: usize = 8;

async fn stopped_leader(seed: u64, clocks_stop: bool) {
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    cluster.clocks_stop = clocks_stop;
    let cluster = cluster.found(3).await;
    let old = cluster.leader().await;
    let written = cluster.at(old).propose(&set("key", "old")).await;
    assert_eq!(written, Ok(Outcome::Applied(true)));
    cluster.host(old).process.stop();
    let new = cluster.leader_but(old).await;
    let written = cluster.at(new).propose(&set("key", "new")).await;
    assert_eq!(written, Ok(Outcome::Applied(true)));
    let reads = (0..READERS).map(|_| {
        let host = cluster.host(old).clone();
        let read = async move {
            let server = host.consensus.clone();
            let read = host.process.run(async move {
                server.read_barrier(Consistency::Default).await.ok()?;
                Some(server.registry().view().kv("key")?.value.clone())
            });
            read.await.flatten()
        };
        tokio::spawn(read)
    });
    let reads: Vec<_> = reads.collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.host(old).process.go_on();
    for read in reads {
        let read = read.await.unwrap();
        let is_past = read.is_some_and(|value| value != "new");
        assert!(!is_past, "a leader that was stopped serves the past");
    }
    cluster.agree_on(&["key".to_owned()]).await;
}

#[test]
fn a_leader_that_was_stopped_serves_nothing_old() {
    for seed in 0..10 {
        paused(stopped_leader(seed, false)).unwrap();
    }
}

#[test]
fn a_lease_by_a_clock_that_stands_still_is_found() {
    let found = (0..20).find_map(|seed| Some((seed, paused(stopped_leader(seed, true)).err()?)));
    let (seed, wrong) = found.expect("a clock that stands still goes unnoticed");
    println!("ClockStops is found by history {}: {wrong}", seed + 1);
}

/// It is stopped while the answers to an append are on their way, to both followers' one.
async fn stopped_between_answers(seed: u64) {
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    let mut cluster = cluster.found(3).await;
    let old = cluster.leader().await;
    let written = cluster.at(old).propose(&set("key", "old")).await;
    assert_eq!(written, Ok(Outcome::Applied(true)));
    cluster.net.delay(seed);
    let Host { consensus, process } = cluster.host(old).clone();
    let proposer = consensus.clone();
    let _under_way = process.spawn(async move { proposer.propose(&set("other", "value")).await });
    let before = Duration::from_millis(cluster.chance.below(120));
    tokio::time::sleep(before).await;
    process.stop();
    let new = cluster.leader_but(old).await;
    let written = cluster.at(new).propose(&set("key", "new")).await;
    assert_eq!(written, Ok(Outcome::Applied(true)));
    process.go_on();
    for _ in 0..200 {
        let server = consensus.clone();
        let read = process.run(async move {
            server.read_barrier(Consistency::Default).await.ok()?;
            Some(server.registry().view().kv("key")?.value.clone())
        });
        let is_past = read.await.flatten().is_some_and(|value| value != "new");
        assert!(!is_past, "a leader that was stopped serves the past");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Those it hears after it goes on are to what it sent before, and renew no lease.
#[test]
fn an_answer_counts_only_for_what_it_answers() {
    for seed in 0..100 {
        paused(stopped_between_answers(seed)).unwrap_or_else(|wrong| panic!("{seed}: {wrong}"));
    }
}
