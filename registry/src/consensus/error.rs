//! What can go wrong with consensus, from the caller's side.

use std::path::PathBuf;

use super::{DataDirError, DiskFull, Leader, RecoveryError};
use crate::snapshot::SnapshotError;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("the log cannot be opened: {0}")]
    Log(std::io::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(
        "the log begins with entry {begin}, and no snapshot in {directory} that is whole reaches so far, so a part of the \
         state is gone here. Nothing was changed. Other servers of the cluster have all of it: empty the data directory of this \
         one, and it joins them anew. If there are none, empty it too, and restore an archive of `wharf snapshot save`",
        directory = directory.display()
    )]
    Lacking { directory: PathBuf, begin: u64 },
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("the settings contradict each other: {0}")]
    Settings(String),
    #[error("the server cannot start: {0}")]
    Raft(String),
}

/// Why a proposal has no outcome. Only after [`ProposeError::OutcomeUnknown`] may it have taken
/// place; after any other it has not, and can safely be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("No cluster leader")]
    NoLeader,
    #[error("not the leader: that is {}", leader.address)]
    NotLeader { leader: Leader },
    #[error("too many changes are waiting to be written: try again later")]
    Overloaded,
    #[error(transparent)]
    DiskFull(#[from] DiskFull),
    #[error("a change of {size} bytes is larger than the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error(
        "the outcome of the change is unknown: it may or may not have taken place; see whether it has before it is tried again"
    )]
    OutcomeUnknown,
}

/// Why a read cannot be served here with the consistency it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("No cluster leader")]
    NoLeader,
    #[error("not the leader: that is {}", leader.address)]
    NotLeader { leader: Leader },
    #[error("the leader cannot reach a quorum of servers")]
    NoQuorum,
    #[error("the server is shutting down")]
    ShuttingDown,
}
