//! `/v1/agent/service*`, `/v1/agent/services` and `/v1/agent/health`: the instances of this agent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use serde::Serialize;
use tokio::time::Instant;
use wharf_registry::model::{
    CheckStatus, ConnectProxy, HealthCheck, NodeService, ServiceAddress, ServiceConnect,
    ServiceKind, Str, StrMap, Weights,
};

use super::{
    HttpContext,
    agent::maintenance_enabled,
    blocking::{ReadOptions, check_datacenter},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    definition::{Origin, ServiceDefinition},
    local::{LocalError, LocalKey, NODE_MAINTENANCE, Registration, content_hash},
};

/// The body limit of a registration.
const MAX_BODY: usize = 512 * 1024;

/// How long a registration waits for the catalog to have it. The agent goes on trying after that.
const SETTLE: Duration = Duration::from_secs(5);

/// Answers a change of the agent's services or checks when the catalog has it, so that who registered
/// something can find it.
pub(super) async fn settled(context: &HttpContext) -> Result<Response, HttpError> {
    if !context.local.synced(SETTLE).await {
        tracing::debug!("the catalog does not have the latest local change yet");
    }
    Ok(response::empty(StatusCode::OK))
}

impl From<LocalError> for HttpError {
    fn from(error: LocalError) -> HttpError {
        let status = match &error {
            LocalError::UnknownService(_)
            | LocalError::UnknownCheck(_)
            | LocalError::NoSuchService(_) => StatusCode::NOT_FOUND,
            LocalError::Reserved(_) | LocalError::NotTtl(_) => StatusCode::BAD_REQUEST,
            LocalError::NoSidecarPort { .. } | LocalError::Store(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        HttpError::new(status, error.to_string())
    }
}

/// An instance in the form of the agent's endpoints.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AgentService<'a> {
    #[serde(skip_serializing_if = "is_typical")]
    kind: ServiceKind,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [Str],
    meta: &'a StrMap,
    port: u16,
    address: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    socket_path: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: &'a BTreeMap<Str, ServiceAddress>,
    weights: Weights,
    enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<&'a ConnectProxy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<&'a ServiceConnect>,
    datacenter: &'a str,
}

fn is_typical(kind: &ServiceKind) -> bool {
    *kind == ServiceKind::Typical
}

impl<'a> AgentService<'a> {
    fn new(service: &'a NodeService, datacenter: &'a str) -> AgentService<'a> {
        AgentService {
            kind: service.kind,
            id: &service.id,
            service: &service.name,
            tags: &service.tags,
            meta: &service.meta,
            port: service.port,
            address: &service.address,
            socket_path: &service.socket_path,
            tagged_addresses: &service.tagged_addresses,
            weights: service.weights,
            enable_tag_override: service.enable_tag_override,
            content_hash: None,
            proxy: service.proxy.as_deref(),
            connect: service.connect.native.then_some(&service.connect),
            datacenter,
        }
    }
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let filter = RowFilter::parse(&request, &selectors::SERVICE)?;
    let services = context.local.services();
    let rows: BTreeMap<&str, AgentService<'_>> = services
        .values()
        .filter(|service| {
            request
                .caller
                .may(Resource::Service(&service.name), Access::Read)
        })
        .map(|service| {
            (
                &*service.id,
                AgentService::new(service, &context.node.datacenter),
            )
        })
        .collect();
    let bytes = filter.encode_map(rows, context.pretty(&request))?;
    Ok(response::json_bytes(StatusCode::OK, bytes))
}

/// One instance. `?hash=` waits until its content differs from what had that hash.
pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let id = request.name("Missing service ID")?;
    let options = ReadOptions::parse(context, &request)?;
    let unknown = || HttpError::not_found(format!("unknown service ID: {id}"));
    let seen = request.query.get("hash");
    let mut watch = context.local.watch(LocalKey::Service(id.into()));
    let deadline = Instant::now() + options.wait;
    let (service, hash) = loop {
        let service = context.local.service(id).ok_or_else(unknown)?;
        let hash = content_hash(&AgentService::new(&service, &context.node.datacenter));
        let same = seen == Some(hash.as_str());
        if !same || Instant::now() >= deadline || context.shutdown.is_cancelled() {
            break (service, hash);
        }
        tokio::select! {
            () = watch.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = context.shutdown.cancelled() => {}
        }
    };
    request
        .caller
        .check(Resource::Service(&service.name), Access::Read)?;
    let mut row = AgentService::new(&service, &context.node.datacenter);
    row.content_hash = Some(&hash);
    let mut response = response::json(&row, options.pretty)?;
    if let Ok(value) = HeaderValue::from_str(&hash) {
        response.headers_mut().insert(response::CONTENT_HASH, value);
    }
    Ok(response)
}

pub(crate) async fn register(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let definition: ServiceDefinition = request.json(MAX_BODY).await?;
    let scripts = context.agent.config.load().scripts;
    definition
        .validate(Origin::Api, scripts)
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    request
        .caller
        .check(Resource::Service(&definition.name), Access::Write)?;
    for warning in definition.warnings() {
        tracing::warn!("{warning}");
    }
    let mut registration = Registration::from_definition(definition, Origin::Api);
    registration.token = request.caller.token().cloned().or(registration.token);
    registration.replace_existing_checks = request.flag("replace-existing-checks")?;
    context.local.register_service(registration).await?;
    settled(context).await
}

/// Whether the caller may change the instance; one that does not exist is told by who acts on it.
fn may_change(context: &HttpContext, request: &Request, id: &str) -> Result<(), HttpError> {
    if let Some(service) = context.local.service(id) {
        request
            .caller
            .check(Resource::Service(&service.name), Access::Write)?;
    }
    Ok(())
}

pub(crate) async fn deregister(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let id = request.name("Missing service ID")?;
    may_change(context, &request, id)?;
    context.local.deregister_service(id).await?;
    settled(context).await
}

pub(crate) async fn maintenance(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let id = request.name("Missing service ID")?;
    let enable = maintenance_enabled(&request)?;
    may_change(context, &request, id)?;
    let result = if enable {
        let reason = request.query.get("reason").unwrap_or("");
        let token = request.caller.token().cloned();
        context
            .local
            .start_service_maintenance(id, reason, token)
            .await
    } else {
        context.local.end_service_maintenance(id).await
    };
    match result {
        Err(LocalError::UnknownService(id)) => {
            return Err(HttpError::not_found(format!(
                "No service registered with ID {:?}",
                &*id
            )));
        }
        result => result?,
    }
    settled(context).await
}

/// The health of an instance as one word, from its own checks and the node's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Aggregated {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

impl Aggregated {
    fn of<'a>(checks: impl Iterator<Item = &'a HealthCheck>) -> Aggregated {
        let one = |check: &HealthCheck| {
            if &*check.id == NODE_MAINTENANCE || check.id.starts_with("_service_maintenance:") {
                return Aggregated::Maintenance;
            }
            match check.status {
                CheckStatus::Passing => Aggregated::Passing,
                CheckStatus::Warning => Aggregated::Warning,
                CheckStatus::Critical => Aggregated::Critical,
            }
        };
        checks.map(one).max().unwrap_or(Aggregated::Passing)
    }

    fn as_str(self) -> &'static str {
        match self {
            Aggregated::Passing => "passing",
            Aggregated::Warning => "warning",
            Aggregated::Critical => "critical",
            Aggregated::Maintenance => "maintenance",
        }
    }

    /// Load balancers look at nothing else.
    fn status(self) -> StatusCode {
        match self {
            Aggregated::Passing => StatusCode::OK,
            Aggregated::Warning => StatusCode::TOO_MANY_REQUESTS,
            Aggregated::Critical | Aggregated::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceHealth<'a> {
    aggregated_status: &'static str,
    service: Option<AgentService<'a>>,
    checks: Option<Vec<Arc<HealthCheck>>>,
}

/// The health of some instances of the agent: for each its row, and the worst of all.
fn health_of<'a>(
    context: &'a HttpContext,
    services: impl Iterator<Item = &'a Arc<NodeService>>,
) -> (Vec<ServiceHealth<'a>>, Aggregated) {
    let of_node = context.local.node_checks();
    let mut worst = Aggregated::Passing;
    let rows = services
        .map(|service| {
            let own = context
                .local
                .service_checks(&service.id)
                .unwrap_or_default();
            let checks: Vec<Arc<HealthCheck>> = own.into_iter().chain(of_node.clone()).collect();
            let status = Aggregated::of(checks.iter().map(|check| &**check));
            worst = worst.max(status);
            ServiceHealth {
                aggregated_status: status.as_str(),
                service: Some(AgentService::new(service, &context.node.datacenter)),
                checks: Some(checks),
            }
        })
        .collect();
    (rows, worst)
}

fn health_response<T: Serialize>(
    context: &HttpContext,
    request: &Request,
    status: StatusCode,
    reason: &str,
    body: &T,
) -> Result<Response, HttpError> {
    let mut response = if request.query.get("format") == Some("text") {
        response::with_type(status, "text/plain", reason.to_owned().into())
    } else {
        response::json_bytes(status, response::encode(body, context.pretty(request))?)
    };
    if let Ok(reason) = HeaderValue::from_str(reason) {
        response.headers_mut().insert(response::REASON, reason);
    }
    Ok(response)
}

pub(crate) async fn health_by_id(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let id = request.name("Missing service ID")?;
    let Some(service) = context.local.service(id) else {
        let body = ServiceHealth {
            aggregated_status: "critical",
            service: None,
            checks: None,
        };
        let reason = format!("ServiceId {id} not found");
        return health_response(context, &request, StatusCode::NOT_FOUND, &reason, &body);
    };
    request
        .caller
        .check(Resource::Service(&service.name), Access::Read)?;
    let services = [service];
    let (rows, worst) = health_of(context, services.iter());
    health_response(
        context,
        &request,
        worst.status(),
        worst.as_str(),
        &rows.first(),
    )
}

pub(crate) async fn health_by_name(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let name = request.name("Missing service name")?;
    request
        .caller
        .check(Resource::Service(name), Access::Read)?;
    let all = context.local.services();
    let (rows, worst) = health_of(
        context,
        all.values().filter(|service| &*service.name == name),
    );
    if rows.is_empty() {
        let reason = format!("ServiceName {name} Not Found");
        return health_response(context, &request, StatusCode::NOT_FOUND, &reason, &rows);
    }
    health_response(context, &request, worst.status(), worst.as_str(), &rows)
}
