//! What a server keeps.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;

fn on_disk(dir: &TempDir) -> ConsensusConfig {
    ConsensusConfig {
        data_dir: Some(dir.path().to_owned()),
        ..single()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_the_state_and_moves_on() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = led(on_disk(&dir)).await;
    set_all(&consensus, 0..50).await;
    let index = consensus.registry().view().applied();
    consensus.shutdown().await;

    let consensus = led(on_disk(&dir)).await;
    consensus.read_barrier(Consistency::Default).await.unwrap();
    assert!(has_all(&consensus, 0..50));
    assert!(consensus.registry().view().applied() > index);
    set_all(&consensus, 50..60).await;
    consensus.shutdown().await;
}

/// A copy of the directory at a moment is what a `kill -9` at that moment leaves. The disk is
/// written to while it is copied, so the log's end is often torn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = led(on_disk(&dir)).await;
    let mut copies = Vec::new();
    for round in 0..5 {
        let acknowledged = (round + 1) * 40;
        set_all(&consensus, round * 40..acknowledged).await;
        let more = {
            let consensus = consensus.clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    consensus
                        .propose(&set(&format!("more-{round}-{n}"), "v"))
                        .await
                        .unwrap();
                }
            })
        };
        let killed = tempfile::tempdir().unwrap();
        copy(dir.path(), killed.path());
        copies.push((killed, acknowledged));
        more.await.unwrap();
    }
    consensus.shutdown().await;

    for (killed, acknowledged) in copies {
        let consensus = led(on_disk(&killed)).await;
        consensus.read_barrier(Consistency::Default).await.unwrap();
        assert!(has_all(&consensus, 0..acknowledged));
        consensus.propose(&set("and on", "v")).await.unwrap();
        consensus.shutdown().await;
    }
}

/// The runtime is torn down with everything in it; nothing is shut down.
#[test]
fn whatever_was_acknowledged_survives_a_lost_runtime() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        runtime().block_on(async {
            let consensus = led(on_disk(&dir)).await;
            consensus.read_barrier(Consistency::Default).await.unwrap();
            assert!(has_all(&consensus, 0..round * 30));
            set_all(&consensus, round * 30..(round + 1) * 30).await;
        });
    }
}

#[tokio::test]
async fn a_restart_from_a_snapshot_and_the_rest_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = ConsensusConfig {
        snapshots: SnapshotPolicy {
            entries: 100,
            ..SnapshotPolicy::default()
        },
        ..on_disk(&dir)
    };
    let consensus = led(config.clone()).await;
    for round in 0..4 {
        set_all(&consensus, round * 120..(round + 1) * 120).await;
        snapshot_after(&consensus, u64::from(round * 120)).await;
    }
    set_all(&consensus, 480..500).await;
    purged_after(&consensus, 0).await;
    let records: Vec<_> = consensus.registry().view().records().collect();
    consensus.shutdown().await;

    let restart = |config: ConsensusConfig| async move {
        let consensus = led(config).await;
        consensus.read_barrier(Consistency::Default).await.unwrap();
        let view = consensus.registry().view();
        assert_ne!(stat(&consensus, "last_snapshot_index"), "0");
        consensus.shutdown().await;
        view.records().collect::<Vec<_>>()
    };
    assert!(restart(config.clone()).await == records);

    // The newest snapshot rots: the one before it and the log that was kept for it still do.
    let snapshots = dir.path().join("raft/snapshots");
    let mut files: Vec<_> = fs::read_dir(&snapshots)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let bytes = fs::read(&files[1]).unwrap();
    fs::write(&files[1], &bytes[..bytes.len() - 1]).unwrap();
    assert!(restart(config).await == records);
}

#[tokio::test]
async fn the_last_entries_stay_behind_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = led(ConsensusConfig {
        snapshots: SnapshotPolicy {
            entries: 100,
            trailing: 250,
            ..SnapshotPolicy::default()
        },
        ..on_disk(&dir)
    })
    .await;
    for round in 0..5 {
        set_all(&consensus, round * 120..(round + 1) * 120).await;
        snapshot_after(&consensus, u64::from(round * 120)).await;
    }
    purged_after(&consensus, 0).await;
    let index = |name: &str| -> u64 { stat(&consensus, name).parse().unwrap() };
    let purged = index("last_purged_index");
    assert!(purged > 0 && purged + 250 <= index("last_snapshot_index"));
    consensus.shutdown().await;
}

#[tokio::test]
async fn one_server_to_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = led(on_disk(&dir)).await;
    let error = Consensus::start(on_disk(&dir)).await.unwrap_err();
    assert!(matches!(
        error,
        StartError::DataDir(DataDirError::Locked { .. })
    ));
    assert!(error.to_string().contains("is in use by another process"));
    first.shutdown().await;

    let other = ConsensusConfig {
        node_uuid: Uuid::from_u128(2),
        ..on_disk(&dir)
    };
    let error = Consensus::start(other).await.unwrap_err();
    assert!(matches!(
        error,
        StartError::DataDir(DataDirError::OtherServer { .. })
    ));
    led(on_disk(&dir)).await.shutdown().await;
}

#[tokio::test]
async fn a_damaged_log_is_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = led(on_disk(&dir)).await;
    set_all(&consensus, 0..20).await;
    consensus.shutdown().await;
    let log = dir.path().join("raft/log");
    let chunk = fs::read_dir(&log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "wal"))
        .unwrap();
    let mut bytes = fs::read(&chunk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&chunk, bytes).unwrap();
    let error = Consensus::start(on_disk(&dir)).await.unwrap_err();
    assert!(matches!(error, StartError::Log(_)));
    assert!(error.to_string().contains("is damaged"), "{error}");
}

#[tokio::test]
async fn a_server_alone_may_change_its_address() {
    let dir = tempfile::tempdir().unwrap();
    led(on_disk(&dir)).await.shutdown().await;
    let moved = ConsensusConfig {
        server_address: "127.0.0.2:8300".to_owned(),
        ..on_disk(&dir)
    };
    let consensus = led(moved).await;
    let mut changes = consensus.leader_changes();
    let moved = changes.wait_for(|leader| {
        leader
            .as_ref()
            .is_some_and(|leader| leader.address == "127.0.0.2:8300")
    });
    tokio::time::timeout(Duration::from_secs(5), moved)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(consensus.peers(), ["127.0.0.2:8300"]);
    consensus.shutdown().await;
}
