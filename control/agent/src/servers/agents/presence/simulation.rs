//! Servers and agents of which anything may be stopped, killed or cut off, and who is taken for dead meanwhile.
//!
//! What judges is real: each server's [`Presence`], and the [`Roll`] of whoever leads. Around it are models: of the
//! consensus, which has a leader where a majority is together; of a connection, which breaks at once when a process ends,
//! and after silence when it is stopped or cut off; and of an agent, with the patience of the real one. Time goes in
//! steps of 50 ms, on tokio's paused clock.
//!
//! `WHARF_SIM_SEEDS` plays more of it, `WHARF_SIM_SEED` one of them.

mod agents;
mod servers;
mod trouble;

use std::collections::BTreeMap;

use proptest::prelude::Rng as _;

use super::{super::roll::GONE_AFTER, *};
use crate::client::patience::{
    AGENT_BEAT, AGENT_SILENCE, FIRST_PAUSE, FIRST_WELCOME, LAST_PAUSE, LAST_WELCOME, LEADERLESS,
    Left, MOVE_WITHIN,
};

/// How many histories a test run plays.
const SEEDS: u64 = 150;
const STEP: Duration = Duration::from_millis(50);
/// How long things go wrong, and how long they are quiet in the end.
const TROUBLE: Duration = Duration::from_secs(120);
const QUIET: Duration = Duration::from_secs(30);

/// What servers and connections go by: see `agents::session` and `servers::client`.
const SERVER_BEAT: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
const PINGS: Duration = Duration::from_secs(5);
const SERVER_SILENCE: Duration = Duration::from_millis(2500);
const REBALANCE: Duration = Duration::from_secs(20);

/// How long an agent may take to get to a server that is there: whoever had that long must not be taken for dead.
const FAIR: Duration = LEASE;
/// A gap without a leader that is no excuse.
const ELECTION: Duration = Duration::from_secs(3);

/// A mistake that has to be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// A leader does not notice that it stood still, and what it makes of that is passed on to the present one.
    FormerLeaderJudges,
    /// A new leader takes over without waiting to hear of everybody.
    RollInherited,
    /// Agents wait for one server as long as their lease lasts.
    PatientAgents,
    /// There is no brake.
    NoBrake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Runs,
    Stopped,
    Down,
}

/// What has arrived at a server and was not read yet.
enum Arrived {
    Greeting { agent: usize, session: u64 },
    Alive(u64),
    Bye(u64),
    Closed(u64),
    Report(Vec<Sighting>),
}

struct Session {
    held: Held,
    agent: usize,
    heard: Instant,
}

struct Server {
    condition: Condition,
    presence: Arc<Presence>,
    arrived: Vec<Arrived>,
    sessions: BTreeMap<u64, Session>,
    next_tick: Instant,
    last_tick: Instant,
    next_beat: Instant,
    /// When what it has to tell at once is told.
    tells_at: Option<Instant>,
    believes_to_lead: bool,
    heard_leader: Instant,
}

enum State {
    Idle(Instant),
    Connecting {
        server: usize,
        session: u64,
        until: Instant,
    },
    With {
        server: usize,
        session: u64,
        heard: Instant,
        next_beat: Instant,
        leaderless: Option<Instant>,
        moves: Instant,
    },
}

struct Agent {
    condition: Condition,
    state: State,
    /// Where to try next.
    candidates: Vec<usize>,
    left: Left<usize>,
    pause: Duration,
    welcome: Duration,
    /// What has arrived of the current session.
    welcomed: bool,
    closed: bool,
    alive: Option<bool>,
    /// Since when it runs and has had a way to each server, and that one to the leader.
    fine_with: Vec<Option<Instant>>,
}

struct World {
    rng: proptest::test_runner::TestRng,
    broken: Option<Break>,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    /// Between servers, and between an agent (after all servers) and a server.
    cut: BTreeMap<(usize, usize), Instant>,
    leader: Option<usize>,
    /// When there will be another.
    election: Option<Instant>,
    leader_lost: Option<Instant>,
    /// What the catalog says of each agent.
    passing: Vec<Option<bool>>,
    next_session: u64,
    /// When somebody was taken for dead.
    lost: Vec<Instant>,
    /// Agents stay where they are.
    calm: bool,
    began: Instant,
    /// What happened, for whoever reads of a mistake.
    events: Vec<String>,
    /// Verdicts, for the figures.
    verdicts: usize,
}

fn node(agent: usize) -> Uuid {
    Uuid::from_u128(agent as u128 + 1)
}

impl World {
    fn new(seed: u64, broken: Option<Break>) -> World {
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = proptest::test_runner::TestRng::from_seed(
            proptest::test_runner::RngAlgorithm::ChaCha,
            &bytes,
        );
        let now = Instant::now();
        let mut world = World {
            rng,
            broken,
            servers: Vec::new(),
            agents: Vec::new(),
            cut: BTreeMap::new(),
            leader: None,
            election: Some(now),
            leader_lost: None,
            passing: Vec::new(),
            next_session: 0,
            lost: Vec::new(),
            calm: false,
            began: now,
            events: Vec::new(),
            verdicts: 0,
        };
        let servers = 3 + 2 * world.below(2);
        for _ in 0..servers {
            let server = world.server();
            world.servers.push(server);
        }
        let agents = 2 + world.below(12);
        for _ in 0..agents {
            world.agents.push(Agent {
                condition: Condition::Runs,
                state: State::Idle(now),
                candidates: Vec::new(),
                left: Left::default(),
                pause: FIRST_PAUSE,
                welcome: FIRST_WELCOME,
                welcomed: false,
                closed: false,
                alive: None,
                fine_with: vec![None; servers],
            });
            world.passing.push(None);
        }
        world
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.rng.next_u64() % limit as u64) as usize
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let range = (to - from).as_millis() as usize;
        from + Duration::from_millis(self.below(range.max(1)) as u64)
    }

    fn server(&mut self) -> Server {
        let now = Instant::now();
        let phase = self.between(Duration::ZERO, TICK);
        Server {
            condition: Condition::Runs,
            presence: Arc::default(),
            arrived: Vec::new(),
            sessions: BTreeMap::new(),
            next_tick: now + phase,
            last_tick: now,
            next_beat: now + phase / 2,
            tells_at: None,
            believes_to_lead: false,
            heard_leader: now,
        }
    }

    fn happened(&mut self, event: String) {
        let at = Instant::now() - self.began;
        self.events.push(format!("{at:>9.2?} {event}"));
    }

    /// The last of what happened.
    fn story(&self) -> String {
        let from = self.events.len().saturating_sub(40);
        self.events[from..].join("\n")
    }

    // === the network ===

    fn is_linked(&self, one: usize, other: usize) -> bool {
        !self.cut.contains_key(&(one.min(other), one.max(other)))
    }

    fn place(&self, agent: usize) -> usize {
        self.servers.len() + agent
    }

    fn serves(&self, agent: usize, server: usize) -> bool {
        self.is_linked(server, self.place(agent))
    }

    /// Whether the agent has this connection still.
    fn is_of(&self, agent: usize, id: u64) -> bool {
        match self.agents[agent].state {
            State::Idle(_) => false,
            State::Connecting { session, .. } | State::With { session, .. } => session == id,
        }
    }

    fn send(&mut self, agent: usize, server: usize, message: Arrived) {
        if self.serves(agent, server) && self.servers[server].condition != Condition::Down {
            self.servers[server].arrived.push(message);
        }
    }

    // === the consensus ===

    fn together(&self, one: usize, other: usize) -> bool {
        let runs = |at: usize| self.servers[at].condition == Condition::Runs;
        runs(one) && runs(other) && (one == other || self.is_linked(one, other))
    }

    fn has_majority(&self, server: usize) -> bool {
        let all = 0..self.servers.len();
        all.filter(|other| self.together(server, *other)).count() > self.servers.len() / 2
    }

    fn reaches_leader(&self, server: usize) -> bool {
        let leader = self.leader.filter(|leader| self.has_majority(*leader));
        leader.is_some_and(|leader| self.together(server, leader))
    }

    fn elect(&mut self, now: Instant) {
        match self.leader {
            Some(leader) if self.has_majority(leader) => self.leader_lost = None,
            Some(leader) => {
                let since = *self.leader_lost.get_or_insert(now);
                if now >= since + Duration::from_millis(500) {
                    self.leader = None;
                    self.happened(format!("leader {leader} is lost"));
                    let wait = self.between(Duration::from_millis(250), ELECTION / 2);
                    self.election = Some(now + wait);
                }
            }
            None if self.election.is_some_and(|at| now >= at) => {
                let fit = (0..self.servers.len()).filter(|at| self.has_majority(*at));
                let fit: Vec<usize> = fit.collect();
                if !fit.is_empty() {
                    self.leader = Some(fit[self.below(fit.len())]);
                    self.leader_lost = None;
                    self.happened(format!("{:?} leads", self.leader));
                }
            }
            None => {}
        }
        for at in 0..self.servers.len() {
            if self.reaches_leader(at) {
                self.servers[at].heard_leader = now;
            }
        }
    }

    fn knows_leader(&self, server: usize, now: Instant) -> bool {
        now < self.servers[server].heard_leader + Duration::from_secs(1)
    }

    /// Since when each agent has had a server that it could be with.
    fn note(&mut self, now: Instant) {
        let leads = |leader: usize| self.has_majority(leader);
        let is_led = self.leader.is_some_and(leads);
        for agent in 0..self.agents.len() {
            for server in 0..self.servers.len() {
                let there = self.agents[agent].condition == Condition::Runs
                    && self.servers[server].condition == Condition::Runs
                    && self.serves(agent, server);
                let led = match is_led {
                    true => self.reaches_leader(server),
                    // An election.
                    false => now < self.servers[server].heard_leader + ELECTION,
                };
                let fine = &mut self.agents[agent].fine_with[server];
                *fine = (there && led).then(|| fine.unwrap_or(now));
            }
        }
    }

    fn step(&mut self, now: Instant) {
        self.elect(now);
        self.note(now);
        for at in 0..self.servers.len() {
            if self.servers[at].condition == Condition::Runs {
                self.serve(at, now);
            }
        }
        for at in 0..self.agents.len() {
            if self.agents[at].condition == Condition::Runs {
                self.act(at, now);
            }
        }
    }
}

/// Plays one history, and returns how many verdicts there were. Panics with what is wrong.
async fn history(seed: u64, broken: Option<Break>) -> usize {
    let began = Instant::now();
    let mut world = World::new(seed, broken);
    let mut next = began + Duration::from_secs(10);
    let pass = async |world: &mut World, until: Instant| {
        while Instant::now() < until {
            world.step(Instant::now());
            tokio::time::advance(STEP).await;
        }
    };
    while Instant::now() < began + TROUBLE {
        pass(&mut world, next).await;
        let now = Instant::now();
        match world.below(3) {
            0 => world.heal(now),
            _ => world.strike(now),
        }
        next = now + world.between(Duration::from_millis(200), Duration::from_secs(8));
    }
    world.heal(Instant::now());
    world.calm = true;
    let quiet = Instant::now();
    pass(&mut world, quiet + QUIET).await;
    for (agent, passing) in world.passing.iter().enumerate() {
        assert_eq!(*passing, Some(true), "agent {agent} is there");
    }
    // All is quiet: whoever is killed now is dead soon, and nobody else.
    let killed = Instant::now();
    world.end_agent(0);
    let soon = GONE_AFTER + 2 * TICK + REPORT_WITHIN;
    pass(&mut world, killed + soon).await;
    assert_eq!(
        world.passing[0],
        Some(false),
        "killed {soon:?} ago, after\n{}",
        world.story()
    );
    let rest = &world.passing[1..];
    assert!(
        rest.iter().all(|passing| *passing == Some(true)),
        "{rest:?}"
    );
    // One that is lost with its connection, and one that is killed together with the leader, have their lease.
    for server in 0..world.servers.len() {
        let place = world.place(1);
        world.cut.insert((server, place), Instant::now());
    }
    if let Some(leader) = world.leader {
        world.crash(leader);
    }
    let lost = Instant::now();
    let bound = 2 * LEASE + ELECTION + 3 * TICK;
    pass(&mut world, lost + bound).await;
    assert_eq!(world.passing[1], Some(false), "lost {bound:?} ago");
    world.verdicts
}

fn play(seed: u64, broken: Option<Break>) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let played = std::panic::AssertUnwindSafe(|| runtime.block_on(history(seed, broken)));
    std::panic::catch_unwind(played).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_default()
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn who_is_alive_is_not_taken_for_dead_and_who_is_dead_is() {
    let seeds = match number("WHARF_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WHARF_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (mut verdicts, mut wrong) = (0, Vec::new());
    for seed in seeds.clone() {
        match play(seed, None) {
            Ok(number) => verdicts += number,
            Err(reason) => wrong.push(format!("WHARF_SIM_SEED={seed}: {reason}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{verdicts} verdicts in {} histories", seeds.count());
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    let all = [
        Break::FormerLeaderJudges,
        Break::RollInherited,
        Break::PatientAgents,
        Break::NoBrake,
    ];
    for broken in all {
        let found = (0..150).find_map(|seed| Some((seed, play(seed, Some(broken)).err()?)));
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        println!("{broken:?} is found by history {}: {wrong}", seed + 1);
    }
}
