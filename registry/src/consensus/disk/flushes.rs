//! What was given to the log and is not on the disk yet, and for how long.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How many writes may wait for the disk before the next one waits too, without occupying a thread: the
/// queue of the log is longer than that, and whoever finds it full blocks, holding what others need.
const MAX_WAITING: usize = 512;
/// The same in bytes: what a fast disk takes in some milliseconds.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// How long a slow flush is remembered.
const LATELY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(in super::super) struct Flushes {
    inner: Mutex<Inner>,
    finished: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first: when each began, and how large it is. `None`: it is done, and one before it is not.
    waiting: VecDeque<Option<(Instant, usize)>>,
    /// The number of the first of these.
    first: u64,
    /// How many are not done, and their bytes.
    count: usize,
    bytes: usize,
    /// The longest flush of late, and when it was over.
    longest: Option<(Instant, Duration)>,
}

/// A write on its way to the disk. Dropped when it is there, or never will be.
#[derive(Debug)]
pub(in super::super) struct Flush {
    flushes: Arc<Flushes>,
    number: u64,
}

impl Flushes {
    pub(in super::super) fn begin(self: &Arc<Self>, bytes: usize) -> Flush {
        let mut inner = self.lock();
        let number = inner.first + inner.waiting.len() as u64;
        inner.waiting.push_back(Some((Instant::now(), bytes)));
        inner.count += 1;
        inner.bytes += bytes;
        Flush {
            flushes: self.clone(),
            number,
        }
    }

    /// Waits until the disk has caught up enough for another write. Cancel safe.
    pub(in super::super) async fn room(&self) {
        loop {
            let finished = self.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            {
                let inner = self.lock();
                if inner.count < MAX_WAITING && inner.bytes < MAX_WAITING_BYTES {
                    return;
                }
            }
            finished.await;
        }
    }

    /// How many bytes wait.
    pub(in super::super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// For how long the oldest write waits.
    pub(in super::super) fn oldest(&self) -> Option<Duration> {
        let inner = self.lock();
        let (at, _) = (*inner.waiting.front()?)?;
        Some(at.elapsed())
    }

    /// The longest that a write took that was finished within some seconds, or is not yet.
    pub(in super::super) fn longest_lately(&self) -> Duration {
        let finished = self.lock().longest;
        let finished = finished.filter(|(at, _)| at.elapsed() < LATELY);
        let finished = finished.map_or(Duration::ZERO, |(_, took)| took);
        finished.max(self.oldest().unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn done(&mut self, number: u64) -> Option<(Instant, usize)> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let done = self.waiting.get_mut(at)?.take();
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        done
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        {
            let mut inner = self.flushes.lock();
            let Some((at, bytes)) = inner.done(self.number) else {
                return;
            };
            inner.count -= 1;
            inner.bytes -= bytes;
            let now = Instant::now();
            let took = now.saturating_duration_since(at);
            let is_longest = inner.longest.is_none_or(|(over, longest)| {
                took >= longest || now.saturating_duration_since(over) >= LATELY
            });
            if is_longest {
                inner.longest = Some((now, took));
            }
        }
        self.flushes.finished.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_counts_and_a_slow_one_is_remembered_for_a_while() {
        let flushes = Arc::new(Flushes::default());
        assert_eq!(flushes.oldest(), None);
        let first = flushes.begin(10);
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = flushes.begin(20);
        assert_eq!(flushes.oldest(), Some(Duration::from_secs(1)));
        assert_eq!(flushes.bytes(), 30);
        let third = flushes.begin(40);
        drop(second);
        assert_eq!(flushes.oldest(), Some(Duration::from_secs(1)));
        assert_eq!(flushes.bytes(), 50);
        drop(first);
        assert_eq!(flushes.oldest(), Some(Duration::ZERO));
        assert_eq!(flushes.bytes(), 40);
        drop(third);
        assert_eq!(flushes.oldest(), None);
        // A fast one does not make up for it.
        assert_eq!(flushes.longest_lately(), Duration::from_secs(1));
        tokio::time::advance(LATELY).await;
        assert_eq!(flushes.longest_lately(), Duration::ZERO);
        drop(flushes.begin(1));
        assert_eq!(flushes.longest_lately(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_much_waits_at_once() {
        let flushes = Arc::new(Flushes::default());
        let mut waiting: Vec<Flush> = (0..MAX_WAITING).map(|_| flushes.begin(1)).collect();
        let mut room = Box::pin(flushes.room());
        assert_eq!((&mut room).now_or_never(), None);
        waiting.pop();
        room.await;
        waiting.clear();
        let large = flushes.begin(MAX_WAITING_BYTES);
        let mut room = Box::pin(flushes.room());
        assert_eq!((&mut room).now_or_never(), None);
        drop(large);
        room.await;
    }
}
