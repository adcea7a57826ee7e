//! `operator`, and `operator raft`: the servers of the cluster, for who operates it.

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::{GroupHelp, client_command};
use crate::{
    failure::Failure,
    flags::{Given, value},
    http::Request,
    output::{Format, columns},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("operator")
        .about("Look after the servers of the cluster")
        .group_help("  $ wharf operator raft list-peers")
        .subcommands([
            Command::new("raft")
                .about("The servers that hold the state")
                .group_help(
                    "  $ wharf operator raft list-peers
  $ wharf operator raft transfer-leader
  $ wharf operator raft remove-peer -address=10.0.0.3:8300",
                )
                .subcommands([
                    list_command(),
                    remove_command(),
                    transfer_command(),
                    hash_command(),
                ]),
            super::autopilot::command(),
        ])
}

pub(super) async fn raft(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "remove-peer" => remove(matches, shell).await,
        "hash" => hash(matches, shell).await,
        "transfer-leader" => transfer(matches, shell).await,
        _ => list(matches, shell).await,
    }
}

fn list_command() -> Command {
    client_command(
        "list-peers",
        "Show the servers, who leads, and how far each is",
    )
    .arg(Format::flag())
    .long_about("With -stale, what this agent knows, also while there is no leader.")
    .after_help("  $ wharf operator raft list-peers\n  $ wharf operator raft list-peers -stale")
}

fn remove_command() -> Command {
    client_command(
        "remove-peer",
        "Take a server that is gone for good out of the cluster",
    )
    .args([
        value("address", "host:port", "The server at this address"),
        value("id", "id", "The server of this id"),
    ])
    .long_about(
        "The rest of the servers has to have a live majority without it. A server that still runs\n\
             comes back by itself: stop it, or have it leave with \"wharf leave\".",
    )
    .after_help("  $ wharf operator raft remove-peer -address=10.0.0.3:8300")
}

fn transfer_command() -> Command {
    client_command("transfer-leader", "Have another server lead")
        .arg(value(
            "id",
            "id",
            "The server of this id; without it, the one that has most of the log",
        ))
        .after_help("  $ wharf operator raft transfer-leader")
}

fn hash_command() -> Command {
    client_command("hash", "Show the hash of a server's copy of the state")
        .arg(Format::flag())
        .long_about("Servers that name the same index name the same hash, or are not the same registry any more.")
        .after_help("  $ wharf operator raft hash -http-addr=10.0.0.1:8500")
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateHash {
    node: String,
    index: u64,
    hash: String,
}

async fn hash(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let state: StateHash = shell
        .client(matches)?
        .fetch_json(Request::get("/v1/operator/raft/hash"))
        .await
        .map_err(|error| error.while_("Error getting the hash"))?;
    if Format::of(matches) == Format::Json {
        return shell.object(&state);
    }
    let StateHash { node, index, hash } = state;
    shell.line(format_args!("{node}  {index}  {hash}"))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    servers: Vec<Server>,
    index: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    #[serde(rename = "ID")]
    id: String,
    node: String,
    address: String,
    leader: bool,
    #[serde(default)]
    protocol_version: String,
    voter: bool,
    #[serde(default)]
    last_index: u64,
}

async fn list(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let request = Request::get("/v1/operator/raft/configuration");
    let configuration: Configuration = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error getting peers"))?;
    if Format::of(matches) == Format::Json {
        return shell.object(&configuration);
    }
    shell.text(&table(&configuration.servers))
}

fn table(servers: &[Server]) -> String {
    let header = [
        "Node",
        "ID",
        "Address",
        "State",
        "Voter",
        "RaftProtocol",
        "Commit Index",
        "Trails Leader By",
    ];
    let leader = servers.iter().find(|server| server.leader);
    let rows = servers.iter().map(|server| {
        let behind = leader.map(|leader| leader.last_index.saturating_sub(server.last_index));
        let trails = match behind {
            _ if server.leader => "-".to_owned(),
            // An agent that does not lead does not know.
            _ if server.last_index == 0 => "-".to_owned(),
            None => "-".to_owned(),
            Some(1) => "1 commit".to_owned(),
            Some(behind) => format!("{behind} commits"),
        };
        let index = match server.last_index {
            0 => "-".to_owned(),
            index => index.to_string(),
        };
        [
            server.node.clone(),
            server.id.clone(),
            server.address.clone(),
            if server.leader { "leader" } else { "follower" }.to_owned(),
            server.voter.to_string(),
            server.protocol_version.clone(),
            index,
            trails,
        ]
    });
    let rows: Vec<_> = std::iter::once(header.map(str::to_owned))
        .chain(rows)
        .collect();
    columns(&rows)
}

async fn remove(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let (address, id) = (matches.text("address"), matches.text("id"));
    let (what, named) = match (address, id) {
        (Some(address), None) => ("address", address),
        (None, Some(id)) => ("id", id),
        (Some(_), Some(_)) => {
            return Err(Failure::new("cannot remove a peer by both address and id"));
        }
        (None, None) => {
            return Err(
                Failure::new("an address or id is required for the peer to remove")
                    .because("see \"wharf operator raft list-peers\""),
            );
        }
    };
    let request = Request::delete("/v1/operator/raft/peer").param(what, named);
    shell
        .client(matches)?
        .fetch(request)
        .await
        .map_err(|error| error.while_("Error removing peer"))?;
    shell.line(format_args!("Removed peer with {what} {named:?}"))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transferred {
    #[serde(default)]
    leader: String,
}

async fn transfer(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let request = Request::put("/v1/operator/raft/transfer-leader").maybe("id", matches.text("id"));
    let transferred: Transferred = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error transferring leadership"))?;
    match transferred.leader.as_str() {
        "" => shell.line("Success"),
        leader => shell.line(format_args!("Success: {leader} leads")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(node: &str, leader: bool, last_index: u64) -> Server {
        Server {
            id: format!("id-{node}"),
            node: node.into(),
            address: "10.0.0.1:8300".into(),
            leader,
            protocol_version: "3".into(),
            voter: true,
            last_index,
        }
    }

    #[test]
    fn how_far_each_is_behind_is_told() {
        let servers = [
            server("a", true, 10),
            server("b", false, 9),
            server("c", false, 4),
            server("d", false, 0),
        ];
        let table = table(&servers);
        let ends: Vec<&str> = table
            .lines()
            .skip(1)
            .map(|line| line.rsplit("  ").next().unwrap_or_default())
            .collect();
        assert_eq!(ends, ["-", "1 commit", "6 commits", "-"], "{table}");
        assert!(
            table
                .lines()
                .nth(1)
                .is_some_and(|line| line.contains("leader"))
        );
    }
}
