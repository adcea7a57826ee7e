//! The whole state at one index, as a stream of bytes that is ours.
//!
//! A snapshot lets the log forget, starts a server quickly, and brings up a peer that is far behind.
//! It is written from a frozen view while commands go on being applied, block by block: neither the
//! writer nor the reader ever holds it whole. A reader hands out nothing from a block before its
//! checksum held, and says that it reached the end only if the hash of everything did; whoever
//! builds a state from it throws the state away otherwise.

pub mod archive;
mod format;
mod hashed;
mod reader;
mod store;
mod writer;

use std::io;

use crate::{
    log::{LogId, Membership, codec::CodecError},
    state::{Record, RecordError},
};

pub use reader::SnapshotReader;
pub use store::{Snapshot, SnapshotStore};
pub use writer::{SnapshotWriter, Summary};

/// Where in the log a snapshot stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry that it contains.
    pub last: Option<LogId>,
    /// The membership that held there, and the entry that set it.
    pub membership: Membership,
    pub membership_id: Option<LogId>,
}

impl SnapshotMeta {
    /// The index of the last entry that it contains.
    pub fn index(&self) -> u64 {
        self.last.map_or(0, |id| id.index)
    }
}

/// A snapshot that cannot be written or read. One that is refused has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("not a snapshot of wharf")]
    Magic,
    #[error("snapshot format {found} is newer than this binary's {known}")]
    Version { found: u16, known: u16 },
    #[error("the snapshot is cut short")]
    Truncated,
    #[error("the snapshot is damaged: {part} has a wrong checksum")]
    Checksum { part: &'static str },
    #[error("the snapshot is malformed: {0}")]
    Malformed(&'static str),
    #[error(
        "the snapshot holds table {0}, which this binary does not know: it is of a newer wharf, and so must this server be"
    )]
    UnknownTable(u8),
    #[error("the snapshot's header: {0}")]
    Header(#[from] CodecError),
    #[error(
        "a record of table {table} ({}) is unreadable: it is of a newer wharf, and so must this server be, or made wrongly: {source}",
        Record::table_name(*table)
    )]
    Decode {
        table: u8,
        source: rmp_serde::decode::Error,
    },
    #[error("a record cannot be written: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("the records of the snapshot contradict each other: {0}")]
    Records(#[from] RecordError),
    #[error("writing the snapshot was interrupted by the shutdown")]
    Interrupted,
}

#[cfg(test)]
mod tests;
