//! How much may be in flight between a proposer and its answer.
//!
//! Raft takes whatever it is given and holds it in memory until a quorum has it; a stalled disk or a
//! lost quorum would fill the memory. So the door is here, and it does not queue: whoever finds it
//! closed is told at once and can slow down. It closes for what is large first, so that small proposals are not refused
//! because of large ones.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How much one leaves free beside itself, in proportion to its size; at most a sixteenth of all.
const LEFT: usize = 8;

#[derive(Debug)]
pub(super) struct Admission {
    max_proposals: usize,
    max_bytes: usize,
    proposals: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place in flight, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It would not fit even alone.
    TooLarge,
    Full,
}

impl Admission {
    pub(super) fn new(max_proposals: usize, max_bytes: usize) -> Arc<Admission> {
        Arc::new(Admission {
            max_proposals,
            max_bytes,
            proposals: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    pub(super) fn admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, Refused> {
        if bytes > self.max_bytes {
            return Err(Refused::TooLarge);
        }
        // Taken first and checked after: concurrent proposers may refuse one another at the very
        // edge, but never exceed the limit together.
        let permit = Permit {
            admission: self.clone(),
            bytes,
        };
        let proposals = self.proposals.fetch_add(1, Ordering::Relaxed) + 1;
        let others = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let left = bytes.saturating_mul(LEFT).min(self.max_bytes / 16);
        if proposals > self.max_proposals || others > 0 && others + bytes + left > self.max_bytes {
            return Err(Refused::Full);
        }
        Ok(permit)
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub(super) fn proposals(&self) -> usize {
        self.proposals.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.proposals.fetch_sub(1, Ordering::Relaxed);
        self.admission
            .bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_the_count_and_beyond_the_bytes() {
        let admission = Admission::new(2, 100);
        let first = admission.admit(10).unwrap();
        let second = admission.admit(10).unwrap();
        assert_eq!(admission.admit(10).unwrap_err(), Refused::Full);
        drop(second);
        assert_eq!(admission.admit(85).unwrap_err(), Refused::Full);
        assert_eq!(admission.admit(101).unwrap_err(), Refused::TooLarge);
        let rest = admission.admit(84).unwrap();
        drop(first);
        assert_eq!((admission.proposals(), admission.bytes()), (1, 84));
        drop(rest);
        let _whole = admission.admit(100).unwrap();
    }

    #[test]
    fn large_ones_leave_room_for_small_ones() {
        let admission = Admission::new(1000, 1 << 20);
        let large: Vec<_> = std::iter::from_fn(|| admission.admit(32 << 10).ok()).collect();
        assert_eq!(large.len(), 30);
        let small: Vec<_> = (0..50).map(|_| admission.admit(100)).collect();
        assert!(small.iter().all(Result::is_ok));
    }
}
