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
pub(super) struct Introductions {
    consensus: Consensus,
    peers: Peers,
    about: Introduction,
    inner: Mutex<Inner>,
    founding: AtomicBool,
    /// Somebody new has greeted us.
    news: Notify,
    complaints: Complaints,
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
}

/// A server that answered a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Met {
    /// Where it was asked.
    place: String,
    id: ServerId,
    server: Server,
    datacenter: String,
    expect: u32,
    cluster: Option<ClusterId>,
    founded: bool,
    founding: bool,
    known: BTreeMap<ServerId, Server>,
    leader: Option<Leader>,
}

/// What to do after a round of greetings.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Wait,
    Found(BTreeMap<ServerId, Server>),
    Join {
        leader: Leader,
        cluster: ClusterId,
    },
    /// The founder has forgotten the promise.
    Withdraw,
    /// It needs somebody who looks after it.
    Complain(String),
}

/// This server before a round.
#[derive(Clone, Debug)]
struct Own<'a> {
    id: ServerId,
    about: &'a Introduction,
    cluster: Option<ClusterId>,
    promised: Option<Server>,
}

fn decide(own: &Own<'_>, met: &[Met]) -> Action {
    let about = own.about;
    let others: Vec<&Met> = met
        .iter()
        .filter(|met| met.id != own.id && met.datacenter == about.datacenter)
        .collect();
    let founded: Vec<&&Met> = others.iter().filter(|met| met.founded).collect();
    let ours = |met: &&&&Met| own.cluster.is_none_or(|ours| met.cluster == Some(ours));
    if let Some(first) = founded.iter().find(ours) {
        let clusters: BTreeSet<_> = founded.iter().map(|met| met.cluster.map(|c| c.0)).collect();
        if own.cluster.is_none() && clusters.len() > 1 {
            return Action::Complain(format!(
                "the places of retry_join are of {} clusters: this server joins none of them",
                clusters.len()
            ));
        }
        let leader = founded
            .iter()
            .filter(ours)
            .find_map(|met| met.leader.clone());
        return match (leader, first.cluster) {
            (Some(leader), Some(cluster)) => Action::Join { leader, cluster },
            _ => Action::Wait,
        };
    }
    if let Some(ours) = own.cluster.filter(|cluster| cluster.0 != own.id.0) {
        let forgotten = others.iter().any(|met| {
            let is_founder = met.id.0 == ours.0;
            let took_its_place = own
                .promised
                .as_ref()
                .is_some_and(|founder| founder.address == met.server.address);
            is_founder && !met.founding || !is_founder && took_its_place
        });
        if forgotten {
            return Action::Withdraw;
        }
        if let Some(other) = founded.first() {
            return Action::Complain(format!(
                "this server belongs to cluster {ours}, and the one at {} to another: to join that one, \
                 empty this server's data directory",
                other.place
            ));
        }
        return Action::Wait;
    }
    if about.expect == 0 {
        return Action::Wait;
    }
    if let Some(other) = others.iter().find(|met| met.expect != about.expect) {
        return Action::Complain(format!(
            "this server expects {} servers to found a cluster (bootstrap_expect), and {} at {} expects {}",
            about.expect, other.server.name, other.place, other.expect
        ));
    }
    let mut all: BTreeMap<ServerId, Server> = others
        .iter()
        .map(|met| (met.id, met.server.clone()))
        .collect();
    all.insert(own.id, about.server.clone());
    let names: BTreeSet<&str> = all.values().map(|server| server.name.as_str()).collect();
    if names.len() < all.len() {
        return Action::Complain(
            "two of the servers that are to found a cluster have the same name: give each its own (-node)"
                .to_owned(),
        );
    }
    let enough = all.len() >= usize::try_from(about.expect).unwrap_or(usize::MAX);
    let agreed = others.iter().all(|met| met.known.keys().eq(all.keys()));
    let lowest = all.keys().next() == Some(&own.id);
    if enough && agreed && lowest {
        Action::Found(all)
    } else {
        Action::Wait
    }
}

/// Who leads the others, for a server of their cluster that hears of no leader. It may have been taken out while
/// it was away, which it can only learn from them; if it was not, to ask changes nothing.
fn led_by(cluster: ClusterId, own: ServerId, met: &[Met]) -> Option<Leader> {
    let same = met
        .iter()
        .filter(|met| met.founded && met.cluster == Some(cluster));
    let mut leaders = same.filter_map(|met| met.leader.clone());
    leaders.find(|leader| leader.node_uuid != own.0)
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
            to: ServerId(leader.node_uuid),
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
        if let Some(leader) = leader.as_ref().filter(|leader| leader.node_uuid != own.0)
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

    /// Greets every place there is, all at once.
    async fn greet_all(&self) -> Vec<Met> {
        let mut places = self.resolve().await;
        places.extend(self.lock().places.iter().cloned());
        let members = self.consensus.members().into_iter();
        places.extend(members.map(|member| member.address));
        places.remove(&self.about.server.address);
        let greetings = places.into_iter().map(|place| async move {
            let met = self.greet(&place).await;
            if let Err(error) = &met {
                tracing::debug!(place, %error, "nobody answers a greeting");
            }
            met.ok()
        });
        let met = futures_util::future::join_all(greetings).await;
        // Several places may be one server.
        let own = self.consensus.id();
        let namesake = met
            .iter()
            .flatten()
            .find(|met| met.id == own && met.server.address != self.about.server.address);
        if let Some(met) = namesake {
            self.complaints.error(&format!(
                "the server at {} has the id of this one, {own}: its data directory was copied from here, or this \
                 one's from there; empty one of them",
                met.place
            ));
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

    /// The addresses of the configured places: names are looked up each time.
    async fn resolve(&self) -> BTreeSet<String> {
        let mut addresses = BTreeSet::new();
        for place in &self.about.retry_join {
            let with_port = with_port(place, self.about.default_port);
            match tokio::net::lookup_host(&with_port).await {
                Ok(found) => addresses.extend(found.map(|address| address.to_string())),
                Err(error) => self
                    .complaints
                    .warn(&format!("cannot look up {place:?} of retry_join: {error}")),
            }
        }
        addresses
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> ServerId {
        ServerId(Uuid::from_u128(number))
    }

    fn cluster(number: u128) -> ClusterId {
        ClusterId(Uuid::from_u128(number))
    }

    fn server(number: u128) -> Server {
        Server {
            name: format!("s{number}"),
            address: format!("10.0.0.{number}:8300"),
        }
    }

    fn about(number: u128, expect: u32) -> Introduction {
        Introduction {
            server: server(number),
            datacenter: "dc1".to_owned(),
            expect,
            retry_join: Vec::new(),
            default_port: 8300,
        }
    }

    fn own(number: u128, about: &Introduction) -> Own<'_> {
        Own {
            id: id(number),
            about,
            cluster: None,
            promised: None,
        }
    }

    /// A server that knows `known` and belongs to nobody.
    fn met<const N: usize>(number: u128, known: [u128; N]) -> Met {
        Met {
            place: server(number).address,
            id: id(number),
            server: server(number),
            datacenter: "dc1".to_owned(),
            expect: 3,
            cluster: None,
            founded: false,
            founding: false,
            known: known.iter().map(|n| (id(*n), server(*n))).collect(),
            leader: None,
        }
    }

    fn founded(number: u128, of: u128) -> Met {
        Met {
            founded: true,
            cluster: Some(cluster(of)),
            leader: Some(leader(of)),
            ..met(number, [])
        }
    }

    fn leader(number: u128) -> Leader {
        Leader {
            node_uuid: id(number).0,
            name: server(number).name,
            address: server(number).address,
        }
    }

    #[test]
    fn the_lowest_founds_when_all_know_the_same() {
        let about_1 = about(1, 3);
        let all = [1, 2, 3];
        let agreed = [met(2, all), met(3, all)];
        let servers = all.map(|n| (id(n), server(n))).into();
        assert_eq!(decide(&own(1, &about_1), &agreed), Action::Found(servers));
        // Not the others; not too few; not while one has not seen all.
        let about_2 = about(2, 3);
        let others = [met(1, all), met(3, all)];
        assert_eq!(decide(&own(2, &about_2), &others), Action::Wait);
        assert_eq!(decide(&own(1, &about_1), &agreed[..1]), Action::Wait);
        let unsure = [met(2, all), met(3, [1, 3])];
        assert_eq!(decide(&own(1, &about_1), &unsure), Action::Wait);
        // More than expected: all of them.
        let all = [1, 2, 3, 4];
        let four = [met(2, all), met(3, all), met(4, all)];
        assert!(matches!(decide(&own(1, &about_1), &four), Action::Found(s) if s.len() == 4));
        // One that expects none founds none.
        let about_0 = about(1, 0);
        assert_eq!(decide(&own(1, &about_0), &agreed), Action::Wait);
    }

    #[test]
    fn what_cannot_be_meant_is_complained_about() {
        let about_1 = about(1, 3);
        let all = [1, 2, 3];
        let other = Met {
            expect: 5,
            ..met(2, all)
        };
        let namesake = Met {
            server: Server {
                name: "s3".into(),
                ..server(2)
            },
            ..met(2, all)
        };
        for second in [other, namesake] {
            let action = decide(&own(1, &about_1), &[second, met(3, all)]);
            assert!(matches!(action, Action::Complain(_)), "{action:?}");
        }
        // Another datacenter is none of its business.
        let elsewhere = Met {
            datacenter: "dc2".into(),
            ..founded(2, 2)
        };
        assert_eq!(decide(&own(1, &about_1), &[elsewhere]), Action::Wait);
    }

    #[test]
    fn a_cluster_that_is_there_is_joined() {
        let about_1 = about(1, 3);
        let join = Action::Join {
            leader: leader(7),
            cluster: cluster(7),
        };
        let all = [1, 2, 3];
        let met_all = [met(2, all), met(3, all), founded(8, 7)];
        assert_eq!(decide(&own(1, &about_1), &met_all), join);
        let leaderless = Met {
            leader: None,
            ..founded(8, 7)
        };
        assert_eq!(
            decide(&own(1, &about_1), std::slice::from_ref(&leaderless)),
            Action::Wait
        );
        assert_eq!(
            decide(&own(1, &about_1), &[leaderless, founded(7, 7)]),
            join
        );
        let two = [founded(7, 7), founded(9, 9)];
        assert!(matches!(
            decide(&own(1, &about_1), &two),
            Action::Complain(_)
        ));
        // To whom it belongs already, even if it has nothing of it yet.
        let promised = Own {
            cluster: Some(cluster(7)),
            ..own(1, &about_1)
        };
        assert_eq!(decide(&promised, &two), join);
        assert!(matches!(decide(&promised, &two[1..]), Action::Complain(_)));
    }

    #[test]
    fn a_promise_holds_as_long_as_the_founder_may_found() {
        let about_3 = about(3, 3);
        let promised = Own {
            cluster: Some(cluster(1)),
            promised: Some(server(1)),
            ..own(3, &about_3)
        };
        let all = [1, 2, 3];
        let founding = Met {
            founding: true,
            ..met(1, all)
        };
        assert_eq!(decide(&promised, &[founding]), Action::Wait);
        assert_eq!(decide(&promised, &[met(2, all)]), Action::Wait);
        assert_eq!(decide(&promised, &[met(1, all)]), Action::Withdraw);
        let replaced = Met {
            id: id(9),
            ..met(1, all)
        };
        assert_eq!(decide(&promised, &[replaced]), Action::Withdraw);
    }

    #[test]
    fn one_that_hears_of_no_leader_asks_those_of_its_cluster() {
        assert_eq!(led_by(cluster(7), id(1), &[founded(2, 7)]), Some(leader(7)));
        // Not those of another cluster, nor those who know no more, nor itself.
        assert_eq!(led_by(cluster(8), id(1), &[founded(2, 7)]), None);
        let unsure = Met {
            leader: None,
            ..founded(2, 7)
        };
        assert_eq!(led_by(cluster(7), id(1), &[unsure]), None);
        assert_eq!(led_by(cluster(7), id(7), &[founded(2, 7)]), None);
    }

    #[test]
    fn places_are_written_as_people_do() {
        for (place, expected) in [
            ("10.0.0.1", "10.0.0.1:8300"),
            ("10.0.0.1:9000", "10.0.0.1:9000"),
            ("server.example", "server.example:8300"),
            (" server.example:1 ", "server.example:1"),
            ("::1", "[::1]:8300"),
            ("[::1]", "[::1]:8300"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(with_port(place, 8300), expected);
        }
    }
}
