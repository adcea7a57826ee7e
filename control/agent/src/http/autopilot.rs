//! `/v1/operator/autopilot`: how the cluster looks after its servers, and what it finds.

use std::{collections::BTreeMap, time::SystemTime};

use http::StatusCode;
use serde::Serialize;
use wharf_config::{GoDuration, Mode};
use wharf_registry::{
    Command,
    command::AutopilotCommand,
    consensus::Member,
    model::{AutopilotConfig, StrMap},
};

use super::{
    HttpContext,
    blocking::check_datacenter,
    error::HttpError,
    operator::operator,
    request::Request,
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    calendar::rfc3339,
    cluster::Consistency,
    context::CONSUL_VERSION,
    local::SERVER_SERVICE,
};

const MAX_BODY: usize = 64 << 10;

pub(crate) async fn configuration(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Read)?;
    if !request.query.has("stale") {
        context.cluster.barrier(Consistency::Default).await?;
    }
    let view = context.cluster.registry().view();
    response::json(&view.autopilot(), context.pretty(&request))
}

pub(crate) async fn set_configuration(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Write)?;
    let body = request.body(MAX_BODY).await?;
    let malformed =
        |error: String| HttpError::bad_request(format!("Error parsing autopilot config: {error}"));
    let config: AutopilotConfig = wharf_config::decode_json_bytes(&body, Mode::Strict)
        .map_err(|error| malformed(error.to_string()))?;
    config
        .check()
        .map_err(|error| malformed(error.to_string()))?;
    let command = match (request.query.has("cas"), request.query.get("cas")) {
        (false, _) => AutopilotCommand::Set { config },
        (true, text) => {
            let text = text.unwrap_or("");
            let index = text.parse().map_err(|_| {
                HttpError::bad_request(format!("Error parsing cas value: {text:?} is no number"))
            })?;
            AutopilotCommand::CompareAndSet { config, index }
        }
    };
    let applied = context
        .cluster
        .write_if(Command::Autopilot(command))
        .await?;
    response::json(&applied, context.pretty(&request))
}

/// What is said of one server, in both forms.
struct Finding {
    member: Member,
    version: String,
    meta: StrMap,
    last_contact: String,
    last_term: u64,
    last_index: u64,
    healthy: bool,
    stable_since: String,
}

impl Finding {
    fn status(&self) -> &'static str {
        match (self.member.leader, self.member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "non-voter",
        }
    }

    fn node_status(&self) -> &'static str {
        match self.member.is_alive() {
            true => "alive",
            false => "failed",
        }
    }
}

struct Findings {
    servers: Vec<Finding>,
    healthy: bool,
    /// How many healthy voters more may be lost.
    tolerance: usize,
}

/// What the leader finds.
async fn findings(context: &HttpContext) -> Result<Findings, HttpError> {
    let (members, _) = operator(context)?.configuration().await?;
    let term = context.cluster.term();
    let view = context.cluster.registry().view();
    let now = SystemTime::now();
    let servers: Vec<Finding> = members
        .into_iter()
        .map(|member| {
            let service = view.node(&member.name);
            let service = service.and_then(|node| node.services.get(SERVER_SERVICE));
            let meta = service.map(|service| service.meta.clone());
            let meta = meta.unwrap_or_default();
            let version = meta.get("version").map_or(CONSUL_VERSION, |text| &**text);
            let stable = member.stable_for.unwrap_or_default();
            let contact = match member.heard {
                Some(ago) => GoDuration::from(ago).to_string(),
                None => "never".to_owned(),
            };
            Finding {
                version: version.to_owned(),
                last_contact: contact,
                last_term: if member.is_alive() { term } else { 0 },
                last_index: member.replicated.unwrap_or(0),
                healthy: member.healthy.unwrap_or(false),
                stable_since: rfc3339(now.checked_sub(stable).unwrap_or(now)),
                meta,
                member,
            }
        })
        .collect();
    let voters = servers.iter().filter(|server| server.member.voter).count();
    let sound = |server: &&Finding| server.member.voter && server.healthy;
    let healthy_voters = servers.iter().filter(sound).count();
    Ok(Findings {
        healthy: servers.iter().all(|server| server.healthy),
        tolerance: healthy_voters.saturating_sub(voters / 2 + 1),
        servers,
    })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    healthy: bool,
    failure_tolerance: usize,
    servers: Vec<ServerHealth>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServerHealth {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    address: String,
    serf_status: &'static str,
    version: String,
    leader: bool,
    last_contact: String,
    last_term: u64,
    last_index: u64,
    healthy: bool,
    voter: bool,
    stable_since: String,
}

pub(crate) async fn health(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Read)?;
    let found = findings(context).await?;
    let status = match found.healthy {
        true => StatusCode::OK,
        // So that a load balancer or a script needs no JSON.
        false => StatusCode::TOO_MANY_REQUESTS,
    };
    let servers = found.servers.into_iter().map(|server| ServerHealth {
        serf_status: server.node_status(),
        id: server.member.id.to_string(),
        name: server.member.name,
        address: server.member.address,
        version: server.version,
        leader: server.member.leader,
        last_contact: server.last_contact,
        last_term: server.last_term,
        last_index: server.last_index,
        healthy: server.healthy,
        voter: server.member.voter,
        stable_since: server.stable_since,
    });
    let health = Health {
        healthy: found.healthy,
        failure_tolerance: found.tolerance,
        servers: servers.collect(),
    };
    let mut response = response::json(&health, context.pretty(&request))?;
    *response.status_mut() = status;
    Ok(response)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    healthy: bool,
    failure_tolerance: usize,
    /// The same: there are no zones that could make up for a server.
    optimistic_failure_tolerance: usize,
    servers: BTreeMap<String, ServerState>,
    leader: String,
    voters: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    read_replicas: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServerState {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    address: String,
    node_status: &'static str,
    version: String,
    last_contact: String,
    last_term: u64,
    last_index: u64,
    healthy: bool,
    stable_since: String,
    read_replica: bool,
    status: &'static str,
    meta: StrMap,
    node_type: &'static str,
}

pub(crate) async fn state(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Operator, Access::Read)?;
    let found = findings(context).await?;
    let ids = |wanted: fn(&Member) -> bool| -> Vec<String> {
        let servers = found.servers.iter().map(|server| &server.member);
        let servers = servers.filter(|member| wanted(member));
        servers.map(|member| member.id.to_string()).collect()
    };
    let (leader, voters) = (ids(|member| member.leader), ids(|member| member.voter));
    let servers = found.servers.into_iter().map(|server| {
        let state = ServerState {
            node_status: server.node_status(),
            status: server.status(),
            id: server.member.id.to_string(),
            name: server.member.name,
            address: server.member.address,
            version: server.version,
            last_contact: server.last_contact,
            last_term: server.last_term,
            last_index: server.last_index,
            healthy: server.healthy,
            stable_since: server.stable_since,
            read_replica: false,
            meta: server.meta,
            node_type: "voter",
        };
        (state.id.clone(), state)
    });
    let state = State {
        healthy: found.healthy,
        failure_tolerance: found.tolerance,
        optimistic_failure_tolerance: found.tolerance,
        servers: servers.collect(),
        leader: leader.into_iter().next().unwrap_or_default(),
        voters,
        read_replicas: Vec::new(),
    };
    response::json(&state, context.pretty(&request))
}
