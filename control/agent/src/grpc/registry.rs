//! `wharf.v1.Registry`: being found, and finding others.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status, Streaming};
use wharf_proto::v1::{
    DeregisterRequest, DeregisterResponse, LeaseRequest, LeaseResponse, RegisterRequest,
    RegisterResponse, WatchRequest, WatchResponse, lease_request, registry_server::Registry,
};
use wharf_registry::model::{NodeService, Str};

use super::{
    GrpcContext, Tasks, auth,
    feed::{self, FeedStream},
    lease::{self, Leases},
    registration,
    status::{self, Violations},
    watching::Watching,
};
use crate::{
    authz::{Access, Caller, Resource},
    local::Source,
};

/// How long a registration waits for the catalog. It is on the agent by then, and reaches the
/// catalog also later.
const SYNC_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) context: Arc<GrpcContext>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) leases: Arc<Leases>,
    pub(super) watching: Watching,
}

impl Service {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        auth::caller(&*self.context.authorizer, request.metadata())
    }

    /// Whoever registers an instance must be allowed to write its service, and that of the instance
    /// it replaces.
    fn may_register(&self, caller: &Caller, service: &NodeService) -> Result<(), Status> {
        auth::check(caller, Resource::Service(&service.name), Access::Write)?;
        match self.context.local.service(&service.id) {
            Some(before) => auth::check(caller, Resource::Service(&before.name), Access::Write),
            None => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Registry for Service {
    type LeaseStream = FeedStream<LeaseResponse>;
    type WatchStream = FeedStream<WatchResponse>;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let caller = self.caller(&request)?;
        let RegisterRequest { instance, checks } = request.into_inner();
        let mut violations = Violations::default();
        let mut registration =
            registration::parse("", instance, checks, Source::Api, &mut violations);
        violations.finish()?;
        self.may_register(&caller, &registration.service)?;
        registration.token = caller.token().cloned();
        let id = registration.service.id.clone();
        self.leases.register(registration).await?;
        self.context.local.synced(SYNC_WITHIN).await;
        Ok(Response::new(RegisterResponse {
            node: self.context.node.name.to_string(),
            id: id.to_string(),
        }))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let caller = self.caller(&request)?;
        let id = Str::from(request.into_inner().id);
        if id.is_empty() {
            return Err(status::violation("id", "must not be empty"));
        }
        if let Some(service) = self.context.local.service(&id) {
            auth::check(&caller, Resource::Service(&service.name), Access::Write)?;
        }
        self.leases.deregister(&id).await?;
        self.context.local.synced(SYNC_WITHIN).await;
        Ok(Response::new(DeregisterResponse {}))
    }

    async fn lease(
        &self,
        request: Request<Streaming<LeaseRequest>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        let caller = self.caller(&request)?;
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(lease::OPEN_WITHIN, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no first message came"))??;
        let Some(lease_request::Message::Open(open)) = first.and_then(|first| first.message) else {
            return Err(status::violation(
                "open",
                "the first message must open the lease",
            ));
        };
        let mut open = lease::parse(open)?;
        self.may_register(&caller, &open.registration.service)?;
        open.registration.token = caller.token().cloned();
        let holding = self.leases.open(open).await?;
        self.context.local.synced(SYNC_WITHIN).await;
        let shutdown = self.tasks.shutdown.clone();
        let stream = feed::open(&self.tasks.tracker, self.tasks.patience, |feed| {
            holding.hold(requests, feed, shutdown)
        });
        Ok(Response::new(stream))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.watching.watch(request).await
    }
}
