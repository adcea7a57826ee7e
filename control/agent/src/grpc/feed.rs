//! The sending side of a server stream, with bounds.
//!
//! A stream is fed by one task, a batch at a time. What the task may hold for a client is the batch
//! it has in hand, one that waits, and one that is being sent; while the client does not read, the
//! task waits too, and what happens meanwhile is told as one difference later. A client that reads
//! nothing for longer than the feed's patience is given up: the task ends and frees what it holds,
//! and the client finds `RESOURCE_EXHAUSTED` at the end of what was sent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::status;

/// What a feeding task writes to.
#[derive(Debug)]
pub(super) struct Feed<T> {
    batches: mpsc::Sender<Vec<T>>,
    patience: Duration,
}

impl<T> Feed<T> {
    /// How long a batch may wait.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Hands over a batch as soon as the one before it is being sent.
    ///
    /// # Errors
    ///
    /// The status to end the stream with, when the client does not read.
    pub(super) async fn send(&self, batch: Vec<T>) -> Result<(), Status> {
        match tokio::time::timeout(self.patience, self.batches.send(batch)).await {
            Ok(Ok(())) => Ok(()),
            // The client went, and nobody sees this: the task is about to be dropped.
            Ok(Err(_)) => Err(Status::cancelled("the client went away")),
            Err(_) => Err(status::slow_consumer(self.patience)),
        }
    }
}

/// The stream that a client reads.
#[derive(Debug)]
pub(crate) struct FeedStream<T> {
    batches: mpsc::Receiver<Vec<T>>,
    current: vec::IntoIter<T>,
    end: Option<oneshot::Receiver<Result<(), Status>>>,
}

/// Starts a task of `tracker` that feeds a stream until it returns how the stream ends, or the
/// client goes: then the task is dropped where it waits.
pub(super) fn open<T, F>(
    tracker: &TaskTracker,
    patience: Duration,
    body: impl FnOnce(Feed<T>) -> F,
) -> FeedStream<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (batches, receiver) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let gone = batches.clone();
    let body = body(Feed { batches, patience });
    tracker.spawn(async move {
        tokio::select! {
            ended = body => drop(end.send(ended)),
            () = gone.closed() => {}
        }
    });
    FeedStream {
        batches: receiver,
        current: Vec::new().into_iter(),
        end: Some(ended),
    }
}

impl<T: Unpin> Stream for FeedStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(item) = this.current.next() {
                return Poll::Ready(Some(Ok(item)));
            }
            match ready!(this.batches.poll_recv(cx)) {
                Some(batch) => this.current = batch.into_iter(),
                None => break,
            }
        }
        let Some(end) = &mut this.end else {
            return Poll::Ready(None);
        };
        let ended = ready!(Pin::new(end).poll(cx));
        this.end = None;
        // Without a word only a task ends that panicked.
        let ended = ended.unwrap_or_else(|_| Err(Status::internal("the stream broke off")));
        Poll::Ready(ended.err().map(Err))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tonic::Code;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_was_fed_comes_before_the_end() {
        let tracker = TaskTracker::new();
        let stream = open(&tracker, PATIENCE, |feed| async move {
            feed.send(vec![1, 2]).await.unwrap();
            feed.send(vec![]).await.unwrap();
            feed.send(vec![3]).await.unwrap();
            Err(Status::aborted("enough"))
        });
        let items: Vec<_> = stream
            .map(|item| item.map_err(|status| status.code()))
            .collect()
            .await;
        assert_eq!(items, [Ok(1), Ok(2), Ok(3), Err(Code::Aborted)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_is_given_up() {
        let tracker = TaskTracker::new();
        let stream = open(&tracker, PATIENCE, |feed| async move {
            loop {
                feed.send(vec![(); 1000]).await?;
            }
        });
        tracker.close();
        let started = tokio::time::Instant::now();
        tracker.wait().await;
        assert_eq!(
            started.elapsed(),
            PATIENCE,
            "the task ends without the client"
        );
        let items: Vec<_> = stream.collect().await;
        assert_eq!(items.len(), 1001, "one batch waited");
        assert_eq!(
            items[1000].as_ref().unwrap_err().code(),
            Code::ResourceExhausted
        );
    }

    #[tokio::test]
    async fn the_task_goes_with_the_client() {
        let tracker = TaskTracker::new();
        let stream = open(&tracker, PATIENCE, |_feed: Feed<()>| std::future::pending());
        tracker.close();
        assert_eq!(tracker.len(), 1);
        drop(stream);
        tracker.wait().await;
    }
}
