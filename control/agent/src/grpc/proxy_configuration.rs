//! `wharf.v1.ProxyConfiguration`: tells proxies what to do, for as long as they listen.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use wharf_mesh::{Place, ProxyDescription, compile, describe, update};
use wharf_proto::v1::{
    ProxyConfigurationRequest, ProxyConfigurationResponse, ProxySnapshot,
    proxy_configuration_request::Target, proxy_configuration_response::Update,
    proxy_configuration_server::ProxyConfiguration,
};
use wharf_registry::{Registry, watch::WatchKey};

use super::{
    GrpcContext, Tasks, auth,
    feed::{self, Feed, FeedStream},
    status,
    watch_set::WatchSet,
};
use crate::{
    authz::{Access, Caller, Resource},
    cluster::Cluster,
};

/// How long to gather changes before a proxy is told: a deployment changes many instances at once.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) context: Arc<GrpcContext>,
    pub(super) tasks: Arc<Tasks>,
}

#[tonic::async_trait]
impl ProxyConfiguration for Service {
    type StreamStream = FeedStream<ProxyConfigurationResponse>;

    async fn stream(
        &self,
        request: Request<ProxyConfigurationRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = auth::caller(&*self.context.authorizer, request.metadata())?;
        let mut proxy = Proxy {
            cluster: self.context.cluster.clone(),
            registry: self.context.cluster.registry().clone(),
            place: Place {
                node: self.context.node.name.clone(),
                datacenter: self.context.node.datacenter.clone(),
            },
            target: request.into_inner().target,
            caller,
            watches: WatchSet::default(),
            problems: BTreeSet::new(),
        };
        // A proxy that cannot be served learns it as the answer to its call.
        let first = proxy.compile().await?;
        let shutdown = self.tasks.shutdown.clone();
        let stream = feed::open(
            &self.tasks.tracker,
            self.tasks.patience,
            |feed| async move {
                tokio::select! {
                    ended = proxy.follow(feed, first) => ended,
                    () = shutdown.cancelled() => Err(status::shutting_down()),
                }
            },
        );
        Ok(Response::new(stream))
    }
}

/// One proxy that is being told.
#[derive(Debug)]
struct Proxy {
    cluster: Arc<dyn Cluster>,
    registry: Registry,
    place: Place,
    target: Option<Target>,
    caller: Caller,
    watches: WatchSet,
    /// What was logged already.
    problems: BTreeSet<String>,
}

impl Proxy {
    async fn follow(
        &mut self,
        feed: Feed<ProxyConfigurationResponse>,
        (mut description, mut known): (ProxyDescription, ProxySnapshot),
    ) -> Result<(), Status> {
        let mut news = Some(Update::Snapshot(known.clone()));
        let mut version = 0;
        loop {
            if news.is_some() {
                version += 1;
                let response = ProxyConfigurationResponse {
                    version,
                    update: news,
                };
                feed.send(vec![response]).await?;
            }
            self.changed(&description).await;
            let snapshot;
            (description, snapshot) = self.compile().await?;
            news = update(&known, &snapshot);
            known = snapshot;
        }
    }

    /// The newest configuration, with everything it depends on watched from before it was read.
    async fn compile(&mut self) -> Result<(ProxyDescription, ProxySnapshot), Status> {
        self.have(&[WatchKey::node(&self.place.node)]).await?;
        loop {
            let view = self.registry.view();
            let described = describe(&view, &self.place, self.target.as_ref());
            let description = described.map_err(status::describe)?;
            // Asked each time: the proxy may have come to speak for another service.
            let service = Resource::Service(&description.service);
            auth::check(&self.caller, service, Access::Write)?;
            let compiled = compile(&view, &description);
            if self.watches.set(&self.registry, &compiled.keys) {
                let keys: Vec<_> = compiled.keys.into_iter().collect();
                self.have(&keys).await?;
                continue;
            }
            self.report(&description, compiled.problems);
            return Ok((description, compiled.snapshot));
        }
    }

    async fn have(&self, keys: &[WatchKey]) -> Result<(), Status> {
        let here = self.cluster.have(keys).await;
        here.map_err(|error| status::cluster(&error))
    }

    /// Waits until a new compilation may come to something else.
    ///
    /// A node announces all that happens to anything on it, most of which is nothing to this proxy:
    /// its change counts when it changed what the proxy is.
    async fn changed(&mut self, known: &ProxyDescription) {
        let node = WatchKey::node(&self.place.node);
        loop {
            let first = self.watches.changed().await;
            tokio::time::sleep(GATHER).await;
            let more = self.watches.take();
            if first == node && more.iter().all(|key| *key == node) {
                let view = self.registry.view();
                let now = describe(&view, &self.place, self.target.as_ref());
                if now.is_ok_and(|now| now == *known) {
                    continue;
                }
            }
            return;
        }
    }

    /// Logs each problem once, for as long as it lasts.
    fn report(&mut self, description: &ProxyDescription, problems: Vec<String>) {
        let problems: BTreeSet<String> = problems.into_iter().collect();
        for problem in problems.difference(&self.problems) {
            tracing::warn!(proxy = %description.id, "{problem}");
        }
        self.problems = problems;
    }
}
