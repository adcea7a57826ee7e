//! How work ends: graceful, deadline, force.

use std::{
    pin::pin,
    sync::atomic::{AtomicU8, Ordering},
    task::{Context, Poll},
};

use tokio::sync::Notify;

/// How far the end has come. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Finish what has begun, begin nothing new: HTTP/1 answers with `Connection: close`, HTTP/2 sends GOAWAY, an idle
    /// connection closes, a TCP connection goes on until its ends close it.
    Graceful,
    /// Stop now.
    Forced,
}

/// Tells the connections of one listener that they should end.
///
/// A connection MUST look at the phase whenever it is polled, and MUST end when it is `Forced`. Whoever advances the
/// phase waits for the connections itself (the worker's task tracker): nothing here knows them.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    phase: AtomicU8,
    advanced: Notify,
}

impl Drain {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Graceful,
            _ => Phase::Forced,
        }
    }

    /// Moves on to `phase`, unless it is already there or further, and wakes every connection.
    pub(crate) fn advance(&self, phase: Phase) {
        if self.phase.fetch_max(phase as u8, Ordering::AcqRel) < phase as u8 {
            self.advanced.notify_waiters();
        }
    }

    /// Polls `work` until it is ready, and tells it once when the phase moves on. When the phase is `Forced` it is not
    /// polled any more, and the result is `None`.
    pub(crate) async fn run<T>(
        &self,
        mut work: impl FnMut(&mut Context<'_>, Option<Phase>) -> Poll<T>,
    ) -> Option<T> {
        let mut advanced = pin!(self.advanced.notified());
        let mut last = Phase::Running;
        std::future::poll_fn(|cx| {
            while advanced.as_mut().poll(cx).is_ready() {
                advanced.set(self.advanced.notified());
            }
            let phase = self.phase();
            if phase == Phase::Forced {
                return Poll::Ready(None);
            }
            let news = (phase > last).then_some(phase);
            last = phase;
            work(cx, news).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;

    use super::*;

    #[test]
    fn the_phase_never_goes_back() {
        let drain = Drain::default();
        drain.advance(Phase::Forced);
        drain.advance(Phase::Graceful);
        assert_eq!(drain.phase(), Phase::Forced);
    }

    #[tokio::test]
    async fn work_hears_of_each_phase_once_and_is_dropped_when_forced() {
        let drain = Drain::default();
        let mut heard = Vec::new();
        let mut run = Box::pin(drain.run::<()>(|_, news| {
            heard.extend(news);
            Poll::Pending
        }));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(run.as_mut().poll(&mut cx).is_pending());
        drain.advance(Phase::Graceful);
        assert!(run.as_mut().poll(&mut cx).is_pending());
        assert!(run.as_mut().poll(&mut cx).is_pending());
        drain.advance(Phase::Forced);
        assert_eq!(run.as_mut().await, None);
        drop(run);
        assert_eq!(heard, [Phase::Graceful]);
    }
}
