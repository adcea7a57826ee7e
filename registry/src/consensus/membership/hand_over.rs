//! How a leader gives its leadership away: because it is asked to, or because its disk is not up to it.

use std::{collections::BTreeMap, time::Duration};

use openraft::Raft;
use tokio::time::{Instant, MissedTickBehavior};

use super::{ALIVE, MembershipError, situation::Situation};
use crate::{
    consensus::{
        Consensus, Leader,
        disk::{Disk, DiskState, PeerDisks},
        machine::Machine,
        raft::TypeConfig,
        runtime::{self, watch},
    },
    log::ServerId,
};

/// How long a leader that hands over waits to see another one. The heir answers in milliseconds, if it does.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);
/// How long a leader that tried in vain to hand over on account of its disk keeps the leadership before it tries
/// again: an attempt that fails costs an election.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

impl Consensus {
    /// Hands the leadership to `to`, or to the voter that has most of the log, and waits until it is
    /// taken. If it is not, the others elect somebody as after a loss of this leader.
    pub async fn hand_over(&self, to: Option<ServerId>) -> Result<Leader, MembershipError> {
        self.expect_leader()?;
        let own = self.inner.id;
        let situation = Situation::of(&self.inner.raft, own);
        let heir = match to {
            Some(to) if !situation.is_voter(&to) => {
                return Err(MembershipError::UnknownServer(to.to_string()));
            }
            Some(to) if to == own => return self.expect_leader(),
            Some(to) if !situation.can_lead(&to) => {
                return Err(MembershipError::NotReady(situation.name(&to)));
            }
            Some(to) => to,
            None => {
                // Rather to one whose disk is in order, if there is such a one.
                let disks = self.inner.peer_disks.lately(ALIVE);
                let best = heir(&situation, &disks).or_else(|| best(&situation, |_| true));
                best.ok_or(MembershipError::NotReady("any other server".to_owned()))?
            }
        };
        give(&self.inner.raft, own, heir, self.inner.leader.clone()).await
    }
}

impl Situation {
    /// Whether this server could be given the leadership of another.
    fn can_lead(&self, id: &ServerId) -> bool {
        *id != self.own && self.is_voter(id) && self.is_ready(id)
    }
}

/// The server that could lead and has most of the log.
fn best(situation: &Situation, fit: impl Fn(&ServerId) -> bool) -> Option<ServerId> {
    let heirs = situation.voters().into_iter();
    let heirs = heirs.filter(|id| situation.can_lead(id) && fit(id));
    heirs.max_by_key(|id| situation.replicated.get(id).copied())
}

/// The best one whose disk is in order.
fn heir(situation: &Situation, disks: &BTreeMap<ServerId, DiskState>) -> Option<ServerId> {
    best(situation, |id| disks.get(id) == Some(&DiskState::Fine))
}

async fn give(
    raft: &Raft<TypeConfig, Machine>,
    own: ServerId,
    heir: ServerId,
    mut changes: watch::Receiver<Option<Leader>>,
) -> Result<Leader, MembershipError> {
    let asked = raft.trigger().transfer_leader(heir).await;
    asked.map_err(|_| MembershipError::ShuttingDown)?;
    let taken = changes.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.id != own));
    match tokio::time::timeout(HAND_OVER_WITHIN, taken).await {
        Ok(Ok(leader)) => leader.clone().ok_or(MembershipError::OutcomeUnknown),
        Ok(Err(_)) => Err(MembershipError::ShuttingDown),
        Err(_) => Err(MembershipError::OutcomeUnknown),
    }
}

/// Watches over the disk of this server for as long as it runs. A leader whose disk is full, or does not finish
/// what it is given, goes on heartbeating and looks sound to everybody else; so it gives its leadership to
/// a server whose disk is in order. Where there is none it keeps it: nobody could do better.
///
/// A server whose disk has no room left for a vote does not stand for election, and none does before `stands_from`.
pub(in super::super) async fn look_after_disk(
    raft: Raft<TypeConfig, Machine>,
    own: ServerId,
    disk: Disk,
    peers: PeerDisks,
    leader: watch::Receiver<Option<Leader>>,
    stands_from: Option<runtime::Instant>,
) {
    let mut may_stand = stands_from.is_none();
    if let Some(at) = stands_from {
        runtime::sleep_until(at).await;
    }
    let mut ticks = tokio::time::interval(disk.patience / 8);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tried: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let can_vote = disk.space.admit_vote().is_ok();
        if can_vote != may_stand {
            raft.runtime_config().elect(can_vote);
            may_stand = can_vote;
        }
        let Some(reason) = disk.unfit_to_lead() else {
            continue;
        };
        if tried.is_some_and(|at| at.elapsed() < TRY_AGAIN_AFTER) {
            continue;
        }
        let situation = Situation::of(&raft, own);
        if !situation.leading {
            continue;
        }
        let Some(heir) = heir(&situation, &peers.lately(ALIVE)) else {
            continue;
        };
        tried = Some(Instant::now());
        let name = situation.name(&heir);
        match give(&raft, own, heir, leader.clone()).await {
            Ok(leader) => {
                tracing::warn!(to = leader.name, %reason, "handed the leadership over");
                // Should it come back, it may go again.
                tried = None;
            }
            Err(MembershipError::ShuttingDown) => return,
            Err(error) => {
                tracing::warn!(to = name, %reason, %error, "the leadership was not handed over");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::log::{Membership, Server};

    fn id(number: u128) -> ServerId {
        ServerId(Uuid::from_u128(number))
    }

    #[test]
    fn the_heir_is_a_voter_that_is_there_has_the_log_and_a_sound_disk() {
        let server = |number: u128| {
            let name = format!("s{number}");
            let address = format!("10.0.0.{number}:8300");
            (id(number), Server { name, address })
        };
        let all = [1, 2, 3, 4].map(id);
        let mut situation = Situation {
            own: id(1),
            leading: true,
            membership: Membership {
                voters: vec![[1, 2, 3].map(id).into()],
                servers: [1, 2, 3, 4].map(server).into(),
            },
            last_log: 9_000,
            replicated: all.iter().map(|id| (*id, 9_000)).collect(),
            heard: all.iter().map(|id| (*id, Duration::ZERO)).collect(),
            ..Situation::default()
        };
        situation.replicated.insert(id(2), 8_999);
        let mut disks: BTreeMap<_, _> = all.iter().map(|id| (*id, DiskState::Fine)).collect();
        assert_eq!(heir(&situation, &disks), Some(id(3)));
        for state in [DiskState::Full, DiskState::Slow, DiskState::Unknown] {
            disks.insert(id(3), state);
            assert_eq!(heir(&situation, &disks), Some(id(2)));
        }
        situation.replicated.insert(id(2), 100);
        assert_eq!(
            heir(&situation, &disks),
            None,
            "neither a learner nor itself"
        );
        disks.insert(id(3), DiskState::Fine);
        situation.heard.insert(id(3), ALIVE);
        assert_eq!(heir(&situation, &disks), None);
    }
}
