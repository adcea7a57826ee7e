//! Disks that stall or are full under some of several servers.

use super::{
    super::faults::{Fault, small_writes_pass_large_ones},
    machines::DISK,
    *,
};

/// Longer than a leader waits for its disk before it looks for an heir.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    fn fill(&self, at: usize, free: u64) {
        self.machines[at].free.store(free, Ordering::Relaxed);
    }

    /// A write at this server alone.
    async fn write_at(&self, at: usize, key: &str) -> Result<Outcome, ProposeError> {
        self.at(at).propose(&set(key, "v")).await
    }
}

#[tokio::test(start_paused = true)]
async fn on_slow_disks_small_writes_pass_large_ones() {
    let cluster = Cluster::founded(3).await;
    for machine in &cluster.machines {
        machine.log.set(Fault::Slow(17 << 10));
    }
    let leader = cluster.leader().await;
    small_writes_pass_large_ones(cluster.at(leader)).await;
    cluster.agree_on(&["small-49".to_owned()]).await;
}

/// What waits for its turn when the leader is cut off was not done, and that is said: it may be tried elsewhere.
#[tokio::test(start_paused = true)]
async fn whose_turn_has_not_come_when_the_leader_is_lost_has_done_nothing() {
    let cluster = Cluster::founded(3).await;
    let old = cluster.leader().await;
    let ids: Vec<_> = cluster.machines.iter().map(|machine| machine.id).collect();
    let rest: Vec<_> = ids.iter().copied().filter(|id| *id != ids[old]).collect();
    cluster.net.partition(&ids[old..=old], &rest);
    let value = "v".repeat(512 << 10);
    let proposals: Vec<_> = (0..20)
        .map(|number| {
            let (leader, command) = (cluster.at(old).clone(), set(&format!("{number}"), &value));
            tokio::spawn(async move { leader.propose(&command).await })
        })
        .collect();
    let mut unknown = Vec::new();
    for (number, proposal) in proposals.into_iter().enumerate() {
        match proposal.await.unwrap() {
            Err(ProposeError::OutcomeUnknown) => unknown.push(number),
            Err(ProposeError::NoLeader | ProposeError::NotLeader { .. }) => {}
            other => panic!("{number}: {other:?}"),
        }
    }
    // What the log was given, in the order of arrival.
    assert_eq!(unknown, [0, 1, 2]);
    cluster.leader_but(old).await;
    cluster.net.heal();
    cluster.agree_on(&[]).await;
    let view = cluster.at(old).registry().view();
    assert!((0..20).all(|number| view.kv(&number.to_string()).is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_stalls_hands_over() {
    let cluster = Cluster::founded(3).await;
    let old = cluster.leader().await;
    // The others have said how their disks are.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.machines[old].log.set(Fault::Stall);
    let began = tokio::time::Instant::now();
    // It commits all the same: the disks of the others are a quorum.
    let mut keys = vec!["without its disk".to_owned()];
    assert!(cluster.write(&keys[0]).await);
    let new = cluster.leader_but(old).await;
    let after = began.elapsed();
    assert!(
        after >= PATIENCE && after < PATIENCE + Duration::from_secs(1),
        "{after:?}"
    );
    for n in 0..20 {
        keys.push(format!("key-{n}"));
        assert!(cluster.write(&keys[n + 1]).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(cluster.at(new).is_leader(), "it stays where it went");
    cluster.machines[old].log.release();
    cluster.agree_on(&keys).await;
    assert!(cluster.at(new).is_leader());
}

#[tokio::test(start_paused = true)]
async fn where_all_disks_are_slow_the_leader_stays() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let term = stat(cluster.at(leader), "term");
    for round in 0..8 {
        for machine in &cluster.machines {
            machine.log.set(Fault::Stall);
        }
        let key = format!("key-{round}");
        let writing = {
            let consensus = cluster.at(leader).clone();
            tokio::spawn(async move { consensus.propose(&set(&key, "v")).await })
        };
        tokio::time::sleep(PATIENCE * 2).await;
        // The followers first: for a moment only the leader looks slow.
        for at in [1, 2, 0].map(|n| (leader + n) % 3) {
            cluster.machines[at].log.release();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        assert_eq!(writing.await.unwrap(), Ok(Outcome::Applied(true)));
        assert!(cluster.at(leader).is_leader());
    }
    assert_eq!(stat(cluster.at(leader), "term"), term);
}

#[tokio::test(start_paused = true)]
async fn a_full_leader_hands_over_and_a_full_follower_waits_for_room() {
    let mut cluster = Cluster::founded(3).await;
    let old = cluster.leader().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.fill(old, 20 << 20);
    let new = cluster.leader_but(old).await;
    let mut keys = vec!["a".to_owned()];
    assert!(cluster.write("a").await);
    // What is kept back is enough to follow.
    cluster.agree_on(&keys).await;
    assert!(cluster.at(new).is_leader());

    // Not even that is left. The others go on, also through a change of the leader.
    cluster.fill(old, 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let third = 3 - old - new;
    for n in 0..20 {
        keys.push(format!("key-{n}"));
        assert!(cluster.write(&keys[n + 1]).await);
    }
    cluster
        .at(new)
        .hand_over(Some(cluster.machines[third].id))
        .await
        .unwrap();
    assert!(cluster.write("b").await);
    keys.push("b".to_owned());
    // Not so long that it counts as dead.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let behind = cluster.at(old).registry().view();
    assert!(behind.kv("key-0").is_none(), "it took no entries");
    // The log cannot be written: whoever tries ends the server, which the tests do not survive.
    cluster.machines[old].log.set(Fault::Write);
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.machines[old].log.release();
    // Without a quorum of disks it gives no vote and stands for nothing.
    cluster.crash(third).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let refused = cluster.write_at(new, "refused").await;
    assert_eq!(refused, Err(ProposeError::NoLeader));

    cluster.fill(old, DISK);
    cluster.agree_on(&keys).await;
    cluster.start(third).await;
    cluster.agree_on(&keys).await;
}

#[tokio::test(start_paused = true)]
async fn where_all_disks_are_full_nothing_is_written_and_reads_go_on() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    assert!(cluster.write("before").await);
    for at in 0..3 {
        cluster.fill(at, 30 << 20);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cluster.at(leader).is_leader(), "there is nobody better");
    let refused = cluster.write_at(leader, "refused").await;
    let Err(ProposeError::DiskFull(full)) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!((full.free, full.reserve), (30 << 20, 64 << 20));
    cluster
        .at(leader)
        .read_barrier(Consistency::Consistent)
        .await
        .unwrap();
    assert!(cluster.at(leader).registry().view().kv("before").is_some());
    let members = cluster.at(leader).members();
    assert!(members.iter().all(|member| member.disk == DiskState::Full));
    for at in 0..3 {
        cluster.fill(at, DISK);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.agree_on(&["before".into()]).await;
    assert!(cluster.at(leader).registry().view().kv("refused").is_none());
}
