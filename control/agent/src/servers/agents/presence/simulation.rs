//! Servers and agents of which anything may be stopped, killed or cut off, and who is taken for dead meanwhile.
//!
//! What judges is real: each server's [`Presence`], and the [`Roll`] of whoever leads. Around it are models: of the
//! consensus, which has a leader where a majority is together, and former leaders that go on telling whoever hears them;
//! of a connection, which breaks at once when a process ends, and after silence when it is stopped or cut off; and of an
//! agent, with the patience of the real one. What is cut is cut in one direction or in both, and what one server tells
//! another of its agents may be lost alone. Time goes in steps of 50 ms, on tokio's paused clock.
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
    /// A server that hears a leader which does not hear it keeps its agents.
    UnheardServesOn,
    /// An agent that left a server counts as one whose process ended.
    LeavingIsDying,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Runs,
    Stopped,
    Down,
}

/// What has arrived at a server and was not read yet.
enum Arrived {
    Greeting {
        agent: usize,
        session: u64,
    },
    Alive(u64),
    Bye(u64),
    /// The agent gave the session up, and is alive.
    Left(u64),
    /// The agent's process is gone.
    Closed(u64),
    Report {
        from: usize,
        number: u64,
        sightings: Vec<Sighting>,
    },
    /// What became of a report: whether a leader has taken it.
    Answer {
        number: u64,
        taken: bool,
    },
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
    /// Whom it heard last of those who say that they lead, and when.
    heard_leader: Option<(usize, Instant)>,
    /// The newest term that it knows, and whether it leads in it, as far as it knows.
    term: u64,
    claims: bool,
    /// The report that was not answered yet, and since when it is on its way.
    report: Option<(u64, Instant)>,
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

/// What a server says with its welcome, and each second.
#[derive(Clone, Copy)]
struct Word {
    has_leader: bool,
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
    welcomed: Option<Word>,
    closed: bool,
    alive: Option<Word>,
    /// Since when it runs and has had a way to each server, and that one to the leader.
    fine_with: Vec<Option<Instant>>,
}

struct World {
    rng: proptest::test_runner::TestRng,
    broken: Option<Break>,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    /// From whom to whom nothing comes: servers, and agents after all servers.
    cut: BTreeMap<(usize, usize), Instant>,
    /// The same of what one server tells another of its agents, and of its answers.
    mute: BTreeMap<(usize, usize), Instant>,
    leader: Option<usize>,
    term: u64,
    /// When there will be another.
    election: Option<Instant>,
    leader_lost: Option<Instant>,
    /// What the catalog says of each agent.
    passing: Vec<Option<bool>>,
    next_session: u64,
    next_report: u64,
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
            mute: BTreeMap::new(),
            leader: None,
            term: 0,
            election: Some(now),
            leader_lost: None,
            passing: Vec::new(),
            next_session: 0,
            next_report: 0,
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
                welcomed: None,
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
            heard_leader: None,
            term: 0,
            claims: false,
            report: None,
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

    /// Whether what one says gets to the other.
    fn gets(&self, from: usize, to: usize) -> bool {
        !self.cut.contains_key(&(from, to))
    }

    fn is_linked(&self, one: usize, other: usize) -> bool {
        self.gets(one, other) && self.gets(other, one)
    }

    /// The same for reports and answers to them.
    fn is_told(&self, from: usize, to: usize) -> bool {
        self.gets(from, to) && !self.mute.contains_key(&(from, to))
    }

    /// Since when not both hear each other.
    fn parted_since(&self, one: usize, other: usize) -> Option<Instant> {
        let ways = [(one, other), (other, one)];
        ways.iter()
            .filter_map(|way| self.cut.get(way))
            .min()
            .copied()
    }

    fn part(&mut self, one: usize, other: usize, now: Instant) {
        self.cut.entry((one, other)).or_insert(now);
        self.cut.entry((other, one)).or_insert(now);
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

    /// Whether what a server says gets to the agent.
    fn hears(&self, agent: usize, server: usize) -> bool {
        self.gets(server, self.place(agent))
    }

    fn send(&mut self, agent: usize, server: usize, message: Arrived) {
        let gets = self.gets(self.place(agent), server);
        if gets && self.servers[server].condition != Condition::Down {
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

    /// Whether it is with a leader that a majority is with, and each hears the other.
    fn reaches_leader(&self, server: usize) -> bool {
        let leader = self.leader.filter(|leader| self.has_majority(*leader));
        leader.is_some_and(|leader| self.together(server, leader))
    }

    /// The same, and the leader takes its reports and proposals.
    fn is_heard(&self, server: usize) -> bool {
        let told = |leader| self.is_told(server, leader) && self.is_told(leader, server);
        self.reaches_leader(server) && self.leader.is_some_and(told)
    }

    fn elect(&mut self, now: Instant) {
        match self.leader {
            Some(leader) if self.has_majority(leader) && self.servers[leader].claims => {
                self.leader_lost = None;
            }
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
                    let leader = fit[self.below(fit.len())];
                    self.leader = Some(leader);
                    self.leader_lost = None;
                    self.term += 1;
                    for at in 0..self.servers.len() {
                        if self.together(at, leader) {
                            self.learn(at, self.term);
                        }
                    }
                    self.servers[leader].claims = true;
                    self.happened(format!("server {leader} leads"));
                }
            }
            None => {}
        }
        for at in 0..self.servers.len() {
            self.hear_leader(at, now);
        }
    }

    /// A server hears of a term.
    fn learn(&mut self, at: usize, term: u64) {
        if self.servers[at].term < term {
            self.servers[at].term = term;
            self.servers[at].claims = false;
        }
    }

    /// What a server hears of those who say that they lead, which may be of the past.
    fn hear_leader(&mut self, at: usize, now: Instant) {
        if self.servers[at].condition != Condition::Runs {
            return;
        }
        for leader in 0..self.servers.len() {
            let Server {
                claims,
                condition,
                term,
                ..
            } = self.servers[leader];
            let says = claims && condition == Condition::Runs && self.gets(leader, at);
            if !says || term < self.servers[at].term {
                continue;
            }
            self.learn(at, term);
            // Of itself it knows whether a quorum answers.
            if leader != at || self.has_majority(at) {
                self.servers[at].heard_leader = Some((leader, now));
            }
        }
    }

    /// The leader as far as the server knows.
    fn known_leader(&self, server: usize, now: Instant) -> Option<usize> {
        let (leader, heard) = self.servers[server].heard_leader?;
        (now < heard + Duration::from_secs(1)).then_some(leader)
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
                    true => self.is_heard(server),
                    // An election.
                    false => {
                        let heard = self.servers[server].heard_leader;
                        heard.is_some_and(|(_, heard)| now < heard + ELECTION)
                    }
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
        world.part(server, place, Instant::now());
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
        Break::UnheardServesOn,
        Break::LeavingIsDying,
    ];
    for broken in all {
        let found = (0..300).find_map(|seed| Some((seed, play(seed, Some(broken)).err()?)));
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        println!("{broken:?} is found by history {}: {wrong}", seed + 1);
    }
}
