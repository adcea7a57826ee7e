//! `/v1/agent/members`: the agents of the datacenter, in the form that Consul shows the members of its gossip pool.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};
use wharf_registry::{View, consensus::Member, model::CheckStatus, state::NodeEntry};

use super::{
    HttpContext,
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    context::{CONSUL_VERSION, VERSION},
    local::{SERF_HEALTH, SERVER_SERVICE},
};

/// The port that Consul gossips on. Nothing listens there: clients show it beside the address, and take
/// the ports they connect to from the tags, or from elsewhere in `/v1/agent/self`.
const SERF_PORT: u16 = 8301;

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let filter = RowFilter::parse(&request, &selectors::MEMBER)?;
    let visible = |name: &str| request.caller.may(Resource::Node(name), Access::Read);
    // A client agent is in no wide-area pool.
    let listed = context.node.server || !request.query.has("wan");
    let own = (listed && visible(&context.node.name)).then(|| member(context));
    let servers = context.cluster.servers();
    let others = servers
        .iter()
        .filter(|server| !server.name.eq_ignore_ascii_case(&context.node.name))
        .filter(|server| visible(&server.name));
    let view = context.cluster.registry().view();
    let agents = match request.query.has("wan") {
        true => Vec::new(),
        false => client_agents(&view, &servers),
    };
    let agents = agents.into_iter().filter(|entry| visible(&entry.node.name));
    let rows: Vec<Value> = own
        .into_iter()
        .chain(others.map(|server| other_server(context, server)))
        .chain(agents.map(|entry| client_agent(context, entry)))
        .collect();
    let bytes = filter.encode(&rows, context.pretty(&request))?;
    Ok(response::json_bytes(StatusCode::OK, bytes))
}

/// This node in the form that Consul shows the members of its gossip pool.
pub(super) fn member(context: &HttpContext) -> Value {
    let node = &context.node;
    let config = context.agent.config.load();
    let mut tags: BTreeMap<&str, String> = BTreeMap::new();
    tags.insert("acls", "0".into());
    tags.insert("build", format!("{CONSUL_VERSION}:"));
    tags.insert("dc", node.datacenter.to_string());
    tags.insert("id", node.id.to_string());
    tags.insert("segment", String::new());
    tags.insert("vsn", "2".into());
    tags.insert("vsn_max", "3".into());
    tags.insert("vsn_min", "2".into());
    tags.insert("wharf", VERSION.into());
    if node.server {
        tags.insert("role", "consul".into());
        tags.insert("raft_vsn", "3".into());
        if let Some(server) = config.listen.server {
            tags.insert("port", server.port().to_string());
        }
        if let Some(port) = config.listen.grpc.iter().find_map(|listen| listen.port()) {
            tags.insert("grpc_port", port.to_string());
        }
        let tls = &config.listen.grpc_tls;
        if let Some(port) = tls.iter().find_map(|listen| listen.port()) {
            tags.insert("grpc_tls_port", port.to_string());
        }
        if config.bootstrap || config.dev_mode {
            tags.insert("bootstrap", "1".into());
        }
    } else {
        tags.insert("role", "node".into());
    }
    member_json(&node.name, &node.address, tags, ALIVE)
}

/// Serf's states of a member.
const ALIVE: u8 = 1;
const FAILED: u8 = 4;

fn member_json(name: &str, address: &str, tags: BTreeMap<&str, String>, status: u8) -> Value {
    json!({
        "Name": name,
        "Addr": address,
        "Port": SERF_PORT,
        "Tags": tags,
        "Status": status,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}

/// Another server, as the membership and the catalog know it.
fn other_server(context: &HttpContext, server: &Member) -> Value {
    let view = context.cluster.registry().view();
    let entry = view.node(&server.name);
    let (host, port) = server
        .address
        .rsplit_once(':')
        .unwrap_or((&server.address, ""));
    let build = entry.and_then(|entry| entry.node.meta.get("consul-version").cloned());
    let failed = entry.is_some_and(|entry| is_failed(entry));
    let id = entry
        .map(|entry| entry.node.id.to_string())
        .filter(|id| !id.is_empty())
        .unwrap_or_else(|| server.id.to_string());
    let tags: BTreeMap<&str, String> = BTreeMap::from([
        ("acls", "0".into()),
        (
            "build",
            format!("{}:", build.as_deref().unwrap_or(CONSUL_VERSION)),
        ),
        ("dc", context.node.datacenter.to_string()),
        ("id", id),
        ("port", port.to_owned()),
        ("raft_vsn", "3".into()),
        ("role", "consul".into()),
        ("segment", String::new()),
        ("vsn", "2".into()),
        ("vsn_max", "3".into()),
        ("vsn_min", "2".into()),
    ]);
    member_json(
        &server.name,
        host.trim_matches(['[', ']']),
        tags,
        if failed { FAILED } else { ALIVE },
    )
}

/// The nodes that a client agent speaks for: those whose liveness is watched, and that are no servers.
fn client_agents<'a>(view: &'a View, servers: &[Member]) -> Vec<&'a NodeEntry> {
    let is_server = |name: &str| {
        servers
            .iter()
            .any(|server| server.name.eq_ignore_ascii_case(name))
    };
    let agents = view.nodes().map(|entry| &**entry).filter(|entry| {
        !entry.node.id.is_empty()
            && entry.checks.contains_key(SERF_HEALTH)
            && !entry.services.contains_key(SERVER_SERVICE)
            && !is_server(&entry.node.name)
    });
    agents.collect()
}

fn client_agent(context: &HttpContext, entry: &NodeEntry) -> Value {
    let build = entry.node.meta.get("consul-version");
    let tags: BTreeMap<&str, String> = BTreeMap::from([
        ("acls", "0".into()),
        (
            "build",
            format!("{}:", build.map_or(CONSUL_VERSION, |build| build)),
        ),
        ("dc", context.node.datacenter.to_string()),
        ("id", entry.node.id.to_string()),
        ("role", "node".into()),
        ("segment", String::new()),
        ("vsn", "2".into()),
        ("vsn_max", "3".into()),
        ("vsn_min", "2".into()),
    ]);
    let failed = is_failed(entry);
    let status = if failed { FAILED } else { ALIVE };
    member_json(&entry.node.name, &entry.node.address, tags, status)
}

pub(super) fn is_failed(entry: &NodeEntry) -> bool {
    let check = entry.checks.get(SERF_HEALTH);
    check.is_some_and(|check| check.status == CheckStatus::Critical)
}
