//! `catalog`: what the cluster knows of datacenters, nodes and services.

use std::collections::{BTreeMap, BTreeSet};

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::{GroupHelp, client_command};
use crate::{
    failure::Failure,
    flags::{Given, repeated, switch, value},
    http::{HttpError, Request, segment},
    output::{Format, columns, pairs},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("catalog")
        .about("List the nodes and services of the cluster")
        .group_help(
            "  $ wharf catalog services -tags         all services, with their tags
  $ wharf catalog nodes -service=web     the nodes that run one
  $ wharf catalog datacenters",
        )
        .subcommands([datacenters_command(), nodes_command(), services_command()])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "datacenters" => datacenters(matches, shell).await,
        "nodes" => nodes(matches, shell).await,
        _ => services(matches, shell).await,
    }
}

fn datacenters_command() -> Command {
    client_command("datacenters", "List the datacenters, nearest first")
        .arg(Format::flag())
        .after_help("  $ wharf catalog datacenters")
}

async fn datacenters(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let names: Vec<String> = shell
        .client(matches)?
        .fetch_json(Request::get("/v1/catalog/datacenters"))
        .await
        .map_err(|error| error.while_("Error listing datacenters"))?;
    if Format::of(matches) == Format::Json {
        return shell.object(&names);
    }
    names.iter().try_for_each(|name| shell.line(name))
}

fn nodes_command() -> Command {
    client_command("nodes", "List the nodes")
        .args([
            switch(
                "detailed",
                "Also print whole ids, tagged addresses and metadata",
            ),
            value(
                "near",
                "node",
                "Nearest to this node first; _agent is the agent's own node",
            ),
            repeated(
                "node-meta",
                "key=value",
                "Only nodes with this metadata; may be repeated",
            ),
            value("service", "name", "Only nodes that run this service"),
            value(
                "filter",
                "expression",
                "Only nodes for which the expression holds",
            ),
            Format::flag(),
        ])
        .after_help(
            "  $ wharf catalog nodes -detailed
  $ wharf catalog nodes -service=web -near=_agent
  $ wharf catalog nodes -node-meta=rack=r1 -format=json",
        )
}

/// A node, also as the node part of the instances of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(rename = "ID", default)]
    id: String,
    node: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    datacenter: String,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<String, String>>,
    #[serde(alias = "NodeMeta", default)]
    meta: Option<BTreeMap<String, String>>,
}

impl Node {
    fn row(&self) -> [String; 4] {
        let short = self.id.split('-').next().unwrap_or_default();
        [&self.node, short, &self.address, &self.datacenter].map(str::to_owned)
    }

    fn detailed_row(&self) -> [String; 6] {
        [
            self.node.clone(),
            self.id.clone(),
            self.address.clone(),
            self.datacenter.clone(),
            joined(self.tagged_addresses.as_ref()),
            joined(self.meta.as_ref()),
        ]
    }
}

fn joined(map: Option<&BTreeMap<String, String>>) -> String {
    let members = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    members.collect::<Vec<_>>().join(", ")
}

async fn nodes(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let node_meta = key_values("node-meta", matches)?;
    let path = match matches.text("service") {
        Some(service) => format!("/v1/catalog/service/{}", segment(service)),
        None => "/v1/catalog/nodes".to_owned(),
    };
    let request = Request::get(path)
        .maybe("near", matches.text("near"))
        .each("node-meta", &node_meta)
        .maybe("filter", matches.text("filter"));
    let mut nodes: Vec<Node> = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error listing nodes"))?;
    // Several instances of a service on one node are one node here.
    let mut seen = BTreeSet::new();
    nodes.retain(|node| seen.insert(node.node.clone()));

    if Format::of(matches) == Format::Json {
        return shell.object(&nodes);
    }
    if nodes.is_empty() {
        shell.note("No nodes match the given query - try expanding your search.");
        return Ok(());
    }
    if matches.on("detailed") {
        let header = ["Node", "ID", "Address", "DC", "TaggedAddresses", "Meta"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header)
            .chain(nodes.iter().map(Node::detailed_row))
            .collect();
        return shell.text(&columns(&rows));
    }
    let header = ["Node", "ID", "Address", "DC"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header)
        .chain(nodes.iter().map(Node::row))
        .collect();
    shell.text(&columns(&rows))
}

/// The values of a `key=value` flag, each checked to be one.
pub(super) fn key_values<'m>(flag: &str, matches: &'m ArgMatches) -> Result<Vec<&'m str>, Failure> {
    let values = matches.texts(flag);
    match values.iter().find(|value| !value.contains('=')) {
        None => Ok(values),
        Some(value) => Err(
            Failure::new(format!("invalid value {value:?} for flag -{flag}"))
                .because("it is not of the form key=value"),
        ),
    }
}

fn services_command() -> Command {
    client_command("services", "List the services")
        .args([
            switch("tags", "Also print the tags of each service"),
            value("node", "name or id", "Only services of this node"),
            repeated(
                "node-meta",
                "key=value",
                "Only services on nodes with this metadata; may be repeated",
            ),
            value(
                "filter",
                "expression",
                "Only services for which the expression holds",
            ),
            Format::flag(),
        ])
        .after_help(
            "  $ wharf catalog services -tags
  $ wharf catalog services -node=web-1",
        )
}

type Tags = BTreeMap<String, BTreeSet<String>>;

async fn services(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let node_meta = key_values("node-meta", matches)?;
    let filter = matches.text("filter");
    let mut client = shell.client(matches)?;
    let listed: Result<Tags, HttpError> = async {
        let Some(node) = matches.text("node") else {
            let request = Request::get("/v1/catalog/services")
                .each("node-meta", &node_meta)
                .maybe("filter", filter);
            return client.fetch_json(request).await;
        };
        let request = Request::get(format!("/v1/catalog/node/{}", segment(node)))
            .each("node-meta", &node_meta)
            .maybe("filter", filter);
        let node: Option<NodeServices> = client.fetch_json(request).await?;
        Ok(node.map(NodeServices::tags).unwrap_or_default())
    }
    .await;
    let services = listed.map_err(|error| error.while_("Error listing services"))?;

    if Format::of(matches) == Format::Json {
        return shell.object(&services);
    }
    if services.is_empty() {
        shell.note("No services match the given query - try expanding your search.");
        return Ok(());
    }
    if matches.on("tags") {
        let rows: Vec<(&str, String)> = services
            .iter()
            .map(|(name, tags)| {
                (
                    name.as_str(),
                    Vec::from_iter(tags.iter().cloned()).join(","),
                )
            })
            .collect();
        return shell.text(&pairs(&rows, 6));
    }
    services.keys().try_for_each(|name| shell.line(name))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServices {
    #[serde(default)]
    services: BTreeMap<String, NodeService>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeService {
    service: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl NodeServices {
    /// The tags of all instances of each service on the node.
    fn tags(self) -> Tags {
        let mut services = Tags::new();
        for instance in self.services.into_values() {
            let tags = services.entry(instance.service).or_default();
            tags.extend(instance.tags.unwrap_or_default());
        }
        services
    }
}
