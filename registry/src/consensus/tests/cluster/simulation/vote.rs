//! A vote that is forgotten takes a history of its own: a vote, a crash before anything else is written, and the former
//! leader. Random ones rarely come by.

use wharf_tests::Chance;

use super::{
    super::{super::lossy::Flaw, *},
    Disks, paused,
};

/// A server votes for another, crashes before it hears more of it, and meets the former leader. If it has forgotten
/// its vote, it helps that one to acknowledge what the new leader has never heard of.
async fn forgotten_vote(seed: u64, flaw: Option<Flaw>) {
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    cluster.disks = Some(Disks {
        chance: Chance::new(seed),
        flaw: flaw.map(|flaw| (flaw, None)),
    });
    let mut cluster = cluster.found(3).await;
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
    let between = set("between", "v");
    let acknowledged = async {
        loop {
            for at in [former, voter] {
                let proposed = cluster.at(at).propose(&between);
                let proposed = tokio::time::timeout(Duration::from_secs(1), proposed).await;
                if let Ok(Ok(_)) = proposed {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let acknowledged = tokio::time::timeout(Duration::from_secs(60), acknowledged).await;
    assert!(acknowledged.is_ok(), "two of three do not get on");
    cluster.net.heal();
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster
        .agree_on(&["before".to_owned(), "between".to_owned()])
        .await;
}

#[test]
fn a_vote_that_is_not_synced_is_found() {
    let flaw = Some(Flaw::VoteNotSynced);
    for seed in 0..5 {
        paused(forgotten_vote(seed, None)).unwrap();
    }
    let found = (0..20).find_map(|seed| Some((seed, paused(forgotten_vote(seed, flaw)).err()?)));
    let (seed, wrong) = found.expect("a forgotten vote goes unnoticed");
    println!("{flaw:?} is found by history {}: {wrong}", seed + 1);
}
