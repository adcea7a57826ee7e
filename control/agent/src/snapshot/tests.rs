use std::sync::Mutex;

use wharf_registry::{
    Outcome, Registry,
    command::{KvCommand, Refusal, RestoreRefusal},
    model::KvEntry,
};

use super::*;
use crate::cluster::{BoxFuture, Consistency, Leader, testing::Solo};

async fn set(cluster: &dyn Cluster, key: &str, value: Vec<u8>) {
    let entry = KvEntry {
        key: key.into(),
        value: value.into(),
        ..KvEntry::default()
    };
    let set = Command::Kv(KvCommand::Set { entry });
    cluster.write(set).await.unwrap();
}

fn snapshots() -> Snapshots {
    Snapshots::new(std::env::temp_dir())
}

fn arrived(mut archive: impl Read) -> Arriving {
    let mut arriving = snapshots().receive().unwrap();
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).unwrap();
    arriving.write(&bytes).unwrap();
    arriving
}

/// Random bytes, which do not become less: several parts.
fn noise(len: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A cluster that forgets to answer, or loses its leader, now and then.
#[derive(Debug)]
struct Shaky {
    inner: Solo,
    /// What the next proposals fail with; and whether they took place all the same.
    failures: Mutex<Vec<(ClusterError, bool)>>,
    proposed: Mutex<usize>,
}

impl Cluster for Shaky {
    fn registry(&self) -> &Registry {
        self.inner.registry()
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>> {
        Box::pin(async move {
            *self.proposed.lock().unwrap() += 1;
            let failure = self.failures.lock().unwrap().pop();
            match failure {
                None => self.inner.propose(command).await,
                Some((error, done)) => {
                    if done {
                        self.inner.propose(command).await.unwrap();
                    }
                    Err(error)
                }
            }
        })
    }

    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.inner.barrier(consistency)
    }

    fn leader(&self) -> Option<Leader> {
        self.inner.leader()
    }

    fn peers(&self) -> Vec<String> {
        self.inner.peers()
    }

    fn term(&self) -> u64 {
        self.inner.term()
    }

    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        self.inner.leader_changed()
    }

    fn last_contact(&self) -> Option<Duration> {
        self.inner.last_contact()
    }

    fn stats(&self) -> Vec<(String, String)> {
        self.inner.stats()
    }
}

fn shaky(failures: Vec<(ClusterError, bool)>) -> Shaky {
    Shaky {
        inner: Solo::new(),
        failures: Mutex::new(failures),
        proposed: Mutex::new(0),
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_saved_is_there_again_over_every_stumble_of_the_cluster() {
    let source = Solo::new();
    let big = noise(MAX_RESTORE_PART - 1);
    for key in ["a", "b", "c"] {
        set(&source, key, big.clone()).await;
    }
    let saved = snapshots().save(&source).await.unwrap();
    assert_eq!(saved.meta.index, source.registry().view().applied());

    let unknown = || ClusterError::OutcomeUnknown("who knows".into());
    let target = shaky(vec![
        (unknown(), true),
        (ClusterError::NoLeader, false),
        (unknown(), false),
    ]);
    let meta = snapshots()
        .restore(&target, arrived(saved.archive))
        .await
        .unwrap();
    assert_eq!(meta, saved.meta);
    let view = target.registry().view();
    assert_eq!(view.kv("c").unwrap().value, big);
    assert!(view.restoring().is_none());
    assert!(*target.proposed.lock().unwrap() > 3 + 3);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_stays_away_keeps_its_state() {
    let source = Solo::new();
    set(&source, "a", vec![1]).await;
    let saved = snapshots().save(&source).await.unwrap();
    let target = shaky(vec![(ClusterError::NoLeader, false); ATTEMPTS]);
    set(&target.inner, "mine", vec![2]).await;
    let error = snapshots()
        .restore(&target, arrived(saved.archive))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        SnapshotsError::Cluster(ClusterError::NoLeader)
    ));
    assert!(target.registry().view().kv("mine").is_some());
}

#[tokio::test]
async fn another_restore_in_between_is_told() {
    let source = Solo::new();
    set(&source, "a", vec![1]).await;
    let saved = snapshots().save(&source).await.unwrap();
    let refusal = RestoreRefusal::Superseded;
    let target = shaky(vec![(
        ClusterError::Refused(Refusal::Restore(refusal)),
        false,
    )]);
    let error = snapshots()
        .restore(&target, arrived(saved.archive))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another restore has begun"));
}

#[tokio::test]
async fn an_archive_is_checked_before_anything_is_proposed() {
    let source = Solo::new();
    set(&source, "a", noise(4000)).await;
    let mut saved = snapshots().save(&source).await.unwrap();
    let mut bytes = Vec::new();
    saved.archive.read_to_end(&mut bytes).unwrap();
    let inspected = inspect(&bytes[..]).unwrap();
    assert_eq!(inspected.meta, saved.meta);
    assert!(inspected.tables.iter().any(|table| table.name == "KV"));
    let target = shaky(Vec::new());
    for bad in [&bytes[..bytes.len() - 1], &bytes[..100], b"hello"] {
        let error = snapshots()
            .restore(&target, arrived(bad))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("failed to read snapshot file"),
            "{error}"
        );
    }
    assert_eq!(*target.proposed.lock().unwrap(), 0);
}

#[tokio::test]
async fn one_at_a_time() {
    let snapshots = snapshots();
    let saved = snapshots.save(&Solo::new()).await.unwrap();
    let busy = snapshots.save(&Solo::new()).await.unwrap_err();
    assert!(matches!(busy, SnapshotsError::Busy));
    assert!(matches!(snapshots.receive(), Err(SnapshotsError::Busy)));
    drop(saved);
    snapshots.receive().unwrap();
}
