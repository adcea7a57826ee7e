//! Servers in one process and a network between them that does what it is told: cut links, lose messages.
//! The clock is tokio's paused one, so that hours of elections take moments.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, future};
use proptest::test_runner::{RngAlgorithm, TestRng};
use wharf_tests::Chance;

use super::super::{
    super::disk::Extent,
    faults::FaultyLog,
    lossy::{Flaw, LossyDisk},
    *,
};
use crate::log::Vote;

#[derive(Default)]
pub(super) struct Net(Mutex<Links>);

#[derive(Default)]
struct Links {
    servers: BTreeMap<String, Consensus>,
    /// Messages from the first to the second are lost.
    cut: BTreeSet<(ServerId, ServerId)>,
    /// One message of so many is lost.
    loss: Option<(TestRng, u32)>,
    /// Each message is on its way for so many milliseconds at most.
    delay: Option<Chance>,
    /// Who gives a vote is cut off from the candidate right after, once; and then it is here who it was.
    cut_voter: bool,
    voter: Option<ServerId>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    pub(super) fn attach(&self, address: &str, server: Consensus) {
        self.0
            .lock()
            .unwrap()
            .servers
            .insert(address.to_owned(), server);
    }

    pub(super) fn detach(&self, address: &str) {
        self.0.lock().unwrap().servers.remove(address);
    }

    /// Cuts every link between the two sides.
    pub(super) fn partition(&self, one: &[ServerId], other: &[ServerId]) {
        for a in one {
            for b in other {
                self.cut_one_way(*a, *b);
                self.cut_one_way(*b, *a);
            }
        }
    }

    pub(super) fn cut_one_way(&self, from: ServerId, to: ServerId) {
        self.0.lock().unwrap().cut.insert((from, to));
    }

    pub(super) fn lose_one_of(&self, seed: u64, every: u32) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        self.0.lock().unwrap().loss = Some((rng, every));
    }

    pub(super) fn heal(&self) {
        let mut links = self.0.lock().unwrap();
        links.cut.clear();
        links.loss = None;
        links.delay = None;
        links.cut_voter = false;
    }

    pub(super) fn heal_between(&self, one: ServerId, other: ServerId) {
        let mut links = self.0.lock().unwrap();
        links.cut.remove(&(one, other));
        links.cut.remove(&(other, one));
    }

    pub(super) fn delay(&self, seed: u64) {
        self.0.lock().unwrap().delay = Some(Chance::new(seed));
    }

    pub(super) fn cut_next_voter(&self) {
        let mut links = self.0.lock().unwrap();
        links.cut_voter = true;
        links.voter = None;
    }

    /// Who has given its vote and was cut off.
    pub(super) fn cut_voter(&self) -> Option<ServerId> {
        self.0.lock().unwrap().voter.take()
    }

    pub(super) fn servers(&self) -> Vec<Consensus> {
        self.0.lock().unwrap().servers.values().cloned().collect()
    }

    pub(super) fn server(&self, address: &str) -> Option<Consensus> {
        self.0.lock().unwrap().servers.get(address).cloned()
    }

    async fn travel(&self) {
        let delay = {
            let mut links = self.0.lock().unwrap();
            let delay = links.delay.as_mut();
            delay.map(|chance| Duration::from_millis(chance.below(60)))
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    fn voted(&self, route: &Route, request: &VoteRequest, answer: &VoteReply) {
        let mut links = self.0.lock().unwrap();
        let given = answer.granted && request.election != Election::Probe;
        if given && std::mem::take(&mut links.cut_voter) {
            let Envelope { from, to, .. } = route.envelope;
            links.cut.extend([(from, to), (to, from)]);
            links.voter = Some(to);
        }
    }

    fn passes(&self, from: ServerId, to: ServerId) -> bool {
        use proptest::prelude::Rng as _;
        let mut links = self.0.lock().unwrap();
        let lost = match &mut links.loss {
            Some((rng, every)) => rng.next_u32() % *every == 0,
            None => false,
        };
        !lost && !links.cut.contains(&(from, to))
    }

    /// The receiver of a message that arrives.
    fn receiver(&self, route: &Route) -> Result<Consensus, TransportError> {
        let unreachable = |reason: &str| TransportError::Unreachable {
            address: route.address.clone(),
            reason: reason.to_owned(),
        };
        if !self.passes(route.envelope.from, route.envelope.to) {
            return Err(unreachable("cut off"));
        }
        let receiver = self.0.lock().unwrap().servers.get(&route.address).cloned();
        let receiver = receiver.ok_or_else(|| unreachable("nobody listens"))?;
        match receiver.check_envelope(&route.envelope) {
            Ok(()) => Ok(receiver),
            Err(error) => Err(TransportError::Refused {
                address: route.address.clone(),
                reason: error.to_string(),
            }),
        }
    }

    /// Its answer, if that arrives too.
    fn back<T>(&self, route: &Route, answer: Result<T, ReceiveError>) -> Result<T, TransportError> {
        let broken = |reason: String| TransportError::Broken {
            address: route.address.clone(),
            reason,
        };
        if !self.passes(route.envelope.to, route.envelope.from) {
            return Err(broken("the answer is lost".to_owned()));
        }
        answer.map_err(|error| broken(error.to_string()))
    }
}

/// The network as one server sees it.
#[derive(Debug)]
pub(super) struct Wire(pub(super) Arc<Net>);

impl Transport for Wire {
    fn vote(
        &self,
        route: Route,
        request: VoteRequest,
    ) -> BoxFuture<'_, Result<VoteReply, TransportError>> {
        Box::pin(async move {
            self.0.travel().await;
            let receiver = self.0.receiver(&route)?;
            let answer = receiver
                .receive_vote(route.envelope.from, request.clone())
                .await;
            let answer = self.0.back(&route, answer)?;
            self.0.voted(&route, &request, &answer);
            Ok(answer)
        })
    }

    fn heartbeat(
        &self,
        route: Route,
        request: Append,
    ) -> BoxFuture<'_, Result<HeartbeatReply, TransportError>> {
        Box::pin(async move {
            self.0.travel().await;
            let receiver = self.0.receiver(&route)?;
            let answer = receiver
                .receive_heartbeat(route.envelope.from, request)
                .await;
            self.0.back(&route, answer)
        })
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<Append>,
    ) -> BoxFuture<'_, Result<BoxStream<Result<AppendReply, TransportError>>, TransportError>> {
        Box::pin(async move {
            let receiver = self.0.receiver(&route)?;
            let Envelope { from, to, .. } = route.envelope;
            let net = self.0.clone();
            // A stream is in order: what comes after a lost message is lost too.
            let requests = requests.take_while(move |_| future::ready(net.passes(from, to)));
            let net = self.0.clone();
            let requests = requests.then(move |request| {
                let net = net.clone();
                async move {
                    net.travel().await;
                    request
                }
            });
            let replies = receiver.receive_append(from, Box::pin(requests));
            let net = self.0.clone();
            let replies = replies.map(move |reply| net.back(&route, reply));
            Ok(Box::pin(replies) as BoxStream<_>)
        })
    }

    fn snapshot(
        &self,
        route: Route,
        vote: Vote,
        snapshot: crate::snapshot::Snapshot,
    ) -> BoxFuture<'_, Result<Vote, TransportError>> {
        Box::pin(async move {
            let receiver = self.0.receiver(&route)?;
            let answer = receiver
                .receive_snapshot(route.envelope.from, vote, snapshot.bytes())
                .await;
            self.0.back(&route, answer)
        })
    }

    fn hand_over(
        &self,
        route: Route,
        request: HandOver,
    ) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let receiver = self.0.receiver(&route)?;
            let answer = receiver
                .receive_hand_over(route.envelope.from, request)
                .await;
            self.0.back(&route, answer)
        })
    }
}

/// The size of each server's disk, in bytes.
pub(super) const DISK: u64 = 100 << 30;

/// A server that can be crashed and started again: its log and the name of its cluster stay.
pub(super) struct Machine {
    pub(super) id: ServerId,
    pub(super) server: Server,
    pub(super) log: Arc<FaultyLog>,
    /// What is free on its disk, in bytes.
    pub(super) free: Arc<AtomicU64>,
    identity: Arc<Identity>,
    running: Option<Consensus>,
    /// In the place of `log`, where there is one; snapshots are in the directory then.
    disk: Option<(Arc<LossyDisk>, tempfile::TempDir)>,
}

pub(super) struct Cluster {
    pub(super) net: Arc<Net>,
    pub(super) machines: Vec<Machine>,
    pub(super) snapshots: SnapshotPolicy,
    /// Servers get disks that lose in a crash what is not synced, from these seeds.
    pub(super) disks: Option<Disks>,
}

pub(super) struct Disks {
    pub(super) chance: Chance,
    /// What is wrong with them, and with which one if not with all.
    pub(super) flaw: Option<(Flaw, Option<ServerId>)>,
}

impl Disks {
    fn disk(&mut self, id: ServerId) -> (Arc<LossyDisk>, tempfile::TempDir) {
        let flaw = self
            .flaw
            .filter(|(_, only)| only.is_none_or(|only| only == id));
        let disk = LossyDisk::new(self.chance.below(u64::MAX), flaw.map(|(flaw, _)| flaw));
        (disk, tempfile::tempdir().unwrap())
    }
}

pub(super) fn server_id(number: u128) -> ServerId {
    ServerId(Uuid::from_u128(number))
}

impl Cluster {
    pub(super) fn empty() -> Cluster {
        Cluster {
            net: Arc::default(),
            machines: Vec::new(),
            snapshots: SnapshotPolicy::default(),
            disks: None,
        }
    }

    /// Servers 0 to `count`, founded together, with a leader.
    pub(super) async fn founded(count: u128) -> Cluster {
        Cluster::empty().found(count).await
    }

    pub(super) async fn found(mut self, count: u128) -> Cluster {
        let cluster = &mut self;
        for number in 0..count {
            cluster
                .add(number + 1, &format!("s{number}"), &format!("a{number}"))
                .await;
        }
        let founder = server_id(1);
        for at in 1..cluster.machines.len() {
            cluster.at(at).promise(founder).unwrap();
        }
        let servers = cluster.machines.iter().map(|m| (m.id, m.server.clone()));
        let servers = servers.collect();
        cluster.at(0).found(servers).await.unwrap();
        cluster.leader().await;
        self
    }

    /// A new server that belongs to nobody. Returns its place.
    pub(super) async fn add(&mut self, id: u128, name: &str, address: &str) -> usize {
        let id = server_id(id);
        self.machines.push(Machine {
            id,
            server: Server {
                name: name.to_owned(),
                address: address.to_owned(),
            },
            log: Arc::new(FaultyLog::default()),
            free: Arc::new(AtomicU64::new(DISK)),
            identity: Arc::new(Identity::in_memory(id)),
            running: None,
            disk: self.disks.as_mut().map(|disks| disks.disk(id)),
        });
        let at = self.machines.len() - 1;
        self.start(at).await;
        at
    }

    pub(super) async fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let config = ConsensusConfig {
            bootstrap: false,
            node_name: machine.server.name.clone(),
            node_uuid: machine.id.0,
            server_address: machine.server.address.clone(),
            transport: Some(Arc::new(Wire(self.net.clone()))),
            timings: Timings::lan(),
            snapshots: self.snapshots,
            ..single()
        };
        let free = machine.free.clone();
        let extent = move || {
            Ok(Extent {
                total: DISK,
                free: free.load(Ordering::Relaxed),
            })
        };
        let mut opened = Opened {
            identity: machine.identity.clone(),
            space: Space::with(Some(Box::new(extent))),
            ..Opened::in_memory(machine.id.0, machine.log.clone())
        };
        if let Some((disk, directory)) = &machine.disk {
            opened.log = disk.open();
            opened.snapshots = SnapshotStore::open(directory.path().to_owned()).unwrap();
        }
        let raft_config = Arc::new(raft_config(&config).unwrap());
        let consensus = Consensus::start_on(opened, config, raft_config)
            .await
            .unwrap();
        self.net.attach(&machine.server.address, consensus.clone());
        machine.running = Some(consensus);
    }

    /// Ends a server without a word to the others.
    pub(super) async fn crash(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        self.net.detach(&machine.server.address);
        if let Some((disk, _)) = &machine.disk {
            disk.crash();
        }
        if let Some(consensus) = machine.running.take() {
            consensus.shutdown().await;
        }
    }

    pub(super) fn runs(&self, at: usize) -> bool {
        self.machines[at].running.is_some()
    }

    pub(super) fn at(&self, at: usize) -> &Consensus {
        self.machines[at].running.as_ref().unwrap()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Consensus)> {
        let running = |(at, machine): (usize, &'_ Machine)| (at, machine.running.is_some());
        let all: Vec<_> = self.machines.iter().enumerate().map(running).collect();
        all.into_iter()
            .filter(|(_, runs)| *runs)
            .map(|(at, _)| (at, self.at(at)))
    }

    /// Waits until one server leads with a quorum, and returns its place.
    pub(super) async fn leader(&self) -> usize {
        self.leader_but(usize::MAX).await
    }

    /// The same, other than the one at `but`.
    pub(super) async fn leader_but(&self, but: usize) -> usize {
        let waiting = async {
            loop {
                for (at, consensus) in self.running() {
                    let leads = at != but && consensus.is_leader();
                    if leads && consensus.read_index(Consistency::Default).await.is_ok() {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .expect("no leader within a minute")
    }

    /// Writes a key as a client does that asks one server after the other. True: acknowledged; false:
    /// the outcome is unknown.
    pub(super) async fn write(&self, key: &str) -> bool {
        let writing = async {
            loop {
                for (_, consensus) in self.running() {
                    match consensus.propose(&set(key, "v")).await {
                        Ok(outcome) => {
                            assert_eq!(outcome, Outcome::Applied(true));
                            return true;
                        }
                        Err(ProposeError::OutcomeUnknown) => return false,
                        Err(_) => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), writing)
            .await
            .unwrap_or(false)
    }

    /// Waits until every running server has a vote. Those that were away for so long that they were taken out ask to be
    /// let in again, as real ones do.
    async fn complete(&self) {
        let complete = async {
            loop {
                let leader = self.at(self.leader().await);
                let members = leader.members();
                let running = self.running().map(|(at, _)| &self.machines[at]);
                let missing: Vec<_> = running
                    .filter(|machine| !members.iter().any(|m| m.id == machine.id && m.voter))
                    .collect();
                if missing.is_empty() {
                    return;
                }
                for machine in missing {
                    // Somebody else may lead by now.
                    let _ = leader.admit(machine.id, machine.server.clone()).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), complete)
            .await
            .expect("every running server has a vote");
    }

    /// Waits until every running server has applied what the leader has committed; then all of them hold
    /// the same state, byte for byte, and all of `keys`.
    pub(super) async fn agree_on(&self, keys: &[String]) {
        self.complete().await;
        let leader = self.leader().await;
        assert!(self.write("the end").await);
        let index = self.at(leader).registry().view().log_index();
        let mut hashes = BTreeSet::new();
        for (at, consensus) in self.running() {
            let caught_up = consensus.wait_applied(index);
            tokio::time::timeout(Duration::from_secs(60), caught_up)
                .await
                .unwrap_or_else(|_| panic!("server {at} does not catch up"))
                .unwrap();
            let view = consensus.registry().view();
            for key in keys {
                assert!(view.kv(key).is_some(), "server {at} has lost {key}");
            }
            assert_eq!(view.log_index(), index, "nothing else was written");
            hashes.insert(view.hash().unwrap());
        }
        assert_eq!(hashes.len(), 1, "the servers differ");
    }
}
