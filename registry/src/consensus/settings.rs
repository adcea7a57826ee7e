//! How openraft is set.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::{ConsensusConfig, StartError, Timings};

/// The settings of openraft. What is not here is as its authors chose it; why each of these differs:
/// `research/registry.md` §1.4.
pub(super) fn raft_config(config: &ConsensusConfig) -> Result<Config, StartError> {
    let Timings {
        heartbeat,
        election_min,
        election_max,
    } = config.timings;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let raft_config = Config {
        cluster_name: "wharf".to_owned(),
        heartbeat_interval: millis(heartbeat),
        election_timeout_min: millis(election_min),
        election_timeout_max: millis(election_max),
        // A snapshot of a large state takes minutes on a slow link.
        install_snapshot_timeout: millis(Duration::from_secs(600)),
        // By size too, so the supervisor triggers snapshots, and purges the log after them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: config.snapshots.entries,
        // The size of a message is bounded in bytes, where the log is read.
        max_payload_entries: 2048,
        // Admission is ours, and comes before.
        api_channel_size: Some(config.limits.proposals_in_flight as u64 + 1024),
        // A server that was cut off must not depose a good leader when it comes back.
        enable_pre_vote: Some(true),
        // A leader that restarts asks for votes like any other: its state may be behind.
        enable_leader_restore: Some(false),
        // A leader without a quorum falls silent, so that others may elect (openraft #2080).
        quorum_loss_probe_interval: Some(millis(election_max).saturating_mul(2)),
        backoff: "50ms 100ms 200ms ..1s".to_owned(),
        ..Config::default()
    };
    raft_config
        .validate()
        .map_err(|error| StartError::Settings(error.to_string()))
}
