//! A client agent's way to the servers.
//!
//! It is with one server, over two connections. One is its *session*, which is its lease, carries its changes, and tells
//! it what it follows; requests of the HTTP API and watches that it passes on go over the other.
//! If the server is lost, silent or without a leader, another takes its place.
//!
//! ```text
//! session    one session, from greeting to end
//! connect    which server, and when to go to another
//! topics     what is followed, and for how long
//! call       requests of the HTTP API, passed on
//! names      what DNS needs
//! remembered the servers, for the next run
//! ```
//!
//! What is followed is held in a [`Mirror`](wharf_registry::Mirror), whose registry everything above reads as it would
//! read a server's: anti-entropy its own node, a proxy the services that it calls, DNS what it is asked for, the
//! platform its allocations. It is there while no server can be reached, as of the last moment that one could.

mod call;
mod connect;
mod names;
mod remembered;
mod session;
#[cfg(test)]
mod tests;
mod topics;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming, transport::Channel};
use wharf_proto::{
    server::v1::{self as proto, agents_client::AgentsClient, session_request},
    v1::{WatchRequest, WatchResponse},
};
use wharf_registry::{
    Command, Mirror, Outcome, Registry, consensus::Member, mirror::Topic, model::Node,
    watch::WatchKey,
};

use self::{connect::Connector, remembered::Remembered, topics::Topics};
use crate::{
    cluster::{BoxFuture, Cluster, ClusterError, Consistency, Leader},
    rates::Rates,
    servers::{MAX_MESSAGE, channel, left, lookup_place, root_cause},
};

pub(crate) use names::Names;

/// How long an agent waits for what, and whom it avoids, for those who play it.
#[cfg(test)]
pub(crate) mod patience {
    pub(crate) use super::{
        connect::{FIRST_PAUSE, FIRST_WELCOME, LAST_PAUSE, LAST_WELCOME, Left},
        session::{BEAT as AGENT_BEAT, LEADERLESS, MOVE_WITHIN, SILENCE as AGENT_SILENCE},
    };
}

/// Questions to the session that wait at once.
const WAITING: usize = 1024;
/// Places of servers that are remembered.
const MAX_PLACES: usize = 64;
/// How long what is known here waits for a server that knows better.
const MOMENT: Duration = Duration::from_millis(500);
/// How long an agent that leaves tries to say so.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How long an agent that ends without leaving is expected back.
const RESTART_WITHIN: Duration = Duration::from_secs(10);

/// What a client agent has to know before it begins.
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    /// As it stands in the catalog.
    pub(crate) node: Node,
    pub(crate) datacenter: String,
    /// Where servers may be: `host`, `host:port` or an address.
    pub(crate) retry_join: Vec<String>,
    /// Where the servers are remembered, if anywhere.
    pub(crate) data_dir: Option<PathBuf>,
    /// The port of a place without one.
    pub(crate) default_port: u16,
    /// How long reads and writes wait for a server.
    pub(crate) hold: Duration,
    pub(crate) rates: Rates,
}

/// The way to the servers. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    topics: Mutex<Topics>,
    /// Moves when something that is followed was told for the first time.
    told: watch::Sender<()>,
    asks: mpsc::Sender<Ask>,
    link: watch::Sender<Option<Link>>,
    /// Every place was tried, and there never was a session: whoever asks for a server need not wait.
    none_found: watch::Sender<bool>,
    servers: watch::Sender<Servers>,
    nodes: AtomicU64,
    last_contact: Mutex<Option<Instant>>,
    hold: Duration,
    rates: Rates,
    node: Node,
    /// Where servers may be, as told at the start and since.
    places: Mutex<Vec<String>>,
    /// Where they were in the last run.
    remembered_places: Vec<String>,
    remembered: Remembered,
    default_port: u16,
}

/// The connections to a server that has welcomed this agent.
#[derive(Clone, Debug)]
struct Link {
    /// For calls and watches. Not that of the session, which must not wait because somebody does not read a long answer.
    calls: Channel,
    /// Another one for every session.
    session: u64,
}

/// The servers, as one of them told last.
#[derive(Clone, Debug, Default, PartialEq)]
struct Servers {
    members: Vec<Member>,
    leader: Option<String>,
}

/// What the session is asked for.
#[derive(Debug)]
enum Ask {
    Follow(Vec<Topic>),
    Unfollow(Vec<Topic>),
    Request {
        request: session_request::Request,
        answer: oneshot::Sender<Result<Outcome, ClusterError>>,
    },
    Bye {
        hold: Duration,
        said: oneshot::Sender<()>,
    },
}

/// The task behind a [`Client`].
#[derive(Debug)]
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the session with the servers ended badly");
        }
    }
}

/// Begins to look for servers.
pub(crate) fn start(options: ClientOptions) -> (Client, Running) {
    let mirror = Mirror::new();
    let (asks, asked) = mpsc::channel(WAITING);
    let (remembered, remembered_places) =
        Remembered::open(options.data_dir.as_deref(), &options.retry_join);
    let shared = Arc::new(Shared {
        registry: mirror.registry(),
        topics: Mutex::default(),
        told: watch::Sender::new(()),
        asks,
        link: watch::Sender::new(None),
        none_found: watch::Sender::new(false),
        servers: watch::Sender::default(),
        nodes: AtomicU64::new(0),
        last_contact: Mutex::default(),
        hold: options.hold,
        rates: options.rates,
        node: options.node,
        places: Mutex::new(options.retry_join),
        remembered_places,
        remembered,
        default_port: options.default_port,
    });
    let stop = CancellationToken::new();
    let connector = Connector::new(options.datacenter, shared.clone(), mirror, asked);
    let running = Running {
        stop: stop.clone(),
        task: tokio::spawn(connector.run(stop)),
    };
    (Client { shared }, running)
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Vec<String>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topics that nobody needs any more; they are not followed from here on.
    fn expire(&self) -> Vec<Topic> {
        let watches = self.registry.watches();
        self.topics().expire(Instant::now(), |topic| {
            topic.keys().iter().any(|key| watches.is_watched(key))
        })
    }

    fn heard(&self) {
        let mut last = self
            .last_contact
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(Instant::now());
    }
}

impl Client {
    /// Asks once, at the session that there is, or the next one.
    async fn ask_once(
        &self,
        request: session_request::Request,
        deadline: Instant,
    ) -> Result<Outcome, ClusterError> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Request { request, answer };
        let none = |_| match self.shared.link.borrow().is_some() {
            true => ClusterError::NoLeader,
            false => ClusterError::NoServers,
        };
        let sent = tokio::time::timeout_at(deadline, self.shared.asks.send(ask)).await;
        sent.map_err(none)?
            .map_err(|_| ClusterError::ShuttingDown)?;
        // While there is a session its server answers, or the session ends; without one, time runs out.
        let mut link = self.shared.link.subscribe();
        let no_session = async {
            tokio::time::sleep_until(deadline).await;
            let _ = link.wait_for(Option::is_none).await;
        };
        tokio::select! {
            answer = answered => answer.unwrap_or(Err(ClusterError::ShuttingDown)),
            () = no_session => Err(ClusterError::NoServers),
        }
    }

    /// Asks until there is an answer, within the hold time.
    async fn ask(&self, request: session_request::Request) -> Result<Outcome, ClusterError> {
        let deadline = Instant::now() + self.shared.hold;
        loop {
            let result = self.ask_once(request.clone(), deadline).await;
            let again = matches!(
                result,
                Err(ClusterError::NoLeader | ClusterError::NoServers)
            );
            if !again || Instant::now() >= deadline {
                return result;
            }
            // The server had waited for a leader itself: the next one may know one.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Follows topics; completes when all of them have been told, or with false at the deadline.
    async fn follow(&self, topics: Vec<Topic>, deadline: Instant) -> bool {
        let mut told = self.shared.told.subscribe();
        let (new, too_many) = {
            let mut followed = self.shared.topics();
            let new = followed.want(&topics, Instant::now());
            (new, followed.are_too_many())
        };
        if too_many {
            // The session does it now and then; whoever asks for names at random is faster.
            let given_up = self.shared.expire();
            // If it does not get through, the next session does not follow them.
            let _ = self.shared.asks.try_send(Ask::Unfollow(given_up));
        }
        if !new.is_empty() {
            let ask = self.shared.asks.send(Ask::Follow(new));
            // If it does not get through, the next session follows them.
            let _ = tokio::time::timeout_at(deadline, ask).await;
        }
        loop {
            if self.shared.topics().are_told(&topics) {
                return true;
            }
            match tokio::time::timeout_at(deadline, told.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }

    /// The connection that there is, or the next one.
    async fn link(&self, deadline: Instant) -> Result<Link, ClusterError> {
        let mut link = self.shared.link.subscribe();
        let mut none_found = self.shared.none_found.subscribe();
        tokio::select! {
            biased;
            there = tokio::time::timeout_at(deadline, link.wait_for(Option::is_some)) => match there {
                Ok(Ok(link)) => link.clone().ok_or(ClusterError::NoServers),
                Ok(Err(_)) => Err(ClusterError::ShuttingDown),
                Err(_) => Err(ClusterError::NoServers),
            },
            Ok(_) = none_found.wait_for(|none_found| *none_found) => Err(ClusterError::NoServers),
        }
    }

    /// Whether there is a server, or one comes within a moment.
    pub(crate) async fn has_server(&self) -> bool {
        self.link(Instant::now() + MOMENT).await.is_ok()
    }

    fn calls(link: &Link) -> AgentsClient<Channel> {
        Self::at(link.calls.clone())
    }

    fn at(channel: Channel) -> AgentsClient<Channel> {
        AgentsClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Passes a watch on to a server.
    pub(crate) async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let passed_on = self.shared.rates.pass_on();
        passed_on.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let deadline = Instant::now() + self.shared.hold;
        let link = self.link(deadline).await;
        let link = link.map_err(|error| Status::unavailable(error.to_string()))?;
        let (metadata, _, message) = request.into_parts();
        let mut passed_on = Request::new(message);
        // Who asks is for the server to judge.
        for name in ["x-consul-token", "authorization"] {
            if let Some(value) = metadata.get(name) {
                passed_on.metadata_mut().insert(name, value.clone());
            }
        }
        let answers = Self::calls(&link).watch(passed_on).await?;
        Ok(answers.into_inner())
    }

    /// Looks for servers at another place, if there is one.
    pub(crate) async fn join(&self, place: &str) -> Result<(), ClusterError> {
        let failed =
            |reason: String| ClusterError::Operation(format!("Failed to join {place}: {reason}"));
        let addresses = lookup_place(place, self.shared.default_port).await;
        let addresses = addresses.map_err(|error| failed(error.to_string()))?;
        let mut reason = "no address".to_owned();
        for address in addresses {
            let endpoint = channel(&address).map_err(failed)?;
            match endpoint.connect().await {
                Ok(_) => {
                    let mut places = self.shared.places();
                    if !places.contains(&place.to_owned()) && places.len() < MAX_PLACES {
                        places.push(place.to_owned());
                    }
                    return Ok(());
                }
                Err(error) => reason = format!("{address}: {}", root_cause(&error)),
            }
        }
        Err(failed(reason))
    }

    /// Takes this node out of the catalog, with everything on it. An error says why it is still there.
    pub(crate) async fn leave(&self) -> Result<(), String> {
        let leaves = left::leave(self.shared.node.name.clone());
        let gone = tokio::time::timeout(LEAVE_WITHIN, self.propose(leaves)).await;
        let reason = match gone {
            Ok(Ok(_)) => {
                tracing::info!("left the cluster");
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no server answers".to_owned(),
        };
        Err(format!(
            "this agent ends, and the servers will find its node gone instead of left: {reason}"
        ))
    }

    /// Tells the server that this agent ends on purpose, and is expected back for a while.
    pub(crate) async fn bye(&self) {
        let (said, heard) = oneshot::channel();
        let hold = RESTART_WITHIN;
        if self.shared.link.borrow().is_none()
            || self.shared.asks.try_send(Ask::Bye { hold, said }).is_err()
        {
            return;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), heard).await;
    }
}

impl Cluster for Client {
    fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>> {
        Box::pin(self.ask(session_request::Request::Change(command.encode())))
    }

    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(async move {
            let freshness = match consistency {
                Consistency::Stale => return Ok(()),
                Consistency::Default => proto::Freshness::Lease,
                Consistency::Consistent => proto::Freshness::Quorum,
            };
            let request = session_request::Request::Sync(freshness.into());
            self.ask(request).await.map(|_| ())
        })
    }

    fn leader(&self) -> Option<Leader> {
        self.shared.link.borrow().as_ref()?;
        let servers = self.shared.servers.borrow();
        Some(Leader {
            address: servers.leader.clone()?,
            is_self: false,
        })
    }

    fn peers(&self) -> Vec<String> {
        let servers = self.shared.servers.borrow();
        let addresses = servers.members.iter().map(|member| member.address.clone());
        addresses.collect()
    }

    fn term(&self) -> u64 {
        0
    }

    /// Also a new session: what the agent says of its node is compared then.
    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        let mut servers = self.shared.servers.subscribe();
        let mut link = self.shared.link.subscribe();
        let leader = servers.borrow_and_update().leader.clone();
        let session = link.borrow_and_update().as_ref().map(|link| link.session);
        Box::pin(async move {
            loop {
                let changed = tokio::select! {
                    changed = servers.changed() => changed,
                    changed = link.changed() => changed,
                };
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let now = link.borrow_and_update().as_ref().map(|link| link.session);
                if servers.borrow_and_update().leader != leader || now != session {
                    return;
                }
            }
        })
    }

    fn last_contact(&self) -> Option<Duration> {
        let last = self
            .shared
            .last_contact
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }

    fn have<'a>(&'a self, keys: &'a [WatchKey]) -> BoxFuture<'a, Result<(), ClusterError>> {
        Box::pin(async move {
            let topics: Vec<Topic> = keys.iter().filter_map(Topic::of).collect();
            let deadline = Instant::now() + self.shared.hold;
            match self.follow(topics, deadline).await {
                true => Ok(()),
                false => Err(ClusterError::NoServers),
            }
        })
    }

    fn node_count(&self) -> usize {
        let nodes = self.shared.nodes.load(Ordering::Relaxed);
        usize::try_from(nodes).unwrap_or(usize::MAX)
    }

    fn client(&self) -> Option<&Client> {
        Some(self)
    }

    fn stats(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn servers(&self) -> Vec<Member> {
        self.shared.servers.borrow().members.clone()
    }

    fn out_of_reach(&self) -> BTreeSet<String> {
        match self.shared.link.borrow().is_some() {
            true => BTreeSet::new(),
            false => self.peers().into_iter().collect(),
        }
    }
}
