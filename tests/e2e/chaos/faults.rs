//! What is done to servers, agents and the network between them.

use std::time::Instant;

use wharf_tests::{Chance, SOON, eventually, eventually_some};

use super::lab::{AGENTS, Lab, SERVERS, agents, everybody, is_server, servers};

/// What is done, until it is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Kill,
    KillLeader,
    KillAll,
    /// SIGTERM.
    End,
    Pause,
    PauseLeader,
    PauseTwo,
    /// A server comes back without what it had, under a new identity. Undone by itself.
    Wipe,
    FullDisk,
    /// One hears none of the other servers, and they do not hear it; agents reach all of them.
    Isolate,
    IsolateLeader,
    /// One hears none of the others, but they hear it.
    OneWay,
    /// Two do not hear each other, and both hear the third.
    Bridge,
    /// Servers and agents in two parts.
    Split,
    Loss,
    KillAgent,
    EndAgent,
    PauseAgent,
    /// From one server, in both directions.
    PartAgent,
    /// From all servers, in both directions.
    IsolateAgent,
    /// It hears no server, but they hear it.
    DeafAgent,
}

/// Twice what happens to leaders.
const FAULTS: [Fault; 24] = [
    Fault::Kill,
    Fault::KillLeader,
    Fault::KillLeader,
    Fault::KillAll,
    Fault::End,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::PauseLeader,
    Fault::PauseTwo,
    Fault::Wipe,
    Fault::FullDisk,
    Fault::Isolate,
    Fault::IsolateLeader,
    Fault::IsolateLeader,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Split,
    Fault::Loss,
    Fault::KillAgent,
    Fault::EndAgent,
    Fault::PauseAgent,
    Fault::PartAgent,
    Fault::IsolateAgent,
    Fault::DeafAgent,
];

/// What a fault has done.
#[derive(Debug, Default)]
pub(super) struct Struck {
    /// The agents that may be taken for dead: killed, stopped, or without a way to most of the servers.
    pub(super) away: Vec<usize>,
    /// Only the leader is gone: since when, and from when on it does nothing any more.
    pub(super) leaderless: Option<(Instant, Instant)>,
}

pub(super) fn any_server(chance: &mut Chance) -> usize {
    usize::try_from(chance.below(SERVERS as u64)).unwrap() + 1
}

pub(super) fn any_agent(chance: &mut Chance) -> usize {
    usize::try_from(chance.below(AGENTS as u64)).unwrap() + 1 + SERVERS
}

pub(super) fn any_fault(chance: &mut Chance) -> Fault {
    FAULTS[usize::try_from(chance.below(FAULTS.len() as u64)).unwrap()]
}

fn others(number: usize) -> impl Iterator<Item = usize> {
    servers().filter(move |other| *other != number)
}

impl Fault {
    pub(super) fn strike(self, lab: &mut Lab, chance: &mut Chance) -> Struck {
        let any = any_server(chance);
        let agent = any_agent(chance);
        let leader = match self {
            Fault::KillLeader | Fault::PauseLeader | Fault::IsolateLeader => {
                eventually_some(SOON, || lab.leader())
            }
            _ => None,
        };
        let mut struck = Struck::default();
        let since = Instant::now();
        match self {
            Fault::Kill => lab.kill(any),
            Fault::KillLeader => lab.kill(leader.unwrap_or(any)),
            Fault::KillAll => servers().for_each(|number| lab.kill(number)),
            Fault::End => lab.terminate(any),
            Fault::Pause => lab.pause(any),
            Fault::PauseLeader => lab.pause(leader.unwrap_or(any)),
            Fault::PauseTwo => others(any).for_each(|number| lab.pause(number)),
            Fault::Wipe => wipe(lab, any),
            Fault::FullDisk => lab.fill(any),
            Fault::Isolate => others(any).for_each(|other| lab.part(any, other)),
            Fault::IsolateLeader => {
                let alone = leader.unwrap_or(any);
                others(alone).for_each(|other| lab.part(alone, other));
            }
            Fault::OneWay => others(any).for_each(|other| lab.deafen(any, other)),
            Fault::Bridge => lab.part(any, any % SERVERS + 1),
            Fault::Split => struck.away = split(lab, chance),
            Fault::Loss => everybody().for_each(|number| lab.lose(number, everybody(), 20)),
            Fault::KillAgent => lab.kill(agent),
            Fault::EndAgent => lab.terminate(agent),
            Fault::PauseAgent => lab.pause(agent),
            Fault::PartAgent => lab.part(agent, any),
            Fault::IsolateAgent => servers().for_each(|server| lab.part(agent, server)),
            Fault::DeafAgent => servers().for_each(|server| lab.deafen(agent, server)),
        }
        match self {
            Fault::KillAgent
            | Fault::EndAgent
            | Fault::PauseAgent
            | Fault::IsolateAgent
            | Fault::DeafAgent => struck.away.push(agent),
            Fault::KillLeader | Fault::PauseLeader | Fault::IsolateLeader => {
                struck.leaderless = leader.map(|_| (since, Instant::now()));
            }
            _ => {}
        }
        struck
    }
}

/// Two servers at once without their data would be a majority that has forgotten: so the next fault waits until this
/// one has its vote again.
fn wipe(lab: &mut Lab, number: usize) {
    lab.wipe(number);
    lab.start(number);
    let back = eventually(SOON, || {
        others(number).all(|other| lab.has_voters(other, &[number]))
    });
    assert!(
        back,
        "s{number} did not get its vote back\n{}",
        lab.output()
    );
}

/// Cuts everybody off from some of the others. Returns the agents that are not with most of the servers.
fn split(lab: &Lab, chance: &mut Chance) -> Vec<usize> {
    let sides: Vec<bool> = everybody().map(|_| chance.below(2) == 0).collect();
    let side = |number: usize| sides[number - 1];
    for one in everybody() {
        for other in everybody().filter(|other| side(*other) != side(one)) {
            lab.deafen(one, other);
        }
    }
    let most = servers().filter(|server| side(*server)).count() > SERVERS / 2;
    agents().filter(|agent| side(*agent) != most).collect()
}

/// Undoes everything.
pub(super) fn undo(lab: &mut Lab) {
    lab.make_room();
    for number in everybody() {
        lab.resume(number);
        lab.heal(number);
        if !lab.is_running(number) {
            lab.start(number);
        }
    }
}

/// Takes one agent away, in one of the ways there are, for as long as `gone` says.
pub(super) fn take_away(lab: &mut Lab, agent: usize, chance: &mut Chance) -> Fault {
    debug_assert!(!is_server(agent));
    match chance.below(3) {
        0 => {
            lab.kill(agent);
            Fault::KillAgent
        }
        1 => {
            lab.pause(agent);
            Fault::PauseAgent
        }
        _ => {
            servers().for_each(|server| lab.part(agent, server));
            Fault::IsolateAgent
        }
    }
}
