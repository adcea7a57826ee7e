//! `members` and `info`: what the agent knows of its cluster and of itself.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use super::client_command;
use crate::{
    failure::Failure,
    flags::{Given, switch, value},
    http::Request,
    output::{Format, columns},
    shell::Shell,
};

/// Consul's exit code for "no member matches".
const NONE_MATCH: u8 = 2;

pub(super) fn command() -> Command {
    client_command("members", "List the nodes of the cluster")
        .args([
            switch("detailed", "Print all tags of each member"),
            switch("wan", "List the servers of all datacenters"),
            value(
                "status",
                "regex",
                "Only members in a state that matches: alive, leaving, left, failed",
            ),
            value(
                "filter",
                "expression",
                "Only members for which the expression holds",
            ),
            value("segment", "name", "There is one segment").hide(true),
            Format::flag(),
        ])
        .after_help(
            "  $ wharf members
  $ wharf members -status=failed
  $ wharf members -format=json",
        )
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    addr: String,
    port: u16,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    status: i64,
    #[serde(default)]
    protocol_min: u8,
    #[serde(default)]
    protocol_max: u8,
    #[serde(default)]
    protocol_cur: u8,
    #[serde(default)]
    delegate_min: u8,
    #[serde(default)]
    delegate_max: u8,
    #[serde(default)]
    delegate_cur: u8,
}

impl Member {
    fn status(&self) -> &'static str {
        match self.status {
            0 => "none",
            1 => "alive",
            2 => "leaving",
            3 => "left",
            4 => "failed",
            _ => "unknown",
        }
    }

    fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("", String::as_str)
    }

    fn is_server(&self) -> bool {
        self.tag("role") == "consul"
    }

    fn kind(&self) -> &'static str {
        match self.tag("role") {
            "consul" => "server",
            "node" => "client",
            _ => "unknown",
        }
    }

    fn segment(&self) -> &str {
        match self.tag("segment") {
            "" if self.is_server() => "<all>",
            "" => "<default>",
            segment => segment,
        }
    }

    /// IPv6 addresses stand in brackets before the port.
    fn address(&self) -> String {
        if self.addr.contains(':') {
            format!("[{}]:{}", self.addr, self.port)
        } else {
            format!("{}:{}", self.addr, self.port)
        }
    }

    fn row(&self) -> [String; 9] {
        let build = self.tag("build").split(':').next().unwrap_or_default();
        let partition = match self.tag("ap") {
            "" => "default",
            partition => partition,
        };
        [
            self.name.clone(),
            self.address(),
            self.status().to_owned(),
            self.kind().to_owned(),
            if build.is_empty() { "< 0.3" } else { build }.to_owned(),
            self.tag("vsn").to_owned(),
            self.tag("dc").to_owned(),
            partition.to_owned(),
            self.segment().to_owned(),
        ]
    }

    fn detailed_row(&self) -> [String; 4] {
        let segment = ("segment", self.segment());
        let tags = self
            .tags
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let tags: BTreeMap<&str, &str> = tags.chain([segment]).collect();
        let tags: Vec<String> = tags
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        [
            self.name.clone(),
            self.address(),
            self.status().to_owned(),
            tags.join(","),
        ]
    }
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let status = matches
        .text("status")
        .map(Regex::new)
        .transpose()
        .map_err(|error| Failure::new("Failed to compile status regexp").because(error))?;
    let mut request = Request::get("/v1/agent/members")
        .param("segment", matches.text("segment").unwrap_or("_all"))
        .maybe("filter", matches.text("filter"));
    if matches.on("wan") {
        request = request.param("wan", "1");
    }
    let mut members: Vec<Member> = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error retrieving members"))?;
    members.retain(|member| {
        status
            .as_ref()
            .is_none_or(|regex| regex.is_match(member.status()))
    });
    members.sort_by(|a, b| (a.segment(), &a.name).cmp(&(b.segment(), &b.name)));

    let format = Format::of(matches);
    if format == Format::Json {
        shell.object(&members)?;
    }
    if members.is_empty() {
        return Err(Failure::silent(NONE_MATCH));
    }
    if format == Format::Json {
        return Ok(());
    }
    if matches.on("detailed") {
        let header = ["Node", "Address", "Status", "Tags"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header)
            .chain(members.iter().map(Member::detailed_row))
            .collect();
        return shell.text(&columns(&rows));
    }
    let header = [
        "Node",
        "Address",
        "Status",
        "Type",
        "Build",
        "Protocol",
        "DC",
        "Partition",
        "Segment",
    ];
    let rows: Vec<_> = std::iter::once(header.map(str::to_owned))
        .chain(members.iter().map(Member::row))
        .collect();
    shell.text(&columns(&rows))
}

pub(super) fn info_command() -> Command {
    client_command("info", "Print figures of the agent, for operators")
        .arg(Format::flag())
        .after_help("  $ wharf info\n  $ wharf info -format=json")
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentSelf {
    #[serde(default)]
    stats: BTreeMap<String, BTreeMap<String, String>>,
}

pub(super) async fn info(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let agent: AgentSelf = shell
        .client(matches)?
        .fetch_json(Request::get("/v1/agent/self"))
        .await
        .map_err(|error| error.while_("Error querying agent"))?;
    if Format::of(matches) == Format::Json {
        return shell.object(&agent.stats);
    }
    for (section, figures) in &agent.stats {
        shell.line(format_args!("{section}:"))?;
        for (name, figure) in figures {
            shell.line(format_args!("\t{name} = {figure}"))?;
        }
    }
    Ok(())
}
