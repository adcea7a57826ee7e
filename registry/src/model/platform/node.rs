use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Driver, Resources, UnixNanos, names};
use crate::model::{Str, StrMap, is_default, map_or_null};

/// The attribute of a node where allocations can have networks of their own.
pub const BRIDGE: &str = "network.bridge";
/// The attribute of a node where they cannot: why.
pub const NO_BRIDGE: &str = "network.bridge.missing";

/// A node as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlatformNode {
    /// A UUID: the id of the same node in the catalog.
    #[serde(rename = "ID")]
    pub id: Str,
    pub name: Str,
    pub address: Str,
    pub status: NodeStatus,
    pub status_description: Str,
    /// New allocations may come here. Turned off by an operator.
    pub eligible: bool,
    /// Facts about the machine: `kernel.name`, `cpu.arch` and so on.
    #[serde(with = "map_or_null")]
    pub attributes: StrMap,
    /// What allocations may use, all together.
    pub resources: Resources,
    /// Absent: the node does not have the driver.
    pub drivers: BTreeMap<Driver, DriverHealth>,
    pub dynamic_ports: PortRange,
    /// Ports that the node itself needs.
    #[serde(skip_serializing_if = "is_default")]
    pub reserved_ports: Vec<u16>,
    pub create_index: u64,
    pub modify_index: u64,
    /// When the status last changed.
    pub status_time: UnixNanos,
}

impl Default for PlatformNode {
    fn default() -> Self {
        PlatformNode {
            id: Str::default(),
            name: Str::default(),
            address: Str::default(),
            status: NodeStatus::Ready,
            status_description: Str::default(),
            eligible: true,
            attributes: StrMap::new(),
            resources: Resources::NONE,
            drivers: BTreeMap::new(),
            dynamic_ports: PortRange::default(),
            reserved_ports: Vec::new(),
            create_index: 0,
            modify_index: 0,
            status_time: 0,
        }
    }
}

impl PlatformNode {
    /// Whether the node can be given anything at all.
    pub fn is_candidate(&self) -> bool {
        self.status == NodeStatus::Ready && self.eligible
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    #[default]
    Ready,
    /// Not heard of: what ran there is lost.
    Down,
}

names!(NodeStatus { Ready => "ready", Down => "down" });

/// Whether a driver can be used, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverHealth {
    pub healthy: bool,
    pub reason: Str,
}

/// Ports from `min` to `max`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortRange {
    pub min: u16,
    pub max: u16,
}

impl Default for PortRange {
    /// Nomad's.
    fn default() -> Self {
        PortRange {
            min: 20000,
            max: 32000,
        }
    }
}

impl PortRange {
    pub fn contains(self, port: u16) -> bool {
        (self.min..=self.max).contains(&port)
    }
}
