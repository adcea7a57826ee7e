use serde::{Deserialize, Serialize};

use super::{Str, StrMap, is_default, map_or_null};

/// A machine, or anything else that carries services under one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// A UUID, or empty: nodes registered by hand need none. Unique when set.
    #[serde(rename = "ID")]
    pub id: Str,
    /// The name: unique without case.
    #[serde(rename = "Node")]
    pub name: Str,
    pub address: Str,
    pub datacenter: Str,
    /// Addresses by network: `lan`, `wan`, `lan_ipv4` and so on.
    #[serde(with = "map_or_null")]
    pub tagged_addresses: StrMap,
    #[serde(with = "map_or_null")]
    pub meta: StrMap,
    #[serde(skip_serializing_if = "is_default")]
    pub locality: Option<serde_json::Value>,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Node {
    /// Whether `other` says the same, indexes aside.
    pub fn is_same(&self, other: &Node) -> bool {
        self.id == other.id
            && self.name == other.name
            && self.address == other.address
            && self.datacenter == other.datacenter
            && self.tagged_addresses == other.tagged_addresses
            && self.meta == other.meta
            && self.locality == other.locality
    }
}
