//! What servers do with what agents say, and what the leader makes of it.

use super::*;

impl World {
    pub(super) fn serve(&mut self, at: usize, now: Instant) {
        for message in std::mem::take(&mut self.servers[at].arrived) {
            self.take(at, now, message);
        }
        if self.servers[at].tells_at.is_some_and(|time| now >= time) {
            self.servers[at].tells_at = None;
            self.tell(at, now, true);
        }
        if now >= self.servers[at].next_beat {
            self.servers[at].next_beat = now + SERVER_BEAT;
            self.beat(at, now);
        }
        if now >= self.servers[at].next_tick {
            self.servers[at].next_tick = now + TICK;
            self.tick(at, now);
        }
        // It learns only now what happened while it was stopped.
        self.servers[at].believes_to_lead = self.leader == Some(at) && self.has_majority(at);
    }

    pub(super) fn take(&mut self, at: usize, now: Instant, message: Arrived) {
        match message {
            Arrived::Greeting { agent, session } => {
                let given_up = !matches!(
                    self.agents[agent].state,
                    State::Connecting { session: current, .. } if current == session
                );
                // To say that it is alive takes a leader.
                let known = self.passing[agent] == Some(true);
                if given_up || !(known || self.reaches_leader(at)) {
                    if !given_up {
                        self.agents[agent].closed = true;
                    }
                    return;
                }
                self.passing[agent] = Some(true);
                let server = &mut self.servers[at];
                let held = server.presence.hold(session, node(agent));
                server.sessions.insert(
                    session,
                    Session {
                        held,
                        agent,
                        heard: now,
                    },
                );
                server.tells_at.get_or_insert(now + GATHER);
                self.agents[agent].welcomed = true;
                self.happened(format!("server {at} welcomes agent {agent}"));
            }
            Arrived::Alive(session) => {
                if let Some(session) = self.servers[at].sessions.get_mut(&session) {
                    session.heard = now;
                    session.held.heard();
                }
            }
            Arrived::Bye(session) => {
                if let Some(session) = self.servers[at].sessions.remove(&session) {
                    session.held.ended(MOVE_WITHIN);
                }
            }
            Arrived::Closed(session) => self.broke(at, session, now),
            Arrived::Report(sightings) => {
                self.servers[at].presence.report(&sightings);
            }
        }
    }

    /// The connection of a session broke, which says something of the agent's process only if it was heard lately.
    pub(super) fn broke(&mut self, at: usize, session: u64, now: Instant) {
        if let Some(session) = self.servers[at].sessions.remove(&session)
            && now < session.heard + SERVER_SILENCE
        {
            session.held.ended(Duration::ZERO);
        }
    }

    pub(super) fn beat(&mut self, at: usize, now: Instant) {
        let sessions: Vec<(u64, usize, Instant)> = {
            let sessions = self.servers[at].sessions.iter();
            let sessions = sessions.map(|(id, session)| (*id, session.agent, session.heard));
            sessions.collect()
        };
        for (id, agent, heard) in sessions {
            let place = self.place(agent);
            let cut_since = self.cut.get(&(at, place)).copied();
            let is_current = self.is_of(agent, id);
            let gone = self.agents[agent].condition == Condition::Down || !is_current;
            let broken = match cut_since {
                Some(since) => now >= since + PINGS,
                // The other end knows nothing of this connection.
                None => gone,
            };
            if now >= heard + LEASE || broken {
                // After so much silence it says nothing more.
                self.broke(at, id, now);
                self.agents[agent].closed |= is_current && cut_since.is_none();
            } else if cut_since.is_none() {
                self.agents[agent].alive = Some(self.knows_leader(at, now));
            }
        }
    }

    pub(super) fn tell(&mut self, at: usize, now: Instant, only_new: bool) {
        let sightings = self.servers[at].presence.sightings(now, only_new);
        if sightings.is_empty() || self.servers[at].presence.report(&sightings) {
            return;
        }
        if let Some(leader) = self.leader
            && self.is_linked(at, leader)
            && self.servers[leader].condition != Condition::Down
        {
            self.servers[leader]
                .arrived
                .push(Arrived::Report(sightings));
        }
    }

    pub(super) fn tick(&mut self, at: usize, now: Instant) {
        let mut late = (now - self.servers[at].last_tick).saturating_sub(TICK);
        self.servers[at].last_tick = now;
        if self.broken == Some(Break::FormerLeaderJudges) {
            late = Duration::ZERO;
        }
        if !self.servers[at].believes_to_lead {
            self.servers[at].presence.follows();
            self.tell(at, now, false);
            return;
        }
        let nodes: Vec<(Uuid, bool)> = (0..self.agents.len())
            .filter_map(|agent| Some((node(agent), self.passing[agent]?)))
            .collect();
        let presence = self.servers[at].presence.clone();
        if self.broken == Some(Break::RollInherited) {
            let roll = || Roll::new(now - 10 * LEASE);
            lock(&presence.roll).get_or_insert_with(roll);
        }
        if self.broken == Some(Break::NoBrake)
            && let Some(roll) = lock(&presence.roll).as_mut()
        {
            roll.release_brake();
        }
        let (verdicts, _) = presence.judge(now, late, &nodes);
        for (id, verdict) in verdicts {
            let agent = id.as_u128() as usize - 1;
            let lands = match self.broken {
                Some(Break::FormerLeaderJudges) => self.reaches_leader(at),
                _ => self.leader == Some(at) && self.has_majority(at),
            };
            if lands {
                self.verdicts += 1;
                self.happened(format!("server {at} says of agent {agent}: {verdict:?}"));
                self.say(agent, verdict, now);
            }
        }
    }

    /// The catalog says of an agent that it is dead, or back.
    pub(super) fn say(&mut self, agent: usize, verdict: Verdict, now: Instant) {
        self.passing[agent] = Some(verdict == Verdict::Back);
        if verdict == Verdict::Back {
            return;
        }
        let fair = |since: &Option<Instant>| since.is_some_and(|since| now >= since + FAIR);
        let was_fine = self.agents[agent].fine_with.iter().any(fair);
        assert!(
            !was_fine,
            "agent {agent} is alive and was taken for dead:\n{}",
            self.story()
        );
        self.lost.push(now);
        self.lost.retain(|at| now < *at + LEASE);
        let most = (self.agents.len() / 5).max(4);
        assert!(
            self.lost.len() <= most,
            "{} agents were given up at once",
            self.lost.len()
        );
    }
}
