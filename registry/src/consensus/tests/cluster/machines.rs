//! Servers that crash, stop, go on and start again: what is on their disks stays.

use std::collections::BTreeSet;

use wharf_tests::Chance;

use super::{
    super::{
        super::disk::Extent,
        faults::FaultyLog,
        lossy::{Flaw, LossyDisk},
        process::{Clock, Process},
        *,
    },
    net::{Host, Net, Wire},
};
use crate::snapshot::Snapshot;

/// The size of each server's disk, in bytes.
pub(super) const DISK: u64 = 100 << 30;

/// A machine with a disk, on which a server runs, or does not.
pub(super) struct Machine {
    pub(super) id: ServerId,
    pub(super) server: Server,
    pub(super) log: Arc<FaultyLog>,
    /// What is free on its disk, in bytes.
    pub(super) free: Arc<AtomicU64>,
    identity: Arc<Identity>,
    running: Option<Host>,
    /// In the place of `log`, where there is one.
    disk: Option<Arc<LossyDisk>>,
    /// The newest snapshot that was on the disk when the server went down.
    snapshot: Option<Snapshot>,
    /// How much its clock gains, in millionths.
    pub(super) gains: i64,
}

pub(super) struct Cluster {
    pub(super) net: Arc<Net>,
    pub(super) machines: Vec<Machine>,
    pub(super) snapshots: SnapshotPolicy,
    /// Servers get disks that lose in a crash what is not synced, from these seeds.
    pub(super) disks: Option<Disks>,
    /// The clocks of servers may differ by so many millionths.
    pub(super) clocks_differ_by: i64,
    /// They stand still while their server is stopped.
    pub(super) clocks_stop: bool,
    /// What servers throw.
    pub(super) chance: Chance,
    /// Why servers ended by themselves.
    ended: Arc<Mutex<Vec<String>>>,
}

pub(super) struct Disks {
    pub(super) chance: Chance,
    /// What is wrong with them, and with which one if not with all.
    pub(super) flaw: Option<(Flaw, Option<ServerId>)>,
}

impl Disks {
    fn disk(&mut self, id: ServerId) -> Arc<LossyDisk> {
        let flaw = self
            .flaw
            .filter(|(_, only)| only.is_none_or(|only| only == id));
        LossyDisk::new(self.chance.below(u64::MAX), flaw.map(|(flaw, _)| flaw))
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
            clocks_differ_by: 0,
            clocks_stop: false,
            chance: Chance::new(0),
            ended: Arc::default(),
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
        let gains = match self.clocks_differ_by {
            0 => 0,
            most => self.chance.below(2 * most as u64 + 1) as i64 - most,
        };
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
            snapshot: None,
            gains,
        });
        let at = self.machines.len() - 1;
        self.start(at).await;
        at
    }

    pub(super) async fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let mut clock = Clock::right().gaining(machine.gains);
        if self.clocks_stop {
            clock = clock.stopping();
        }
        let process = Process::new(self.chance.below(u64::MAX), clock);
        let wire = Wire {
            net: self.net.clone(),
            process: process.clone(),
            own: machine.id,
        };
        let (ended, name) = (self.ended.clone(), machine.server.name.clone());
        let config = ConsensusConfig {
            bootstrap: false,
            node_name: machine.server.name.clone(),
            node_uuid: machine.id.0,
            server_address: machine.server.address.clone(),
            transport: Some(Arc::new(wire)),
            timings: Timings::lan(),
            snapshots: self.snapshots,
            on_fatal: FatalHandler::new(move |reason| {
                ended.lock().unwrap().push(format!("{name}: {reason}"));
            }),
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
            snapshots: SnapshotStore::holding(machine.snapshot.take()),
            ..Opened::in_memory(machine.id.0, machine.log.clone())
        };
        if let Some(disk) = &machine.disk {
            opened.log = disk.open();
        }
        let raft_config = Arc::new(raft_config(&config).unwrap());
        let started = process.run(Consensus::start_on(opened, config, raft_config));
        let consensus = started.await.unwrap().unwrap();
        let host = Host { consensus, process };
        self.net.attach(&machine.server.address, host.clone());
        machine.running = Some(host);
    }

    /// Ends a server without a word to the others.
    pub(super) async fn crash(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        self.net.detach(&machine.server.address);
        if let Some(disk) = &machine.disk {
            disk.crash();
        }
        if let Some(host) = machine.running.take() {
            host.process.kill();
            machine.snapshot = host.consensus.inner.snapshots.store.current();
            // What it held is let go of before it may start again.
            drop(host);
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn runs(&self, at: usize) -> bool {
        self.machines[at].running.is_some()
    }

    pub(super) fn at(&self, at: usize) -> &Consensus {
        &self.host(at).consensus
    }

    pub(super) fn host(&self, at: usize) -> &Host {
        self.machines[at].running.as_ref().unwrap()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Consensus)> {
        let machines = self.machines.iter().enumerate();
        machines.filter_map(|(at, machine)| Some((at, &machine.running.as_ref()?.consensus)))
    }

    /// Why servers ended by themselves, which none should.
    pub(super) fn ended(&self) -> Vec<String> {
        self.ended.lock().unwrap().clone()
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
        let nobody: [String; 0] = [];
        assert_eq!(self.ended(), nobody, "servers ended by themselves");
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
