use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Str;

/// One key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct KvEntry {
    /// How often a session has acquired the key.
    pub lock_index: u64,
    pub key: Str,
    /// Opaque to the registry: clients mark their entries with it.
    pub flags: u64,
    pub value: Bytes,
    /// The session that holds the key; empty when none does.
    pub session: Str,
    pub create_index: u64,
    pub modify_index: u64,
}
