//! What client agents ask of this server: `wharf.server.v1.Agents`.
//!
//! ```text
//! session    an agent's stream: lease, changes, and the topics that it follows
//! presence   which agents are heard of here; the leader is told, and says it in the catalog
//! roll       the leader's judgement, pure
//! wire       messages as protobuf
//! ```

mod call;
mod presence;
mod roll;
mod session;
pub(crate) mod wire;

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;
use wharf_proto::{
    server::v1::{self as proto, agents_server::Agents, from_agent, to_agent::Message as To},
    v1::{WatchRequest, WatchResponse},
};
use wharf_registry::{
    Command, Outcome,
    command::Register,
    consensus::Consensus,
    mirror,
    model::{CheckStatus, Node},
    state::NodeEntry,
};

use self::{
    presence::{health, read_sighting},
    session::Session,
};
use crate::{
    cluster::Cluster,
    grpc::{FeedStream, Watching},
    local::SERF_HEALTH,
};

pub(crate) use presence::{Presence, watch_over_agents};
pub(crate) use roll::LEASE;

/// How long an agent may take to greet, and how long it waits for a server that is behind it.
const GREETING_WITHIN: Duration = Duration::from_secs(5);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);
/// Sessions of one server, and the longest description of a node.
const MAX_SESSIONS: usize = 20_000;
const MAX_NODE: usize = 64 << 10;
/// Messages on their way to one agent.
const AHEAD: usize = 4;

/// The serving side.
pub(super) struct Service {
    pub(super) own: proto::Server,
    pub(super) datacenter: String,
    pub(super) consensus: Consensus,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) presence: Arc<Presence>,
    pub(super) api: Arc<call::Api>,
    pub(super) watching: Watching,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

pub(super) use call::Api;

impl Service {
    /// Checks who greets, waits until this server is as far as the agent, and makes the node known.
    async fn welcome(&self, greeting: &proto::Greeting) -> Result<(Node, Uuid), Status> {
        let cluster = self.consensus.cluster();
        let cluster = cluster.filter(|_| self.consensus.has_log());
        let Some(cluster) = cluster else {
            return Err(Status::unavailable("this server is in no cluster yet"));
        };
        let known = wire::read_optional_id(&greeting.cluster)?;
        if known.is_some_and(|known| known != cluster.0) {
            return Err(Status::failed_precondition(format!(
                "this server is of cluster {cluster}, and the agent of another; restart the agent if it is to move"
            )));
        }
        if greeting.node.len() > MAX_NODE {
            return Err(Status::invalid_argument(
                "the description of the node is too long",
            ));
        }
        let node: Node = mirror::unpack(&greeting.node)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = Uuid::try_parse(&node.id)
            .map_err(|_| Status::invalid_argument("the node's id is no UUID"))?;
        if node.name.is_empty() {
            return Err(Status::invalid_argument("the node has no name"));
        }
        if greeting.datacenter != self.datacenter {
            return Err(Status::failed_precondition(format!(
                "this server is of datacenter {:?}, and the agent of {:?}",
                self.datacenter, greeting.datacenter
            )));
        }
        if self.presence.open_sessions() >= MAX_SESSIONS {
            return Err(Status::resource_exhausted(
                "this server has too many agents",
            ));
        }
        let view = self.cluster.registry().view();
        // The agent's indexes are those of views.
        let offset = view.applied() - view.log_index();
        drop(view);
        let caught_up = self
            .consensus
            .wait_applied(greeting.index.saturating_sub(offset));
        if !matches!(timeout(CATCH_UP_WITHIN, caught_up).await, Ok(Ok(()))) {
            return Err(Status::unavailable(
                "this server is behind what the agent has seen",
            ));
        }
        // Also of one that is not in the catalog yet.
        let mut members = self.consensus.members().into_iter();
        if members.any(|member| member.name.eq_ignore_ascii_case(&node.name)) {
            let text = format!("node name {:?} is that of a server", node.name);
            return Err(Status::already_exists(text));
        }
        let view = self.cluster.registry().view();
        let entry = view.node(&node.name).cloned();
        let of_id = view.node_with_id(&node.id).cloned();
        drop(view);
        for other in entry.iter().chain(&of_id) {
            is_free(other, &node).map_err(Status::already_exists)?;
        }
        if !entry.as_ref().is_some_and(|entry| says_so(entry, &node)) {
            // What else there is to say of it the agent says itself.
            let known = entry.is_some_and(|entry| is_in_place(&entry, &node));
            self.make_known(node.clone(), known).await?;
        }
        Ok((node, id))
    }

    async fn make_known(&self, node: Node, known: bool) -> Result<(), Status> {
        let register = Register {
            skip_node_update: known,
            ..health(node, true)
        };
        let written = self.cluster.propose(Command::Register(Box::new(register)));
        match written.await {
            Ok(Outcome::Refused(refusal)) => Err(Status::failed_precondition(refusal.to_string())),
            Ok(_) => Ok(()),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// Whether the node can take what another has, its name or its id: not while that one's agent is alive.
fn is_free(other: &NodeEntry, node: &Node) -> Result<(), String> {
    let same_name = other.node.name.eq_ignore_ascii_case(&node.name);
    let same_id = other.node.id == node.id;
    let check = other.checks.get(SERF_HEALTH);
    let alive = check.is_some_and(|check| check.status == CheckStatus::Passing);
    if !alive || other.node.id.is_empty() || (same_name && same_id) {
        return Ok(());
    }
    Err(match same_name {
        true => format!(
            "node name {:?} is that of node {}, whose agent is alive",
            node.name, other.node.id
        ),
        false => format!(
            "node id {} is that of node {:?}, whose agent is alive: was its data directory copied?",
            node.id, other.node.name
        ),
    })
}

/// Whether the catalog has the node where it is.
fn is_in_place(entry: &NodeEntry, node: &Node) -> bool {
    entry.node.id == node.id && entry.node.address == node.address
}

/// Whether the catalog has the node where it is, alive.
fn says_so(entry: &NodeEntry, node: &Node) -> bool {
    let check = entry.checks.get(SERF_HEALTH);
    is_in_place(entry, node) && check.is_some_and(|check| check.status == CheckStatus::Passing)
}

/// What [`presence`] is told by other servers.
pub(super) fn reported(
    presence: &Presence,
    request: proto::ReportRequest,
) -> Result<proto::ReportReply, Status> {
    let sightings = request.sightings.iter().map(read_sighting);
    let sightings: Vec<_> = sightings.collect::<Result<_, _>>()?;
    match presence.report(&sightings) {
        true => Ok(proto::ReportReply {}),
        false => Err(Status::aborted("this server does not lead")),
    }
}

type ToAgents = ReceiverStream<Result<proto::ToAgent, Status>>;
type Replies = Pin<Box<dyn Stream<Item = Result<proto::CallReply, Status>> + Send>>;

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = ToAgents;
    type CallStream = Replies;
    type WatchStream = FeedStream<WatchResponse>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromAgent>>,
    ) -> Result<Response<ToAgents>, Status> {
        let mut incoming = request.into_inner();
        let first = timeout(GREETING_WITHIN, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no greeting came"))??;
        let Some(from_agent::Message::Greeting(greeting)) = first.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument(
                "the first message must be a greeting",
            ));
        };
        let (node, id) = self.welcome(&greeting).await?;
        let welcome = proto::Welcome {
            server: Some(self.own.clone()),
            cluster: self
                .consensus
                .cluster()
                .map(|cluster| wire::write_id(cluster.0))
                .unwrap_or_default(),
            servers: Some(wire::write_servers(
                &self.consensus,
                self.presence.is_heard(Instant::now()),
            )),
        };
        let (out, told) = mpsc::channel(AHEAD);
        let message = proto::ToAgent {
            message: Some(To::Welcome(welcome)),
        };
        // There is room for it.
        let _ = out.try_send(Ok(message));
        tracing::debug!(name = &*node.name, "an agent is here");
        let session = Session {
            node,
            cluster: self.cluster.clone(),
            consensus: self.consensus.clone(),
            held: self.presence.hold(greeting.session, id),
            out,
            stop: self.stop.clone(),
        };
        self.tasks.spawn(session.run(incoming));
        Ok(Response::new(ReceiverStream::new(told)))
    }

    async fn call(
        &self,
        request: Request<Streaming<proto::CallPart>>,
    ) -> Result<Response<Replies>, Status> {
        self.api.call(request.into_inner()).await.map(Response::new)
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.watching.watch(request).await
    }

    async fn reverse(
        &self,
        request: Request<proto::ReverseRequest>,
    ) -> Result<Response<proto::ReverseReply>, Status> {
        let address: IpAddr = request
            .into_inner()
            .address
            .parse()
            .map_err(|_| Status::invalid_argument("no address"))?;
        let view = self.cluster.registry().view();
        let records = mirror::reverse(&view, address);
        let records = records.iter().map(mirror::pack);
        let records: Vec<Bytes> = records
            .collect::<Result<_, _>>()
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(proto::ReverseReply { records }))
    }
}
