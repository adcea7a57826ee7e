//! One agent's session, from the server's side: its lease, its changes, and the topics that it follows.
//!
//! What is told is worked out by a [`Feed`]: an agent that reads slowly is told less often, never from a queue; and all
//! that is told at once is of one view.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use wharf_proto::server::v1::{
    self as proto, from_agent::Message as From, session_request, to_agent::Message as To,
};
use wharf_registry::{
    Command, Outcome, View,
    command::PlatformCommand,
    consensus::Consensus,
    mirror::{self, Feed},
    model::Node,
};

use super::{presence::Held, wire};
use crate::{
    cluster::{BoxFuture, Cluster, ClusterError, Consistency},
    grpc::WatchSet,
    servers::agents::roll::LEASE,
};

/// How long to gather changes before an agent is told.
const GATHER: Duration = Duration::from_millis(5);
/// How long an agent may leave what it is told unread.
const PATIENCE: Duration = Duration::from_secs(20);
/// After how much silence a connection that breaks says nothing about the agent's process, which speaks at least every two
/// seconds.
const SILENCE: Duration = Duration::from_millis(2500);
/// How often the agent is told that its server is there, and who the others are if that has changed.
const BEAT: Duration = Duration::from_secs(1);
/// How long what an agent said before it closed its side may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Topics that one agent may follow; changes and questions of one that are under way.
const MAX_TOPICS: usize = 16_384;
const MAX_REQUESTS: usize = 1024;
/// Instances in one piece of news, and bytes of news in one message, about.
const ROWS: usize = 500;
const MESSAGE: usize = 1 << 20;

pub(super) type Sender = mpsc::Sender<Result<proto::ToAgent, Status>>;
type Pending = BoxFuture<'static, (u64, Result<Outcome, ClusterError>)>;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The agent said so, and asks for so long.
    Bye(Duration),
    /// The connection broke in the middle of everything, as it does when the process ends.
    Broken,
    /// The agent gave it up, and is alive.
    Left,
    /// It was silent, or did not read.
    Silent,
    /// Nothing can be said to the agent any more. Why, shows in what it says last.
    Unread,
    /// It did what it must not.
    Refused(Status),
    /// This server ends.
    Stopped,
}

/// One agent's session.
pub(super) struct Session {
    /// As the agent greeted.
    pub(super) node: Node,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) consensus: Consensus,
    pub(super) held: Held,
    pub(super) out: Sender,
    pub(super) stop: CancellationToken,
}

/// What was told.
struct Told {
    feed: Feed,
    servers: proto::ServerList,
}

impl Session {
    /// Serves the agent to the end.
    pub(super) async fn run(self, mut incoming: Streaming<proto::FromAgent>) {
        let mut heard = Instant::now();
        let mut end = self.serve(&mut incoming, &mut heard).await;
        if matches!(end, End::Unread) {
            let words = last_words(&mut incoming, &mut heard);
            end = timeout(LAST_WORDS, words).await.unwrap_or(End::Silent);
        }
        match end {
            End::Bye(hold) => self.held.ended(hold),
            End::Broken if heard.elapsed() < SILENCE => self.held.ended(Duration::ZERO),
            // Its lease says how long it may take to be heard of again.
            End::Broken | End::Left | End::Silent | End::Unread => {
                tracing::debug!(?end, "an agent's session ends");
            }
            End::Refused(status) => {
                tracing::warn!(%status, "an agent's session is ended");
                let _ = timeout(PATIENCE, self.out.send(Err(status))).await;
            }
            // It goes to another server.
            End::Stopped => {}
        }
    }

    async fn serve(&self, incoming: &mut Streaming<proto::FromAgent>, heard: &mut Instant) -> End {
        let registry = self.cluster.registry().clone();
        let mut told = Told {
            feed: Feed::new(registry.view()),
            servers: wire::write_servers(&self.consensus, self.held.is_heard()),
        };
        let mut watches = WatchSet::default();
        let mut pending: FuturesUnordered<Pending> = FuturesUnordered::new();
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let news = tokio::select! {
                message = incoming.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return End::Left,
                        Err(status) => return broken(&status),
                    };
                    *heard = Instant::now();
                    self.held.heard();
                    match self.take(message, &mut told, &mut pending) {
                        Ok(()) => {}
                        Err(end) => return end,
                    }
                    if !told.feed.has_fresh() {
                        continue;
                    }
                    None
                }
                _ = watches.changed(), if !told.feed.is_empty() => {
                    tokio::time::sleep(GATHER).await;
                    watches.take();
                    None
                }
                Some(done) = pending.next() => Some(done),
                _ = beat.tick() => {
                    if heard.elapsed() >= LEASE {
                        return End::Silent;
                    }
                    if let Err(end) = self.beat(&mut told).await {
                        return end;
                    }
                    // Also lets go of an old state when nothing is told.
                    None
                }
                () = self.out.closed() => return End::Unread,
                () = self.stop.cancelled() => return End::Stopped,
            };
            // What is watched is watched before the view is taken.
            watches.set(&registry, &told.feed.keys().collect());
            if let Err(end) = self.tell(&mut told, registry.view()).await {
                return end;
            }
            if let Some((number, result)) = news
                && let Err(end) = self
                    .send(To::Reply(wire::write_reply(number, result)))
                    .await
            {
                return end;
            }
        }
    }

    fn take(
        &self,
        message: proto::FromAgent,
        told: &mut Told,
        pending: &mut FuturesUnordered<Pending>,
    ) -> Result<(), End> {
        match message.message {
            Some(From::Follow(topic)) => {
                let topic = wire::read_topic(topic).map_err(malformed)?;
                if told.feed.len() >= MAX_TOPICS {
                    let text = format!("an agent follows {MAX_TOPICS} topics at most");
                    return Err(End::Refused(Status::resource_exhausted(text)));
                }
                told.feed.follow(topic);
            }
            Some(From::Unfollow(topic)) => {
                let topic = wire::read_topic(topic).map_err(malformed)?;
                told.feed.unfollow(&topic);
            }
            Some(From::Alive(_)) => {}
            Some(From::Request(request)) => {
                let number = request.number;
                if pending.len() >= MAX_REQUESTS {
                    pending.push(Box::pin(
                        async move { (number, Err(ClusterError::Overloaded)) },
                    ));
                    return Ok(());
                }
                pending.push(self.request(number, request.request)?);
            }
            Some(From::Bye(bye)) => return Err(End::Bye(Duration::from_millis(bye.hold_ms))),
            Some(From::Greeting(_)) => {
                return Err(End::Refused(Status::invalid_argument("a second greeting")));
            }
            // Of a newer agent: what it cannot do without it will miss.
            None => {}
        }
        Ok(())
    }

    fn request(
        &self,
        number: u64,
        request: Option<session_request::Request>,
    ) -> Result<Pending, End> {
        let cluster = self.cluster.clone();
        match request {
            Some(session_request::Request::Change(command)) => {
                let command = permitted(&command, &self.node).map_err(End::Refused)?;
                Ok(Box::pin(
                    async move { (number, cluster.propose(command).await) },
                ))
            }
            Some(session_request::Request::Sync(freshness)) => {
                let consistency = match proto::Freshness::try_from(freshness) {
                    Ok(proto::Freshness::Quorum) => Consistency::Consistent,
                    _ => Consistency::Default,
                };
                Ok(Box::pin(async move {
                    let fresh = cluster.barrier(consistency).await;
                    (number, fresh.map(|()| Outcome::Done))
                }))
            }
            None => Err(End::Refused(Status::invalid_argument("an unknown request"))),
        }
    }

    /// Tells the agent that this server is there.
    async fn beat(&self, told: &mut Told) -> Result<(), End> {
        let servers = wire::write_servers(&self.consensus, self.held.is_heard());
        if servers != told.servers {
            told.servers = servers.clone();
            self.send(To::Servers(servers)).await?;
        }
        let nodes = told.feed.view().nodes().len() as u64;
        self.send(To::Alive(proto::Alive { nodes })).await
    }

    /// Tells what is different in `view`.
    async fn tell(&self, told: &mut Told, view: Arc<View>) -> Result<(), End> {
        let index = view.applied();
        let news = told.feed.tell(view).into_iter();
        let news: Vec<_> = news.flat_map(|news| news.split(ROWS)).collect();
        let mut message = proto::News {
            index,
            news: Vec::new(),
            more: false,
        };
        let mut bytes = 0;
        let mut news = news.into_iter().peekable();
        while let Some(piece) = news.next() {
            let encoded = mirror::pack(&piece).map_err(|error| {
                End::Refused(Status::internal(format!("news do not encode: {error}")))
            })?;
            bytes += encoded.len();
            message.news.push(encoded);
            message.more = news.peek().is_some();
            if bytes >= MESSAGE || !message.more {
                bytes = 0;
                let next = proto::News {
                    index,
                    news: Vec::new(),
                    more: false,
                };
                self.send(To::News(std::mem::replace(&mut message, next)))
                    .await?;
            }
        }
        Ok(())
    }

    async fn send(&self, message: To) -> Result<(), End> {
        let message = proto::ToAgent {
            message: Some(message),
        };
        match timeout(PATIENCE, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Unread),
            Err(_) => Err(End::Silent),
        }
    }
}

/// Reads what an agent that does not listen any more has said before.
async fn last_words(incoming: &mut Streaming<proto::FromAgent>, heard: &mut Instant) -> End {
    loop {
        match incoming.message().await {
            Ok(Some(message)) => {
                *heard = Instant::now();
                if let Some(From::Bye(bye)) = message.message {
                    return End::Bye(Duration::from_millis(bye.hold_ms));
                }
            }
            Ok(None) => return End::Left,
            Err(status) => return broken(&status),
        }
    }
}

/// Whoever resets a stream or says good-bye to a connection, in HTTP/2, is alive; and that this side gave a connection up
/// on which nobody answers pings says nothing of the other one. When a process ends, its kernel closes the connection,
/// and nothing is said.
fn broken(status: &Status) -> End {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref().is_some_and(h2::Error::is_io) {
            return End::Broken;
        }
        source = error.source();
    }
    End::Left
}

fn malformed(error: wire::Malformed) -> End {
    End::Refused(error.into())
}

/// An agent changes its node and what is on it, and reports on its allocations. Everything else is asked of the API.
fn permitted(bytes: &[u8], node: &Node) -> Result<Command, Status> {
    let command = Command::decode(bytes)
        .map_err(|error| Status::invalid_argument(format!("malformed command: {error}")))?;
    let own = match &command {
        // Under an id of another node it would take that one's place.
        Command::Register(register) => {
            register.node.name.eq_ignore_ascii_case(&node.name) && register.node.id == node.id
        }
        Command::Deregister(deregister) => deregister.node.eq_ignore_ascii_case(&node.name),
        Command::Platform(PlatformCommand::RegisterNode { node: own, .. }) => own.id == node.id,
        Command::Platform(PlatformCommand::UpdateAllocs { node_id, .. }) => *node_id == node.id,
        _ => false,
    };
    match own {
        true => Ok(command),
        false => Err(Status::permission_denied(
            "an agent changes nothing but its own node by itself",
        )),
    }
}

#[cfg(test)]
mod tests {
    use wharf_registry::command::{Deregister, DeregisterTarget, KvCommand, Register};

    use super::*;

    #[test]
    fn an_agent_changes_its_own_node_only() {
        let own = Node {
            name: "n1".into(),
            id: "1".into(),
            ..Node::default()
        };
        let removal = |node: &str| {
            let target = DeregisterTarget::Node;
            let node = node.into();
            Command::Deregister(Deregister { node, target }).encode()
        };
        assert!(permitted(&removal("N1"), &own).is_ok());
        assert!(permitted(&removal("n2"), &own).is_err());
        let report = |node_id: &str| {
            Command::Platform(PlatformCommand::UpdateAllocs {
                node_id: node_id.into(),
                updates: Vec::new(),
                time: 0,
            })
            .encode()
        };
        assert!(permitted(&report("1"), &own).is_ok());
        assert!(permitted(&report("2"), &own).is_err());
        let register = |name: &str, id: &str| {
            let node = Node {
                name: name.into(),
                id: id.into(),
                ..Node::default()
            };
            Command::Register(Box::new(Register {
                node,
                ..Register::default()
            }))
            .encode()
        };
        assert!(permitted(&register("n1", "1"), &own).is_ok());
        assert!(permitted(&register("n2", "1"), &own).is_err());
        assert!(permitted(&register("n1", "2"), &own).is_err());
        let key = KvCommand::Delete { key: "a".into() };
        assert!(permitted(&Command::Kv(key).encode(), &own).is_err());
        assert!(permitted(b"nothing", &own).is_err());
    }
}
