//! The serving side: what other servers ask of this one.

use std::{io, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server as GrpcServer};
use wharf_proto::server::v1::{
    self as proto,
    agents_server::AgentsServer,
    servers_server::{Servers, ServersServer},
};
use wharf_registry::{
    Command,
    consensus::{
        BoxStream, Consensus, Consistency, Envelope, MembershipError, Misdirected, ProposeError,
        ReadError, ReceiveError,
    },
    log::ServerId,
    pieces,
};

use super::{
    MAX_MESSAGE, MAX_PENDING, WINDOW,
    agents::{self, Presence},
    client::{PING_EVERY, PING_WITHIN},
    complaints::Complaints,
    intake::{Intake, Pending},
    introduction::Introductions,
    parts::Parts,
    wire,
};
use crate::grpc::{Bounds, Gate, GrpcListener};

/// Calls and streams at once on one connection of a server.
const STREAMS: u32 = 4096;
/// Connections of the servers and agents of one machine, and of who tries. A server keeps five, an agent two.
const CONNECTIONS_FROM_LOOPBACK: usize = 256;
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
const PARTS_AHEAD: usize = 4;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) consensus: Consensus,
    pub(super) introductions: Arc<Introductions>,
    pub(super) presence: Arc<Presence>,
    pub(super) complaints: Complaints,
}

/// Serves other servers until `stop`, with so many `connections` from one address. The connections are cut then: whoever waits for an answer asks
/// another server.
pub(super) fn serve(
    listener: GrpcListener,
    service: Service,
    agents: agents::Service,
    connections: usize,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let bounds = Bounds {
        per_client: connections,
        per_loopback: connections.max(CONNECTIONS_FROM_LOOPBACK),
        preface_within: PREFACE_WITHIN,
    };
    let incoming = Gate::new(bounds, stop.clone()).accept(listener);
    let service = ServersServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let agents = AgentsServer::new(agents)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let pending = Pending::new(MAX_PENDING);
    let server = GrpcServer::builder()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .add_service(Intake::new(service, &pending))
        .add_service(Intake::new(agents, &pending))
        .serve_with_incoming_shutdown(incoming.boxed(), stop.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "other servers are not served any more");
        }
    })
}

impl Service {
    /// The sender of a message that is for this server and of its cluster.
    async fn admitted<T>(&self, request: &Request<T>) -> Result<Envelope, Status> {
        let envelope = wire::read_envelope(request.metadata())?;
        let checked = if self.consensus.cluster().is_some() {
            self.consensus.check_envelope(&envelope)
        } else {
            // It may be the first of its cluster, whose name is written down then.
            let consensus = self.consensus.clone();
            let checking = tokio::task::spawn_blocking(move || consensus.check_envelope(&envelope));
            checking
                .await
                .map_err(|error| Status::internal(error.to_string()))?
        };
        checked.map_err(|error| self.misdirected(&envelope, &error))?;
        Ok(envelope)
    }

    fn misdirected(&self, envelope: &Envelope, error: &Misdirected) -> Status {
        if let Misdirected::OtherCluster { .. } = error {
            self.complaints.warn(&format!(
                "server {} was turned away: {error}",
                envelope.from
            ));
        }
        Status::failed_precondition(error.to_string())
    }
}

fn receive_status(error: ReceiveError) -> Status {
    match error {
        ReceiveError::Malformed(_) => Status::invalid_argument(error.to_string()),
        ReceiveError::DiskFull => wire::disk_full(error.to_string()),
        ReceiveError::Busy => Status::resource_exhausted(error.to_string()),
        ReceiveError::Displaced => Status::aborted(error.to_string()),
        ReceiveError::Snapshot(_) => Status::data_loss(error.to_string()),
        ReceiveError::ShuttingDown => Status::aborted(error.to_string()),
    }
}

fn propose_status(error: &ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::NoLeader | ProposeError::NotLeader { .. } | ProposeError::ShuttingDown => {
            Status::aborted(text)
        }
        ProposeError::Overloaded => Status::resource_exhausted(text),
        ProposeError::DiskFull(_) => wire::disk_full(text),
        ProposeError::TooLarge { .. } => Status::out_of_range(text),
        ProposeError::OutcomeUnknown => Status::unknown(NOBODY_KNOWS),
    }
}

fn read_status(error: &ReadError) -> Status {
    Status::aborted(error.to_string())
}

/// The caller says what follows from it: [`CallError::Unknown`](super::CallError::Unknown).
const NOBODY_KNOWS: &str = "the leader does not know it either";

fn membership_status(error: &MembershipError) -> Status {
    let text = error.to_string();
    match error {
        MembershipError::NoLeader
        | MembershipError::NotLeader { .. }
        | MembershipError::ShuttingDown => Status::aborted(text),
        MembershipError::UnknownServer(_) => Status::not_found(text),
        MembershipError::NameTaken { .. }
        | MembershipError::IdTaken { .. }
        | MembershipError::NotThere { .. }
        | MembershipError::TooManyLearners(_)
        | MembershipError::TooManyServers(_)
        | MembershipError::LastVoter(_)
        | MembershipError::NoMajority(_)
        | MembershipError::NotReady(_)
        | MembershipError::Busy => Status::failed_precondition(text),
        MembershipError::OutcomeUnknown => Status::unknown(NOBODY_KNOWS),
    }
}

#[tonic::async_trait]
impl Servers for Service {
    type AppendStream = BoxStream<Result<proto::AppendReply, Status>>;

    async fn hello(
        &self,
        request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloReply>, Status> {
        let reply = self.introductions.greeted(request.into_inner())?;
        Ok(Response::new(reply))
    }

    async fn promise(
        &self,
        request: Request<proto::PromiseRequest>,
    ) -> Result<Response<proto::PromiseReply>, Status> {
        let introductions = self.introductions.clone();
        let request = request.into_inner();
        // A promise is written down.
        let promised = tokio::task::spawn_blocking(move || introductions.promise(request));
        promised
            .await
            .map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(proto::PromiseReply {}))
    }

    async fn vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteReply>, Status> {
        let from = self.admitted(&request).await?.from;
        let request = wire::read_vote_request(request.into_inner())?;
        let reply = self.consensus.receive_vote(from, request).await;
        let reply = reply.map_err(receive_status)?;
        Ok(Response::new(wire::write_vote_reply(reply)))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendReply>, Status> {
        let from = self.admitted(&request).await?.from;
        let request = wire::read_append(request.into_inner())?;
        let reply = self.consensus.receive_heartbeat(from, request).await;
        let reply = reply.map_err(receive_status)?;
        Ok(Response::new(wire::write_heartbeat_reply(reply)))
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = self.admitted(&request).await?.from;
        // What is not a message of ours ends the stream, and with it the answers.
        let requests = request.into_inner().map(|request| {
            wire::read_append(request.map_err(|_| wire::Malformed("the stream broke"))?)
        });
        let requests = requests.take_while(move |request| {
            if let Err(error) = request {
                tracing::debug!(%error, %from, "an append stream ends");
            }
            std::future::ready(request.is_ok())
        });
        let requests = requests.filter_map(|request| std::future::ready(request.ok()));
        let replies = self.consensus.receive_append(from, Box::pin(requests));
        let replies = replies.map(|reply| match reply {
            Ok(reply) => Ok(wire::write_append_reply(reply)),
            Err(error) => Err(receive_status(error)),
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        let from = self.admitted(&request).await?.from;
        let mut parts = Parts::new(request.into_inner());
        let first = parts.next().await?;
        let first = first.ok_or(Status::invalid_argument("an empty snapshot"))?;
        let vote = wire::read_vote(first.vote)?;
        tracing::info!(%from, "receiving a snapshot");
        let (blocks, incoming) = mpsc::channel(PARTS_AHEAD);
        // When it ends, so does the snapshot for who reads it.
        let feeding = async move {
            let mut part = Ok(Some(first.data));
            loop {
                let block = match part {
                    Ok(None) => return,
                    Ok(Some(data)) => Ok(data),
                    Err(status) => Err(io::Error::other(Status::message(&status).to_owned())),
                };
                let failed = block.is_err();
                if blocks.send(block).await.is_err() || failed {
                    return;
                }
                part = parts.next_bytes().await;
            }
        };
        let received = self
            .consensus
            .receive_snapshot(from, vote, pieces::from_channel(incoming));
        tokio::pin!(received);
        // What is not read any more is not waited for.
        let received = tokio::select! {
            received = &mut received => received,
            () = feeding => received.await,
        };
        let vote = received.map_err(|error| {
            if let ReceiveError::Snapshot(error) = &error {
                self.complaints.warn(&format!(
                    "the snapshot of server {from} is not taken: {error}"
                ));
            }
            receive_status(error)
        })?;
        Ok(Response::new(proto::SnapshotReply {
            vote: Some(wire::write_vote(vote)),
        }))
    }

    async fn hand_over(
        &self,
        request: Request<proto::HandOverRequest>,
    ) -> Result<Response<proto::HandOverReply>, Status> {
        let from = self.admitted(&request).await?.from;
        let request = wire::read_hand_over(request.into_inner())?;
        let done = self.consensus.receive_hand_over(from, request).await;
        done.map_err(receive_status)?;
        Ok(Response::new(proto::HandOverReply {}))
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        self.admitted(&request).await?;
        let command = request.into_inner().command;
        // What cannot be read must not get into the log: it would stop every server.
        Command::decode(&command).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let proposed = self.consensus.propose_encoded(command).await;
        let (index, outcome) = proposed.map_err(|error| propose_status(&error))?;
        Ok(Response::new(proto::ProposeReply {
            index,
            outcome: outcome.encode(),
        }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        self.admitted(&request).await?;
        let consistency = match request.into_inner().quorum {
            true => Consistency::Consistent,
            false => Consistency::Default,
        };
        let index = self.consensus.read_index(consistency).await;
        let index = index.map_err(|error| read_status(&error))?;
        Ok(Response::new(proto::ReadIndexReply { index }))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinReply>, Status> {
        let from = self.admitted(&request).await?.from;
        let (id, server) = wire::read_server(request.into_inner().server)?;
        if id != from {
            return Err(Status::invalid_argument("a server joins by itself"));
        }
        let admitted = self.consensus.admit(id, server).await;
        admitted.map_err(|error| membership_status(&error))?;
        Ok(Response::new(proto::JoinReply {}))
    }

    async fn members(
        &self,
        request: Request<proto::MembersRequest>,
    ) -> Result<Response<proto::MembersReply>, Status> {
        self.admitted(&request).await?;
        if !self.consensus.is_leader() {
            return Err(Status::aborted("this server does not lead"));
        }
        let members = self.consensus.members().into_iter();
        Ok(Response::new(proto::MembersReply {
            members: members.map(wire::write_member).collect(),
            index: self.consensus.registry().view().log_index(),
        }))
    }

    async fn remove(
        &self,
        request: Request<proto::RemoveRequest>,
    ) -> Result<Response<proto::RemoveReply>, Status> {
        self.admitted(&request).await?;
        let id = ServerId(wire::read_id(&request.into_inner().id)?);
        let removed = self.consensus.remove(id).await;
        removed.map_err(|error| membership_status(&error))?;
        Ok(Response::new(proto::RemoveReply {}))
    }

    async fn report(
        &self,
        request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::ReportReply>, Status> {
        self.admitted(&request).await?;
        let reply = agents::reported(&self.presence, request.into_inner())?;
        Ok(Response::new(reply))
    }

    async fn transfer_leadership(
        &self,
        request: Request<proto::TransferLeadershipRequest>,
    ) -> Result<Response<proto::TransferLeadershipReply>, Status> {
        self.admitted(&request).await?;
        let to = wire::read_optional_id(&request.into_inner().id)?;
        let leader = self.consensus.hand_over(to.map(ServerId)).await;
        let leader = leader.map_err(|error| membership_status(&error))?;
        Ok(Response::new(proto::TransferLeadershipReply {
            leader: Some(wire::write_leader(leader)),
        }))
    }
}
