//! A server with everything that it keeps: whose the data is, the log, snapshots.

use std::{fs, time::Duration};

use uuid::Uuid;
use wharf_registry::{
    Command, Consensus, ConsensusConfig, Outcome,
    command::KvCommand,
    consensus::{ClusterId, Consistency, FatalHandler, SnapshotPolicy},
    log::ServerId,
    model::KvEntry,
};

use super::*;

/// The first step is to lead: from then on the server's id is known to others. Each further one is a key.
const STEPS: usize = 24;
/// A restart comes after this one.
const RESTART: usize = 12;

fn key(step: usize) -> String {
    format!("key-{step}")
}

async fn start(directory: &Path) -> Result<Consensus, String> {
    let config = ConsensusConfig {
        data_dir: Some(directory.to_owned()),
        // Its id in the cluster is made up, and is to be found again.
        node_uuid_reused: true,
        snapshots: SnapshotPolicy {
            entries: 6,
            ..SnapshotPolicy::default()
        },
        on_fatal: FatalHandler::new(|reason| panic!("{reason}")),
        ..ConsensusConfig::single("s1", Uuid::from_u128(1), "127.0.0.1:8300")
    };
    let consensus = Consensus::start(config)
        .await
        .map_err(|error| error.to_string())?;
    let mut changes = consensus.leader_changes();
    let led = tokio::time::timeout(Duration::from_secs(20), changes.wait_for(Option::is_some));
    match led.await {
        Ok(Ok(_)) => {}
        _ => return Err("it does not lead".to_owned()),
    }
    let read = consensus.read_barrier(Consistency::Default).await;
    read.map_err(|error| error.to_string())?;
    Ok(consensus)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(future)
}

/// What others know of a server.
type Known = (ServerId, Option<ClusterId>);

fn live(recording: &Recording, directory: &Path) -> Known {
    let mut known = None;
    for steps in [1..RESTART + 1, RESTART + 1..STEPS + 1] {
        block_on(async {
            recording.mark(Op::Issued(steps.start));
            let consensus = start(directory).await.unwrap();
            let now = (consensus.id(), consensus.cluster());
            assert_eq!(*known.get_or_insert(now), now);
            for step in steps {
                recording.mark(Op::Issued(step));
                if step > 1 {
                    let entry = KvEntry {
                        key: key(step).into(),
                        ..KvEntry::default()
                    };
                    let set = Command::Kv(KvCommand::Set { entry });
                    let outcome = consensus.propose(&set).await;
                    assert_eq!(outcome, Ok(Outcome::Applied(true)));
                }
                recording.mark(Op::Acknowledged(step));
            }
            consensus.shutdown().await;
        });
    }
    known.unwrap()
}

fn verify(directory: &Path, known: Known, crash: &Crash) -> Result<usize, String> {
    block_on(async {
        let consensus = start(directory).await?;
        let now = (consensus.id(), consensus.cluster());
        let view = consensus.registry().view();
        consensus.shutdown().await;
        if crash.acknowledged > 0 && now != known {
            return Err(format!("it was {known:?} and is {now:?}"));
        }
        let there = |step: &usize| view.kv(&key(*step)).is_some();
        let last = (2..=STEPS).take_while(there).last().unwrap_or(0);
        if (last + 1..=STEPS).any(|step| there(&step)) {
            return Err(format!(
                "key {} is missing, and later ones are there",
                last + 1
            ));
        }
        if last.max(1) < crash.acknowledged || last > crash.issued {
            return Err(format!(
                "the keys up to {last} are there, {} were acknowledged and {} asked for",
                crash.acknowledged, crash.issued
            ));
        }
        Ok(last)
    })
}

/// One in so many crashes is looked at: to start a server takes a while.
const SAMPLE: u64 = 8;

#[test]
fn a_power_cut_at_any_place_leaves_a_server_that_goes_on() {
    let (mut tried, mut restarts) = (0, 0);
    for seed in seeds(1) {
        let directory = tempfile::tempdir().unwrap();
        let recording = Recording::start(directory.path(), None);
        let known = live(&recording, directory.path());
        let ops = recording.ops();
        drop(recording);
        let snapshots = fs::read_dir(directory.path().join("raft/snapshots")).unwrap();
        assert_eq!(snapshots.count(), 2, "the workload takes snapshots");
        let mut chance = Chance::new(seed);
        let (mut sample, mut again) = (Chance::new(seed ^ 0x5a), Chance::new(seed ^ 0xa5));
        for crash in every_crash(&ops, &mut chance, 1) {
            if sample.below(SAMPLE) != 0 {
                continue;
            }
            tried += 1;
            let what = format!("seed {seed}");
            let shown = after(&what, &crash, |directory| {
                if tried % 4 != 0 {
                    return verify(directory, known, &crash).map(|_| None);
                }
                // Here the power is cut again right after.
                let recording = Recording::start_with(directory, &crash.content);
                let last = verify(directory, known, &crash)?;
                recording.mark(Op::Issued(crash.issued));
                recording.mark(Op::Acknowledged(last.max(crash.acknowledged)));
                Ok(Some(recording.ops()))
            });
            let Some(ops) = shown else { continue };
            for crash in Cut::new(&ops, ops.len())
                .crashes(&mut again, 1)
                .iter()
                .take(3)
            {
                restarts += 1;
                after(&format!("{what}, again"), crash, |directory| {
                    verify(directory, known, crash)
                });
            }
        }
    }
    println!("{tried} disks after power cuts, {restarts} after another one");
}
