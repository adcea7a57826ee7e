//! `/v1/operator/raft`: the servers of the cluster, for who operates it.

use http::StatusCode;
use serde::Serialize;
use uuid::Uuid;
use wharf_registry::{consensus::Member, log::ServerId};

use super::{
    HttpContext,
    blocking::check_datacenter,
    error::HttpError,
    request::Request,
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    cluster::Operator,
    servers::left,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    servers: Vec<Server>,
    index: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    #[serde(rename = "ID")]
    id: String,
    node: String,
    address: String,
    leader: bool,
    protocol_version: &'static str,
    voter: bool,
    /// How far the server has the log; 0 where that is not known.
    last_index: u64,
}

impl From<Member> for Server {
    fn from(member: Member) -> Server {
        Server {
            id: member.id.to_string(),
            node: member.name,
            address: member.address,
            leader: member.leader,
            // Of Consul's releases: servers have ids.
            protocol_version: "3",
            voter: member.voter,
            last_index: member.replicated.unwrap_or(0),
        }
    }
}

pub(super) fn operator(context: &HttpContext) -> Result<&dyn Operator, HttpError> {
    let operator = context.cluster.operator();
    operator.ok_or_else(|| HttpError::internal("this agent has no servers to operate on"))
}

pub(crate) async fn configuration(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Read)?;
    let (members, index) = if request.query.has("stale") {
        let index = context.cluster.registry().view().log_index();
        (context.cluster.servers(), index)
    } else {
        operator(context)?.configuration().await?
    };
    let configuration = Configuration {
        servers: members.into_iter().map(Server::from).collect(),
        index,
    };
    response::json(&configuration, context.pretty(&request))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct StateHash {
    node: String,
    /// The place in the log up to which the state is applied.
    index: u64,
    hash: String,
}

/// `/v1/operator/raft/hash`: the hash of this server's own copy of the state. Not one of Consul's. Two servers
/// that name the same index have to name the same hash.
pub(crate) async fn hash(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Read)?;
    let view = context.cluster.registry().view();
    let index = view.log_index();
    let hash = tokio::task::spawn_blocking(move || view.hash()).await;
    let failed = |error: &dyn std::fmt::Display| HttpError::internal(error.to_string());
    let hash = hash.map_err(|error| failed(&error))?;
    let hash = hash.map_err(|error| failed(&error))?;
    let state = StateHash {
        node: context.node.name.to_string(),
        index,
        hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    response::json(&state, context.pretty(&request))
}

fn server_id(text: &str) -> Result<ServerId, HttpError> {
    let id = Uuid::try_parse(text);
    id.map(ServerId)
        .map_err(|_| HttpError::bad_request(format!("{text:?} is no id of a server: a UUID")))
}

pub(crate) async fn remove_peer(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Write)?;
    let operator = operator(context)?;
    let of = |name| request.query.get(name).filter(|text| !text.is_empty());
    let id = match (of("id"), of("address")) {
        (Some(_), Some(_)) => {
            return Err(HttpError::bad_request(
                "Must specify only one of ?address or ?id",
            ));
        }
        (None, None) => {
            return Err(HttpError::bad_request(
                "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove",
            ));
        }
        (Some(id), None) => server_id(id)?,
        (None, Some(address)) => {
            let (members, _) = operator.configuration().await?;
            let member = members.into_iter().find(|member| member.address == address);
            let member = member.ok_or_else(|| {
                HttpError::bad_request(format!(
                    "address {address:?} was not found in the Raft configuration"
                ))
            })?;
            member.id
        }
    };
    operator.remove(id).await?;
    Ok(response::empty(StatusCode::OK))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Transferred {
    success: bool,
    /// Not in Consul's answer.
    leader: String,
}

pub(crate) async fn transfer_leader(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Write)?;
    let to = request.query.get("id").filter(|id| !id.is_empty());
    let to = to.map(server_id).transpose()?;
    let leader = operator(context)?.transfer_leadership(to).await?;
    let transferred = Transferred {
        success: true,
        leader,
    };
    response::json(&transferred, context.pretty(&request))
}

/// `/v1/agent/join/<address>`: looks for servers there, also as a client agent.
pub(crate) async fn join(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let agent = Resource::Agent(&context.node.name);
    request.caller.check(agent, Access::Write)?;
    if request.query.has("wan") {
        return Err(HttpError::not_built("joining datacenters"));
    }
    let joined = match context.cluster.client() {
        Some(client) => client.join(&request.rest).await,
        None => operator(context)?.join(&request.rest).await,
    };
    joined.map_err(|error| HttpError::internal(format!("1 error occurred:\n\t* {error}\n\n")))?;
    Ok(response::empty(StatusCode::OK))
}

/// `/v1/agent/force-leave/<node>`: takes a server that is dead out of the cluster, and the node of an agent that is dead
/// out of the catalog; with `prune` out of the list of members too, also who has left before. One that is alive stays.
pub(crate) async fn force_leave(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let name = request.rest.as_str();
    let no_such = || HttpError::not_found(format!("agent: No node found with name '{name}'"));
    let operator = context.cluster.operator().ok_or_else(no_such)?;
    let (members, _) = operator.configuration().await?;
    let mut members = members.into_iter();
    let member = members.find(|member| member.name.eq_ignore_ascii_case(name));
    let view = context.cluster.registry().view();
    let entry = view.node(name).map(|entry| &**entry);
    let entry = entry.filter(|entry| left::is_member(entry));
    let left = view.left_member(name);
    let is_alive = match (&member, entry) {
        (Some(member), _) => member.is_alive(),
        (None, Some(entry)) => !left::is_failed(entry),
        (None, None) if left.is_some() => false,
        (None, None) => return Err(no_such()),
    };
    if is_alive {
        return Ok(response::empty(StatusCode::OK));
    }
    if let Some(member) = &member {
        operator.remove(member.id).await?;
    }
    let commands = match entry {
        _ if request.query.has("prune") => left::prune(name, entry),
        Some(entry) if left::is_failed(entry) => vec![left::take_out(entry)],
        // The node of a server that is dead says so soon, and goes then.
        _ => Vec::new(),
    };
    for command in commands {
        context.cluster.write(command).await?;
    }
    Ok(response::empty(StatusCode::OK))
}
