//! The entries below a prefix.

use std::sync::Arc;

use wharf_proto::v1::{KeyValue, watch_response::Event};
use wharf_registry::{View, model::KvEntry, view::KvChange, watch::WatchKey};

use super::{Events, Subject};
use crate::authz::{Access, Caller, Resource};

#[derive(Debug)]
pub(in crate::grpc) struct KeyValues {
    pub(super) prefix: String,
    pub(super) caller: Caller,
}

impl KeyValues {
    fn may_see(&self, key: &str) -> bool {
        self.caller.may(Resource::Key(key), Access::Read)
    }
}

impl Subject for KeyValues {
    type Seen = Arc<View>;

    fn key(&self) -> WatchKey {
        WatchKey::KvPrefix(self.prefix.as_str().into())
    }

    fn nothing(&self) -> Arc<View> {
        Arc::default()
    }

    fn see(&self, view: &Arc<View>) -> Arc<View> {
        view.clone()
    }

    fn changes<'a>(&'a self, old: &'a Arc<View>, new: &'a Arc<View>) -> Events<'a> {
        let changes = new.kv_changes(old, &self.prefix);
        let visible = changes.filter(|change| self.may_see(change.key()));
        Box::new(visible.map(|change| match change {
            KvChange::Upserted(entry) => upserted(entry),
            KvChange::Removed(key) => Event::KeyRemoved(key.to_string()),
        }))
    }

    fn changes_since<'a>(&'a self, view: &'a View, index: u64) -> Option<Events<'a>> {
        let removed = view.kv_removed_since(&self.prefix, index)?;
        let removed = removed
            .into_iter()
            .filter(|key| self.may_see(key))
            .map(|key| Event::KeyRemoved(key.to_string()));
        let changed = view
            .kv_prefix(&self.prefix)
            .filter(move |entry| entry.modify_index > index && self.may_see(&entry.key))
            .map(upserted);
        Some(Box::new(removed.chain(changed)))
    }
}

fn upserted(entry: &Arc<KvEntry>) -> Event {
    Event::KeyUpserted(KeyValue {
        key: entry.key.to_string(),
        value: entry.value.clone(),
        flags: entry.flags,
        create_index: entry.create_index,
        modify_index: entry.modify_index,
        lock_index: entry.lock_index,
        session: entry.session.to_string(),
    })
}
