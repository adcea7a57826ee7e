//! Whose turn it is to be given to the log, when more comes than the disks take.
//!
//! The log writes in the order in which it is given entries, so whatever it has not written yet is waited for by all
//! that comes after it. Hence it is given little at a time ([`Line::new`]: the window), and the rest stands in a line in
//! front of it, where the order is not that of arrival: nobody is overtaken by more than [`PATIENCE`] times its own size.
//! So a small write passes large ones and waits for what is in the window only, and a large one is not kept waiting by
//! small ones for ever.
//!
//! How long the line gets is for the [admission](super::admission) to say, which everybody passes before.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// How much may overtake a proposal, in proportion to its size: a hundred connections with values of the largest size,
/// each as soon as it has the answer to the one before, do not get in front of a small one.
const PATIENCE: u64 = 128;
/// Counted for a proposal beside its bytes, so that small ones are few enough too.
const OVERHEAD: usize = 256;

#[derive(Debug)]
pub(super) struct Line {
    window: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    in_flight: usize,
    /// All bytes that have had their turn so far.
    passed: u64,
    arrivals: u64,
    /// By what `passed` may become before it is somebody's turn, then by arrival.
    waiting: BTreeMap<Key, Waiting>,
}

type Key = (u64, u64);

#[derive(Debug)]
struct Waiting {
    size: usize,
    turn: oneshot::Sender<()>,
}

/// A share of the window, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    line: Arc<Line>,
    size: usize,
}

/// A place in the line, left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    key: Key,
    size: usize,
    /// Taken with the turn.
    turn: Option<oneshot::Receiver<()>>,
}

impl Line {
    /// `window`: the bytes that may be on their way through the log. One proposal that is larger goes alone.
    pub(super) fn new(window: usize) -> Arc<Line> {
        Arc::new(Line {
            window,
            inner: Mutex::default(),
        })
    }

    /// The turn, if there is room, and nobody who waits comes first.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize) -> Result<Turn, Place> {
        let size = bytes + OVERHEAD;
        let mut inner = self.lock();
        let key = inner.key(size);
        let is_first = inner.waiting.keys().next().is_none_or(|first| key < *first);
        if is_first && fits(inner.in_flight, size, self.window) {
            inner.take(size);
            return Ok(Turn {
                line: self.clone(),
                size,
            });
        }
        let (sender, turn) = oneshot::channel();
        let waiting = Waiting { size, turn: sender };
        inner.waiting.insert(key, waiting);
        Err(Place {
            line: self.clone(),
            key,
            size,
            turn: Some(turn),
        })
    }

    /// Takes back a share of the window, and gives it to those who wait. They are woken outside the lock.
    fn give_back(&self, size: usize) {
        let mut returned = size;
        loop {
            let next = {
                let mut inner = self.lock();
                inner.in_flight -= returned;
                inner.next(self.window)
            };
            // Who leaves just now does not take it.
            let left = next.into_iter().filter_map(|Waiting { size, turn }| {
                let told = turn.send(());
                told.is_err().then_some(size)
            });
            returned = left.sum();
            if returned == 0 {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fits(in_flight: usize, size: usize, window: usize) -> bool {
    in_flight == 0 || in_flight + size <= window
}

impl Inner {
    fn key(&mut self, size: usize) -> Key {
        self.arrivals += 1;
        let overtaken = (size as u64).saturating_mul(PATIENCE);
        (self.passed.saturating_add(overtaken), self.arrivals)
    }

    fn take(&mut self, size: usize) {
        self.in_flight += size;
        self.passed += size as u64;
    }

    /// Whose turn it is now. Who does not fit is waited for, and not passed by those behind: it would wait for ever.
    fn next(&mut self, window: usize) -> Vec<Waiting> {
        let mut next = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            let size = first.get().size;
            if !fits(self.in_flight, size, window) {
                break;
            }
            next.push(first.remove());
            self.take(size);
        }
        next
    }
}

impl Place {
    /// Waits for the turn. Cancel safe.
    pub(super) async fn turn(mut self) -> Turn {
        if let Some(turn) = &mut self.turn {
            // It is not dropped without one while this place is there.
            let _ = turn.await;
        }
        self.turn = None;
        Turn {
            line: self.line.clone(),
            size: self.size,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        let left = self.line.lock().waiting.remove(&self.key).is_some();
        if left {
            // Whoever was behind may fit where this one did not.
            self.line.give_back(0);
            return;
        }
        // It is told its turn, or about to be: who tells it finds the channel closed then, and takes the share back.
        turn.close();
        if turn.try_recv().is_ok() {
            self.line.give_back(self.size);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.give_back(self.size);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const WINDOW: usize = 2 << 20;
    const LARGE: usize = 512 << 10;

    impl Line {
        fn in_flight(&self) -> usize {
            self.lock().in_flight
        }

        fn waiting(&self) -> usize {
            self.lock().waiting.len()
        }
    }

    /// The turn of one that had to wait, if it has come.
    fn now(place: Place) -> Turn {
        place.turn().now_or_never().expect("its turn")
    }

    #[test]
    fn what_fits_does_not_wait_and_the_largest_goes_alone() {
        let line = Line::new(WINDOW);
        let small = line.enter(100).unwrap();
        let whole = line.enter(3 * WINDOW).unwrap_err();
        assert_eq!((line.in_flight(), line.waiting()), (100 + OVERHEAD, 1));
        drop(small);
        let whole = now(whole);
        assert_eq!(line.in_flight(), 3 * WINDOW + OVERHEAD);
        let small = line.enter(100).unwrap_err();
        drop(whole);
        drop(now(small));
        assert_eq!((line.in_flight(), line.waiting()), (0, 0));
    }

    #[test]
    fn a_small_one_waits_for_what_is_under_way_and_not_for_what_waits() {
        let line = Line::new(WINDOW);
        let mut turns = Vec::new();
        let mut places = Vec::new();
        for _ in 0..100 {
            match line.enter(LARGE) {
                Ok(turn) => turns.push(turn),
                Err(place) => places.push(place),
            }
        }
        // Three and a half fit: there is room beside them for what is smaller.
        assert_eq!((turns.len(), places.len()), (3, 97));
        let mut small: Vec<_> = (0..100).filter_map(|_| line.enter(4096).ok()).collect();
        assert_eq!(small.len(), 100);
        let beyond = line.enter(200 << 10).unwrap_err();
        turns.pop();
        let beyond = beyond.turn().now_or_never();
        assert!(beyond.is_some(), "before 97 large ones");
        small.clear();
        drop(beyond);
        let first = places.remove(0);
        drop(now(first));
    }

    #[test]
    fn a_large_one_is_not_passed_for_ever() {
        let line = Line::new(WINDOW);
        let mut window: Vec<_> = std::iter::from_fn(|| line.enter(16 << 10).ok()).collect();
        // The last of these waits.
        assert_eq!(line.waiting(), 0, "who asked left");
        let mut large = Box::pin(line.enter(LARGE).unwrap_err().turn());
        let mut passed = 0;
        let mut waiting = std::collections::VecDeque::new();
        while (&mut large).now_or_never().is_none() {
            waiting.push_back(line.enter(16 << 10).unwrap_err());
            window.remove(0);
            while let Some(first) = waiting.pop_front() {
                let mut first = Box::pin(first.turn());
                match (&mut first).now_or_never() {
                    Some(turn) => {
                        passed += turn.size;
                        window.push(turn);
                    }
                    None => break,
                }
            }
            assert!(passed as u64 <= PATIENCE * (LARGE + OVERHEAD) as u64);
            assert!(!window.is_empty() || line.in_flight() > 0);
        }
        assert!(passed > 16 * LARGE, "{passed}");
    }

    proptest! {
        /// Whoever comes, goes and leaves: no more than the window is under way, but one that is larger alone; somebody
        /// is under way while somebody waits; and in the end nothing is left behind.
        #[test]
        fn nothing_is_lost_and_nobody_forgotten(
            steps in proptest::collection::vec((0_u8..4, 0_usize..1000, any::<prop::sample::Index>()), 1..200),
        ) {
            let line = Line::new(1000);
            let (mut turns, mut places) = (Vec::new(), Vec::new());
            for (what, size, which) in steps {
                match what {
                    0 | 1 => match line.enter(size * 3) {
                        Ok(turn) => turns.push(turn),
                        Err(place) => places.push(place),
                    },
                    2 if !turns.is_empty() => drop(turns.swap_remove(which.index(turns.len()))),
                    3 if !places.is_empty() => drop(places.swap_remove(which.index(places.len()))),
                    _ => {}
                }
                let mut all = std::mem::take(&mut places);
                for mut place in all.drain(..) {
                    let told = place.turn.as_mut().unwrap().try_recv().is_ok();
                    match told {
                        true => {
                            place.turn = None;
                            turns.push(Turn { line: line.clone(), size: place.size });
                        }
                        false => places.push(place),
                    }
                }
                let under_way: usize = turns.iter().map(|turn| turn.size).sum();
                prop_assert_eq!(line.in_flight(), under_way);
                prop_assert_eq!(line.waiting(), places.len());
                prop_assert!(under_way <= 1000 || turns.len() == 1);
                prop_assert!(!turns.is_empty() || places.is_empty());
            }
            drop(places);
            drop(turns);
            prop_assert_eq!((line.in_flight(), line.waiting()), (0, 0));
        }
    }
}
