//! Taking over a state that was saved, from this log or another.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::{
    command::{KvCommand, MAX_RESTORE_PART, Refusal, RestoreCommand, RestoreRefusal},
    log::{LogId, ServerId},
    model::KvEntry,
    snapshot::{SnapshotMeta, SnapshotWriter, archive},
};

/// A replica with its log.
struct Log {
    replica: Replica,
    index: u64,
}

impl Log {
    fn at(index: u64) -> Log {
        let mut replica = Replica::new();
        let entry = Committed {
            index,
            command: None,
        };
        replica.apply(&[entry]).unwrap();
        Log { replica, index }
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let entry = Committed {
            index: self.index,
            command: Some(command.encode()),
        };
        self.replica.apply(&[entry]).unwrap().remove(0)
    }

    fn set(&mut self, key: &str) {
        let entry = KvEntry {
            key: key.into(),
            value: key.repeat(100).into_bytes().into(),
            ..KvEntry::default()
        };
        let set = self.apply(&Command::Kv(KvCommand::Set { entry }));
        assert_eq!(set, Outcome::Applied(true));
    }

    fn view(&self) -> Arc<View> {
        self.replica.registry().view()
    }

    fn restore(&mut self, command: RestoreCommand) -> Result<(), RestoreRefusal> {
        match self.apply(&Command::Restore(command)) {
            Outcome::Done => Ok(()),
            Outcome::Refused(Refusal::Restore(refusal)) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Restores what was saved, in parts of `size`.
    fn restore_all(&mut self, saved: &[u8], size: usize) -> Result<(), RestoreRefusal> {
        let parts: Vec<&[u8]> = saved.chunks(size).collect();
        for (at, bytes) in (0..).zip(&parts) {
            self.restore(part("r", at, bytes))?;
        }
        self.restore(RestoreCommand::Finish {
            id: "r".into(),
            parts: u32::try_from(parts.len()).unwrap(),
        })
    }
}

fn part(id: &str, at: u32, bytes: &[u8]) -> RestoreCommand {
    RestoreCommand::Part {
        id: id.into(),
        at,
        bytes: Bytes::copy_from_slice(bytes),
        time: 1,
    }
}

fn saved(view: &View) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    archive::write_state(view, 3, &mut out).unwrap();
    out.finish().unwrap()
}

fn rows(view: &View) -> Vec<crate::state::Record> {
    let records = view.records();
    // What differs is where it stands.
    records
        .filter(|record| !matches!(record, crate::state::Record::Indexes(_)))
        .collect()
}

#[test]
fn a_saved_state_takes_the_place_of_another_and_no_index_goes_back() {
    // Both ways: from a longer log, and from a shorter one.
    for (there, here) in [(1_000, 5), (5, 1_000)] {
        let mut source = Log::at(there);
        source.set("a");
        source.set("b");
        let mut target = Log::at(here);
        target.set("old");
        let before = target.view();
        let bytes = saved(&source.view());
        target.restore_all(&bytes, 7).unwrap();

        let after = target.view();
        assert_eq!(rows(&after), rows(&source.view()));
        assert!(after.kv("old").is_none());
        assert!(after.applied() > before.applied() && after.applied() > source.view().applied());
        assert_eq!(after.log_index(), target.index);
        assert_eq!(after.restored(), after.applied());
        assert!(after.restoring().is_none());
        // What is written next is newer than all that was seen before.
        target.set("c");
        let entry = target.view().kv("c").unwrap().modify_index;
        assert_eq!(entry, after.applied() + 1);
        // And it is kept: a snapshot of the log's own has where it stands.
        let again = saved(&target.view());
        let mut third = Log::at(1);
        third.restore_all(&again, MAX_RESTORE_PART).unwrap();
        assert!(third.view().applied() > target.view().applied());
    }
}

#[test]
fn replicas_with_half_a_restore_and_one_are_the_same() {
    let mut source = Log::at(40);
    source.set("a");
    let bytes = saved(&source.view());
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut log = Log::at(1);
    log.restore(part("r", 0, first)).unwrap();

    // A follower that is brought up to date in between, by a snapshot.
    let mut follower = Replica::new();
    let records: Vec<_> = log.view().records().collect();
    follower
        .restore::<crate::state::RecordError>(records.into_iter().map(Ok), log.index)
        .unwrap();
    let mut follower = Log {
        replica: follower,
        index: log.index,
    };
    for log in [&mut log, &mut follower] {
        log.restore(part("r", 1, second)).unwrap();
        let finish = RestoreCommand::Finish {
            id: "r".into(),
            parts: 2,
        };
        log.restore(finish).unwrap();
    }
    let all = |log: &Log| log.view().records().collect::<Vec<_>>();
    assert_eq!(all(&log), all(&follower));
    assert_eq!(log.view().applied(), follower.view().applied());
}

#[test]
fn every_watcher_is_woken_once_it_is_restored() {
    let mut source = Log::at(1);
    source.set("a");
    let mut target = Log::at(9);
    let registry = target.replica.registry();
    let mut nodes = registry.watch(WatchKey::Nodes);
    let bytes = saved(&source.view());
    target.restore(part("r", 0, &bytes)).unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut woken = |watcher: &mut Watcher| {
        std::pin::pin!(watcher.changed())
            .poll(&mut context)
            .is_ready()
    };
    assert!(!woken(&mut nodes), "a part changes nothing");
    let finish = RestoreCommand::Finish {
        id: "r".into(),
        parts: 1,
    };
    target.restore(finish).unwrap();
    assert!(woken(&mut nodes));
}

#[test]
fn what_is_damaged_missing_or_late_changes_nothing() {
    let mut source = Log::at(1);
    for key in ["a", "b", "c"] {
        source.set(key);
    }
    let bytes = saved(&source.view());
    let mut target = Log::at(1);
    target.set("mine");
    let mine = rows(&target.view());

    let mut raw = Vec::new();
    archive::write_state(&source.view(), 3, &mut raw).unwrap();
    let cut = {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(&raw[..raw.len() - 1]).unwrap();
        out.finish().unwrap()
    };
    let mut flipped = raw;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let damaged = {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(&flipped).unwrap();
        out.finish().unwrap()
    };
    let far = {
        let meta = SnapshotMeta {
            last: Some(LogId {
                term: 1,
                leader: ServerId::default(),
                index: u64::MAX,
            }),
            ..SnapshotMeta::default()
        };
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        SnapshotWriter::new(&mut out, &meta)
            .unwrap()
            .finish()
            .unwrap();
        out.finish().unwrap()
    };
    for bad in [
        &cut[..],
        &damaged,
        &far,
        b"no gzip at all",
        &bytes[..bytes.len() / 2],
    ] {
        let refusal = target.restore_all(bad, 50).unwrap_err();
        assert!(matches!(refusal, RestoreRefusal::Snapshot(_)), "{refusal}");
        assert_eq!(rows(&target.view()), mine);
    }

    target.restore(part("r", 0, b"x")).unwrap();
    // Its sender did not hear that it came.
    target.restore(part("r", 0, b"x")).unwrap();
    assert_eq!(
        target.restore(part("r", 2, b"y")),
        Err(RestoreRefusal::OutOfOrder { at: 2, expected: 1 })
    );
    assert_eq!(
        target.restore(part("r", 1, &vec![0; MAX_RESTORE_PART + 1])),
        Err(RestoreRefusal::PartTooLarge(MAX_RESTORE_PART + 1))
    );
    target.restore(part("other", 0, b"z")).unwrap();
    let finish = RestoreCommand::Finish {
        id: "r".into(),
        parts: 1,
    };
    assert_eq!(target.restore(finish), Err(RestoreRefusal::Superseded));
    target
        .restore(RestoreCommand::Abandon { id: "other".into() })
        .unwrap();
    assert!(target.view().restoring().is_none());
    assert_eq!(rows(&target.view()), mine);
}
