//! What servers do with what agents say, and what the leader makes of it.

use super::*;

impl World {
    pub(super) fn serve(&mut self, at: usize, now: Instant) {
        for message in std::mem::take(&mut self.servers[at].arrived) {
            self.take(at, now, message);
        }
        let told = self.servers[at].report;
        if told.is_some_and(|(_, since)| now >= since + REPORT_WITHIN) {
            self.told(at, false);
        }
        // One report at a time.
        let may_tell = self.servers[at].report.is_none();
        if may_tell && self.servers[at].tells_at.is_some_and(|time| now >= time) {
            self.servers[at].tells_at = None;
            self.tell(at, now, true);
        }
        if now >= self.servers[at].next_beat {
            self.servers[at].next_beat = now + SERVER_BEAT;
            self.beat(at, now);
        }
        if self.servers[at].report.is_none() && now >= self.servers[at].next_tick {
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
                if given_up || !(known || self.is_heard(at)) {
                    self.agents[agent].closed |= !given_up && self.hears(agent, at);
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
                if self.hears(agent, at) {
                    self.agents[agent].welcomed = Some(self.word(at, now));
                }
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
            Arrived::Left(session) if self.broken == Some(Break::LeavingIsDying) => {
                self.broke(at, session, now);
            }
            // Nothing is said of it: its lease goes on.
            Arrived::Left(session) => drop(self.servers[at].sessions.remove(&session)),
            Arrived::Closed(session) => self.broke(at, session, now),
            Arrived::Report {
                from,
                number,
                sightings,
            } => {
                let taken = self.servers[at].presence.report(&sightings);
                if self.is_told(at, from) && self.servers[from].condition != Condition::Down {
                    let answer = Arrived::Answer { number, taken };
                    self.servers[from].arrived.push(answer);
                }
            }
            Arrived::Answer { number, taken } => {
                let report = self.servers[at].report;
                if report.is_some_and(|(waiting, _)| waiting == number) {
                    self.told(at, taken);
                }
            }
        }
    }

    /// What a server says of itself to its agents.
    fn word(&self, at: usize, now: Instant) -> Word {
        let heard =
            self.broken == Some(Break::UnheardServesOn) || self.servers[at].presence.is_heard(now);
        Word {
            has_leader: heard && self.known_leader(at, now).is_some(),
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
            let parted = self.parted_since(at, place);
            let is_current = self.is_of(agent, id);
            let gone = match self.agents[agent].condition {
                Condition::Down => true,
                // The connection is kept until there is another.
                _ => !is_current && matches!(self.agents[agent].state, State::With { .. }),
            };
            let broken = match parted {
                Some(since) => now >= since + PINGS,
                // The other end knows nothing of this connection.
                None => gone,
            };
            let hears = self.hears(agent, at);
            if now >= heard + LEASE || broken {
                match parted {
                    // Nobody answered: it says nothing of the process.
                    Some(_) => drop(self.servers[at].sessions.remove(&id)),
                    None => self.broke(at, id, now),
                }
                self.agents[agent].closed |= is_current && hears;
            } else if hears && is_current {
                self.agents[agent].alive = Some(self.word(at, now));
            }
        }
    }

    pub(super) fn tell(&mut self, at: usize, now: Instant, only_new: bool) {
        let presence = self.servers[at].presence.clone();
        let sightings = presence.sightings(now, only_new);
        if sightings.is_empty() {
            return;
        }
        let number = self.next_report;
        self.next_report += 1;
        self.servers[at].report = Some((number, now));
        if presence.report(&sightings) {
            return self.told(at, true);
        }
        let Some(leader) = self.known_leader(at, now) else {
            return self.told(at, false);
        };
        if self.is_told(at, leader) && self.servers[leader].condition != Condition::Down {
            self.servers[leader].arrived.push(Arrived::Report {
                from: at,
                number,
                sightings,
            });
        }
    }

    /// A report was answered, or was not in time.
    fn told(&mut self, at: usize, taken: bool) {
        if let Some((_, since)) = self.servers[at].report.take() {
            self.servers[at].presence.told(since, taken);
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
