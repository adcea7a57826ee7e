//! What is wrong with other servers, said now and then instead of ten times a second.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long the same complaint is not said again.
const PAUSE: Duration = Duration::from_secs(60);
/// How many different ones are told apart.
const KEPT: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<HashMap<String, Instant>>);

impl Complaints {
    pub(crate) fn warn(&self, text: &str) {
        if self.is_news(text) {
            tracing::warn!("{text}");
        }
    }

    pub(crate) fn error(&self, text: &str) {
        if self.is_news(text) {
            tracing::error!("{text}");
        }
    }

    fn is_news(&self, text: &str) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        said.retain(|_, at| now - *at < PAUSE);
        if said.contains_key(text) {
            return false;
        }
        if said.len() >= KEPT {
            said.clear();
        }
        said.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute() {
        let complaints = Complaints::default();
        assert!(complaints.is_news("a"));
        assert!(!complaints.is_news("a"));
        assert!(complaints.is_news("b"));
        tokio::time::advance(PAUSE).await;
        assert!(complaints.is_news("a"));
    }
}
