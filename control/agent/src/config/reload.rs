//! What changes at a reload, and what would need a restart.

use std::collections::BTreeMap;

use serde_json::Value;

use super::RuntimeConfig;

/// Keys that a reload applies; what is below a block's key goes with it.
static RELOADABLE: &[&str] = &[
    "acl.tokens",
    "checks",
    "config_entries",
    "discard_check_output",
    "dns_config",
    "limits",
    "log_level",
    "node_meta",
    "recursors",
    "services",
    "telemetry.filter_default",
    "telemetry.prefix_filter",
    // What is served over TLS already; a port is not opened by it.
    "tls",
    "watches",
];

impl RuntimeConfig {
    /// The keys whose change from `self` to `new` has no effect before a restart.
    pub fn needs_restart(&self, new: &RuntimeConfig) -> Vec<String> {
        let (old, new) = (
            leaves(&self.document.0.to_json()),
            leaves(&new.document.0.to_json()),
        );
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .filter(|key| old.get(*key) != new.get(*key) && !is_reloadable(key))
            .cloned()
            .collect()
    }
}

fn is_reloadable(key: &str) -> bool {
    RELOADABLE.iter().any(|prefix| {
        key.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Every value that is not a block, by its path.
fn leaves(document: &Value) -> BTreeMap<String, Value> {
    fn walk(value: &Value, path: &str, leaves: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    walk(value, &path, leaves);
                }
            }
            leaf => {
                leaves.insert(path.to_owned(), leaf.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(document, "", &mut found);
    found
}
