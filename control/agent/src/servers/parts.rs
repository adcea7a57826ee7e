//! A snapshot on its way here, part by part.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, timeout};
use tonic::Status;
use wharf_proto::server::v1 as proto;

/// How long a sender of a snapshot may be silent.
const PART_WITHIN: Duration = Duration::from_secs(30);
/// So many bytes a second are waited for, from the first to the last: a sender gives up after ten minutes anyway.
const SLOWEST: u64 = 16 << 10;

/// The parts, as long as they come fast enough. Only the time in which one is waited for counts: that what they are
/// given to is slow is not their sender's fault.
#[derive(Debug)]
pub(super) struct Parts<S> {
    parts: S,
    waited: Duration,
    bytes: u64,
}

impl<S> Parts<S>
where
    S: Stream<Item = Result<proto::SnapshotPart, Status>> + Unpin,
{
    pub(super) fn new(parts: S) -> Parts<S> {
        Parts {
            parts,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next part; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<proto::SnapshotPart>, Status> {
        let all = PART_WITHIN + Duration::from_secs(self.bytes / SLOWEST);
        let patience = all.saturating_sub(self.waited).min(PART_WITHIN);
        let asked = Instant::now();
        let part = timeout(patience, self.parts.next()).await;
        self.waited += asked.elapsed();
        let part = part
            .map_err(|_| Status::deadline_exceeded("the snapshot does not go on, or too slowly"))?;
        let part = part.transpose()?;
        if let Some(part) = &part {
            if part.data.is_empty() {
                return Err(Status::invalid_argument("an empty part of a snapshot"));
            }
            self.bytes += part.data.len() as u64;
        }
        Ok(part)
    }

    /// The bytes of the next part; `None` at the end.
    pub(super) async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        let part = self.next().await?;
        Ok(part.map(|part| part.data))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tonic::Code;

    use super::*;

    /// Parts of this size, one every so many seconds.
    fn parts(size: usize, every: u64) -> impl Stream<Item = Result<proto::SnapshotPart, Status>> {
        stream::repeat(()).then(move |()| async move {
            tokio::time::sleep(Duration::from_secs(every)).await;
            Ok(proto::SnapshotPart {
                vote: None,
                data: vec![0; size].into(),
            })
        })
    }

    async fn refused(size: usize, every: u64) -> (Code, Duration) {
        let mut parts = Parts::new(Box::pin(parts(size, every)));
        let began = Instant::now();
        loop {
            match parts.next().await {
                Ok(_) if began.elapsed() > Duration::from_secs(3600) => {
                    return (Code::Ok, began.elapsed());
                }
                Ok(_) => {}
                Err(status) => return (status.code(), began.elapsed()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_little_and_seldom_does_not_go_on_for_ever() {
        let (code, after) = refused(1, 20).await;
        assert_eq!(code, Code::DeadlineExceeded);
        assert!(after < Duration::from_secs(60), "{after:?}");
        let (code, after) = refused(0, 20).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(after < Duration::from_secs(30), "{after:?}");
        // A slow link.
        assert_eq!(refused(256 << 10, 15).await.0, Code::Ok);
        assert_eq!(refused(256 << 10, 31).await.0, Code::DeadlineExceeded);
    }

    /// Who takes the parts may take its time.
    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_no_fault_of_the_sender() {
        let mut parts = Parts::new(Box::pin(parts(1 << 10, 0)));
        for _ in 0..100 {
            parts.next_bytes().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }
}
