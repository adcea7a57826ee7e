use std::{fs, path::Path};

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    format::{BLOCK, BlockHead, FOOTER, HASH_LEN, SKIPPABLE},
    *,
};
use crate::{
    command::{Command, KvCommand, Register},
    log::{Server, ServerId},
    model::{HealthCheck, KvEntry, Node, NodeService},
    replica::{Committed, Replica},
    state::Record,
};

fn meta(index: u64) -> SnapshotMeta {
    let server = ServerId(Uuid::from_u128(1));
    let id = |index| LogId {
        term: 1,
        leader: server,
        index,
    };
    SnapshotMeta {
        last: Some(id(index)),
        membership: Membership {
            voters: vec![[server].into()],
            servers: [(server, Server::default())].into(),
        },
        membership_id: Some(id(0)),
    }
}

fn register(node: u8, service: u8) -> Command {
    let node = format!("node-{node}");
    Command::Register(Box::new(Register {
        node: Node {
            name: node.as_str().into(),
            address: "10.0.0.1".into(),
            ..Node::default()
        },
        service: Some(NodeService {
            id: format!("web-{service}").into(),
            name: "web".into(),
            ..NodeService::default()
        }),
        checks: vec![HealthCheck {
            node: node.as_str().into(),
            id: "alive".into(),
            name: "alive".into(),
            ..HealthCheck::default()
        }],
        ..Register::default()
    }))
}

fn set(key: String, value: Vec<u8>) -> Command {
    let entry = KvEntry {
        key: key.into(),
        value: value.into(),
        ..KvEntry::default()
    };
    Command::Kv(KvCommand::Set { entry })
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let key = || "[a-c]{1,3}";
    let command = prop_oneof![
        (0u8..4, 0u8..4).prop_map(|(node, service)| register(node, service)),
        (key(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(key, value)| set(key, value)),
        key().prop_map(|key| Command::Kv(KvCommand::Delete { key: key.into() })),
    ];
    prop::collection::vec(command, 0..40)
}

fn replica(commands: &[Command]) -> Replica {
    let mut replica = Replica::new();
    for (command, index) in commands.iter().zip(1..) {
        let entry = Committed {
            index,
            command: Some(command.encode()),
        };
        replica.apply(&[entry]).unwrap();
    }
    replica
}

fn records(replica: &Replica) -> Vec<Record> {
    replica.freeze().records().collect()
}

fn written(replica: &Replica) -> (Vec<u8>, Summary) {
    let meta = meta(replica.last_applied());
    let mut writer = SnapshotWriter::new(Vec::new(), &meta).unwrap();
    for record in replica.freeze().records() {
        writer.push(&record).unwrap();
    }
    writer.finish().unwrap()
}

fn restored(bytes: &[u8]) -> Result<Replica, SnapshotError> {
    let mut replica = replica(&[set("before".into(), vec![])]);
    let before = records(&replica);
    let result = SnapshotReader::new(bytes).and_then(|reader| {
        let index = reader.meta().index();
        replica.restore(reader, index)
    });
    match result {
        Ok(()) => Ok(replica),
        Err(error) => {
            assert_eq!(
                records(&replica),
                before,
                "a refused snapshot changed something"
            );
            Err(error)
        }
    }
}

fn busy() -> Replica {
    replica(&[
        register(1, 1),
        register(2, 1),
        set("a".into(), vec![7; 300]),
        set("b".into(), vec![8; 300]),
        Command::Kv(KvCommand::Delete { key: "a".into() }),
    ])
}

proptest! {
    #[test]
    fn a_snapshot_is_the_state(commands in commands()) {
        let original = replica(&commands);
        let (bytes, summary) = written(&original);
        let copy = restored(&bytes).unwrap();
        prop_assert_eq!(records(&copy), records(&original));
        prop_assert_eq!(copy.last_applied(), original.last_applied());

        // The same state gives the same bytes, on another replica and at another time.
        let (again, same) = written(&copy);
        prop_assert_eq!(&again, &bytes);
        prop_assert_eq!(&same, &summary);
        prop_assert_eq!(SnapshotReader::new(&bytes[..]).unwrap().verify().unwrap(), summary.hash);
        prop_assert_eq!(summary.bytes, bytes.len() as u64);
        prop_assert_eq!(summary.counts.values().sum::<u64>(), records(&original).len() as u64);
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        prop_assert!(restored(&bytes).is_err());
    }
}

#[test]
fn a_cut_snapshot_is_refused_wherever_it_is_cut() {
    let (bytes, _) = written(&busy());
    for end in 0..bytes.len() {
        assert!(restored(&bytes[..end]).is_err(), "cut at {end}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(restored(&longer).is_err());
}

#[test]
fn a_damaged_snapshot_is_refused_wherever_it_is_damaged() {
    let (mut bytes, _) = written(&busy());
    for at in 0..bytes.len() {
        bytes[at] ^= 0x10;
        assert!(restored(&bytes).is_err(), "flipped at {at}");
        bytes[at] ^= 0x10;
    }
    restored(&bytes).unwrap();
}

#[test]
fn large_tables_are_cut_into_blocks() {
    let commands: Vec<Command> = (0..300)
        .map(|n| set(format!("key-{n:04}"), vec![n as u8; 4096]))
        .collect();
    let original = replica(&commands);
    let (bytes, _) = written(&original);
    assert!(bytes.len() > 4 * format::BLOCK_SIZE);
    assert_eq!(records(&restored(&bytes).unwrap()), records(&original));
}

#[test]
fn a_newer_format_is_named() {
    let (mut bytes, _) = written(&busy());
    bytes[9] = 2;
    let error = restored(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snapshot format 2 is newer than this binary's 1"
    );
}

/// A snapshot with one more table, as a newer wharf may write.
fn with_unknown_table(flags: u8) -> Vec<u8> {
    with_block(250, flags, b"???")
}

/// A snapshot that ends with a block of one record, whatever that is.
fn with_block(table: u8, flags: u8, record: &[u8; 3]) -> Vec<u8> {
    let (bytes, summary) = written(&replica(&[]));
    let footer = 2 + 9 * summary.counts.len() + HASH_LEN;
    let mut bytes = bytes[..bytes.len() - footer].to_vec();
    let body = [b"\0\0\0\x03", &record[..]].concat();
    let head = BlockHead {
        table,
        flags,
        records: 1,
        len: body.len() as u32,
    };
    bytes.push(BLOCK);
    bytes.extend(head.to_bytes());
    bytes.extend(head.checksum(&body).to_be_bytes());
    bytes.extend(body);
    let mut counts = summary.counts;
    counts.insert(table, 1);
    bytes.extend([FOOTER, counts.len() as u8]);
    for (table, records) in counts {
        bytes.push(table);
        bytes.extend(u64::to_be_bytes(records));
    }
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

#[test]
fn an_unknown_table_is_left_out_only_if_it_says_so() {
    restored(&with_unknown_table(SKIPPABLE)).unwrap();
    let error = restored(&with_unknown_table(0)).unwrap_err();
    assert!(matches!(error, SnapshotError::UnknownTable(250)));
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_store_keeps_the_last_two_and_falls_back_to_the_older() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let store = SnapshotStore::open(path.clone()).unwrap();
    assert!(store.current().is_none());
    for index in [10, 20, 30] {
        let snapshot = store
            .write(&meta(index), busy().freeze().records())
            .unwrap();
        assert_eq!(snapshot.meta(), &meta(index));
    }
    assert_eq!(store.log_needed_after(), meta(20).last);
    let files = names(&path);
    assert_eq!(files.len(), 2, "{files:?}");

    // A crash while writing leaves a temporary file; the disk damages the newest.
    fs::write(path.join("x.snapshot.0.tmp"), "half").unwrap();
    let newest = path.join(&files[1]);
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();

    let store = SnapshotStore::open(path.clone()).unwrap();
    assert_eq!(store.current().unwrap().meta(), &meta(20));
    let files = names(&path);
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files[1].ends_with(".damaged"), "{files:?}");
}

#[test]
fn a_snapshot_can_be_read_after_the_store_dropped_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path().to_owned()).unwrap();
    let first = store.write(&meta(1), busy().freeze().records()).unwrap();
    for index in 2..5 {
        store
            .write(&meta(index), busy().freeze().records())
            .unwrap();
    }
    let records: Result<Vec<Record>, _> = first.reader().unwrap().collect();
    assert_eq!(records.unwrap(), super::tests::records(&busy()));
}

#[test]
fn what_comes_from_elsewhere_is_kept_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let here = SnapshotStore::open(dir.path().to_owned()).unwrap();
    let there = SnapshotStore::in_memory();
    let snapshot = there.write(&meta(5), busy().freeze().records()).unwrap();
    here.adopt(&snapshot).unwrap();
    let kept = here.current().unwrap();
    assert_eq!(kept.meta(), snapshot.meta());
    assert_eq!(
        kept.reader().unwrap().verify().unwrap(),
        snapshot.reader().unwrap().verify().unwrap()
    );
}

#[test]
fn what_is_received_is_whole_or_refused_and_leaves_nothing_behind() {
    let (bytes, summary) = written(&busy());
    let dir = tempfile::tempdir().unwrap();
    let stores = [
        SnapshotStore::in_memory(),
        SnapshotStore::open(dir.path().to_owned()).unwrap(),
    ];
    for store in stores {
        let received = store.receive(&bytes[..]).unwrap();
        assert!(store.current().is_none(), "not before it is adopted");
        assert_eq!(names(dir.path()), Vec::<String>::new());
        assert_eq!(received.reader().unwrap().verify().unwrap(), summary.hash);
        assert!(store.receive(&bytes[..bytes.len() - 1]).is_err());
        let mut damaged = bytes.clone();
        let middle = bytes.len() / 2;
        damaged[middle] ^= 1;
        assert!(store.receive(&damaged[..]).is_err());
        assert_eq!(names(dir.path()), Vec::<String>::new());
        store.adopt(&received).unwrap();
        assert_eq!(store.current().unwrap().meta(), received.meta());
    }
}

/// A server takes what it received for its state, and ends if it cannot.
#[test]
fn what_is_received_can_be_read() {
    let store = SnapshotStore::in_memory();
    store
        .receive(&with_unknown_table(SKIPPABLE)[..])
        .expect("what may be left out is left out");
    let newer = store.receive(&with_unknown_table(0)[..]).unwrap_err();
    assert!(matches!(newer, SnapshotError::UnknownTable(250)), "{newer}");
    let unreadable = store.receive(&with_block(50, 0, &[0xc1; 3])[..]);
    let unreadable = unreadable.unwrap_err();
    for error in [newer, unreadable] {
        assert!(error.to_string().contains("newer wharf"), "{error}");
    }
}

#[test]
fn a_store_that_stops_gives_up_writing_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path().to_owned()).unwrap();
    store.stop();
    let result = store.write(&meta(1), busy().freeze().records());
    assert!(matches!(result, Err(SnapshotError::Interrupted)));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
