//! The calling side: a connection to every other server for each kind of traffic, kept open.
//!
//! Bulk data goes over connections of its own, so that heartbeats, on theirs, never wait behind it. A
//! connection whose other end does not answer pings breaks within [`PING_EVERY`] + [`PING_WITHIN`].

use std::{
    collections::HashMap,
    error::Error as _,
    io::Read as _,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use wharf_proto::server::v1::{self as proto, servers_client::ServersClient};
use wharf_registry::{
    consensus::{
        Append, AppendReply, BoxFuture, BoxStream, Envelope, HandOver, HeartbeatReply, Lane, Route,
        Transport, TransportError, VoteReply, VoteRequest,
    },
    log::{ServerId, Vote},
    snapshot::Snapshot,
};

use super::{
    MAX_MESSAGE, WINDOW,
    complaints::Complaints,
    introduction::Introductions,
    wire::{self, Malformed},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
pub(super) const PING_EVERY: Duration = Duration::from_secs(2);
pub(super) const PING_WITHIN: Duration = Duration::from_secs(3);
/// Connections that are remembered: many more than a cluster has, so this only meets addresses that
/// nobody uses any more.
const MAX_CHANNELS: usize = 256;
/// A part of a snapshot, and how many are read ahead.
const PART: usize = 256 << 10;
const PARTS_AHEAD: usize = 4;

/// What shares a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Traffic {
    Raft(Lane),
    /// What this server's clients want of the leader, and introductions.
    Calls,
    /// Commands of theirs that are large: the others do not wait behind them.
    LargeCalls,
}

/// From this size on, in bytes, a command is large.
const LARGE: usize = 32 << 10;

/// The connections of this server. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Who finds servers, while it does.
    introductions: OnceLock<Weak<Introductions>>,
    channels: Mutex<HashMap<(String, Traffic), Channel>>,
    complaints: Complaints,
}

/// Why a call to another server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// It did not arrive, or was turned away before it had an effect: to be tried again, elsewhere.
    #[error("{0}")]
    NotDone(String),
    /// Turned away for good.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Overloaded(String),
    #[error("{0}")]
    DiskFull(String),
    #[error("{0}")]
    TooLarge(String),
    /// It may have had its effect.
    #[error(
        "the outcome of the change is unknown: it may or may not have taken place ({0}); see whether it has before it is \
         tried again"
    )]
    Unknown(String),
}

/// How a server is reached at `host:port`.
pub(crate) fn channel(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW))
}

impl Peers {
    pub(super) fn introduced_by(&self, introductions: &Arc<Introductions>) {
        // There is one for each process.
        let _ = self.shared.introductions.set(Arc::downgrade(introductions));
    }

    pub(crate) fn introductions(&self) -> Option<Arc<Introductions>> {
        self.shared.introductions.get()?.upgrade()
    }

    fn client(
        &self,
        address: &str,
        traffic: Traffic,
    ) -> Result<ServersClient<Channel>, TransportError> {
        let mut channels = self
            .shared
            .channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), traffic);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = channel(address).map_err(|reason| TransportError::Unreachable {
                    address: address.to_owned(),
                    reason,
                })?;
                let channel = channel.connect_lazy();
                if channels.len() >= MAX_CHANNELS {
                    channels.clear();
                }
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(ServersClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    fn of_route(&self, route: &Route) -> Result<ServersClient<Channel>, TransportError> {
        self.client(&route.address, Traffic::Raft(route.lane))
    }

    /// For one call outside the consensus.
    pub(crate) fn caller(&self, address: &str) -> Result<ServersClient<Channel>, CallError> {
        self.caller_over(address, Traffic::Calls)
    }

    /// For one call that carries a command of this size.
    pub(crate) fn proposer(
        &self,
        address: &str,
        size: usize,
    ) -> Result<ServersClient<Channel>, CallError> {
        let traffic = match size {
            LARGE.. => Traffic::LargeCalls,
            _ => Traffic::Calls,
        };
        self.caller_over(address, traffic)
    }

    fn caller_over(
        &self,
        address: &str,
        traffic: Traffic,
    ) -> Result<ServersClient<Channel>, CallError> {
        self.client(address, traffic)
            .map_err(|error| CallError::NotDone(error.to_string()))
    }

    /// What a failure means for the consensus. A refusal is said in the log too: somebody made a mistake.
    fn transport_error(&self, address: &str, status: &Status) -> TransportError {
        let address = address.to_owned();
        let reason = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition => {
                self.shared.complaints.warn(&format!(
                    "the server at {address} refuses to talk to this one: {reason}"
                ));
                TransportError::Refused { address, reason }
            }
            _ if is_connect_error(status) => TransportError::Unreachable { address, reason },
            _ => TransportError::Broken { address, reason },
        }
    }
}

/// Whether there was no connection to send anything over.
pub(crate) fn is_connect_error(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What an error comes from in the end: those around it say little more than that there was one.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        last = error.to_string();
        source = error.source();
    }
    last
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        let message = status.message().to_owned();
        match status.code() {
            _ if is_connect_error(&status) => CallError::NotDone(root_cause(&status)),
            Code::Aborted => CallError::NotDone(message),
            Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound => {
                CallError::Refused(message)
            }
            Code::ResourceExhausted if wire::is_disk_full(&status) => CallError::DiskFull(message),
            Code::ResourceExhausted => CallError::Overloaded(message),
            Code::OutOfRange => CallError::TooLarge(message),
            _ => CallError::Unknown(message),
        }
    }
}

/// A request in its envelope.
pub(crate) fn enveloped<T>(envelope: &Envelope, message: T) -> Request<T> {
    let mut request = Request::new(message);
    wire::write_envelope(request.metadata_mut(), envelope);
    request
}

fn malformed(address: &str) -> impl Fn(Malformed) -> TransportError + use<> {
    let address = address.to_owned();
    move |error| TransportError::Broken {
        address: address.clone(),
        reason: error.to_string(),
    }
}

impl Transport for Peers {
    fn who_is_at(&self, address: &str) -> BoxFuture<'_, Result<ServerId, TransportError>> {
        let address = address.to_owned();
        Box::pin(async move {
            let unreachable = |reason: String| TransportError::Unreachable {
                address: address.clone(),
                reason,
            };
            let introductions = self.introductions();
            let introductions =
                introductions.ok_or_else(|| unreachable("this server is ending".to_owned()))?;
            let greeted = introductions.who_is_at(&address).await;
            greeted.map_err(|error| unreachable(error.to_string()))
        })
    }

    fn vote(
        &self,
        route: Route,
        request: VoteRequest,
    ) -> BoxFuture<'_, Result<VoteReply, TransportError>> {
        Box::pin(async move {
            let request = enveloped(&route.envelope, wire::write_vote_request(request));
            match self.of_route(&route)?.vote(request).await {
                Ok(reply) => {
                    wire::read_vote_reply(reply.into_inner()).map_err(malformed(&route.address))
                }
                Err(status) => Err(self.transport_error(&route.address, &status)),
            }
        })
    }

    fn heartbeat(
        &self,
        route: Route,
        request: Append,
    ) -> BoxFuture<'_, Result<HeartbeatReply, TransportError>> {
        Box::pin(async move {
            let request = enveloped(&route.envelope, wire::write_append(request));
            match self.of_route(&route)?.heartbeat(request).await {
                Ok(reply) => wire::read_heartbeat_reply(reply.into_inner())
                    .map_err(malformed(&route.address)),
                Err(status) => Err(self.transport_error(&route.address, &status)),
            }
        })
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<Append>,
    ) -> BoxFuture<'_, Result<BoxStream<Result<AppendReply, TransportError>>, TransportError>> {
        Box::pin(async move {
            let request = enveloped(&route.envelope, Outgoing(requests));
            let replies = match self.of_route(&route)?.append(request).await {
                Ok(replies) => replies.into_inner(),
                Err(status) => return Err(self.transport_error(&route.address, &status)),
            };
            let peers = self.clone();
            let replies = replies.map(move |reply| match reply {
                Ok(reply) => wire::read_append_reply(reply).map_err(malformed(&route.address)),
                Err(status) => Err(peers.transport_error(&route.address, &status)),
            });
            Ok(Box::pin(replies) as BoxStream<_>)
        })
    }

    fn snapshot(
        &self,
        route: Route,
        vote: Vote,
        snapshot: Snapshot,
    ) -> BoxFuture<'_, Result<Vote, TransportError>> {
        Box::pin(async move {
            let index = snapshot.meta().index();
            tracing::info!(address = route.address, index, "sending a snapshot");
            let (parts, sent) = mpsc::channel(PARTS_AHEAD);
            let reading = tokio::task::spawn_blocking(move || read_parts(vote, &snapshot, &parts));
            let request = enveloped(&route.envelope, ReceiverStream::new(sent));
            let reply = self.of_route(&route)?.snapshot(request).await;
            // It ends with the stream that it feeds.
            match reading.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return Err(TransportError::Broken {
                        address: route.address,
                        reason: format!("this server's snapshot cannot be read: {error}"),
                    });
                }
                Err(error) => tracing::error!(%error, "a snapshot was not read"),
            }
            match reply {
                Ok(reply) => {
                    wire::read_vote(reply.into_inner().vote).map_err(malformed(&route.address))
                }
                Err(status) => Err(self.transport_error(&route.address, &status)),
            }
        })
    }

    fn hand_over(
        &self,
        route: Route,
        request: HandOver,
    ) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let request = enveloped(&route.envelope, wire::write_hand_over(request));
            match self.of_route(&route)?.hand_over(request).await {
                Ok(_) => Ok(()),
                Err(status) => Err(self.transport_error(&route.address, &status)),
            }
        })
    }
}

/// Requests on their way out, as protobuf.
struct Outgoing(BoxStream<Append>);

impl Stream for Outgoing {
    type Item = proto::AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.as_mut().poll_next(cx);
        next.map(|next| next.map(wire::write_append))
    }
}

/// Reads a snapshot to its end, or until nobody wants more of it. Blocks.
fn read_parts(
    vote: Vote,
    snapshot: &Snapshot,
    parts: &mpsc::Sender<proto::SnapshotPart>,
) -> std::io::Result<()> {
    let mut bytes = snapshot.bytes();
    let mut vote = Some(wire::write_vote(vote));
    loop {
        let mut part = Vec::with_capacity(PART);
        (&mut bytes).take(PART as u64).read_to_end(&mut part)?;
        if part.is_empty() {
            return Ok(());
        }
        let part = proto::SnapshotPart {
            vote: vote.take(),
            data: Bytes::from(part),
        };
        if parts.blocking_send(part).is_err() {
            return Ok(());
        }
    }
}
