//! Agreement between servers: one log, in one order, on a majority of them.
//!
//! [`Consensus`] is a façade over openraft. What it promises is Raft's: a command whose outcome was
//! given is on the disks of a quorum and survives any minority of failures, and every server applies
//! the same commands in the same order. No type of openraft leaves this room, so that its version
//! can change (or it can be replaced) without anybody noticing.
//!
//! ```text
//! propose -> admission -> line -> raft core -> log (group commit) -> quorum -> Machine -> view, wake, answer
//!                             |  ^                                      `-> snapshot when due
//!                     network v  | receive
//!                          Transport (the agent's gRPC, or a table in memory) <-> other servers
//! ```
//!
//! A server that can no longer keep the promises stops the process ([`FatalHandler`]).

mod admission;
mod config;
mod contact;
mod data_dir;
mod disk;
mod error;
mod identity;
mod line;
mod machine;
mod membership;
mod network;
mod opened;
mod pending;
mod pipeline;
mod raft;
mod receive;
mod receiving;
mod recovery;
mod runtime;
mod sending;
mod settings;
mod stats;
mod storage;
mod supervisor;
mod transport;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Config, LinearizerOption, Raft, ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError},
};
use tokio::task::JoinHandle;

use self::{
    admission::{Admission, Permit, Refused},
    contact::Contact,
    data_dir::DataDir,
    disk::{Disk, PeerDisks, Room},
    identity::Identity,
    line::{Line, Place, Turn},
    machine::{Machine, Snapshots},
    network::{Addresses, Network},
    opened::Opened,
    pending::{Patience, Pending},
    raft::{Answer, Proposal, Reply, TypeConfig},
    runtime::{Instant, watch},
    settings::raft_config,
    storage::Storage,
    supervisor::{Supervisor, Touch},
};
use crate::{
    command::{Command, Outcome},
    log::{LogStore, Server, ServerId},
    replica::{Registry, Replica},
};

pub use config::{ConsensusConfig, FatalHandler, Limits, Timings};
pub use data_dir::DataDirError;
pub use disk::{DiskFull, DiskState};
pub use error::{ProposeError, ReadError, StartError};
pub use identity::Misdirected;
pub use machine::SnapshotPolicy;
pub use membership::{FoundError, Member, MembershipError};
pub use receive::ReceiveError;
pub use recovery::{Recovered, RecoveryError};
pub use transport::{
    Append, AppendReply, BoxFuture, BoxStream, ClusterId, Election, Envelope, HandOver,
    HeartbeatReply, Lane, Route, Transport, TransportError, VoteReply, VoteRequest,
};

/// The longest command: it has to fit into one message between servers.
const MAX_COMMAND: usize = 16 << 20;
/// How long a proposal may wait for its turn before it is refused: nothing is done then.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// One server's part in the consensus. Clones share it.
#[derive(Clone, Debug)]
pub struct Consensus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: ServerId,
    raft: Raft<TypeConfig, Machine>,
    registry: Registry,
    log: Arc<dyn LogStore>,
    snapshots: Arc<Snapshots>,
    admission: Arc<Admission>,
    line: Arc<Line>,
    /// What is not in the log here: it waits for a leader, or for the answer of another server.
    waiting: Arc<Admission>,
    identity: Arc<Identity>,
    /// Who waits for the outcome of a proposal.
    pending: Arc<Pending<Answer>>,
    leader: watch::Receiver<Option<Leader>>,
    /// The index of the last entry that is applied and published.
    applied: watch::Receiver<u64>,
    /// Changes of the membership take turns.
    changing: Arc<tokio::sync::Mutex<()>>,
    doorstep: membership::Doorstep,
    contact: Arc<Contact>,
    disk: Disk,
    peer_disks: PeerDisks,
    /// What this server, being the leader, finds of each.
    healths: watch::Receiver<membership::Healths>,
    /// How long those who acknowledge a leader vote for no other, by their own clocks.
    lease: Duration,
    /// A server that restarts votes for nobody before a lease is over that it may have given.
    votes_from: Instant,
    /// The term in which this server, leading alone, was seen to have applied what precedes it.
    settled_term: AtomicU64,
    stopping: Arc<AtomicBool>,
    on_fatal: FatalHandler,
    recovered: Option<Recovered>,
    /// The supervisor, and who looks after the members.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    data_dir: Mutex<Option<DataDir>>,
}

/// The server that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub id: ServerId,
    pub name: String,
    pub address: String,
}

/// How fresh a read must be. The names are Consul's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever this server has.
    Stale,
    /// What the leader has, while its lease lasts. Stale only if a clock runs far off: no server's
    /// may be faster than another's by more than a tenth.
    #[default]
    Default,
    /// Everything that was acknowledged before the read began; asks a quorum.
    Consistent,
}

impl Consensus {
    /// Starts a server: opens its data, recovers the state, and takes part. Returns before there is
    /// a leader. To be called within a tokio runtime.
    pub async fn start(config: ConsensusConfig) -> Result<Consensus, StartError> {
        let raft_config = Arc::new(raft_config(&config)?);
        let opened = {
            let config = config.clone();
            runtime::spawn_blocking(move || Opened::open(&config)).await
        };
        let opened = opened.map_err(|error| StartError::Raft(error.to_string()))??;
        Consensus::start_on(opened, config, raft_config).await
    }

    async fn start_on(
        opened: Opened,
        config: ConsensusConfig,
        raft_config: Arc<Config>,
    ) -> Result<Consensus, StartError> {
        let id = opened.id;
        let own = Server {
            name: config.node_name,
            address: config.server_address,
        };
        let snapshots = Snapshots::new(opened.snapshots, config.snapshots, opened.members.clone());
        let replica = Replica::new();
        let registry = replica.registry();
        let (machine, applied) = Machine::new(replica, snapshots.clone());
        let storage = Storage::new(opened.log.clone(), opened.members);
        let disk = Disk {
            space: opened.space,
            flushes: storage.flushes.clone(),
            // Longer than any election: a disk that hiccups is no reason for one.
            patience: config.timings.election_max * 4,
        };
        let peer_disks = PeerDisks::default();
        let addresses = Addresses::default();
        let alone = config.transport.is_none();
        let doorstep = membership::Doorstep::new(config.transport.clone());
        let network = Network {
            transport: config.transport,
            identity: opened.identity.clone(),
            own: id,
            addresses: addresses.clone(),
            disks: peer_disks.clone(),
            sending: snapshots.sending.clone(),
        };
        // It may have acknowledged a leader right before it went down, and votes for nobody, itself included, until
        // that leader's lease is over. Alone it has nobody to wait for, and stands for election below.
        let lease = config.timings.election_max;
        // Also one that has no vote, and no log: a heartbeat is answered before either is on the disk.
        let gave_lease = !alone && (opened.log.vote().is_some() || opened.identity.has_met());
        let raft_config = match gave_lease {
            true => Arc::new(Config {
                enable_elect: false,
                ..(*raft_config).clone()
            }),
            false => raft_config,
        };
        let now = runtime::now();
        let votes_from = if gave_lease { now + lease } else { now };
        let raft = Raft::new(id, raft_config, network, storage, machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        found_or_rejoin(&raft, id, &own, config.bootstrap, &opened.identity).await?;

        let stopping = Arc::new(AtomicBool::new(false));
        let contact = Arc::new(Contact::new());
        // A lease, and the time in which another leader is to be expected.
        let patience = (!alone).then_some(config.timings.election_max * 2);
        let (supervisor, leader) = Supervisor::new(
            raft.clone(),
            Touch {
                own: id,
                contact: contact.clone(),
                patience,
            },
            snapshots.clone(),
            disk.space.clone(),
            addresses,
            stopping.clone(),
            config.on_fatal.clone(),
        );
        let changing = Arc::default();
        let (found, healths) = watch::channel(membership::Healths::default());
        let members = membership::look_after_members(membership::Care {
            raft: raft.clone(),
            own: id,
            own_server: own,
            heartbeat: config.timings.heartbeat,
            turn: Arc::clone(&changing),
            registry: registry.clone(),
            disk: disk.clone(),
            peer_disks: peer_disks.clone(),
            healths: found,
        });
        let watching = membership::look_after_disk(
            raft.clone(),
            id,
            disk.clone(),
            peer_disks.clone(),
            leader.clone(),
            gave_lease.then_some(votes_from),
        );
        let pending = Pending::new();
        let hopeless = pending::give_up(
            pending.clone(),
            Patience {
                leaderless: config.hold,
                alone,
            },
            leader.clone(),
        );
        let tasks = vec![
            runtime::spawn(hopeless),
            runtime::spawn(supervisor.run()),
            runtime::spawn(members),
            runtime::spawn(watching),
        ];
        let limits = config.limits;
        let inner = Inner {
            id,
            raft,
            registry,
            log: opened.log,
            snapshots,
            admission: Admission::new(limits.proposals_in_flight, limits.bytes_in_flight),
            line: Line::new(limits.bytes_in_log),
            waiting: Admission::new(limits.proposals_in_flight, limits.bytes_in_flight),
            identity: opened.identity,
            pending,
            leader,
            applied,
            changing,
            doorstep,
            contact,
            disk,
            peer_disks,
            healths,
            lease,
            votes_from,
            settled_term: AtomicU64::new(0),
            stopping,
            on_fatal: config.on_fatal,
            recovered: opened.recovered,
            tasks: Mutex::new(tasks),
            data_dir: Mutex::new(opened.data_dir),
        };
        Ok(Consensus {
            inner: Arc::new(inner),
        })
    }

    /// Whether the start of this server was a recovery: its cluster has the members of a peers file.
    pub fn recovered(&self) -> Option<&Recovered> {
        self.inner.recovered.as_ref()
    }

    /// Ends this server, as a failed disk does: for a caller who knows that it must not go on, and why.
    pub fn give_up(&self, reason: &str) {
        self.inner.on_fatal.call(reason);
    }

    /// The state as far as this server has applied it.
    pub fn registry(&self) -> Registry {
        self.inner.registry.clone()
    }

    /// Puts a command into the log and waits until it is applied here: the view of
    /// [`Consensus::registry`] has it when this returns.
    ///
    /// To drop the future does not take the command back.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, ProposeError> {
        self.propose_encoded(command.encode())
            .await
            .map(|(_, outcome)| outcome)
    }

    /// The same with a command that is encoded already; also tells at which index it was applied. The
    /// caller has made sure that it can be decoded: what a replica cannot read stops it.
    pub async fn propose_encoded(&self, bytes: Bytes) -> Result<(u64, Outcome), ProposeError> {
        let inner = &*self.inner;
        if inner.stopping.load(Ordering::Relaxed) {
            return Err(ProposeError::ShuttingDown);
        }
        let size = bytes.len();
        if size > MAX_COMMAND {
            return Err(ProposeError::TooLarge {
                size,
                limit: MAX_COMMAND,
            });
        }
        let permit = admit(&inner.admission, size)?;
        // Where another leads, its disk is the one that counts.
        if self.is_leader() {
            let space = &inner.disk.space;
            let admitted = space.admit_command(inner.admission.bytes(), size);
            admitted.inspect_err(|_| count_refusal("disk_full"))?;
        }
        let turn = match inner.line.enter(size) {
            Ok(turn) => turn,
            Err(place) => inner.in_turn(place).await?,
        };
        let (reply, answer) = Reply::new(&inner.pending, permit, turn);
        let sent = inner.raft.client_write_ff(Proposal(bytes), Some(reply));
        if sent.await.is_err() {
            return Err(ProposeError::ShuttingDown);
        }
        match answer.await {
            Ok(Ok(response)) => Ok((response.log_id.index, response.data)),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(match inner.other_leader(forward) {
                    Some(leader) => ProposeError::NotLeader { leader },
                    None => ProposeError::NoLeader,
                })
            }
            // It is in the log here: what becomes of it another leader decides, or a majority that is not there.
            Ok(Err(_)) | Err(_) => Err(ProposeError::OutcomeUnknown),
        }
    }

    /// A place for an encoded command of this size that waits for a leader, or for the answer of another server that it
    /// is proposed at: as many are granted as there may be proposals in flight.
    pub fn admit_waiting(&self, size: usize) -> Result<Waiting, ProposeError> {
        let permit = admit(&self.inner.waiting, size)?;
        Ok(Waiting { _permit: permit })
    }

    /// The leader as far as this server knows. One that was silent for too long counts as lost, and so does
    /// this server itself without a quorum.
    pub fn leader(&self) -> Option<Leader> {
        self.inner.leader.borrow().clone()
    }

    pub fn is_leader(&self) -> bool {
        is(&self.inner.leader.borrow(), self.inner.id)
    }

    /// Tells of every change of leader, its loss included.
    pub fn leader_changes(&self) -> watch::Receiver<Option<Leader>> {
        self.inner.leader.clone()
    }

    /// The term that this server is in.
    pub fn term(&self) -> u64 {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.vote.leader_id.term
    }

    /// The addresses of the voting servers.
    pub fn peers(&self) -> Vec<String> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids();
        voters
            .filter_map(|id| membership.get_node(&id))
            .map(|server| server.address.clone())
            .collect()
    }

    /// Waits until the view of this server is as fresh as `consistency` asks, or says why it cannot
    /// be. Load the view afterwards.
    pub async fn read_barrier(&self, consistency: Consistency) -> Result<(), ReadError> {
        let inner = &*self.inner;
        let option = match consistency {
            Consistency::Stale => return Ok(()),
            Consistency::Default if inner.leads_alone_and_settled() => return Ok(()),
            Consistency::Default => lease_read(inner.lease),
            Consistency::Consistent => ReadPolicy::ReadIndex.into(),
        };
        match inner.raft.ensure_linearizable(option).await {
            Ok(read) => {
                let term = read.committed_leader_id().term;
                inner.settled_term.fetch_max(term, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(inner.read_error(error)),
        }
    }

    /// On the leader: the index up to which any server has to have applied the log for a read of this
    /// consistency. See [`Consensus::wait_applied`].
    pub async fn read_index(&self, consistency: Consistency) -> Result<u64, ReadError> {
        let inner = &*self.inner;
        let option = match consistency {
            Consistency::Stale => return Ok(0),
            Consistency::Default => lease_read(inner.lease),
            Consistency::Consistent => ReadPolicy::ReadIndex.into(),
        };
        match inner.raft.get_read_linearizer(option).await {
            Ok(read) => Ok(read.read_log_id().index()),
            Err(error) => Err(inner.read_error(error)),
        }
    }

    /// Whether this server takes what a leader sends. One whose disk is full does not, until there is room again.
    pub fn can_follow(&self) -> bool {
        self.is_leader() || self.inner.disk.space.look() >= Room::Entries
    }

    /// Waits until this server has applied the entry at `index`: its view has it when this returns.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ReadError> {
        let mut applied = self.inner.applied.clone();
        match applied.wait_for(|applied| *applied >= index).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ReadError::ShuttingDown),
        }
    }

    /// How long ago this server heard from the leader; zero on the leader itself, `None` if none was ever heard.
    /// For a leader that lost its quorum: since it had one.
    pub fn last_contact(&self) -> Option<Duration> {
        match self.is_leader() {
            true => Some(Duration::ZERO),
            false => self.inner.contact.ago(),
        }
    }

    /// The figures of `consul info`, section `raft`.
    pub fn stats(&self) -> Vec<(String, String)> {
        stats::collect(&self.inner, self.last_contact())
    }

    /// Stops taking part, makes the log durable and lets go of the data directory. Proposals that
    /// have no outcome yet learn that it is unknown.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.stopping.store(true, Ordering::Relaxed);
        inner.snapshots.store.stop();
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "the consensus did not stop cleanly");
        }
        for task in inner.take_tasks() {
            task.abort();
            // Aborted or already done: either way it is gone.
            let _ = task.await;
        }
        // A snapshot being written gives up soon; none begins any more.
        let writing = inner.snapshots.writing.acquire().await.is_ok();
        if writing {
            inner.snapshots.writing.close();
        }
        let log = inner.log.clone();
        match runtime::spawn_blocking(move || log.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the log was not closed cleanly"),
            Err(error) => tracing::error!(%error, "the log was not closed"),
        }
        drop(take(&inner.data_dir));
    }
}

impl Inner {
    /// Waits for a turn as long as this server leads. Without one nothing was done.
    async fn in_turn(&self, place: Place) -> Result<Turn, ProposeError> {
        let mut leader = self.leader.clone();
        let own = self.id;
        let deposed = leader.wait_for(|leader| !is(leader, own));
        tokio::select! {
            biased;
            turn = place.turn() => return Ok(turn),
            leader = deposed => {
                if let Ok(Some(leader)) = leader.as_deref() {
                    return Err(ProposeError::NotLeader { leader: leader.clone() });
                }
            }
            () = tokio::time::sleep(TURN_WITHIN) => {
                count_refusal("overloaded");
                return Err(ProposeError::Overloaded);
            }
        }
        match self.stopping.load(Ordering::Relaxed) {
            true => Err(ProposeError::ShuttingDown),
            false => Err(ProposeError::NoLeader),
        }
    }

    /// Whether a read of the leader's view needs no round trip: nobody else can lead while this
    /// server is the only voter, and it has applied what was committed before its term. What it
    /// acknowledged since is in the view, because an answer is given after the view is published.
    fn leads_alone_and_settled(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader()
            && metrics.vote.leader_id.term == self.settled_term.load(Ordering::Relaxed)
            && metrics.membership_config.voter_ids().eq([self.id])
    }

    fn read_error(
        &self,
        error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    ) -> ReadError {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                match self.other_leader(forward) {
                    Some(leader) => ReadError::NotLeader { leader },
                    None => ReadError::NoLeader,
                }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
            RaftError::Fatal(_) => ReadError::ShuttingDown,
        }
    }

    fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where to send what this server does not take. Not to itself: it refuses because it lost its
    /// quorum. And not to a leader that was silent for too long: the core names the last one there was.
    fn other_leader(&self, forward: ForwardToLeader<TypeConfig>) -> Option<Leader> {
        let id = forward.leader_id.filter(|id| *id != self.id)?;
        if self.leader.borrow().is_none() {
            return None;
        }
        let server = forward.leader_node?;
        Some(leader(id, server))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.take_tasks() {
            task.abort();
        }
    }
}

/// A place for a command that has to wait, given back when dropped.
#[derive(Debug)]
pub struct Waiting {
    _permit: Permit,
}

fn is(leader: &Option<Leader>, server: ServerId) -> bool {
    leader.as_ref().is_some_and(|leader| leader.id == server)
}

fn admit(admission: &Arc<Admission>, size: usize) -> Result<Permit, ProposeError> {
    admission.admit(size).map_err(|refused| match refused {
        Refused::Full => {
            count_refusal("overloaded");
            ProposeError::Overloaded
        }
        Refused::TooLarge => ProposeError::TooLarge {
            size,
            limit: admission.max_bytes(),
        },
    })
}

fn count_refusal(reason: &'static str) {
    metrics::counter!("wharf_raft_proposals_refused_total", "reason" => reason).increment(1);
}

fn leader(id: ServerId, server: Server) -> Leader {
    Leader {
        id,
        name: server.name,
        address: server.address,
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A read by lease, which ends a tenth of it before voters are free again, those that have restarted included: their
/// clocks may run faster than the leader's.
fn lease_read(lease: Duration) -> LinearizerOption {
    let age = lease - lease / 10;
    LinearizerOption::new(Some(age), false).with_wait_timeout(Duration::ZERO)
}

/// Founds a cluster of this server, if asked to and there is none; otherwise goes on with what the
/// data directory says. A server alone need not wait for a leader to fall silent.
async fn found_or_rejoin(
    raft: &Raft<TypeConfig, Machine>,
    id: ServerId,
    own: &Server,
    bootstrap: bool,
    identity: &Identity,
) -> Result<(), StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let fatal = |error: Fatal<TypeConfig>| failed(&error);
    let initialized = raft.is_initialized().await.map_err(fatal)?;
    if !initialized {
        if bootstrap {
            // One that was taken into another cluster, and has nothing of it yet, founds none.
            let name = ClusterId(id.0);
            identity.adopt(name).map_err(|error| failed(&error))?;
            let members = BTreeMap::from([(id, own.clone())]);
            raft.initialize(members)
                .await
                .map_err(|error| failed(&error))?;
        }
        return Ok(());
    }
    let alone =
        raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([id]));
    if alone.await.map_err(fatal)? {
        raft.trigger().elect(false).await.map_err(fatal)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
