//! What this server hears of its agents, how the leader is told, and what the leader makes of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wharf_proto::server::v1 as proto;
use wharf_registry::{
    Command, View,
    command::Register,
    consensus::{Consensus, Envelope},
    model::{CheckStatus, Node},
};

use super::{
    super::{Peers, client::enveloped, wire},
    roll::{LEASE, Roll, Sighting, Verdict},
};
use crate::{
    cluster::Cluster,
    local::{SERF_HEALTH, SERVER_SERVICE, serf_health},
};

const TICK: Duration = Duration::from_secs(1);
/// How much later than planned a tick may come before this server is seen to have stood still.
const LATE: Duration = Duration::from_secs(1);
/// How long a session that ended is still told of: a report may get lost.
const RETOLD: Duration = Duration::from_secs(5);
/// Many agents may come at once, to a server that has just started.
const GATHER: Duration = Duration::from_millis(20);
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
const REPORT_WITHIN: Duration = Duration::from_secs(1);
/// After how long without a leader that takes its reports a server is of no use to agents, whose leases run out meanwhile:
/// one report may be lost, and the next be for a leader that is new.
const UNHEARD: Duration = Duration::from_secs(2);

/// The sessions of this server's agents, and on the leader what all servers tell of theirs.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    sessions: Mutex<HashMap<u64, Heard>>,
    roll: Mutex<Option<Roll>>,
    /// A session began: the leader is told at once, before it can take an agent for lost that has just come back.
    began: Notify,
    /// Since when no leader has taken a report of this server.
    unheard: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Heard {
    node: Uuid,
    last: Instant,
    ended: Option<Duration>,
    /// The leader was told that it began.
    told: bool,
}

/// An agent's session, as long as this server has it. Dropped without a word, it says nothing more of the agent, whose
/// lease runs from when it was heard last.
#[derive(Debug)]
pub(super) struct Held {
    presence: Arc<Presence>,
    session: u64,
    over: bool,
}

impl Held {
    /// The agent said something.
    pub(super) fn heard(&self) {
        if let Some(heard) = lock(&self.presence.sessions).get_mut(&self.session) {
            heard.last = Instant::now();
        }
    }

    /// Whether a leader hears of it.
    pub(super) fn is_heard(&self) -> bool {
        self.presence.is_heard(Instant::now())
    }

    /// The agent ended it, and excuses itself for so long.
    pub(super) fn ended(mut self, hold: Duration) {
        self.over = true;
        if let Some(heard) = lock(&self.presence.sessions).get_mut(&self.session) {
            heard.last = Instant::now();
            heard.ended = Some(hold);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.over {
            lock(&self.presence.sessions).remove(&self.session);
        }
    }
}

impl Presence {
    pub(super) fn hold(self: &Arc<Self>, session: u64, node: Uuid) -> Held {
        let heard = Heard {
            node,
            last: Instant::now(),
            ended: None,
            told: false,
        };
        lock(&self.sessions).insert(session, heard);
        self.began.notify_one();
        Held {
            presence: self.clone(),
            session,
            over: false,
        }
    }

    pub(super) fn open_sessions(&self) -> usize {
        let sessions = lock(&self.sessions);
        let open = sessions.values().filter(|heard| heard.ended.is_none());
        open.count()
    }

    /// All sessions, or those of which nothing was told yet.
    fn sightings(&self, now: Instant, only_new: bool) -> Vec<Sighting> {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, heard| heard.ended.is_none() || now < heard.last + RETOLD);
        let sightings = sessions
            .iter_mut()
            .filter(|(_, heard)| !(only_new && heard.told))
            .map(|(session, heard)| {
                heard.told = true;
                Sighting {
                    node: heard.node,
                    session: *session,
                    age: now - heard.last,
                    ended: heard.ended,
                }
            });
        sightings.collect()
    }

    /// On the leader, once a second, so much later than planned: what the catalog should say of these nodes, and does not.
    /// With it, how many it may have to say more of.
    fn judge(
        &self,
        now: Instant,
        late: Duration,
        nodes: &[(Uuid, bool)],
    ) -> (Vec<(Uuid, Verdict)>, usize) {
        let heard = self.sightings(now, false);
        let mut roll = lock(&self.roll);
        let roll = roll.get_or_insert_with(|| Roll::new(now));
        if late >= LATE {
            roll.stood_still(now, late);
        }
        roll.report(now, &heard);
        self.told(now, true);
        (roll.judge(now, nodes), roll.held_back())
    }

    /// A report that was begun `at` was taken by a leader, or was not.
    fn told(&self, at: Instant, taken: bool) {
        let mut unheard = lock(&self.unheard);
        *unheard = (!taken).then(|| unheard.unwrap_or(at));
    }

    /// Whether this server can tell a leader of its agents. One may hear a leader that does not hear it, or that leads
    /// nobody else any more.
    pub(super) fn is_heard(&self, now: Instant) -> bool {
        lock(&self.unheard).is_none_or(|since| now < since + UNHEARD)
    }

    /// This server does not lead, or not any more.
    fn follows(&self) {
        lock(&self.roll).take();
    }

    /// What another server tells; false where this one does not lead.
    pub(crate) fn report(&self, sightings: &[Sighting]) -> bool {
        match lock(&self.roll).as_mut() {
            Some(roll) => {
                roll.report(Instant::now(), sightings);
                true
            }
            None => false,
        }
    }
}

/// Tells the leader of this server's agents; as the leader, keeps `serfHealth` of all agents true.
pub(crate) async fn watch_over_agents(
    presence: Arc<Presence>,
    cluster: Arc<dyn Cluster>,
    consensus: Consensus,
    peers: Peers,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_tick = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = presence.began.notified() => {
                tokio::time::sleep(GATHER).await;
                tell(&presence, &consensus, &peers, true).await;
                continue;
            }
            () = stop.cancelled() => return,
        }
        let now = Instant::now();
        let late = (now - last_tick).saturating_sub(TICK);
        last_tick = now;
        metrics::gauge!("wharf_agent_sessions").set(presence.open_sessions() as f64);
        if !consensus.is_leader() {
            presence.follows();
            tell(&presence, &consensus, &peers, false).await;
            continue;
        }
        let view = cluster.registry().view();
        let agents = agents(&view);
        let nodes: Vec<_> = agents
            .iter()
            .map(|agent| (agent.id, agent.passing))
            .collect();
        let (verdicts, held_back) = presence.judge(now, late, &nodes);
        if held_back > 0 && !verdicts.is_empty() {
            tracing::warn!(
                lost = verdicts.len(),
                held_back,
                "many agents are silent at once: only some of them are given up within {LEASE:?}"
            );
        }
        let mut commands = Vec::new();
        for (id, verdict) in verdicts {
            let Some(agent) = agents.iter().find(|agent| agent.id == id) else {
                continue;
            };
            let name = &*agent.node.name;
            match verdict {
                Verdict::Lost => tracing::warn!(name, "an agent is dead or out of reach"),
                Verdict::Back => tracing::info!(name, "an agent is back"),
            }
            let health = health((*agent.node).clone(), verdict == Verdict::Back);
            commands.push(Command::Register(Box::new(health)));
        }
        drop(agents);
        drop(view);
        for command in commands {
            // Not by way of another server: what a former leader makes of it is not what the present one would.
            let written = timeout(WRITTEN_WITHIN, consensus.propose(&command)).await;
            let reason = match written {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no majority takes it".to_owned(),
            };
            tracing::debug!(
                reason,
                "the catalog does not say which agents are there yet"
            );
        }
    }
}

/// Tells the leader, which may be this server, of the agents here.
async fn tell(presence: &Presence, consensus: &Consensus, peers: &Peers, only_new: bool) {
    let began = Instant::now();
    let sightings = presence.sightings(began, only_new);
    if sightings.is_empty() {
        return;
    }
    let taken = presence.report(&sightings)
        || match report(&sightings, consensus, peers).await {
            Ok(()) => true,
            Err(reason) => {
                tracing::debug!(reason, "the leader does not hear of this server's agents");
                false
            }
        };
    presence.told(began, taken);
}

/// Tells another server that leads.
async fn report(
    sightings: &[Sighting],
    consensus: &Consensus,
    peers: &Peers,
) -> Result<(), String> {
    let (Some(leader), Some(cluster)) = (consensus.leader(), consensus.cluster()) else {
        return Err("there is none".to_owned());
    };
    let envelope = Envelope {
        cluster,
        from: consensus.id(),
        to: leader.id,
    };
    let request = proto::ReportRequest {
        sightings: sightings.iter().map(write_sighting).collect(),
    };
    let client = peers.caller(&leader.address);
    let mut client = client.map_err(|error| error.to_string())?;
    let report = client.report(enveloped(&envelope, request));
    match timeout(REPORT_WITHIN, report).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {REPORT_WITHIN:?}")),
    }
}

/// A node that a client agent speaks for, in the catalog.
#[derive(Debug)]
struct Agent {
    id: Uuid,
    node: Arc<Node>,
    passing: bool,
}

/// Nodes of servers have somebody else who looks after them.
fn agents(view: &View) -> Vec<Agent> {
    let agents = view.nodes().filter_map(|entry| {
        // Without one: the node came by other ways, or its agent is about to be noticed.
        let check = entry.checks.get(SERF_HEALTH);
        if entry.services.contains_key(SERVER_SERVICE) {
            return None;
        }
        Some(Agent {
            id: Uuid::try_parse(&entry.node.id).ok()?,
            node: entry.node.clone(),
            passing: check.is_some_and(|check| check.status == CheckStatus::Passing),
        })
    });
    agents.collect()
}

/// What the catalog is to say of an agent.
pub(super) fn health(node: Node, alive: bool) -> Register {
    Register {
        checks: vec![serf_health(&node.name, alive)],
        node,
        skip_node_update: true,
        service: None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn write_sighting(sighting: &Sighting) -> proto::Sighting {
    proto::Sighting {
        node: wire::write_id(sighting.node),
        session: sighting.session,
        age_ms: millis(sighting.age),
        ended: sighting.ended.is_some(),
        hold_ms: sighting.ended.map(millis).unwrap_or_default(),
    }
}

pub(crate) fn read_sighting(sighting: &proto::Sighting) -> Result<Sighting, wire::Malformed> {
    Ok(Sighting {
        node: wire::read_id(&sighting.node)?,
        session: sighting.session,
        age: Duration::from_millis(sighting.age_ms),
        ended: sighting
            .ended
            .then(|| Duration::from_millis(sighting.hold_ms)),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod simulation;
