//! What to tell a proxy that already knows an earlier snapshot.

use std::collections::BTreeSet;

use wharf_proto::v1::{ProxyDelta, ProxySnapshot, proxy_configuration_response::Update};

/// The difference between two snapshots of one proxy; `None` when there is none.
///
/// A changed listener or cluster is sent whole, under its old name, and not as removed: the proxy
/// keeps what it has of it. A proxy that became another one gets a snapshot.
///
/// Both snapshots must come from [`compile`](crate::compile): their lists are sorted by name.
pub fn update(old: &ProxySnapshot, new: &ProxySnapshot) -> Option<Update> {
    if (&old.proxy_id, &old.service, &old.node, &old.datacenter)
        != (&new.proxy_id, &new.service, &new.node, &new.datacenter)
    {
        return Some(Update::Snapshot(new.clone()));
    }
    let (removed_listeners, listeners) = changes(&old.listeners, &new.listeners, |l| &l.name);
    let (removed_clusters, clusters) = changes(&old.clusters, &new.clusters, |c| &c.name);
    let delta = ProxyDelta {
        removed_listeners,
        removed_clusters,
        listeners,
        clusters,
    };
    (delta != ProxyDelta::default()).then_some(Update::Delta(delta))
}

/// The names that went, and what is new or different.
fn changes<T: Clone + PartialEq>(
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &String,
) -> (Vec<String>, Vec<T>) {
    let kept: BTreeSet<&String> = new.iter().map(&name).collect();
    let removed = old
        .iter()
        .map(&name)
        .filter(|name| !kept.contains(name))
        .cloned()
        .collect();
    let changed = new
        .iter()
        .filter(|item| {
            let before = old.binary_search_by(|before| name(before).cmp(name(item)));
            before.map_or(true, |at| old[at] != **item)
        })
        .cloned()
        .collect();
    (removed, changed)
}
