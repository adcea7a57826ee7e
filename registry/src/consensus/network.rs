//! How a server talks to its peers.
//!
//! The seam where the servers' gRPC goes: a [`Network`] opens a [`Peer`] for every other member, and
//! openraft calls that. A server alone has no peers, and says so if it is ever asked for one.

use std::{future::Future, io};

use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};

use super::raft::{LeaderId, RaftVote, TypeConfig};
use crate::{
    log::{Server, ServerId},
    snapshot::Snapshot,
};

#[derive(Clone, Copy, Debug)]
pub(super) enum Network {
    /// No transport: this server is the whole cluster.
    Alone,
}

/// One other server.
#[derive(Debug)]
pub(super) struct Peer {
    id: ServerId,
}

type RaftSnapshot = openraft::Snapshot<LeaderId, ServerId, Server, Snapshot>;

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: ServerId, _server: &Server) -> Peer {
        match self {
            Network::Alone => Peer { id: target },
        }
    }
}

impl Peer {
    fn unreachable(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&io::Error::other(format!(
            "no connection to server {}: this server runs alone",
            self.id
        )))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    /// The default grants, which is for peers of an older version: a peer that cannot be reached
    /// grants nothing.
    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: RaftSnapshot,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(self.unreachable().into())
    }
}
