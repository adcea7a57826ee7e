//! Several servers.

mod disks;
mod faults;
mod machines;
mod net;
mod simulation;
mod strangers;

use std::collections::BTreeSet;

use self::machines::{Cluster, server_id};
use super::*;

fn voters(consensus: &Consensus) -> BTreeSet<ServerId> {
    let members = consensus.members().into_iter();
    members.filter(|m| m.voter).map(|m| m.id).collect()
}

/// Waits until the cluster has these voters and no other members.
async fn settled(consensus: &Consensus, expected: &[u128]) {
    let expected: BTreeSet<_> = expected.iter().map(|n| server_id(*n)).collect();
    let settled = async {
        while voters(consensus) != expected || consensus.members().len() != expected.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled)
        .await
        .unwrap_or_else(|_| panic!("{:?}", consensus.members()));
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_on_every_server() {
    for count in [3, 5] {
        let cluster = Cluster::founded(count).await;
        let mut keys = Vec::new();
        for n in 0..50 {
            keys.push(format!("key-{n}"));
            assert!(cluster.write(&keys[n]).await);
        }
        cluster.agree_on(&keys).await;
        let leader = cluster.leader().await;
        for (at, consensus) in cluster.running() {
            assert_eq!(consensus.is_leader(), at == leader);
            assert_eq!(consensus.leader(), cluster.at(leader).leader());
            assert_eq!(consensus.peers().len(), count as usize);
            assert_eq!(consensus.cluster(), Some(ClusterId(server_id(1).0)));
            assert!(consensus.last_contact().unwrap() < Duration::from_secs(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_says_who_leads_and_waits_for_an_index() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let refused = cluster.at(follower).propose(&set("a", "1")).await;
    let Err(ProposeError::NotLeader { leader: named }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(named, cluster.at(leader).leader().unwrap());
    let refused = cluster
        .at(follower)
        .read_barrier(Consistency::Default)
        .await;
    assert_eq!(refused, Err(ReadError::NotLeader { leader: named }));

    // What a forwarded write and read do.
    let command = set("a", "1").encode();
    let (index, _) = cluster.at(leader).propose_encoded(command).await.unwrap();
    for consistency in [Consistency::Default, Consistency::Consistent] {
        let needed = cluster.at(leader).read_index(consistency).await.unwrap();
        assert!(needed >= index);
        cluster.at(follower).wait_applied(needed).await.unwrap();
        assert!(cluster.at(follower).registry().view().kv("a").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_is_replaced_within_seconds_and_serves_nothing_fresh() {
    let cluster = Cluster::founded(3).await;
    assert!(cluster.write("before").await);
    let old = cluster.leader().await;
    let rest: Vec<_> = (0..3)
        .filter(|at| *at != old)
        .map(|at| cluster.machines[at].id)
        .collect();
    cluster.net.partition(&[cluster.machines[old].id], &rest);
    let cut = tokio::time::Instant::now();
    // While its lease lasts it may still take a write, whose outcome it cannot know.
    let lost = {
        let consensus = cluster.at(old).clone();
        tokio::spawn(async move { consensus.propose(&set("lost", "v")).await })
    };
    let new = cluster.leader_but(old).await;
    assert!(
        cut.elapsed() < Duration::from_millis(2500),
        "{:?}",
        cut.elapsed()
    );
    assert!(cluster.write("after").await);

    let cut_off = cluster.at(old);
    cut_off.read_barrier(Consistency::Stale).await.unwrap();
    // It does not claim to lead either, soon after.
    let mut changes = cut_off.leader_changes();
    let leaderless = changes.wait_for(Option::is_none);
    tokio::time::timeout(Duration::from_secs(2), leaderless)
        .await
        .unwrap()
        .unwrap();
    // What it has is as old as its quorum.
    let (seen, ago) = (cut_off.last_contact().unwrap(), cut.elapsed());
    assert!(
        !seen.is_zero() && seen <= ago + Duration::from_millis(200),
        "{seen:?} {ago:?}"
    );
    for consistency in [Consistency::Default, Consistency::Consistent] {
        let refused = cut_off.read_barrier(consistency).await.unwrap_err();
        assert!(
            matches!(refused, ReadError::NoQuorum | ReadError::NoLeader),
            "{refused:?}"
        );
    }
    assert!(cut_off.registry().view().kv("after").is_none());
    assert_eq!(
        cut_off.propose(&set("refused", "v")).await,
        Err(ProposeError::NoLeader)
    );

    cluster.net.heal();
    assert_eq!(lost.await.unwrap(), Err(ProposeError::OutcomeUnknown));
    cluster.agree_on(&["before".into(), "after".into()]).await;
    assert_eq!(cluster.leader().await, new, "nobody was deposed");
    let view = cluster.at(old).registry().view();
    assert!(view.kv("lost").is_none() && view.kv("refused").is_none());
}

/// A follower that forgot in a restart whom it follows could help another to the leadership while the lease of
/// the first one lasts.
#[tokio::test(start_paused = true)]
async fn a_restart_breaks_no_lease() {
    for restart_after in [300, 700, 1100] {
        let mut cluster = Cluster::founded(3).await;
        let leader = cluster.leader().await;
        let (cut, restarted) = ((leader + 1) % 3, (leader + 2) % 3);
        let ids = [cluster.machines[leader].id, cluster.machines[cut].id];
        cluster.net.partition(&ids[..1], &ids[1..]);
        tokio::time::sleep(Duration::from_millis(restart_after)).await;
        // It has just acknowledged the leader, and does not hear it any more.
        let ids = [cluster.machines[leader].id, cluster.machines[restarted].id];
        cluster.net.partition(&ids[..1], &ids[1..]);
        cluster.crash(restarted).await;
        cluster.start(restarted).await;
        let (old, others) = (cluster.at(leader), [cut, restarted]);
        let lead = async |at: usize| {
            let read = cluster.at(at).read_index(Consistency::Default).await;
            read.is_ok()
        };
        for _ in 0..200 {
            if old.read_index(Consistency::Default).await.is_ok() {
                for other in others {
                    assert!(!lead(other).await, "{restart_after}: two lead");
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.net.heal();
        cluster.agree_on(&[]).await;
    }
}

/// What a leader's lease depends on is that its followers are there, not that their disks are fast.
#[tokio::test(start_paused = true)]
async fn stalled_disks_of_followers_cost_no_lease() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    for at in followers {
        cluster.machines[at].log.set(super::faults::Fault::Stall);
    }
    let waiting = {
        let consensus = cluster.at(leader).clone();
        tokio::spawn(async move { consensus.propose(&set("slow", "v")).await })
    };
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let read = cluster.at(leader).read_index(Consistency::Default).await;
        assert!(read.is_ok(), "{read:?}");
        assert!(cluster.at(leader).is_leader());
    }
    assert!(!waiting.is_finished(), "without a quorum of disks");
    for at in followers {
        cluster.machines[at].log.release();
    }
    assert_eq!(waiting.await.unwrap(), Ok(Outcome::Applied(true)));
    cluster.agree_on(&["slow".into()]).await;
}

/// Servers that are left without a majority say that there is no leader, until there is one again.
#[tokio::test(start_paused = true)]
async fn a_minority_knows_no_leader() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.crash((leader + 2) % 3).await;
    assert!(cluster.write("two are enough").await);
    cluster.crash(leader).await;
    let alone = cluster.at(follower).clone();
    let mut changes = alone.leader_changes();
    let lost = changes.wait_for(Option::is_none);
    tokio::time::timeout(Duration::from_secs(2), lost)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        alone.propose(&set("refused", "v")).await,
        Err(ProposeError::NoLeader)
    );
    cluster.start(leader).await;
    cluster.agree_on(&["two are enough".into()]).await;
}

/// A server that cannot hear the leader, while the others can, must not depose it.
#[tokio::test(start_paused = true)]
async fn one_that_hears_nothing_deposes_nobody() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let term = stat(cluster.at(leader), "term");
    let deaf = cluster.machines[(leader + 1) % 3].id;
    cluster.net.cut_one_way(cluster.machines[leader].id, deaf);
    for n in 0..20 {
        assert!(cluster.write(&format!("key-{n}")).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(cluster.leader().await, leader);
    cluster.net.heal();
    cluster.agree_on(&["key-19".into()]).await;
    assert_eq!(stat(cluster.at(leader), "term"), term);
}

/// The old leader reaches one follower, which reaches the rest: openraft #2080.
#[tokio::test(start_paused = true)]
async fn a_bridge_between_two_halves_does_not_stop_the_cluster() {
    let cluster = Cluster::founded(5).await;
    let leader = cluster.leader().await;
    let others: Vec<_> = (0..5)
        .filter(|at| *at != leader)
        .map(|at| cluster.machines[at].id)
        .collect();
    cluster
        .net
        .partition(&[cluster.machines[leader].id], &others[1..]);
    cluster.leader_but(leader).await;
    assert!(cluster.write("across").await);
    cluster.net.heal();
    cluster.agree_on(&["across".into()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_joins_by_snapshot_and_gets_a_vote_when_it_has_the_log() {
    let mut cluster = Cluster::empty();
    cluster.snapshots = SnapshotPolicy {
        entries: 100,
        ..SnapshotPolicy::default()
    };
    cluster.add(1, "s0", "a0").await;
    let own = (cluster.machines[0].id, cluster.machines[0].server.clone());
    cluster.at(0).found([own].into()).await.unwrap();
    cluster.leader().await;
    let mut keys = Vec::new();
    for n in 0..500 {
        keys.push(format!("key-{n}"));
        assert!(cluster.write(&keys[n]).await);
    }
    purged_after(cluster.at(0), 0).await;

    for number in 1..3 {
        let at = cluster
            .add(number + 1, &format!("s{number}"), &format!("a{number}"))
            .await;
        let server = cluster.machines[at].server.clone();
        cluster
            .at(0)
            .admit(cluster.machines[at].id, server)
            .await
            .unwrap();
    }
    settled(cluster.at(0), &[1, 2, 3]).await;
    cluster.agree_on(&keys).await;
    assert_ne!(stat(cluster.at(1), "last_snapshot_index"), "0");
    // The first one is not needed any more.
    cluster.crash(0).await;
    keys.push("without the founder".to_owned());
    assert!(cluster.write(&keys[500]).await);
    cluster.agree_on(&keys).await;
}

/// The state takes longer to be sent than the log takes to grow by several snapshots.
#[tokio::test(start_paused = true)]
async fn who_gets_a_snapshot_slowly_finds_the_log_after_it() {
    let mut cluster = Cluster::empty();
    cluster.snapshots = SnapshotPolicy {
        entries: 100,
        ..SnapshotPolicy::default()
    };
    let mut cluster = cluster.found(3).await;
    let leader = cluster.leader().await;
    let slow = (leader + 1) % 3;
    cluster.crash(slow).await;
    let mut keys = Vec::new();
    for n in 0..400 {
        keys.push(format!("key-{n}"));
        assert!(cluster.write(&keys[n]).await);
    }
    purged_after(cluster.at(leader), 100).await;
    cluster.net.slow_snapshots(Duration::from_secs(10));
    cluster.start(slow).await;
    for n in 400..2_000 {
        keys.push(format!("key-{n}"));
        assert!(cluster.write(&keys[n]).await);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let consensus = cluster.at(leader);
    let last = consensus.registry().view().log_index();
    let caught_up = cluster.at(slow).wait_applied(last);
    tokio::time::timeout(Duration::from_secs(1), caught_up)
        .await
        .expect("it is always behind")
        .unwrap();
    assert_eq!(cluster.net.snapshots(), 1);
    // It is not kept for longer than that takes.
    let purged = consensus.inner.log.state().purged.unwrap().index;
    assert!(last - purged < 400, "{purged} of {last}");
    cluster.agree_on(&keys).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_data_takes_its_place_under_another_id() {
    let mut cluster = Cluster::founded(3).await;
    assert!(cluster.write("a").await);
    let leader = cluster.leader().await;
    let wiped = (leader + 1) % 3;
    let rest = (leader + 2) % 3;
    cluster.crash(wiped).await;
    assert!(cluster.write("b").await);
    let Server { name, address } = cluster.machines[wiped].server.clone();
    let at = cluster.add(9, &name, &address).await;
    // What was meant for the former server at this address is not for this one.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        (cluster.at(at).cluster(), cluster.at(at).has_log()),
        (None, false)
    );

    let server = cluster.machines[at].server.clone();
    cluster
        .at(leader)
        .admit(server_id(9), server)
        .await
        .unwrap();
    settled(
        cluster.at(leader),
        &[leader as u128 + 1, rest as u128 + 1, 9],
    )
    .await;
    cluster.agree_on(&["a".into(), "b".into()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_moved_is_found_again() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let moved = (leader + 1) % 3;
    cluster.crash(moved).await;
    cluster.machines[moved].server.address = "elsewhere".to_owned();
    cluster.start(moved).await;
    let machine = &cluster.machines[moved];
    let admit = async || {
        let server = machine.server.clone();
        cluster.at(leader).admit(machine.id, server).await
    };
    // It was heard a moment ago, where it was: this could be a copy of it.
    let refused = admit().await;
    assert!(
        matches!(refused, Err(MembershipError::IdTaken { .. })),
        "{refused:?}"
    );
    let admitted = async {
        while admit().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), admitted)
        .await
        .unwrap();
    cluster.agree_on(&[]).await;
    assert!(cluster.at(leader).peers().contains(&"elsewhere".to_owned()));
    // A leader that moved says so itself.
    cluster.crash(leader).await;
    cluster.machines[leader].server.address = "far away".to_owned();
    cluster.start(leader).await;
    let new = cluster.leader().await;
    if new != leader {
        let machine = &cluster.machines[leader];
        cluster
            .at(new)
            .admit(machine.id, machine.server.clone())
            .await
            .unwrap();
    }
    let moved = async {
        while !cluster.at(new).peers().contains(&"far away".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved)
        .await
        .unwrap();
    cluster.agree_on(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn names_are_not_taken_from_the_living() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let at = cluster.add(9, "s1", "elsewhere").await;
    let server = cluster.machines[at].server.clone();
    let refused = cluster
        .at(leader)
        .admit(server_id(9), server)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, MembershipError::NameTaken { .. }),
        "{refused}"
    );
    let follower = (leader + 1) % 3;
    let refused = cluster.at(follower).remove(server_id(1)).await.unwrap_err();
    assert!(
        matches!(refused, MembershipError::NotLeader { .. }),
        "{refused}"
    );
}

/// What the members are called, as this server knows them.
fn names(consensus: &Consensus) -> BTreeSet<String> {
    let members = consensus.members().into_iter();
    members.map(|member| member.name).collect()
}

/// A server is started again under the name of another one.
#[tokio::test(start_paused = true)]
async fn nor_do_members_take_them_from_each_other() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let all = names(cluster.at(leader));
    let taken = cluster.machines[other].server.name.clone();
    cluster.crash(one).await;
    cluster.machines[one].server.name = taken.clone();
    cluster.start(one).await;
    let machine = &cluster.machines[one];
    let admit = async |consensus: &Consensus| {
        let server = machine.server.clone();
        consensus.admit(machine.id, server).await
    };
    let refused = admit(cluster.at(leader)).await.unwrap_err();
    assert!(
        matches!(&refused, MembershipError::NameTaken { name, .. } if *name == taken),
        "{refused}"
    );
    assert_eq!(names(cluster.at(leader)), all);
}

#[tokio::test(start_paused = true)]
async fn nor_does_a_leader() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let all = names(cluster.at(leader));
    cluster.crash(one).await;
    cluster.machines[one].server.name = cluster.machines[other].server.name.clone();
    cluster.start(one).await;
    let machine = &cluster.machines[one];
    let handed = async {
        loop {
            let leader = cluster.leader().await;
            if leader == one {
                return;
            }
            // It may not have caught up yet, and then somebody else is elected.
            let _ = cluster.at(leader).hand_over(Some(machine.id)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), handed)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.at(one).is_leader());
    assert_eq!(names(cluster.at(one)), all);
}

/// Whoever knows the name of the cluster may ask, under any name and for any address.
#[tokio::test(start_paused = true)]
async fn who_asks_to_be_let_in_has_to_be_where_it_says() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let consensus = cluster.at(leader);
    let follower = &cluster.machines[(leader + 1) % 3];
    let ghost = |address: &str| Server {
        name: "ghost".into(),
        address: address.into(),
    };
    for address in ["nowhere", &follower.server.address] {
        let refused = consensus.admit(server_id(9), ghost(address)).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, MembershipError::NotThere { id, .. } if *id == server_id(9)),
            "{refused}"
        );
    }
    // Nor is a member sent elsewhere that is where it was.
    let refused = consensus.admit(follower.id, ghost("nowhere")).await;
    assert!(matches!(refused, Err(MembershipError::IdTaken { .. })));
    assert_eq!(consensus.members().len(), 3);
    cluster.agree_on(&[]).await;
}

/// Each learner costs, and those that never become voters are not to become ever more.
#[tokio::test(start_paused = true)]
async fn so_many_wait_for_a_vote_and_no_more() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let consensus = cluster.at(leader).clone();
    // From now on nobody has a vote at once.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let mut waiting = 0;
    let (last, refused) = loop {
        let number = waiting + 100;
        let at = cluster
            .add(number, &format!("s{number}"), &format!("a{number}"))
            .await;
        let server = cluster.machines[at].server.clone();
        let admitted = consensus.admit(server_id(number), server).await;
        match admitted {
            Ok(()) => cluster.crash(at).await,
            Err(refused) => break (at, refused),
        }
        waiting += 1;
        assert!(waiting < 100, "{waiting} were let in");
    };
    let expected = MembershipError::TooManyLearners(waiting as usize);
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("remove-peer"));
    assert!(cluster.write("it goes on").await);
    // When they are given up, there is room again.
    let machine = &cluster.machines[last];
    let admitted = async {
        while consensus
            .admit(machine.id, machine.server.clone())
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), admitted)
        .await
        .unwrap();
    assert_eq!(cluster.leader().await, leader, "nobody was deposed");
}

#[tokio::test(start_paused = true)]
async fn a_learner_that_is_gone_is_forgotten_although_leaders_change() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let at = cluster.add(9, "s9", "a9").await;
    let server = cluster.machines[at].server.clone();
    let admitted = cluster.at(leader).admit(server_id(9), server).await;
    admitted.unwrap();
    cluster.crash(at).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(12)).await;
        let leader = cluster.leader().await;
        cluster.at(leader).hand_over(None).await.unwrap();
    }
    let leader = cluster.at(cluster.leader().await);
    assert_eq!(leader.members().len(), 3, "{:?}", leader.members());
}

#[tokio::test(start_paused = true)]
async fn servers_are_removed_as_long_as_a_majority_is_alive() {
    let mut cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = |at: usize| server_id(at as u128 + 1);
    let consensus = cluster.at(leader).clone();
    cluster.crash(dead).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let refused = consensus.remove(id(alive)).await.unwrap_err();
    assert!(
        matches!(refused, MembershipError::NoMajority(_)),
        "{refused}"
    );
    consensus.remove(id(dead)).await.unwrap();
    settled(&consensus, &[leader as u128 + 1, alive as u128 + 1]).await;
    let unknown = consensus.remove(id(dead)).await.unwrap_err();
    assert!(
        matches!(unknown, MembershipError::UnknownServer(_)),
        "{unknown}"
    );
    consensus.remove(id(alive)).await.unwrap();
    let refused = consensus.remove(id(leader)).await.unwrap_err();
    assert!(
        matches!(refused, MembershipError::LastVoter(_)),
        "{refused}"
    );
    assert!(cluster.write("alone").await);
}

/// Each of them alone would leave two of three; both would leave one of two.
#[tokio::test(start_paused = true)]
async fn removals_at_once_leave_a_majority() {
    let mut cluster = Cluster::founded(4).await;
    let leader = cluster.leader().await;
    let [dead, one, other] = [1, 2, 3].map(|n| (leader + n) % 4);
    let id = |at: usize| cluster.machines[at].id;
    let [one, other] = [one, other].map(id);
    let consensus = cluster.at(leader).clone();
    cluster.crash(dead).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let removed = tokio::join!(consensus.remove(one), consensus.remove(other));
    let refused = match removed {
        (Ok(()), Err(refused)) | (Err(refused), Ok(())) => refused,
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(refused, MembershipError::NoMajority(_)),
        "{refused}"
    );
    assert_eq!(voters(&consensus).len(), 3);
    assert!(cluster.write("a majority is left").await);
    assert!(consensus.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_leader_hands_over_and_a_removed_one_ends_as_nobody() {
    let cluster = Cluster::founded(3).await;
    let old = cluster.leader().await;
    let heir = (old + 1) % 3;
    let before = tokio::time::Instant::now();
    let leader = cluster
        .at(old)
        .hand_over(Some(cluster.machines[heir].id))
        .await
        .unwrap();
    assert_eq!(leader.name, format!("s{heir}"));
    assert!(
        before.elapsed() < Timings::lan().election_max,
        "{:?}",
        before.elapsed()
    );
    assert_eq!(cluster.leader().await, heir);
    // To whoever has most.
    let next = cluster.at(heir).hand_over(None).await.unwrap();
    assert_ne!(next.name, format!("s{heir}"));
    let next = cluster.leader().await;
    // One that is to be taken out hands over first.
    let id = cluster.machines[next].id;
    let Err(MembershipError::NotLeader { leader }) = cluster.at(next).remove(id).await else {
        panic!("it took itself out");
    };
    let last = cluster.leader_but(next).await;
    assert_eq!(leader.name, format!("s{last}"));
    cluster.at(last).remove(id).await.unwrap();
    assert!(cluster.write("two left").await);
    assert_eq!(voters(cluster.at(last)).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn two_clusters_that_meet_stay_two() {
    let mut one = Cluster::founded(1).await;
    // The same network, another founder.
    one.add(7, "other", "b0").await;
    let own = (one.machines[1].id, one.machines[1].server.clone());
    one.at(1).found([own].into()).await.unwrap();
    while !one.at(1).is_leader() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (first, second) = (one.at(0).clone(), one.at(1).clone());
    let server = one.machines[1].server.clone();
    first.admit(server_id(7), server).await.unwrap();
    second.propose(&set("theirs", "v")).await.unwrap();
    first.propose(&set("ours", "v")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    // It stays a learner that nobody reaches.
    assert_eq!(voters(&first), [server_id(1)].into());
    assert_eq!(second.cluster(), Some(ClusterId(server_id(7).0)));
    assert!(second.registry().view().kv("ours").is_none());
    assert!(first.registry().view().kv("theirs").is_none());
    assert!(second.is_leader() && first.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_server_promises_once() {
    let mut cluster = Cluster::empty();
    cluster.add(1, "s0", "a0").await;
    let server = cluster.at(0);
    server.promise(server_id(2)).unwrap();
    server.promise(server_id(2)).unwrap();
    let refused = server.promise(server_id(3)).unwrap_err();
    assert!(matches!(
        refused,
        FoundError::Misdirected(Misdirected::OtherCluster { .. })
    ));
    let own = (cluster.machines[0].id, cluster.machines[0].server.clone());
    assert!(server.found([own.clone()].into()).await.is_err());
    server.withdraw_promise().unwrap();
    server.found([own].into()).await.unwrap();
    assert_eq!(server.promise(server_id(2)), Err(FoundError::HasLog));
}
