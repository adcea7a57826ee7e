//! What clients saw of one key, and whether a single register could have answered so.
//!
//! The check is that of Wing and Gong (1993) with Lowe's memory of what was tried (2017): look for an order of the
//! operations in which each takes effect between its call and its return, and reads see the last write. An operation
//! whose outcome is unknown may take effect at any time after its call, or never: every value is written by one
//! operation only, so that it did is known from its value being seen.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// What was asked, and answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// 0: nothing is there.
    Read(u64),
    Write(u64),
    /// Takes place if the value is `from`.
    Swap {
        from: u64,
        to: u64,
        swapped: bool,
    },
    /// It is unknown whether it took place.
    MaybeWrite(u64),
    MaybeSwap {
        from: u64,
        to: u64,
    },
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    pub action: Action,
    pub called: Instant,
    /// `None`: it never returned.
    pub returned: Option<Instant>,
}

impl Action {
    /// The values that the register may have afterwards, if the action fits to `value`.
    fn apply(&self, value: u64) -> Option<u64> {
        match *self {
            Action::Read(read) => (read == value).then_some(value),
            Action::Write(written) => Some(written),
            Action::Swap { from, to, swapped } => match (from == value, swapped) {
                (true, true) => Some(to),
                (false, false) => Some(value),
                _ => None,
            },
            // Settled before.
            Action::MaybeWrite(_) | Action::MaybeSwap { .. } => None,
        }
    }

    pub fn is_unknown(&self) -> bool {
        matches!(self, Action::MaybeWrite(_) | Action::MaybeSwap { .. })
    }

    /// The value that was there before, if the action says so.
    fn seen(&self) -> Option<u64> {
        match *self {
            Action::Read(value) => Some(value),
            Action::Swap { from, .. } | Action::MaybeSwap { from, .. } => Some(from),
            Action::Write(_) | Action::MaybeWrite(_) => None,
        }
    }
}

/// Without what took no effect, and with what took one as if it had been answered, but for when.
fn settled(history: &[Operation]) -> Vec<Operation> {
    let (mut unknown, mut known): (Vec<_>, Vec<_>) = history
        .iter()
        .cloned()
        .partition(|operation| operation.action.is_unknown());
    let mut seen: HashSet<u64> = known
        .iter()
        .filter_map(|known| known.action.seen())
        .collect();
    loop {
        let took_effect = |operation: &mut Operation| match operation.action {
            Action::MaybeWrite(value) => seen.contains(&value),
            Action::MaybeSwap { to, .. } => seen.contains(&to),
            _ => false,
        };
        let found: Vec<Operation> = unknown.extract_if(.., took_effect).collect();
        if found.is_empty() {
            known.sort_by_key(|operation| operation.called);
            return known;
        }
        for mut operation in found {
            seen.extend(operation.action.seen());
            operation.action = match operation.action {
                Action::MaybeSwap { from, to } => Action::Swap {
                    from,
                    to,
                    swapped: true,
                },
                Action::MaybeWrite(value) => Action::Write(value),
                action => action,
            };
            known.push(operation);
        }
    }
}

/// Operations that are done, as a set of bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn none(count: usize) -> Done {
        Done(vec![0; count.div_ceil(64)])
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn with(&self, at: usize) -> Done {
        let mut done = self.clone();
        done.0[at / 64] |= 1 << (at % 64);
        done
    }
}

/// Says at which operation it ends that no order explains, or `None` if there is one for all of them.
///
/// The operations of one register, which holds 0 at first.
pub fn contradiction(history: &[Operation]) -> Option<Operation> {
    let operations = settled(history);
    let count = operations.len();
    let mut tried: HashSet<(Done, u64)> = HashSet::new();
    // What is done, how many, the value, and the first operation that is not done.
    let mut stack = vec![(Done::none(count), 0, 0_u64, 0)];
    let mut furthest = (0, 0);
    while let Some((done, number, value, first)) = stack.pop() {
        if number == count {
            return None;
        }
        if number >= furthest.0 {
            furthest = (number, first);
        }
        // Whatever is called after another has returned comes after it.
        let pending = || (first..count).filter(|at| !done.has(*at));
        let horizon = pending().filter_map(|at| operations[at].returned).min();
        for at in pending() {
            if horizon.is_some_and(|horizon| operations[at].called > horizon) {
                break;
            }
            let Some(after) = operations[at].action.apply(value) else {
                continue;
            };
            let done = done.with(at);
            let mut first = first;
            while first < count && done.has(first) {
                first += 1;
            }
            if tried.insert((done.clone(), after)) {
                stack.push((done, number + 1, after, first));
            }
        }
    }
    operations.get(furthest.1).cloned()
}

/// The longest time in which nothing succeeded, between `from` and `until`.
pub fn longest_silence<'a>(
    operations: impl Iterator<Item = &'a Operation>,
    from: Instant,
    until: Instant,
) -> Duration {
    let mut times: Vec<Instant> = operations
        .filter(|operation| !operation.action.is_unknown())
        .filter_map(|operation| operation.returned)
        .filter(|at| (from..until).contains(at))
        .collect();
    times.push(from);
    times.push(until);
    times.sort();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations with the milliseconds of their call and return; 0: none.
    fn history(operations: &[(Action, u64, u64)]) -> Vec<Operation> {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        operations
            .iter()
            .map(|(action, called, returned)| Operation {
                action: action.clone(),
                called: at(*called),
                returned: (*returned > 0).then(|| at(*returned)),
            })
            .collect()
    }

    fn swap(from: u64, to: u64, swapped: bool) -> Action {
        Action::Swap { from, to, swapped }
    }

    #[test]
    fn what_one_register_could_have_answered_is_found() {
        use Action::{MaybeSwap, MaybeWrite, Read, Write};
        let fine = [
            history(&[]),
            history(&[(Read(0), 1, 2), (Write(5), 3, 4), (Read(5), 5, 6)]),
            // At the same time, in either order.
            history(&[(Write(1), 1, 9), (Read(0), 2, 3), (Read(1), 4, 5)]),
            history(&[(Write(1), 1, 9), (Write(2), 2, 8), (Read(1), 10, 11)]),
            history(&[
                (Write(1), 1, 2),
                (swap(1, 2, true), 3, 4),
                (swap(1, 3, false), 5, 6),
            ]),
            // Unknown: it did not, it did, and it did much later.
            history(&[(MaybeWrite(1), 1, 0), (Read(0), 5, 6)]),
            history(&[(MaybeWrite(1), 1, 0), (Read(1), 5, 6)]),
            history(&[
                (MaybeWrite(1), 1, 0),
                (Read(0), 5, 6),
                (Write(2), 7, 8),
                (Read(1), 9, 10),
            ]),
            history(&[
                (MaybeSwap { from: 0, to: 1 }, 1, 0),
                (Read(0), 2, 3),
                (Read(1), 4, 5),
            ]),
        ];
        for (at, history) in fine.iter().enumerate() {
            assert!(contradiction(history).is_none(), "{at}");
        }
    }

    #[test]
    fn what_none_could_have_answered_is_found_out() {
        use Action::{MaybeSwap, MaybeWrite, Read, Write};
        let wrong = [
            // A write that was acknowledged is lost.
            history(&[(Write(1), 1, 2), (Read(0), 3, 4)]),
            // A read sees the past, after another saw the present.
            history(&[(Write(1), 1, 9), (Read(1), 2, 3), (Read(0), 4, 5)]),
            // Something that nobody wrote, or not yet.
            history(&[(Read(7), 1, 2)]),
            history(&[(Read(1), 1, 2), (Write(1), 3, 4)]),
            // Both of two swaps of one value.
            history(&[(swap(0, 1, true), 1, 9), (swap(0, 2, true), 2, 8)]),
            // An unknown one takes place twice.
            history(&[
                (MaybeWrite(1), 1, 0),
                (Read(1), 2, 3),
                (Write(2), 4, 5),
                (Read(1), 6, 7),
                (Read(2), 8, 9),
            ]),
            history(&[(MaybeSwap { from: 5, to: 1 }, 1, 0), (Read(1), 2, 3)]),
            // Before it was called.
            history(&[(Read(1), 1, 2), (MaybeWrite(1), 3, 0)]),
        ];
        for (at, history) in wrong.iter().enumerate() {
            assert!(contradiction(history).is_some(), "{at}");
        }
    }

    #[test]
    fn a_long_history_is_checked_in_no_time() {
        use Action::{MaybeWrite, Read, Write};
        let mut operations = Vec::new();
        for n in 1..800_u64 {
            let at = n * 10;
            operations.push((Write(n), at, at + 5));
            operations.push((Read(n), at + 6, at + 8));
            if n % 50 == 0 {
                operations.push((MaybeWrite(100_000 + n), at + 1, 0));
            }
        }
        assert!(contradiction(&history(&operations)).is_none());
        operations.push((Read(3), 9_000, 9_001));
        assert!(contradiction(&history(&operations)).is_some());
    }
}
