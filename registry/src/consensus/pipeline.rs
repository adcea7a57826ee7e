//! One stream of append requests to a peer, and what the answers mean.
//!
//! While the first request is on its way to a disk, the next ones follow, up to [`IN_FLIGHT`]. Answers come in order, so
//! what one means is known from the request that it belongs to; a peer cannot claim to have what it was not sent.
//!
//! openraft notes the time at which it hands out a request, and takes an answer up to some entry for the answer to every
//! request that it has handed out by then and that ends there or before. A request without entries, which tells what is
//! committed, ends where the one before it ended: the answer to that one would renew the leader's lease as of a time at
//! which the peer may long have voted for another. Hence two rules. An answer is held back while a request that ends at
//! the same entry has none, because the answer to that one says as much and more. And requests are taken by whoever
//! takes the answers, never between one that is given to openraft and what openraft makes of it.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _, future, stream};
use openraft::{
    OptionalSend,
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep},
};

use super::{
    Append, AppendReply, BoxStream, TransportError,
    network::{answered_vote, broken, rpc_error},
    raft::{self, RaftLogId, RaftVote, TypeConfig},
};
use crate::log::Entry;

/// What may be on its way to one peer without an answer, in bytes: enough to keep a fast link and a slow
/// disk busy, and little enough to hold in memory on both sides. One larger request goes alone.
const IN_FLIGHT: usize = 8 << 20;
/// Counted for a request beside its entries, so that empty ones are bounded too.
const REQUEST_OVERHEAD: usize = 64 << 10;
/// How long the oldest request may be without an answer before the stream is given up: an fsync on the
/// other side may take seconds, and a connection whose other end is gone breaks by itself before.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// A request without an answer: the range of the log that it covers, and its share of what may be in flight.
struct Pending {
    vote: RaftVote,
    previous: Option<RaftLogId>,
    last: Option<RaftLogId>,
    size: usize,
    taken: Instant,
}

/// The requests that were taken from openraft and have no answer, oldest first.
pub(super) struct Requests {
    pending: VecDeque<Pending>,
    /// What the pending ones that were sent have in bytes.
    in_flight: usize,
    /// The newest one, while there is no room for it.
    waiting: Option<Append>,
    /// `None`: there are no more.
    to_peer: Option<mpsc::UnboundedSender<Append>>,
}

impl Requests {
    /// With what the transport is to send; it has no more than [`IN_FLIGHT`] to hold.
    pub(super) fn new() -> (Requests, BoxStream<Append>) {
        let (to_peer, mut requests) = mpsc::unbounded_channel();
        let own = Requests {
            pending: VecDeque::new(),
            in_flight: 0,
            waiting: None,
            to_peer: Some(to_peer),
        };
        let requests = stream::poll_fn(move |context| requests.poll_recv(context));
        (own, Box::pin(requests))
    }

    /// Takes one over, and sends it if there is room.
    pub(super) fn take(&mut self, request: AppendEntriesRequest<TypeConfig>) {
        let (vote, previous) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        let request = own_append(request);
        let size = request.entries.iter().map(Entry::size).sum::<usize>() + REQUEST_OVERHEAD;
        self.pending.push_back(Pending {
            vote,
            previous,
            last: last.or(previous),
            size,
            taken: Instant::now(),
        });
        self.waiting = Some(request);
        self.send();
    }

    fn send(&mut self) {
        let Some(newest) = self.pending.back() else {
            return;
        };
        let has_room = self.in_flight == 0 || self.in_flight + newest.size <= IN_FLIGHT;
        if has_room && let Some(request) = self.waiting.take() {
            self.in_flight += newest.size;
            if let Some(to_peer) = &self.to_peer {
                // If nobody takes it any more, the answers end too.
                let _ = to_peer.send(request);
            }
        }
    }

    /// What an answer means, which is to the oldest one. `None`: the next answer says it.
    fn answered(&mut self, reply: AppendReply) -> Option<Answer> {
        let is_sent = self.pending.len() > usize::from(self.waiting.is_some());
        let oldest = match is_sent {
            true => self.pending.pop_front(),
            false => None,
        };
        let Some(oldest) = oldest else {
            return Some(Err(broken("an answer to nothing")));
        };
        self.in_flight -= oldest.size;
        self.send();
        Some(match reply {
            AppendReply::Accepted => {
                let next = self.pending.front();
                if next.is_some_and(|next| next.last == oldest.last) {
                    return None;
                }
                Ok(Ok(oldest.last))
            }
            AppendReply::Conflict => match oldest.previous {
                Some(previous) => Ok(Err(StreamAppendError::Conflict(previous))),
                None => Err(broken("a conflict before the beginning of the log")),
            },
            AppendReply::HigherVote(vote) => match answered_vote(vote, &oldest.vote) {
                Ok(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
                Err(error) => Err(error),
            },
        })
    }

    /// There are no more: the peer is told that the stream ends.
    fn end(&mut self) {
        self.to_peer = None;
    }

    fn waits_since(&self) -> Option<Instant> {
        Some(self.pending.front()?.taken)
    }
}

pub(super) fn own_append(request: AppendEntriesRequest<TypeConfig>) -> Append {
    Append {
        vote: raft::vote(&request.vote),
        previous: request.prev_log_id.as_ref().map(raft::log_id),
        committed: request.leader_commit.as_ref().map(raft::log_id),
        entries: request.entries.into_iter().map(raft::entry).collect(),
    }
}

/// The answers in openraft's terms, and while they are asked for, `input` on its way to the peer after what was taken
/// already. They end with the first error, and when the oldest request waits too long.
pub(super) fn answers<'s>(
    requests: Requests,
    input: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    replies: BoxStream<Result<AppendReply, TransportError>>,
) -> openraft::base::BoxStream<'s, Answer> {
    let pipeline = Pipeline {
        requests,
        input: Some(input),
        replies,
        heard: Instant::now(),
        patience: Box::pin(tokio::time::sleep(ANSWER_WITHIN)),
    };
    Box::pin(stream::unfold(Some(pipeline), |pipeline| async move {
        let mut pipeline = pipeline?;
        let answer = pipeline.answer().await?;
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(pipeline)))
    }))
}

struct Pipeline<S> {
    requests: Requests,
    /// `None`: it has ended.
    input: Option<S>,
    replies: BoxStream<Result<AppendReply, TransportError>>,
    /// When the last reply came.
    heard: Instant,
    /// Set for when there is to be a look at how long the oldest request waits.
    patience: Pin<Box<Sleep>>,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    async fn answer(&mut self) -> Option<Answer> {
        loop {
            let takes = self.requests.waiting.is_none();
            let input = self.input.as_mut().filter(|_| takes);
            tokio::select! {
                biased;
                reply = self.replies.next() => {
                    self.heard = Instant::now();
                    let answer = match reply? {
                        Ok(reply) => self.requests.answered(reply),
                        Err(error) => Some(Err(rpc_error(error))),
                    };
                    if answer.is_some() {
                        return answer;
                    }
                }
                request = next(input) => match request {
                    Some(request) => self.requests.take(request),
                    None => {
                        self.input = None;
                        self.requests.end();
                    }
                },
                () = &mut self.patience => {
                    let now = Instant::now();
                    // A quiet leader has nothing to wait for.
                    let since = self.requests.waits_since().map_or(now, |since| since.max(self.heard));
                    if now >= since + ANSWER_WITHIN {
                        return Some(Err(broken("no answer in time")));
                    }
                    self.patience.as_mut().reset(since + ANSWER_WITHIN);
                }
            }
        }
    }
}

/// The next item, or none ever without a stream.
async fn next<S: Stream + Unpin>(stream: Option<&mut S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::log::{LogId, Payload, ServerId, Vote};

    fn id(index: u64) -> LogId {
        LogId {
            term: 1,
            leader: ServerId(Uuid::from_u128(1)),
            index,
        }
    }

    fn request(
        previous: Option<u64>,
        entries: std::ops::Range<u64>,
        size: usize,
    ) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: raft::raft_vote(Vote {
                term: 1,
                candidate: id(0).leader,
                granted: true,
            }),
            prev_log_id: previous.map(id).map(raft::raft_log_id),
            leader_commit: None,
            entries: entries
                .map(|index| {
                    raft::raft_entry(Entry {
                        id: id(index),
                        payload: Payload::Command(vec![0; size].into()),
                    })
                    .unwrap()
                })
                .collect(),
        }
    }

    /// A pipeline whose input and replies a test hands over one by one, and what is sent.
    struct Bench {
        input: mpsc::UnboundedSender<AppendEntriesRequest<TypeConfig>>,
        replies: mpsc::UnboundedSender<Result<AppendReply, TransportError>>,
        to_peer: BoxStream<Append>,
        answers: openraft::base::BoxStream<'static, Answer>,
    }

    impl Bench {
        fn new() -> Bench {
            let (requests, to_peer) = Requests::new();
            let (input, mut taken) = mpsc::unbounded_channel();
            let (replies, mut received) = mpsc::unbounded_channel();
            let input_stream = stream::poll_fn(move |context| taken.poll_recv(context));
            let reply_stream = stream::poll_fn(move |context| received.poll_recv(context));
            Bench {
                input,
                replies,
                to_peer,
                answers: answers(requests, input_stream, Box::pin(reply_stream)),
            }
        }

        fn ask(&self, request: AppendEntriesRequest<TypeConfig>) {
            self.input.send(request).unwrap();
        }

        fn reply(&self, reply: AppendReply) {
            self.replies.send(Ok(reply)).unwrap();
        }

        async fn answer(&mut self) -> Option<Answer> {
            let answer = future::poll_immediate(self.answers.next()).await;
            answer.map(|answer| answer.expect("it has not ended"))
        }

        /// Up to which entry the peer is now known to have the log.
        async fn accepted(&mut self) -> Option<u64> {
            match self.answer().await? {
                Ok(Ok(Some(id))) => Some(raft::log_id(&id).index),
                other => panic!("{other:?}"),
            }
        }

        /// The next answer, or the end, if it comes within so many seconds.
        async fn waits(&mut self, seconds: u64) -> Option<Option<Answer>> {
            let waited = Duration::from_secs(seconds);
            let answer = tokio::time::timeout(waited, self.answers.next()).await;
            answer.ok()
        }

        /// How many requests are on their way that were not before.
        async fn sent(&mut self) -> usize {
            let mut count = 0;
            while let Some(Some(_)) = future::poll_immediate(self.to_peer.next()).await {
                count += 1;
            }
            count
        }
    }

    #[tokio::test]
    async fn answers_mean_what_was_asked() {
        let mut bench = Bench::new();
        bench.ask(request(None, 0..3, 1));
        bench.ask(request(Some(2), 3..5, 1));
        bench.ask(request(Some(7), 8..9, 1));
        assert!(bench.answer().await.is_none());
        assert_eq!(bench.sent().await, 3);
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(2));
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(4));
        bench.reply(AppendReply::Conflict);
        let conflict = bench.answer().await.unwrap().unwrap().unwrap_err();
        assert!(matches!(conflict, StreamAppendError::Conflict(id) if id.index == 7));
        assert!(bench.answers.next().await.is_none(), "a conflict ends it");
    }

    #[tokio::test]
    async fn answers_to_nothing_are_errors() {
        let mut bench = Bench::new();
        bench.reply(AppendReply::Accepted);
        assert!(bench.answer().await.unwrap().is_err());
        let mut bench = Bench::new();
        bench.ask(request(None, 0..1, 1));
        assert!(bench.answer().await.is_none());
        bench.reply(AppendReply::Conflict);
        assert!(bench.answer().await.unwrap().is_err());
    }

    /// openraft would take it for the answer to all of them.
    #[tokio::test]
    async fn an_answer_is_held_back_while_others_end_at_the_same_entry() {
        let mut bench = Bench::new();
        bench.ask(request(None, 0..3, 1));
        bench.ask(request(Some(2), 3..3, 1));
        bench.ask(request(Some(2), 3..3, 1));
        bench.ask(request(Some(2), 3..4, 1));
        assert!(bench.answer().await.is_none());
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, None);
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, None);
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(2));
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(3));
    }

    /// Where another one is taken before openraft has looked at an answer, that answer counts for it.
    #[tokio::test]
    async fn nothing_is_taken_before_an_answer_is_looked_at() {
        let mut bench = Bench::new();
        bench.ask(request(None, 0..3, 1));
        assert!(bench.answer().await.is_none());
        assert_eq!(bench.sent().await, 1);
        bench.reply(AppendReply::Accepted);
        bench.ask(request(Some(2), 3..3, 1));
        assert_eq!(bench.accepted().await, Some(2));
        assert_eq!(bench.sent().await, 0);
        assert!(bench.answer().await.is_none());
        assert_eq!(bench.sent().await, 1);
    }

    #[tokio::test]
    async fn so_much_is_in_flight_and_no_more() {
        let mut bench = Bench::new();
        bench.ask(request(None, 0..1, IN_FLIGHT * 2));
        bench.ask(request(Some(0), 1..2, 1));
        bench.ask(request(Some(1), 2..3, 1));
        assert!(bench.answer().await.is_none());
        assert_eq!(bench.sent().await, 1);
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(0));
        assert!(bench.answer().await.is_none());
        assert_eq!(bench.sent().await, 2);
        bench.reply(AppendReply::Accepted);
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(1));
        assert_eq!(bench.accepted().await, Some(2));
    }

    #[tokio::test]
    async fn the_peer_is_told_of_the_end() {
        let mut bench = Bench::new();
        bench.ask(request(None, 0..1, 1));
        let (never, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut bench.input, never));
        assert!(bench.answer().await.is_none());
        assert!(bench.to_peer.next().await.is_some());
        assert!(bench.to_peer.next().await.is_none());
        bench.reply(AppendReply::Accepted);
        assert_eq!(bench.accepted().await, Some(0), "its answers still come");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_only_where_an_answer_is_due() {
        let mut bench = Bench::new();
        assert!(
            bench.waits(100).await.is_none(),
            "there is nothing to answer"
        );
        bench.ask(request(None, 0..1, 1));
        bench.ask(request(Some(0), 1..2, 1));
        assert!(bench.waits(10).await.is_none());
        bench.reply(AppendReply::Accepted);
        assert!(matches!(bench.waits(0).await, Some(Some(Ok(Ok(_))))));
        assert!(
            bench.waits(14).await.is_none(),
            "it was heard 14 seconds ago"
        );
        assert!(matches!(bench.waits(2).await, Some(Some(Err(_)))));
    }
}
