//! openraft's types as we use them, and their translation from and to ours.
//!
//! Nothing outside `consensus` sees a type of openraft, and none is ever serialised: the log, the
//! snapshot and the wire have their own. A new version of openraft is a change to this
//! room only.

use std::{fmt, io, sync::Arc};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    entry::RaftEntry,
    raft::{ClientWriteResult, responder::Responder},
};
use tokio::sync::oneshot;

use super::{
    admission::Permit,
    line::Turn,
    pending::{Owed, Pending},
    runtime::Runtime,
};
use crate::{
    command::Outcome,
    log::{Entry, LogId, Membership, Payload, Server, ServerId, Vote},
};

/// The types that openraft works with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Outcome;
    type NodeId = ServerId;
    type Node = Server;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = RaftVote;
    type Payload = EntryPayload<Proposal, ServerId, Server>;
    type Entry = RaftEntryOf;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, ServerId>;
pub(super) type RaftLogId = openraft::LogId<LeaderId>;
pub(super) type RaftVote = openraft::Vote<LeaderId>;
pub(super) type RaftMembership = openraft::Membership<ServerId, Server>;
pub(super) type StoredMembership = openraft::StoredMembership<LeaderId, ServerId, Server>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, ServerId, Server>;
pub(super) type RaftEntryOf = openraft::Entry<LeaderId, EntryPayload<Proposal, ServerId, Server>>;

/// An encoded command on its way through the log. Never printed: it may hold secrets.
#[derive(Clone, PartialEq)]
pub(super) struct Proposal(pub(super) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where the answer to a proposal goes. It holds the proposal's place in flight until then, also when the
/// proposer no longer waits: the entry is in flight all the same.
pub(super) struct Reply<T> {
    owed: Owed<T>,
    _turn: Turn,
    _permit: Permit,
}

/// What becomes of a proposal.
pub(super) type Answer = ClientWriteResult<TypeConfig>;

impl<T> Reply<T> {
    pub(super) fn new(
        pending: &Arc<Pending<T>>,
        permit: Permit,
        turn: Turn,
    ) -> (Reply<T>, oneshot::Receiver<T>) {
        let (owed, answer) = pending.begin();
        let reply = Reply {
            owed,
            _turn: turn,
            _permit: permit,
        };
        (reply, answer)
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Reply<T> {
    fn on_complete(self, result: T) {
        self.owed.answer(result);
    }
}

// === to openraft ===

pub(super) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId {
        leader_id: LeaderId {
            term: id.term,
            node_id: id.leader,
        },
        index: id.index,
    }
}

pub(super) fn raft_vote(vote: Vote) -> RaftVote {
    RaftVote {
        leader_id: LeaderId {
            term: vote.term,
            node_id: vote.candidate,
        },
        committed: vote.granted,
    }
}

/// Fails for a membership that could not have been agreed on, such as a voter nobody knows.
pub(super) fn raft_membership(membership: Membership) -> io::Result<RaftMembership> {
    RaftMembership::new(membership.voters, membership.servers)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(super) fn raft_entry(entry: Entry) -> io::Result<RaftEntryOf> {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Command(command) => EntryPayload::Normal(Proposal(command)),
        Payload::Membership(membership) => EntryPayload::Membership(raft_membership(membership)?),
    };
    Ok(RaftEntryOf::new(raft_log_id(entry.id), payload))
}

// === from openraft ===

pub(super) fn log_id(id: &RaftLogId) -> LogId {
    LogId {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
    }
}

pub(super) fn vote(vote: &RaftVote) -> Vote {
    Vote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.node_id,
        granted: vote.committed,
    }
}

pub(super) fn membership(membership: &RaftMembership) -> Membership {
    Membership {
        voters: membership.get_joint_config().clone(),
        servers: membership
            .nodes()
            .map(|(id, server)| (*id, server.clone()))
            .collect(),
    }
}

pub(super) fn entry(entry: RaftEntryOf) -> Entry {
    Entry {
        id: log_id(&entry.log_id),
        payload: match entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(Proposal(command)) => Payload::Command(command),
            EntryPayload::Membership(m) => Payload::Membership(membership(&m)),
        },
    }
}
