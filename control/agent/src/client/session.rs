//! One session with one server.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use wharf_proto::server::v1::{
    self as proto, from_agent::Message as From, session_request, to_agent::Message as To,
};
use wharf_registry::{
    Mirror, Outcome,
    consensus::Member,
    mirror::{self, News, Topic},
};

use super::{Ask, Client, Link, Servers, Shared, connect::Connector};
use crate::{
    cluster::ClusterError,
    servers::{LEASE, agents::wire, channel, is_connect_error, root_cause},
};

/// From the first attempt to connect to the server's welcome.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How often this agent says that it is there.
pub(crate) const BEAT: Duration = Duration::from_secs(2);
/// How long a server may be silent, which says something every second.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);
/// How long a server may have no leader while there are others.
pub(crate) const LEADERLESS: Duration = Duration::from_secs(2);
/// How often a session moves to another server on average, so that all have their share of the agents.
const REBALANCE: Duration = Duration::from_secs(120);
/// How often it is looked which topics nobody needs any more.
const EXPIRE: Duration = Duration::from_secs(30);
/// How long the server is told to wait for the next session, when this agent goes to another server.
pub(crate) const MOVE_WITHIN: Duration = Duration::from_secs(12);
/// What of an answer may be on its way before it is read, and of all answers.
const CALL_WINDOW: u32 = 1 << 20;
const CALLS_WINDOW: u32 = 64 << 20;
/// Messages on their way to the server.
const AHEAD: usize = 64;

/// Why a session is over.
#[derive(Clone, Debug)]
pub(super) enum End {
    Lost(String),
    Moving(&'static str),
    /// This agent ends: there is to be no other.
    Over,
}

/// Why there is none.
#[derive(Clone, Debug)]
pub(super) struct NoSession {
    pub(super) reason: String,
    /// The server is there, and does not want this agent.
    pub(super) is_refusal: bool,
}

type Answer = oneshot::Sender<Result<Outcome, ClusterError>>;

/// A session that a server has welcomed.
pub(super) struct Session {
    connection: Channel,
    address: String,
    incoming: Streaming<proto::ToAgent>,
    out: mpsc::Sender<proto::FromAgent>,
    /// What the server has to answer yet.
    waiting: HashMap<u64, (session_request::Request, Answer)>,
    next_number: u64,
    /// News of one view that are not complete.
    gathered: Vec<News>,
    leaderless_since: Option<Instant>,
}

impl Session {
    /// Greets the server at `address`, and waits for its welcome.
    pub(super) async fn open(
        connector: &mut Connector,
        address: &str,
        welcome_within: Duration,
    ) -> Result<Session, NoSession> {
        let away = |reason: String| NoSession {
            reason,
            is_refusal: false,
        };
        let endpoint = channel(address).map_err(away)?;
        // A session is left for silence, in so many words: a connection that is closed over a ping that was not answered
        // looks to the server like the end of this process.
        let connecting = endpoint.clone().keep_alive_timeout(LEASE);
        let connected = timeout(CONNECT_WITHIN, connecting.connect()).await;
        let connection = connected
            .map_err(|_| away("it does not answer".to_owned()))?
            .map_err(|error| away(root_cause(&error)))?;
        connector.parts_with(connection.clone());
        let session = rand::random();
        // What nobody reads of one answer must not keep others from coming.
        let calls = endpoint
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CALLS_WINDOW)
            .connect_lazy();
        let link = Link { calls, session };
        let (out, outgoing) = mpsc::channel(AHEAD);
        let node = mirror::pack(&connector.shared.node).map_err(|error| away(error.to_string()))?;
        let greeting = proto::Greeting {
            session,
            datacenter: connector.datacenter.clone(),
            cluster: connector.cluster.map(wire::write_id).unwrap_or_default(),
            index: connector.mirror.index(),
            node,
        };
        // There is room for it.
        let _ = out.try_send(proto::FromAgent {
            message: Some(From::Greeting(greeting)),
        });
        let mut sessions = Client::at(connection.clone());
        let welcoming = async {
            let answer = sessions.session(ReceiverStream::new(outgoing)).await?;
            let mut incoming = answer.into_inner();
            let first = incoming.message().await?;
            Ok::<_, Status>((incoming, first))
        };
        let welcomed = timeout(welcome_within, welcoming).await;
        let (incoming, first) = welcomed
            .map_err(|_| away("it does not answer".to_owned()))?
            .map_err(|status| no_session(&status))?;
        let Some(To::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(away("its first message is no welcome".to_owned()));
        };
        let cluster = wire::read_id(&welcome.cluster).map_err(|error| away(error.to_string()))?;
        if connector.cluster.is_none() {
            tracing::info!(address, "joined the cluster of a server");
        }
        connector.cluster = Some(cluster);
        let mut session = Session {
            connection,
            address: address.to_owned(),
            incoming,
            out,
            waiting: HashMap::new(),
            next_number: 0,
            gathered: Vec::new(),
            leaderless_since: None,
        };
        let shared = connector.shared.clone();
        session
            .take_servers(&shared, welcome.servers.unwrap_or_default())
            .map_err(away)?;
        shared.heard();
        let topics: Vec<Topic> = shared.topics().all().cloned().collect();
        connector.mirror.retain(&topics);
        for topic in topics {
            session
                .send(From::Follow(wire::write_topic(&topic)))
                .await
                .map_err(|_| away("it went away".to_owned()))?;
        }
        shared.link.send_replace(Some(link));
        Ok(session)
    }

    /// Runs until it is over. What the server has not answered then is unknown, or asked again elsewhere.
    pub(super) async fn run(mut self, connector: &mut Connector) -> End {
        let end = self.serve(connector).await;
        if matches!(end, End::Moving(_)) {
            let _ = self.say_bye(MOVE_WITHIN).await;
        }
        connector.parts_with(self.connection.clone());
        for (_, (request, answer)) in self.waiting.drain() {
            let error = match request {
                session_request::Request::Sync(_) => ClusterError::NoServers,
                session_request::Request::Change(_) => ClusterError::OutcomeUnknown(
                    "the outcome of the change is unknown: it may or may not have taken place (the connection to \
                     the server is lost); see whether it has before it is tried again"
                        .to_owned(),
                ),
            };
            let _ = answer.send(Err(error));
        }
        end
    }

    async fn serve(&mut self, connector: &mut Connector) -> End {
        let Connector {
            shared,
            mirror,
            asked,
            ..
        } = connector;
        let shared = shared.clone();
        let mut beat = tokio::time::interval(BEAT.mul_f64(rand::random_range(0.8..=1.0)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expire = tokio::time::interval(EXPIRE);
        let moving = tokio::time::sleep(REBALANCE.mul_f64(rand::random_range(0.5..=1.5)));
        tokio::pin!(moving);
        let mut heard = Instant::now();
        loop {
            let leaderless = self.leaderless_for(&shared);
            let done = tokio::select! {
                message = self.incoming.message() => {
                    heard = Instant::now();
                    shared.heard();
                    match message {
                        Ok(Some(message)) => self.take(&shared, mirror, message),
                        Ok(None) => Err(End::Lost("the server ended it".to_owned())),
                        Err(status) => Err(End::Lost(status.message().to_owned())),
                    }
                }
                Some(ask) = asked.recv() => self.ask(&shared, mirror, ask).await,
                _ = beat.tick() => self.send(From::Alive(proto::Alive::default())).await,
                () = tokio::time::sleep_until(heard + SILENCE) => {
                    Err(End::Lost("the server is silent".to_owned()))
                }
                () = tokio::time::sleep(LEADERLESS.saturating_sub(leaderless.unwrap_or_default())),
                    if leaderless.is_some() => Err(End::Moving("the server has no leader")),
                _ = expire.tick() => self.expire(&shared, mirror).await,
                () = &mut moving => {
                    moving.as_mut().reset(Instant::now() + REBALANCE);
                    self.rebalance(&shared)
                }
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn take(
        &mut self,
        shared: &Shared,
        mirror: &mut Mirror,
        message: proto::ToAgent,
    ) -> Result<(), End> {
        match message.message {
            Some(To::News(news)) => self.take_news(shared, mirror, news),
            Some(To::Servers(servers)) => self.take_servers(shared, servers).map_err(End::Lost),
            Some(To::Alive(alive)) => {
                shared.nodes.store(alive.nodes, Ordering::Relaxed);
                Ok(())
            }
            Some(To::Reply(reply)) => {
                if let Some((_, answer)) = self.waiting.remove(&reply.number) {
                    // Who asked may have given up.
                    let _ = answer.send(wire::read_reply(reply));
                }
                Ok(())
            }
            Some(To::Welcome(_)) => Err(End::Lost("the server welcomes twice".to_owned())),
            // Of a newer server, which can do without it.
            None => Ok(()),
        }
    }

    fn take_news(
        &mut self,
        shared: &Shared,
        mirror: &mut Mirror,
        news: proto::News,
    ) -> Result<(), End> {
        for piece in &news.news {
            let piece: News =
                mirror::unpack(piece).map_err(|error| End::Lost(error.to_string()))?;
            self.gathered.push(piece);
        }
        if news.more {
            return Ok(());
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        let mut topics: Vec<Topic> = gathered.iter().map(|news| news.topic().clone()).collect();
        topics.dedup();
        // What was given up meanwhile would stay for ever.
        let followed = shared.topics();
        gathered.retain(|news| followed.is_followed(news.topic()));
        drop(followed);
        let applied = mirror.apply(news.index, gathered);
        applied.map_err(|error| End::Lost(format!("news that do not fit: {error}")))?;
        let mut first = false;
        let mut followed = shared.topics();
        for topic in &topics {
            first |= followed.told(topic);
        }
        drop(followed);
        if first {
            shared.told.send_replace(());
        }
        Ok(())
    }

    fn take_servers(&mut self, shared: &Shared, list: proto::ServerList) -> Result<(), String> {
        let leader = list.leader.map(|leader| wire::read_server(Some(leader)));
        let leader = leader
            .transpose()
            .map_err(|error| error.to_string())?
            .map(|(id, server)| (id, server.address));
        let members = list.servers.into_iter().map(|server| {
            let (id, server) = wire::read_server(Some(server))?;
            let is_leader = leader.as_ref().is_some_and(|(leader, _)| *leader == id);
            Ok(Member {
                leader: is_leader,
                ..Member::named(id, server.name, server.address)
            })
        });
        let members = members
            .collect::<Result<Vec<_>, wire::Malformed>>()
            .map_err(|error| error.to_string())?;
        self.leaderless_since = match leader {
            Some(_) => None,
            None => Some(self.leaderless_since.unwrap_or_else(Instant::now)),
        };
        let servers = Servers {
            members,
            leader: leader.map(|(_, address)| address),
        };
        let addresses: Vec<String> = servers
            .members
            .iter()
            .map(|server| server.address.clone())
            .collect();
        let mut moved = false;
        shared.servers.send_if_modified(|known| {
            let before = known.members.iter().map(|server| &server.address);
            moved = before.ne(&addresses);
            let changed = *known != servers;
            *known = servers;
            changed
        });
        if moved {
            shared.remembered.keep(addresses);
        }
        Ok(())
    }

    async fn ask(&mut self, shared: &Shared, mirror: &mut Mirror, ask: Ask) -> Result<(), End> {
        match ask {
            Ask::Follow(topics) => {
                for topic in topics {
                    self.send(From::Follow(wire::write_topic(&topic))).await?;
                }
                Ok(())
            }
            Ask::Unfollow(mut topics) => {
                // Somebody may have wanted one again, and been faster.
                topics.retain(|topic| !shared.topics().is_followed(topic));
                for topic in topics {
                    mirror.forget(&topic);
                    self.send(From::Unfollow(wire::write_topic(&topic))).await?;
                }
                Ok(())
            }
            // Who asked has given up.
            Ask::Request { answer, .. } if answer.is_closed() => Ok(()),
            Ask::Request { request, answer } => {
                let number = self.next_number;
                self.next_number += 1;
                self.waiting.insert(number, (request.clone(), answer));
                let request = proto::SessionRequest {
                    number,
                    request: Some(request),
                };
                self.send(From::Request(request)).await
            }
            Ask::Bye { hold, said } => {
                let end = self.say_bye(hold).await;
                let _ = said.send(());
                end?;
                Err(End::Over)
            }
        }
    }

    /// Ends the session on this side, and waits until the server has taken that in.
    async fn say_bye(&mut self, hold: Duration) -> Result<(), End> {
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        self.send(From::Bye(proto::Bye { hold_ms })).await?;
        let ended = async { while let Ok(Some(_)) = self.incoming.message().await {} };
        let _ = timeout(Duration::from_millis(500), ended).await;
        Ok(())
    }

    /// For how long the server has had no leader, while there are other servers.
    fn leaderless_for(&self, shared: &Shared) -> Option<Duration> {
        let others = shared.servers.borrow().members.len() > 1;
        let since = self.leaderless_since.filter(|_| others)?;
        Some(since.elapsed())
    }

    async fn expire(&mut self, shared: &Shared, mirror: &mut Mirror) -> Result<(), End> {
        for topic in shared.expire() {
            mirror.forget(&topic);
            self.send(From::Unfollow(wire::write_topic(&topic))).await?;
        }
        Ok(())
    }

    /// Goes to the server that chance picks of all of them; it may be this one.
    fn rebalance(&self, shared: &Shared) -> Result<(), End> {
        let servers = shared.servers.borrow();
        let members = &servers.members;
        if members.len() < 2 || !self.waiting.is_empty() {
            return Ok(());
        }
        match &members[rand::random_range(..members.len())] {
            picked if picked.address == self.address => Ok(()),
            _ => Err(End::Moving("so that all servers have their share")),
        }
    }

    async fn send(&self, message: From) -> Result<(), End> {
        let message = proto::FromAgent {
            message: Some(message),
        };
        match timeout(SILENCE, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Lost("the connection broke".to_owned())),
            Err(_) => Err(End::Lost("the server does not read".to_owned())),
        }
    }
}

fn no_session(status: &Status) -> NoSession {
    let refusals = [
        Code::FailedPrecondition,
        Code::AlreadyExists,
        Code::InvalidArgument,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::Unimplemented,
    ];
    NoSession {
        reason: status.message().to_owned(),
        is_refusal: refusals.contains(&status.code()) && !is_connect_error(status),
    }
}
