//! Whether the agents count as alive, looked at all the time through every server.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use wharf_tests::Http;

use super::lab::{agents, name};

/// After an agent is back, a verdict may still come of what was known before.
const AFTERMATH: Duration = Duration::from_secs(3);

/// What a server said of an agent.
#[derive(Debug)]
struct Sight {
    agent: usize,
    server: usize,
    asked: Instant,
    answered: Instant,
    /// Of `serfHealth`; empty where the catalog has no such node.
    status: String,
}

#[derive(Debug, Default)]
pub(super) struct Liveness {
    sights: Mutex<Vec<Sight>>,
    /// When an agent may count as dead.
    away: Mutex<Vec<(usize, Instant, Option<Instant>)>>,
}

/// The status of `serfHealth` of an agent's node as the leader has it, asked through `http`. `None`: no answer.
pub(super) fn status_of(http: Http, agent: usize) -> Option<String> {
    let path = format!("/v1/health/node/{}", name(agent));
    let reply = http.request("GET", &path, &[], b"").ok()?;
    if reply.status != 200 {
        return None;
    }
    let checks = reply.json();
    let mut checks = checks.as_array()?.iter();
    let own = checks.find(|check| check["CheckID"] == "serfHealth");
    Some(own.map_or_else(String::new, |check| {
        check["Status"].as_str().unwrap_or_default().to_owned()
    }))
}

impl Liveness {
    /// Looks through one server, until `stop`.
    pub(super) fn look(&self, server: usize, http: Http, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            for agent in agents() {
                let asked = Instant::now();
                if let Some(status) = status_of(http, agent) {
                    let sight = Sight {
                        agent,
                        server,
                        asked,
                        answered: Instant::now(),
                        status,
                    };
                    self.sights.lock().unwrap().push(sight);
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// From now on the agent may count as dead.
    pub(super) fn goes(&self, agent: usize) {
        self.away
            .lock()
            .unwrap()
            .push((agent, Instant::now(), None));
    }

    /// It did not go after all.
    pub(super) fn stays(&self, agent: usize) {
        let mut away = self.away.lock().unwrap();
        away.retain(|(other, _, until)| *other != agent || until.is_some());
    }

    /// The agent is back, and has been seen to be.
    pub(super) fn is_back(&self, agent: usize) {
        for (away, _, until) in self.away.lock().unwrap().iter_mut() {
            if *away == agent && until.is_none() {
                *until = Some(Instant::now() + AFTERMATH);
            }
        }
    }

    /// Sights of agents that were taken for dead while they were not away, with their times since `began`.
    pub(super) fn mistakes(&self, began: Instant) -> Vec<String> {
        let away = self.away.lock().unwrap();
        let excused = |sight: &Sight| {
            away.iter().any(|(agent, from, until)| {
                *agent == sight.agent
                    && sight.answered >= *from
                    && until.is_none_or(|until| sight.asked <= until)
            })
        };
        let sights = self.sights.lock().unwrap();
        let dead = sights.iter().filter(|sight| sight.status != "passing");
        let mistaken = dead.filter(|sight| !excused(sight));
        let told = mistaken.map(|sight| {
            let Sight { server, status, .. } = sight;
            let agent = name(sight.agent);
            let at = sight.answered.saturating_duration_since(began);
            format!("at {at:?} s{server} said of {agent} {status:?}")
        });
        told.collect()
    }

    pub(super) fn count(&self) -> usize {
        self.sights.lock().unwrap().len()
    }
}
