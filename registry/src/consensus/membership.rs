//! Who belongs to the cluster: how it is founded, how servers come, return and go.
//!
//! ```text
//! found:  every server of the founding set promises -> one of them writes the first membership
//! come:   admitted as a learner -> has the log -> voter; whom it replaces goes in the same change
//! go:     removed by name, or replaced; never so that the rest would be without a majority
//! ```
//!
//! What a leader has to do is worked out from the state again and again ([`next_step`], pure), and not
//! remembered: a new leader finishes what the one before it began.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{
    ChangeMembers, Instant as _, Raft, TokioInstant,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::{sync::Mutex, time::Instant};

use super::{
    ClusterId, Consensus, Leader, Misdirected,
    machine::Machine,
    raft::{self, TypeConfig},
};
use crate::log::{Membership, Server, ServerId};

/// How many entries a learner may be behind when it becomes a voter. It gets them in one message.
const CAUGHT_UP: u64 = 500;
/// Who was heard of within this time is there. Longer than a stalled disk holds up an acknowledgement,
/// as a rule, and than any election.
const ALIVE: Duration = Duration::from_secs(3);
/// Who was not heard of for this long is dead: a new server may take its vote.
const DEAD: Duration = Duration::from_secs(10);
/// How often a leader with learners looks whether they have the log.
const LOOK: Duration = Duration::from_millis(100);
/// How long a leader that hands over waits to see another one. The heir answers in milliseconds, if it does.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);
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
}

impl Member {
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
    #[error("the outcome of the change is unknown: it may or may not have taken place")]
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
        let current_leader = self
            .inner
            .leader
            .borrow()
            .as_ref()
            .map(|leader| leader.node_uuid);
        let members = situation
            .membership
            .servers
            .iter()
            .map(|(id, server)| Member {
                id: *id,
                name: server.name.clone(),
                address: server.address.clone(),
                voter: situation.is_voter(id),
                leader: current_leader == Some(id.0),
                replicated: situation.replicated.get(id).copied(),
                heard: situation.heard.get(id).copied(),
            });
        members.collect()
    }

    /// Takes a server into the cluster, or learns that it has moved: to be asked of the leader by the
    /// server itself. It becomes a voter by itself when it has the log. A server of the same name or at
    /// the same address that is not alive any more is replaced by it.
    pub async fn admit(&self, id: ServerId, server: Server) -> Result<(), MembershipError> {
        self.expect_leader()?;
        let situation = Situation::of(&self.inner.raft, self.inner.id);
        let change = match situation.membership.servers.get(&id) {
            Some(known) if *known == server => return Ok(()),
            Some(_) => ChangeMembers::SetNodes(BTreeMap::from([(id, server)])),
            None => {
                let taken = situation.membership.servers.iter().find(|(other, known)| {
                    known.name == server.name
                        && known.address != server.address
                        && situation.is_alive(other)
                });
                if let Some((_, known)) = taken {
                    return Err(MembershipError::NameTaken {
                        name: server.name,
                        address: known.address.clone(),
                    });
                }
                // One that came before under another id and never got so far as to vote.
                let former = situation.replaced_by(&server);
                let former = former.filter(|former| !situation.is_voter(former));
                ChangeMembers::Batch(vec![
                    ChangeMembers::RemoveNodes(former.collect()),
                    ChangeMembers::AddNodes(BTreeMap::from([(id, server)])),
                ])
            }
        };
        self.change(change).await
    }

    /// Takes a server out of the cluster. The rest must be able to go on without it.
    pub async fn remove(&self, id: ServerId) -> Result<(), MembershipError> {
        self.expect_leader()?;
        let situation = Situation::of(&self.inner.raft, self.inner.id);
        let Some(server) = situation.membership.servers.get(&id) else {
            return Err(MembershipError::UnknownServer(id.to_string()));
        };
        let name = server.name.clone();
        if !situation.is_voter(&id) {
            return self
                .change(ChangeMembers::RemoveNodes(BTreeSet::from([id])))
                .await;
        }
        let mut left = situation.voters();
        left.remove(&id);
        if left.is_empty() {
            return Err(MembershipError::LastVoter(name));
        }
        if !situation.has_live_majority(&left) {
            return Err(MembershipError::NoMajority(name));
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])))
            .await
    }

    /// Hands the leadership to `to`, or to the voter that has most of the log, and waits until it is
    /// taken. If it is not, the others elect somebody as after a loss of this leader.
    pub async fn hand_over(&self, to: Option<ServerId>) -> Result<Leader, MembershipError> {
        self.expect_leader()?;
        let own = self.inner.id;
        let situation = Situation::of(&self.inner.raft, own);
        let ready = |id: &ServerId| {
            *id != own && situation.is_voter(id) && situation.is_alive(id) && situation.has_log(id)
        };
        let heir = match to {
            Some(to) if !situation.is_voter(&to) => {
                return Err(MembershipError::UnknownServer(to.to_string()));
            }
            Some(to) if to == own => return self.expect_leader(),
            Some(to) if !ready(&to) => {
                return Err(MembershipError::NotReady(situation.name(&to)));
            }
            Some(to) => to,
            None => {
                let heirs = situation.voters().into_iter().filter(ready);
                let best = heirs.max_by_key(|id| situation.replicated.get(id).copied());
                best.ok_or(MembershipError::NotReady("any other server".to_owned()))?
            }
        };
        let mut changes = self.inner.leader.clone();
        let asked = self.inner.raft.trigger().transfer_leader(heir).await;
        asked.map_err(|_| MembershipError::ShuttingDown)?;
        let taken = changes.wait_for(|leader| {
            leader
                .as_ref()
                .is_some_and(|leader| leader.node_uuid != own.0)
        });
        match tokio::time::timeout(HAND_OVER_WITHIN, taken).await {
            Ok(Ok(leader)) => leader.clone().ok_or(MembershipError::OutcomeUnknown),
            Ok(Err(_)) => Err(MembershipError::ShuttingDown),
            Err(_) => Err(MembershipError::OutcomeUnknown),
        }
    }

    fn expect_leader(&self) -> Result<Leader, MembershipError> {
        let leader = self.leader().ok_or(MembershipError::NoLeader)?;
        match leader.node_uuid == self.inner.id.0 {
            true => Ok(leader),
            false => Err(MembershipError::NotLeader { leader }),
        }
    }

    /// Makes a change, after the one that may be under way.
    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let inner = &self.inner;
        let deadline = Instant::now() + CHANGE_WITHIN;
        let failed = loop {
            match change_membership(&inner.raft, &inner.changing, change.clone()).await {
                Ok(()) => return Ok(()),
                Err(Failed::Busy) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Err(failed) => break failed,
            }
        };
        Err(match failed {
            Failed::Busy => MembershipError::Busy,
            Failed::NotLeader => match self.leader() {
                Some(leader) if leader.node_uuid != inner.id.0 => {
                    MembershipError::NotLeader { leader }
                }
                _ => MembershipError::NoLeader,
            },
            Failed::Unknown => MembershipError::OutcomeUnknown,
            Failed::Stopped => MembershipError::ShuttingDown,
        })
    }
}

type Change = ChangeMembers<ServerId, Server>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Busy,
    NotLeader,
    Unknown,
    Stopped,
}

/// Two changes at once would leave each other half done, so they take turns.
async fn change_membership(
    raft: &Raft<TypeConfig, Machine>,
    turn: &Mutex<()>,
    change: Change,
) -> Result<(), Failed> {
    let changed = async {
        let _turn = turn.lock().await;
        raft.change_membership(change, false).await
    };
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

/// What a leader knows of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Situation {
    own: ServerId,
    leading: bool,
    membership: Membership,
    last_log: u64,
    replicated: BTreeMap<ServerId, u64>,
    heard: BTreeMap<ServerId, Duration>,
    /// How long this server has led: whom it never heard was silent for as long.
    led: Duration,
}

impl Situation {
    fn of(raft: &Raft<TypeConfig, Machine>, own: ServerId) -> Situation {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let now = <TokioInstant as openraft::Instant>::now();
        let leading = metrics.state.is_leader();
        let mut situation = Situation {
            own,
            leading,
            membership: raft::membership(metrics.membership_config.membership()),
            last_log: metrics.last_log_index.unwrap_or(0),
            ..Situation::default()
        };
        if leading {
            let replicated = metrics.replication.iter().flatten();
            situation.replicated = replicated
                .filter_map(|(id, at)| Some((*id, at.as_ref()?.index)))
                .collect();
            let heard = metrics.heartbeat.iter().flatten();
            situation.heard = heard
                .filter_map(|(id, at)| Some((*id, now.saturating_duration_since(**at.as_ref()?))))
                .collect();
            situation.replicated.insert(own, situation.last_log);
            situation.heard.insert(own, Duration::ZERO);
        }
        situation
    }

    /// Those with a vote now or after the change that is under way.
    fn voters(&self) -> BTreeSet<ServerId> {
        self.membership.voters.iter().flatten().copied().collect()
    }

    fn is_voter(&self, id: &ServerId) -> bool {
        self.membership.voters.iter().any(|set| set.contains(id))
    }

    fn is_alive(&self, id: &ServerId) -> bool {
        self.heard.get(id).is_some_and(|ago| *ago < ALIVE)
    }

    fn silence(&self, id: &ServerId) -> Duration {
        self.heard.get(id).copied().unwrap_or(self.led)
    }

    /// The voter that is dead for longest.
    fn dead_voter(&self) -> Option<ServerId> {
        let dead = self.voters().into_iter().map(|id| (self.silence(&id), id));
        dead.filter(|(silence, _)| *silence >= DEAD)
            .max()
            .map(|(_, id)| id)
    }

    fn has_log(&self, id: &ServerId) -> bool {
        let replicated = self.replicated.get(id);
        replicated.is_some_and(|at| at + CAUGHT_UP >= self.last_log)
    }

    fn has_live_majority(&self, voters: &BTreeSet<ServerId>) -> bool {
        voters.iter().filter(|id| self.is_alive(id)).count() > voters.len() / 2
    }

    fn name(&self, id: &ServerId) -> String {
        let server = self.membership.servers.get(id);
        server.map_or_else(|| id.to_string(), |server| server.name.clone())
    }

    /// The members whose place `server` takes: those at its address, which can only be one server's, and
    /// those of its name that are not alive.
    fn replaced_by<'a>(&'a self, server: &'a Server) -> impl Iterator<Item = ServerId> + 'a {
        let members = self.membership.servers.iter();
        members
            .filter(move |(id, known)| {
                known.address == server.address || known.name == server.name && !self.is_alive(id)
            })
            .map(|(id, _)| *id)
    }
}

/// What a leader does next about its members.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// There is a learner that is not ready.
    Wait,
    /// A change that was begun is to be finished.
    Finish,
    /// This server has another name or address than the membership says.
    CorrectOwn,
    /// These are the voters.
    SetVoters(BTreeSet<ServerId>),
}

fn next_step(situation: &Situation, own_server: &Server) -> Step {
    if !situation.leading {
        return Step::Nothing;
    }
    if situation.membership.voters.len() > 1 {
        return Step::Finish;
    }
    let servers = &situation.membership.servers;
    if servers
        .get(&situation.own)
        .is_some_and(|known| known != own_server)
    {
        return Step::CorrectOwn;
    }
    let mut learners = servers
        .iter()
        .filter(|(id, _)| !situation.is_voter(id))
        .peekable();
    if learners.peek().is_none() {
        return Step::Nothing;
    }
    for (id, server) in learners {
        if !situation.is_alive(id) || !situation.has_log(id) {
            continue;
        }
        let before = situation.voters();
        let mut voters = before.clone();
        for replaced in situation.replaced_by(server) {
            // Never itself: a leader that is replaced by a learner would be alive at that address.
            if replaced != situation.own {
                voters.remove(&replaced);
            }
        }
        // A server under another name and at another address comes in place of one that is dead: else the dead
        // would count, and more and more living ones be needed for a majority.
        if voters.len() == before.len()
            && let Some(dead) = situation.dead_voter()
        {
            voters.remove(&dead);
        }
        voters.insert(*id);
        if situation.has_live_majority(&voters) {
            return Step::SetVoters(voters);
        }
    }
    Step::Wait
}

/// Looks after the members for as long as this server runs.
pub(super) async fn look_after_members(
    raft: Raft<TypeConfig, Machine>,
    own: ServerId,
    own_server: Server,
    turn: Arc<Mutex<()>>,
) {
    let mut metrics = raft.server_metrics();
    let mut leading_since = None;
    loop {
        let mut situation = Situation::of(&raft, own);
        leading_since = match situation.leading {
            true => leading_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        situation.led = leading_since.map_or(Duration::ZERO, |since| since.elapsed());
        let step = next_step(&situation, &own_server);
        let change = match step {
            Step::Nothing => {
                if metrics.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Step::Wait => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::CorrectOwn => {
                ChangeMembers::SetNodes(BTreeMap::from([(own, own_server.clone())]))
            }
            Step::SetVoters(ref voters) => ChangeMembers::ReplaceAllVoters(voters.clone()),
        };
        match change_membership(&raft, &turn, change).await {
            Ok(()) => {
                if let Step::SetVoters(voters) = step {
                    let names: Vec<String> = voters.iter().map(|id| situation.name(id)).collect();
                    tracing::info!(voters = names.join(" "), "the voters have changed");
                }
            }
            Err(Failed::Stopped) => return,
            Err(error) => {
                tracing::debug!(?error, "the membership is to be changed, and is not yet");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LAST: u64 = 10_000;

    fn id(number: u128) -> ServerId {
        ServerId(Uuid::from_u128(number))
    }

    fn ids<const N: usize>(numbers: [u128; N]) -> BTreeSet<ServerId> {
        numbers.map(id).into()
    }

    fn server(number: u128) -> Server {
        Server {
            name: format!("s{number}"),
            address: format!("10.0.0.{number}:8300"),
        }
    }

    /// Led by server 1; everybody is alive and has the log.
    fn situation<const V: usize, const L: usize>(
        voters: [u128; V],
        learners: [u128; L],
    ) -> Situation {
        let all: Vec<u128> = voters.into_iter().chain(learners).collect();
        Situation {
            own: id(1),
            leading: true,
            membership: Membership {
                voters: vec![ids(voters)],
                servers: all.iter().map(|n| (id(*n), server(*n))).collect(),
            },
            last_log: LAST,
            replicated: all.iter().map(|n| (id(*n), LAST)).collect(),
            heard: all.iter().map(|n| (id(*n), Duration::ZERO)).collect(),
            led: Duration::ZERO,
        }
    }

    fn step(situation: &Situation) -> Step {
        next_step(situation, &server(1))
    }

    #[test]
    fn a_settled_cluster_and_a_follower_have_nothing_to_do() {
        assert_eq!(step(&situation([1, 2, 3], [])), Step::Nothing);
        let follower = Situation {
            leading: false,
            ..situation([1, 2], [3])
        };
        assert_eq!(step(&follower), Step::Nothing);
    }

    #[test]
    fn a_learner_becomes_a_voter_when_it_has_the_log_and_is_there() {
        let mut situation = situation([1, 2], [3]);
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3])));
        situation.replicated.insert(id(3), LAST - CAUGHT_UP - 1);
        assert_eq!(step(&situation), Step::Wait);
        situation.replicated.insert(id(3), LAST);
        situation.heard.insert(id(3), ALIVE);
        assert_eq!(step(&situation), Step::Wait);
        situation.heard.remove(&id(3));
        assert_eq!(step(&situation), Step::Wait);
    }

    #[test]
    fn one_that_returns_without_its_data_takes_its_own_place() {
        let mut situation = situation([1, 2, 3], [4]);
        situation.heard.insert(id(3), ALIVE * 2);
        // At the old address, and under the old name at a new one.
        for server in [
            Server {
                name: "new".into(),
                ..server(3)
            },
            Server {
                address: "new:1".into(),
                ..server(3)
            },
        ] {
            situation.membership.servers.insert(id(4), server);
            assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
        }
    }

    #[test]
    fn a_new_server_takes_the_place_of_one_that_is_dead() {
        let mut situation = situation([1, 2, 3], [4]);
        situation.heard.insert(id(3), DEAD / 2);
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
        situation.heard.insert(id(3), DEAD);
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
        // A new leader has never heard of it, and gives it time.
        situation.heard.remove(&id(3));
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
        situation.led = DEAD;
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
        // By itself nobody is removed.
        situation.membership.servers.remove(&id(4));
        assert_eq!(step(&situation), Step::Nothing);
    }

    #[test]
    fn a_name_is_not_taken_from_one_that_is_alive() {
        let mut situation = situation([1, 2, 3], [4]);
        let named = Server {
            name: server(3).name,
            ..server(4)
        };
        situation.membership.servers.insert(id(4), named);
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
    }

    #[test]
    fn no_step_leaves_a_cluster_without_a_live_majority() {
        let mut situation = situation([1, 2], [3]);
        situation.heard.remove(&id(2));
        // Two of three.
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3])));
        let mut situation = super::tests::situation([1, 2, 3, 5], [4]);
        situation.heard.remove(&id(2));
        situation.heard.remove(&id(3));
        situation.heard.remove(&id(5));
        assert_eq!(step(&situation), Step::Wait);
    }

    #[test]
    fn a_change_that_was_begun_is_finished_first() {
        let mut situation = situation([1, 2], [3]);
        situation.membership.voters.push(ids([1, 2, 3]));
        assert_eq!(step(&situation), Step::Finish);
    }

    #[test]
    fn a_leader_that_moved_says_so() {
        let situation = situation([1, 2, 3], []);
        let moved = Server {
            address: "moved:1".into(),
            ..server(1)
        };
        assert_eq!(next_step(&situation, &moved), Step::CorrectOwn);
    }
}
