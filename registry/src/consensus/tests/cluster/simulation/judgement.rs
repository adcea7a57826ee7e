//! What has to hold in the end.

use std::collections::BTreeSet;

use wharf_tests::{
    Chance,
    history::{Action, contradiction},
    promises,
};

use super::{
    super::{super::*, machines::Cluster},
    KEYS,
    agents::Agent,
    clients::{Shared, Watch, key, now},
};

/// Panics with what is wrong. Everything is healed, and clients have ended.
pub(super) async fn judge(
    cluster: &mut Cluster,
    shared: &Shared,
    watches: &[Watch],
    agents: &[Agent],
    chance: &mut Chance,
) {
    let nobody: [String; 0] = [];
    assert_eq!(cluster.ended(), nobody, "servers ended by themselves");
    without_strangers(cluster).await;
    for (at, _) in cluster.running() {
        for number in 0..KEYS {
            let called = now();
            let key = key(number);
            let read = async {
                loop {
                    let read = shared.read(cluster.host(at), &key, Consistency::Consistent);
                    if let Some(value) = read.await {
                        return value;
                    }
                    // It may not have heard of the leader yet.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let read = tokio::time::timeout(Duration::from_secs(10), read).await;
            let value = read.expect("a healed server answers");
            shared.add(number, Action::Read(value), called);
        }
    }
    for (number, history) in shared.histories.lock().unwrap().iter() {
        if let Some(operation) = contradiction(history) {
            panic!("no order explains the history of key {number} at {operation:?}");
        }
    }
    watches_keep_their_promises(cluster, watches, chance).await;
    let leader = cluster.at(cluster.leader().await);
    for agent in agents {
        agent
            .judge(leader)
            .await
            .unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    cluster.agree_on(&[]).await;
}

/// Waits until those that came or went are in, or out, and ends those that are out.
async fn without_strangers(cluster: &mut Cluster) {
    let settled = async {
        loop {
            let leader = cluster.at(cluster.leader().await);
            let members = leader.members();
            if members.iter().all(|member| member.voter) {
                break members.iter().map(|member| member.id).collect();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(120), settled).await;
    let members: BTreeSet<ServerId> = settled.expect("learners get their vote");
    for at in 0..cluster.machines.len() {
        if !members.contains(&cluster.machines[at].id) {
            cluster.crash(at).await;
        }
    }
}

async fn watches_keep_their_promises(cluster: &Cluster, watches: &[Watch], chance: &mut Chance) {
    let attached: BTreeSet<_> = cluster.running().map(|(_, server)| server.id()).collect();
    // Changes close to each other, and then none for a while: a watch that missed one has nothing to wake it.
    for round in 0..10 {
        let leader = cluster.host(cluster.leader().await).clone();
        for number in 0..KEYS {
            for burst in 0..3 {
                let set = set(&key(number), &(1_000_000 + round * 10 + burst).to_string());
                let consensus = leader.consensus.clone();
                leader
                    .process
                    .spawn(async move { consensus.propose(&set).await });
                tokio::time::sleep(chance.millis(0, 5)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        for watch in watches {
            let seen = watch.seen();
            // Of a server that went its watchers learn nothing more.
            let gone = watch.at.process.is_killed() || !attached.contains(&watch.at.consensus.id());
            let gap = match gone {
                true => Ok(()),
                false => promises::without_gap(&watch.holds(), &seen),
            };
            let kept = [
                gap,
                promises::without_duplicates(&seen),
                promises::index_grows(&seen),
            ];
            for kept in kept {
                kept.unwrap_or_else(|broken| panic!("a watch of key {}: {broken}", watch.number));
            }
        }
    }
}
