//! From labelled blocks to lists of objects that carry their names.

use wharf_config::{Entry, Map, Node, Value, same_key};

use super::{JobError, shape};

/// Whether an object says its name itself, so that its keys are no labels.
pub(super) fn names_itself(map: &Map) -> bool {
    ["name", "id"]
        .iter()
        .any(|key| map.get(key).is_some_and(|node| node.as_str().is_some()))
}

/// What is below the job: groups and their parts.
pub(super) fn in_job(mut job: Node) -> Result<Node, JobError> {
    each(&mut job, &["group", "groups"], "name", |group| {
        if let Some(network) = part(group, "network") {
            each(network, &["port", "ports"], "label", |_| Ok(()))?;
        }
        each(group, &["service", "services"], "name", |_| Ok(()))?;
        each(group, &["task", "tasks"], "name", lift_config)
    })?;
    Ok(job)
}

/// The blocks of one kind: each named, and then handed to `inside`.
fn each(
    node: &mut Node,
    keys: &[&str],
    name: &str,
    inside: impl Fn(&mut Node) -> Result<(), JobError>,
) -> Result<(), JobError> {
    for key in keys {
        let Some(blocks) = node.get_mut(key) else {
            continue;
        };
        let position = blocks.position.clone();
        let taken = std::mem::replace(blocks, Node::new(Value::Null, position.clone()));
        let mut items = labelled(taken, name)?;
        items.iter_mut().try_for_each(&inside)?;
        *blocks = Node::new(Value::List(items), position);
    }
    Ok(())
}

/// The only object under a key: a block alone may also be written as a list of one.
fn part<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    let found = node.get_mut(key)?;
    let alone = matches!(&found.value, Value::List(items) if items.len() == 1);
    if !alone {
        return Some(found);
    }
    match &mut found.value {
        Value::List(items) => items.first_mut(),
        _ => None,
    }
}

/// The jobs under `job`.
pub(super) fn named(node: Node) -> Result<Vec<Node>, JobError> {
    labelled(node, "name")
}

/// Objects under one key as a list: as they are, or each with the label that it was found under.
fn labelled(node: Node, name: &str) -> Result<Vec<Node>, JobError> {
    let Node { value, position } = node;
    let map = match value {
        Value::List(items) => {
            // Blocks without labels, or several that were written apart.
            let lists: Result<Vec<_>, _> =
                items.into_iter().map(|item| labelled(item, name)).collect();
            return Ok(lists?.into_iter().flatten().collect());
        }
        Value::Map(map) => map,
        other => return Ok(vec![Node::new(other, position)]),
    };
    let has_name = map.get(name).is_some_and(|node| node.as_str().is_some());
    if has_name || map.is_empty() || !map.iter().all(|entry| holds_objects(&entry.node)) {
        return Ok(vec![Node::new(Value::Map(map), position)]);
    }
    let mut items = Vec::new();
    for Entry {
        key,
        position,
        node,
    } in map
    {
        let bodies = match node.value {
            Value::List(bodies) => bodies,
            value => vec![Node::new(value, node.position)],
        };
        for mut body in bodies {
            body.position = position.clone();
            if let Some(given) = body.as_map().and_then(|map| map.entry(name)) {
                let text = format!("{name} is said twice: {key:?} is the label of the block");
                return shape(&given.position, text);
            }
            let label = Node::new(Value::String(key.clone()), position.clone());
            body.insert(name, label);
            items.push(body);
        }
    }
    Ok(items)
}

fn holds_objects(node: &Node) -> bool {
    match &node.value {
        Value::Map(_) => true,
        Value::List(items) => {
            !items.is_empty() && items.iter().all(|item| matches!(item.value, Value::Map(_)))
        }
        _ => false,
    }
}

/// Moves what is in a task's `config` into the task.
fn lift_config(task: &mut Node) -> Result<(), JobError> {
    let Some(mut config) = task.remove("config") else {
        return Ok(());
    };
    if let Value::List(items) = &mut config.value
        && items.len() == 1
    {
        config = items.remove(0);
    }
    let Value::Map(map) = config.value else {
        return shape(&config.position, "config is a block");
    };
    for entry in map {
        let twice = task
            .as_map()
            .is_some_and(|task| task.iter().any(|own| same_key(&own.key, &entry.key)));
        if twice {
            let text = format!("{:?} is in the task and in its config", entry.key);
            return shape(&entry.position, text);
        }
        task.insert(&entry.key, entry.node);
    }
    Ok(())
}
