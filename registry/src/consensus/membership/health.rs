//! Which servers are in order, and since when: what the autopilot goes by.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{DiskState, situation::Situation};
use crate::{log::ServerId, model::AutopilotConfig};

/// What the leader finds of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Health {
    pub(in super::super) healthy: bool,
    /// When that was last different.
    pub(in super::super) since: Instant,
}

/// What a leader remembers of its servers. A new leader begins anew, but for who the members are.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Healths {
    pub(super) all: BTreeMap<ServerId, Health>,
    /// Those that are there and have the log, and since when.
    ready: BTreeMap<ServerId, Instant>,
    /// Since when this leader knows of each.
    known: BTreeMap<ServerId, Instant>,
    /// Since when this server, leading or not, knows of each.
    members: BTreeMap<ServerId, Instant>,
}

/// By what the health of servers is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    contact: Duration,
    trailing: u64,
}

impl Bounds {
    /// Contact is made with every heartbeat, so that it is as old as one is no fault.
    pub(super) fn new(config: &AutopilotConfig, heartbeat: Duration) -> Bounds {
        let threshold = Duration::from(config.last_contact_threshold);
        Bounds {
            contact: threshold + heartbeat,
            trailing: config.max_trailing_logs,
        }
    }
}

impl Healths {
    /// Looks at every server once more.
    pub(super) fn observe(
        &mut self,
        situation: &Situation,
        disks: &BTreeMap<ServerId, DiskState>,
        bounds: Bounds,
    ) {
        let now = Instant::now();
        let servers: BTreeSet<ServerId> = situation.membership.servers.keys().copied().collect();
        self.members.retain(|id, _| servers.contains(id));
        for id in &servers {
            self.members.entry(*id).or_insert(now);
        }
        if !situation.leading {
            *self = Healths {
                members: std::mem::take(&mut self.members),
                ..Healths::default()
            };
            return;
        }
        self.all.retain(|id, _| servers.contains(id));
        self.known.retain(|id, _| servers.contains(id));
        self.ready
            .retain(|id, _| servers.contains(id) && situation.is_ready(id));
        for id in servers {
            self.known.entry(id).or_insert(now);
            if situation.is_ready(&id) {
                self.ready.entry(id).or_insert(now);
            }
            let in_contact = situation
                .heard
                .get(&id)
                .is_some_and(|ago| *ago <= bounds.contact);
            let at = situation.replicated.get(&id);
            let keeps_up =
                at.is_some_and(|at| at.saturating_add(bounds.trailing) >= situation.last_log);
            let healthy = in_contact && keeps_up && disks.get(&id) != Some(&DiskState::Full);
            let health = self.all.entry(id).or_insert(Health {
                healthy,
                since: now,
            });
            if health.healthy != healthy {
                *health = Health {
                    healthy,
                    since: now,
                };
            }
        }
    }

    /// Adds what only time tells.
    pub(super) fn complete(&self, situation: &mut Situation) {
        let elapsed = |since: &BTreeMap<ServerId, Instant>| {
            let since = since.iter();
            since.map(|(id, since)| (*id, since.elapsed())).collect()
        };
        situation.ready_for = elapsed(&self.ready);
        situation.known_for = elapsed(&self.known);
        situation.member_for = elapsed(&self.members);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::log::{Membership, Server};

    #[tokio::test(start_paused = true)]
    async fn health_is_contact_log_and_room_and_remembers_when_it_changed() {
        let id = ServerId(Uuid::from_u128(1));
        let server = Server {
            name: "s1".into(),
            address: "10.0.0.1:8300".into(),
        };
        let mut situation = Situation {
            leading: true,
            membership: Membership {
                voters: vec![[id].into()],
                servers: [(id, server)].into(),
            },
            last_log: 1_000,
            replicated: [(id, 1_000)].into(),
            heard: [(id, Duration::ZERO)].into(),
            ..Situation::default()
        };
        let bounds = Bounds::new(&AutopilotConfig::default(), Duration::from_millis(100));
        let mut disks = BTreeMap::from([(id, DiskState::Fine)]);
        let mut healths = Healths::default();
        let mut look = async |situation: &Situation, disks: &BTreeMap<_, _>| {
            tokio::time::advance(Duration::from_secs(1)).await;
            healths.observe(situation, disks, bounds);
            let health = healths.all.get(&id);
            health.map(|health| (health.healthy, health.since.elapsed().as_secs()))
        };
        assert_eq!(look(&situation, &disks).await, Some((true, 0)));
        assert_eq!(look(&situation, &disks).await, Some((true, 1)));
        situation.heard.insert(id, Duration::from_millis(301));
        assert_eq!(look(&situation, &disks).await, Some((false, 0)));
        situation.heard.insert(id, Duration::from_millis(300));
        situation.replicated.insert(id, 749);
        assert_eq!(look(&situation, &disks).await, Some((false, 1)));
        situation.replicated.insert(id, 750);
        assert_eq!(look(&situation, &disks).await, Some((true, 0)));
        disks.insert(id, DiskState::Full);
        assert_eq!(look(&situation, &disks).await, Some((false, 0)));
        situation.leading = false;
        assert_eq!(look(&situation, &disks).await, None);
    }
}
