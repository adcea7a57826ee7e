//! Whose snapshot is coming: one at a time, and that of the newest leader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::raft::RaftVote;

#[derive(Debug, Default)]
pub(super) struct Receiving {
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    /// Tells turns apart.
    number: u64,
    sender: Option<Sender>,
}

#[derive(Debug)]
struct Sender {
    vote: RaftVote,
    /// Gone when the turn is another one's.
    _turn: oneshot::Sender<()>,
}

/// The right to receive, until it is dropped or goes to a newer leader.
#[derive(Debug)]
pub(super) struct Turn {
    receiving: Arc<Receiving>,
    number: u64,
    over: oneshot::Receiver<()>,
}

impl Receiving {
    /// The turn of the leader with this vote. `None`: there is one that is as new, or newer.
    pub(super) fn begin(self: &Arc<Self>, vote: RaftVote) -> Option<Turn> {
        let mut current = self.lock();
        let is_newer = |sender: &Sender| vote > sender.vote;
        if !current.sender.as_ref().is_none_or(is_newer) {
            return None;
        }
        let (turn, over) = oneshot::channel();
        current.number += 1;
        current.sender = Some(Sender { vote, _turn: turn });
        Some(Turn {
            receiving: self.clone(),
            number: current.number,
            over,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Completes when a newer leader takes the turn.
    pub(super) async fn is_over(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.over).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut current = self.receiving.lock();
        if current.number == self.number {
            current.sender = None;
        }
    }
}
