//! What a leader does about its members, worked out from what it knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, Raft, async_runtime::watch::WatchReceiver as _};
use tokio::{sync::Mutex, time::Instant};

use super::{Failed, LOOK, change_membership, situation::Situation};
use crate::{
    consensus::{machine::Machine, raft::TypeConfig},
    log::{Server, ServerId},
};

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
pub(in super::super) async fn look_after_members(
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
mod tests;
