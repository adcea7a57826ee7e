//! What is told of a topic: all of it, or what is different from what was told before.

use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, ordmap::DiffItem};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Topic;
use crate::{
    model::{CheckStatus, ConfigEntry, ConfigEntryKind, HealthCheck, Node, NodeService, Str},
    state::{Instance, InstanceKey, PlatformRecord, RecordError},
    view::View,
};

/// The newest of one topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct News {
    pub(super) topic: Topic,
    /// All there is, whatever was known before.
    pub(super) whole: bool,
    pub(super) rows: Rows,
}

/// News that a mirror cannot take.
#[derive(Debug, thiserror::Error)]
pub enum NewsError {
    #[error("changes of {0:?}, of which nothing is known")]
    Unfounded(Topic),
    #[error("rows of something else than {0:?}")]
    Foreign(Topic),
    #[error(transparent)]
    Records(#[from] RecordError),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Rows {
    Node {
        /// With its index; `None`: there is no such node.
        node: Option<(Arc<Node>, u64)>,
        services: Difference<Str, Arc<NodeService>>,
        checks: Difference<Str, Arc<HealthCheck>>,
    },
    Service {
        name: Str,
        /// `None`: there is no instance.
        index: Option<u64>,
        instances: Difference<InstanceKey, InstanceRow>,
    },
    Config {
        entries: Difference<(ConfigEntryKind, Str), Arc<ConfigEntry>>,
    },
    Platform {
        records: Vec<PlatformRecord>,
    },
}

/// What leads from one table to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Difference<K, V> {
    pub(super) upserted: Vec<V>,
    pub(super) removed: Vec<K>,
}

/// [`Instance`] on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct InstanceRow {
    key: InstanceKey,
    node: Arc<Node>,
    service: Arc<NodeService>,
    checks: Vec<Arc<HealthCheck>>,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Difference<K, V> {
    fn between<T: Clone + PartialEq>(
        earlier: &OrdMap<K, T>,
        now: &OrdMap<K, T>,
        row: impl Fn(&K, &T) -> V,
    ) -> Difference<K, V> {
        let (mut upserted, mut removed) = (Vec::new(), Vec::new());
        for item in earlier.diff(now) {
            match item {
                DiffItem::Add(key, value) => upserted.push(row(key, value)),
                DiffItem::Update { new, .. } => upserted.push(row(new.0, new.1)),
                DiffItem::Remove(key, _) => removed.push(key.clone()),
            }
        }
        Difference { upserted, removed }
    }

    pub(super) fn apply(self, table: &mut OrdMap<K, V>, key: impl Fn(&V) -> K) {
        for key in &self.removed {
            table.remove(key);
        }
        for value in self.upserted {
            table.insert(key(&value), value);
        }
    }
}

impl Difference<InstanceKey, InstanceRow> {
    /// The instances that come of it.
    pub(super) fn joined(
        self,
        mut instances: OrdMap<InstanceKey, Arc<Instance>>,
    ) -> OrdMap<InstanceKey, Arc<Instance>> {
        for key in &self.removed {
            instances.remove(key);
        }
        for row in self.upserted {
            let checks: Arc<[_]> = row.checks.into();
            let status = checks.iter().map(|check| check.status).max();
            let instance = Instance {
                node: row.node,
                service: row.service,
                status: status.unwrap_or(CheckStatus::Passing),
                checks,
            };
            instances.insert(row.key, Arc::new(instance));
        }
        instances
    }
}

/// What is to be told of a topic to who was told it from `earlier`, or was told nothing of it. `None` if it is the
/// same in both views.
pub fn news(topic: &Topic, earlier: Option<&View>, now: &View) -> Option<News> {
    let rows = match topic {
        Topic::Node(name) => {
            let (old, new) = (earlier.and_then(|view| view.node(name)), now.node(name));
            match (old, new) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return None,
                (None, None) if earlier.is_some() => return None,
                (_, None) => Rows::Node {
                    node: None,
                    services: Difference::none(),
                    checks: Difference::none(),
                },
                (old, Some(new)) => {
                    let (services, checks) = match old {
                        None => Default::default(),
                        Some(old) => (old.services.clone(), old.checks.clone()),
                    };
                    Rows::Node {
                        node: Some((new.node.clone(), new.index)),
                        services: Difference::between(&services, &new.services, |_, row| {
                            row.clone()
                        }),
                        checks: Difference::between(&checks, &new.checks, |_, row| row.clone()),
                    }
                }
            }
        }
        Topic::Service(name) => {
            let old = earlier.and_then(|view| view.service(name));
            let (name, index, instances) = match (old, now.service(name)) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return None,
                (None, None) if earlier.is_some() => return None,
                (_, None) => (name, None, Difference::none()),
                (old, Some(new)) => {
                    let none = OrdMap::new();
                    let old = old.map_or(&none, |old| &old.instances);
                    let difference = Difference::between(old, &new.instances, instance_row);
                    (&new.name, Some(new.index), difference)
                }
            };
            Rows::Service {
                name: name.clone(),
                index,
                instances,
            }
        }
        Topic::Config => {
            if earlier.is_some_and(|earlier| earlier.has_same_config(now)) {
                return None;
            }
            let none = OrdMap::new();
            let old = earlier.map_or(&none, View::config_table);
            let entries = Difference::between(old, now.config_table(), |_, entry| entry.clone());
            if earlier.is_some() && entries.upserted.is_empty() && entries.removed.is_empty() {
                return None;
            }
            Rows::Config { entries }
        }
        Topic::PlatformNode(id) => {
            if earlier.is_some_and(|earlier| earlier.has_same_platform_node(now, id)) {
                return None;
            }
            let records = now.platform_node_records(id);
            if earlier.is_some_and(|earlier| earlier.platform_node_records(id) == records) {
                return None;
            }
            Rows::Platform { records }
        }
    };
    // Of what was not there, or is not there any more, what is told is the whole.
    let was_there_and_is = |entry: &dyn Fn(&View) -> bool| earlier.is_some_and(entry) && entry(now);
    let whole = match topic {
        Topic::Node(name) => !was_there_and_is(&|view| view.node(name).is_some()),
        Topic::Service(name) => !was_there_and_is(&|view| view.service(name).is_some()),
        Topic::Config => earlier.is_none(),
        Topic::PlatformNode(_) => true,
    };
    Some(News {
        topic: topic.clone(),
        whole,
        rows,
    })
}

fn instance_row(key: &InstanceKey, instance: &Arc<Instance>) -> InstanceRow {
    InstanceRow {
        key: key.clone(),
        node: instance.node.clone(),
        service: instance.service.clone(),
        checks: instance.checks.to_vec(),
    }
}

impl<K, V> Difference<K, V> {
    fn none() -> Difference<K, V> {
        Difference {
            upserted: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Takes away all but the first `rows` changes.
    fn split_off(&mut self, rows: usize) -> Option<Difference<K, V>> {
        let upserted = self.upserted.split_off(rows.min(self.upserted.len()));
        let left = rows - self.upserted.len();
        let removed = self.removed.split_off(left.min(self.removed.len()));
        let rest = Difference { upserted, removed };
        (!rest.upserted.is_empty() || !rest.removed.is_empty()).then_some(rest)
    }
}

impl News {
    /// The same in several parts, of at most so many instances each, to be applied together and in order.
    pub fn split(mut self, rows: usize) -> Vec<News> {
        let rows = rows.max(1);
        let mut parts = Vec::new();
        loop {
            let rest = match &mut self.rows {
                Rows::Service {
                    name,
                    index,
                    instances,
                } => instances.split_off(rows).map(|instances| Rows::Service {
                    name: name.clone(),
                    index: *index,
                    instances,
                }),
                Rows::Node { .. } | Rows::Config { .. } | Rows::Platform { .. } => None,
            };
            let Some(rows) = rest else {
                parts.push(self);
                return parts;
            };
            let rest = News {
                topic: self.topic.clone(),
                whole: false,
                rows,
            };
            parts.push(std::mem::replace(&mut self, rest));
        }
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }
}

/// A row or news on their way: MessagePack with field names, so that a field can be added with a default.
pub fn pack<T: Serialize>(value: &T) -> Result<Bytes, PackError> {
    let packed = rmp_serde::to_vec_named(value);
    Ok(Bytes::from(
        packed.map_err(|error| PackError(error.to_string()))?,
    ))
}

/// The value of [`pack`].
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PackError> {
    rmp_serde::from_slice(bytes).map_err(|error| PackError(error.to_string()))
}

/// Bytes that are no such value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not readable: {0}")]
pub struct PackError(String);
