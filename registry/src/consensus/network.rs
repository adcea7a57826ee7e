//! How the core of the consensus reaches its peers: openraft's calls as messages of a [`Transport`].
//!
//! Appends are pipelined: while the first is on its way to a disk, the next ones follow, up to
//! [`IN_FLIGHT`]. Their answers come in order, so what an answer means is known from the request that it
//! belongs to; a peer cannot claim to have what it was not sent.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future, stream};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
        StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest as RaftVoteRequest, VoteResponse,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Append, AppendReply, Election, Envelope, HandOver, Lane, Route, Transport, TransportError,
    VoteRequest,
    disk::PeerDisks,
    identity::Identity,
    raft::{self, LeaderId, RaftLogId, RaftVote, TypeConfig},
    receive,
    sending::Sending,
};
use crate::{
    log::{Entry, Server, ServerId, Vote},
    snapshot::Snapshot,
};

/// What may be on its way to one peer without an answer, in bytes: enough to keep a fast link and a slow
/// disk busy, and little enough to hold in memory on both sides. One larger request goes alone.
const IN_FLIGHT: usize = 8 << 20;
/// Counted for a request beside its entries, so that empty ones are bounded too.
const REQUEST_OVERHEAD: usize = 64 << 10;
/// How long the oldest request may be without an answer before the stream is given up: an fsync on the
/// other side may take seconds, and a connection whose other end is gone breaks by itself before.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Opens a [`Peer`] for every other member.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) transport: Option<Arc<dyn Transport>>,
    pub(super) identity: Arc<Identity>,
    pub(super) own: ServerId,
    pub(super) addresses: Addresses,
    /// What the others say of their disks.
    pub(super) disks: PeerDisks,
    pub(super) sending: Sending,
}

/// Where the members are, kept up to date: a server may come back under another address while streams to
/// it are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(Arc<Mutex<BTreeMap<ServerId, String>>>);

impl Addresses {
    pub(super) fn replace(&self, addresses: BTreeMap<ServerId, String>) {
        *self.lock() = addresses;
    }

    fn set(&self, id: ServerId, address: &str) {
        self.lock().entry(id).or_insert_with(|| address.to_owned());
    }

    fn get(&self, id: ServerId) -> Option<String> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServerId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One other server, on one lane.
#[derive(Debug)]
pub(super) struct Peer {
    network: Network,
    id: ServerId,
    lane: Lane,
}

type RaftSnapshot = openraft::Snapshot<LeaderId, ServerId, Server, Snapshot>;
type Replies<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

impl Network {
    fn peer(&self, id: ServerId, server: &Server, lane: Lane) -> Peer {
        self.addresses.set(id, &server.address);
        Peer {
            network: self.clone(),
            id,
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: ServerId, server: &Server) -> Peer {
        self.peer(target, server, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: ServerId, server: &Server) -> Peer {
        self.peer(target, server, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: ServerId, server: &Server) -> Peer {
        self.peer(target, server, Lane::Snapshot)
    }
}

impl Peer {
    /// The transport and the way; without them the peer is out of reach.
    fn way(&self, lane: Lane) -> Result<(Arc<dyn Transport>, Route), Unreachable<TypeConfig>> {
        let unreachable = |reason: &str| {
            Unreachable::new(&io::Error::other(format!(
                "no connection to server {}: {reason}",
                self.id
            )))
        };
        let transport = self.network.transport.clone();
        let transport = transport.ok_or_else(|| unreachable("this server runs alone"))?;
        let cluster = self.network.identity.cluster();
        let cluster = cluster.ok_or_else(|| unreachable("this server is in no cluster"))?;
        let address = self.network.addresses.get(self.id);
        let route = Route {
            envelope: Envelope {
                cluster,
                from: self.network.own,
                to: self.id,
            },
            address: address.ok_or_else(|| unreachable("its address is not known"))?,
            lane,
        };
        Ok((transport, route))
    }
}

fn rpc_error(error: TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Broken { .. } => NetworkError::new(&error).into(),
        // Both make openraft wait before it tries again.
        TransportError::Unreachable { .. } | TransportError::Refused { .. } => {
            Unreachable::new(&error).into()
        }
    }
}

fn broken(reason: &str) -> RPCError<TypeConfig> {
    NetworkError::new(&io::Error::other(reason)).into()
}

/// The vote in an answer to what this server said in `own`'s term. Whoever is told of a higher one is in its term from
/// then on, so a lie has bounds here too.
fn answered_vote(vote: Vote, own: &RaftVote) -> Result<RaftVote, RPCError<TypeConfig>> {
    receive::check_answered_vote(vote, own.leader_id.term)
        .map(raft::raft_vote)
        .map_err(|error| broken(&error.to_string()))
}

/// Waits as long as openraft allows, and a little less, so that our own error is the one it sees.
async fn within<T>(
    option: &RPCOption,
    call: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(option.hard_ttl(), call).await {
        Ok(result) => result.map_err(rpc_error),
        Err(_) => Err(broken("no answer in time")),
    }
}

fn own_append(request: AppendEntriesRequest<TypeConfig>) -> Append {
    Append {
        vote: raft::vote(&request.vote),
        previous: request.prev_log_id.as_ref().map(raft::log_id),
        committed: request.leader_commit.as_ref().map(raft::log_id),
        entries: request.entries.into_iter().map(raft::entry).collect(),
    }
}

/// A request without an answer yet: the range of the log that it covers, and its share of what may be in
/// flight.
struct Pending {
    vote: RaftVote,
    previous: Option<RaftLogId>,
    last: Option<RaftLogId>,
    _share: OwnedSemaphorePermit,
}

/// The requests of one stream that have no answer, oldest first.
#[derive(Clone)]
struct InFlight {
    share: Arc<Semaphore>,
    pending: Arc<Mutex<VecDeque<Pending>>>,
}

impl InFlight {
    fn new() -> InFlight {
        InFlight {
            share: Arc::new(Semaphore::new(IN_FLIGHT)),
            pending: Arc::default(),
        }
    }

    /// Waits until there is room, and remembers the request.
    async fn sent(self, request: AppendEntriesRequest<TypeConfig>) -> Option<Append> {
        let (vote, previous) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        let request = own_append(request);
        let size = request.entries.iter().map(Entry::size).sum::<usize>() + REQUEST_OVERHEAD;
        let share = u32::try_from(size.min(IN_FLIGHT)).unwrap_or(u32::MAX);
        // It is never closed.
        let share = self.share.clone().acquire_many_owned(share).await.ok()?;
        self.lock().push_back(Pending {
            vote,
            previous,
            last: last.or(previous),
            _share: share,
        });
        Some(request)
    }

    /// What an answer means, which is to the oldest request.
    fn answered(
        &self,
        reply: AppendReply,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let oldest = self.lock().pop_front();
        let oldest = oldest.ok_or_else(|| broken("an answer to nothing"))?;
        match reply {
            AppendReply::Accepted => Ok(Ok(oldest.last)),
            AppendReply::Conflict => match oldest.previous {
                Some(previous) => Ok(Err(StreamAppendError::Conflict(previous))),
                None => Err(broken("a conflict before the beginning of the log")),
            },
            AppendReply::HigherVote(vote) => {
                let vote = answered_vote(vote, &oldest.vote)?;
                Ok(Err(StreamAppendError::HigherVote(vote)))
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (transport, route) = self.way(self.lane)?;
        let own = rpc.vote;
        let reply = within(&option, transport.heartbeat(route, own_append(rpc))).await?;
        self.network.disks.told(self.id, reply.disk);
        Ok(match reply.append {
            AppendReply::Accepted => AppendEntriesResponse::Success,
            AppendReply::Conflict => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(vote) => {
                AppendEntriesResponse::HigherVote(answered_vote(vote, &own)?)
            }
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Replies<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Heartbeat {
            return openraft::network::stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // After an error openraft waits inside its stream, before it yields a request: to connect
            // without having taken one would be to try again at once, for ever.
            let mut input = input;
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as Replies<'s>);
            };
            let (transport, route) = self.way(self.lane)?;
            let in_flight = InFlight::new();
            let sent = in_flight.clone();
            let requests = stream::once(future::ready(first))
                .chain(input)
                .then(move |request| sent.clone().sent(request))
                .scan((), |(), request| future::ready(request));
            let replies = transport
                .append(route, Box::pin(requests))
                .await
                .map_err(rpc_error)?;
            Ok(answers(replies, in_flight))
        })
    }

    async fn vote(
        &mut self,
        rpc: RaftVoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let election = match rpc.leadership_transfer {
            true => Election::HandOver,
            false => Election::Campaign,
        };
        self.ask_for_vote(rpc, election, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: RaftVoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_for_vote(rpc, Election::Probe, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (transport, route) = self.way(Lane::Snapshot)?;
        let index = snapshot.snapshot.meta().index();
        let _underway = self.network.sending.begin(self.id, index);
        let sent = transport.snapshot(route, raft::vote(&vote), snapshot.snapshot);
        tokio::select! {
            biased;
            sent = within(&option, sent) => match sent.and_then(|answer| answered_vote(answer, &vote)) {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(RPCError::Unreachable(error)) => Err(error.into()),
                Err(RPCError::Network(error)) => Err(error.into()),
                Err(RPCError::Timeout(error)) => Err(error.into()),
                Err(RPCError::RemoteError(error)) => match error.source {},
            },
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (transport, route) = self.way(Lane::Heartbeat)?;
        let request = HandOver {
            vote: raft::vote(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(raft::log_id),
        };
        within(&option, transport.hand_over(route, request)).await?;
        Ok(Ok(()))
    }
}

impl Peer {
    async fn ask_for_vote(
        &self,
        rpc: RaftVoteRequest<TypeConfig>,
        election: Election,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (transport, route) = self.way(Lane::Heartbeat)?;
        let request = VoteRequest {
            vote: raft::vote(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(raft::log_id),
            election,
        };
        let reply = within(&option, transport.vote(route, request)).await?;
        Ok(VoteResponse {
            vote: answered_vote(reply.vote, &rpc.vote)?,
            vote_granted: reply.granted,
            last_log_id: reply.last.map(raft::raft_log_id),
        })
    }
}

/// The replies in openraft's terms. The stream ends with the first error, and when the oldest request
/// waits too long.
fn answers<'s>(
    replies: super::BoxStream<Result<AppendReply, TransportError>>,
    in_flight: InFlight,
) -> Replies<'s> {
    let answers = stream::unfold(Some((replies, in_flight)), |state| async move {
        let (mut replies, in_flight) = state?;
        let reply = loop {
            match tokio::time::timeout(ANSWER_WITHIN, replies.next()).await {
                Ok(reply) => break reply?,
                // A quiet leader has nothing to wait for.
                Err(_) if in_flight.is_empty() => {}
                Err(_) => return Some((Err(broken("no answer in time")), None)),
            }
        };
        let answer = match reply {
            Ok(reply) => in_flight.answered(reply),
            Err(error) => Err(rpc_error(error)),
        };
        let next = matches!(answer, Ok(Ok(_))).then_some((replies, in_flight));
        Some((answer, next))
    });
    Box::pin(answers)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::log::{LogId, Payload};

    fn request(
        previous: Option<u64>,
        entries: std::ops::Range<u64>,
        size: usize,
    ) -> AppendEntriesRequest<TypeConfig> {
        let leader = ServerId(Uuid::from_u128(1));
        let id = |index| LogId {
            term: 1,
            leader,
            index,
        };
        AppendEntriesRequest {
            vote: raft::raft_vote(Vote {
                term: 1,
                candidate: leader,
                granted: true,
            }),
            prev_log_id: previous.map(id).map(raft::raft_log_id),
            leader_commit: None,
            entries: entries
                .map(|index| {
                    raft::raft_entry(Entry {
                        id: id(index),
                        payload: Payload::Command(vec![0; size].into()),
                    })
                    .unwrap()
                })
                .collect(),
        }
    }

    #[tokio::test]
    async fn answers_mean_what_was_asked() {
        let flight = InFlight::new();
        flight.clone().sent(request(None, 0..3, 1)).await.unwrap();
        flight
            .clone()
            .sent(request(Some(2), 3..3, 1))
            .await
            .unwrap();
        flight
            .clone()
            .sent(request(Some(7), 8..9, 1))
            .await
            .unwrap();
        let accepted = |answer| match answer {
            Ok(Ok(Some(id))) => raft::log_id(&id).index,
            other => panic!("{other:?}"),
        };
        assert_eq!(accepted(flight.answered(AppendReply::Accepted)), 2);
        assert_eq!(accepted(flight.answered(AppendReply::Accepted)), 2);
        let conflict = flight.answered(AppendReply::Conflict).unwrap().unwrap_err();
        assert!(matches!(conflict, StreamAppendError::Conflict(id) if id.index == 7));
        assert!(
            flight.answered(AppendReply::Accepted).is_err(),
            "to nothing"
        );
        flight.clone().sent(request(None, 0..1, 1)).await.unwrap();
        assert!(flight.answered(AppendReply::Conflict).is_err());
    }

    /// A leader that is told of a term is in it from then on.
    #[tokio::test]
    async fn an_answer_from_a_term_out_of_all_proportion_is_none() {
        let vote = |term| Vote {
            term,
            candidate: ServerId(Uuid::from_u128(2)),
            granted: false,
        };
        for (term, expected) in [(5, true), ((1 << 48) - 1, false)] {
            let flight = InFlight::new();
            flight.clone().sent(request(None, 0..1, 1)).await.unwrap();
            let answer = flight.answered(AppendReply::HigherVote(vote(term)));
            assert_eq!(answer.is_ok(), expected, "{term}");
            let own = raft::raft_vote(vote(3));
            assert_eq!(answered_vote(vote(term), &own).is_ok(), expected, "{term}");
        }
    }

    #[tokio::test]
    async fn so_much_is_in_flight_and_no_more() {
        let flight = InFlight::new();
        flight
            .clone()
            .sent(request(None, 0..1, IN_FLIGHT * 2))
            .await
            .unwrap();
        let mut second = Box::pin(flight.clone().sent(request(Some(0), 1..2, 1)));
        assert!(future::poll_immediate(&mut second).await.is_none());
        flight.answered(AppendReply::Accepted).unwrap().unwrap();
        assert!(second.await.is_some());
    }
}
