//! Who waits for the outcome of a proposal, and who has waited for long enough.
//!
//! What no majority takes may never have an outcome. It is looked for such proposals once in a while, for all that wait: a
//! timer for each would be a cost of every write, for what hardly any of them meets.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use slab::Slab;
use tokio::sync::oneshot;

use super::{Leader, runtime::watch};

/// How long a proposal may wait for a quorum before its outcome counts as unknown. Only where there are
/// other servers to wait for.
const OUTCOME_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked, at most and at least.
const LOOK_EVERY: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(500)];

/// All that wait for an answer.
#[derive(Debug)]
pub(super) struct Pending<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    waiting: Slab<Waiting<T>>,
    /// How often it has been looked who waits.
    looks: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    /// How often it had been looked when it came.
    since: u64,
    /// Gone when it was given up: the key is taken until nobody can answer any more.
    answer: Option<oneshot::Sender<T>>,
}

/// An answer that somebody waits for. To drop it is to say that there will be none.
#[derive(Debug)]
pub(super) struct Owed<T> {
    pending: Arc<Pending<T>>,
    key: usize,
}

/// For how long proposals wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// While there is no leader, and has been none for as long.
    pub(super) leaderless: Duration,
    /// Whether there are no other servers to wait for.
    pub(super) alone: bool,
}

impl<T> Pending<T> {
    pub(super) fn new() -> Arc<Pending<T>> {
        Arc::new(Pending(Mutex::new(Inner {
            waiting: Slab::new(),
            looks: 0,
        })))
    }

    pub(super) fn begin(self: &Arc<Self>) -> (Owed<T>, oneshot::Receiver<T>) {
        let (answer, receiver) = oneshot::channel();
        let mut inner = self.lock();
        let waiting = Waiting {
            since: inner.looks,
            answer: Some(answer),
        };
        let key = inner.waiting.insert(waiting);
        drop(inner);
        let owed = Owed {
            pending: self.clone(),
            key,
        };
        (owed, receiver)
    }

    /// Looks once, and gives up those that came before the last `most` looks.
    fn look(&self, most: u64) {
        let given_up: Vec<_> = {
            let mut inner = self.lock();
            inner.looks += 1;
            let looks = inner.looks;
            let late = inner.waiting.iter_mut();
            let late = late.filter(|(_, waiting)| looks - waiting.since > most);
            late.filter_map(|(_, waiting)| waiting.answer.take())
                .collect()
        };
        // They are woken outside the lock.
        drop(given_up);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Owed<T> {
    pub(super) fn answer(self, answer: T) {
        if let Some(sender) = self.take() {
            // A proposer that has gone away does not want to know.
            let _ = sender.send(answer);
        }
    }

    /// Who waits for it.
    fn take(&self) -> Option<oneshot::Sender<T>> {
        let mut inner = self.pending.lock();
        inner.waiting.get_mut(self.key)?.answer.take()
    }
}

impl<T> Drop for Owed<T> {
    fn drop(&mut self) {
        let waiting = self.pending.lock().waiting.try_remove(self.key);
        // It is woken outside the lock.
        drop(waiting);
    }
}

/// Gives up, again and again, those that have waited for too long. Ends with the task that it is.
pub(super) async fn give_up<T>(
    pending: Arc<Pending<T>>,
    patience: Patience,
    leader: watch::Receiver<Option<Leader>>,
) {
    let [least, most] = LOOK_EVERY;
    let every = (patience.leaderless / 4).clamp(least, most);
    let looks = |duration: Duration| duration.as_nanos().div_ceil(every.as_nanos()) as u64;
    let without_leader = looks(patience.leaderless);
    let in_all = match patience.alone {
        true => u64::MAX,
        false => looks(OUTCOME_WITHIN),
    };
    let mut leaderless = 0;
    loop {
        tokio::time::sleep(every).await;
        leaderless = match *leader.borrow() {
            Some(_) => 0,
            None => leaderless + 1,
        };
        pending.look(match leaderless > without_leader {
            true => in_all.min(without_leader),
            false => in_all,
        });
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::log::ServerId;

    const SECOND: Duration = Duration::from_secs(1);

    fn some_leader() -> Option<Leader> {
        Some(Leader {
            id: ServerId(Uuid::from_u128(1)),
            name: "s1".to_owned(),
            address: "a1".to_owned(),
        })
    }

    /// Looks after what waits for the outcomes, as a task.
    fn looked_after(alone: bool) -> (Arc<Pending<u8>>, watch::Sender<Option<Leader>>) {
        let pending = Pending::new();
        let (sender, leader) = watch::channel(some_leader());
        let patience = Patience {
            leaderless: 7 * SECOND,
            alone,
        };
        tokio::spawn(give_up(pending.clone(), patience, leader));
        (pending, sender)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_arrives_and_nothing_is_left_behind() {
        let (pending, _leader) = looked_after(false);
        let (first, answer) = pending.begin();
        let (second, no_answer) = pending.begin();
        first.answer(7);
        assert_eq!(answer.await, Ok(7));
        drop(second);
        assert!(no_answer.await.is_err());
        assert!(pending.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_without_a_leader_is_told_so_and_who_comes_later_is_not() {
        let (pending, leader) = looked_after(true);
        let began = tokio::time::Instant::now();
        let (_early, answer) = pending.begin();
        tokio::time::sleep(100 * SECOND).await;
        leader.send_replace(None);
        tokio::time::sleep(6 * SECOND).await;
        // It is there for a moment: all wait for as long again.
        leader.send_replace(some_leader());
        tokio::time::sleep(SECOND).await;
        leader.send_replace(None);
        tokio::time::sleep(4 * SECOND).await;
        let (late, mut late_answer) = pending.begin();
        assert!(answer.await.is_err());
        let after = began.elapsed();
        assert!(after >= 114 * SECOND && after < 116 * SECOND, "{after:?}");
        assert!(
            late_answer
                .try_recv()
                .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
        );
        late.answer(1);
        assert_eq!(late_answer.await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_is_nobody_elses_answer() {
        let (pending, _leader) = looked_after(false);
        let began = tokio::time::Instant::now();
        let (owed, answer) = pending.begin();
        assert!(answer.await.is_err());
        let after = began.elapsed();
        assert!(after >= OUTCOME_WITHIN && after < OUTCOME_WITHIN + 2 * SECOND);
        let (other, answer) = pending.begin();
        owed.answer(1);
        other.answer(2);
        assert_eq!(answer.await, Ok(2));
    }
}
