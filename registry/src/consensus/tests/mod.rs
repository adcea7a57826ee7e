mod cluster;
mod disk;
mod faults;
mod lossy;
pub(super) mod process;
mod stores;
mod suite;
pub(super) mod watch;

use std::time::Instant;

use uuid::Uuid;

use super::{disk::Space, *};
use crate::{
    command::KvCommand,
    log::{DiskLog, MemoryLog},
    model::KvEntry,
    snapshot::SnapshotStore,
};

fn single() -> ConsensusConfig {
    ConsensusConfig {
        on_fatal: FatalHandler::new(|reason| panic!("{reason}")),
        ..ConsensusConfig::single("s1", Uuid::from_u128(1), "127.0.0.1:8300")
    }
}

fn set(key: &str, value: &str) -> Command {
    Command::Kv(KvCommand::Set {
        entry: KvEntry {
            key: key.into(),
            value: value.to_owned().into(),
            ..KvEntry::default()
        },
    })
}

async fn wait_for_leader(consensus: &Consensus) {
    let mut changes = consensus.leader_changes();
    changes.wait_for(Option::is_some).await.unwrap();
}

async fn led(config: ConsensusConfig) -> Consensus {
    let consensus = Consensus::start(config).await.unwrap();
    wait_for_leader(&consensus).await;
    consensus
}

/// Proposes these keys, all at once, and waits for all outcomes.
async fn set_all(consensus: &Consensus, keys: std::ops::Range<u32>) {
    let proposals = keys.map(|n| {
        let consensus = consensus.clone();
        tokio::spawn(async move { consensus.propose(&set(&format!("key-{n}"), "v")).await })
    });
    for outcome in proposals.collect::<Vec<_>>() {
        assert_eq!(outcome.await.unwrap(), Ok(Outcome::Applied(true)));
    }
}

fn has_all(consensus: &Consensus, keys: std::ops::Range<u32>) -> bool {
    let view = consensus.registry().view();
    keys.into_iter()
        .all(|n| view.kv(&format!("key-{n}")).is_some())
}

fn stat(consensus: &Consensus, name: &str) -> String {
    let stats = consensus.stats();
    let stat = stats.into_iter().find(|(found, _)| found == name);
    stat.unwrap().1
}

#[tokio::test]
async fn a_single_server_leads_at_once_and_applies_what_is_proposed() {
    let started = Instant::now();
    let consensus = led(single()).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(consensus.is_leader());
    assert_eq!(consensus.leader().unwrap().name, "s1");
    assert_eq!(consensus.peers(), ["127.0.0.1:8300"]);
    assert_eq!(consensus.last_contact(), Some(Duration::ZERO));

    let outcome = consensus.propose(&set("a", "1")).await.unwrap();
    assert_eq!(outcome, Outcome::Applied(true));
    // Without a barrier: the outcome comes after the view.
    let view = consensus.registry().view();
    assert_eq!(view.kv("a").unwrap().value, "1");
    assert_eq!(stat(&consensus, "state"), "Leader");
    assert_eq!(stat(&consensus, "applied_index"), "2");
    assert_eq!(stat(&consensus, "proposals_in_flight"), "0");
    consensus.shutdown().await;
}

#[tokio::test]
async fn every_consistency_is_served_by_a_leader_alone_and_its_lease_does_not_run_out() {
    let consensus = led(single()).await;
    let all = [
        Consistency::Stale,
        Consistency::Default,
        Consistency::Consistent,
    ];
    for consistency in all {
        consensus.read_barrier(consistency).await.unwrap();
    }
    assert!(consensus.inner.leads_alone_and_settled());
    // Longer than the lease, without a write: openraft's own lease read still holds.
    tokio::time::pause();
    tokio::time::advance(Timings::single().election_max * 10).await;
    let read = consensus
        .inner
        .raft
        .ensure_linearizable(ReadPolicy::LeaseRead);
    read.await.unwrap();
    consensus.shutdown().await;
}

#[tokio::test]
async fn many_proposers_are_served_in_batches() {
    let consensus = led(single()).await;
    set_all(&consensus, 0..2000).await;
    assert!(has_all(&consensus, 0..2000));
    assert_eq!(stat(&consensus, "applied_index"), "2001");
    consensus.shutdown().await;
}

#[tokio::test]
async fn after_a_shutdown_everything_says_so() {
    let consensus = led(single()).await;
    consensus.shutdown().await;
    let refused = consensus.propose(&set("a", "1")).await;
    assert_eq!(refused, Err(ProposeError::ShuttingDown));
    let refused = consensus.read_barrier(Consistency::Consistent).await;
    assert_eq!(refused, Err(ReadError::ShuttingDown));
    assert_eq!(consensus.leader(), None);
    consensus.shutdown().await;
}

#[tokio::test]
async fn a_server_that_is_not_to_found_a_cluster_waits() {
    let config = ConsensusConfig {
        bootstrap: false,
        ..single()
    };
    let consensus = Consensus::start(config).await.unwrap();
    assert_eq!(consensus.leader(), None);
    assert_eq!(consensus.last_contact(), None);
    let refused = consensus.propose(&set("a", "1")).await;
    assert_eq!(refused, Err(ProposeError::NoLeader));
    let refused = consensus.read_barrier(Consistency::Default).await;
    assert_eq!(refused, Err(ReadError::NoLeader));
    consensus.read_barrier(Consistency::Stale).await.unwrap();
    consensus.shutdown().await;
}

#[tokio::test]
async fn snapshots_in_memory_shorten_the_log() {
    let config = ConsensusConfig {
        snapshots: SnapshotPolicy {
            entries: 100,
            ..SnapshotPolicy::default()
        },
        ..single()
    };
    let consensus = led(config).await;
    for round in 0..4 {
        set_all(&consensus, round * 150..(round + 1) * 150).await;
        snapshot_after(&consensus, u64::from(round * 150)).await;
    }
    purged_after(&consensus, 0).await;
    let log = consensus.inner.log.state();
    let snapshot = consensus.inner.snapshots.store.current().unwrap();
    assert!(log.purged.unwrap().index < snapshot.meta().index());
    assert_eq!(consensus.inner.log.read(0..1, usize::MAX).unwrap(), []);
    consensus.shutdown().await;
}

/// Waits for a snapshot that contains more than the entry at `index`.
async fn snapshot_after(consensus: &Consensus, index: u64) {
    let wait = consensus.inner.raft.wait(Some(Duration::from_secs(10)));
    let taken = wait.metrics(
        |m| m.snapshot.is_some_and(|id| id.index > index),
        "snapshot",
    );
    taken.await.unwrap();
}

async fn purged_after(consensus: &Consensus, index: u64) {
    let wait = consensus.inner.raft.wait(Some(Duration::from_secs(10)));
    let purged = wait.metrics(|m| m.purged.is_some_and(|id| id.index > index), "purge");
    purged.await.unwrap();
}
