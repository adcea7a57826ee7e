//! `grpc.health.v1`: whether this agent can serve right now.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use wharf_proto::v1::{proxy_configuration_server, registry_server};

use crate::cluster::Cluster;

/// A change of leader between two looks at it may go unannounced.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The services that need a leader, the server as a whole among them. A proxy is configured from
/// what this agent knows, whether there is a leader or not.
const NEED_LEADER: [&str; 2] = ["", registry_server::SERVICE_NAME];
const NEED_NOTHING: [&str; 1] = [proxy_configuration_server::SERVICE_NAME];

/// Keeps the health of the services current until the shutdown, and then ends every watch of it.
pub(super) async fn report(
    mut reporter: HealthReporter,
    cluster: Arc<dyn Cluster>,
    shutdown: CancellationToken,
) {
    for service in NEED_NOTHING {
        reporter
            .set_service_status(service, ServingStatus::Serving)
            .await;
    }
    let mut known = None;
    while !shutdown.is_cancelled() {
        let status = if cluster.leader().is_some() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        if known.replace(status) != Some(status) {
            for service in NEED_LEADER {
                reporter.set_service_status(service, status).await;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = cluster.leader_changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    for service in NEED_LEADER.into_iter().chain(NEED_NOTHING) {
        reporter
            .set_service_status(service, ServingStatus::NotServing)
            .await;
        reporter.clear_service_status(service).await;
    }
}
