//! `/v1/platform/`: the nodes that carry allocations.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{Driver, NodeStatus, PlatformNode, Resources},
    },
    watch::WatchKey,
};

use super::{
    HttpContext,
    allocations::AllocStub,
    blocking::{self, Answer, ReadOptions, check_datacenter},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::authz::{Access, Resource};

/// A node in a list, with what is taken of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeStub<'a> {
    #[serde(rename = "ID")]
    id: &'a Str,
    name: &'a Str,
    address: &'a Str,
    status: NodeStatus,
    status_description: &'a Str,
    eligible: bool,
    drivers: BTreeMap<Driver, bool>,
    #[serde(flatten)]
    room: Room,
    create_index: u64,
    modify_index: u64,
}

/// What a node has, and what its live allocations reserve of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Room {
    resources: Resources,
    reserved: Resources,
    /// Live ones.
    allocations: usize,
}

impl Room {
    fn of(view: &View, node: &PlatformNode) -> Room {
        let live = view.node_allocs(&node.id).filter(|alloc| alloc.is_live());
        let (allocations, reserved) = live.fold((0, Resources::NONE), |(count, sum), alloc| {
            (count + 1, sum.plus(alloc.resources))
        });
        Room {
            resources: node.resources,
            reserved,
            allocations,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeDetail<'a> {
    #[serde(flatten)]
    node: &'a PlatformNode,
    reserved: Resources,
    allocations: usize,
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::PLATFORM_NODE)?;
    let answer = |view: &View| {
        let mut rows = Vec::new();
        let mut filtered = false;
        for node in view.platform_nodes() {
            if !request.caller.may(Resource::Node(&node.name), Access::Read) {
                filtered = true;
                continue;
            }
            rows.push(NodeStub {
                id: &node.id,
                name: &node.name,
                address: &node.address,
                status: node.status,
                status_description: &node.status_description,
                eligible: node.eligible,
                drivers: node
                    .drivers
                    .iter()
                    .map(|(driver, health)| (*driver, health.healthy))
                    .collect(),
                room: Room::of(view, node),
                create_index: node.create_index,
                modify_index: node.modify_index,
            });
        }
        rows.sort_by(|a, b| a.name.cmp(b.name));
        Ok(Answer::rows(
            filter.encode(&rows, options.pretty)?,
            filtered,
        ))
    };
    // What is reserved is part of the answer.
    let keys = [WatchKey::PlatformNodes, WatchKey::Allocs];
    let index = |view: &View| {
        let indexes = view.platform_indexes();
        indexes.nodes.max(indexes.allocs)
    };
    blocking::read(context, &options, &keys, index, answer).await
}

/// The node that a name, an id, or the beginning of an id means.
fn resolve(view: &View, text: &str) -> Result<(Str, Str), HttpError> {
    if text.is_empty() {
        return Err(HttpError::bad_request(
            "Must provide the name or id of a node",
        ));
    }
    let both = |node: &PlatformNode| (node.id.clone(), node.name.clone());
    if let Some(node) = view.platform_node(text) {
        return Ok(both(node));
    }
    if let Some(node) = view.platform_nodes().find(|node| *node.name == *text) {
        return Ok(both(node));
    }
    let mut found = view
        .platform_nodes()
        .filter(|node| node.id.starts_with(text));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(both(only)),
        (None, _) => Err(HttpError::not_found(format!("there is no node {text:?}"))),
        (Some(_), Some(_)) => Err(HttpError::new(
            StatusCode::CONFLICT,
            format!("{text:?} begins the ids of several nodes"),
        )),
    }
}

pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    context.cluster.barrier(options.consistency).await?;
    let (text, below) = request.rest.split_once('/').unwrap_or((&request.rest, ""));
    let (id, name) = resolve(&context.cluster.registry().view(), text)?;
    request.caller.check(Resource::Node(&name), Access::Read)?;
    let of_allocs = WatchKey::NodeAllocs(id.clone());
    match below {
        "" => {
            let answer = |view: &View| {
                let node = view
                    .platform_node(&id)
                    .ok_or_else(|| HttpError::not_found(format!("there is no node {name:?}")))?;
                let room = Room::of(view, node);
                let detail = NodeDetail {
                    node,
                    reserved: room.reserved,
                    allocations: room.allocations,
                };
                Ok(Answer::json(response::encode(&detail, options.pretty)?))
            };
            let index = |view: &View| {
                view.platform_node_index(&id)
                    .max(view.node_allocs_index(&id))
            };
            let keys = [WatchKey::PlatformNode(id.clone()), of_allocs];
            blocking::read(context, &options, &keys, index, answer).await
        }
        "allocations" => {
            let answer = |view: &View| {
                let rows: Vec<AllocStub<'_>> = view
                    .node_allocs(&id)
                    .filter(|alloc| {
                        request
                            .caller
                            .may(Resource::Job(&alloc.job_name), Access::Read)
                    })
                    .map(AllocStub::from)
                    .collect();
                Ok(Answer::json(response::encode(&rows, options.pretty)?))
            };
            let index = |view: &View| view.node_allocs_index(&id);
            blocking::read(context, &options, &[of_allocs], index, answer).await
        }
        _ => Err(HttpError::not_found(format!(
            "Invalid URL path: there is no /v1/platform/node/{}",
            request.rest
        ))),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Eligibility {
    eligible: Option<bool>,
}

/// `/v1/platform/node/ID/eligibility`
pub(crate) async fn change(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let pretty = context.pretty(&request);
    let Some(text) = request.rest.strip_suffix("/eligibility") else {
        let text = "Invalid URL path: of a node its eligibility can be set, with PUT \
                    /v1/platform/node/ID/eligibility";
        return Err(HttpError::not_found(text));
    };
    let (id, name) = resolve(&context.cluster.registry().view(), text)?;
    request.caller.check(Resource::Node(&name), Access::Write)?;
    let wanted: Eligibility = request.json(4096).await?;
    let Some(eligible) = wanted.eligible else {
        return Err(HttpError::bad_request(
            "Must provide Eligible: true or false",
        ));
    };
    let command = PlatformCommand::SetNodeEligibility {
        id: id.clone(),
        eligible,
    };
    context.cluster.write(Command::Platform(command)).await?;
    let view = context.cluster.registry().view();
    let node = view.platform_node(&id).map(|node| &**node);
    response::json(&node, pretty)
}
