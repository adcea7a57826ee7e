//! What a server finds in its data directory when it starts.

use std::{fs, path::Path};

use super::*;
use crate::{
    log::{Entry, LogId, Membership, OnDurable, Payload, Vote},
    snapshot::SnapshotMeta,
};

fn at(directory: &Path) -> ConsensusConfig {
    ConsensusConfig {
        data_dir: Some(directory.to_owned()),
        snapshots: SnapshotPolicy {
            entries: 100,
            ..SnapshotPolicy::default()
        },
        ..single()
    }
}

#[tokio::test]
async fn a_log_that_begins_after_the_last_whole_snapshot_stops_the_start_and_a_recovery() {
    let directory = tempfile::tempdir().unwrap();
    let consensus = led(at(directory.path())).await;
    for round in 0..3 {
        set_all(&consensus, round * 150..(round + 1) * 150).await;
        snapshot_after(&consensus, u64::from(round * 150)).await;
    }
    purged_after(&consensus, 0).await;
    let id = consensus.id();
    consensus.shutdown().await;
    drop(consensus);

    let raft = directory.path().join("raft");
    for entry in fs::read_dir(raft.join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let refused = async || {
        let error = Consensus::start(at(directory.path())).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StartError::Lacking { .. }), "{text}");
        let snapshots = raft.join("snapshots").display().to_string();
        assert!(text.contains(&snapshots), "{text}");
    };
    refused().await;
    // A peers file says who the servers are, and not that what is missing is not needed.
    let peers = format!(r#"[{{"id": "{id}", "address": "127.0.0.1:8300"}}]"#);
    fs::write(raft.join("peers.json"), peers).unwrap();
    refused().await;
    assert!(raft.join("peers.json").exists());
}

/// A server that was killed when it had the snapshot of the leader, and before its log had followed.
#[tokio::test]
async fn a_snapshot_takes_the_place_of_what_a_former_leader_wrote() {
    let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let id = |term, leader, index| LogId {
        term,
        leader: ServerId(leader),
        index,
    };
    let membership = Membership {
        voters: vec![[ServerId(own)].into()],
        servers: [(ServerId(own), Server::default())].into(),
    };
    // The snapshot ends within the log, shortened or not; where the log does; and beyond it.
    for (purged, last) in [(None, 20), (Some(8), 20), (None, 10), (None, 5)] {
        let directory = tempfile::tempdir().unwrap();
        let config = ConsensusConfig {
            node_uuid: own,
            ..at(directory.path())
        };
        let opened = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || opened::Opened::open(&config).unwrap())
        };
        let opened = opened.await.unwrap();
        let first = Entry {
            id: id(1, own, 0),
            payload: Payload::Membership(membership.clone()),
        };
        let keys = (1..=last).map(|index| Entry {
            id: id(1, own, index),
            payload: Payload::Command(set(&format!("key-{index}"), "v").encode()),
        });
        let entries = std::iter::once(first).chain(keys).collect();
        let ignored = || OnDurable::new(|done| done.unwrap());
        opened.log.append(entries, ignored()).unwrap();
        let vote = Vote {
            term: 2,
            candidate: ServerId(other),
            granted: true,
        };
        opened.log.save_vote(vote, ignored()).unwrap();
        if let Some(index) = purged {
            opened.log.purge(id(1, own, index)).unwrap();
        }
        let meta = SnapshotMeta {
            last: Some(id(2, other, 10)),
            membership: membership.clone(),
            membership_id: Some(id(1, own, 0)),
        };
        opened.snapshots.write(&meta, std::iter::empty()).unwrap();
        opened.log.close().unwrap();
        drop(opened);

        let consensus = led(config).await;
        set_all(&consensus, 100..110).await;
        assert!(has_all(&consensus, 100..110));
        let view = consensus.registry().view();
        assert!(view.kv("key-3").is_none() && view.kv("key-15").is_none());
        assert!(consensus.inner.log.state().purged >= meta.last);
        consensus.shutdown().await;
    }
}
