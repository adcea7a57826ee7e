//! The key-value tree.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{State, Touched};
use crate::{
    command::{KvCommand, Outcome, Refusal},
    model::{KvEntry, Str},
    watch::WatchKey,
};

/// That a key, or everything below a prefix, was deleted at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub index: u64,
    /// The deletion was of everything that starts with the key.
    pub tree: bool,
}

impl State {
    pub(super) fn apply_kv(
        &mut self,
        index: u64,
        command: &KvCommand,
        touched: &mut Touched,
    ) -> Outcome {
        match command {
            KvCommand::Set { entry } => {
                if entry.key.is_empty() {
                    return Outcome::Refused(Refusal::KeyMissing);
                }
                self.kv_set(index, entry, touched);
                Outcome::Applied(true)
            }
            KvCommand::CompareAndSet {
                entry,
                index: expected,
            } => {
                if entry.key.is_empty() {
                    return Outcome::Refused(Refusal::KeyMissing);
                }
                let current = self
                    .kv
                    .get(&entry.key)
                    .map_or(0, |entry| entry.modify_index);
                if current != *expected {
                    return Outcome::Applied(false);
                }
                self.kv_set(index, entry, touched);
                Outcome::Applied(true)
            }
            KvCommand::Delete { key } => {
                self.kv_delete(index, key, touched);
                Outcome::Applied(true)
            }
            KvCommand::CompareAndDelete {
                key,
                index: expected,
            } => {
                match self.kv.get(key) {
                    None => return Outcome::Applied(true),
                    Some(entry) if entry.modify_index != *expected => {
                        return Outcome::Applied(false);
                    }
                    Some(_) => self.kv_delete(index, key, touched),
                }
                Outcome::Applied(true)
            }
            KvCommand::DeleteTree { prefix } => {
                self.kv_delete_tree(index, prefix, touched);
                Outcome::Applied(true)
            }
            KvCommand::ReapTombstones { up_to } => {
                self.reap_tombstones(*up_to);
                Outcome::Done
            }
        }
    }

    /// A plain set keeps the lock of the entry, and an equal one changes nothing.
    fn kv_set(&mut self, index: u64, wanted: &KvEntry, touched: &mut Touched) {
        let existing = self.kv.get(&wanted.key);
        if let Some(existing) = existing
            && existing.value == wanted.value
            && existing.flags == wanted.flags
        {
            return;
        }
        let entry = KvEntry {
            key: wanted.key.clone(),
            value: wanted.value.clone(),
            flags: wanted.flags,
            lock_index: existing.map_or(0, |entry| entry.lock_index),
            session: existing.map_or_else(|| "".into(), |entry| entry.session.clone()),
            create_index: existing.map_or(index, |entry| entry.create_index),
            modify_index: index,
        };
        self.kv.insert(wanted.key.clone(), Arc::new(entry));
        // The entry's own index now says more than the stone of its last deletion.
        if self
            .tombstones
            .get(&wanted.key)
            .is_some_and(|stone| !stone.tree)
        {
            self.tombstones.remove(&wanted.key);
        }
        self.indexes.kv = index;
        touched.add(WatchKey::Kv(wanted.key.clone()));
    }

    fn kv_delete(&mut self, index: u64, key: &Str, touched: &mut Touched) {
        if self.kv.remove(key).is_none() {
            return;
        }
        self.bury(index, key, false);
        self.indexes.kv = index;
        touched.add(WatchKey::Kv(key.clone()));
    }

    fn kv_delete_tree(&mut self, index: u64, prefix: &Str, touched: &mut Touched) {
        let keys: Vec<Str> = prefix_range(&self.kv, prefix)
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.kv.remove(&key);
            touched.add(WatchKey::Kv(key));
        }
        // One stone for the tree makes those below it redundant.
        let below: Vec<Str> = prefix_range(&self.tombstones, prefix)
            .map(|(key, _)| key.clone())
            .collect();
        for key in below {
            self.tombstones.remove(&key);
        }
        self.bury(index, prefix, true);
        self.indexes.kv = index;
    }

    /// A single deletion must not hide that the tree at the same key was deleted before.
    fn bury(&mut self, index: u64, key: &Str, tree: bool) {
        let tree = tree || self.tombstones.get(key).is_some_and(|stone| stone.tree);
        self.tombstones
            .insert(key.clone(), Tombstone { index, tree });
    }

    fn reap_tombstones(&mut self, up_to: u64) {
        let old: Vec<(Str, u64)> = self
            .tombstones
            .iter()
            .filter(|(_, stone)| stone.index <= up_to)
            .map(|(key, stone)| (key.clone(), stone.index))
            .collect();
        for (key, index) in old {
            self.tombstones.remove(&key);
            self.indexes.kv_reaped = self.indexes.kv_reaped.max(index);
        }
    }

    /// The index at which anything below `prefix` last changed. At least 1, and never smaller than
    /// an earlier answer: reaped tombstones leave their index behind in `kv_reaped`.
    pub(crate) fn kv_prefix_index(&self, prefix: &str) -> u64 {
        let entries = prefix_range(&self.kv, prefix).map(|(_, entry)| entry.modify_index);
        let stones = prefix_range(&self.tombstones, prefix).map(|(_, stone)| stone.index);
        let newest = entries
            .chain(stones)
            .chain(self.tree_stones_above(prefix))
            .max();
        newest.unwrap_or(0).max(self.indexes.kv_reaped).max(1)
    }

    /// The same for one key, whether it exists or not.
    pub(crate) fn kv_key_index(&self, key: &str) -> u64 {
        if let Some(entry) = self.kv.get(key) {
            return entry.modify_index;
        }
        let own = self.tombstones.get(key).map(|stone| stone.index);
        let newest = own.into_iter().chain(self.tree_stones_above(key)).max();
        newest.unwrap_or(0).max(self.indexes.kv_reaped).max(1)
    }

    /// See [`View::kv_removed_since`](crate::View::kv_removed_since).
    pub(crate) fn kv_removed_since(&self, prefix: &str, index: u64) -> Option<Vec<Str>> {
        if index < self.indexes.kv_reaped {
            return None;
        }
        // A tree's stone does not say which keys were in it.
        if self.tree_stones_above(prefix).any(|stone| stone > index) {
            return None;
        }
        prefix_range(&self.tombstones, prefix)
            .filter(|(_, stone)| stone.index > index)
            .map(|(key, stone)| (!stone.tree).then(|| key.clone()))
            .collect()
    }

    /// The deletions of whole trees that `key` was in.
    fn tree_stones_above<'a>(&'a self, key: &'a str) -> impl Iterator<Item = u64> + 'a {
        (0..key.len())
            .filter(|&end| key.is_char_boundary(end))
            .filter_map(|end| self.tombstones.get(&key[..end]))
            .filter(|stone| stone.tree)
            .map(|stone| stone.index)
    }
}

/// The entries whose key starts with `prefix`, in key order.
pub(crate) fn prefix_range<'a, V: Clone>(
    map: &'a imbl::OrdMap<Str, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a Str, &'a V)> {
    map.range::<_, str>((
        std::ops::Bound::Included(prefix),
        std::ops::Bound::Unbounded,
    ))
    .take_while(move |(key, _)| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::Command;

    fn set(key: &str, value: &str) -> Command {
        Command::Kv(KvCommand::Set {
            entry: entry(key, value),
        })
    }

    fn entry(key: &str, value: &str) -> KvEntry {
        KvEntry {
            key: key.into(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..KvEntry::default()
        }
    }

    /// Applies at consecutive indexes and returns the outcomes with the keys each touched.
    fn run(state: &mut State, commands: &[Command]) -> Vec<(Outcome, usize)> {
        commands
            .iter()
            .map(|command| {
                let mut touched = Touched::default();
                let index = state.applied() + 1;
                let outcome = state.apply(index, command, &mut touched);
                (outcome, touched.iter().count())
            })
            .collect()
    }

    #[test]
    fn an_equal_set_changes_no_index_and_wakes_nobody() {
        let mut state = State::default();
        let outcomes = run(&mut state, &[set("a", "1"), set("a", "1")]);
        assert_eq!(
            outcomes,
            [(Outcome::Applied(true), 1), (Outcome::Applied(true), 0)]
        );
        assert_eq!(state.kv["a"].modify_index, 1);
    }

    #[test]
    fn check_and_set_compares_the_modify_index() {
        let mut state = State::default();
        let cas = |value: &str, index| {
            Command::Kv(KvCommand::CompareAndSet {
                entry: entry("a", value),
                index,
            })
        };
        let outcomes: Vec<Outcome> = run(
            &mut state,
            &[cas("1", 0), cas("2", 0), cas("3", 1), cas("4", 1)],
        )
        .into_iter()
        .map(|(outcome, _)| outcome)
        .collect();
        assert_eq!(outcomes, [true, false, true, false].map(Outcome::Applied));
        assert_eq!(state.kv["a"].value, "3");
        assert_eq!(
            (state.kv["a"].create_index, state.kv["a"].modify_index),
            (1, 3)
        );
    }

    #[test]
    fn deletions_move_the_index_of_their_prefix() {
        let mut state = State::default();
        run(
            &mut state,
            &[set("a/1", "x"), set("a/b/2", "x"), set("c", "x")],
        );
        assert_eq!(state.kv_prefix_index("a/"), 2);
        run(
            &mut state,
            &[Command::Kv(KvCommand::Delete { key: "a/1".into() })],
        );
        assert_eq!(state.kv_prefix_index("a/"), 4);
        assert_eq!(
            state.kv_prefix_index("a/b/"),
            2,
            "the sibling is not concerned"
        );
        run(
            &mut state,
            &[Command::Kv(KvCommand::DeleteTree {
                prefix: "a/".into(),
            })],
        );
        assert_eq!(state.kv_prefix_index("a/"), 5);
        assert_eq!(
            state.kv_prefix_index("a/b/"),
            5,
            "it was below the deleted tree"
        );
        assert_eq!(state.kv_prefix_index("c"), 3);
        run(
            &mut state,
            &[Command::Kv(KvCommand::ReapTombstones { up_to: 5 })],
        );
        assert!(state.tombstones.is_empty());
        assert_eq!(
            state.kv_prefix_index("a/"),
            5,
            "a reaped stone leaves its index"
        );
        assert_eq!(state.kv_key_index("a/1"), 5);
    }

    #[test]
    fn deletions_are_remembered_until_reaped_or_buried_in_a_tree() {
        let mut state = State::default();
        let delete = |key: &str| Command::Kv(KvCommand::Delete { key: key.into() });
        run(
            &mut state,
            &[
                set("a/1", "x"),
                set("a/2", "x"),
                set("b", "x"),
                delete("a/1"),
            ],
        );
        let since = |state: &State, prefix, index| state.kv_removed_since(prefix, index);
        assert_eq!(since(&state, "a/", 3), Some(vec!["a/1".into()]));
        assert_eq!(since(&state, "a/", 4), Some(vec![]));
        let tree = Command::Kv(KvCommand::DeleteTree {
            prefix: "a/".into(),
        });
        run(&mut state, &[tree, set("a/2", "y")]);
        assert_eq!(since(&state, "a/", 4), None, "which keys is not known");
        assert_eq!(since(&state, "a/2", 4), None, "the tree was above");
        assert_eq!(since(&state, "b", 4), Some(vec![]));
        assert_eq!(since(&state, "a/", 5), Some(vec![]));
        let reap = Command::Kv(KvCommand::ReapTombstones { up_to: 5 });
        run(&mut state, &[delete("b"), reap]);
        assert_eq!(since(&state, "b", 4), None, "older deletions were reaped");
        assert_eq!(since(&state, "b", 5), Some(vec!["b".into()]));
    }

    #[test]
    fn an_empty_key_is_refused() {
        let mut state = State::default();
        let outcome = run(&mut state, &[set("", "x")]);
        assert_eq!(outcome, [(Outcome::Refused(Refusal::KeyMissing), 0)]);
    }
}
