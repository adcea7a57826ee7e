//! `/v1/agent/members`: the agents of the datacenter, in the form that Consul shows the members of its gossip pool.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde_json::{Value, json};
use wharf_registry::{View, consensus::Member, model::CheckStatus, state::NodeEntry};

use super::{
    HttpContext,
    error::HttpError,
    filter::RowFilter,
    request::{Query, Request},
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    client::Client,
    context::{CONSUL_VERSION, VERSION},
    local::{SERF_HEALTH, SERVER_SERVICE},
};

/// The port that Consul gossips on. Nothing listens there: clients show it beside the address, and take
/// the ports they connect to from the tags, or from elsewhere in `/v1/agent/self`.
const SERF_PORT: u16 = 8301;

/// The same for datacenters.
const SERF_WAN_PORT: u16 = 8302;

/// All segments, in a query. There is one.
const ALL_SEGMENTS: &str = "_all";

/// Whether a client agent answers by itself: what has no other answer elsewhere, and what it knows when no server is there.
pub(super) async fn is_answered_here(client: &Client, query: &str) -> bool {
    Query::parse(query).has("wan") || !client.has_server().await
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let filter = RowFilter::parse(&request, &selectors::MEMBER)?;
    let segment = request.query.get("segment");
    if let Some(segment) = segment.filter(|segment| *segment != ALL_SEGMENTS) {
        return Err(HttpError::internal(format!(
            "segment {segment:?} not found"
        )));
    }
    let visible = |name: &str| request.caller.may(Resource::Node(name), Access::Read);
    let wide = request.query.has("wan");
    let own = visible(&context.node.name).then(|| member(context));
    let servers = context.cluster.servers();
    let others = other_servers(context, &servers);
    let others = others.filter(|server| visible(&server.name));
    let view = context.cluster.registry().view();
    let agents = match wide {
        true => Vec::new(),
        false => client_agents(context, &view, &servers),
    };
    let agents = agents.into_iter().filter(|entry| visible(&entry.node.name));
    let lost = Lost::of(context);
    let rows = own
        .into_iter()
        .chain(others.map(|server| other_server(context, server, &lost)))
        .chain(agents.map(|entry| client_agent(context, entry)));
    let rows: Vec<Value> = match wide {
        // A client agent is in no wide-area pool.
        true if !context.node.server => Vec::new(),
        true => rows
            .map(|row| of_wide_area(row, &context.node.datacenter))
            .collect(),
        false => rows.collect(),
    };
    let bytes = filter.encode(&rows, context.pretty(&request))?;
    Ok(response::json_bytes(StatusCode::OK, bytes))
}

/// How many members there are, and how many of them have failed.
pub(super) fn tally(context: &HttpContext) -> (usize, usize) {
    let servers = context.cluster.servers();
    let view = context.cluster.registry().view();
    let agents = client_agents(context, &view, &servers);
    let lost = Lost::of(context);
    let others = other_servers(context, &servers);
    let others: Vec<bool> = others
        .map(|server| lost.has_failed(server, view.node(&server.name).map(|entry| &**entry)))
        .chain(agents.into_iter().map(is_failed))
        .collect();
    let failed = others.iter().filter(|failed| **failed).count();
    // A client agent has heard of some of the others.
    let members = match context.node.server {
        true => others.len() + 1,
        false => context.cluster.node_count().max(others.len() + 1),
    };
    (members, failed)
}

fn other_servers<'a>(
    context: &'a HttpContext,
    servers: &'a [Member],
) -> impl Iterator<Item = &'a Member> {
    let own = &context.node.name;
    let others = servers.iter();
    others.filter(|server| !server.name.eq_ignore_ascii_case(own))
}

/// A member as the pool of all datacenters has it.
fn of_wide_area(mut row: Value, datacenter: &str) -> Value {
    let name = row["Name"].as_str().unwrap_or_default();
    row["Name"] = format!("{name}.{datacenter}").into();
    row["Port"] = SERF_WAN_PORT.into();
    row
}

/// Who is dead, while nobody leads: the catalog has what the last leader wrote.
struct Lost(Option<BTreeSet<String>>);

impl Lost {
    fn of(context: &HttpContext) -> Lost {
        let leaderless = context.cluster.leader().is_none();
        Lost(leaderless.then(|| context.cluster.out_of_reach()))
    }

    fn has_failed(&self, server: &Member, entry: Option<&NodeEntry>) -> bool {
        match &self.0 {
            Some(out_of_reach) => out_of_reach.contains(&server.address),
            None => entry.is_some_and(is_failed),
        }
    }
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
        } else if config.bootstrap_expect > 0 {
            tags.insert("expect", config.bootstrap_expect.to_string());
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
fn other_server(context: &HttpContext, server: &Member, lost: &Lost) -> Value {
    let view = context.cluster.registry().view();
    let entry = view.node(&server.name);
    let (host, port) = server
        .address
        .rsplit_once(':')
        .unwrap_or((&server.address, ""));
    let build = entry.and_then(|entry| entry.node.meta.get("consul-version").cloned());
    let failed = lost.has_failed(server, entry.map(|entry| &**entry));
    let wharf = entry
        .and_then(|entry| entry.services.get(SERVER_SERVICE))
        .and_then(|service| service.meta.get("wharf"));
    let id = entry
        .map(|entry| entry.node.id.to_string())
        .filter(|id| !id.is_empty())
        .unwrap_or_else(|| server.id.to_string());
    let mut tags: BTreeMap<&str, String> = BTreeMap::from([
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
    if let Some(wharf) = wharf {
        tags.insert("wharf", wharf.to_string());
    }
    member_json(
        &server.name,
        host.trim_matches(['[', ']']),
        tags,
        if failed { FAILED } else { ALIVE },
    )
}

/// The nodes that a client agent speaks for: those whose liveness is watched, and that are no servers.
fn client_agents<'a>(
    context: &HttpContext,
    view: &'a View,
    servers: &[Member],
) -> Vec<&'a NodeEntry> {
    let own = &context.node.name;
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
            && !entry.node.name.eq_ignore_ascii_case(own)
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
