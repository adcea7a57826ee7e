//! A snapshot as people keep it: Consul's archive form, with our state inside.
//!
//! A gzipped tar of `meta.json` (what and when), `state.bin` (the snapshot) and `SHA256SUMS` of both. The tools that
//! read Consul's archives find everything but the state's own format where they look for it.

use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::{SnapshotError, SnapshotMeta, SnapshotReader, SnapshotWriter, hashed::Hashed};
use crate::{
    log::{LogId, ServerId},
    state::{Record, State},
    view::View,
};

const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";

/// Largest `meta.json` and `SHA256SUMS` that are read.
const MAX_TEXT: u64 = 1 << 20;

/// `meta.json`, as Consul writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ArchiveMeta {
    /// Of `meta.json`.
    pub version: u32,
    /// `TERM-INDEX-MILLISECONDS`
    #[serde(rename = "ID")]
    pub id: String,
    /// The index up to which the state has everything.
    pub index: u64,
    pub term: u64,
    pub configuration: Configuration,
    pub configuration_index: u64,
    /// Bytes of `state.bin`.
    pub size: u64,
}

/// The servers at that time. Only told: a restore does not change them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Configuration {
    pub servers: Vec<ArchivedServer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ArchivedServer {
    /// As in HashiCorp's raft, 0: a voter, 1: none.
    pub suffrage: u8,
    #[serde(rename = "ID")]
    pub id: String,
    pub address: String,
}

/// An archive that cannot be written or read. The texts begin as Consul's do.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("failed to read snapshot file: {0}")]
    Read(io::Error),
    #[error(
        "failed to read snapshot file: it is no archive (tar in gzip), or is cut short or damaged: {0}"
    )]
    NoArchive(io::Error),
    #[error("failed to read snapshot file: it has no {0}")]
    Missing(&'static str),
    #[error("failed to read snapshot file: unexpected file {0:?} in snapshot")]
    Unexpected(String),
    #[error("failed to read snapshot file: {name} is larger than {limit} bytes")]
    TooLarge { name: &'static str, limit: u64 },
    #[error("failed to read snapshot file: failed to decode snapshot metadata: {0}")]
    Meta(serde_json::Error),
    #[error(
        "failed to read snapshot file: failed checking integrity of snapshot: hash check failed for {0:?}"
    )]
    Hash(&'static str),
    #[error(
        "failed to read snapshot file: the state in it is not one of wharf: Consul's own snapshots cannot be restored yet"
    )]
    Foreign,
    #[error("failed to read snapshot file: {0}")]
    Snapshot(SnapshotError),
    #[error("cannot write the snapshot: {0}")]
    Write(io::Error),
}

/// Writes the snapshot of a view, the inside of an archive. Gives its length.
///
/// # Errors
/// What the disk says.
pub fn write_state(view: &View, term: u64, out: impl Write) -> Result<u64, SnapshotError> {
    let meta = SnapshotMeta {
        last: Some(LogId {
            term,
            index: view.log_index(),
            // Nobody's log: it is only read as a state.
            leader: ServerId::default(),
        }),
        ..SnapshotMeta::default()
    };
    let mut writer = SnapshotWriter::new(out, &meta)?;
    for record in view.records() {
        // What is on its way through the log is not of the state that people save.
        if !record.is_passing() {
            writer.push(&record)?;
        }
    }
    let (_, summary) = writer.finish()?;
    Ok(summary.bytes)
}

/// Writes an archive around a snapshot of `meta.size` bytes.
///
/// # Errors
/// What reading the state or writing the archive says.
pub fn write(out: impl Write, meta: &ArchiveMeta, state: impl Read) -> Result<(), ArchiveError> {
    let written = || -> io::Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
        let text = serde_json::to_vec(meta)?;
        append(&mut tar, META, text.len() as u64, &text[..])?;
        let mut state = Hashed::new(state);
        append(&mut tar, STATE, meta.size, &mut state)?;
        let sums = format!(
            "{:x}  {META}\n{:x}  {STATE}\n",
            Sha256::digest(&text),
            state.hash.finalize()
        );
        append(&mut tar, SUMS, sums.len() as u64, sums.as_bytes())?;
        tar.into_inner()?.finish()?.flush()
    };
    written().map_err(ArchiveError::Write)
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    tar.append(&header, content.take(size))
}

/// Reads an archive to its end: gives what it says of itself, and its snapshot to `state`. Neither is to be believed
/// before this returns without an error, and then the snapshot has still to be read.
///
/// # Errors
/// A damaged archive, or one that is too large: its snapshot may have up to `limit` bytes.
pub fn read(
    input: impl Read,
    limit: u64,
    mut state: impl Write,
) -> Result<ArchiveMeta, ArchiveError> {
    let mut archive = tar::Archive::new(GzDecoder::new(input));
    let (mut meta, mut state_sum, mut sums) = (None, None, None);
    // Raw: what extends names is no part of such an archive, and could be of any length.
    for entry in archive
        .entries()
        .map_err(ArchiveError::NoArchive)?
        .raw(true)
    {
        let mut entry = entry.map_err(ArchiveError::NoArchive)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(ArchiveError::Unexpected(name));
        }
        match &*name {
            META if meta.is_none() => meta = Some(text(&mut entry, META)?),
            SUMS if sums.is_none() => sums = Some(text(&mut entry, SUMS)?),
            STATE if state_sum.is_none() => {
                let mut content = Hashed::new(entry.take(limit + 1));
                let copied = io::copy(&mut content, &mut state).map_err(ArchiveError::Read)?;
                if copied > limit {
                    return Err(ArchiveError::TooLarge { name: STATE, limit });
                }
                state_sum = Some(format!("{:x}", content.hash.finalize()));
            }
            _ => return Err(ArchiveError::Unexpected(name)),
        }
    }
    // What follows the tar, to the end: the checksum of the gzip stream is there.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(ArchiveError::Read)?;
    let meta = meta.ok_or(ArchiveError::Missing(META))?;
    let state_sum = state_sum.ok_or(ArchiveError::Missing(STATE))?;
    let sums = sums.ok_or(ArchiveError::Missing(SUMS))?;
    let sums = String::from_utf8_lossy(&sums);
    for (name, sum) in [
        (META, format!("{:x}", Sha256::digest(&meta))),
        (STATE, state_sum),
    ] {
        let line = sums.lines().find_map(|line| {
            let (sum, of) = line.split_once(char::is_whitespace)?;
            (of.trim() == name).then_some(sum)
        });
        if line != Some(&sum) {
            return Err(ArchiveError::Hash(name));
        }
    }
    serde_json::from_slice(&meta).map_err(ArchiveError::Meta)
}

/// One table of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub records: u64,
    /// As written, without what surrounds it.
    pub bytes: u64,
}

/// Reads the snapshot of an archive as a restore does, and throws the state away. Gives what is in it.
///
/// # Errors
/// One that a restore would refuse.
pub fn check_state(input: impl Read) -> Result<Vec<Table>, ArchiveError> {
    let check = || -> Result<Vec<Table>, SnapshotError> {
        let mut reader = SnapshotReader::new(input)?;
        let mut state = State::restored(reader.meta().index())?;
        for record in reader.by_ref() {
            state.insert(record?)?;
        }
        let table = |(number, records, bytes)| Table {
            name: Record::table_name(number),
            records,
            bytes,
        };
        Ok(reader.tables().map(table).collect())
    };
    check().map_err(|error| match error {
        SnapshotError::Magic => ArchiveError::Foreign,
        error => ArchiveError::Snapshot(error),
    })
}

fn text(entry: impl Read, name: &'static str) -> Result<Vec<u8>, ArchiveError> {
    let mut text = Vec::new();
    let read = entry.take(MAX_TEXT + 1).read_to_end(&mut text);
    match read.map_err(ArchiveError::Read)? as u64 {
        0..=MAX_TEXT => Ok(text),
        _ => Err(ArchiveError::TooLarge {
            name,
            limit: MAX_TEXT,
        }),
    }
}

#[cfg(test)]
mod tests;
