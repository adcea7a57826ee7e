//! `/v1/catalog`: nodes and the services on them, wherever they were registered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wharf_registry::{
    Command, View,
    command::{Deregister, DeregisterTarget, Register},
    model::{HealthCheck, Node, NodeService, Str},
    state::NodeEntry,
    watch::WatchKey,
};

use super::{
    HttpContext,
    blocking::{self, Answer, ReadOptions, check_datacenter, known_datacenter},
    error::HttpError,
    filter::RowFilter,
    named::NamedRead,
    request::Request,
    response::{self, Response},
    selectors,
    shapes::{CatalogService, by_node},
};
use crate::authz::{Access, Resource};

/// The body limit of a registration.
const MAX_BODY: usize = 512 * 1024;

pub(crate) async fn datacenters(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let pretty = context.pretty(&request);
    response::json(&[&*context.node.datacenter], pretty)
}

pub(crate) async fn nodes(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::NODE)?;
    let answer = |view: &View| {
        let mut rows = Vec::new();
        let mut filtered = false;
        for entry in view.nodes() {
            if !request
                .caller
                .may(Resource::Node(&entry.node.name), Access::Read)
            {
                filtered = true;
            } else if filter.node_meta(&entry.node.meta) {
                rows.push(&*entry.node);
            }
        }
        let json = filter.encode(&rows, options.pretty)?;
        Ok(Answer::rows(json, filtered))
    };
    blocking::read(
        context,
        &options,
        &[WatchKey::Nodes],
        |view| view.indexes().nodes,
        answer,
    )
    .await
}

pub(crate) async fn services(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::CATALOG_SERVICE)?;
    let answer = |view: &View| {
        let mut rows: BTreeMap<&str, Vec<&Str>> = BTreeMap::new();
        let mut filtered = false;
        for entry in view.services() {
            if !request
                .caller
                .may(Resource::Service(&entry.name), Access::Read)
            {
                filtered = true;
                continue;
            }
            if !filter.has_node_meta() && !filter.has_expression() {
                rows.insert(&entry.name, entry.tags().iter().collect());
                continue;
            }
            let mut tags = std::collections::BTreeSet::new();
            let mut found = false;
            for instance in entry.instances.values() {
                if filter.node_meta(&instance.node.meta)
                    && filter.keeps(&CatalogService::new(instance))?
                {
                    found = true;
                    tags.extend(instance.service.tags.iter());
                }
            }
            if found {
                rows.insert(&entry.name, tags.into_iter().collect());
            }
        }
        let json = response::encode(&rows, options.pretty)?;
        Ok(Answer::rows(json, filtered))
    };
    if filter.has_expression() {
        // Which services count depends on anything that instances say.
        let keys = [WatchKey::Services, WatchKey::Nodes];
        let index = |view: &View| view.indexes().services.max(view.indexes().nodes);
        return blocking::read(context, &options, &keys, index, answer).await;
    }
    if filter.has_node_meta() {
        // Which services count depends on the nodes too.
        let keys = [WatchKey::ServiceNames, WatchKey::Nodes];
        let index = |view: &View| view.indexes().service_names.max(view.indexes().nodes);
        return blocking::read(context, &options, &keys, index, answer).await;
    }
    let index = |view: &View| view.indexes().service_names;
    blocking::read(context, &options, &[WatchKey::ServiceNames], index, answer).await
}

pub(crate) async fn service(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let read = NamedRead::of_service(context, &request, &selectors::CATALOG_SERVICE)?;
    let NamedRead { caller, filter, .. } = &read;
    let answer = |view: &View| {
        let mut rows = Vec::new();
        let mut filtered = false;
        if let Some(entry) = view.service(read.name) {
            let visible = caller.may(Resource::Service(&entry.name), Access::Read);
            filtered = !visible;
            for instance in entry.instances.values().filter(|_| visible) {
                if filter.instance(instance) {
                    rows.push(CatalogService::new(instance));
                }
            }
        }
        filter.sort_near(&mut rows, by_node);
        let json = filter.encode(&rows, read.options.pretty)?;
        Ok(Answer::rows(json, filtered))
    };
    read.respond(context, answer).await
}

/// A node with its instances by id.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServices<'a> {
    node: &'a Node,
    services: BTreeMap<&'a str, &'a NodeService>,
}

/// The same with the instances in a list; both `null` for a node that does not exist.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServiceList<'a> {
    node: Option<&'a Node>,
    services: Option<Vec<&'a NodeService>>,
}

pub(crate) async fn node(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    node_read(context, request, |node, services, pretty| {
        let body = node.map(|node| NodeServices {
            node,
            services: services
                .into_iter()
                .map(|service| (&*service.id, service))
                .collect(),
        });
        response::encode(&body, pretty)
    })
    .await
}

pub(crate) async fn node_services(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    node_read(context, request, |node, services, pretty| {
        let body = NodeServiceList {
            node,
            services: node.map(|_| services),
        };
        response::encode(&body, pretty)
    })
    .await
}

/// What both node endpoints have in common: they differ in the shape of the body.
async fn node_read(
    context: &HttpContext,
    request: Request,
    encode: impl Fn(Option<&Node>, Vec<&NodeService>, bool) -> Result<bytes::Bytes, HttpError>,
) -> Result<Response, HttpError> {
    let read = NamedRead::of_node(context, &request, &selectors::SERVICE)?;
    let NamedRead { caller, filter, .. } = &read;
    let answer = |view: &View| {
        let entry = view.node(read.name).map(|entry| &**entry);
        let visible: Option<&NodeEntry> =
            entry.filter(|entry| caller.may(Resource::Node(&entry.node.name), Access::Read));
        let mut services: Vec<&NodeService> = Vec::new();
        for service in visible
            .into_iter()
            .flat_map(|entry| entry.services.values())
        {
            if caller.may(Resource::Service(&service.name), Access::Read)
                && filter.keeps(&**service)?
            {
                services.push(service);
            }
        }
        let node = visible.map(|entry| &*entry.node);
        let json = encode(node, services, read.options.pretty)?;
        let filtered = entry.is_some() && visible.is_none();
        Ok(Answer::rows(json, filtered))
    };
    read.respond(context, answer).await
}

/// The body of `/v1/catalog/register`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RegisterBody {
    #[serde(rename = "ID")]
    id: Str,
    node: Str,
    address: Str,
    tagged_addresses: BTreeMap<Str, Str>,
    node_meta: BTreeMap<Str, Str>,
    datacenter: Str,
    service: Option<NodeService>,
    check: Option<HealthCheck>,
    checks: Vec<HealthCheck>,
    skip_node_update: bool,
    locality: Option<serde_json::Value>,
}

pub(crate) async fn register(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let body: RegisterBody = request.json(MAX_BODY).await?;
    if !body.datacenter.is_empty() {
        known_datacenter(context, &body.datacenter)?;
    }
    request
        .caller
        .check(Resource::Node(&body.node), Access::Write)?;
    if let Some(service) = &body.service {
        request
            .caller
            .check(Resource::Service(&service.name), Access::Write)?;
    }
    let register = Register {
        node: Node {
            id: body.id,
            name: body.node,
            address: body.address,
            datacenter: context.node.datacenter.clone(),
            tagged_addresses: body.tagged_addresses,
            meta: body.node_meta,
            locality: body.locality,
            ..Node::default()
        },
        skip_node_update: body.skip_node_update,
        service: body.service,
        checks: body.check.into_iter().chain(body.checks).collect(),
    };
    context
        .cluster
        .write(Command::Register(Box::new(register)))
        .await?;
    response::json(&true, context.pretty(&request))
}

/// The body of `/v1/catalog/deregister`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DeregisterBody {
    node: Str,
    #[serde(rename = "ServiceID")]
    service_id: Str,
    #[serde(rename = "CheckID")]
    check_id: Str,
    datacenter: Str,
}

pub(crate) async fn deregister(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let body: DeregisterBody = request.json(MAX_BODY).await?;
    if !body.datacenter.is_empty() {
        known_datacenter(context, &body.datacenter)?;
    }
    if body.node.is_empty() {
        return Err(HttpError::internal("Must provide node"));
    }
    request
        .caller
        .check(Resource::Node(&body.node), Access::Write)?;
    let target = if !body.service_id.is_empty() {
        DeregisterTarget::Service(body.service_id)
    } else if !body.check_id.is_empty() {
        DeregisterTarget::Check(body.check_id)
    } else {
        DeregisterTarget::Node
    };
    context
        .cluster
        .write(Command::Deregister(Deregister {
            node: body.node,
            target,
        }))
        .await?;
    response::json(&true, context.pretty(&request))
}
