//! What every server of the agent needs to know about its node.

use wharf_registry::model::{Str, StrMap};

/// The identity of this node. Fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: Str,
    /// A UUID.
    pub id: Str,
    pub datacenter: Str,
    /// The address under which others reach this node.
    pub address: Str,
    pub tagged_addresses: StrMap,
    pub meta: StrMap,
    pub server: bool,
}
