//! `grpc.health.v1`: whether this agent can serve right now.
//!
//! A check asks the cluster at the moment it is asked, as `/v1/status/leader` does: whoever has seen
//! a leader there finds the same here.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};
use wharf_proto::v1::{proxy_configuration_server, registry_server};

use super::{
    Tasks,
    feed::{self, FeedStream},
};
use crate::cluster::Cluster;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) tasks: Arc<Tasks>,
}

/// The health of a service; `ServiceUnknown` when there is none of that name.
///
/// Registration needs a leader, and so does the server as a whole, whose name is empty. A proxy is
/// configured from what this agent knows, whether there is a leader or not.
fn status(cluster: &dyn Cluster, service: &str) -> ServingStatus {
    match service {
        "" | registry_server::SERVICE_NAME => match cluster.leader() {
            Some(_) => ServingStatus::Serving,
            None => ServingStatus::NotServing,
        },
        proxy_configuration_server::SERVICE_NAME => ServingStatus::Serving,
        _ => ServingStatus::ServiceUnknown,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = FeedStream<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&*self.cluster, &service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("no service {service:?}")))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    /// Tells the health now, each change, and at the shutdown that it is over.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let (cluster, shutdown) = (self.cluster.clone(), self.tasks.shutdown.clone());
        let stream = feed::open(
            &self.tasks.tracker,
            self.tasks.patience,
            |feed| async move {
                let mut told = None;
                while !shutdown.is_cancelled() {
                    // Listening begins before the look: no change falls between the two.
                    let changed = cluster.leader_changed();
                    let now = status(&*cluster, &service);
                    if told.replace(now) != Some(now) {
                        feed.send(vec![response(now)]).await?;
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = changed => {}
                    }
                }
                if told == Some(ServingStatus::Serving) {
                    feed.send(vec![response(ServingStatus::NotServing)]).await?;
                }
                Ok(())
            },
        );
        Ok(Response::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio_stream::StreamExt as _;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};
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

        fn term(&self) -> u64 {
            1
        }

        fn leader_changed(&self) -> BoxFuture<'_, ()> {
            let mut changes = self.has_leader.subscribe();
            Box::pin(async move {
                // The sender lives as long as the cluster.
                let _ = changes.changed().await;
            })
        }

        fn last_contact(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }

        fn stats(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn registration_is_served_while_there_is_a_leader() {
        let cluster = Arc::new(Fickle {
            solo: Solo::new(),
            has_leader: watch::Sender::new(false),
        });
        let shutdown = CancellationToken::new();
        let service = Service {
            cluster: cluster.clone(),
            tasks: Arc::new(Tasks {
                tracker: TaskTracker::new(),
                shutdown: shutdown.clone(),
                patience: Duration::from_secs(30),
            }),
        };
        let request = |service: &str| {
            Request::new(HealthCheckRequest {
                service: service.into(),
            })
        };
        let check = async |name: &str| {
            let answer = service.check(request(name)).await;
            answer.unwrap().into_inner().status()
        };
        let proxies = proxy_configuration_server::SERVICE_NAME;
        assert_eq!(check(proxies).await, ServingStatus::Serving);

        let registrations = request(registry_server::SERVICE_NAME);
        let mut watch = service.watch(registrations).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|answer| answer.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        for (has_leader, expected) in [
            (true, ServingStatus::Serving),
            (false, ServingStatus::NotServing),
            (true, ServingStatus::Serving),
        ] {
            cluster.has_leader.send_replace(has_leader);
            // Nothing had a chance to run since: a check does not depend on it.
            assert_eq!(check("").await, expected);
            assert_eq!(next().await, Some(expected));
        }
        shutdown.cancel();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_unknown() {
        let service = Service {
            cluster: Arc::new(Solo::new()),
            tasks: Arc::new(Tasks {
                tracker: TaskTracker::new(),
                shutdown: CancellationToken::new(),
                patience: Duration::from_secs(30),
            }),
        };
        let request = || {
            Request::new(HealthCheckRequest {
                service: "nobody".into(),
            })
        };
        let refused = service.check(request()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        let mut watch = service.watch(request()).await.unwrap().into_inner();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    }
}
