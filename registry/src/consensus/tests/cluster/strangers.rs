//! What a server that is broken, or none of ours, may say without harm.

use super::*;
use crate::{
    log::{Entry, LogId, Membership, Payload, Vote},
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
