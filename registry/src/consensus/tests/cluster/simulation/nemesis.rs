//! What goes wrong.

use wharf_tests::Chance;

use super::{
    super::{super::*, machines::Cluster, voters},
    MOST_SERVERS,
    agents::Agent,
    any,
};

/// How long one step may take to come about: a vote, a change of the members.
const WITHIN: Duration = Duration::from_secs(4);

/// Does one thing, and undoes none.
pub(super) async fn strike(
    cluster: &mut Cluster,
    agents: &[Agent],
    chance: &mut Chance,
    next_id: &mut u128,
) {
    let running: Vec<usize> = cluster.running().map(|(at, _)| at).collect();
    let ids: Vec<ServerId> = cluster.machines.iter().map(|m| m.id).collect();
    let leader = cluster
        .running()
        .find(|(_, server)| server.is_leader())
        .map(|(at, _)| at);
    let Some(one) = any(chance, running.clone()) else {
        return;
    };
    let leading = leader.unwrap_or(one);
    let others =
        |at: usize| -> Vec<ServerId> { ids.iter().copied().filter(|id| *id != ids[at]).collect() };
    cluster.net.let_wait(chance.below(2) == 0);
    let fault = chance.below(20);
    let net = cluster.net.clone();
    net.note(|| format!("fault {fault} of {one}, leader {leader:?}"));
    match fault {
        0 => cluster.crash(one).await,
        1 => cluster.crash(leading).await,
        2 => {
            for at in running {
                cluster.crash(at).await;
            }
        }
        3 => net.partition(&[ids[one]], &others(one)),
        4 => net.partition(&[ids[leading]], &others(leading)),
        5 => {
            let split = 1 + usize::try_from(chance.below(ids.len() as u64 - 1)).unwrap();
            net.partition(&ids[..split], &ids[split..]);
        }
        // The leader reaches one, which reaches the rest.
        6 => net.partition(&[ids[leading]], &others(leading)[1..]),
        7 => others(one)
            .into_iter()
            .for_each(|other| net.cut_one_way(other, ids[one])),
        8 => net.lose_one_of(chance.below(1 << 40), 4 + chance.below(20)),
        9 => net.delay(chance.below(1 << 40)),
        10 => vote_and_crash(cluster, leading).await,
        11 if cluster.machines.len() < MOST_SERVERS => {
            *next_id += 1;
            let name = format!("s{next_id}");
            let at = cluster.add(*next_id, &name, &format!("a{next_id}")).await;
            let (id, server) = (cluster.machines[at].id, cluster.machines[at].server.clone());
            if leader.is_some() {
                let host = cluster.host(leading).clone();
                let admitted = host.process.run(host.consensus.admit(id, server));
                // It may take longer, or not succeed: then it is no member in the end.
                let _ = tokio::time::timeout(WITHIN, admitted).await;
            }
        }
        12 if leader.is_some() && leading != one && voters(cluster.at(leading)).len() > 3 => {
            let host = cluster.host(leading).clone();
            let removed = host.process.run(host.consensus.remove(ids[one]));
            let _ = tokio::time::timeout(WITHIN, removed).await;
        }
        13 => cluster.host(one).process.stop(),
        14 => cluster.host(leading).process.stop(),
        15 => stop_for_an_election(cluster, chance, leading).await,
        16 => running
            .into_iter()
            .filter(|_| chance.below(2) == 0)
            .for_each(|at| cluster.host(at).process.stop()),
        // An agent does not hear one server, or no server it.
        17 => {
            let at = any(chance, agents.iter().collect()).map_or(ids[one], |agent| agent.id);
            match chance.below(2) {
                0 => net.cut_one_way(ids[one], at),
                _ => ids.iter().for_each(|id| net.cut_one_way(at, *id)),
            }
        }
        // The heir may be stopped, and find out later that it is to lead.
        19 if leader.is_some() && leading != one => {
            let host = cluster.host(leading).clone();
            let heir = ids[one];
            let consensus = host.consensus.clone();
            host.process
                .spawn(async move { consensus.hand_over(Some(heir)).await });
            if chance.below(2) == 0 {
                tokio::time::sleep(chance.millis(0, 3)).await;
                cluster.host(one).process.stop();
            }
        }
        18 => agents
            .iter()
            .filter(|_| chance.below(2) == 0)
            .for_each(|agent| agent.process.stop()),
        _ => {}
    }
}

/// Whoever votes next does so, and crashes before it hears of what it voted for; the former leader is back before the
/// new one.
async fn vote_and_crash(cluster: &mut Cluster, former: usize) {
    let ids: Vec<ServerId> = cluster.machines.iter().map(|m| m.id).collect();
    let others: Vec<ServerId> = ids
        .iter()
        .copied()
        .filter(|id| *id != ids[former])
        .collect();
    cluster.net.cut_next_voter();
    cluster.net.partition(&[ids[former]], &others);
    let Ok(voter) = tokio::time::timeout(WITHIN, cluster.net.cut_voter()).await else {
        return;
    };
    let at = ids.iter().position(|id| *id == voter).unwrap();
    cluster.crash(at).await;
    for other in others {
        cluster.net.heal_between(ids[former], other);
    }
    cluster.start(at).await;
}

/// The leader is stopped until there is another one, and goes on with what it was asked meanwhile.
async fn stop_for_an_election(cluster: &mut Cluster, chance: &mut Chance, leading: usize) {
    cluster.host(leading).process.stop();
    let replaced = async {
        let others = |(at, server): (usize, &Consensus)| at != leading && server.is_leader();
        while !cluster.running().any(others) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(WITHIN, replaced).await;
    tokio::time::sleep(chance.millis(100, 1500)).await;
    cluster.host(leading).process.go_on();
}

/// Undoes all of it.
pub(super) async fn heal(cluster: &mut Cluster, agents: &[Agent]) {
    cluster.net.note(|| "healed".to_owned());
    cluster.net.heal();
    agents.iter().for_each(|agent| agent.process.go_on());
    for at in 0..cluster.machines.len() {
        if cluster.runs(at) {
            cluster.host(at).process.go_on();
        } else {
            cluster.start(at).await;
        }
    }
}
