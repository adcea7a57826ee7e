//! What a leader does about its members, worked out from what it knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, Raft, async_runtime::watch::WatchReceiver as _};
use tokio::{sync::Mutex, time::Instant};

use super::{
    ALIVE, Change, DEAD, DiskState, Failed, LOOK, change_membership,
    health::{Bounds, Healths},
    situation::Situation,
};
use crate::{
    consensus::{
        disk::{Disk, PeerDisks},
        machine::Machine,
        raft::TypeConfig,
        runtime::watch,
    },
    log::{Server, ServerId},
    model::AutopilotConfig,
    replica::Registry,
};

/// How often a leader without learners looks how its servers are.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a leader does next about its members.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// There is a learner that is not ready.
    Wait,
    /// A change that was begun is to be finished.
    Finish,
    /// The membership has another name or address of this server.
    CorrectOwn(Server),
    /// These are the voters.
    SetVoters(BTreeSet<ServerId>),
    /// This server is dead, and the rest is better off without it.
    Remove(ServerId),
}

/// What the settings of the autopilot mean for the steps.
#[derive(Clone, Copy, Debug)]
struct Policy {
    cleanup: bool,
    min_quorum: usize,
    stabilization: Duration,
}

impl Policy {
    fn of(config: &AutopilotConfig) -> Policy {
        Policy {
            cleanup: config.cleanup_dead_servers,
            min_quorum: usize::try_from(config.min_quorum).unwrap_or(usize::MAX),
            stabilization: config.server_stabilization_time.into(),
        }
    }

    /// How long a server has to be ready before it gets a vote, from a leader that has led for `led`. A new leader
    /// could not have seen it for longer than that, and a new cluster is to be complete at once.
    fn probation(&self, led: Duration) -> Duration {
        match led < self.stabilization.mul_f64(1.1) {
            true => Duration::ZERO,
            false => self.stabilization,
        }
    }

    /// How long a server has to be dead to be taken out without another one in its place. Longer than most restarts
    /// of a machine: who comes back before has its vote at once.
    fn dead_for_good(&self) -> Duration {
        DEAD.max(self.stabilization * 3)
    }
}

/// The server that is to be taken out because it is dead, one at a time. Never when a majority is dead: that more likely
/// says something about this server, or its network.
fn to_clean_up(situation: &Situation, policy: &Policy) -> Option<ServerId> {
    if !policy.cleanup {
        return None;
    }
    let dead =
        |id: &ServerId| *id != situation.own && situation.silence(id) >= policy.dead_for_good();
    // Each leader begins anew to count; those that no leader hears are not to stay because leaders change.
    let never_came = |id: &ServerId| {
        let known_for = situation.member_for.get(id);
        !situation.heard.contains_key(id)
            && situation.led >= DEAD
            && known_for.is_some_and(|time| *time >= policy.dead_for_good())
    };
    let mut servers = situation.membership.servers.keys();
    // Nothing depends on one without a vote.
    if let Some(learner) =
        servers.find(|id| !situation.is_voter(id) && (dead(id) || never_came(id)))
    {
        return Some(*learner);
    }
    let voters = situation.voters();
    let gone: BTreeSet<ServerId> = voters.iter().copied().filter(dead).collect();
    if gone.len() > voters.len().saturating_sub(1) / 2 {
        return None;
    }
    let longest = gone.into_iter().max_by_key(|id| situation.silence(id))?;
    let mut left = voters;
    left.remove(&longest);
    (left.len() >= policy.min_quorum && situation.has_live_majority(&left)).then_some(longest)
}

fn next_step(situation: &Situation, own_server: &Server, policy: &Policy) -> Step {
    if !situation.leading {
        return Step::Nothing;
    }
    if situation.membership.voters.len() > 1 {
        return Step::Finish;
    }
    let servers = &situation.membership.servers;
    if let Some(known) = servers.get(&situation.own) {
        let mut own = own_server.clone();
        if situation.name_holder(&situation.own, own_server).is_some() {
            own.name.clone_from(&known.name);
        }
        if own != *known {
            return Step::CorrectOwn(own);
        }
    }
    let mut learners = servers
        .iter()
        .filter(|(id, _)| !situation.is_voter(id))
        .peekable();
    let otherwise = match learners.peek() {
        None => Step::Nothing,
        Some(_) => Step::Wait,
    };
    for (id, server) in learners {
        let ready_for = situation.ready_for.get(id);
        let probation = policy.probation(situation.led);
        if !situation.is_ready(id) || ready_for.is_none_or(|time| *time < probation) {
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
        if policy.cleanup
            && voters.len() == before.len()
            && let Some(dead) = situation.dead_voter()
        {
            voters.remove(&dead);
        }
        voters.insert(*id);
        if situation.has_live_majority(&voters) {
            return Step::SetVoters(voters);
        }
    }
    match to_clean_up(situation, policy) {
        Some(dead) => Step::Remove(dead),
        None => otherwise,
    }
}

/// What looking after the members takes.
pub(in super::super) struct Care {
    pub(in super::super) raft: Raft<TypeConfig, Machine>,
    pub(in super::super) own: ServerId,
    pub(in super::super) own_server: Server,
    pub(in super::super) heartbeat: Duration,
    pub(in super::super) turn: Arc<Mutex<()>>,
    /// Where the settings of the autopilot are.
    pub(in super::super) registry: Registry,
    pub(in super::super) disk: Disk,
    pub(in super::super) peer_disks: PeerDisks,
    /// Told what is found.
    pub(in super::super) healths: watch::Sender<Healths>,
}

impl Care {
    fn disks(&self) -> BTreeMap<ServerId, DiskState> {
        let mut disks = self.peer_disks.lately(ALIVE);
        disks.insert(self.own, self.disk.state());
        disks
    }
}

/// What a leader has seen of its members so far.
#[derive(Default)]
struct Seen {
    leading_since: Option<Instant>,
    healths: Healths,
    /// Somebody else has the name of this server, and it was said.
    namesake: bool,
}

impl Seen {
    /// Looks at every server once more, and finds what is to be done.
    fn look(&mut self, care: &Care) -> (Situation, Step) {
        let mut situation = Situation::of(&care.raft, care.own);
        self.leading_since = match situation.leading {
            true => self.leading_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        situation.led = self
            .leading_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        let config = care.registry.view().autopilot();
        let bounds = Bounds::new(&config, care.heartbeat);
        self.healths.observe(&situation, &care.disks(), bounds);
        care.healths.send_replace(self.healths.clone());
        self.healths.complete(&mut situation);
        let namesake = situation
            .leading
            .then(|| situation.name_holder(&care.own, &care.own_server));
        let namesake = namesake.flatten();
        if let Some(other) = namesake
            && !self.namesake
        {
            tracing::error!(
                name = other.name,
                address = other.address,
                "another server has the name of this one, which keeps the one it had: give each server a name of its \
                 own (-node)"
            );
        }
        self.namesake = namesake.is_some();
        let step = next_step(&situation, &care.own_server, &Policy::of(&config));
        (situation, step)
    }
}

impl Step {
    /// The change of the membership that it is, if it is one.
    fn change(&self, care: &Care, situation: &Situation) -> Option<Change> {
        Some(match self {
            Step::Nothing | Step::Wait => return None,
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::CorrectOwn(own) => {
                ChangeMembers::SetNodes(BTreeMap::from([(care.own, own.clone())]))
            }
            Step::SetVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.clone()),
            Step::Remove(dead) if situation.is_voter(dead) => {
                ChangeMembers::RemoveVoters(BTreeSet::from([*dead]))
            }
            Step::Remove(dead) => ChangeMembers::RemoveNodes(BTreeSet::from([*dead])),
        })
    }
}

/// Looks after the members for as long as this server runs.
pub(in super::super) async fn look_after_members(care: Care) {
    let mut metrics = care.raft.server_metrics();
    let mut seen = Seen::default();
    loop {
        let (situation, step) = seen.look(&care);
        match step {
            Step::Nothing => {
                // Time alone changes what a leader finds.
                let changed = match situation.leading {
                    true => tokio::time::timeout(LOOK_AGAIN, metrics.changed()).await,
                    false => Ok(metrics.changed().await),
                };
                if let Ok(Err(_)) = changed {
                    return;
                }
                continue;
            }
            Step::Wait => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Step::Finish | Step::CorrectOwn(_) | Step::SetVoters(_) | Step::Remove(_) => {}
        }
        // Whoever had the turn before may have changed what this goes by.
        let turn = care.turn.lock().await;
        let (situation, step) = seen.look(&care);
        let Some(change) = step.change(&care, &situation) else {
            continue;
        };
        let changed = change_membership(&care.raft, &turn, change).await;
        drop(turn);
        match changed {
            Ok(()) => match step {
                Step::SetVoters(voters) => {
                    let names: Vec<String> = voters.iter().map(|id| situation.name(id)).collect();
                    tracing::info!(voters = names.join(" "), "the voters have changed");
                }
                Step::Remove(dead) => {
                    let name = situation.name(&dead);
                    let silence = situation.silence(&dead).as_secs();
                    tracing::warn!(name, silence, "a dead server is taken out of the cluster");
                }
                _ => {}
            },
            Err(Failed::Stopped) => return,
            Err(error) => {
                tracing::debug!(?error, "the membership is to be changed, and is not yet");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
