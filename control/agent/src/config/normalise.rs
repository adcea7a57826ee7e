//! What happens to one document before it is merged with the others: deprecated keys get their new place, and
//! keys that are lists by nature become lists.

use wharf_config::{Map, Node, Value};

/// Deprecated keys and where they belong now.
static MOVED: &[(&str, &str)] = &[
    ("ca_file", "tls.defaults.ca_file"),
    ("ca_path", "tls.defaults.ca_path"),
    ("cert_file", "tls.defaults.cert_file"),
    ("http_api_response_headers", "http_config.response_headers"),
    ("key_file", "tls.defaults.key_file"),
    ("tls_min_version", "tls.defaults.tls_min_version"),
    ("ui", "ui_config.enabled"),
    ("verify_incoming", "tls.defaults.verify_incoming"),
    ("verify_incoming_https", "tls.https.verify_incoming"),
    ("verify_incoming_rpc", "tls.internal_rpc.verify_incoming"),
    ("verify_outgoing", "tls.defaults.verify_outgoing"),
];

/// Single forms of keys that hold lists.
static SINGULAR: &[(&str, &str)] = &[("service", "services"), ("check", "checks")];

/// Brings a document into the form that merges. Returns what to warn about.
pub(super) fn normalise(document: &mut Node) -> Vec<String> {
    let mut warnings = Vec::new();
    for (old, new) in MOVED {
        let Some(value) = document.remove(old) else {
            continue;
        };
        let at = if value.position.is_in_file() {
            format!("{}: ", value.position)
        } else {
            String::new()
        };
        warnings.push(format!(
            "{at}The '{old}' field is deprecated. Use the '{new}' field instead."
        ));
        if document.at(new.split('.')).is_none() {
            document.merge(nested(new, value));
        }
    }
    for (singular, plural) in SINGULAR {
        if let Some(mut value) = document.remove(singular) {
            value.make_list();
            // The list first: merging a list and an object appends.
            if let Some(list) = document.get_mut(plural) {
                list.make_list();
            }
            document.merge(nested(plural, value));
        }
    }
    for list in ["services", "checks", "watches"] {
        if let Some(node) = document.get_mut(list) {
            node.make_list();
        }
    }
    if let Some(entries) = document
        .get_mut("config_entries")
        .and_then(|entries| entries.get_mut("bootstrap"))
    {
        entries.make_list();
    }
    warnings
}

/// A document with `value` at `path`.
fn nested(path: &str, value: Node) -> Node {
    path.rsplit('.').fold(value, |value, key| {
        let position = value.position.clone();
        let mut map = Map::new();
        map.insert(key, value);
        Node::new(Value::Map(map), position)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wharf_config::parse_hcl;

    use super::*;

    #[test]
    fn single_forms_join_the_lists() {
        let mut document = parse_hcl(
            "c.hcl",
            "service { name = \"a\" }\nservice { name = \"b\" }\nservices { name = \"c\" }\ncheck = { name = \"d\" }",
        )
        .unwrap();
        assert!(normalise(&mut document).is_empty());
        assert_eq!(
            document.to_json(),
            json!({"services": [{"name": "c"}, {"name": "a"}, {"name": "b"}], "checks": [{"name": "d"}]})
        );
    }

    #[test]
    fn deprecated_keys_move_unless_the_new_one_is_there() {
        let mut document =
            parse_hcl("c.hcl", "ui = true\nca_file = \"old\"\ncert_file = \"c\"\ntls { defaults { ca_file = \"new\" } }")
                .unwrap();
        let warnings = normalise(&mut document);
        assert_eq!(
            warnings[0],
            "c.hcl:2:11: The 'ca_file' field is deprecated. Use the 'tls.defaults.ca_file' field instead."
        );
        assert_eq!(
            document.to_json(),
            json!({"tls": {"defaults": {"ca_file": "new", "cert_file": "c"}}, "ui_config": {"enabled": true}})
        );
    }
}
