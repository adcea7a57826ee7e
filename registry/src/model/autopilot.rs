use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;

use super::Str;

/// How a cluster looks after its servers by itself. One for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AutopilotConfig {
    /// Take servers out that are dead, as long as that leaves a majority of the rest.
    pub cleanup_dead_servers: bool,
    /// Longer without contact, and a server is not healthy.
    pub last_contact_threshold: GoDuration,
    /// More entries behind, and a server is not healthy.
    pub max_trailing_logs: u64,
    /// No clean-up leaves fewer voters; 0: no such bound.
    pub min_quorum: u64,
    /// How long a new server has to be there, with the whole log, before it gets a vote. Not asked for right
    /// after an election, so that a new cluster is complete at once.
    pub server_stabilization_time: GoDuration,
    /// Kept, and without effect.
    pub redundancy_zone_tag: Str,
    /// Kept, and without effect.
    pub disable_upgrade_migration: bool,
    /// Kept, and without effect.
    pub upgrade_version_tag: Str,
    pub create_index: u64,
    pub modify_index: u64,
}

/// Consul's defaults.
impl Default for AutopilotConfig {
    fn default() -> AutopilotConfig {
        AutopilotConfig {
            cleanup_dead_servers: true,
            last_contact_threshold: GoDuration::from_millis(200),
            max_trailing_logs: 250,
            min_quorum: 0,
            server_stabilization_time: GoDuration::from_secs(10),
            redundancy_zone_tag: Str::default(),
            disable_upgrade_migration: false,
            upgrade_version_tag: Str::default(),
            create_index: 0,
            modify_index: 0,
        }
    }
}

/// A setting under which no cluster could work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}: it cannot be negative")]
pub struct NegativeDuration {
    pub name: &'static str,
    pub value: GoDuration,
}

impl AutopilotConfig {
    pub fn check(&self) -> Result<(), NegativeDuration> {
        let durations = [
            ("LastContactThreshold", self.last_contact_threshold),
            ("ServerStabilizationTime", self.server_stabilization_time),
        ];
        match durations
            .iter()
            .find(|(_, value)| *value < GoDuration::ZERO)
        {
            Some((name, value)) => Err(NegativeDuration {
                name,
                value: *value,
            }),
            None => Ok(()),
        }
    }
}
