//! The receiving side: what other servers say, checked before the consensus acts on it.
//!
//! Whatever arrives may come from a broken or hostile program. The core of the consensus takes its peers
//! at their word and panics where they contradict the protocol, so everything that can be judged from the
//! message alone, or from what this server has committed, is judged here, and refused with the reason.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, future, stream};
use openraft::{
    async_runtime::watch::WatchReceiver as _,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest,
        VoteRequest as RaftVoteRequest,
    },
};

use super::{
    Append, AppendReply, BoxStream, Consensus, Election, Envelope, HandOver, HeartbeatReply, Inner,
    Misdirected, VoteReply, VoteRequest,
    raft::{self, TypeConfig},
    runtime,
};
use crate::{
    log::{Entry, LogId, Membership, Payload, ServerId, Vote},
    snapshot::{Snapshot, SnapshotError},
};

/// No honest cluster comes this far: a term a microsecond is nine years.
const MAX_TERM: u64 = 1 << 48;
const MAX_INDEX: u64 = 1 << 56;
/// How far another server may be ahead of this one: days of elections without an end, five years of a hundred thousand
/// entries a second. A message that is believed sets a mark that everybody has to pass, and there must be no end to
/// reach by a few of them.
const TERMS_AHEAD: u64 = 1 << 20;
const ENTRIES_AHEAD: u64 = 1 << 44;
/// Servers of a cluster, learners included.
pub(super) const MAX_SERVERS: usize = 256;
/// A node name or `host:port`: DNS names have at most 255 bytes.
const MAX_NAME: usize = 512;
/// Entries of one message.
const MAX_ENTRIES: usize = 16_384;

/// Why a message of another server was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    #[error("another snapshot is being received")]
    Busy,
    #[error("a newer leader sends its snapshot")]
    Displaced,
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the disk of this server is full")]
    DiskFull,
    #[error("the server is shutting down")]
    ShuttingDown,
}

type Checked<T> = Result<T, ReceiveError>;

fn require(condition: bool, otherwise: &'static str) -> Checked<()> {
    condition
        .then_some(())
        .ok_or(ReceiveError::Malformed(otherwise))
}

impl Consensus {
    /// Whether a message with this envelope concerns this server. To be asked before anything else is
    /// done with it. Blocks for a moment when the server takes the name of its first cluster.
    pub fn check_envelope(&self, envelope: &Envelope) -> Result<(), Misdirected> {
        self.inner.identity.check(envelope)
    }

    pub async fn receive_vote(&self, from: ServerId, request: VoteRequest) -> Checked<VoteReply> {
        check_candidate(&request, from, self.inner.horizon())?;
        // Before it went down this server may have acknowledged a leader that counts on it still.
        if request.election != Election::HandOver {
            runtime::sleep_until(self.inner.votes_from).await;
        }
        let space = &self.inner.disk.space;
        space.admit_vote().map_err(|_| ReceiveError::DiskFull)?;
        let raft = &self.inner.raft;
        let rpc = RaftVoteRequest {
            vote: raft::raft_vote(request.vote),
            last_log_id: request.last.map(raft::raft_log_id),
            leadership_transfer: request.election == Election::HandOver,
        };
        let reply = match request.election {
            Election::Probe => raft.pre_vote(rpc).await,
            Election::Campaign | Election::HandOver => raft.vote(rpc).await,
        };
        let reply = reply.map_err(|_| ReceiveError::ShuttingDown)?;
        Ok(VoteReply {
            vote: raft::vote(&reply.vote),
            granted: reply.vote_granted,
            last: reply.last_log_id.as_ref().map(raft::log_id),
        })
    }

    pub async fn receive_heartbeat(
        &self,
        from: ServerId,
        request: Append,
    ) -> Checked<HeartbeatReply> {
        // It is answered before the disk has what came with it.
        require(request.entries.is_empty(), "a heartbeat with entries")?;
        let raft = &self.inner.raft;
        let vote = raft::raft_vote(request.vote);
        // A new leader's vote is written down.
        let known = raft.server_metrics().borrow_watched().vote == vote;
        if !known {
            self.inner.admit(&request)?;
        }
        let append = raft.append_entries(self.inner.raft_append(request, from)?);
        // The answer of the core waits for what the log is writing. That this server follows, and will vote for
        // nobody else for a while, is true as soon as the core has read the message; a leader whose followers
        // have slow disks keeps its lease. The question comes after the message, in one queue.
        let follows = raft.with_raft_state(move |state| *state.vote_ref() == vote);
        tokio::pin!(append, follows);
        let reply = tokio::select! {
            biased;
            reply = &mut append => {
                // It comes at once, and the core takes one that nobody waits for any more for an error.
                let _ = follows.await;
                reply
            }
            follows = &mut follows => match follows {
                Ok(true) => Ok(AppendEntriesResponse::Success),
                Ok(false) => append.await,
                Err(_) => return Err(ReceiveError::ShuttingDown),
            },
        };
        let reply = reply.map_err(|_| ReceiveError::ShuttingDown)?;
        let reply = match reply {
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
                AppendReply::Accepted
            }
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(raft::vote(&vote)),
        };
        self.inner.heard(reply);
        Ok(HeartbeatReply {
            append: reply,
            disk: self.inner.disk.state(),
        })
    }

    /// Takes requests as they come and answers each, in order, when it is durable. The first that is
    /// malformed ends the stream.
    pub fn receive_append(
        &self,
        from: ServerId,
        requests: BoxStream<Append>,
    ) -> BoxStream<Checked<AppendReply>> {
        let failure = Arc::new(Mutex::new(None));
        let failed = failure.clone();
        let inner = self.inner.clone();
        let requests = requests
            .map(move |request| {
                inner.admit(&request)?;
                inner.raft_append(request, from)
            })
            .scan((), move |(), request| {
                future::ready(match request {
                    Ok(request) => Some(request),
                    Err(error) => {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        None
                    }
                })
            });
        let inner = self.inner.clone();
        let replies = self.inner.raft.stream_append(requests).map(move |reply| {
            let reply = match reply {
                Ok(Ok(_)) => AppendReply::Accepted,
                Ok(Err(StreamAppendError::Conflict(_))) => AppendReply::Conflict,
                Ok(Err(StreamAppendError::HigherVote(vote))) => {
                    AppendReply::HigherVote(raft::vote(&vote))
                }
                Err(_) => return Err(ReceiveError::ShuttingDown),
            };
            inner.heard(reply);
            Ok(reply)
        });
        let malformed = stream::once(async move {
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.take().map(Err)
        });
        Box::pin(replies.chain(malformed.filter_map(future::ready)))
    }

    /// Reads a snapshot to its end, verifies it, and makes it this server's state. Nothing has changed
    /// if it turns out to be cut short or damaged. Of one that leads no more nothing is read.
    ///
    /// The input is read by a thread that waits for it: whoever feeds it ends it when this returns.
    pub async fn receive_snapshot(
        &self,
        from: ServerId,
        vote: Vote,
        input: impl Read + Send + 'static,
    ) -> Checked<Vote> {
        let horizon = self.inner.horizon();
        check_leader(vote, from, self.inner.id, horizon)?;
        let own = self.inner.raft.server_metrics().borrow_watched().vote;
        let raft_vote = raft::raft_vote(vote);
        if raft_vote < own {
            return Ok(raft::vote(&own));
        }
        let snapshots = self.inner.snapshots.clone();
        let turn = snapshots.receiving.begin(raft_vote);
        let mut turn = turn.ok_or(ReceiveError::Busy)?;
        let reading = runtime::spawn_blocking(move || snapshots.store.receive(input));
        let received = tokio::select! {
            received = reading => received,
            () = turn.is_over() => return Err(ReceiveError::Displaced),
        };
        drop(turn);
        let snapshot = received.map_err(|_| ReceiveError::ShuttingDown)??;
        self.check_snapshot(&snapshot, vote, horizon)?;
        // It is written once more, under its name; a failure there would be the end of this server.
        let room = self
            .inner
            .disk
            .space
            .admit_snapshot(snapshot.size().map_err(SnapshotError::from)?);
        room.map_err(|_| ReceiveError::DiskFull)?;
        let snapshot = super::machine::raft_snapshot(snapshot).map_err(|_| {
            ReceiveError::Malformed("a snapshot whose members contradict each other")
        })?;
        self.inner.contact.made();
        let reply = self
            .inner
            .raft
            .install_full_snapshot(raft_vote, snapshot)
            .await
            .map_err(|_| ReceiveError::ShuttingDown)?;
        self.inner.contact.made();
        Ok(raft::vote(&reply.vote))
    }

    pub async fn receive_hand_over(&self, from: ServerId, request: HandOver) -> Checked<()> {
        let horizon = self.inner.horizon();
        check_leader(request.vote, from, self.inner.id, horizon)?;
        check_position(request.last, request.vote, horizon)?;
        let rpc = TransferLeaderRequest::new(
            raft::raft_vote(request.vote),
            request.to,
            request.last.map(raft::raft_log_id),
        );
        match self.inner.raft.handle_transfer_leader(rpc).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::info!(%error, "the leadership is not taken over");
                Ok(())
            }
            Err(_) => Err(ReceiveError::ShuttingDown),
        }
    }

    /// What the core would panic at.
    fn check_snapshot(&self, snapshot: &Snapshot, vote: Vote, horizon: Horizon) -> Checked<()> {
        let meta = snapshot.meta();
        let last = meta
            .last
            .ok_or(ReceiveError::Malformed("a snapshot of nothing"))?;
        check_position(Some(last), vote, horizon)?;
        check_position(meta.membership_id, vote, horizon)?;
        check_membership(&meta.membership)?;
        let committed = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.local_committed.as_ref().map(raft::log_id)
        };
        match committed {
            Some(committed) if last > committed => require(
                last.index > committed.index,
                "a snapshot that contradicts what is committed here",
            ),
            _ => Ok(()),
        }
    }
}

/// Where terms and indexes of others end, as this server sees it.
#[derive(Clone, Copy, Debug)]
struct Horizon {
    term: u64,
    index: u64,
}

impl Horizon {
    /// Seen from this term, and this end of the log. One that was never in a term has nothing to compare with.
    fn from(term: u64, last: u64) -> Horizon {
        Horizon {
            term: match term {
                0 => MAX_TERM,
                term => MAX_TERM.min(term.saturating_add(TERMS_AHEAD)),
            },
            index: MAX_INDEX.min(last.saturating_add(ENTRIES_AHEAD)),
        }
    }
}

/// The vote that another server answers with to one who is in `term`.
pub(super) fn check_answered_vote(vote: Vote, term: u64) -> Checked<Vote> {
    let horizon = Horizon::from(term, 0);
    require(vote.term < horizon.term, "a term beyond all reason")?;
    Ok(vote)
}

impl Inner {
    fn horizon(&self) -> Horizon {
        let term = self.raft.server_metrics();
        let term = term.borrow_watched().vote.leader_id.term;
        let last = self.raft.data_metrics();
        let last = last.borrow_watched().last_log;
        Horizon::from(term, last.map_or(0, |last| last.index))
    }

    fn raft_append(
        &self,
        request: Append,
        from: ServerId,
    ) -> Checked<AppendEntriesRequest<TypeConfig>> {
        check_append(&request, from, self.id, self.horizon())?;
        let entries: io::Result<Vec<_>> =
            request.entries.into_iter().map(raft::raft_entry).collect();
        Ok(AppendEntriesRequest {
            vote: raft::raft_vote(request.vote),
            prev_log_id: request.previous.map(raft::raft_log_id),
            leader_commit: request.committed.map(raft::raft_log_id),
            entries: entries
                .map_err(|_| ReceiveError::Malformed("members that contradict each other"))?,
        })
    }

    /// Whether the disk has room for it. What it has none for is not begun: the leader tries again, and this
    /// server is behind until then.
    fn admit(&self, request: &Append) -> Checked<()> {
        let bytes = request.entries.iter().map(Entry::size).sum();
        let admitted = match bytes {
            0 => self.disk.space.admit_vote(),
            _ => {
                let waiting = self.disk.flushes.bytes();
                self.disk.space.admit_entries(waiting, bytes)
            }
        };
        admitted.map_err(|_| ReceiveError::DiskFull)
    }

    /// Whoever is told of a higher vote leads no more.
    fn heard(&self, reply: AppendReply) {
        if !matches!(reply, AppendReply::HigherVote(_)) {
            self.contact.made();
        }
    }
}

fn check_vote(vote: Vote, from: ServerId, horizon: Horizon) -> Checked<()> {
    require(vote.term < horizon.term, "a term beyond all reason")?;
    require(
        vote.candidate == from,
        "a vote in the name of another server",
    )
}

fn check_leader(vote: Vote, from: ServerId, own: ServerId, horizon: Horizon) -> Checked<()> {
    check_vote(vote, from, horizon)?;
    require(from != own, "a leader of the name of this server")?;
    require(vote.granted, "the sender was not elected")
}

fn check_candidate(request: &VoteRequest, from: ServerId, horizon: Horizon) -> Checked<()> {
    check_vote(request.vote, from, horizon)?;
    require(!request.vote.granted, "a candidate that is elected already")?;
    match request.last {
        None => Ok(()),
        Some(last) => {
            require(last.index < horizon.index, "an index beyond all reason")?;
            require(
                last.term <= request.vote.term,
                "a log from after the term of its owner",
            )
        }
    }
}

/// A leader has nothing in its log from after its own term.
fn check_position(id: Option<LogId>, vote: Vote, horizon: Horizon) -> Checked<()> {
    let Some(id) = id else {
        return Ok(());
    };
    require(id.index < horizon.index, "an index beyond all reason")?;
    require(
        (id.term, id.leader) <= (vote.term, vote.candidate),
        "a log from after the term of its leader",
    )
}

fn check_append(request: &Append, from: ServerId, own: ServerId, horizon: Horizon) -> Checked<()> {
    check_leader(request.vote, from, own, horizon)?;
    check_position(request.previous, request.vote, horizon)?;
    check_position(request.committed, request.vote, horizon)?;
    require(request.entries.len() <= MAX_ENTRIES, "too many entries")?;
    let mut before = request.previous;
    for Entry { id, payload } in &request.entries {
        check_position(Some(*id), request.vote, horizon)?;
        let expected = before.map_or(0, |before| before.index + 1);
        require(id.index == expected, "entries that are not in a row")?;
        if let Some(before) = before {
            require(
                (id.term, id.leader) >= (before.term, before.leader),
                "entries whose terms go back",
            )?;
        }
        if let Payload::Membership(membership) = payload {
            check_membership(membership)?;
        }
        before = Some(*id);
    }
    Ok(())
}

fn check_membership(membership: &Membership) -> Checked<()> {
    require(membership.servers.len() <= MAX_SERVERS, "too many servers")?;
    let named = membership
        .servers
        .values()
        .all(|server| server.name.len() <= MAX_NAME && server.address.len() <= MAX_NAME);
    require(named, "a name or an address that is too long")?;
    require(
        (1..=2).contains(&membership.voters.len()),
        "a membership without voters, or with too many sets of them",
    )?;
    let known = membership
        .voters
        .iter()
        .all(|set| !set.is_empty() && set.iter().all(|id| membership.servers.contains_key(id)));
    require(known, "voters that nobody knows")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::log::Server;

    fn server(id: u128) -> ServerId {
        ServerId(Uuid::from_u128(id))
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term,
            leader: server(1),
            index,
        }
    }

    fn vote(term: u64, granted: bool) -> Vote {
        Vote {
            term,
            candidate: server(1),
            granted,
        }
    }

    fn append(previous: Option<LogId>, ids: &[LogId]) -> Append {
        Append {
            vote: vote(5, true),
            previous,
            committed: previous,
            entries: ids
                .iter()
                .map(|id| Entry {
                    id: *id,
                    payload: Payload::Blank,
                })
                .collect(),
        }
    }

    /// Of a server in term 4.
    fn check(request: &Append, from: ServerId, own: ServerId) -> Checked<()> {
        check_append(request, from, own, Horizon::from(4, 9))
    }

    fn refusal(request: &Append) -> String {
        check(request, server(1), server(2))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_leader_is_who_it_says_and_was_elected() {
        let good = append(Some(id(4, 9)), &[id(4, 10), id(5, 11)]);
        check(&good, server(1), server(2)).unwrap();
        check(&append(None, &[id(1, 0)]), server(1), server(2)).unwrap();
        assert!(check(&good, server(3), server(2)).is_err());
        assert!(check(&good, server(1), server(1)).is_err());
        let candidate = Append {
            vote: vote(5, false),
            ..good.clone()
        };
        assert!(refusal(&candidate).contains("was not elected"));
        for term in [u64::MAX, MAX_TERM - 1, 4 + TERMS_AHEAD] {
            let absurd = Append {
                vote: vote(term, true),
                ..good.clone()
            };
            assert!(refusal(&absurd).contains("term beyond"));
        }
        let far = Append {
            vote: vote(3 + TERMS_AHEAD, true),
            ..good
        };
        check(&far, server(1), server(2)).unwrap();
    }

    #[test]
    fn who_was_never_in_a_term_believes_more() {
        let far = append(None, &[]);
        let far = Append {
            vote: vote(MAX_TERM - 1, true),
            ..far
        };
        let check = |term| check_append(&far, server(1), server(2), Horizon::from(term, 0));
        check(0).unwrap();
        check(1).unwrap_err();
        check(MAX_TERM - 2).unwrap();
    }

    #[test]
    fn entries_are_in_a_row_and_within_the_leaders_term() {
        let cases = [
            (append(Some(id(4, 9)), &[id(4, 11)]), "not in a row"),
            (append(None, &[id(4, 1)]), "not in a row"),
            (append(Some(id(4, 9)), &[id(3, 10)]), "go back"),
            (append(Some(id(4, 9)), &[id(6, 10)]), "from after the term"),
            (append(Some(id(6, 9)), &[]), "from after the term"),
            (append(Some(id(4, u64::MAX)), &[]), "index beyond"),
            (append(Some(id(4, 9 + ENTRIES_AHEAD)), &[]), "index beyond"),
        ];
        for (request, expected) in cases {
            let refusal = refusal(&request);
            assert!(refusal.contains(expected), "{request:?}: {refusal}");
        }
    }

    #[test]
    fn memberships_that_contradict_themselves_are_refused() {
        let one = BTreeMap::from([(server(1), Server::default())]);
        let good = Membership {
            voters: vec![BTreeSet::from([server(1)])],
            servers: one.clone(),
        };
        check_membership(&good).unwrap();
        let cases = [
            (vec![], one.clone()),
            (vec![BTreeSet::new()], one.clone()),
            (vec![BTreeSet::from([server(2)])], one.clone()),
            (vec![BTreeSet::from([server(1)]); 3], one),
            (
                vec![BTreeSet::from([server(1)])],
                BTreeMap::from([(
                    server(1),
                    Server {
                        name: "n".repeat(600),
                        address: String::new(),
                    },
                )]),
            ),
        ];
        for (voters, servers) in cases {
            let membership = Membership { voters, servers };
            assert!(check_membership(&membership).is_err(), "{membership:?}");
        }
    }

    proptest! {
        /// Whatever passes is what the core takes without a panic.
        #[test]
        fn what_is_taken_is_in_order(
            previous in prop::option::of((0..4u64, 0..4u64)),
            ids in prop::collection::vec((0..7u64, 0..6u64), 0..4),
        ) {
            let previous = previous.map(|(term, index)| id(term, index));
            let ids: Vec<LogId> = ids.into_iter().map(|(term, index)| id(term, index)).collect();
            if check(&append(previous, &ids), server(1), server(2)).is_ok() {
                let all: Vec<LogId> = previous.into_iter().chain(ids).collect();
                let in_order = all.windows(2).all(|pair| {
                    pair[0].index + 1 == pair[1].index && pair[0].term <= pair[1].term
                });
                prop_assert!(in_order);
                prop_assert!(all.iter().all(|id| id.term <= 5));
            }
        }
    }
}
