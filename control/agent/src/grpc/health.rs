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

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio_stream::StreamExt as _;
    use tonic::Request;
    use tonic_health::{
        pb::{HealthCheckRequest, health_server::Health as _},
        server::HealthService,
    };
    use wharf_registry::{Command, Outcome, Registry};

    use super::*;
    use crate::cluster::{BoxFuture, ClusterError, Consistency, Leader, testing::Solo};

    /// A cluster whose leader comes and goes.
    #[derive(Debug)]
    struct Fickle {
        solo: Solo,
        has_leader: watch::Sender<bool>,
    }

    impl Cluster for Fickle {
        fn registry(&self) -> &Registry {
            self.solo.registry()
        }

        fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>> {
            self.solo.propose(command)
        }

        fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
            self.solo.barrier(consistency)
        }

        fn leader(&self) -> Option<Leader> {
            self.solo.leader().filter(|_| *self.has_leader.borrow())
        }

        fn peers(&self) -> Vec<String> {
            self.solo.peers()
        }

        fn leader_changed(&self) -> BoxFuture<'_, ()> {
            let mut changes = self.has_leader.subscribe();
            Box::pin(async move {
                // The sender lives as long as the cluster.
                let _ = changes.changed().await;
            })
        }

        fn last_contact(&self) -> Duration {
            Duration::ZERO
        }

        fn stats(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn registration_is_served_while_there_is_a_leader() {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let cluster = Arc::new(Fickle {
            solo: Solo::new(),
            has_leader: watch::Sender::new(false),
        });
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(report(reporter, cluster.clone(), shutdown.clone()));
        tokio::time::sleep(LOOK_AGAIN).await;

        let request = |service: &str| {
            Request::new(HealthCheckRequest {
                service: service.into(),
            })
        };
        let proxies = request(proxy_configuration_server::SERVICE_NAME);
        let proxies = service.check(proxies).await.unwrap().into_inner();
        assert_eq!(
            proxies.status,
            ServingStatus::Serving as i32,
            "with a leader or without"
        );
        let registrations = request(registry_server::SERVICE_NAME);
        let mut watch = service.watch(registrations).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|answer| answer.unwrap().status);
        assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
        cluster.has_leader.send_replace(true);
        assert_eq!(next().await, Some(ServingStatus::Serving as i32));
        cluster.has_leader.send_replace(false);
        assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
        shutdown.cancel();
        assert_eq!(next().await, Some(ServingStatus::NotServing as i32));
        assert_eq!(next().await, None);
        task.await.unwrap();
    }
}
