//! The snapshots.

use std::fs;

use uuid::Uuid;
use wharf_registry::{
    Command, Committed, Replica, View,
    command::KvCommand,
    log::{LogId, ServerId},
    model::KvEntry,
    snapshot::{SnapshotMeta, SnapshotStore},
};

use super::*;

/// The snapshots that a server takes one after the other; every third comes from a peer.
const SNAPSHOTS: usize = 5;

fn meta(step: usize) -> SnapshotMeta {
    SnapshotMeta {
        last: Some(LogId {
            term: 1,
            leader: ServerId(Uuid::from_u128(1)),
            index: step as u64 * 10,
        }),
        ..SnapshotMeta::default()
    }
}

/// The state at each step, from nothing.
fn views(seed: u64) -> Vec<std::sync::Arc<View>> {
    let mut chance = Chance::new(seed);
    let mut replica = Replica::new();
    let mut views = vec![replica.freeze()];
    for step in 1..=SNAPSHOTS {
        let value: Vec<u8> = (0..chance.below(3000))
            .map(|_| chance.below(256) as u8)
            .collect();
        let entry = KvEntry {
            key: format!("key-{step}").into(),
            value: value.into(),
            ..KvEntry::default()
        };
        let command = Command::Kv(KvCommand::Set { entry });
        let entry = Committed {
            index: step as u64 * 10,
            command: Some(command.encode()),
        };
        replica.apply(&[entry]).unwrap();
        views.push(replica.freeze());
    }
    views
}

/// Takes the snapshots until one fails. Returns the step that failed.
fn take(directory: &Path, views: &[std::sync::Arc<View>], recording: &Recording) -> Option<usize> {
    let Ok(store) = SnapshotStore::open(directory.to_owned()) else {
        return Some(0);
    };
    for (step, view) in views.iter().enumerate().skip(1) {
        recording.mark(Op::Issued(step));
        let taken = if step % 3 == 0 {
            let peer = SnapshotStore::in_memory();
            let snapshot = peer.write(&meta(step), view.records()).unwrap();
            let received = store.receive(snapshot.bytes());
            received.and_then(|snapshot| store.adopt(&snapshot))
        } else {
            store.write(&meta(step), view.records()).map(|_| ())
        };
        if taken.is_err() {
            // What was current before is still there.
            let current = store.current().map(|current| current.meta().clone());
            assert_eq!(current, (step > 1).then(|| meta(step - 1)));
            return Some(step);
        }
        recording.mark(Op::Acknowledged(step));
    }
    None
}

/// The newest snapshot is the last that was taken, or one that was about to be, and it is whole.
fn verify(
    directory: &Path,
    views: &[std::sync::Arc<View>],
    crash: &Crash,
) -> Result<usize, String> {
    let store = SnapshotStore::open(directory.to_owned()).map_err(|error| error.to_string())?;
    let step = match store.current() {
        None => 0,
        Some(current) => {
            let step = usize::try_from(current.meta().index()).unwrap() / 10;
            if *current.meta() != meta(step) {
                return Err(format!("another snapshot: {:?}", current.meta()));
            }
            let records = current.reader().map_err(|error| error.to_string())?;
            let records = records.collect::<Result<Vec<_>, _>>();
            let records = records.map_err(|error| error.to_string())?;
            if !records.into_iter().eq(views[step].records()) {
                return Err(format!("snapshot {step} has another content"));
            }
            step
        }
    };
    if !(crash.acknowledged..=crash.issued).contains(&step) {
        return Err(format!(
            "snapshot {step} is the newest, {} was acknowledged and {} asked for",
            crash.acknowledged, crash.issued
        ));
    }
    for file in fs::read_dir(directory).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        // No crash can make one half written under its final name.
        if !name.ends_with(".snapshot") {
            return Err(format!("{name} is left"));
        }
    }
    Ok(step)
}

#[test]
fn a_power_cut_at_any_place_leaves_the_newest_snapshot_whole() {
    let mut tried = 0;
    for seed in seeds(2) {
        let views = views(seed);
        let directory = tempfile::tempdir().unwrap();
        let recording = Recording::start(directory.path(), None);
        assert_eq!(take(directory.path(), &views, &recording), None);
        let ops = recording.ops();
        drop(recording);
        let mut chance = Chance::new(seed);
        for crash in every_crash(&ops, &mut chance, 4) {
            tried += 1;
            after(&format!("seed {seed}"), &crash, |directory| {
                verify(directory, &views, &crash)
            });
        }
    }
    println!("{tried} disks after power cuts");
}

/// The log is shortened after a snapshot that was found, so it has to stay found.
#[test]
fn what_a_restarted_process_was_shown_survives_a_power_cut() {
    let views = views(5);
    let directory = tempfile::tempdir().unwrap();
    let recording = Recording::start(directory.path(), None);
    assert_eq!(take(directory.path(), &views, &recording), None);
    let ops = recording.ops();
    drop(recording);
    let mut chance = Chance::new(5);
    for cut in 0..=ops.len() {
        let killed = Cut::new(&ops, cut).kill();
        let ops = after("killed", &killed, |directory| {
            let recording = Recording::resume(directory, ops[..cut].to_vec(), None);
            let step = verify(directory, &views, &killed)?;
            recording.mark(Op::Acknowledged(step));
            Ok(recording.ops())
        });
        for crash in Cut::new(&ops, ops.len()).crashes(&mut chance, 1) {
            after("killed, then without power", &crash, |directory| {
                verify(directory, &views, &crash)
            });
        }
    }
}

#[test]
fn a_full_disk_or_a_failed_fsync_leaves_the_snapshot_before() {
    let views = views(9);
    for kind in 0..2 {
        for at in 0.. {
            let fault = match kind {
                0 => Fault::NoSpace { from: at },
                _ => Fault::Sync { at },
            };
            let directory = tempfile::tempdir().unwrap();
            let recording = Recording::start(directory.path(), Some(fault));
            let failed = take(directory.path(), &views, &recording);
            if !recording.has_failed() {
                assert!(at > 4, "{fault:?} meets nothing any more");
                break;
            }
            let ops = recording.ops();
            drop(recording);
            assert!(failed.is_some(), "{fault:?}: nobody heard of it");
            let mut chance = Chance::new(at as u64);
            for crash in Cut::new(&ops, ops.len()).crashes(&mut chance, 4) {
                after(&format!("{fault:?}"), &crash, |directory| {
                    verify(directory, &views, &crash)
                });
            }
        }
    }
}
