//! A part of the state, kept where there is no log: what a client agent follows.
//!
//! A follower names [`Topic`]s. A server tells each of them whole once, and from then on the rows in which its
//! newest view differs from the one it told last ([`Feed`]); the follower puts them into a [`Mirror`], whose
//! [`Registry`] reads like a server's, for as much of it as is followed. All news that are told together are of one
//! view, so the mirror is what the server's state was at that index, as far as it goes: never a mixture.
//!
//! Pure: who is told, and how the bytes get there, is the agent's business.

mod feed;
mod news;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

pub use feed::Feed;
pub use news::{News, NewsError, PackError, news, pack, unpack};

use crate::{
    model::{Str, fold_name},
    replica::Registry,
    state::{NodeEntry, Record, RecordError, ServiceEntry, State, Touched},
    view::View,
    watch::WatchKey,
};
use news::Rows;

/// A part of the state that can be followed. Names are folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// A node with its instances and checks.
    Node(Str),
    /// A service: its instances, with their nodes and checks.
    Service(Str),
    /// All configuration entries.
    Config,
    /// A node of the platform by its id, its allocations, and the jobs that they were made from. A mirror has
    /// room for one such node.
    PlatformNode(Str),
}

impl Topic {
    /// The topic that holds what a watch key is about; `None` for whole tables and what nobody follows.
    pub fn of(key: &WatchKey) -> Option<Topic> {
        match key {
            WatchKey::Node(name) => Some(Topic::Node(name.clone())),
            WatchKey::Service(name) => Some(Topic::Service(name.clone())),
            WatchKey::Config | WatchKey::ConfigEntry(..) => Some(Topic::Config),
            WatchKey::PlatformNode(id) | WatchKey::NodeAllocs(id) => {
                Some(Topic::PlatformNode(id.clone()))
            }
            WatchKey::Nodes
            | WatchKey::ServiceNames
            | WatchKey::Services
            | WatchKey::Checks
            | WatchKey::Kv(_)
            | WatchKey::KvPrefix(_)
            | WatchKey::Jobs
            | WatchKey::Job(_)
            | WatchKey::Allocs
            | WatchKey::JobAllocs(_)
            | WatchKey::Alloc(_)
            | WatchKey::PlatformNodes => None,
        }
    }

    pub fn node(name: &str) -> Topic {
        Topic::Node(fold_name(name))
    }

    pub fn service(name: &str) -> Topic {
        Topic::Service(fold_name(name))
    }

    /// The watch keys that announce its news.
    pub fn keys(&self) -> Vec<WatchKey> {
        match self {
            Topic::Node(name) => vec![WatchKey::Node(name.clone())],
            Topic::Service(name) => vec![WatchKey::Service(name.clone())],
            Topic::Config => vec![WatchKey::Config],
            Topic::PlatformNode(id) => vec![
                WatchKey::PlatformNode(id.clone()),
                WatchKey::NodeAllocs(id.clone()),
            ],
        }
    }
}

/// The follower's side. Used by one task.
#[derive(Debug, Default)]
pub struct Mirror {
    state: State,
    registry: Registry,
}

impl Mirror {
    pub fn new() -> Mirror {
        Mirror::default()
    }

    /// What readers read; of topics that are not followed it knows nothing.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The index of the server's view that was told last.
    pub fn index(&self) -> u64 {
        self.state.indexes.applied
    }

    /// Takes in what a server tells of its view at `index`, publishes one view of the result, then wakes who
    /// watches what changed. On an error nothing of it is taken in.
    ///
    /// # Errors
    ///
    /// For news that do not follow from what was told before: the topics have to be told whole again.
    pub fn apply(&mut self, index: u64, told: Vec<News>) -> Result<(), NewsError> {
        let mut state = self.state.clone();
        let mut touched = Touched::default();
        for News { topic, whole, rows } in told {
            match (&topic, rows) {
                (
                    Topic::Node(name),
                    Rows::Node {
                        node,
                        services,
                        checks,
                    },
                ) => {
                    let known = state.nodes.remove(name).filter(|_| !whole);
                    if let Some((node, index)) = node {
                        let mut entry = match known {
                            Some(entry) => NodeEntry::clone(&entry),
                            None if whole => NodeEntry::new(node.clone(), index),
                            None => return Err(NewsError::Unfounded(topic)),
                        };
                        entry.node = node;
                        entry.index = index;
                        services.apply(&mut entry.services, |service| service.id.clone());
                        for id in &checks.removed {
                            entry.remove_check(id);
                        }
                        for check in checks.upserted {
                            entry.insert_check(check);
                        }
                        state.nodes.insert(name.clone(), Arc::new(entry));
                    }
                }
                (
                    Topic::Service(key),
                    Rows::Service {
                        name,
                        index,
                        instances,
                    },
                ) => {
                    let known = state.services.remove(key).filter(|_| !whole);
                    let known = match known {
                        Some(entry) => entry.instances.clone(),
                        None if whole => OrdMap::new(),
                        None => return Err(NewsError::Unfounded(topic)),
                    };
                    let instances = instances.joined(known);
                    if let Some(index) = index {
                        let entry = ServiceEntry {
                            name,
                            instances,
                            index,
                            ..ServiceEntry::default()
                        };
                        state.services.insert(key.clone(), Arc::new(entry));
                    }
                }
                (Topic::Config, Rows::Config { entries }) => {
                    if whole {
                        for (kind, name) in state.config.keys() {
                            touched.add(WatchKey::ConfigEntry(*kind, name.clone()));
                        }
                        state.config = OrdMap::new();
                    }
                    for (kind, name) in &entries.removed {
                        touched.add(WatchKey::ConfigEntry(*kind, name.clone()));
                    }
                    for entry in &entries.upserted {
                        touched.add(WatchKey::ConfigEntry(entry.kind(), entry.name().clone()));
                    }
                    entries.apply(&mut state.config, |entry| {
                        (entry.kind(), entry.name().clone())
                    });
                }
                (Topic::PlatformNode(_), Rows::Platform { records }) => {
                    let mut fresh = State::default();
                    for record in records {
                        fresh.insert(Record::Platform(record))?;
                    }
                    state.platform = fresh.platform;
                }
                (topic, _) => return Err(NewsError::Foreign(topic.clone())),
            }
            for key in topic.keys() {
                touched.add(key);
            }
        }
        state.indexes.applied = index;
        self.state = state;
        self.registry.publish(&self.state, &touched);
        Ok(())
    }

    /// Forgets everything but these topics.
    pub fn retain(&mut self, topics: &[Topic]) {
        let nodes = self.state.nodes.keys().cloned().map(Topic::Node);
        let services = self.state.services.keys().cloned().map(Topic::Service);
        let platform = self.state.platform.nodes.keys().cloned();
        let all: Vec<Topic> = nodes
            .chain(services)
            .chain(platform.map(Topic::PlatformNode))
            .chain([Topic::Config])
            .collect();
        let kept: BTreeSet<&Topic> = topics.iter().collect();
        for topic in all.iter().filter(|topic| !kept.contains(topic)) {
            self.forget(topic);
        }
    }

    /// Forgets a topic that is not followed any more.
    pub fn forget(&mut self, topic: &Topic) {
        match topic {
            Topic::Node(name) => {
                self.state.nodes.remove(name);
            }
            Topic::Service(name) => {
                self.state.services.remove(name);
            }
            Topic::Config => self.state.config = OrdMap::new(),
            Topic::PlatformNode(id) => {
                if self.state.platform.nodes.contains_key(id) {
                    self.state.platform = State::default().platform;
                }
            }
        }
        self.registry.publish(&self.state, &Touched::default());
    }
}

/// The rows that a reverse lookup of an address needs, in the order of [`View::of_records`].
pub fn reverse(view: &View, address: IpAddr) -> Vec<Record> {
    let instances: Vec<_> = view.instances_at(address).collect();
    let at_address = view
        .nodes_at(address)
        .map(|entry| (&entry.node, entry.index));
    let carrying = instances.iter().map(|(_, instance)| (&instance.node, 0));
    let mut nodes: Vec<_> = at_address.chain(carrying).collect();
    nodes.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    nodes.dedup_by(|(a, _), (b, _)| a.name == b.name);
    let nodes = nodes.into_iter().map(|(node, index)| Record::Node {
        index,
        node: node.clone(),
    });
    let services = instances.iter().map(|(_, instance)| Record::Service {
        node: instance.node.name.clone(),
        service: instance.service.clone(),
    });
    let mut checks: Vec<_> = instances
        .iter()
        .flat_map(|(_, instance)| instance.checks.iter())
        .collect();
    checks.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
    checks.dedup_by(|a, b| (&a.node, &a.id) == (&b.node, &b.id));
    let checks = checks.into_iter().map(|check| Record::Check {
        check: check.clone(),
    });
    let mut indexes: Vec<_> = instances
        .iter()
        .map(|(entry, _)| (fold_name(&entry.name), entry.index))
        .collect();
    indexes.dedup();
    let indexes = indexes
        .into_iter()
        .map(|(service, index)| Record::ServiceIndex { service, index });
    nodes.chain(services).chain(checks).chain(indexes).collect()
}

impl View {
    /// A state that holds these records and no others.
    pub fn of_records(records: impl IntoIterator<Item = Record>) -> Result<View, RecordError> {
        let mut state = State::default();
        for record in records {
            state.insert(record)?;
        }
        Ok(View::new(state))
    }
}
