//! `node`: the machines that carry allocations.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use serde::Deserialize;
use wharf_registry::model::platform::{NodeStatus, PlatformNode, Resources};

use super::{
    GroupHelp, client_command,
    job::{AllocStub, alloc_table, short},
};
use crate::{
    failure::Failure,
    flags::{Given, argument},
    http::{Request, segment},
    output::{Format, columns, pairs},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("node")
        .about("Look at the nodes that run jobs")
        .group_help("  $ wharf node status\n  $ wharf node status n1")
        .subcommands([status_command()])
}

pub(super) async fn run(
    _verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match matches.text("NAME") {
        Some(name) => one(name, matches, shell).await,
        None => all(matches, shell).await,
    }
}

fn status_command() -> Command {
    client_command("status", "Show all nodes, or one with its allocations")
        .arg(argument("NAME"))
        .arg(Format::flag())
        .long_about("NAME is the name of a node, its id, or the beginning of its id.")
        .after_help("  $ wharf node status\n  $ wharf node status n1")
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeStub {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    address: String,
    status: NodeStatus,
    eligible: bool,
    drivers: BTreeMap<String, bool>,
    resources: Resources,
    reserved: Resources,
    allocations: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeDetail {
    #[serde(flatten)]
    node: PlatformNode,
    reserved: Resources,
}

fn of(used: u64, all: u64) -> String {
    format!("{used}/{all}")
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

async fn all(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let failing = "Error listing the nodes of the platform";
    let request = Request::get("/v1/platform/nodes");
    let answer = shell.client(matches)?.fetch(request).await;
    let answer = answer.map_err(|error| error.while_(failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let nodes: Vec<NodeStub> = answer.json().map_err(|error| error.while_(failing))?;
    if nodes.is_empty() {
        shell.note("There are no nodes that run jobs.");
        return Ok(());
    }
    let header = [
        "Name",
        "ID",
        "Address",
        "Status",
        "Eligible",
        "Drivers",
        "CPU (m)",
        "Memory (MiB)",
        "Allocations",
    ]
    .map(str::to_owned);
    let rows = nodes.iter().map(|node| {
        let drivers: Vec<&str> = node
            .drivers
            .iter()
            .filter(|(_, healthy)| **healthy)
            .map(|(name, _)| name.as_str())
            .collect();
        [
            node.name.clone(),
            short(&node.id).to_owned(),
            node.address.clone(),
            node.status.to_string(),
            yes_no(node.eligible),
            match drivers.is_empty() {
                true => "-".to_owned(),
                false => drivers.join(","),
            },
            of(node.reserved.cpu, node.resources.cpu),
            of(node.reserved.memory_mb, node.resources.memory_mb),
            node.allocations.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    shell.text(&columns(&rows))
}

async fn one(name: &str, matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let failing = format!("Error reading node {name:?}");
    let mut client = shell.client(matches)?;
    let path = format!("/v1/platform/node/{}", segment(name));
    let answer = client.fetch(Request::get(&*path)).await;
    let answer = answer.map_err(|error| error.while_(&failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let detail: NodeDetail = answer.json().map_err(|error| error.while_(&failing))?;
    let allocs: Vec<AllocStub> = client
        .fetch_json(Request::get(format!("{path}/allocations")))
        .await
        .map_err(|error| error.while_(&failing))?;
    let node = &detail.node;
    let status = match &*node.status_description {
        "" => node.status.to_string(),
        why => format!("{} ({why})", node.status),
    };
    shell.text(&pairs(
        &[
            ("Name", node.name.to_string()),
            ("ID", node.id.to_string()),
            ("Address", node.address.to_string()),
            ("Status", status),
            ("Eligible", yes_no(node.eligible)),
            (
                "CPU",
                format!("{} m reserved", of(detail.reserved.cpu, node.resources.cpu)),
            ),
            (
                "Memory",
                format!(
                    "{} MiB reserved",
                    of(detail.reserved.memory_mb, node.resources.memory_mb)
                ),
            ),
            (
                "Ports",
                format!("{}-{}", node.dynamic_ports.min, node.dynamic_ports.max),
            ),
        ],
        2,
    ))?;
    if !node.drivers.is_empty() {
        let header = ["Driver", "Healthy", "Reason"].map(str::to_owned);
        let rows = node.drivers.iter().map(|(driver, health)| {
            [
                driver.to_string(),
                yes_no(health.healthy),
                health.reason.to_string(),
            ]
        });
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        shell.text("\n")?;
        shell.text(&columns(&rows))?;
    }
    if !node.attributes.is_empty() {
        let rows: Vec<(&str, String)> = node
            .attributes
            .iter()
            .map(|(name, value)| (&**name, value.to_string()))
            .collect();
        shell.text("\nAttributes\n")?;
        shell.text(&pairs(&rows, 2))?;
    }
    if allocs.is_empty() {
        return Ok(());
    }
    shell.text("\nAllocations\n")?;
    shell.text(&alloc_table(allocs))
}
