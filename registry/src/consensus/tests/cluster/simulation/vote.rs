//! A vote that is forgotten takes a history of its own: a vote, a crash before anything else is written, and the former
//! leader. Random ones rarely come by.

use wharf_tests::Chance;

use super::{
    super::{super::lossy::Flaw, *},
    Disks,
    loss::{self, Register},
    paused,
};

/// A server votes for another, crashes before it hears more of it, and meets the former leader. If it has forgotten
/// its vote, it helps that one to acknowledge what the new leader has never heard of. If both of them `restart` before
/// they meet that one, they do not know any more that it was agreed on, and give it up: only clients notice.
async fn forgotten_vote(seed: u64, flaw: Option<Flaw>, restart: bool) {
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    cluster.disks = Some(Disks {
        chance: Chance::new(seed),
        flaw: flaw.map(|flaw| (flaw, None)),
    });
    let mut cluster = cluster.found(3).await;
    let register = Register::new(&cluster);
    assert!(cluster.write("before").await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let former = cluster.leader().await;
    let ids: Vec<ServerId> = cluster.machines.iter().map(|m| m.id).collect();
    let others: Vec<ServerId> = ids
        .iter()
        .copied()
        .filter(|id| *id != ids[former])
        .collect();
    cluster.net.cut_next_voter();
    cluster.net.partition(&[ids[former]], &others);
    let voter = cluster.net.cut_voter().await;
    let voter = ids.iter().position(|id| *id == voter).unwrap();
    cluster.crash(voter).await;
    cluster.net.heal_between(ids[former], ids[voter]);
    cluster.start(voter).await;
    register.write(&cluster, &[former, voter]).await;
    if restart {
        for at in [former, voter] {
            cluster.crash(at).await;
        }
    }
    cluster.net.heal();
    if restart {
        for at in [former, voter] {
            cluster.start(at).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    if restart {
        register.read(&cluster).await;
        register.judge();
    }
    cluster.agree_on(&["before".to_owned()]).await;
    register.read(&cluster).await;
    register.judge();
}

#[test]
fn a_vote_that_is_not_synced_is_found() {
    let flaw = Some(Flaw::VoteNotSynced);
    for seed in 0..5 {
        paused(forgotten_vote(seed, None, false)).unwrap();
    }
    let played = |seed| paused(forgotten_vote(seed, flaw, false)).err();
    let found = (0..20).find_map(|seed| Some((seed, played(seed)?)));
    let (seed, wrong) = found.expect("a forgotten vote goes unnoticed");
    println!("{flaw:?} is found by history {}: {wrong}", seed + 1);
}

#[test]
fn a_vote_that_is_not_synced_is_seen_by_clients() {
    for seed in 0..5 {
        paused(forgotten_vote(seed, None, true)).unwrap();
    }
    let flaw = Flaw::VoteNotSynced;
    loss::is_seen(flaw, 40, |seed| forgotten_vote(seed, Some(flaw), true));
}
