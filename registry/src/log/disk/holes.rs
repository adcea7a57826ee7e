//! Writes that reached the disk in part, the rear without the front.
//!
//! A disk writes sectors in any order, and so does a filesystem: a power cut in the middle of an fsync may leave
//! a file at its new length, with zeros where sectors are missing and data behind them. The library takes that for
//! damage, unless nothing but zeros follows. But nobody was told of such a write, so it must not keep a server
//! from starting: after a power cut of a whole rack it might be most of them.
//!
//! What is missing and what was damaged are told apart by two things. A sector that was never written is all
//! zeros. And every record says up to where the log was known to be durable when it was written: if one behind
//! the hole says that the place of the hole was durable, the hole came later, and is damage. Only the last one or
//! two batches of a log have nobody to vouch for them, and only there a sector that the disk turned to zeros
//! would be taken for one that never came.

use std::{
    fs::{self, OpenOptions},
    io,
};

use raft_log::{RaftLogAction, RaftLogRecord, codeq::Decode as _};

use super::{HAS_DURABLE, LOG_ID_LEN, Stored, length_word};

/// What a disk writes whole or not at all, at least.
const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// The newest chunk ends before it now.
    Cut,
    /// Something else is wrong.
    None,
}

type Record = RaftLogRecord<Stored>;

/// Cuts off what comes after a hole at the end of a log that could not be opened.
pub(super) fn mend(wal: &raft_log::chunked_wal::Config, error: &io::Error) -> io::Result<Hole> {
    // As the checksums, the decoders and the state machine of the library report what they do not like.
    if !matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::Other
    ) {
        return Ok(Hole::None);
    }
    let mut newest = None;
    for file in fs::read_dir(&wal.dir)? {
        let name = file?.file_name();
        let start = raft_log::chunked_wal::Config::parse_chunk_file_name(&name.to_string_lossy());
        newest = newest.max(start.ok());
    }
    let Some(start) = newest else {
        return Ok(Hole::None);
    };
    let path = wal.chunk_path(raft_log::ChunkId(start));
    let bytes = fs::read(&path)?;
    let good = good_until(&bytes);
    if !has_hole(&bytes, good) || is_vouched_for(&bytes[good..], start + good as u64) {
        return Ok(Hole::None);
    }
    let file = OpenOptions::new().write(true).open(&path)?;
    file.set_len(good as u64)?;
    file.sync_all()?;
    tracing::warn!(
        path,
        kept = good,
        dropped = bytes.len() - good,
        "the log ends in a write that reached the disk in part, of which nobody was told: it is dropped"
    );
    Ok(Hole::Cut)
}

/// Where the first record begins that does not verify.
fn good_until(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    loop {
        let mut next = rest;
        if rest.is_empty() || Record::decode(&mut next).is_err() {
            return bytes.len() - rest.len();
        }
        rest = next;
    }
}

/// Whether sectors are missing of the record that begins at `from`: one that has all of its own does not
/// verify for another reason.
fn has_hole(bytes: &[u8], from: usize) -> bool {
    let end = bytes.len().min(from.saturating_add(extent(&bytes[from..])));
    let mut at = from;
    while at < end {
        let next = (at + SECTOR - at % SECTOR).min(bytes.len());
        if bytes[at..next].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = next;
    }
    false
}

/// How long a record is, or may be at most if its beginning does not tell. Only that of an entry is longer than
/// a sector.
fn extent(record: &[u8]) -> usize {
    let length = || {
        let mut header = record.strip_prefix(&APPEND)?.get(LOG_ID_LEN..)?;
        let body = (length_word(&mut header).ok()? & !HAS_DURABLE) as usize;
        Some(APPEND.len() + LOG_ID_LEN + 2 * size_of::<u64>() + body + size_of::<u64>())
    };
    length().unwrap_or(SECTOR)
}

/// Whether a whole record in `rear` says that the log was durable beyond `place`, in which case it was there.
fn is_vouched_for(rear: &[u8], place: u64) -> bool {
    // Where records begin is unknown after one that cannot be read.
    (0..rear.len()).any(|at| {
        let begins = rear[at..].starts_with(&APPEND);
        let record = begins.then(|| Record::decode(&rear[at..]));
        match record {
            Some(Ok(Record::Action(RaftLogAction::Append(_, body)))) => body.durable > place,
            _ => false,
        }
    })
}

/// How a record of an entry begins in the library's format.
const APPEND: [u8; 4] = 1_u32.to_be_bytes();
