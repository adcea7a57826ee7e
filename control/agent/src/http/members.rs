//! `/v1/agent/members`: the agents of the datacenter, in the form that Consul shows the members of its gossip pool.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use http::StatusCode;
use serde_json::{Value, json};
use wharf_registry::{
    View,
    consensus::Member,
    model::{Node, NodeService},
    state::{LeftMember, NodeEntry},
};

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
    local::SERVER_SERVICE,
    servers::left::{is_failed, is_member, is_present, is_server, left_behind},
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
    let wide = request.query.has("wan");
    let visible = |name: &str| request.caller.may(Resource::Node(name), Access::Read);
    let own = visible(&context.node.name).then(|| member(context));
    let servers = context.cluster.servers();
    let view = context.cluster.registry().view();
    let others = others(context, &servers, &view);
    // A client agent is in no wide-area pool.
    let others =
        others.filter(|(other, _)| visible(other.name) && (!wide || other.server.is_some()));
    let rows = own
        .into_iter()
        .chain(others.map(|(other, status)| other.row(context, status)));
    let rows: Vec<Value> = match wide {
        true if !context.node.server => Vec::new(),
        true => rows
            .map(|row| of_wide_area(row, &context.node.datacenter))
            .collect(),
        false => rows.collect(),
    };
    let bytes = filter.encode(&rows, context.pretty(&request))?;
    Ok(response::json_bytes(StatusCode::OK, bytes))
}

/// How many members there are.
pub(super) struct Tally {
    /// In whatever state.
    pub(super) members: usize,
    pub(super) failed: usize,
    pub(super) left: usize,
}

pub(super) fn tally(context: &HttpContext) -> Tally {
    let servers = context.cluster.servers();
    let view = context.cluster.registry().view();
    let mut tally = Tally {
        members: 1,
        failed: 0,
        left: 0,
    };
    for (_, status) in others(context, &servers, &view) {
        tally.members += 1;
        match status {
            FAILED => tally.failed += 1,
            LEFT => tally.left += 1,
            _ => {}
        }
    }
    if !context.node.server {
        // It has heard of some of the others.
        tally.members = tally.members.max(context.cluster.node_count());
    }
    tally
}

/// The other servers, the client agents, and who has left, each with its status.
fn others<'a>(
    context: &'a HttpContext,
    servers: &'a [Member],
    view: &'a View,
) -> impl Iterator<Item = (Other<'a>, u8)> {
    let lost = Lost::of(context);
    let known = other_servers(context, servers).map(move |server| {
        let entry = view.node(&server.name).map(|entry| &**entry);
        let status = if lost.has_failed(server, entry) {
            FAILED
        } else {
            ALIVE
        };
        (Other::server(server, entry), status)
    });
    let agents = client_agents(context, view, servers).map(|entry| {
        let status = if is_failed(entry) { FAILED } else { ALIVE };
        (Other::of(&entry.node, None), status)
    });
    // Out of the membership, and not of the catalog.
    let between = left_behind(servers, view).map(|entry| {
        let status = if is_failed(entry) { LEFT } else { ALIVE };
        let service = entry.services.get(SERVER_SERVICE);
        (
            Other::of(&entry.node, service.map(|service| &**service)),
            status,
        )
    });
    let own = &context.node.name;
    let between = between.filter(|(other, _)| !other.name.eq_ignore_ascii_case(own));
    let left = left(context, view, servers)
        .map(|left| (Other::of(&left.node, left.service.as_deref()), LEFT));
    known.chain(agents).chain(between).chain(left)
}

fn other_servers<'a>(
    context: &'a HttpContext,
    servers: &'a [Member],
) -> impl Iterator<Item = &'a Member> {
    let own = &context.node.name;
    let others = servers.iter();
    others.filter(|server| !server.name.eq_ignore_ascii_case(own))
}

/// The nodes that a client agent speaks for: those whose liveness is watched, and that are no servers.
fn client_agents<'a>(
    context: &'a HttpContext,
    view: &'a View,
    servers: &'a [Member],
) -> impl Iterator<Item = &'a NodeEntry> {
    let own = &context.node.name;
    view.nodes().map(|entry| &**entry).filter(move |entry| {
        is_member(entry)
            && !entry.services.contains_key(SERVER_SERVICE)
            && !is_server(servers, &entry.node.name)
            && !entry.node.name.eq_ignore_ascii_case(own)
    })
}

/// Who has left, and is not there again.
fn left<'a>(
    context: &'a HttpContext,
    view: &'a View,
    servers: &'a [Member],
) -> impl Iterator<Item = &'a LeftMember> {
    let own = &context.node.name;
    view.left_members().map(|left| &**left).filter(move |left| {
        let name = &left.node.name;
        !name.eq_ignore_ascii_case(own) && !is_present(servers, view, name)
    })
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
        tags.insert("role", SERVER.into());
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
const LEFT: u8 = 3;
const FAILED: u8 = 4;

/// The role of a server, as the tags of a member say it.
const SERVER: &str = "consul";

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

/// What is told of another member.
struct Other<'a> {
    name: &'a str,
    address: &'a str,
    id: Cow<'a, str>,
    /// The Consul whose API it answers.
    build: Option<&'a str>,
    server: Option<OtherServer<'a>>,
}

struct OtherServer<'a> {
    /// By which other servers know it.
    port: Cow<'a, str>,
    wharf: Option<&'a str>,
}

impl<'a> Other<'a> {
    /// As its node says it, and the instance on it that makes it a server.
    fn of(node: &'a Node, service: Option<&'a NodeService>) -> Other<'a> {
        Other {
            name: &node.name,
            address: &node.address,
            id: Cow::Borrowed(&node.id),
            build: consul_version(node),
            server: service.map(|service| OtherServer {
                port: service.port.to_string().into(),
                wharf: wharf_version(service),
            }),
        }
    }

    /// As the membership and the catalog know it.
    fn server(server: &'a Member, entry: Option<&'a NodeEntry>) -> Other<'a> {
        let (host, port) = server
            .address
            .rsplit_once(':')
            .unwrap_or((&server.address, ""));
        let id = entry
            .map(|entry| &*entry.node.id)
            .filter(|id| !id.is_empty());
        let service = entry.and_then(|entry| entry.services.get(SERVER_SERVICE));
        Other {
            name: &server.name,
            address: host.trim_matches(['[', ']']),
            id: id.map_or_else(|| server.id.to_string().into(), Cow::Borrowed),
            build: entry.and_then(|entry| consul_version(&entry.node)),
            server: Some(OtherServer {
                port: port.into(),
                wharf: service.and_then(|service| wharf_version(service)),
            }),
        }
    }

    fn row(&self, context: &HttpContext, status: u8) -> Value {
        let build = self.build.unwrap_or(CONSUL_VERSION);
        let mut tags: BTreeMap<&str, String> = BTreeMap::from([
            ("acls", "0".into()),
            ("build", format!("{build}:")),
            ("dc", context.node.datacenter.to_string()),
            ("id", self.id.to_string()),
            ("segment", String::new()),
            ("vsn", "2".into()),
            ("vsn_max", "3".into()),
            ("vsn_min", "2".into()),
        ]);
        match &self.server {
            Some(OtherServer { port, wharf }) => {
                tags.insert("role", SERVER.into());
                tags.insert("port", port.to_string());
                tags.insert("raft_vsn", "3".into());
                if let Some(wharf) = wharf {
                    tags.insert("wharf", (*wharf).to_owned());
                }
            }
            None => {
                tags.insert("role", "node".into());
            }
        }
        member_json(self.name, self.address, tags, status)
    }
}

fn consul_version(node: &Node) -> Option<&str> {
    node.meta.get("consul-version").map(|version| &**version)
}

fn wharf_version(service: &NodeService) -> Option<&str> {
    service.meta.get("wharf").map(|version| &**version)
}
