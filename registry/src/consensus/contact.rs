//! When the leader was last heard.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Contact {
    started: Instant,
    /// In milliseconds after the start, plus one; 0: never.
    at: AtomicU64,
}

impl Contact {
    pub(super) fn new() -> Contact {
        Contact {
            started: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    pub(super) fn made(&self) {
        let after = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(after + 1, Ordering::Relaxed);
    }

    /// The same for a while ago, unless there was one since.
    pub(super) fn was_made(&self, ago: Duration) {
        let after = self.started.elapsed().saturating_sub(ago).as_millis();
        let after = u64::try_from(after).unwrap_or(u64::MAX - 1);
        self.at.fetch_max(after + 1, Ordering::Relaxed);
    }

    /// `None` if there never was any.
    pub(super) fn ago(&self) -> Option<Duration> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        let at = self.started + Duration::from_millis(at);
        Some(Instant::now().saturating_duration_since(at))
    }

    /// How long there has been none.
    pub(super) fn silence(&self) -> Duration {
        self.ago().unwrap_or_else(|| self.started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_the_last_contact_or_the_start() {
        let contact = Contact::new();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((contact.ago(), contact.silence().as_secs()), (None, 3));
        contact.made();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(contact.ago(), Some(Duration::from_secs(2)));
        assert_eq!(contact.silence(), Duration::from_secs(2));
        contact.was_made(Duration::from_secs(3));
        assert_eq!(contact.ago(), Some(Duration::from_secs(2)));
        contact.was_made(Duration::from_secs(1));
        assert_eq!(contact.ago(), Some(Duration::from_secs(1)));
    }
}
