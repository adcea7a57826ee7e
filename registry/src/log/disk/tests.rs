use std::{
    fs,
    os::unix::fs::FileExt,
    sync::mpsc::{Receiver, channel},
};

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::log::ServerId;

fn open(dir: &TempDir) -> io::Result<DiskLog> {
    DiskLog::open(DiskLogConfig::new(dir.path().to_owned()))
}

fn id(index: u64) -> LogId {
    LogId {
        term: 1,
        leader: ServerId(Uuid::from_u128(1)),
        index,
    }
}

fn entry(index: u64) -> Entry {
    Entry {
        id: id(index),
        payload: Payload::Command(format!("command number {index}").into()),
    }
}

fn signal() -> (OnDurable, Receiver<io::Result<()>>) {
    let (sender, receiver) = channel();
    (
        OnDurable::new(move |result| sender.send(result).unwrap()),
        receiver,
    )
}

fn append(log: &DiskLog, indexes: Range<u64>) {
    let (done, durable) = signal();
    log.append(indexes.map(entry).collect(), done).unwrap();
    durable.recv().unwrap().unwrap();
}

/// A log of ten durable entries, closed.
fn ten_entries() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    for index in 0..10 {
        append(&log, index..index + 1);
    }
    log.close().unwrap();
    dir
}

fn chunk(dir: &TempDir) -> PathBuf {
    let files = fs::read_dir(dir.path()).unwrap();
    let mut chunks = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"));
    let chunk = chunks.next().unwrap();
    assert_eq!(chunks.next(), None);
    chunk
}

/// Where the text of an entry's command begins in the chunk.
fn position(bytes: &[u8], index: u64) -> usize {
    let text = format!("command number {index}");
    let mut windows = bytes.windows(text.len());
    windows
        .position(|window| window == text.as_bytes())
        .unwrap()
}

#[test]
fn what_was_durable_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote {
        term: 3,
        candidate: ServerId(Uuid::from_u128(2)),
        granted: true,
    };
    let log = open(&dir).unwrap();
    append(&log, 0..10);
    let (done, durable) = signal();
    log.save_vote(vote, done).unwrap();
    durable.recv().unwrap().unwrap();
    log.truncate_after(Some(id(7))).unwrap();
    log.purge(id(2)).unwrap();
    append(&log, 8..9);
    drop(log);

    let log = open(&dir).unwrap();
    assert_eq!(log.vote(), Some(vote));
    let state = LogState {
        purged: Some(id(2)),
        last: Some(id(8)),
    };
    assert_eq!(log.state(), state);
    let entries: Vec<Entry> = (3..9).map(entry).collect();
    assert_eq!(log.read(0..100, usize::MAX).unwrap(), entries);
}

#[test]
fn reads_are_capped_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    append(&log, 0..10);
    assert_eq!(log.read(4..9, 1).unwrap(), [entry(4)]);
    assert_eq!(log.read(4..9, 2 * entry(4).size()).unwrap().len(), 2);
    let backwards = Range { start: 9, end: 4 };
    assert_eq!(log.read(backwards, 1).unwrap(), []);
    assert_eq!(log.read(10..20, 1).unwrap(), []);
}

#[test]
fn purged_chunks_leave_the_disk_and_the_rest_is_read_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let small = DiskLogConfig {
        chunk_bytes: 1000,
        cache_bytes: 0,
        ..DiskLogConfig::new(dir.path().to_owned())
    };
    let log = DiskLog::open(small).unwrap();
    for index in 0..100 {
        append(&log, index..index + 1);
    }
    let all: Vec<Entry> = (0..100).map(entry).collect();
    assert_eq!(log.read(0..100, usize::MAX).unwrap(), all);
    let files = || fs::read_dir(dir.path()).unwrap().count();
    let before = files();
    log.purge(id(80)).unwrap();
    append(&log, 100..101);
    log.close().unwrap();
    assert!(files() <= before - 4, "{} of {before} are left", files());
}

#[test]
fn a_torn_tail_is_cut_off() {
    for torn in 1..40 {
        let dir = ten_entries();
        let chunk = chunk(&dir);
        let bytes = fs::read(&chunk).unwrap();
        fs::write(&chunk, &bytes[..bytes.len() - torn]).unwrap();

        let log = open(&dir).unwrap();
        assert_eq!(log.state().last, Some(id(8)));
        append(&log, 9..11);
        assert_eq!(log.read(9..11, usize::MAX).unwrap(), [entry(9), entry(10)]);
    }
}

#[test]
fn a_tail_of_zeros_is_cut_off() {
    let dir = ten_entries();
    let chunk = chunk(&dir);
    let mut bytes = fs::read(&chunk).unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    fs::write(&chunk, bytes).unwrap();
    assert_eq!(open(&dir).unwrap().state().last, Some(id(9)));
}

/// Every byte from the middle of entry 3 to the middle of entry 6, one after the other: whatever
/// field it is in, also a length, the entries after it must not silently vanish.
#[test]
fn a_flipped_byte_in_the_middle_is_refused_and_said() {
    let dir = ten_entries();
    let chunk = chunk(&dir);
    let bytes = fs::read(&chunk).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&chunk).unwrap();
    for at in position(&bytes, 3)..position(&bytes, 6) {
        for flipped in [bytes[at] ^ 0x01, bytes[at] ^ 0x80, bytes[at] ^ 0xff] {
            file.write_all_at(&[flipped], at as u64).unwrap();
            let error = open(&dir).unwrap_err().to_string();
            assert!(error.contains("is damaged"), "byte {at}: {error}");
        }
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    assert_eq!(open(&dir).unwrap().state().last, Some(id(9)));
}

fn large(index: u64) -> Entry {
    Entry {
        id: id(index),
        payload: Payload::Command(vec![b'x'; 2000].into()),
    }
}

/// Ten large entries, each durable before the next one.
fn ten_large_entries() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    for index in 0..10 {
        let (done, durable) = signal();
        log.append(vec![large(index)], done).unwrap();
        durable.recv().unwrap().unwrap();
    }
    log.close().unwrap();
    dir
}

/// The last write reached the disk without its middle: nobody knew of it, so the log ends before it. The same
/// in the middle of the log is damage.
#[test]
fn a_missing_sector_is_cut_off_at_the_end_and_refused_before() {
    for index in 0..10 {
        let dir = ten_large_entries();
        let chunk = chunk(&dir);
        let record = fs::read(&chunk).unwrap().len() / 10;
        let sector = (usize::try_from(index).unwrap() * record + record / 2).next_multiple_of(512);
        let file = fs::OpenOptions::new().write(true).open(&chunk).unwrap();
        file.write_all_at(&[0; 512], sector as u64).unwrap();
        match open(&dir) {
            Ok(log) => {
                assert!(index >= 8, "entry {index} was vouched for");
                assert_eq!(log.state().last, Some(id(index - 1)));
                append(&log, index..index + 1);
                log.close().unwrap();
                assert_eq!(open(&dir).unwrap().state().last, Some(id(index)));
            }
            Err(error) => {
                assert!(index < 9, "nobody was told of entry {index}: {error}");
                assert!(error.to_string().contains("is damaged"), "{error}");
            }
        }
    }
}

/// The first versions did not write up to where the log was durable.
#[test]
fn an_entry_of_the_first_versions_is_read() {
    let payload = Payload::Command("a command".into());
    let bytes = codec::encode_payload(&payload);
    let length = (bytes.len() as u32).to_be_bytes();
    let mut record = length.to_vec();
    record.extend(crc32fast::hash(&length).to_be_bytes());
    record.extend_from_slice(&bytes);
    let body = Body::decode(&record[..]).unwrap();
    assert_eq!((body.payload, body.durable), (payload, 0));
}

#[test]
fn after_an_error_nothing_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    append(&log, 0..3);
    let (done, durable) = signal();
    assert!(log.append(vec![entry(7)], done).is_err(), "there is a gap");
    assert!(durable.recv().unwrap().is_err());
    let (done, durable) = signal();
    assert!(log.append(vec![entry(3)], done).is_err());
    assert!(durable.recv().unwrap().is_err());
    drop(log);
    assert_eq!(open(&dir).unwrap().state().last, Some(id(2)));
}

#[test]
fn a_log_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir).unwrap();
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("locked by another process"), "{error}");
    first.close().unwrap();
    open(&dir).unwrap();
}

#[test]
fn a_closed_log_takes_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    log.close().unwrap();
    let (done, durable) = signal();
    assert!(log.append(vec![entry(0)], done).is_err());
    assert!(durable.recv().unwrap().is_err());
}

#[test]
fn nobody_else_may_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let small = || {
        DiskLog::open(DiskLogConfig {
            chunk_bytes: 1000,
            ..DiskLogConfig::new(dir.path().to_owned())
        })
    };
    let modes = || -> Vec<u32> {
        let files = fs::read_dir(dir.path()).unwrap();
        let mode =
            |file: io::Result<fs::DirEntry>| file.unwrap().metadata().unwrap().permissions().mode();
        files.map(mode).map(|mode| mode & 0o777).collect()
    };
    let log = small().unwrap();
    for index in 0..100 {
        append(&log, index..index + 1);
    }
    append(&log, 100..200);
    let found = modes();
    assert!(found.len() > 5, "several chunks: {found:?}");
    assert!(found.iter().all(|mode| *mode == 0o600), "{found:?}");
    log.close().unwrap();

    // An earlier version left them open to others.
    for file in fs::read_dir(dir.path()).unwrap() {
        fs::set_permissions(file.unwrap().path(), PermissionsExt::from_mode(0o644)).unwrap();
    }
    let _log = small().unwrap();
    assert!(modes().iter().all(|mode| *mode == 0o600));
}
