//! A whole state on its way through the log: in parts, as it is too large for one entry.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{Str, platform::UnixNanos};

/// The largest part, in bytes.
pub const MAX_RESTORE_PART: usize = 512 << 10;

/// Replaces the state by that of a snapshot. The parts, one after the other, are the snapshot, compressed with gzip.
/// There is one restore at a time: whoever begins another takes the place of the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RestoreCommand {
    /// The part number `at`; number 0 begins. The one before it may come again: its sender did not hear of it.
    Part {
        /// A UUID of this restore.
        id: Str,
        at: u32,
        bytes: Bytes,
        time: UnixNanos,
    },
    /// All have come: the state is replaced, or nothing of it changes.
    Finish { id: Str, parts: u32 },
    /// Forgets the parts.
    Abandon { id: Str },
}

/// Why a restore did not take place. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RestoreRefusal {
    #[error("another restore has begun: this one is abandoned")]
    Superseded,
    #[error("part {at} of the restore came, where part {expected} was to follow")]
    OutOfOrder { at: u32, expected: u32 },
    #[error("a part of a restore has at most {MAX_RESTORE_PART} bytes, not {0}")]
    PartTooLarge(usize),
    #[error("the snapshot cannot be restored: {0}")]
    Snapshot(String),
}
