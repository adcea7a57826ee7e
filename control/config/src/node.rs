//! The document tree: values that remember where they were written.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::MAX_DEPTH;

/// A place in an input text. Lines and columns count from 1, columns in characters.
///
/// The file name is empty for a text that is not a file, such as the body of a request. The line is 0 for a value
/// that is not part of a longer text, such as a command line flag: `file` names it then.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub position: Position,
}

/// What a [`Node`] can be: the JSON types, with integers kept exact.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Only for integers above `i64::MAX`.
    Uint(u64),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Map),
}

/// Keys with their nodes, in the order in which they were first written; no key is there twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Map {
    entries: Vec<Entry>,
    repeated: Option<Box<Repeated>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub position: Position,
    pub node: Node,
}

/// A key that was written twice in one map. The last one counted; a strict reader refuses the map.
#[derive(Debug, Clone, PartialEq)]
pub struct Repeated {
    pub key: String,
    pub first: Position,
    pub again: Position,
}

/// Whether two spellings mean the same key: letter case and underscores do not count.
pub fn same_key(a: &str, b: &str) -> bool {
    fn letters(key: &str) -> impl Iterator<Item = u8> + '_ {
        key.bytes()
            .filter(|b| *b != b'_')
            .map(|b| b.to_ascii_lowercase())
    }
    letters(a).eq(letters(b))
}

// === impl Position ===

impl Position {
    /// The place of something that was not written in any text, such as a value made by a program.
    pub fn nowhere() -> Self {
        Self {
            file: Arc::from(""),
            line: 0,
            column: 0,
        }
    }

    /// Whether this is a place with a name, worth telling a person about.
    pub fn is_in_file(&self) -> bool {
        !self.file.is_empty()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_in_file(), self.line) {
            (true, 0) => f.write_str(&self.file),
            (true, line) => write!(f, "{}:{line}:{}", self.file, self.column),
            (false, line) => write!(f, "{line}:{}", self.column),
        }
    }
}

// === impl Map ===

impl Map {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.entries.iter()
    }

    /// The first key that was written twice, if any was.
    pub fn repeated(&self) -> Option<&Repeated> {
        self.repeated.as_deref()
    }

    /// The entry of `key`: spelled the same if there is one, else one that [means the same](same_key).
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.find(key).map(|index| &self.entries[index])
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.find(key).map(|index| &mut self.entries[index].node)
    }

    /// Sets `key`, in its place if it is there, else at the end.
    pub fn insert(&mut self, key: &str, node: Node) {
        match self.find(key) {
            Some(index) => self.entries[index].node = node,
            None => {
                let position = node.position.clone();
                self.entries.push(Entry {
                    key: key.to_owned(),
                    position,
                    node,
                });
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Node> {
        self.find(key).map(|index| self.entries.remove(index).node)
    }

    /// Removes the entry spelled exactly `key`, repeats included; whether there was anything to remove.
    pub(crate) fn forget(&mut self, key: &str) -> bool {
        let before = (self.entries.len(), self.repeated.is_some());
        self.entries.retain(|entry| entry.key != key);
        self.repeated.take_if(|repeated| repeated.key == key);
        before != (self.entries.len(), self.repeated.is_some())
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.entries.iter_mut().map(|entry| &mut entry.node)
    }

    fn find(&self, key: &str) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.key == key)
            .or_else(|| {
                self.entries
                    .iter()
                    .position(|entry| same_key(&entry.key, key))
            })
    }

    fn merge(&mut self, later: Map) {
        // Exact spelling: in a free-form map (node_meta) `a_b` and `ab` are two keys.
        let index: HashMap<String, usize> = self
            .entries
            .iter()
            .enumerate()
            .map(|(i, entry)| (entry.key.clone(), i))
            .collect();
        for entry in later.entries {
            match index.get(&entry.key) {
                Some(i) => self.entries[*i].node.merge(entry.node),
                None => self.entries.push(entry),
            }
        }
        if self.repeated.is_none() {
            self.repeated = later.repeated;
        }
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Map {
    type Item = Entry;
    type IntoIter = std::vec::IntoIter<Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// Builds a [`Map`] in time linear in its size, whatever the keys are.
#[derive(Debug, Default)]
pub(crate) struct MapBuilder {
    map: Map,
    index: HashMap<String, usize>,
}

/// Up to this size a scan is faster than hashing.
const SCAN_LIMIT: usize = 16;

impl MapBuilder {
    /// The node that `key` has so far.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.find(key)
            .map(|index| &mut self.map.entries[index].node)
    }

    /// Adds an entry; one that is there already is replaced and remembered as repeated.
    pub(crate) fn insert(&mut self, entry: Entry) {
        if let Some(index) = self.find(&entry.key) {
            let old = std::mem::replace(&mut self.map.entries[index], entry);
            let new = &self.map.entries[index];
            self.map.repeated.get_or_insert_with(|| {
                Box::new(Repeated {
                    key: old.key,
                    first: old.position,
                    again: new.position.clone(),
                })
            });
            return;
        }
        if self.map.len() == SCAN_LIMIT {
            self.index = self
                .map
                .entries
                .iter()
                .enumerate()
                .map(|(i, e)| (e.key.clone(), i))
                .collect();
        }
        if self.map.len() >= SCAN_LIMIT {
            self.index.insert(entry.key.clone(), self.map.len());
        }
        self.map.entries.push(entry);
    }

    pub(crate) fn finish(self) -> Map {
        self.map
    }

    fn find(&self, key: &str) -> Option<usize> {
        if self.map.len() <= SCAN_LIMIT {
            self.map.entries.iter().position(|entry| entry.key == key)
        } else {
            self.index.get(key).copied()
        }
    }
}

// === impl Node ===

impl Node {
    pub fn new(value: Value, position: Position) -> Self {
        Self { value, position }
    }

    /// An empty map that was written nowhere: where merging starts.
    pub fn empty() -> Self {
        Self::new(Value::Map(Map::new()), Position::nowhere())
    }

    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.as_map_mut()?.get_mut(key)
    }

    /// The node that a chain of keys leads to.
    pub fn at<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> Option<&Node> {
        keys.into_iter().try_fold(self, |node, key| node.get(key))
    }

    /// Sets a key of a map; does nothing on another kind of node.
    pub fn insert(&mut self, key: &str, node: Node) {
        if let Some(map) = self.as_map_mut() {
            map.insert(key, node);
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Node> {
        self.as_map_mut()?.remove(key)
    }

    /// Lays `later` over this node as Consul merges configuration: maps merge key by key, lists append,
    /// anything else is replaced. A null changes nothing. A single object and a list append as lists do.
    pub fn merge(&mut self, later: Node) {
        if matches!(later.value, Value::Null) {
            return;
        }
        match (&mut self.value, later.value) {
            (Value::Map(ours), Value::Map(theirs)) => ours.merge(theirs),
            (Value::List(ours), Value::List(theirs)) => ours.extend(theirs),
            (Value::List(ours), map @ Value::Map(_)) => ours.push(Node::new(map, later.position)),
            (ours @ Value::Map(_), Value::List(theirs)) => {
                let first = Node::new(std::mem::replace(ours, Value::Null), self.position.clone());
                *ours = Value::List(std::iter::once(first).chain(theirs).collect());
            }
            (ours, theirs) => {
                *ours = theirs;
                self.position = later.position;
            }
        }
    }

    /// Turns a single object into a list of one: for keys that are lists by nature, before merging.
    pub fn make_list(&mut self) {
        if matches!(self.value, Value::Map(_)) {
            let object = Node::new(
                std::mem::replace(&mut self.value, Value::Null),
                self.position.clone(),
            );
            self.value = Value::List(vec![object]);
        }
    }

    /// The tree of a JSON value; `None` when it is nested deeper than [`MAX_DEPTH`].
    pub fn from_json(value: &serde_json::Value) -> Option<Self> {
        fn build(value: &serde_json::Value, depth: usize, nowhere: &Position) -> Option<Node> {
            use serde_json::Value as Json;
            if depth > MAX_DEPTH {
                return None;
            }
            let value = match value {
                Json::Null => Value::Null,
                Json::Bool(value) => Value::Bool(*value),
                Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                    (Some(int), _) => Value::Int(int),
                    (None, Some(uint)) => Value::Uint(uint),
                    (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
                },
                Json::String(text) => Value::String(text.clone()),
                Json::Array(items) => Value::List(
                    items
                        .iter()
                        .map(|item| build(item, depth + 1, nowhere))
                        .collect::<Option<_>>()?,
                ),
                Json::Object(object) => {
                    let entries = object.iter().map(|(key, value)| {
                        let node = build(value, depth + 1, nowhere)?;
                        Some(Entry {
                            key: key.clone(),
                            position: nowhere.clone(),
                            node,
                        })
                    });
                    Value::Map(Map {
                        entries: entries.collect::<Option<_>>()?,
                        repeated: None,
                    })
                }
            };
            Some(Node::new(value, nowhere.clone()))
        }
        build(value, 0, &Position::nowhere())
    }

    /// The same value without positions.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::from(*value),
            Value::Int(int) => Json::from(*int),
            Value::Uint(uint) => Json::from(*uint),
            Value::Float(float) => Json::from(*float),
            Value::String(text) => Json::from(text.as_str()),
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(map) => Json::Object(
                map.iter()
                    .map(|entry| (entry.key.clone(), entry.node.to_json()))
                    .collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: serde_json::Value) -> Node {
        Node::from_json(&value).unwrap()
    }

    #[test]
    fn spellings_of_one_key() {
        assert!(same_key("ServiceID", "service_id"));
        assert!(same_key("serviceid", "Service_ID"));
        assert!(!same_key("service", "services"));
        assert!(!same_key("node-meta", "node_meta"));
    }

    #[test]
    fn merging_follows_consul() {
        let mut base = node(json!({
            "datacenter": "dc1",
            "ports": {"http": 8500, "dns": 8600},
            "recursors": ["1.1.1.1"],
            "services": {"name": "a"},
            "kept": 1,
        }));
        base.merge(node(json!({
            "datacenter": "dc2",
            "ports": {"http": 9500},
            "recursors": ["8.8.8.8"],
            "services": [{"name": "b"}],
            "kept": null,
        })));
        assert_eq!(
            base.to_json(),
            json!({
                "datacenter": "dc2",
                "ports": {"http": 9500, "dns": 8600},
                "recursors": ["1.1.1.1", "8.8.8.8"],
                "services": [{"name": "a"}, {"name": "b"}],
                "kept": 1,
            })
        );
    }

    #[test]
    fn a_map_is_found_by_any_spelling_but_exact_wins() {
        let mut map = node(json!({"NodeMeta": 2, "node_meta": 1}));
        assert_eq!(map.get("node_meta").unwrap().value, Value::Int(1));
        assert_eq!(map.get("nodemeta").unwrap().value, Value::Int(2));
        map.insert("NODE_META", node(json!(3)));
        assert_eq!(map.to_json(), json!({"NodeMeta": 3, "node_meta": 1}));
        map.remove("node_meta");
        assert_eq!(map.to_json(), json!({"NodeMeta": 3}));
    }

    #[test]
    fn a_builder_finds_repeats_below_and_above_the_scan_limit() {
        for size in [2, SCAN_LIMIT, SCAN_LIMIT + 1, 500] {
            let mut builder = MapBuilder::default();
            let entry = |key: usize, value| Entry {
                key: key.to_string(),
                position: Position {
                    line: value as u32,
                    ..Position::nowhere()
                },
                node: Node::new(Value::Int(value), Position::nowhere()),
            };
            for key in 0..size {
                builder.insert(entry(key, 1));
            }
            builder.insert(entry(size - 1, 2));
            let map = builder.finish();
            assert_eq!(map.len(), size);
            assert_eq!(
                map.get(&(size - 1).to_string()).unwrap().value,
                Value::Int(2)
            );
            let repeated = map.repeated().unwrap();
            assert_eq!((repeated.first.line, repeated.again.line), (1, 2));
        }
    }
}
