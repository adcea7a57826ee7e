//! How long the watched prefixes of keys are.

use std::collections::BTreeMap;

use super::{cells::lock, sync::Mutex};

/// How many watched prefixes there are of each length, in bytes: a changed key is looked up under these lengths
/// only. A length is added before the cell of its prefix is entered, and a writer asks for them after its view is
/// published: who is not found has the new view.
#[derive(Debug)]
pub(super) struct PrefixLengths(Mutex<BTreeMap<usize, usize>>);

impl Default for PrefixLengths {
    fn default() -> Self {
        PrefixLengths(Mutex::new(BTreeMap::new()))
    }
}

impl PrefixLengths {
    pub(super) fn add(&self, length: usize) {
        *lock(&self.0).entry(length).or_default() += 1;
    }

    pub(super) fn remove(&self, length: usize) {
        let mut lengths = lock(&self.0);
        if let Some(count) = lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&length);
            }
        }
    }

    /// The lengths that a prefix of a key of this length may have.
    pub(super) fn up_to(&self, length: usize) -> Vec<usize> {
        let lengths = lock(&self.0);
        lengths
            .range(..=length)
            .map(|(&length, _)| length)
            .collect()
    }
}
