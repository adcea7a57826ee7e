//! How servers find each other, and what comes of it.
//!
//! A server without a cluster greets every place it was told of, and every server it hears of, again and
//! again. What it learns decides ([`decide`], pure):
//!
//! * Somebody is in a cluster: join that one, at its leader.
//! * Nobody is, and as many as expected are there and know the same servers: the one with the lowest id
//!   asks each of the others for its promise, and founds the cluster when it has all of them. A promise is
//!   given once and kept on disk; so no server is in two founding sets, however the greetings cross.
//! * A promise is taken back when the founder is found to have forgotten it: it runs, and neither founded
//!   nor is about to; or another server is at its address.

mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use wharf_proto::server::v1 as proto;
use wharf_registry::{
    consensus::{ClusterId, Consensus, Envelope, Leader},
    log::{Server, ServerId},
};

use self::decide::{Action, Met, Own, decide, led_by};
use super::{
    CallError, Introduction, Peers,
    client::enveloped,
    complaints::Complaints,
    wire::{self, Malformed},
};

/// How long a place has to answer a greeting, and a server to a call.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Joining is a change of the membership, which may wait for another one.
const JOIN_WITHIN: Duration = Duration::from_secs(15);
/// How often a server without a cluster looks around.
const ROUND: Duration = Duration::from_secs(1);
/// How often one with a cluster makes sure that it is where the others think it is, and that its places
/// are of its cluster.
const SETTLED_ROUND: Duration = Duration::from_secs(15);
/// The same while it hears of no leader.
const LEADERLESS_ROUND: Duration = Duration::from_secs(3);
/// Places that are remembered from greetings; far more than a cluster has.
const MAX_PLACES: usize = 64;

#[derive(Debug)]
pub(crate) struct Introductions {
    consensus: Consensus,
    peers: Peers,
    about: Introduction,
    inner: Mutex<Inner>,
    founding: AtomicBool,
    /// Somebody new has greeted us.
    news: Notify,
    complaints: Complaints,
}

/// Why a place is not joined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("Failed to resolve {place}: {source}")]
    Unknown {
        place: String,
        source: std::io::Error,
    },
    #[error("Failed to join {place}: {error}")]
    NoServer { place: String, error: CallError },
    #[error("Failed to join {place}: it is of datacenter {theirs:?}, and this server of {ours:?}")]
    OtherDatacenter {
        place: String,
        theirs: String,
        ours: String,
    },
    #[error(
        "Failed to join {0}: it is in another cluster than this server. Two clusters do not become one; to move this \
         server, empty its data directory"
    )]
    OtherCluster(String),
    #[error("Failed to join {0}: that is this server itself")]
    Itself(String),
}

#[derive(Debug, Default)]
struct Inner {
    /// Where those are who greeted us or were named by others.
    places: BTreeSet<String>,
    /// The servers without a cluster that the last round found.
    known: BTreeMap<ServerId, Server>,
    /// To whom this server promised itself in this run, and how often it promised anything.
    promised: Option<Server>,
    promises: u64,
    /// The addresses of the members that did not answer the last greeting.
    silent: BTreeSet<String>,
}

impl Introductions {
    pub(super) fn new(consensus: Consensus, peers: Peers, about: Introduction) -> Introductions {
        Introductions {
            consensus,
            peers,
            about,
            inner: Mutex::default(),
            founding: AtomicBool::new(false),
            news: Notify::new(),
            complaints: Complaints::default(),
        }
    }

    /// Answers a greeting, and remembers who greeted.
    pub(super) fn greeted(
        &self,
        request: proto::HelloRequest,
    ) -> Result<proto::HelloReply, Status> {
        let (id, server) = wire::read_server(request.caller)?;
        if request.datacenter != self.about.datacenter {
            self.complaints.warn(&format!(
                "server {} at {} is of datacenter {:?}, and this one of {:?}",
                server.name, server.address, request.datacenter, self.about.datacenter
            ));
        } else if id != self.consensus.id() {
            self.hear_of(&server.address);
        }
        Ok(self.reply())
    }

    fn reply(&self) -> proto::HelloReply {
        // In this order: who is seen to found no more is seen to have founded.
        let founding = self.founding.load(Ordering::SeqCst);
        let founded = self.consensus.has_log();
        let id = self.consensus.id();
        let known = if founded {
            BTreeMap::new()
        } else {
            self.lock().known.clone()
        };
        proto::HelloReply {
            server: Some(wire::write_server(id, &self.about.server)),
            datacenter: self.about.datacenter.clone(),
            expect: self.about.expect,
            cluster: self
                .consensus
                .cluster()
                .map(|cluster| wire::write_id(cluster.0))
                .unwrap_or_default(),
            founded,
            founding,
            known: known
                .iter()
                .map(|(id, server)| wire::write_server(*id, server))
                .collect(),
            leader: self.consensus.leader().map(wire::write_leader),
        }
    }

    fn hear_of(&self, place: &str) {
        let mut inner = self.lock();
        if inner.places.len() < MAX_PLACES && inner.places.insert(place.to_owned()) {
            drop(inner);
            self.news.notify_one();
        }
    }

    /// Looks for servers at this place too, if there is one that this server could be with.
    pub(crate) async fn join_at(&self, place: &str) -> Result<(), JoinError> {
        let name = || place.to_owned();
        let found = lookup_place(place, self.about.default_port).await;
        let found = found.map_err(|source| JoinError::Unknown {
            place: name(),
            source,
        })?;
        // A name may stand for several servers, this one and some that are away among them.
        let joined = first_of(found, |address| self.join_at_address(place, address)).await;
        joined.unwrap_or_else(|| {
            Err(JoinError::Unknown {
                place: name(),
                source: std::io::Error::other("no address"),
            })
        })
    }

    async fn join_at_address(&self, place: &str, address: String) -> Result<(), JoinError> {
        let name = || place.to_owned();
        let met = self.greet(&address).await;
        let met = met.map_err(|error| JoinError::NoServer {
            place: name(),
            error,
        })?;
        if met.id == self.consensus.id() {
            return Err(JoinError::Itself(name()));
        }
        if met.datacenter != self.about.datacenter {
            return Err(JoinError::OtherDatacenter {
                place: name(),
                theirs: met.datacenter,
                ours: self.about.datacenter.clone(),
            });
        }
        let both_founded = met.founded && self.consensus.has_log();
        if both_founded && met.cluster != self.consensus.cluster() {
            return Err(JoinError::OtherCluster(name()));
        }
        self.hear_of(&address);
        Ok(())
    }

    /// Promises this server to a founder, if it is free. Blocks for a moment.
    pub(super) fn promise(&self, request: proto::PromiseRequest) -> Result<(), Status> {
        let (founder, server) = wire::read_server(request.founder)?;
        let servers = request.servers.into_iter();
        let servers: BTreeSet<ServerId> = servers
            .map(|server| wire::read_server(Some(server)).map(|(id, _)| id))
            .collect::<Result<_, Malformed>>()?;
        let own = self.consensus.id();
        let expect = usize::try_from(self.about.expect).unwrap_or(usize::MAX);
        let sound = self.about.expect > 0
            && servers.len() >= expect
            && servers.contains(&own)
            && servers.first() == Some(&founder)
            && founder != own;
        if !sound || self.founding.load(Ordering::SeqCst) {
            return Err(Status::failed_precondition(
                "this server is not to be founded by that one",
            ));
        }
        // Locked until it is written down: it is not taken back meanwhile by what was found before.
        let mut inner = self.lock();
        inner.promised = Some(server);
        inner.promises += 1;
        self.consensus
            .promise(founder)
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }

    /// Takes the promise back, unless one was given after the first `promises`. Blocks for a moment.
    fn withdraw(&self, promises: u64) -> std::io::Result<()> {
        let mut inner = self.lock();
        if inner.promises == promises {
            self.consensus.withdraw_promise()?;
            inner.promised = None;
            tracing::info!("the founder of our cluster is gone: looking for another");
        }
        Ok(())
    }

    /// Looks around until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = self.look_around() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn look_around(self: &Arc<Self>) {
        let mut leader = self.consensus.leader_changes();
        loop {
            let pause = if self.is_member() {
                self.look_after_settling().await;
                match self.consensus.leader() {
                    Some(_) => SETTLED_ROUND,
                    None => LEADERLESS_ROUND,
                }
            } else {
                self.look_for_a_cluster().await;
                ROUND
            };
            // Not all at the same moment, so that their findings do not cross for ever.
            let pause = pause.mul_f64(rand::random_range(0.75..=1.25));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.news.notified(), if !self.is_member() => {}
                Ok(()) = leader.changed() => {}
            }
        }
    }

    fn is_member(&self) -> bool {
        let id = self.consensus.id();
        self.consensus.has_log()
            && self
                .consensus
                .members()
                .iter()
                .any(|member| member.id == id)
    }

    async fn look_for_a_cluster(self: &Arc<Self>) {
        let (promised, promises) = {
            let inner = self.lock();
            (inner.promised.clone(), inner.promises)
        };
        let own = Own {
            id: self.consensus.id(),
            about: &self.about,
            cluster: self.consensus.cluster(),
            promised,
        };
        let met = self.greet_all().await;
        match decide(&own, &met) {
            Action::Wait => {}
            Action::Complain(text) => self.complaints.error(&text),
            Action::Withdraw => {
                let this = self.clone();
                let withdrawn = tokio::task::spawn_blocking(move || this.withdraw(promises));
                match withdrawn.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "a promise cannot be taken back"),
                    Err(error) => tracing::error!(%error, "a promise cannot be taken back"),
                }
            }
            Action::Found(servers) => {
                if !self.consensus.has_log() {
                    self.found(servers).await;
                }
            }
            Action::Join { leader, cluster } => {
                tracing::info!(
                    leader = leader.name,
                    address = leader.address,
                    "joining the cluster"
                );
                self.join(&leader, cluster).await;
            }
        }
    }

    /// Asks everybody else for a promise, and founds if all give it.
    async fn found(&self, servers: BTreeMap<ServerId, Server>) {
        self.founding.store(true, Ordering::SeqCst);
        let own = self.consensus.id();
        let request = proto::PromiseRequest {
            founder: Some(wire::write_server(own, &self.about.server)),
            servers: servers
                .iter()
                .map(|(id, server)| wire::write_server(*id, server))
                .collect(),
        };
        let promises = servers
            .iter()
            .filter(|(id, _)| **id != own)
            .map(|(_, server)| async {
                let mut client = self.peers.caller(&server.address)?;
                let promise = client.promise(request.clone());
                match tokio::time::timeout(ANSWER_WITHIN, promise).await {
                    Ok(promised) => promised.map(|_| ()).map_err(CallError::from),
                    Err(_) => Err(CallError::Unknown("no answer in time".to_owned())),
                }
            });
        let promises = futures_util::future::try_join_all(promises).await;
        match promises {
            Ok(_) => match self.consensus.found(servers.clone()).await {
                Ok(()) => {
                    let names: Vec<&str> = servers.values().map(|s| s.name.as_str()).collect();
                    tracing::info!(servers = names.join(" "), "founded a cluster");
                }
                Err(error) => tracing::warn!(%error, "no cluster was founded"),
            },
            Err(error) => tracing::debug!(%error, "not every server wants to be founded yet"),
        }
        self.founding.store(false, Ordering::SeqCst);
    }

    async fn join(&self, leader: &Leader, cluster: ClusterId) {
        let own = self.consensus.id();
        let envelope = Envelope {
            cluster,
            from: own,
            to: leader.id,
        };
        let request = proto::JoinRequest {
            server: Some(wire::write_server(own, &self.about.server)),
        };
        let joining = async {
            let mut client = self.peers.caller(&leader.address)?;
            client
                .join(enveloped(&envelope, request))
                .await
                .map_err(CallError::from)
        };
        match tokio::time::timeout(JOIN_WITHIN, joining).await {
            Ok(Ok(_)) => {}
            Ok(Err(CallError::Refused(reason))) => {
                self.complaints.error(&format!(
                    "the leader at {} does not take this server: {reason}",
                    leader.address
                ));
            }
            Ok(Err(error)) => tracing::debug!(%error, "not taken into the cluster yet"),
            Err(_) => tracing::debug!("the leader does not answer"),
        }
    }

    /// Are the others of the same cluster, and do they know where this server is?
    async fn look_after_settling(&self) {
        let Some(cluster) = self.consensus.cluster() else {
            return;
        };
        let own = self.consensus.id();
        let about = &self.about.server;
        let moved = self.consensus.members().into_iter().any(|member| {
            member.id == own && (member.address != about.address || member.name != about.name)
        });
        let leader = self.consensus.leader();
        // A leader does it by itself.
        if let Some(leader) = leader.as_ref().filter(|leader| leader.id != own)
            && moved
        {
            self.join(leader, cluster).await;
        }
        let met = self.greet_all().await;
        if leader.is_none()
            && let Some(leader) = led_by(cluster, own, &met)
        {
            tracing::debug!(
                leader = leader.name,
                "the others have a leader: asking to be let in"
            );
            self.join(&leader, cluster).await;
        }
        for met in met {
            if met.founded && met.cluster != Some(cluster) {
                self.complaints.error(&format!(
                    "the server at {} is in another cluster than this one: two clusters do not become \
                     one; to move one of the servers, empty its data directory and start it without \
                     -bootstrap",
                    met.place
                ));
            }
        }
    }

    /// The members that did not answer the last time.
    pub(crate) fn silent(&self) -> BTreeSet<String> {
        self.lock().silent.clone()
    }

    /// Greets every place there is, all at once.
    async fn greet_all(&self) -> Vec<Met> {
        let configured = self.resolve().await;
        let mut places = configured.clone();
        places.extend(self.lock().places.iter().cloned());
        let members = self.consensus.members().into_iter();
        let members: BTreeSet<String> = members.map(|member| member.address).collect();
        places.extend(members.iter().cloned());
        places.remove(&self.about.server.address);
        let greetings = places.into_iter().map(|place| async move {
            let met = self.greet(&place).await;
            (place, met)
        });
        let greeted = futures_util::future::join_all(greetings).await;
        // Where there is a leader, one that is away is its matter.
        let is_lost = self.consensus.leader().is_none();
        let mut silent = BTreeSet::new();
        for (place, met) in &greeted {
            let Err(error) = met else {
                continue;
            };
            tracing::debug!(place, %error, "nobody answers a greeting");
            if is_lost && configured.contains(place) {
                self.complaints.warn(&format!(
                    "no server answers at {place} (retry_join), and it is tried again: {error}"
                ));
            }
            if members.contains(place) {
                silent.insert(place.clone());
            }
        }
        self.lock().silent = silent;
        let met: Vec<Option<Met>> = greeted.into_iter().map(|(_, met)| met.ok()).collect();
        // Several places may be one server.
        let own = self.consensus.id();
        let namesake = met
            .iter()
            .flatten()
            .find(|met| met.id == own && met.server.address != self.about.server.address);
        if let Some(met) = namesake {
            let mut members = self.consensus.members().into_iter();
            let home =
                members.any(|member| member.id == own && member.address == met.server.address);
            let complaint = format!(
                "the server at {} has the id of this one, {own}: its data directory was copied from here, or this \
                 one's from there; empty one of them",
                met.place
            );
            match home {
                // Its votes and acknowledgements would count for those of the other.
                true => self.consensus.give_up(&complaint),
                false => self.complaints.error(&complaint),
            }
        }
        let met: BTreeMap<ServerId, Met> = met
            .into_iter()
            .flatten()
            .filter(|met| met.id != own)
            .map(|met| (met.id, met))
            .collect();
        let unfounded = met
            .values()
            .filter(|met| !met.founded && met.datacenter == self.about.datacenter);
        let mut known: BTreeMap<ServerId, Server> = unfounded
            .clone()
            .map(|met| (met.id, met.server.clone()))
            .collect();
        known.insert(own, self.about.server.clone());
        self.lock().known = known;
        for server in unfounded.flat_map(|met| met.known.values()) {
            self.hear_of(&server.address);
        }
        met.into_values().collect()
    }

    async fn greet(&self, place: &str) -> Result<Met, CallError> {
        let request = proto::HelloRequest {
            caller: Some(wire::write_server(self.consensus.id(), &self.about.server)),
            datacenter: self.about.datacenter.clone(),
            expect: self.about.expect,
        };
        let mut client = self.peers.caller(place)?;
        let reply = match tokio::time::timeout(ANSWER_WITHIN, client.hello(request)).await {
            Ok(reply) => reply?.into_inner(),
            Err(_) => return Err(CallError::NotDone("no answer in time".to_owned())),
        };
        read_met(place, reply).map_err(|error| CallError::NotDone(error.to_string()))
    }

    /// Who answers a greeting at this address.
    pub(super) async fn who_is_at(&self, address: &str) -> Result<ServerId, CallError> {
        Ok(self.greet(address).await?.id)
    }

    /// The addresses of the configured places: names are looked up each time.
    async fn resolve(&self) -> BTreeSet<String> {
        lookup(
            &self.about.retry_join,
            self.about.default_port,
            &self.complaints,
        )
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses of configured places, which may be names.
pub(crate) async fn lookup(
    places: &[String],
    default_port: u16,
    complaints: &Complaints,
) -> BTreeSet<String> {
    let mut addresses = BTreeSet::new();
    for place in places {
        match lookup_place(place, default_port).await {
            Ok(found) => addresses.extend(found),
            Err(error) => {
                complaints.warn(&format!("cannot look up {place:?} of retry_join: {error}"));
            }
        }
    }
    addresses
}

/// The addresses of one place, in the order in which they are to be tried.
pub(crate) async fn lookup_place(place: &str, default_port: u16) -> std::io::Result<Vec<String>> {
    let found = tokio::net::lookup_host(with_port(place, default_port)).await?;
    Ok(found.map(|address| address.to_string()).collect())
}

/// Tries one address after the other until one is good. If none is: what was wrong with the first that is not this server
/// itself. `None` where there is none.
async fn first_of<F>(
    addresses: Vec<String>,
    attempt: impl Fn(String) -> F,
) -> Option<Result<(), JoinError>>
where
    F: Future<Output = Result<(), JoinError>>,
{
    let mut failed = None;
    for address in addresses.into_iter().take(MAX_PLACES) {
        match (attempt(address).await, &failed) {
            (Ok(()), _) => return Some(Ok(())),
            (Err(error), None | Some(JoinError::Itself(_))) => failed = Some(error),
            (Err(_), Some(_)) => {}
        }
    }
    failed.map(Err)
}

fn read_met(place: &str, reply: proto::HelloReply) -> Result<Met, Malformed> {
    let (id, server) = wire::read_server(reply.server)?;
    if reply.known.len() > MAX_PLACES {
        return Err(Malformed("too many servers"));
    }
    let known = reply.known.into_iter();
    Ok(Met {
        place: place.to_owned(),
        id,
        server,
        datacenter: reply.datacenter,
        expect: reply.expect,
        cluster: wire::read_optional_id(&reply.cluster)?.map(ClusterId),
        founded: reply.founded,
        founding: reply.founding,
        known: known
            .map(|server| wire::read_server(Some(server)))
            .collect::<Result<_, _>>()?,
        leader: reply
            .leader
            .map(|leader| wire::read_leader(Some(leader)))
            .transpose()?,
    })
}

/// `host`, `host:port`, `1.2.3.4`, `::1` or `[::1]:port`, as something that can be looked up.
fn with_port(place: &str, default: u16) -> String {
    let place = place.trim();
    if place.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{place}]:{default}");
    }
    let after_host = place.rsplit_once(']').map_or(place, |(_, rest)| rest);
    if after_host.contains(':') {
        place.to_owned()
    } else {
        format!("{place}:{default}")
    }
}

#[cfg(test)]
mod tests;
