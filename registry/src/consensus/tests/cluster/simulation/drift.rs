//! A leader whose clock is slow is cut off, and voters whose clocks are fast elect another before its lease is over by its
//! own: it takes a candidate that waits for nothing but their votes. What a leader reads by lease ends before that.

use wharf_tests::Chance;

use super::{super::*, paused};

/// By how many millionths the leader's clock is slow and that of the others fast: both together less than a tenth.
const WITHIN: i64 = 45_000;
const BEYOND: i64 = 100_000;

/// The voter is one that acknowledged the leader last, and goes on or restarts.
async fn cut_off_leader(seed: u64, restarts: bool, differ_by: i64) {
    const LEADER: usize = 0;
    const CANDIDATE: usize = 1;
    const VOTER: usize = 2;
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    let mut cluster = cluster.found(3).await;
    for at in [CANDIDATE, VOTER, LEADER] {
        cluster.crash(at).await;
        cluster.machines[at].gains = match at {
            LEADER => -differ_by,
            _ => differ_by,
        };
        cluster.start(at).await;
        cluster.leader().await;
    }
    let [leader, candidate, voter] = [LEADER, CANDIDATE, VOTER].map(|at| cluster.machines[at].id);
    while cluster.leader().await != LEADER {
        // It may not be ready yet.
        let at = cluster.leader().await;
        let _ = cluster.at(at).hand_over(Some(leader)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let written = cluster.at(LEADER).propose(&set("key", "old")).await;
    assert_eq!(written, Ok(Outcome::Applied(true)));
    cluster.net.partition(&[leader], &[candidate]);
    let before = Duration::from_millis(2000 + cluster.chance.below(500));
    tokio::time::sleep(before).await;
    cluster.net.partition(&[leader], &[candidate, voter]);
    if restarts {
        cluster.crash(VOTER).await;
        cluster.start(VOTER).await;
    }
    let old = cluster.at(LEADER).clone();
    let others = [CANDIDATE, VOTER].map(|at| cluster.at(at).clone());
    let writing = tokio::spawn(async move {
        loop {
            for other in &others {
                if other.propose(&set("key", "new")).await == Ok(Outcome::Applied(true)) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for _ in 0..1000 {
        let is_written = writing.is_finished();
        let reads = old.read_barrier(Consistency::Default).await.is_ok();
        let value = old.registry().view().kv("key").unwrap().value.clone();
        assert!(
            !(is_written && reads) || value == "new",
            "a leader that was cut off serves the past"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let written = tokio::time::timeout(Duration::from_secs(60), writing).await;
    written.expect("two of three elect a leader").unwrap();
}

#[test]
fn a_slow_clock_reads_nothing_old() {
    for seed in 0..30 {
        for restarts in [false, true] {
            paused(cut_off_leader(seed, restarts, WITHIN)).unwrap();
        }
    }
}

#[test]
fn clocks_that_differ_by_more_are_found() {
    for restarts in [false, true] {
        let play = |seed| paused(cut_off_leader(seed, restarts, BEYOND)).err();
        let found = (0..100).find_map(|seed| Some((seed, play(seed)?)));
        let (seed, wrong) = found.expect("clocks that run far off go unnoticed");
        println!(
            "restarts: {restarts}, found by history {}: {wrong}",
            seed + 1
        );
    }
}
