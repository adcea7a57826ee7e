//! From a path and a method to an endpoint.
//!
//! Paths are looked up as Go's `ServeMux` does it: an exact path, or the longest registered prefix
//! that ends with a slash. What follows the prefix belongs to the endpoint.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use tracing::Level;

use super::{
    HttpContext, agent, agent_checks, agent_services, allocations, autopilot, catalog, compression,
    config_entries,
    error::HttpError,
    health, images, jobs, kv, members, operator, platform_nodes,
    request::{self, PathProblem, Query, Request, RequestBody},
    response::{self, Response},
    snapshot, status,
};
use crate::{cluster::BoxFuture, rates::Operation};

type Handler = for<'a> fn(&'a HttpContext, Request) -> BoxFuture<'a, Result<Response, HttpError>>;

/// One path with its methods. A path that ends with a slash is a prefix.
struct Endpoint {
    path: &'static str,
    methods: &'static [(Method, Handler)],
}

macro_rules! endpoints {
    ($($path:literal: $($method:ident => $handler:path),+;)+) => {
        &[$(Endpoint {
            path: $path,
            methods: &[$((Method::$method, {
                fn call(context: &HttpContext, request: Request)
                    -> BoxFuture<'_, Result<Response, HttpError>>
                {
                    Box::pin($handler(context, request))
                }
                call
            })),+],
        }),+]
    };
}

const ENDPOINTS: &[Endpoint] = endpoints! {
    "/v1/agent/self": GET => agent::own;
    "/v1/agent/version": GET => agent::version;
    "/v1/agent/members": GET => members::list;
    "/v1/agent/metrics": GET => agent::metrics;
    "/v1/agent/monitor": GET => agent::monitor;
    "/v1/agent/reload": PUT => agent::reload;
    "/v1/agent/leave": PUT => agent::leave;
    "/v1/agent/force-leave/": PUT => operator::force_leave;
    "/v1/agent/join/": PUT => operator::join;
    "/v1/agent/maintenance": PUT => agent::maintenance;
    "/v1/agent/services": GET => agent_services::list;
    "/v1/agent/service/": GET => agent_services::get;
    "/v1/agent/service/register": PUT => agent_services::register;
    "/v1/agent/service/deregister/": PUT => agent_services::deregister;
    "/v1/agent/service/maintenance/": PUT => agent_services::maintenance;
    "/v1/agent/health/service/id/": GET => agent_services::health_by_id;
    "/v1/agent/health/service/name/": GET => agent_services::health_by_name;
    "/v1/agent/checks": GET => agent_checks::list;
    "/v1/agent/check/register": PUT => agent_checks::register;
    "/v1/agent/check/deregister/": PUT => agent_checks::deregister;
    "/v1/agent/check/pass/": PUT => agent_checks::pass;
    "/v1/agent/check/warn/": PUT => agent_checks::warn;
    "/v1/agent/check/fail/": PUT => agent_checks::fail;
    "/v1/agent/check/update/": PUT => agent_checks::update;
    "/v1/catalog/datacenters": GET => catalog::datacenters;
    "/v1/catalog/nodes": GET => catalog::nodes;
    "/v1/catalog/services": GET => catalog::services;
    "/v1/catalog/service/": GET => catalog::service;
    "/v1/catalog/node/": GET => catalog::node;
    "/v1/catalog/node-services/": GET => catalog::node_services;
    "/v1/catalog/register": PUT => catalog::register;
    "/v1/catalog/deregister": PUT => catalog::deregister;
    "/v1/health/node/": GET => health::node;
    "/v1/health/checks/": GET => health::checks;
    "/v1/health/state/": GET => health::state;
    "/v1/health/service/": GET => health::service;
    "/v1/kv/": GET => kv::get, PUT => kv::put, DELETE => kv::delete;
    "/v1/config": PUT => config_entries::put;
    "/v1/config/": GET => config_entries::get, DELETE => config_entries::delete;
    "/v1/images": GET => images::list;
    "/v1/images/import": POST => images::import, PUT => images::import;
    "/v1/images/prune": POST => images::prune, PUT => images::prune;
    "/v1/images/pull": POST => images::pull, PUT => images::pull;
    "/v1/image/": GET => images::get, DELETE => images::delete;
    "/v1/jobs": GET => jobs::list, PUT => jobs::register, POST => jobs::register;
    "/v1/job/": GET => jobs::get, PUT => jobs::change, POST => jobs::change, DELETE => jobs::delete;
    "/v1/allocations": GET => allocations::list;
    "/v1/allocation/": GET => allocations::get, PUT => allocations::change, POST => allocations::change;
    "/v1/platform/nodes": GET => platform_nodes::list;
    "/v1/platform/node/": GET => platform_nodes::get, PUT => platform_nodes::change,
        POST => platform_nodes::change;
    "/v1/operator/autopilot/configuration": GET => autopilot::configuration, PUT => autopilot::set_configuration;
    "/v1/operator/autopilot/health": GET => autopilot::health;
    "/v1/operator/autopilot/state": GET => autopilot::state;
    "/v1/operator/raft/configuration": GET => operator::configuration;
    "/v1/operator/raft/hash": GET => operator::hash;
    "/v1/operator/raft/peer": DELETE => operator::remove_peer;
    "/v1/operator/raft/transfer-leader": POST => operator::transfer_leader, PUT => operator::transfer_leader;
    "/v1/snapshot": GET => snapshot::save, PUT => snapshot::restore;
    "/v1/status/leader": GET => status::leader;
    "/v1/status/peers": GET => status::peers;
};

/// Endpoints of Consul that come with later issues. They are told from paths that never existed.
const NOT_BUILT: &[&str] = &[
    "/v1/acl/",
    "/v1/agent/connect/",
    "/v1/agent/host",
    "/v1/agent/metrics/stream",
    "/v1/agent/token/",
    "/v1/catalog/connect/",
    "/v1/catalog/gateway-services/",
    "/v1/connect/",
    "/v1/coordinate/",
    "/v1/discovery-chain/",
    "/v1/event/",
    "/v1/exported-services",
    "/v1/health/connect/",
    "/v1/health/ingress/",
    "/v1/internal/",
    "/v1/operator/area",
    "/v1/operator/keyring",
    "/v1/operator/license",
    "/v1/operator/segment",
    "/v1/operator/usage",
    "/v1/operator/utilization",
    "/v1/peering",
    "/v1/query",
    "/v1/session/",
    "/v1/txn",
];

/// The endpoints by path, with the handles of their metrics.
pub(super) struct Router {
    endpoints: HashMap<&'static str, (&'static Endpoint, metrics::Histogram)>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("endpoints", &self.endpoints.len())
            .finish()
    }
}

impl Router {
    pub(super) fn new() -> Router {
        let endpoints = ENDPOINTS.iter().map(|endpoint| {
            let path = endpoint.path.trim_end_matches('/');
            let seconds =
                metrics::histogram!("wharf_http_request_duration_seconds", "path" => path);
            (endpoint.path, (endpoint, seconds))
        });
        Router {
            endpoints: endpoints.collect(),
        }
    }

    /// The endpoint of a path, and what of the path is the endpoint's own.
    fn find<'p>(&self, path: &'p str) -> Option<(&'static Endpoint, &metrics::Histogram, &'p str)> {
        if let Some((endpoint, seconds)) = self.endpoints.get(path) {
            return Some((endpoint, seconds, ""));
        }
        let mut end = path.len();
        while let Some(slash) = path[..end].rfind('/') {
            if let Some((endpoint, seconds)) = self.endpoints.get(&path[..=slash]) {
                return Some((endpoint, seconds, &path[slash + 1..]));
            }
            end = slash;
        }
        None
    }

    /// Answers one request. Never fails: an error is an answer.
    pub(super) async fn serve(
        &self,
        context: &HttpContext,
        request: http::Request<request::Body>,
        peer: Option<IpAddr>,
    ) -> Response {
        let started = Instant::now();
        let method = request.method().clone();
        let path = tracing::enabled!(Level::DEBUG).then(|| request.uri().path().to_owned());
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(body);
        let compress = compression::wanted(&parts.headers);
        let mut response = match self.route(context, parts, body.clone(), peer).await {
            Ok(response) => response,
            Err(error) => error.into(),
        };
        finish(context, &mut response);
        if compress {
            compression::compress(&mut response).await;
        }
        if !body.drain().await {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if let Some(path) = path {
            // The path only: the query may carry a token.
            tracing::debug!(
                %method,
                path,
                from = peer.map(tracing::field::display),
                status = response.status().as_u16(),
                elapsed = ?started.elapsed(),
                "request"
            );
        }
        response
    }

    async fn route(
        &self,
        context: &HttpContext,
        parts: Parts,
        body: RequestBody,
        peer: Option<IpAddr>,
    ) -> Result<Response, HttpError> {
        let path = match request::decode_path(parts.uri.path()) {
            Ok(path) => path,
            Err(PathProblem::Unprintable) => {
                return Err(HttpError::bad_request(
                    "the path has characters that do not print",
                ));
            }
            Err(PathProblem::Unclean(clean)) => return Ok(moved(&clean, parts.uri.query())),
        };
        let blocked = &context.settings.load().block_endpoints;
        if blocked
            .iter()
            .any(|prefix| path.starts_with(prefix.as_str()))
        {
            let text = "Endpoint is blocked by agent configuration";
            return Err(HttpError::new(StatusCode::FORBIDDEN, text));
        }
        let Some((endpoint, seconds, rest)) = self.find(&path) else {
            return Err(unknown(&path));
        };
        let Some(handler) = endpoint.handler(&parts.method) else {
            return Ok(other_method(endpoint, &parts.method));
        };
        let writers = &context.settings.load().allow_write_from;
        if parts.method != Method::GET
            && !writers.is_empty()
            && !peer.is_some_and(|ip| writers.iter().any(|network| network.contains(ip)))
        {
            return Err(HttpError::new(
                StatusCode::FORBIDDEN,
                "Access is restricted",
            ));
        }
        admit(context, endpoint, &parts.method)?;
        if let Some(client) = context.cluster.client()
            && !is_local(context, endpoint, rest)
            && !(endpoint.path == MEMBERS
                && members::is_answered_here(client, parts.uri.query().unwrap_or("")).await)
        {
            return Ok(client.call(parts, body).await?);
        }
        run(context, handler, seconds, rest, parts, body).await
    }

    /// Answers a request that a client agent passed on.
    pub(super) async fn forwarded(
        &self,
        context: &HttpContext,
        request: http::Request<request::Body>,
    ) -> Response {
        let (parts, body) = request.into_parts();
        let answer = async {
            let path = request::decode_path(parts.uri.path())
                .map_err(|_| HttpError::bad_request("the path is not as an agent passes it on"))?;
            let found = self.find(&path);
            let (endpoint, seconds, rest) = found.ok_or_else(|| unknown(&path))?;
            let handler = endpoint.handler(&parts.method);
            let handler = handler.ok_or_else(|| {
                HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            })?;
            // The agent has its own rates, and this server those of all agents.
            admit(context, endpoint, &parts.method)?;
            run(
                context,
                handler,
                seconds,
                rest,
                parts,
                RequestBody::new(body),
            )
            .await
        };
        answer.await.unwrap_or_else(Response::from)
    }
}

impl Endpoint {
    fn handler(&self, method: &Method) -> Option<Handler> {
        let mut methods = self.methods.iter();
        let (_, handler) = methods.find(|(own, _)| own == method)?;
        Some(*handler)
    }
}

/// What a client agent knows the least of.
const MEMBERS: &str = "/v1/agent/members";

/// Whether an agent that is no server answers by itself: about itself, and what only it has.
fn is_local(context: &HttpContext, endpoint: &Endpoint, rest: &str) -> bool {
    match endpoint.path {
        MEMBERS | "/v1/agent/force-leave/" => false,
        "/v1/allocation/" => allocations::is_local(context, rest),
        path => path.starts_with("/v1/agent/") || path.starts_with("/v1/image"),
    }
}

/// Calls the endpoint.
async fn run(
    context: &HttpContext,
    handler: Handler,
    seconds: &metrics::Histogram,
    rest: &str,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, HttpError> {
    let query = Query::parse(parts.uri.query().unwrap_or(""));
    let caller = context.authorizer.resolve(request::token(&query, &parts))?;
    let request = Request {
        rest: rest.to_owned(),
        query,
        headers: parts.headers,
        caller,
        body,
    };
    let blocking = request.query.has("index") || request.query.has("hash");
    let started = Instant::now();
    let result = handler(context, request).await;
    // A parked read says nothing about how fast the agent is.
    if !blocking {
        seconds.record(started.elapsed());
    }
    result
}

/// What only concerns this agent, and what an operator needs to bring a cluster back, is never refused.
const NOT_LIMITED: [&str; 3] = ["/v1/agent/", "/v1/operator/", "/v1/status/"];

/// Counts the request against the rates of all clients.
fn admit(context: &HttpContext, endpoint: &Endpoint, method: &Method) -> Result<(), HttpError> {
    if NOT_LIMITED
        .iter()
        .any(|prefix| endpoint.path.starts_with(prefix))
    {
        return Ok(());
    }
    let operation = match *method {
        Method::GET => Operation::Read,
        _ => Operation::Write,
    };
    let admitted = context.settings.load().rates.admit(operation);
    admitted.map_err(|error| HttpError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()))
}

/// `OPTIONS` lists the methods; any other that is not among them is refused with the list.
fn other_method(endpoint: &Endpoint, method: &Method) -> Response {
    let mut allow = String::from("OPTIONS");
    for (method, _) in endpoint.methods {
        allow.push(',');
        allow.push_str(method.as_str());
    }
    let mut response = if method == Method::OPTIONS {
        response::empty(StatusCode::OK)
    } else {
        let text = format!("method {method} not allowed");
        response::text(StatusCode::METHOD_NOT_ALLOWED, text)
    };
    if let Ok(allow) = HeaderValue::from_str(&allow) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

fn unknown(path: &str) -> HttpError {
    if NOT_BUILT.iter().any(|prefix| path.starts_with(prefix)) {
        return HttpError::not_built(path);
    }
    if path == "/" {
        return HttpError::not_found(
            "wharf agent: there is no console yet. The API is below /v1/: try /v1/agent/self",
        );
    }
    if path.contains("/v1/") {
        HttpError::not_found("Invalid URL path: not a recognized HTTP API endpoint")
    } else {
        HttpError::not_found(
            "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'",
        )
    }
}

fn moved(clean: &str, query: Option<&str>) -> Response {
    let location = match query {
        Some(query) => format!("{clean}?{query}"),
        None => clean.to_owned(),
    };
    let mut response = response::empty(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// What every answer carries.
fn finish(context: &HttpContext, response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(response::ACL_POLICY, HeaderValue::from_static("allow"));
    for (name, value) in &context.settings.load().response_headers {
        headers.insert(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_the_rest_is_the_endpoints() {
        let router = Router::new();
        let find = |path| {
            router
                .find(path)
                .map(|(endpoint, _, rest)| (endpoint.path, rest))
        };
        assert_eq!(find("/v1/kv/a/b"), Some(("/v1/kv/", "a/b")));
        assert_eq!(find("/v1/kv/"), Some(("/v1/kv/", "")));
        assert_eq!(find("/v1/config"), Some(("/v1/config", "")));
        assert_eq!(
            find("/v1/config/service-defaults/web"),
            Some(("/v1/config/", "service-defaults/web"))
        );
        assert_eq!(find("/v1/catalog/nodes/x"), None);
        assert_eq!(find("/v1/kv"), None);
        assert_eq!(find(""), None);
    }

    #[test]
    fn what_is_not_built_is_told_from_what_never_was() {
        assert_eq!(
            unknown("/v1/session/create").status,
            StatusCode::NOT_IMPLEMENTED
        );
        assert_eq!(unknown("/v1/nope").status, StatusCode::NOT_FOUND);
        let built = |path: &str| ENDPOINTS.iter().any(|endpoint| endpoint.path == path);
        assert!(NOT_BUILT.iter().all(|path| !built(path)));
    }
}
