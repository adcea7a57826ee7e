//! The state as a sequence of records, for a snapshot, and back.
//!
//! Records come sorted by table and key, and contain nothing that differs between replicas: the
//! same state gives the same bytes everywhere.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::{
    Indexes, Instance, LeftMember, NodeEntry, Restoring, ServiceEntry, State, kv::Tombstone,
    platform::PlatformRecord,
};
use crate::model::{
    AutopilotConfig, ConfigEntry, HealthCheck, KvEntry, Node, NodeService, Str, fold_name,
    platform::UnixNanos,
};

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    Indexes(IndexesRecord),
    Node {
        index: u64,
        node: Arc<Node>,
    },
    Service {
        node: Str,
        service: Arc<NodeService>,
    },
    Check {
        check: Arc<HealthCheck>,
    },
    ServiceIndex {
        service: Str,
        index: u64,
    },
    Kv(Arc<KvEntry>),
    Tombstone {
        key: Str,
        stone: Tombstone,
    },
    Config(Arc<ConfigEntry>),
    Platform(PlatformRecord),
    Autopilot(Arc<AutopilotConfig>),
    LeftMember(Arc<LeftMember>),
    RestorePart {
        id: Str,
        time: UnixNanos,
        bytes: Bytes,
    },
}

/// [`Indexes`] as they are stored: a field that an older snapshot lacks is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexesRecord {
    nodes: u64,
    services: u64,
    service_names: u64,
    checks: u64,
    kv: u64,
    kv_reaped: u64,
    config: u64,
    node_extinction: u64,
    service_extinction: u64,
    restored: u64,
    /// [`State::offset`]
    offset: u64,
}

/// Records that do not make a state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("{what} of the unknown node {node:?}")]
    UnknownNode { what: &'static str, node: Str },
    #[error("index of the unknown service {0:?}")]
    UnknownService(Str),
    #[error("a version of the unknown job {0:?}")]
    UnknownJob(Str),
    #[error("allocation {0} of an unknown job, or on an unknown node")]
    StrayAlloc(Str),
    #[error("the index {0} is beyond every index that a state could come to")]
    Index(u64),
}

/// Indexes are below: no log gets that far, and sums of them fit.
const MAX_INDEX: u64 = 1 << 56;

fn check_index(index: u64) -> Result<(), RecordError> {
    match index < MAX_INDEX {
        true => Ok(()),
        false => Err(RecordError::Index(index)),
    }
}

impl Record {
    /// The table that the record belongs to. Numbers are part of the snapshot format: they are
    /// never reused, and order the tables within a snapshot.
    pub fn table(&self) -> u8 {
        match self {
            Record::Indexes(_) => 1,
            Record::Node { .. } => 10,
            Record::Service { .. } => 11,
            Record::Check { .. } => 12,
            Record::ServiceIndex { .. } => 13,
            Record::Kv(_) => 20,
            Record::Tombstone { .. } => 21,
            Record::Config(_) => 30,
            Record::Platform(record) => record.table(),
            Record::Autopilot(_) => 50,
            Record::LeftMember(_) => 51,
            Record::RestorePart { .. } => 90,
        }
    }

    /// Whether it is of something under way, or of this cluster's servers and agents, and not of what people keep.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Record::RestorePart { .. } | Record::LeftMember(_))
    }

    /// What people call the table of that number.
    pub fn table_name(table: u8) -> &'static str {
        match table {
            1 => "Index",
            10 => "Node",
            11 => "Service",
            12 => "Check",
            13 => "ServiceIndex",
            20 => "KV",
            21 => "Tombstone",
            30 => "ConfigEntry",
            50 => "Autopilot",
            51 => "LeftMember",
            90 => "RestorePart",
            number => PlatformRecord::table_name(number),
        }
    }

    /// Whether this binary knows the table of that number.
    pub fn knows_table(table: u8) -> bool {
        matches!(table, 1 | 10..=13 | 20 | 21 | 30 | 40..=44 | 50 | 51 | 90)
    }
}

impl State {
    /// The whole state, in a deterministic order.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let Indexes {
            applied: _,
            nodes,
            services,
            service_names,
            checks,
            kv,
            kv_reaped,
            config,
            node_extinction,
            service_extinction,
            restored,
        } = self.indexes;
        let indexes = Record::Indexes(IndexesRecord {
            nodes,
            services,
            service_names,
            checks,
            kv,
            kv_reaped,
            config,
            node_extinction,
            service_extinction,
            restored,
            offset: self.offset,
        });
        let node_rows = self.nodes.values().map(|entry| Record::Node {
            index: entry.index,
            node: entry.node.clone(),
        });
        let service_rows = self.nodes.values().flat_map(|entry| {
            entry.services.values().map(|service| Record::Service {
                node: entry.node.name.clone(),
                service: service.clone(),
            })
        });
        let check_rows = self.nodes.values().flat_map(|entry| {
            entry.checks.values().map(|check| Record::Check {
                check: check.clone(),
            })
        });
        let service_indexes = self
            .services
            .iter()
            .map(|(name, entry)| Record::ServiceIndex {
                service: name.clone(),
                index: entry.index,
            });
        let kv_rows = self.kv.values().map(|entry| Record::Kv(entry.clone()));
        let stones = self
            .tombstones
            .iter()
            .map(|(key, stone)| Record::Tombstone {
                key: key.clone(),
                stone: *stone,
            });
        let config_rows = self
            .config
            .values()
            .map(|entry| Record::Config(entry.clone()));
        std::iter::once(indexes)
            .chain(node_rows)
            .chain(service_rows)
            .chain(check_rows)
            .chain(service_indexes)
            .chain(kv_rows)
            .chain(stones)
            .chain(config_rows)
            .chain(self.platform.records().map(Record::Platform))
            .chain(self.autopilot.iter().cloned().map(Record::Autopilot))
            .chain(self.left.values().cloned().map(Record::LeftMember))
            .chain(self.restoring.iter().flat_map(Restoring::records))
    }

    /// An empty state whose last entry has this place in the log, to be filled with [`State::insert`].
    pub fn restored(applied: u64) -> Result<State, RecordError> {
        check_index(applied)?;
        Ok(State {
            indexes: Indexes {
                applied,
                ..Indexes::default()
            },
            ..State::default()
        })
    }

    /// Adds a record of [`State::records`]. They must come in that order.
    pub fn insert(&mut self, record: Record) -> Result<(), RecordError> {
        match record {
            Record::Indexes(record) => self.insert_indexes(record)?,
            Record::Node { index, node } => {
                let key = fold_name(&node.name);
                if !node.id.is_empty() {
                    self.node_ids.insert(node.id.clone(), key.clone());
                }
                self.addresses.add_node(&node.address, &key);
                let entry = NodeEntry::new(node, index);
                self.nodes.insert(key, Arc::new(entry));
            }
            Record::Service { node, service } => {
                self.node_entry("instance", &node)?
                    .services
                    .insert(service.id.clone(), service);
            }
            Record::Check { check } => {
                let node = check.node.clone();
                self.node_entry("check", &node)?.insert_check(check);
            }
            Record::ServiceIndex { service, index } => {
                // Instances and checks are complete when the first of these comes.
                if self.services.is_empty() {
                    self.join_instances();
                }
                match self.services.get_mut(&service) {
                    Some(entry) => Arc::make_mut(entry).index = index,
                    None => return Err(RecordError::UnknownService(service)),
                }
            }
            Record::Kv(entry) => {
                self.kv.insert(entry.key.clone(), entry);
            }
            Record::Tombstone { key, stone } => {
                self.tombstones.insert(key, stone);
            }
            Record::Config(entry) => {
                self.config
                    .insert((entry.kind(), entry.name().clone()), entry);
            }
            Record::Platform(record) => self.platform.insert(record)?,
            Record::Autopilot(config) => self.autopilot = Some(config),
            Record::LeftMember(left) => {
                self.left.insert(fold_name(&left.node.name), left);
            }
            Record::RestorePart { id, time, bytes } => {
                let restoring = self
                    .restoring
                    .get_or_insert_with(|| Restoring::new(id, time));
                restoring.push(bytes);
            }
        }
        Ok(())
    }

    fn insert_indexes(&mut self, record: IndexesRecord) -> Result<(), RecordError> {
        check_index(record.offset)?;
        let log_index = self.log_index();
        self.offset = record.offset;
        self.indexes = Indexes {
            applied: log_index + record.offset,
            restored: record.restored,
            nodes: record.nodes,
            services: record.services,
            service_names: record.service_names,
            checks: record.checks,
            kv: record.kv,
            kv_reaped: record.kv_reaped,
            config: record.config,
            node_extinction: record.node_extinction,
            service_extinction: record.service_extinction,
        };
        Ok(())
    }

    fn node_entry(
        &mut self,
        what: &'static str,
        node: &Str,
    ) -> Result<&mut NodeEntry, RecordError> {
        match self.nodes.get_mut(&fold_name(node)) {
            Some(entry) => Ok(Arc::make_mut(entry)),
            None => Err(RecordError::UnknownNode {
                what,
                node: node.clone(),
            }),
        }
    }

    /// Builds the services from the nodes.
    fn join_instances(&mut self) {
        let mut services: OrdMap<Str, Arc<ServiceEntry>> = OrdMap::new();
        for (key, node) in &self.nodes {
            for service in node.services.values() {
                let name = fold_name(&service.name);
                let instance_key = (key.clone(), service.id.clone());
                self.addresses
                    .add_instance(&service.address, &name, &instance_key);
                let mut entry = services.remove(&name).unwrap_or_default();
                {
                    let entry = Arc::make_mut(&mut entry);
                    entry.index = entry.index.max(service.modify_index);
                    let instance = Arc::new(Instance::new(node, service));
                    entry.instances.insert(instance_key, instance);
                    entry.take_name();
                }
                services.insert(name, entry);
            }
        }
        self.services = services;
    }
}
