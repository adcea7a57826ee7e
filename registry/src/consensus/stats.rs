//! The figures of a server, by the names that `consul info` gives them.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use super::Inner;

pub(super) fn collect(inner: &Inner, last_contact: Option<Duration>) -> Vec<(String, String)> {
    let last_contact = match last_contact {
        None => "never".to_owned(),
        Some(Duration::ZERO) => "0".to_owned(),
        Some(ago) => format!("{}ms", ago.as_millis()),
    };
    let metrics = {
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.clone()
    };
    let index = |id: Option<u64>| id.unwrap_or(0).to_string();
    let log = inner.log.state();
    let last_log = log.last;
    let commit = metrics.local_committed.map(|id| id.index);
    let applied = inner.registry.view().log_index();
    let voters = metrics.membership_config.voter_ids().count();
    let configuration = metrics.membership_config.membership();
    let servers: Vec<String> = configuration
        .nodes()
        .map(|(id, server)| {
            let suffrage = match configuration.voter_ids().any(|voter| voter == *id) {
                true => "Voter",
                false => "Nonvoter",
            };
            format!("{{Suffrage:{suffrage} ID:{id} Address:{}}}", server.address)
        })
        .collect();
    let snapshot = inner.snapshots.store.current();
    let snapshot = snapshot.as_ref().and_then(|snapshot| snapshot.meta().last);
    let pairs = [
        ("applied_index", applied.to_string()),
        ("bytes_in_flight", inner.admission.bytes().to_string()),
        ("commit_index", index(commit)),
        (
            "fsm_pending",
            commit.unwrap_or(0).saturating_sub(applied).to_string(),
        ),
        ("last_contact", last_contact),
        ("last_log_index", index(last_log.map(|id| id.index))),
        ("last_log_term", index(last_log.map(|id| id.term))),
        ("last_purged_index", index(log.purged.map(|id| id.index))),
        ("last_snapshot_index", index(snapshot.map(|id| id.index))),
        ("last_snapshot_term", index(snapshot.map(|id| id.term))),
        ("latest_configuration", format!("[{}]", servers.join(" "))),
        (
            "latest_configuration_index",
            index(metrics.membership_config.log_id().map(|id| id.index)),
        ),
        ("num_peers", voters.saturating_sub(1).to_string()),
        (
            "proposals_in_flight",
            inner.admission.proposals().to_string(),
        ),
        ("state", format!("{:?}", metrics.state)),
        ("term", metrics.current_term.to_string()),
    ];
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
