//! Which server an agent is with, and when it goes to another.

use super::*;

impl World {
    pub(super) fn act(&mut self, at: usize, now: Instant) {
        let welcomed = self.agents[at].welcomed.take();
        let closed = std::mem::take(&mut self.agents[at].closed);
        let alive = self.agents[at].alive.take();
        match self.agents[at].state {
            State::Idle(until) if now >= until => self.connect(at, now),
            State::Idle(_) => {}
            State::Connecting {
                server, session, ..
            } if welcomed.is_some() => {
                let moves = self.between(REBALANCE / 2, REBALANCE * 3 / 2);
                self.agents[at].candidates.clear();
                self.agents[at].pause = FIRST_PAUSE;
                self.agents[at].welcome = FIRST_WELCOME;
                let has_leader = welcomed.is_some_and(|word| word.has_leader);
                self.agents[at].state = State::With {
                    server,
                    session,
                    heard: now,
                    next_beat: now,
                    leaderless: (!has_leader).then_some(now),
                    moves: now + moves,
                };
            }
            State::Connecting {
                server,
                session,
                until,
            } => {
                if closed {
                    self.connect(at, now);
                } else if now >= until {
                    self.send(at, server, Arrived::Left(session));
                    self.connect(at, now);
                }
            }
            State::With {
                server,
                session,
                mut heard,
                mut next_beat,
                mut leaderless,
                moves,
            } => {
                if let Some(word) = alive {
                    heard = now;
                    leaderless = match word.has_leader {
                        true => None,
                        false => Some(leaderless.unwrap_or(now)),
                    };
                }
                let lost = closed || now >= heard + AGENT_SILENCE;
                let moving = now >= moves && !self.calm
                    || leaderless.is_some_and(|since| now >= since + LEADERLESS);
                if !lost && now >= next_beat {
                    self.send(at, server, Arrived::Alive(session));
                    next_beat = now + self.between(AGENT_BEAT * 4 / 5, AGENT_BEAT);
                }
                if lost || moving {
                    let message = match lost {
                        true => Arrived::Left(session),
                        false => Arrived::Bye(session),
                    };
                    self.send(at, server, message);
                    self.happened(format!("agent {at} leaves server {server}, lost: {lost}"));
                    self.agents[at].left.add(server, now);
                    self.connect(at, now);
                    return;
                }
                self.agents[at].state = State::With {
                    server,
                    session,
                    heard,
                    next_beat,
                    leaderless,
                    moves,
                };
            }
        }
    }

    /// Tries the next server.
    pub(super) fn connect(&mut self, at: usize, now: Instant) {
        if let State::Connecting { server, .. } = self.agents[at].state {
            self.agents[at].left.add(server, now);
        }
        if self.agents[at].candidates.is_empty() {
            let again = matches!(self.agents[at].state, State::Connecting { .. });
            let mut all: Vec<usize> = (0..self.servers.len()).collect();
            for last in (1..all.len()).rev() {
                let other = self.below(last + 1);
                all.swap(last, other);
            }
            self.agents[at].left.put_last(now, &mut all);
            all.reverse();
            self.agents[at].candidates = all;
            if again {
                let pause = self.agents[at].pause;
                self.agents[at].pause = (pause * 2).min(LAST_PAUSE);
                self.agents[at].welcome = (self.agents[at].welcome * 2).min(LAST_WELCOME);
                let pause = self.between(pause / 2, pause);
                self.agents[at].state = State::Idle(now + pause);
                return;
            }
        }
        let Some(server) = self.agents[at].candidates.pop() else {
            return;
        };
        let session = self.next_session;
        self.next_session += 1;
        let patience = match self.broken {
            Some(Break::PatientAgents) => LEASE,
            _ => self.agents[at].welcome,
        };
        let wait = match self.servers[server].condition {
            _ if !self.serves(at, server) => CONNECT_WITHIN,
            Condition::Down => Duration::ZERO,
            Condition::Runs | Condition::Stopped => patience,
        };
        self.agents[at].state = State::Connecting {
            server,
            session,
            until: now + wait,
        };
        self.happened(format!("agent {at} tries server {server}"));
        if self.serves(at, server) {
            let greeting = Arrived::Greeting { agent: at, session };
            self.send(at, server, greeting);
        }
    }

    pub(super) fn end_agent(&mut self, at: usize) {
        match self.agents[at].state {
            State::With {
                server, session, ..
            }
            | State::Connecting {
                server, session, ..
            } => self.send(at, server, Arrived::Closed(session)),
            State::Idle(_) => {}
        }
        self.agents[at].state = State::Idle(Instant::now());
        self.agents[at].candidates.clear();
        self.agents[at].pause = FIRST_PAUSE;
        self.agents[at].welcome = FIRST_WELCOME;
        self.agents[at].condition = Condition::Down;
        self.agents[at].fine_with.fill(None);
    }

    pub(super) fn crash(&mut self, at: usize) {
        let fresh = self.server();
        let old = std::mem::replace(&mut self.servers[at], fresh);
        self.servers[at].condition = Condition::Down;
        self.servers[at].term = old.term;
        for (id, session) in &old.sessions {
            let agent = session.agent;
            if self.is_of(agent, *id) && self.hears(agent, at) {
                self.agents[agent].closed = true;
            }
        }
    }
}
