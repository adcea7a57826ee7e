//! What a watch promises, each as one function that says how a promise was broken.
//!
//! A watcher is shown answers with their indexes. It need not be shown every answer there ever was, as it may be
//! slower than the changes: it is shown the newest, whenever it looks.

use std::fmt::Debug;

/// An answer, and the index that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown<T> {
    pub index: u64,
    pub answer: T,
}

/// How a promise was broken.
pub type Broken = String;

/// Answers come in the order in which they held: `truth` are all of them, as they followed each other.
pub fn ordered<T: PartialEq + Debug>(truth: &[Shown<T>], seen: &[Shown<T>]) -> Result<(), Broken> {
    let mut rest = truth.iter();
    for shown in seen {
        if !rest.any(|held| held == shown) {
            return Err(format!(
                "{shown:?} was never so, or not after what was shown before"
            ));
        }
    }
    Ok(())
}

/// Nothing is missed: once all is quiet, the last answer that was shown is the one that holds.
pub fn without_gap<T: PartialEq + Debug>(
    holds: &Shown<T>,
    seen: &[Shown<T>],
) -> Result<(), Broken> {
    match seen.last() {
        Some(last) if last == holds => Ok(()),
        last => Err(format!("{holds:?} holds, and {last:?} was shown last")),
    }
}

/// Nobody is shown twice what has one index.
pub fn without_duplicates<T: Debug>(seen: &[Shown<T>]) -> Result<(), Broken> {
    let twice = seen.windows(2).find(|pair| pair[0].index == pair[1].index);
    twice.map_or(Ok(()), |pair| Err(format!("shown twice: {pair:?}")))
}

/// Indexes never go back. A restored state is no exception here: its indexes are above all that were seen.
pub fn index_grows<T: Debug>(seen: &[Shown<T>]) -> Result<(), Broken> {
    let back = seen.windows(2).find(|pair| pair[0].index > pair[1].index);
    back.map_or(Ok(()), |pair| Err(format!("the index went back: {pair:?}")))
}

/// Whoever comes back with the index that it saw last is shown what holds by then if that has changed, with
/// a larger index, and is left waiting if it has not.
pub fn resumable<T: PartialEq + Debug>(
    left_with: &Shown<T>,
    holds: &Shown<T>,
    shown: Option<&Shown<T>>,
) -> Result<(), Broken> {
    let changed = left_with.answer != holds.answer;
    match shown {
        Some(shown) if shown != holds => Err(format!("{holds:?} holds, {shown:?} was shown")),
        Some(shown) if shown.index <= left_with.index => {
            Err(format!("{left_with:?} was known, {shown:?} was shown"))
        }
        None if changed => Err(format!(
            "{left_with:?} became {holds:?}, and nothing was shown"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(index: u64, answer: &'static str) -> Shown<&'static str> {
        Shown { index, answer }
    }

    #[test]
    fn each_promise_knows_when_it_is_broken() {
        let truth = [shown(1, "a"), shown(3, "b"), shown(4, "a"), shown(7, "c")];
        let [first, second, third, last] = &truth;
        let seen = |at: &[usize]| -> Vec<_> { at.iter().map(|at| truth[*at].clone()).collect() };

        assert_eq!(ordered(&truth, &seen(&[0, 1, 3])), Ok(()));
        assert!(ordered(&truth, &seen(&[1, 0])).is_err(), "backwards");
        assert!(ordered(&truth, &[shown(3, "a")]).is_err(), "never so");
        assert!(ordered(&truth, &seen(&[2, 2])).is_err(), "once, not twice");

        assert_eq!(without_gap(last, &seen(&[0, 3])), Ok(()));
        assert!(
            without_gap(last, &seen(&[0, 2])).is_err(),
            "the last is missing"
        );
        assert!(without_gap(last, &[]).is_err(), "nothing was shown");

        assert_eq!(
            without_duplicates(&seen(&[0, 2])),
            Ok(()),
            "again is not twice"
        );
        assert!(without_duplicates(&seen(&[0, 0])).is_err());

        assert_eq!(index_grows(&seen(&[0, 1, 3])), Ok(()));
        assert!(index_grows(&seen(&[3, 0])).is_err());

        assert_eq!(resumable(first, second, Some(second)), Ok(()));
        assert_eq!(resumable(first, first, None), Ok(()));
        assert_eq!(
            resumable(first, third, Some(third)),
            Ok(()),
            "there was one between"
        );
        assert!(resumable(first, second, None).is_err(), "left waiting");
        assert!(resumable(first, third, Some(second)).is_err(), "the past");
        assert!(resumable(last, last, Some(last)).is_err(), "known");
    }
}
