//! What configuration files define besides the agent itself: services, checks and configuration entries.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use wharf_registry::{
    Command,
    command::{AutopilotCommand, ConfigCommand},
};

use super::Agent;
use crate::{
    cluster::Cluster,
    config::RuntimeConfig,
    definition::Origin,
    local::{CheckSpec, Registration},
};

impl Agent {
    /// Makes the services and checks of the configuration files those of the agent.
    pub(super) async fn apply_definitions(&self, config: &RuntimeConfig) {
        for definition in &config.reloadable.services {
            for warning in definition.warnings() {
                tracing::warn!("{warning}");
            }
        }
        let token = config
            .reloadable
            .tokens
            .config_file_service_registration
            .token();
        let services = config.reloadable.services.iter().map(|definition| {
            let mut registration = Registration::from_definition(definition.clone(), Origin::File);
            registration.token = registration.token.or_else(|| token.clone());
            registration
        });
        let checks = config
            .reloadable
            .checks
            .iter()
            .map(|definition| CheckSpec::from_definition(definition.clone(), Origin::File));
        let problems = self
            .http
            .local
            .replace_config(services.collect(), checks.collect())
            .await;
        for (id, error) in problems {
            tracing::error!(id = &*id, %error, "a definition of the configuration is not in force");
        }
    }
}

/// Writes the configured entries as soon as there is a leader.
pub(super) async fn bootstrap_entries(
    cluster: Arc<dyn Cluster>,
    config: Arc<RuntimeConfig>,
    stop: CancellationToken,
) {
    loop {
        // Listening begins before the look: a leader that comes in between is not missed.
        let changed = cluster.leader_changed();
        if cluster.leader().is_some() {
            break;
        }
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
    }
    apply_autopilot(&*cluster, &config).await;
    apply_entries(&*cluster, &config).await;
}

/// Makes the configured settings of the autopilot those of the cluster, if it has none.
async fn apply_autopilot(cluster: &dyn Cluster, config: &RuntimeConfig) {
    if !config.server || cluster.registry().view().has_autopilot() {
        return;
    }
    let command = AutopilotCommand::CompareAndSet {
        config: config.autopilot.clone(),
        index: 0,
    };
    if let Err(error) = cluster.write_if(Command::Autopilot(command)).await {
        tracing::error!(%error, "the settings of the autopilot are not set: the defaults hold");
    }
}

/// Writes the configured entries that do not exist yet: those that do may have been changed since.
pub(super) async fn apply_entries(cluster: &dyn Cluster, config: &RuntimeConfig) {
    for entry in &config.reloadable.config_entries {
        let name = entry.name().clone();
        let kind = entry.kind();
        let command = ConfigCommand::CompareAndUpsert {
            entry: entry.clone(),
            index: 0,
        };
        match cluster.write_if(Command::Config(command)).await {
            Ok(true) => tracing::info!(%kind, name = &*name, "a configuration entry is set"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%kind, name = &*name, %error, "a configuration entry is not set");
            }
        }
    }
}
