//! What a log holds: entries, the vote, and who the servers are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use uuid::Uuid;

/// The identity of a server for as long as its data lives. A server that lost its data comes back
/// under a new one: a voter that forgot what it acknowledged must not vote again under its old name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub Uuid);

/// How a server is called and reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    /// Where its peers reach it: `host:port`.
    pub address: String,
}

/// The place of an entry: which leader wrote it, and where. Ordered by term, then leader, then
/// index, which is the order in which Raft prefers one log to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    pub term: u64,
    pub leader: ServerId,
    pub index: u64,
}

/// For whom this server voted, and whether a quorum did the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    pub term: u64,
    pub candidate: ServerId,
    pub granted: bool,
}

/// The voters and learners of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The sets of voters; more than one while a change is under way, and then each has its quorum.
    pub voters: Vec<BTreeSet<ServerId>>,
    /// Every member. One that is in no set of voters is a learner.
    pub servers: BTreeMap<ServerId, Server>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The first entry of a leader's term.
    Blank,
    /// An encoded [`crate::Command`].
    Command(Bytes),
    Membership(Membership),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    pub payload: Payload,
}

impl Payload {
    /// Roughly the memory and disk that the payload takes, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Payload::Blank => 0,
            Payload::Command(bytes) => bytes.len(),
            Payload::Membership(membership) => membership
                .servers
                .values()
                .map(|server| 64 + server.name.len() + server.address.len())
                .sum(),
        }
    }
}

impl Entry {
    /// Roughly the memory and disk that the entry takes, in bytes.
    pub fn size(&self) -> usize {
        ENTRY_OVERHEAD + self.payload.size()
    }
}

/// Log id, record header and checksum.
const ENTRY_OVERHEAD: usize = 56;

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}

impl From<Uuid> for ServerId {
    fn from(uuid: Uuid) -> ServerId {
        ServerId(uuid)
    }
}
