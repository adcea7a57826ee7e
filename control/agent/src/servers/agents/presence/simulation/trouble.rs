//! What goes wrong.

use super::*;

impl World {
    pub(super) fn strike(&mut self, now: Instant) {
        let (servers, agents) = (self.servers.len(), self.agents.len());
        let one = self.below(servers);
        let leader = self.leader.unwrap_or(one);
        let agent = self.below(agents);
        let fault = self.below(12);
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
                    self.cut.insert((server, servers + agent), now);
                }
            }
            9 => {
                for agent in 0..agents {
                    self.cut.insert((one, servers + agent), now);
                }
            }
            10 => self.end_agent(agent),
            11 => (0..agents).for_each(|agent| self.end_agent(agent)),
            _ => {}
        }
    }

    pub(super) fn stop(&mut self, server: usize) {
        if self.servers[server].condition == Condition::Runs {
            self.servers[server].condition = Condition::Stopped;
        }
    }

    pub(super) fn isolate(&mut self, server: usize, now: Instant) {
        for other in (0..self.servers.len()).filter(|other| *other != server) {
            self.cut.insert((server.min(other), server.max(other)), now);
        }
    }

    pub(super) fn heal(&mut self, now: Instant) {
        self.happened("all is healed".to_owned());
        self.cut.clear();
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
