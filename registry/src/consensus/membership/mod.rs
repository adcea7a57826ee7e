//! Who belongs to the cluster: how it is founded, how servers come, return and go.
//!
//! ```text
//! found:  every server of the founding set promises -> one of them writes the first membership
//! come:   admitted as a learner -> has the log -> voter; whom it replaces goes in the same change
//! go:     removed by name, or replaced; never so that the rest would be without a majority
//! ```
//!
//! What a leader has to do is worked out from the state again and again ([`steps`], pure), and not
//! remembered: a new leader finishes what the one before it began.

mod doorstep;
mod hand_over;
mod health;
mod situation;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers, Raft,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::{sync::MutexGuard, time::Instant};

use self::situation::Situation;
use super::{
    ClusterId, Consensus, DiskState, Leader, Misdirected, machine::Machine, raft::TypeConfig,
    receive::MAX_SERVERS,
};
use crate::log::{Server, ServerId};

pub(super) use doorstep::Doorstep;
pub(super) use hand_over::look_after_disk;
pub(super) use health::Healths;
pub(super) use steps::{Care, look_after_members};

/// How many entries a learner may be behind when it becomes a voter. It gets them in one message.
const CAUGHT_UP: u64 = 500;
/// Who was heard of within this time is there. Longer than a stalled disk holds up an acknowledgement,
/// as a rule, and than any election.
const ALIVE: Duration = Duration::from_secs(3);
/// Who was not heard of for this long is dead: a new server may take its vote.
const DEAD: Duration = Duration::from_secs(10);
/// How often a leader with learners looks whether they have the log.
const LOOK: Duration = Duration::from_millis(100);
/// Servers without a vote: several times as many as come at once. Each costs the leader streams, memory and entries, and
/// whoever knows the cluster's name may ask for one.
const MAX_LEARNERS: usize = 32;
/// Servers in all. Fewer than a follower believes of a leader, so that no server is let in whose entry would be refused.
const MOST_SERVERS: usize = MAX_SERVERS / 2;
/// How long a change of the membership may take before the leader looks again.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

/// A server of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: ServerId,
    pub name: String,
    /// Where it listens to other servers: `host:port`.
    pub address: String,
    /// It has a vote; otherwise it is still given the log.
    pub voter: bool,
    pub leader: bool,
    /// As far as the leader knows its log. Only known on the leader.
    pub replicated: Option<u64>,
    /// How long ago the leader heard of it. Only known on the leader, zero for itself.
    pub heard: Option<Duration>,
    /// What it said of its disk. Only known on the leader.
    pub disk: DiskState,
    /// Whether it is in order, by the settings of the autopilot. Only known on the leader.
    pub healthy: Option<bool>,
    /// Since how long that is so. Only known on the leader.
    pub stable_for: Option<Duration>,
}

impl Member {
    /// One of which no more is known than who and where it is.
    pub fn named(id: ServerId, name: String, address: String) -> Member {
        Member {
            id,
            name,
            address,
            voter: true,
            leader: false,
            replicated: None,
            heard: None,
            disk: DiskState::Unknown,
            healthy: None,
            stable_for: None,
        }
    }

    /// Whether it is there, as far as this server, being the leader, knows.
    pub fn is_alive(&self) -> bool {
        self.heard.is_some_and(|ago| ago < ALIVE)
    }
}

/// Why the membership was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("No cluster leader")]
    NoLeader,
    #[error("not the leader: that is {}", leader.address)]
    NotLeader { leader: Leader },
    #[error(
        "the name {name} is taken by the server at {address}, which is alive: give each server a name of \
         its own (-node)"
    )]
    NameTaken { name: String, address: String },
    #[error(
        "the id {id} is that of the server at {address}, which is alive: a data directory was copied; empty that of the \
         one that is to be another server"
    )]
    IdTaken { id: ServerId, address: String },
    #[error(
        "{0} servers without a vote are waiting for the log already: others are let in when those have it, or are gone \
         (wharf operator raft list-peers shows them, and remove-peer takes one out)"
    )]
    TooManyLearners(usize),
    #[error("the cluster has {0} servers already, and takes no more")]
    TooManyServers(usize),
    #[error(
        "server {id} does not answer at {address}, where it says that others reach it ({reason}): see its -advertise, \
         its server port, and what is between it and the leader"
    )]
    NotThere {
        id: ServerId,
        address: String,
        reason: String,
    },
    #[error("no server {0:?} in this cluster")]
    UnknownServer(String),
    #[error("{0:?} is the only voter: a cluster needs one")]
    LastVoter(String),
    #[error("without {0:?} there would be no majority of servers that are alive")]
    NoMajority(String),
    #[error("{0:?} does not have the whole log yet, or is not reachable")]
    NotReady(String),
    #[error("another change of the servers is under way: try again")]
    Busy,
    #[error(
        "the outcome of the change is unknown: it may or may not have taken place; see whether it has before it is tried again"
    )]
    OutcomeUnknown,
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a cluster was not founded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoundError {
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error("this server is in a cluster already")]
    HasLog,
    #[error("{0}")]
    Raft(String),
}

impl Consensus {
    /// The id under which this server votes.
    pub fn id(&self) -> ServerId {
        self.inner.id
    }

    /// The cluster that this server belongs to, or has promised to be founded into.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.identity.cluster()
    }

    /// Whether this server is part of a cluster that was founded.
    pub fn has_log(&self) -> bool {
        self.inner.log.state().last.is_some()
    }

    /// Promises to be founded into the cluster of `founder`, and into no other. Durable when it returns.
    /// Blocks for a moment.
    pub fn promise(&self, founder: ServerId) -> Result<(), FoundError> {
        if self.has_log() {
            return Err(FoundError::HasLog);
        }
        Ok(self.inner.identity.adopt(ClusterId(founder.0))?)
    }

    /// Takes a promise back. The caller knows that the founder has not founded, and never will by this
    /// promise: it has forgotten it. Blocks for a moment.
    pub fn withdraw_promise(&self) -> std::io::Result<()> {
        if self.has_log() {
            return Ok(());
        }
        self.inner.identity.forget()
    }

    /// Founds a cluster of `servers`, of which this is one. The others have to have promised.
    pub async fn found(&self, servers: BTreeMap<ServerId, Server>) -> Result<(), FoundError> {
        self.promise(self.inner.id)?;
        let founded = self.inner.raft.initialize(servers).await;
        founded.map_err(|error| FoundError::Raft(error.to_string()))
    }

    /// Every server of the cluster, this one included.
    pub fn members(&self) -> Vec<Member> {
        let situation = Situation::of(&self.inner.raft, self.inner.id);
        let mut disks = self.inner.peer_disks.lately(ALIVE);
        disks.insert(self.inner.id, self.inner.disk.state());
        let healths = self.inner.healths.borrow().all.clone();
        let current_leader = self.inner.leader.borrow().as_ref().map(|leader| leader.id);
        let members = situation
            .membership
            .servers
            .iter()
            .map(|(id, server)| Member {
                id: *id,
                name: server.name.clone(),
                address: server.address.clone(),
                voter: situation.is_voter(id),
                leader: current_leader == Some(*id),
                replicated: situation.replicated.get(id).copied(),
                heard: situation.heard.get(id).copied(),
                disk: match situation.leading {
                    true => disks.get(id).copied().unwrap_or_default(),
                    false => DiskState::Unknown,
                },
                healthy: healths.get(id).map(|health| health.healthy),
                stable_for: healths.get(id).map(|health| health.since.elapsed()),
            });
        members.collect()
    }

    /// Takes a server into the cluster, or learns that it has moved: to be asked of the leader by the
    /// server itself. It is called back first: it has to be where it says. It becomes a voter by itself when it has the
    /// log. A server of the same name or at the same address that is not alive any more is replaced by it.
    pub async fn admit(&self, id: ServerId, server: Server) -> Result<(), MembershipError> {
        self.expect_leader()?;
        let inner = &self.inner;
        // Nobody is called for what would be refused, or is so already.
        if admission(&self.situation(), id, &server)?.is_none() {
            return Ok(());
        }
        inner.doorstep.call_back(id, &server.address).await?;
        self.change(|situation| admission(situation, id, &server))
            .await
    }

    /// Takes a server out of the cluster. The rest must be able to go on without it.
    ///
    /// # Errors
    /// Also [`MembershipError::NotLeader`] after this server, which was to be taken out, has handed over to another:
    /// that one does it.
    pub async fn remove(&self, id: ServerId) -> Result<(), MembershipError> {
        if id == self.inner.id {
            self.expect_leader()?;
            let alone = self.situation().voters_to_be().len() <= 1;
            if !alone {
                let leader = self.hand_over(None).await?;
                return Err(MembershipError::NotLeader { leader });
            }
        }
        // One whose change was begun before is out when that is finished.
        let mut begun = false;
        self.change(|situation| {
            let Some(server) = situation.membership.servers.get(&id) else {
                return match begun {
                    true => Ok(None),
                    false => Err(MembershipError::UnknownServer(id.to_string())),
                };
            };
            let out = BTreeSet::from([id]);
            if !situation.is_voter(&id) {
                begun = true;
                return Ok(Some(ChangeMembers::RemoveNodes(out)));
            }
            let mut left = situation.voters_to_be();
            left.remove(&id);
            if left.is_empty() {
                return Err(MembershipError::LastVoter(server.name.clone()));
            }
            if !situation.has_live_majority(&left) {
                return Err(MembershipError::NoMajority(server.name.clone()));
            }
            begun = true;
            Ok(Some(ChangeMembers::RemoveVoters(out)))
        })
        .await
    }

    fn situation(&self) -> Situation {
        let mut situation = Situation::of(&self.inner.raft, self.inner.id);
        self.inner.healths.borrow().complete(&mut situation);
        situation
    }

    fn expect_leader(&self) -> Result<Leader, MembershipError> {
        let leader = self.leader().ok_or(MembershipError::NoLeader)?;
        match leader.id == self.inner.id {
            true => Ok(leader),
            false => Err(MembershipError::NotLeader { leader }),
        }
    }

    /// Makes the change that `plan` finds, after the one that may be under way. It is asked when it is the turn of this
    /// change, and again at each new attempt: what it goes by is what there is after all others.
    async fn change(
        &self,
        mut plan: impl FnMut(&Situation) -> Result<Option<Change>, MembershipError>,
    ) -> Result<(), MembershipError> {
        let inner = &self.inner;
        let deadline = Instant::now() + CHANGE_WITHIN;
        loop {
            self.expect_leader()?;
            let turn = tokio::time::timeout_at(deadline, inner.changing.lock()).await;
            let turn = turn.map_err(|_| MembershipError::Busy)?;
            self.expect_leader()?;
            let Some(change) = plan(&self.situation())? else {
                return Ok(());
            };
            let failed = match change_membership(&inner.raft, &turn, change).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            drop(turn);
            match failed {
                Failed::Busy if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Failed::Busy => return Err(MembershipError::Busy),
                Failed::NotLeader => {
                    return Err(match self.leader() {
                        Some(leader) if leader.id != inner.id => {
                            MembershipError::NotLeader { leader }
                        }
                        _ => MembershipError::NoLeader,
                    });
                }
                Failed::Unknown => return Err(MembershipError::OutcomeUnknown),
                Failed::Stopped => return Err(MembershipError::ShuttingDown),
            }
        }
    }
}

type Change = ChangeMembers<ServerId, Server>;

/// What is to be changed for a server to be a member, if it may be one.
fn admission(
    situation: &Situation,
    id: ServerId,
    server: &Server,
) -> Result<Option<Change>, MembershipError> {
    let servers = &situation.membership.servers;
    let member = BTreeMap::from([(id, server.clone())]);
    if servers.get(&id) == Some(server) {
        return Ok(None);
    }
    if let Some(known) = situation.name_holder(&id, server) {
        return Err(MembershipError::NameTaken {
            name: server.name.clone(),
            address: known.address.clone(),
        });
    }
    if let Some(known) = servers.get(&id) {
        // One that has moved is not where it was any more. Two of one id would each count for the other.
        if known.address != server.address && !situation.is_gone(&id) {
            return Err(MembershipError::IdTaken {
                id,
                address: known.address.clone(),
            });
        }
        return Ok(Some(ChangeMembers::SetNodes(member)));
    }
    // One that came before under another id and never got so far as to vote.
    let former = situation.replaced_by(server);
    let former: BTreeSet<_> = former
        .filter(|former| !situation.is_voter(former))
        .collect();
    let learners = servers
        .keys()
        .filter(|id| !situation.is_voter(id) && !former.contains(id));
    let learners = learners.count();
    if learners >= MAX_LEARNERS {
        return Err(MembershipError::TooManyLearners(learners));
    }
    if servers.len() - former.len() >= MOST_SERVERS {
        return Err(MembershipError::TooManyServers(servers.len()));
    }
    Ok(Some(ChangeMembers::Batch(vec![
        ChangeMembers::RemoveNodes(former),
        ChangeMembers::AddNodes(member),
    ])))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Busy,
    NotLeader,
    Unknown,
    Stopped,
}

/// Makes a change of which the caller has found, with `_turn` in its hand, that it is right: two at once would
/// leave each other half done, and each might be right only without the other.
async fn change_membership(
    raft: &Raft<TypeConfig, Machine>,
    _turn: &MutexGuard<'_, ()>,
    change: Change,
) -> Result<(), Failed> {
    let changed = raft.change_membership(change, false);
    match tokio::time::timeout(CHANGE_WITHIN, changed).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
            Err(Failed::NotLeader)
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_),
        )))) => Err(Failed::Busy),
        Ok(Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)))) | Err(_) => {
            Err(Failed::Unknown)
        }
        Ok(Err(RaftError::APIError(error))) => {
            tracing::warn!(%error, "a change of the servers was refused");
            Err(Failed::Busy)
        }
        Ok(Err(RaftError::Fatal(_))) => Err(Failed::Stopped),
    }
}
