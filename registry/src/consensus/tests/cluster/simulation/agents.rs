//! Client agents: each is with one server, changes its own node there, and holds a mirror of what it follows.
//!
//! What is told and taken in is the work of [`Feed`] and [`Mirror`]; the two loops around them stand for those of the
//! agent crate, with its patience. Whatever a server tells comes with the view that it told it of, so that every time
//! the mirror can be compared with what it should be.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future, stream::FuturesUnordered};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use wharf_tests::{
    Chance,
    promises::{self, Shown},
};

use super::{
    super::{
        super::{
            process::{Clock, Process},
            *,
        },
        net::{Host, Net},
    },
    clients::Shared,
};
use crate::{
    command::{Deregister, DeregisterTarget, Register},
    mirror::{Feed, Mirror, News, Topic, news, pack, unpack},
    model::{Node, NodeService, fold_name},
    view::View,
    watch::{WatchKey, Watcher},
};

/// As in the agent crate.
const WELCOME_WITHIN: Duration = Duration::from_secs(12);
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(4);
const LEADERLESS: Duration = Duration::from_secs(2);
const SERVER_BEAT: Duration = Duration::from_secs(1);
const GATHER: Duration = Duration::from_millis(5);
/// What all of them offer, and follow.
const SERVICE: &str = "web";

/// What an agent says.
enum ToServer {
    Greeting { index: u64 },
    Follow(Topic),
    Change(u64, Command),
    Bye,
}

/// What a server says.
enum ToAgent {
    Welcome,
    News {
        index: u64,
        news: Vec<Bytes>,
        /// Of which view it is.
        truth: Arc<View>,
    },
    Alive {
        has_leader: bool,
    },
    Reply {
        number: u64,
        done: bool,
    },
}

// === the server's side ===

/// Carries messages to the other end, until one is lost or nobody reads any more.
fn pump<T: Send + 'static>(
    net: Arc<Net>,
    from: ServerId,
    to: ServerId,
) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    let (sender, mut sent) = mpsc::channel(4);
    let (arrived, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                biased;
                () = arrived.closed() => return,
                message = sent.recv() => message,
            };
            let Some(message) = message else { return };
            if !net.arrives(from, to).await || arrived.send(message).await.is_err() {
                return;
            }
        }
    });
    (sender, receiver)
}

struct Session {
    shared: Shared,
    host: Host,
    out: mpsc::Sender<ToAgent>,
    feed: Feed,
    watchers: BTreeMap<WatchKey, Watcher>,
}

impl Session {
    /// Serves an agent to the end.
    async fn serve(
        shared: Shared,
        host: Host,
        mut incoming: mpsc::Receiver<ToServer>,
        out: mpsc::Sender<ToAgent>,
    ) -> Option<()> {
        let Some(ToServer::Greeting { index }) = incoming.recv().await else {
            return None;
        };
        let caught_up = host.consensus.wait_applied(index);
        timeout(CATCH_UP_WITHIN, caught_up).await.ok()?.ok()?;
        out.send(ToAgent::Welcome).await.ok()?;
        let registry = host.consensus.registry();
        let mut session = Session {
            shared,
            host,
            out,
            feed: Feed::new(registry.view()),
            watchers: BTreeMap::new(),
        };
        let mut pending = FuturesUnordered::new();
        let mut beat = tokio::time::interval(SERVER_BEAT);
        loop {
            let mut done = None;
            tokio::select! {
                biased;
                message = incoming.recv() => match message? {
                    ToServer::Follow(topic) => session.feed.follow(topic),
                    ToServer::Change(number, command) => {
                        let (shared, host) = (session.shared.clone(), session.host.clone());
                        pending.push(async move {
                            (number, shared.propose(&host, command).await)
                        });
                        continue;
                    }
                    ToServer::Greeting { .. } | ToServer::Bye => return None,
                },
                () = any_changed(&mut session.watchers) => tokio::time::sleep(GATHER).await,
                Some(outcome) = pending.next() => done = Some(outcome),
                _ = beat.tick() => {
                    let has_leader = session.host.consensus.leader().is_some();
                    session.out.send(ToAgent::Alive { has_leader }).await.ok()?;
                }
            }
            for key in session.feed.keys() {
                let watch = || registry.watch(key.clone());
                session.watchers.entry(key.clone()).or_insert_with(watch);
            }
            session.tell(registry.view()).await?;
            if let Some((number, outcome)) = done {
                let done = matches!(outcome, Some(Ok(_)));
                let reply = ToAgent::Reply { number, done };
                session.out.send(reply).await.ok()?;
            }
        }
    }

    /// Tells what is different in `view`.
    async fn tell(&mut self, view: Arc<View>) -> Option<()> {
        let truth = view.clone();
        let news = self.feed.tell(view);
        if news.is_empty() {
            return Some(());
        }
        let news = news.into_iter().flat_map(|news| news.split(1));
        let told = ToAgent::News {
            index: truth.applied(),
            news: news.map(|news| pack(&news).unwrap()).collect(),
            truth,
        };
        self.out.send(told).await.ok()
    }
}

async fn any_changed(watchers: &mut BTreeMap<WatchKey, Watcher>) {
    let changed = watchers.values_mut();
    let changed: Vec<_> = changed.map(|watcher| watcher.changed().boxed()).collect();
    match changed.is_empty() {
        true => future::pending().await,
        false => drop(future::select_all(changed).await),
    }
}

// === the agent's side ===

/// Why it goes to another server.
enum End {
    Lost,
    Moving,
}

/// An agent from outside.
pub(super) struct Agent {
    pub(super) id: ServerId,
    pub(super) process: Arc<Process>,
    state: Arc<Mutex<Seen>>,
    topics: Vec<Topic>,
    registry: Registry,
    _task: JoinHandle<()>,
    _watch: JoinHandle<()>,
}

/// Who offers the service, and at which port.
type Answer = Vec<(String, u16)>;

#[derive(Default)]
struct Seen {
    /// What somebody was shown who watches the service on the agent.
    shown: Vec<Shown<Answer>>,
    /// How many sessions there were, and changes that were acknowledged.
    sessions: usize,
    changes: usize,
    wrong: Vec<String>,
}

struct Running {
    shared: Shared,
    id: ServerId,
    name: String,
    chance: Chance,
    mirror: Mirror,
    topics: Vec<Topic>,
    state: Arc<Mutex<Seen>>,
    /// Those that were told in this session: what it has of the others is older.
    told: BTreeSet<Topic>,
    /// The newest index of each topic that was shown.
    indexes: BTreeMap<Topic, u64>,
    port: u16,
    /// The change that has no answer: its number, and what is there afterwards.
    waiting: Option<(u64, Option<u16>)>,
    /// What is there after changes whose outcome is unknown, which may take place at any time.
    unknown: Vec<Option<u16>>,
    next_number: u64,
}

impl Agent {
    pub(super) fn start(shared: &Shared, number: u128, seed: u64) -> Agent {
        let mut chance = Chance::new(seed);
        let process = Process::new(chance.below(u64::MAX), Clock::right());
        let id = ServerId(Uuid::from_u128((1 << 64) + number));
        let mirror = Mirror::new();
        let registry = mirror.registry();
        let name = format!("agent-{number}");
        let topics = vec![
            Topic::node(&name),
            Topic::node("agent-0"),
            Topic::service(SERVICE),
        ];
        let state = Arc::<Mutex<Seen>>::default();
        let running = Running {
            shared: shared.clone(),
            id,
            name,
            chance,
            mirror,
            topics: topics.clone(),
            state: state.clone(),
            told: BTreeSet::new(),
            indexes: BTreeMap::new(),
            port: 0,
            waiting: None,
            unknown: Vec::new(),
            next_number: 0,
        };
        let watching = watch(registry.clone(), state.clone());
        Agent {
            id,
            state,
            topics,
            registry,
            _task: process.spawn(running.run()),
            _watch: process.spawn(watching),
            process,
        }
    }

    /// How many sessions it had, and how many of its changes were acknowledged.
    pub(super) fn figures(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.sessions, state.changes)
    }

    /// Waits until the mirror holds what `server` does, and says what was wrong on the way.
    pub(super) async fn judge(&self, server: &Consensus) -> Result<(), String> {
        let caught_up = async {
            while !same(
                &self.topics,
                &self.registry.view(),
                &server.registry().view(),
            ) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // Whoever watches is shown it.
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let caught_up = timeout(Duration::from_secs(30), caught_up).await;
        let state = self.state.lock().unwrap();
        if let Some(wrong) = state.wrong.first() {
            return Err(wrong.clone());
        }
        caught_up.map_err(|_| "the mirror does not catch up".to_owned())?;
        if let Some(holds) = answer(&self.registry.view()) {
            promises::without_gap(&holds, &state.shown)?;
        }
        promises::without_duplicates(&state.shown)?;
        promises::index_grows(&state.shown)
    }
}

fn same<'a>(topics: impl IntoIterator<Item = &'a Topic>, one: &View, other: &View) -> bool {
    let mut topics = topics.into_iter();
    topics.all(|topic| news(topic, None, one) == news(topic, None, other))
}

/// The service as a view has it, if it is there.
fn answer(view: &View) -> Option<Shown<Answer>> {
    let entry = view.service(SERVICE)?;
    let instances = entry.instances.values();
    let answer = instances
        .map(|instance| (instance.node.name.to_string(), instance.service.port))
        .collect();
    Some(Shown {
        index: entry.index,
        answer,
    })
}

/// Somebody who watches the service on an agent, as a proxy does.
async fn watch(registry: Registry, state: Arc<Mutex<Seen>>) {
    loop {
        let mut watcher = registry.watch(WatchKey::service(SERVICE));
        if let Some(now) = answer(&registry.view()) {
            let mut state = state.lock().unwrap();
            if state.shown.last().is_none_or(|last| *last != now) {
                state.shown.push(now);
            }
        }
        watcher.changed().await;
    }
}

impl Running {
    async fn run(mut self) {
        let mut left = None;
        loop {
            let mut hosts = self.shared.net.hosts();
            // The one that was left last is tried after all others.
            let (last, mut order) = hosts
                .drain(..)
                .partition::<Vec<_>, _>(|host| Some(host.consensus.id()) == left);
            for at in (1..order.len()).rev() {
                order.swap(at, self.chance.below(at as u64 + 1) as usize);
            }
            order.extend(last);
            left = None;
            for host in order {
                if self.session(&host).await.is_some() {
                    left = Some(host.consensus.id());
                    break;
                }
            }
            if left.is_none() {
                tokio::time::sleep(self.chance.millis(50, 500)).await;
            }
        }
    }

    /// One session from beginning to end; `None` where there was none.
    async fn session(&mut self, host: &Host) -> Option<End> {
        let (net, server) = (self.shared.net.clone(), host.consensus.id());
        let (out, incoming) = pump(net.clone(), self.id, server);
        let (to_agent, mut told) = pump(net, server, self.id);
        let index = self.mirror.index();
        out.send(ToServer::Greeting { index }).await.ok()?;
        let serving = Session::serve(self.shared.clone(), host.clone(), incoming, to_agent);
        host.process.spawn(serving);
        let welcome = timeout(WELCOME_WITHIN, told.recv()).await.ok()??;
        let ToAgent::Welcome = welcome else {
            self.wrong("the first message is no welcome".to_owned());
            return None;
        };
        self.state.lock().unwrap().sessions += 1;
        self.unknown
            .extend(self.waiting.take().map(|(_, port)| port));
        self.told.clear();
        for topic in self.topics.clone() {
            out.send(ToServer::Follow(topic)).await.ok()?;
        }
        let end = self.follow(&out, &mut told).await;
        if let End::Moving = end {
            let _ = timeout(SILENCE, out.send(ToServer::Bye)).await;
        }
        Some(end)
    }

    async fn follow(
        &mut self,
        out: &mpsc::Sender<ToServer>,
        told: &mut mpsc::Receiver<ToAgent>,
    ) -> End {
        let moving = tokio::time::sleep(self.chance.millis(2_000, 20_000));
        tokio::pin!(moving);
        let mut heard = tokio::time::Instant::now();
        let mut leaderless: Option<tokio::time::Instant> = None;
        let mut gap = self.chance.millis(200, 1200);
        let mut changed = tokio::time::Instant::now();
        loop {
            let rests = self.waiting.is_some() || self.shared.stop.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                message = told.recv() => {
                    heard = tokio::time::Instant::now();
                    match message {
                        None => return End::Lost,
                        Some(ToAgent::Alive { has_leader: true }) => leaderless = None,
                        Some(ToAgent::Alive { has_leader: false }) => {
                            let since = *leaderless.get_or_insert(heard);
                            if since.elapsed() >= LEADERLESS {
                                return End::Moving;
                            }
                        }
                        Some(message) => self.take(message),
                    }
                }
                () = tokio::time::sleep_until(heard + SILENCE) => return End::Lost,
                () = &mut moving => return End::Moving,
                () = tokio::time::sleep_until(changed + gap), if !rests => {
                    changed = tokio::time::Instant::now();
                    gap = self.chance.millis(200, 1200);
                    let change = self.change();
                    match timeout(SILENCE, out.send(change)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return End::Lost,
                    }
                }
            }
        }
    }

    /// The next change of its own node.
    fn change(&mut self) -> ToServer {
        let number = self.next_number;
        self.next_number += 1;
        let there = self.chance.below(4) > 0;
        if there {
            self.port += 1;
        }
        self.waiting = Some((number, there.then_some(self.port)));
        let node = Node {
            name: self.name.as_str().into(),
            id: self.id.0.to_string().into(),
            address: "10.0.0.1".into(),
            ..Node::default()
        };
        let command = match there {
            true => Command::Register(Box::new(Register {
                node,
                service: Some(NodeService {
                    id: SERVICE.into(),
                    name: SERVICE.into(),
                    port: self.port,
                    ..NodeService::default()
                }),
                ..Register::default()
            })),
            false => Command::Deregister(Deregister {
                node: fold_name(&self.name),
                target: DeregisterTarget::Service(SERVICE.into()),
            }),
        };
        ToServer::Change(number, command)
    }

    fn take(&mut self, message: ToAgent) {
        match message {
            ToAgent::News { index, news, truth } => {
                let news: Vec<News> = news.iter().map(|piece| unpack(piece).unwrap()).collect();
                let topics = news.iter().map(|news| news.topic().clone());
                self.told.extend(topics);
                let before = self.mirror.index();
                if index < before {
                    self.wrong(format!("after {before} the server tells of {index}"));
                }
                if let Err(error) = self.mirror.apply(index, news) {
                    self.wrong(format!("news that do not fit: {error}"));
                }
                let view = self.mirror.registry().view();
                if !same(&self.told, &view, &truth) {
                    self.wrong(format!("at {index} the mirror is not what the server has"));
                }
                self.indexes_grow(&view);
                self.shared
                    .net
                    .note(|| format!("{} is told of {index}", self.name));
            }
            ToAgent::Reply { number, done } => {
                let Some((_, port)) = self.waiting.take_if(|waiting| waiting.0 == number) else {
                    return;
                };
                if !done {
                    self.unknown.push(port);
                    return;
                }
                self.state.lock().unwrap().changes += 1;
                // It reads its own writes.
                let view = self.mirror.registry().view();
                let own = view.node(&self.name);
                let own = own.and_then(|node| node.services.get(SERVICE));
                let holds = own.map(|service| service.port);
                if holds != port && !self.unknown.contains(&holds) {
                    self.wrong(format!("{port:?} was acknowledged, {holds:?} is there"));
                }
            }
            ToAgent::Welcome | ToAgent::Alive { .. } => {}
        }
    }

    fn indexes_grow(&mut self, view: &View) {
        for topic in &self.topics {
            let index = match topic {
                Topic::Node(name) => view.node(name).map(|entry| entry.index),
                Topic::Service(name) => view.service(name).map(|entry| entry.index),
                Topic::Config | Topic::PlatformNode(_) => None,
            };
            let Some(index) = index else { continue };
            let shown = self.indexes.entry(topic.clone()).or_default();
            if index < *shown {
                let text = format!("{topic:?} was shown at {shown}, and then at {index}");
                self.state.lock().unwrap().wrong.push(text);
            }
            *shown = index;
        }
    }

    fn wrong(&self, text: String) {
        let text = format!("{}: {text}", self.name);
        self.shared.net.note(|| text.clone());
        self.state.lock().unwrap().wrong.push(text);
    }
}
