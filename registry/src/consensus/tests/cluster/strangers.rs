//! What a server that is broken, or none of ours, may say without harm.

use std::io::{self, Read};

use tokio::sync::mpsc;

use super::*;
use crate::{
    log::{Entry, LogId, Membership, Payload, Vote},
    pieces,
    snapshot::{Snapshot, SnapshotMeta},
};

fn elected(term: u64, candidate: ServerId) -> Vote {
    Vote {
        term,
        candidate,
        granted: true,
    }
}

fn heartbeat(vote: Vote) -> Append {
    Append {
        vote,
        previous: None,
        committed: None,
        entries: Vec::new(),
    }
}

/// A snapshot of an empty state, at this place of the log.
fn snapshot_at(last: LogId) -> Snapshot {
    let meta = SnapshotMeta {
        last: Some(last),
        membership: Membership {
            voters: vec![[last.leader].into()],
            servers: [(last.leader, Server::default())].into(),
        },
        membership_id: Some(last),
    };
    let store = SnapshotStore::in_memory();
    store.write(&meta, std::iter::empty()).unwrap()
}

#[track_caller]
fn assert_malformed<T: std::fmt::Debug>(answer: Result<T, ReceiveError>) {
    assert!(
        matches!(answer, Err(ReceiveError::Malformed(_))),
        "{answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn terms_and_indexes_out_of_all_proportion_move_nobody() {
    let cluster = Cluster::founded(3).await;
    assert!(cluster.write("before").await);
    let leader = cluster.leader().await;
    let (term, id) = (cluster.at(leader).term(), cluster.machines[leader].id);
    let follower = cluster.at((leader + 1) % 3);

    let stranger = server_id(9);
    let far = (1 << 48) - 1;
    let beat = heartbeat(elected(far, stranger));
    assert_malformed(follower.receive_heartbeat(stranger, beat).await);
    let vote = Vote {
        granted: false,
        ..elected(far, stranger)
    };
    for election in [Election::Probe, Election::Campaign, Election::HandOver] {
        let last = None;
        let request = VoteRequest {
            vote,
            last,
            election,
        };
        assert_malformed(follower.receive_vote(stranger, request).await);
    }

    // In the name of the leader.
    let vote = elected(term, id);
    let last = LogId {
        term,
        leader: id,
        index: 1 << 55,
    };
    let beat = Append {
        previous: Some(last),
        ..heartbeat(vote)
    };
    assert_malformed(follower.receive_heartbeat(id, beat).await);
    let snapshot = snapshot_at(last).bytes();
    assert_malformed(follower.receive_snapshot(id, vote, snapshot).await);

    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.at(leader).term(), term);
    cluster.agree_on(&["before".into()]).await;
}

/// What a heartbeat brings is acknowledged before the disk has it.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_brings_no_entries() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let (term, id) = (cluster.at(leader).term(), cluster.machines[leader].id);
    let follower = cluster.at((leader + 1) % 3);
    let index = follower.registry().view().log_index();
    let at = |index| LogId {
        term,
        leader: id,
        index,
    };
    let beat = Append {
        previous: Some(at(index)),
        entries: vec![Entry {
            id: at(index + 1),
            payload: Payload::Command(set("a", "v").encode()),
        }],
        ..heartbeat(elected(term, id))
    };
    assert_malformed(follower.receive_heartbeat(id, beat).await);
    cluster.agree_on(&[]).await;
}

struct Unread;

impl Read for Unread {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("it is read");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_of_the_snapshot_of_one_that_leads_no_more() {
    let cluster = Cluster::founded(3).await;
    let leader = cluster.leader().await;
    let stranger = server_id(9);
    let answer = cluster.at((leader + 1) % 3);
    let answer = answer
        .receive_snapshot(stranger, elected(0, stranger), Unread)
        .await
        .unwrap();
    assert_eq!(answer.term, cluster.at(leader).term());
    assert_eq!(answer.candidate, cluster.machines[leader].id);
}

/// Otherwise one that sends nothing would keep all others from sending theirs. A thread waits here, so time has to pass.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_of_a_newer_leader_takes_the_place_of_one_that_is_coming() {
    let mut cluster = Cluster::empty();
    let at = cluster.add(1, "s0", "a0").await;
    let here = cluster.at(at).clone();
    let last = |term| LogId {
        term,
        leader: server_id(8),
        index: 7,
    };
    let (slow, parts) = mpsc::channel(1);
    let first = {
        let here = here.clone();
        let parts = pieces::from_channel(parts);
        let vote = elected(3, server_id(9));
        tokio::spawn(async move { here.receive_snapshot(server_id(9), vote, parts).await })
    };
    // It is being received once this has been read.
    let begin = bytes::Bytes::from_static(b"WHARFSNP");
    slow.send(Ok(begin.clone())).await.unwrap();
    slow.send(Ok(bytes::Bytes::new())).await.unwrap();
    for (term, from) in [(2, 8), (3, 9)] {
        let from = server_id(from);
        let busy = here
            .receive_snapshot(from, elected(term, from), Unread)
            .await;
        assert!(matches!(busy, Err(ReceiveError::Busy)), "{busy:?}");
    }
    let newer = elected(4, server_id(8));
    let snapshot = snapshot_at(last(4)).bytes();
    let installed = here.receive_snapshot(server_id(8), newer, snapshot).await;
    assert_eq!(installed.unwrap(), newer);
    let displaced = first.await.unwrap();
    assert!(
        matches!(displaced, Err(ReceiveError::Displaced)),
        "{displaced:?}"
    );
    drop(slow);
    // The way is free again.
    let newest = elected(5, server_id(8));
    let snapshot = snapshot_at(LogId {
        index: 9,
        ..last(5)
    });
    let installed = here.receive_snapshot(server_id(8), newest, snapshot.bytes());
    assert_eq!(installed.await.unwrap(), newest);
}

/// A heartbeat is answered before the vote of its leader is on the disk. Who lost that vote in a power cut, and with it
/// everything but the name of its cluster, has given a lease all the same.
#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_first_vote_waits_for_the_lease_it_may_have_given() {
    let mut cluster = Cluster::empty();
    let lease = Timings::lan().election_max;
    for (at, told) in [(0, false), (1, true)] {
        let id = server_id(at as u128 + 5);
        cluster
            .add(at as u128 + 5, &format!("s{at}"), &format!("a{at}"))
            .await;
        if told {
            let envelope = Envelope {
                cluster: ClusterId(server_id(1).0),
                from: server_id(1),
                to: id,
            };
            cluster.at(at).check_envelope(&envelope).unwrap();
        }
        cluster.crash(at).await;
        let started = tokio::time::Instant::now();
        cluster.start(at).await;
        let request = VoteRequest {
            vote: Vote {
                granted: false,
                ..elected(1, server_id(1))
            },
            last: None,
            election: Election::Campaign,
        };
        let voted = cluster.at(at).receive_vote(server_id(1), request);
        assert!(voted.await.unwrap().granted);
        assert_eq!(started.elapsed() >= lease, told, "{:?}", started.elapsed());
    }
}
