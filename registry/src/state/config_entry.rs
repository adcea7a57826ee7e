//! Configuration entries.

use std::sync::Arc;

use super::{State, Touched};
use crate::{
    command::{ConfigCommand, Outcome},
    model::{ConfigEntry, ConfigEntryKind, Str},
    watch::WatchKey,
};

impl State {
    pub(super) fn apply_config(
        &mut self,
        index: u64,
        command: &ConfigCommand,
        touched: &mut Touched,
    ) -> Outcome {
        match command {
            ConfigCommand::Upsert { entry } => {
                self.config_upsert(index, entry, touched);
                Outcome::Applied(true)
            }
            ConfigCommand::CompareAndUpsert {
                entry,
                index: expected,
            } => {
                if self.config_modified(entry.kind(), entry.name()) != *expected {
                    return Outcome::Applied(false);
                }
                self.config_upsert(index, entry, touched);
                Outcome::Applied(true)
            }
            ConfigCommand::Delete { kind, name } => {
                self.config_delete(index, *kind, name, touched);
                Outcome::Applied(true)
            }
            ConfigCommand::CompareAndDelete {
                kind,
                name,
                index: expected,
            } => {
                let current = self.config_modified(*kind, name);
                if current == 0 || current != *expected {
                    return Outcome::Applied(false);
                }
                self.config_delete(index, *kind, name, touched);
                Outcome::Applied(true)
            }
        }
    }

    /// The modify index of an entry, 0 when there is none.
    fn config_modified(&self, kind: ConfigEntryKind, name: &Str) -> u64 {
        self.config
            .get(&(kind, name.clone()))
            .map_or(0, |entry| entry.indexes().1)
    }

    fn config_upsert(&mut self, index: u64, entry: &ConfigEntry, touched: &mut Touched) {
        let key = (entry.kind(), entry.name().clone());
        let mut entry = entry.clone();
        let create = match self.config.get(&key) {
            Some(existing) => {
                let (create, modify) = existing.indexes();
                entry.set_indexes(create, modify);
                if entry == **existing {
                    return;
                }
                create
            }
            None => index,
        };
        entry.set_indexes(create, index);
        self.config.insert(key.clone(), Arc::new(entry));
        self.config_changed(index, key, touched);
    }

    fn config_delete(
        &mut self,
        index: u64,
        kind: ConfigEntryKind,
        name: &Str,
        touched: &mut Touched,
    ) {
        let key = (kind, name.clone());
        if self.config.remove(&key).is_some() {
            self.config_changed(index, key, touched);
        }
    }

    fn config_changed(
        &mut self,
        index: u64,
        (kind, name): (ConfigEntryKind, Str),
        touched: &mut Touched,
    ) {
        self.indexes.config = index;
        touched.add(WatchKey::Config);
        touched.add(WatchKey::ConfigEntry(kind, name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command::Command, model::ServiceDefaults};

    fn entry(protocol: &str) -> ConfigEntry {
        ConfigEntry::ServiceDefaults(Box::new(ServiceDefaults {
            kind: "service-defaults".into(),
            name: "web".into(),
            protocol: protocol.into(),
            ..ServiceDefaults::default()
        }))
    }

    #[test]
    fn an_entry_is_replaced_compared_and_deleted() {
        let mut state = State::default();
        let mut apply = |command| {
            let mut touched = Touched::default();
            let index = state.applied() + 1;
            let outcome = state.apply(index, &Command::Config(command), &mut touched);
            (outcome, touched.iter().count(), state.indexes.config)
        };
        let yes = Outcome::Applied(true);
        let no = Outcome::Applied(false);
        let (kind, name): (_, Str) = (ConfigEntryKind::ServiceDefaults, "web".into());
        assert_eq!(
            apply(ConfigCommand::Upsert {
                entry: entry("http")
            }),
            (yes.clone(), 2, 1)
        );
        assert_eq!(
            apply(ConfigCommand::Upsert {
                entry: entry("http")
            }),
            (yes.clone(), 0, 1)
        );
        let stale = ConfigCommand::CompareAndUpsert {
            entry: entry("grpc"),
            index: 9,
        };
        assert_eq!(apply(stale), (no.clone(), 0, 1));
        let fresh = ConfigCommand::CompareAndUpsert {
            entry: entry("grpc"),
            index: 1,
        };
        assert_eq!(apply(fresh), (yes.clone(), 2, 4));
        let stale = ConfigCommand::CompareAndDelete {
            kind,
            name: name.clone(),
            index: 1,
        };
        assert_eq!(apply(stale), (no, 0, 4));
        assert_eq!(apply(ConfigCommand::Delete { kind, name }), (yes, 2, 6));
        assert!(state.config.is_empty());
    }
}
