//! Limits on the metadata of nodes and services.

use std::collections::BTreeMap;
use std::fmt;

const MAX_PAIRS: usize = 64;
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 512;
const RESERVED_PREFIX: &str = "consul-";
/// Keys that wharf's own nodes and services carry.
const ALLOWED_RESERVED: [&str; 2] = ["consul-network-segment", "consul-version"];

/// Why metadata is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMeta {
    #[error("Node metadata cannot contain more than {MAX_PAIRS} key/value pairs")]
    TooMany,
    #[error("Couldn't load metadata pair ('{key}', '{value}'): {why}")]
    Pair {
        key: String,
        value: String,
        why: &'static str,
    },
}

/// Checks the metadata of a service.
pub fn validate_meta<K: AsRef<str>, V: AsRef<str>>(
    meta: &BTreeMap<K, V>,
) -> Result<(), InvalidMeta> {
    validate(meta, &[])
}

/// Checks the metadata of a node, which may also have the reserved keys that agents set.
pub fn validate_node_meta<K: AsRef<str>, V: AsRef<str>>(
    meta: &BTreeMap<K, V>,
) -> Result<(), InvalidMeta> {
    validate(meta, &ALLOWED_RESERVED)
}

fn validate<K: AsRef<str>, V: AsRef<str>>(
    meta: &BTreeMap<K, V>,
    allowed: &[&str],
) -> Result<(), InvalidMeta> {
    if meta.len() > MAX_PAIRS {
        return Err(InvalidMeta::TooMany);
    }
    for (key, value) in meta {
        let (key, value) = (key.as_ref(), value.as_ref());
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let why = if key.is_empty() {
            "Key cannot be blank"
        } else if !key.bytes().all(valid) {
            "Key contains invalid characters"
        } else if key.len() > MAX_KEY {
            "Key is too long (limit: 128 characters)"
        } else if key.starts_with(RESERVED_PREFIX) && !allowed.contains(&key) {
            "Key prefix 'consul-' is reserved for internal use"
        } else if value.len() > MAX_VALUE {
            "Value is too long (limit: 512 characters)"
        } else {
            continue;
        };
        return Err(InvalidMeta::Pair {
            key: shown(key),
            value: shown(value),
            why,
        });
    }
    Ok(())
}

fn shown(text: impl fmt::Display) -> String {
    text.to_string().chars().take(MAX_KEY).collect()
}
