use uuid::Uuid;

use super::{
    super::{ALIVE, CAUGHT_UP, DEAD},
    *,
};
use crate::log::Membership;

const LAST: u64 = 10_000;

fn id(number: u128) -> ServerId {
    ServerId(Uuid::from_u128(number))
}

fn ids<const N: usize>(numbers: [u128; N]) -> BTreeSet<ServerId> {
    numbers.map(id).into()
}

fn server(number: u128) -> Server {
    Server {
        name: format!("s{number}"),
        address: format!("10.0.0.{number}:8300"),
    }
}

/// Led by server 1; everybody is alive and has the log.
fn situation<const V: usize, const L: usize>(voters: [u128; V], learners: [u128; L]) -> Situation {
    let all: Vec<u128> = voters.into_iter().chain(learners).collect();
    Situation {
        own: id(1),
        leading: true,
        membership: Membership {
            voters: vec![ids(voters)],
            servers: all.iter().map(|n| (id(*n), server(*n))).collect(),
        },
        last_log: LAST,
        replicated: all.iter().map(|n| (id(*n), LAST)).collect(),
        heard: all.iter().map(|n| (id(*n), Duration::ZERO)).collect(),
        ready_for: all.iter().map(|n| (id(*n), Duration::ZERO)).collect(),
        led: Duration::ZERO,
        known_for: BTreeMap::new(),
        member_for: BTreeMap::new(),
    }
}

fn step(situation: &Situation) -> Step {
    next_step(
        situation,
        &server(1),
        &Policy::of(&AutopilotConfig::default()),
    )
}

#[test]
fn a_settled_cluster_and_a_follower_have_nothing_to_do() {
    assert_eq!(step(&situation([1, 2, 3], [])), Step::Nothing);
    let follower = Situation {
        leading: false,
        ..situation([1, 2], [3])
    };
    assert_eq!(step(&follower), Step::Nothing);
}

#[test]
fn a_learner_becomes_a_voter_when_it_has_the_log_and_is_there() {
    let mut situation = situation([1, 2], [3]);
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3])));
    situation.replicated.insert(id(3), LAST - CAUGHT_UP - 1);
    assert_eq!(step(&situation), Step::Wait);
    situation.replicated.insert(id(3), LAST);
    situation.heard.insert(id(3), ALIVE);
    assert_eq!(step(&situation), Step::Wait);
    situation.heard.remove(&id(3));
    assert_eq!(step(&situation), Step::Wait);
}

#[test]
fn one_that_returns_without_its_data_takes_its_own_place() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.insert(id(3), ALIVE * 2);
    // At the old address, and under the old name at a new one.
    for server in [
        Server {
            name: "new".into(),
            ..server(3)
        },
        Server {
            address: "new:1".into(),
            ..server(3)
        },
    ] {
        situation.membership.servers.insert(id(4), server);
        assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
    }
}

#[test]
fn a_new_server_takes_the_place_of_one_that_is_dead() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.insert(id(3), DEAD / 2);
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
    situation.heard.insert(id(3), DEAD);
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
    // A new leader has never heard of it, and gives it time.
    situation.heard.remove(&id(3));
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
    situation.known_for.insert(id(3), DEAD);
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 4])));
    // By itself nobody is removed so soon.
    situation.membership.servers.remove(&id(4));
    assert_eq!(step(&situation), Step::Nothing);
}

#[test]
fn a_name_is_not_taken_from_one_that_is_alive() {
    let mut situation = situation([1, 2, 3], [4]);
    let named = Server {
        name: server(3).name,
        ..server(4)
    };
    situation.membership.servers.insert(id(4), named);
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
}

#[test]
fn no_step_leaves_a_cluster_without_a_live_majority() {
    let mut situation = situation([1, 2], [3]);
    situation.heard.remove(&id(2));
    // Two of three.
    assert_eq!(step(&situation), Step::SetVoters(ids([1, 2, 3])));
    let mut situation = super::tests::situation([1, 2, 3, 5], [4]);
    situation.heard.remove(&id(2));
    situation.heard.remove(&id(3));
    situation.heard.remove(&id(5));
    assert_eq!(step(&situation), Step::Wait);
}

#[test]
fn a_change_that_was_begun_is_finished_first() {
    let mut situation = situation([1, 2], [3]);
    situation.membership.voters.push(ids([1, 2, 3]));
    assert_eq!(step(&situation), Step::Finish);
}

#[test]
fn a_leader_that_moved_says_so() {
    let situation = situation([1, 2, 3], []);
    let moved = Server {
        address: "moved:1".into(),
        ..server(1)
    };
    assert_eq!(
        next_step(&situation, &moved, &Policy::of(&AutopilotConfig::default())),
        Step::CorrectOwn(moved)
    );
}

#[test]
fn a_leader_that_has_the_name_of_another_one_keeps_its_own() {
    let mut situation = situation([1, 2, 3], []);
    let named = |address: &str| Server {
        name: server(2).name,
        address: address.into(),
    };
    let next = |situation: &Situation, own: &Server| next_step(situation, own, &policy());
    let own = named(&server(1).address);
    assert_eq!(next(&situation, &own), Step::Nothing);
    // It has moved all the same.
    let kept = Server {
        address: "moved:1".into(),
        ..server(1)
    };
    assert_eq!(next(&situation, &named("moved:1")), Step::CorrectOwn(kept));
    // Nobody is taken for gone by who has just begun to lead.
    situation.heard.remove(&id(2));
    assert_eq!(next(&situation, &own), Step::Nothing);
    situation.known_for.insert(id(2), ALIVE);
    assert_eq!(next(&situation, &own), Step::CorrectOwn(own.clone()));
}

fn policy() -> Policy {
    Policy::of(&AutopilotConfig::default())
}

#[test]
fn a_learner_has_to_be_stable_where_the_leader_has_seen_it_for_long_enough() {
    let mut situation = situation([1, 2], [3]);
    situation.led = policy().stabilization * 2;
    for (ready_for, expected) in [
        (None, Step::Wait),
        (Some(9), Step::Wait),
        (Some(10), Step::SetVoters(ids([1, 2, 3]))),
    ] {
        situation.ready_for.remove(&id(3));
        let ready_for = ready_for.map(Duration::from_secs);
        situation
            .ready_for
            .extend(ready_for.map(|time| (id(3), time)));
        assert_eq!(step(&situation), expected);
    }
}

#[test]
fn the_dead_are_taken_out_as_long_as_they_are_a_minority() {
    let dead = policy().dead_for_good();
    let mut five = situation([1, 2, 3, 4, 5], []);
    five.heard.insert(id(4), dead - Duration::from_secs(1));
    assert_eq!(step(&five), Step::Nothing, "not yet");
    five.heard.insert(id(4), dead);
    five.heard.insert(id(5), dead * 2);
    assert_eq!(step(&five), Step::Remove(id(5)), "the longest first");
    let four = situation([1, 2, 3, 4], []);
    let four = Situation {
        heard: five.heard.clone(),
        ..four
    };
    assert_eq!(step(&four), Step::Remove(id(4)));
    // A majority of five is dead: then it is rather this one.
    five.heard.insert(id(3), dead);
    assert_eq!(step(&five), Step::Nothing);
    let mut two = situation([1, 2], []);
    two.heard.insert(id(2), dead);
    assert_eq!(step(&two), Step::Nothing);
}

#[test]
fn settings_keep_the_dead() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.insert(id(3), policy().dead_for_good());
    situation.heard.remove(&id(4));
    let next = |config: AutopilotConfig| next_step(&situation, &server(1), &Policy::of(&config));
    let default = AutopilotConfig::default();
    assert_eq!(next(default.clone()), Step::Remove(id(3)));
    let off = AutopilotConfig {
        cleanup_dead_servers: false,
        ..default.clone()
    };
    assert_eq!(next(off), Step::Wait);
    let quorum = |min_quorum| AutopilotConfig {
        min_quorum,
        ..default.clone()
    };
    assert_eq!(next(quorum(2)), Step::Remove(id(3)));
    assert_eq!(next(quorum(3)), Step::Wait);
}

#[test]
fn a_learner_that_never_came_is_forgotten() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.remove(&id(4));
    situation.led = policy().dead_for_good() * 2;
    assert_eq!(step(&situation), Step::Wait, "it has just come");
    situation.known_for.insert(id(4), policy().dead_for_good());
    assert_eq!(step(&situation), Step::Remove(id(4)));
}

#[test]
fn a_learner_that_no_leader_hears_is_forgotten_although_leaders_change() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.remove(&id(4));
    situation.member_for.insert(id(4), policy().dead_for_good());
    situation.known_for.insert(id(4), DEAD);
    assert_eq!(step(&situation), Step::Wait, "this leader has just begun");
    situation.led = DEAD;
    assert_eq!(step(&situation), Step::Remove(id(4)));
    // Voters are what each leader itself has found of them.
    situation.membership.servers.remove(&id(4));
    situation.heard.remove(&id(3));
    situation.member_for.insert(id(3), policy().dead_for_good());
    assert_eq!(step(&situation), Step::Nothing);
}

#[test]
fn with_cleanup_off_a_new_server_takes_nobodys_place_but_its_own() {
    let mut situation = situation([1, 2, 3], [4]);
    situation.heard.insert(id(3), DEAD);
    let off = Policy::of(&AutopilotConfig {
        cleanup_dead_servers: false,
        ..AutopilotConfig::default()
    });
    let next = |situation: &Situation| next_step(situation, &server(1), &off);
    assert_eq!(next(&situation), Step::SetVoters(ids([1, 2, 3, 4])));
    situation.membership.servers.insert(id(4), server(3));
    assert_eq!(next(&situation), Step::SetVoters(ids([1, 2, 4])));
}
