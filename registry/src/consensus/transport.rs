//! What servers say to each other, in our own types, and the seam behind which it travels.
//!
//! A [`Transport`] carries the messages; who receives them hands them to [`super::Consensus`], which
//! looks at every one as if a stranger had sent it ([`super::receive`]). The transport of a real server
//! is gRPC and lives with the other sockets, in the agent; that of the tests is a table in memory.

use std::{fmt, pin::Pin};

use futures_util::Stream;
use uuid::Uuid;

use super::DiskState;
use crate::{
    log::{Entry, LogId, ServerId, Vote},
    snapshot::Snapshot,
};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream, for the same reason.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// The name of a cluster: the id of the server that founded it. A server founds at most once in the
/// life of its data, so no two clusters have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom a message is for, from whom it comes, and of which cluster both have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub cluster: ClusterId,
    pub from: ServerId,
    pub to: ServerId,
}

/// What a message has to share its way with: bulk data must not hold up the sign of life of a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, and the leader's heartbeats: small, and somebody's lease runs.
    Heartbeat,
    /// Entries of the log.
    Log,
    Snapshot,
}

/// One message's way: its envelope, where the receiver listens (`host:port`), and the lane.
#[derive(Clone, Debug)]
pub struct Route {
    pub envelope: Envelope,
    pub address: String,
    pub lane: Lane,
}

/// A candidate asks for a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    pub vote: Vote,
    /// The end of the candidate's log.
    pub last: Option<LogId>,
    pub election: Election,
}

/// How serious a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Election {
    /// Only asks whether it would be voted for: nothing changes.
    Probe,
    Campaign,
    /// On behalf of the leader, whose lease therefore does not count.
    HandOver,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// The vote that the answering server holds now.
    pub vote: Vote,
    pub granted: bool,
    pub last: Option<LogId>,
}

/// Entries that follow `previous`; without entries, a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    pub vote: Vote,
    pub previous: Option<LogId>,
    pub committed: Option<LogId>,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendReply {
    /// The log agrees up to the end of the request, and is durable.
    Accepted,
    /// There is no such `previous` here.
    Conflict,
    /// Another leader was elected.
    HigherVote(Vote),
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    pub append: AppendReply,
    pub disk: DiskState,
}

/// The leader asks a follower to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    pub vote: Vote,
    pub to: ServerId,
    /// The end of the leader's log, which the follower must have.
    pub last: Option<LogId>,
}

/// Why a message had no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nobody is there: trying again at once is pointless.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable { address: String, reason: String },
    /// There was a connection, and it broke or said something that makes no sense.
    #[error("{address}: {reason}")]
    Broken { address: String, reason: String },
    /// The other side does not talk to this server.
    #[error("{address} refused: {reason}")]
    Refused { address: String, reason: String },
}

/// Carries messages to other servers.
///
/// An implementation MUST deliver what [`Transport::append`] is given in order, and its replies in the
/// same order; a message that cannot be delivered ends the stream with an error. It need not retry, and
/// it must not deliver twice. Timeouts of single messages are the caller's; a connection whose other end
/// is silent MUST break within seconds.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Asks who listens at this address (`host:port`), outside of every cluster.
    fn who_is_at(&self, address: &str) -> BoxFuture<'_, Result<ServerId, TransportError>>;

    fn vote(
        &self,
        route: Route,
        request: VoteRequest,
    ) -> BoxFuture<'_, Result<VoteReply, TransportError>>;

    /// One request, one reply.
    fn heartbeat(
        &self,
        route: Route,
        request: Append,
    ) -> BoxFuture<'_, Result<HeartbeatReply, TransportError>>;

    /// Many requests on their way at once.
    fn append(
        &self,
        route: Route,
        requests: BoxStream<Append>,
    ) -> BoxFuture<'_, Result<BoxStream<Result<AppendReply, TransportError>>, TransportError>>;

    /// Sends a snapshot whole; answers with the receiver's vote when it is installed there.
    fn snapshot(
        &self,
        route: Route,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'_, Result<Vote, TransportError>>;

    fn hand_over(
        &self,
        route: Route,
        request: HandOver,
    ) -> BoxFuture<'_, Result<(), TransportError>>;
}
