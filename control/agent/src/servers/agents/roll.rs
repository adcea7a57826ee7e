//! Which client agents are alive: what the leader hears of them, and what follows. Pure.
//!
//! Every server tells the leader, each second, how long ago it heard of each of its agents: ages, not points in time,
//! so no two clocks are compared. An agent is lost
//!
//! * [`LEASE`] after it was last heard of, by whomever;
//! * [`GONE_AFTER`] after its last session broke: its process ended, or it would have come back by then. An agent
//!   that ends or moves on purpose says so, and has as long as it asked for.
//!
//! Nobody is lost within the first lease of a leader, which has to hear of everybody first; and when many would be lost
//! at once, only some are at a time: more likely something is wrong here than with all of them.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

/// How long an agent that is silent counts as alive. It says something every two seconds.
pub(crate) const LEASE: Duration = Duration::from_secs(12);
/// How long an agent has to come back when its connection broke. It tries at once.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(2);
/// The longest time for which an agent can excuse itself.
const MAX_HOLD: Duration = Duration::from_secs(60);
/// Of how many nodes one may be lost within a lease, and how many may in any case.
const BRAKE_SHARE: usize = 5;
const BRAKE_LEAST: usize = 4;

/// What a server says of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) node: Uuid,
    pub(crate) session: u64,
    /// How long ago the agent was heard of, or the session ended.
    pub(crate) age: Duration,
    /// The session is over; the agent asked for so much time.
    pub(crate) ended: Option<Duration>,
}

/// What the catalog should say of a node, and does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Lost,
    Back,
}

#[derive(Debug)]
struct Session {
    /// When it was heard of first, if that was not its end.
    began: Option<Instant>,
    last: Instant,
    ended: Option<Duration>,
}

/// The leader's knowledge of the agents.
#[derive(Debug)]
pub(super) struct Roll {
    since: Instant,
    nodes: HashMap<Uuid, HashMap<u64, Session>>,
    /// The nodes that did not count as alive when last looked at, and when one of them was found to.
    dead: HashMap<Uuid, Option<Instant>>,
    /// When nodes were found lost, within the last lease.
    lost: Vec<Instant>,
    /// How many are not found lost yet, though they may be.
    held_back: usize,
}

impl Roll {
    /// Of a leader that leads since `now`.
    pub(super) fn new(now: Instant) -> Roll {
        Roll {
            since: now,
            nodes: HashMap::new(),
            dead: HashMap::new(),
            lost: Vec::new(),
            held_back: 0,
        }
    }

    pub(super) fn report(&mut self, now: Instant, sightings: &[Sighting]) {
        for sighting in sightings {
            let at = now.checked_sub(sighting.age).unwrap_or(self.since);
            let sessions = self.nodes.entry(sighting.node).or_default();
            let session = sessions.entry(sighting.session).or_insert(Session {
                began: sighting.ended.is_none().then_some(at),
                last: at,
                ended: None,
            });
            session.last = session.last.max(at);
            if let Some(hold) = sighting.ended {
                session.ended = Some(hold.min(MAX_HOLD));
            }
        }
    }

    /// This server stood still for so long until now: what it did not hear meanwhile is nobody else's fault. What it has
    /// heard since is as new as it is.
    pub(super) fn stood_still(&mut self, now: Instant, duration: Duration) {
        let moved = |at: Instant| (at + duration).min(now.max(at));
        self.since = moved(self.since);
        for session in self.nodes.values_mut().flat_map(HashMap::values_mut) {
            session.began = session.began.map(moved);
            session.last = moved(session.last);
        }
    }

    /// The sessions of a node that say something of it. Nobody tells that one is over whose server died; but an agent
    /// has one at a time.
    fn sessions(&self, node: Uuid) -> impl Iterator<Item = &Session> {
        let sessions = self.nodes.get(&node).into_iter().flat_map(HashMap::values);
        let newest = sessions.clone().filter_map(|session| session.began).max();
        sessions.filter(move |session| session.ended.is_some() || newest <= Some(session.last))
    }

    /// Until when the node counts as alive by what is known.
    fn alive_until(&self, node: Uuid) -> Instant {
        let sessions = self.sessions(node);
        let until = sessions
            .map(|session| match session.ended {
                None => session.last + LEASE,
                Some(hold) => session.last + hold.max(GONE_AFTER),
            })
            .max();
        // Whoever said that it is alive again had a reason, which may not have got here yet.
        let revived = self.dead.get(&node).copied().flatten();
        let grace = revived.unwrap_or(self.since).max(self.since) + LEASE;
        until.map_or(grace, |until| until.max(grace))
    }

    /// Whether a session of the node is open and within its lease.
    fn is_heard(&self, now: Instant, node: Uuid) -> bool {
        let sessions = self.sessions(node);
        let mut open = sessions.filter(|session| session.ended.is_none());
        open.any(|session| now < session.last + LEASE)
    }

    /// Compares what is known with what the catalog says: the agents' nodes, and whether each is passing.
    pub(super) fn judge(&mut self, now: Instant, nodes: &[(Uuid, bool)]) -> Vec<(Uuid, Verdict)> {
        self.nodes.retain(|_, sessions| {
            sessions.retain(|_, session| now < session.last + LEASE + MAX_HOLD);
            !sessions.is_empty()
        });
        self.lost.retain(|at| now < *at + LEASE);
        let mut allowed = (nodes.len() / BRAKE_SHARE)
            .max(BRAKE_LEAST)
            .saturating_sub(self.lost.len());
        self.held_back = 0;
        let mut verdicts = Vec::new();
        let before = std::mem::take(&mut self.dead);
        for &(node, passing) in nodes {
            if !passing {
                self.dead.insert(node, None);
            } else if let Some(revived) = before.get(&node) {
                let at = revived.unwrap_or(now);
                if now < at + LEASE {
                    self.dead.insert(node, Some(at));
                }
            }
            if !passing {
                if self.is_heard(now, node) {
                    verdicts.push((node, Verdict::Back));
                }
            } else if self.alive_until(node) <= now {
                if allowed == 0 {
                    self.held_back += 1;
                    continue;
                }
                allowed -= 1;
                self.lost.push(now);
                verdicts.push((node, Verdict::Lost));
            }
        }
        verdicts
    }

    #[cfg(test)]
    pub(super) fn release_brake(&mut self) {
        self.lost.clear();
    }

    /// How many nodes the brake held back the last time.
    pub(super) fn held_back(&self) -> usize {
        self.held_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn heard(node: u128, session: u64, age: Duration) -> Sighting {
        Sighting {
            node: id(node),
            session,
            age,
            ended: None,
        }
    }

    fn ended(node: u128, session: u64, age: Duration, hold: Duration) -> Sighting {
        Sighting {
            ended: Some(hold),
            ..heard(node, session, age)
        }
    }

    /// A leader that has led for long.
    fn settled() -> (Roll, Instant) {
        let start = Instant::now();
        (Roll::new(start), start + 100 * SECOND)
    }

    #[tokio::test]
    async fn who_is_silent_for_a_lease_is_lost_and_comes_back() {
        let (mut roll, now) = settled();
        roll.report(now, &[heard(1, 1, SECOND)]);
        assert_eq!(roll.judge(now + 10 * SECOND, &[(id(1), true)]), []);
        let lost = [(id(1), Verdict::Lost)];
        assert_eq!(roll.judge(now + 11 * SECOND, &[(id(1), true)]), lost);
        assert_eq!(roll.judge(now + 12 * SECOND, &[(id(1), false)]), []);
        roll.report(now + 13 * SECOND, &[heard(1, 1, Duration::ZERO)]);
        let back = [(id(1), Verdict::Back)];
        assert_eq!(roll.judge(now + 13 * SECOND, &[(id(1), false)]), back);
    }

    #[tokio::test]
    async fn who_came_from_a_dead_server_has_its_time_when_the_next_session_breaks() {
        let (mut roll, now) = settled();
        roll.report(now, &[heard(1, 1, Duration::ZERO)]);
        // Nobody tells that the first session is over.
        roll.report(now + SECOND, &[heard(1, 2, Duration::ZERO)]);
        let broke = now + 20 * SECOND;
        roll.report(broke, &[ended(1, 2, Duration::ZERO, Duration::ZERO)]);
        assert_eq!(roll.judge(broke + SECOND, &[(id(1), true)]), []);
        roll.report(broke + SECOND, &[heard(1, 3, Duration::ZERO)]);
        assert_eq!(roll.judge(broke + 5 * SECOND, &[(id(1), true)]), []);
        let broke = broke + 5 * SECOND;
        roll.report(broke, &[ended(1, 3, Duration::ZERO, Duration::ZERO)]);
        let lost = [(id(1), Verdict::Lost)];
        assert_eq!(roll.judge(broke + GONE_AFTER, &[(id(1), true)]), lost);
        // And no more time than that, though the lease of the first one has not run out.
        let (mut roll, now) = settled();
        roll.report(now, &[heard(1, 1, Duration::ZERO)]);
        roll.report(now + SECOND, &[heard(1, 2, Duration::ZERO)]);
        let broke = now + 2 * SECOND;
        roll.report(broke, &[ended(1, 2, Duration::ZERO, Duration::ZERO)]);
        assert_eq!(roll.judge(broke + SECOND, &[(id(1), true)]), []);
        assert_eq!(roll.judge(broke + GONE_AFTER, &[(id(1), true)]), lost);
        assert_eq!(roll.judge(broke + 3 * SECOND, &[(id(1), false)]), []);
    }

    #[tokio::test]
    async fn a_broken_session_is_lost_soon_unless_there_is_another() {
        let (mut roll, now) = settled();
        roll.report(now, &[ended(1, 1, Duration::ZERO, Duration::ZERO)]);
        assert_eq!(roll.judge(now + SECOND, &[(id(1), true)]), []);
        let lost = [(id(1), Verdict::Lost)];
        assert_eq!(roll.judge(now + GONE_AFTER, &[(id(1), true)]), lost);

        let (mut roll, now) = settled();
        roll.report(now, &[heard(1, 2, Duration::ZERO)]);
        // What a paused server says late of a session that was given up.
        roll.report(now, &[ended(1, 1, Duration::ZERO, Duration::ZERO)]);
        assert_eq!(roll.judge(now + 11 * SECOND, &[(id(1), true)]), []);
    }

    #[tokio::test]
    async fn who_is_said_to_be_back_is_not_lost_by_old_news() {
        let (mut roll, now) = settled();
        roll.report(now, &[ended(1, 1, Duration::ZERO, Duration::ZERO)]);
        assert_eq!(roll.judge(now + 2 * SECOND, &[(id(1), true)]).len(), 1);
        assert_eq!(roll.judge(now + 3 * SECOND, &[(id(1), false)]), []);
        // A server has welcomed it, and its report is still on its way.
        assert_eq!(roll.judge(now + 4 * SECOND, &[(id(1), true)]), []);
        assert_eq!(roll.judge(now + 15 * SECOND, &[(id(1), true)]), []);
        assert_eq!(roll.judge(now + 16 * SECOND, &[(id(1), true)]).len(), 1);
    }

    #[tokio::test]
    async fn who_said_goodbye_has_its_time() {
        let (mut roll, now) = settled();
        roll.report(now, &[ended(1, 1, Duration::ZERO, 10 * SECOND)]);
        assert_eq!(roll.judge(now + 9 * SECOND, &[(id(1), true)]), []);
        let lost = [(id(1), Verdict::Lost)];
        assert_eq!(roll.judge(now + 10 * SECOND, &[(id(1), true)]), lost);
        // It cannot ask for ever.
        let (mut roll, now) = settled();
        roll.report(now, &[ended(1, 1, Duration::ZERO, Duration::MAX)]);
        assert_eq!(roll.judge(now + MAX_HOLD, &[(id(1), true)]), lost);
    }

    #[tokio::test]
    async fn a_new_leader_waits_for_a_lease() {
        let start = Instant::now();
        let mut roll = Roll::new(start);
        roll.report(start, &[ended(2, 1, 100 * SECOND, Duration::ZERO)]);
        let nodes = [(id(1), true), (id(2), true)];
        assert_eq!(roll.judge(start + 11 * SECOND, &nodes), []);
        assert_eq!(roll.judge(start + LEASE, &nodes).len(), 2);
    }

    #[tokio::test]
    async fn a_leader_that_stood_still_blames_nobody() {
        let (mut roll, now) = settled();
        roll.report(now, &[heard(1, 1, Duration::ZERO)]);
        roll.stood_still(now + 30 * SECOND, 30 * SECOND);
        assert_eq!(roll.judge(now + 31 * SECOND, &[(id(1), true)]), []);
        assert_eq!(roll.judge(now + 42 * SECOND, &[(id(1), true)]).len(), 1);
    }

    #[tokio::test]
    async fn what_was_heard_after_standing_still_is_no_newer_for_it() {
        let (mut roll, now) = settled();
        let woke = now + 30 * SECOND;
        roll.report(woke, &[heard(1, 1, Duration::ZERO)]);
        roll.stood_still(woke, 30 * SECOND);
        roll.report(
            woke + SECOND,
            &[ended(1, 1, Duration::ZERO, Duration::ZERO)],
        );
        assert_eq!(roll.judge(woke + 3 * SECOND, &[(id(1), true)]).len(), 1);
        // Nor does one lead for longer without a verdict that woke up as the leader.
        let mut roll = Roll::new(woke);
        roll.stood_still(woke, 30 * SECOND);
        assert_eq!(roll.judge(woke + LEASE, &[(id(1), true)]).len(), 1);
    }

    #[tokio::test]
    async fn of_many_at_once_some_are_lost_at_a_time() {
        let (mut roll, now) = settled();
        let mut nodes: Vec<_> = (0..100).map(|n| (id(n), true)).collect();
        let first = roll.judge(now, &nodes);
        assert_eq!((first.len(), roll.held_back()), (20, 80));
        assert_eq!(roll.judge(now + SECOND, &nodes), []);
        for (node, _) in first {
            nodes.retain(|(id, _)| *id != node);
        }
        assert_eq!(roll.judge(now + LEASE, &nodes).len(), 16);
        // In a small cluster a few are lost at once.
        let (mut roll, now) = settled();
        assert_eq!(roll.judge(now, &nodes[..4]).len(), 4);
    }
}
