//! What goes wrong.

use super::*;

impl World {
    pub(super) fn strike(&mut self, now: Instant) {
        let (servers, agents) = (self.servers.len(), self.agents.len());
        let one = self.below(servers);
        let leader = self.leader.unwrap_or(one);
        let agent = self.below(agents);
        let some: Vec<usize> = (0..servers).filter(|_| self.below(4) > 0).collect();
        let fault = self.below(20);
        self.happened(format!(
            "fault {fault}: server {one}, leader {leader}, agent {agent}"
        ));
        match fault {
            0 => self.crash(one),
            1 => self.crash(leader),
            2 => self.stop(one),
            3 => self.stop(leader),
            4 => {
                // A minority.
                for _ in 0..servers / 2 {
                    let one = self.below(servers);
                    self.stop(one);
                }
            }
            5 => self.isolate(one, now),
            6 => self.isolate(leader, now),
            7 if self.agents[agent].condition == Condition::Runs => {
                self.agents[agent].condition = Condition::Stopped;
            }
            8 => {
                for server in 0..servers {
                    self.part(server, servers + agent, now);
                }
            }
            9 => {
                for agent in 0..agents {
                    self.part(one, servers + agent, now);
                }
            }
            10 => self.end_agent(agent),
            11 => (0..agents).for_each(|agent| self.end_agent(agent)),
            // Between servers, in one direction: nobody hears it, or it hears nobody.
            12 => self.silence(one, 0..servers, now),
            13 => self.deafen(one, 0..servers, now),
            14 if one != leader => self.silence(one, [leader], now),
            // Reports alone get lost, or their answers.
            15 if one != leader => {
                let (from, to) = match self.below(2) {
                    0 => (one, leader),
                    _ => (leader, one),
                };
                self.mute.insert((from, to), now);
            }
            // Between an agent and some servers, in one direction.
            16 => self.silence(servers + agent, some, now),
            17 | 18 => self.deafen(servers + agent, some, now),
            19 => {
                for agent in 0..agents {
                    let towards = self.below(3);
                    match towards {
                        0 => self.silence(servers + agent, [one], now),
                        1 => self.deafen(servers + agent, [one], now),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// Nothing that one says gets to the others.
    fn silence(&mut self, one: usize, others: impl IntoIterator<Item = usize>, now: Instant) {
        for other in others.into_iter().filter(|other| *other != one) {
            self.cut.entry((one, other)).or_insert(now);
        }
    }

    /// One hears nothing of the others.
    fn deafen(&mut self, one: usize, others: impl IntoIterator<Item = usize>, now: Instant) {
        for other in others.into_iter().filter(|other| *other != one) {
            self.cut.entry((other, one)).or_insert(now);
        }
    }

    pub(super) fn stop(&mut self, server: usize) {
        if self.servers[server].condition == Condition::Runs {
            self.servers[server].condition = Condition::Stopped;
        }
    }

    pub(super) fn isolate(&mut self, server: usize, now: Instant) {
        for other in (0..self.servers.len()).filter(|other| *other != server) {
            self.part(server, other, now);
        }
    }

    pub(super) fn heal(&mut self, now: Instant) {
        self.happened("all is healed".to_owned());
        self.cut.clear();
        self.mute.clear();
        for server in &mut self.servers {
            if server.condition == Condition::Down {
                (server.next_tick, server.last_tick) = (now, now);
            }
            server.condition = Condition::Runs;
        }
        for agent in &mut self.agents {
            agent.condition = Condition::Runs;
        }
    }
}
