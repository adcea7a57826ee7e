//! `/v1/agent`: the agent itself: who it is, its figures and its log, reload and leave.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    HttpContext,
    error::HttpError,
    members::{member, tally},
    request::{Request, go_bool},
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    calendar::go_utc,
    config::{Listen, RuntimeConfig},
    context::{CONSUL_VERSION, Control, VERSION},
    telemetry::logs::{LogFormat, parse_level},
};

/// How long a reload may take before its requester is told that it goes on without it.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn own(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let node = &context.node;
    request
        .caller
        .check(Resource::Agent(&node.name), Access::Read)?;
    let body = json!({
        "Config": {
            "Datacenter": &*node.datacenter,
            "PrimaryDatacenter": &*node.datacenter,
            "NodeName": &*node.name,
            "NodeID": &*node.id,
            "Revision": "",
            "Server": node.server,
            "Version": CONSUL_VERSION,
            "BuildDate": "",
        },
        "DebugConfig": debug_config(context),
        "Coord": null,
        "Member": member(context),
        "Stats": stats(context),
        "Meta": node.meta,
        "xDS": grpc_ports(&context.agent.config.load()),
    });
    response::json(&body, context.pretty(&request))
}

/// With the id that the node has, whether it was configured or not.
fn debug_config(context: &HttpContext) -> Value {
    let mut config = context.agent.config.load().debug_config();
    config["NodeID"] = (&*context.node.id).into();
    config
}

/// Where gRPC is served, -1 for off. Clients such as Nomad look for it under the name of Envoy's protocol,
/// which is not spoken here: no version of Envoy is among the supported proxies.
fn grpc_ports(config: &RuntimeConfig) -> Value {
    let port = |listens: &[Listen]| {
        let port = listens.iter().find_map(Listen::port);
        port.map_or(-1, i32::from)
    };
    let (plaintext, tls) = (port(&config.listen.grpc), port(&config.listen.grpc_tls));
    json!({
        "SupportedProxies": {},
        "Port": if plaintext > 0 { plaintext } else { tls },
        "Ports": {"Plaintext": plaintext, "TLS": tls},
    })
}

/// What `consul info` prints: sections of figures, all of them texts.
fn stats(context: &HttpContext) -> BTreeMap<&'static str, BTreeMap<String, String>> {
    let section = |pairs: &[(&str, String)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    };
    let leader = context.cluster.leader();
    let checks = context.local.checks();
    let of_kind = |kind: &str| checks.values().filter(|check| &*check.kind == kind).count();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let tally = tally(context);
    let mut stats = BTreeMap::from([
        (
            "agent",
            section(&[
                (
                    "check_monitors",
                    (checks.len() - of_kind("ttl")).to_string(),
                ),
                ("check_ttls", of_kind("ttl").to_string()),
                ("checks", checks.len().to_string()),
                ("services", context.local.services().len().to_string()),
            ]),
        ),
        (
            "build",
            section(&[
                ("prerelease", String::new()),
                ("revision", String::new()),
                ("version", CONSUL_VERSION.into()),
                ("wharf", VERSION.into()),
            ]),
        ),
        (
            "consul",
            section(&[
                ("acl", "disabled".into()),
                (
                    "bootstrap",
                    context.agent.config.load().bootstrap.to_string(),
                ),
                ("known_datacenters", "1".into()),
                (
                    "leader",
                    leader
                        .as_ref()
                        .is_some_and(|leader| leader.is_self)
                        .to_string(),
                ),
                (
                    "leader_addr",
                    leader.map(|leader| leader.address).unwrap_or_default(),
                ),
                ("server", context.node.server.to_string()),
            ]),
        ),
        (
            "runtime",
            section(&[
                ("arch", std::env::consts::ARCH.into()),
                ("cpu_count", cores.to_string()),
                ("os", std::env::consts::OS.into()),
                (
                    "uptime",
                    format!("{}s", context.agent.started.elapsed().as_secs()),
                ),
            ]),
        ),
        (
            "serf_lan",
            section(&[
                ("members", tally.members.to_string()),
                ("failed", tally.failed.to_string()),
                ("left", tally.left.to_string()),
            ]),
        ),
    ]);
    if context.node.server {
        stats.insert("raft", context.cluster.stats().into_iter().collect());
    } else {
        let known = context.cluster.servers().len().to_string();
        let consul = stats.entry("consul").or_default();
        consul.insert("known_servers".to_owned(), known);
    }
    stats
}

pub(crate) async fn version(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let body = json!({
        "SHA": "", "BuildDate": "", "HumanVersion": CONSUL_VERSION, "FIPS": "", "Wharf": VERSION,
    });
    response::json(&body, context.pretty(&request))
}

pub(crate) async fn metrics(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request
        .caller
        .check(Resource::Agent(&context.node.name), Access::Read)?;
    sample(context);
    if request.query.get("format") == Some("prometheus") {
        let text = context.agent.recorder.prometheus();
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        return Ok(response::with_type(StatusCode::OK, kind, text.into()));
    }
    let now = go_utc(SystemTime::now());
    response::json(&context.agent.recorder.json(&now), context.pretty(&request))
}

/// Figures that are looked at rather than counted.
fn sample(context: &HttpContext) {
    let registry = context.cluster.registry();
    let view = registry.view();
    let gauge = |name: &'static str, value: usize| metrics::gauge!(name).set(value as f64);
    gauge("wharf_watchers", registry.watches().watchers());
    gauge("wharf_catalog_nodes", view.nodes().len());
    gauge("wharf_catalog_services", view.services().len());
    gauge("wharf_kv_entries", view.kv_len());
    metrics::gauge!("wharf_applied_index").set(view.applied() as f64);
    metrics::gauge!("wharf_leader").set(f64::from(u8::from(
        context
            .cluster
            .leader()
            .is_some_and(|leader| leader.is_self),
    )));
    metrics::gauge!("wharf_uptime_seconds").set(context.agent.started.elapsed().as_secs_f64());
    metrics::counter!("wharf_watch_wakes_total").absolute(registry.watches().wakes());
    if let Some(bytes) = resident_bytes() {
        metrics::gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
}

/// The resident memory of this process (`/proc/self/statm`, in pages of 4 KiB).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

pub(crate) async fn monitor(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request
        .caller
        .check(Resource::Agent(&context.node.name), Access::Read)?;
    let level = parse_level(request.query.get("loglevel").unwrap_or("info"))
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    let json = match request.query.get("logjson") {
        None => request.query.has("logjson"),
        Some(text) => {
            go_bool(text).ok_or_else(|| HttpError::bad_request("Invalid value for ?logjson"))?
        }
    };
    let format = if json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let lines = context.agent.logs.listen(level, format);
    Ok(response::stream(
        "text/plain; charset=utf-8",
        lines,
        context.shutdown.clone(),
    ))
}

pub(crate) async fn reload(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request
        .caller
        .check(Resource::Agent(&context.node.name), Access::Write)?;
    ask(context, Control::Reload)
        .await?
        .map_err(HttpError::internal)?;
    Ok(response::empty(StatusCode::OK))
}

pub(crate) async fn leave(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request
        .caller
        .check(Resource::Agent(&context.node.name), Access::Write)?;
    ask(context, Control::Leave)
        .await?
        .map_err(HttpError::internal)?;
    Ok(response::empty(StatusCode::OK))
}

/// Asks something of the agent's main loop.
async fn ask<T>(
    context: &HttpContext,
    control: impl FnOnce(oneshot::Sender<T>) -> Control,
) -> Result<T, HttpError> {
    let stopping = || {
        HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is shutting down",
        )
    };
    let (sender, receiver) = oneshot::channel();
    context
        .agent
        .control
        .send(control(sender))
        .await
        .map_err(|_| stopping())?;
    match tokio::time::timeout(CONTROL_TIMEOUT, receiver).await {
        Ok(answer) => answer.map_err(|_| stopping()),
        Err(_) => Err(HttpError::internal(
            "the agent did not answer in time; it may still act",
        )),
    }
}

pub(crate) async fn maintenance(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request
        .caller
        .check(Resource::Node(&context.node.name), Access::Write)?;
    let token = request.caller.token().cloned();
    if maintenance_enabled(&request)? {
        let reason = request.query.get("reason").unwrap_or("");
        context.local.start_node_maintenance(reason, token).await?;
    } else {
        context.local.end_node_maintenance().await?;
    }
    super::agent_services::settled(context).await
}

/// `?enable=`: required, a boolean.
pub(super) fn maintenance_enabled(request: &Request) -> Result<bool, HttpError> {
    let Some(text) = request.query.get("enable") else {
        return Err(HttpError::bad_request("Missing value for enable"));
    };
    go_bool(text)
        .ok_or_else(|| HttpError::bad_request(format!("Invalid value for enable: {text:?}")))
}
