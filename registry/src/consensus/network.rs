//! How the core of the consensus reaches its peers: openraft's calls as messages of a [`Transport`].

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt as _, stream};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest as RaftVoteRequest,
        VoteResponse,
    },
};

use super::{
    AppendReply, Election, Envelope, HandOver, Lane, Route, Transport, TransportError, VoteRequest,
    disk::PeerDisks,
    identity::Identity,
    pipeline::{Requests, answers, own_append},
    raft::{self, LeaderId, RaftVote, TypeConfig},
    receive,
    sending::Sending,
};
use crate::{
    log::{Server, ServerId, Vote},
    snapshot::Snapshot,
};

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

pub(super) fn rpc_error(error: TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Broken { .. } => NetworkError::new(&error).into(),
        // Both make openraft wait before it tries again.
        TransportError::Unreachable { .. } | TransportError::Refused { .. } => {
            Unreachable::new(&error).into()
        }
    }
}

pub(super) fn broken(reason: &str) -> RPCError<TypeConfig> {
    NetworkError::new(&io::Error::other(reason)).into()
}

/// The vote in an answer to what this server said in `own`'s term. Whoever is told of a higher one is in its term from
/// then on, so a lie has bounds here too.
pub(super) fn answered_vote(vote: Vote, own: &RaftVote) -> Result<RaftVote, RPCError<TypeConfig>> {
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
            let (mut requests, to_peer) = Requests::new();
            requests.take(first);
            let replies = transport.append(route, to_peer).await;
            Ok(answers(requests, input, replies.map_err(rpc_error)?))
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// A leader that is told of a term is in it from then on.
    #[test]
    fn an_answer_from_a_term_out_of_all_proportion_is_none() {
        let vote = |term| Vote {
            term,
            candidate: ServerId(Uuid::from_u128(2)),
            granted: false,
        };
        let own = raft::raft_vote(vote(3));
        assert!(answered_vote(vote(5), &own).is_ok());
        assert!(answered_vote(vote((1 << 48) - 1), &own).is_err());
    }
}
