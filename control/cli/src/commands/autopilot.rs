//! `operator autopilot`: how the cluster looks after its servers by itself.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::{GroupHelp, client_command};
use crate::{
    failure::Failure,
    flags::{Given, switch, value},
    http::Request,
    output::Format,
    shell::Shell,
};

const CONFIGURATION: &str = "/v1/operator/autopilot/configuration";

pub(super) fn command() -> Command {
    Command::new("autopilot")
        .about("How the cluster looks after its servers by itself")
        .group_help(
            "  $ wharf operator autopilot state
  $ wharf operator autopilot get-config
  $ wharf operator autopilot set-config -min-quorum=3",
        )
        .subcommands([
            client_command("get-config", "Show the settings")
                .after_help("  $ wharf operator autopilot get-config"),
            set_command(),
            client_command(
                "state",
                "Show which servers are in order, and how many may be lost",
            )
            .arg(Format::flag())
            .after_help("  $ wharf operator autopilot state"),
        ])
}

fn set_command() -> Command {
    client_command(
        "set-config",
        "Change settings; those that are not given stay",
    )
    .args([
        switch(
            "cleanup-dead-servers",
            "Take servers out that are dead, as long as a majority is left",
        ),
        value(
            "last-contact-threshold",
            "duration",
            "Longer without contact, and a server is not healthy",
        ),
        value(
            "max-trailing-logs",
            "count",
            "More entries behind, and a server is not healthy",
        ),
        value(
            "min-quorum",
            "count",
            "No clean-up leaves fewer servers with a vote",
        ),
        value(
            "server-stabilization-time",
            "duration",
            "How long a new server has to be in order before it gets a vote",
        ),
        switch(
            "disable-upgrade-migration",
            "Kept for Consul's clients, without effect",
        ),
        value(
            "redundancy-zone-tag",
            "tag",
            "Kept for Consul's clients, without effect",
        ),
        value(
            "upgrade-version-tag",
            "tag",
            "Kept for Consul's clients, without effect",
        ),
    ])
    .after_help("  $ wharf operator autopilot set-config -min-quorum=3 -cleanup-dead-servers=true")
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "set-config" => set(matches, shell).await,
        "state" => state(matches, shell).await,
        _ => get(matches, shell).await,
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    cleanup_dead_servers: bool,
    last_contact_threshold: String,
    max_trailing_logs: u64,
    #[serde(default)]
    min_quorum: u64,
    server_stabilization_time: String,
    #[serde(default)]
    redundancy_zone_tag: String,
    #[serde(default)]
    disable_upgrade_migration: bool,
    #[serde(default)]
    upgrade_version_tag: String,
    #[serde(default, skip_serializing)]
    modify_index: u64,
}

async fn fetch(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<Configuration, Failure> {
    let configuration = shell
        .client(matches)?
        .fetch_json(Request::get(CONFIGURATION))
        .await;
    configuration.map_err(|error| error.while_("Error querying Autopilot configuration"))
}

async fn get(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let found = fetch(matches, shell).await?;
    shell.text(&lines(&found))
}

fn lines(found: &Configuration) -> String {
    format!(
        "CleanupDeadServers = {}\nLastContactThreshold = {}\nMaxTrailingLogs = {}\nMinQuorum = {}\n\
         ServerStabilizationTime = {}\nRedundancyZoneTag = {:?}\nDisableUpgradeMigration = {}\n\
         UpgradeVersionTag = {:?}\n",
        found.cleanup_dead_servers,
        found.last_contact_threshold,
        found.max_trailing_logs,
        found.min_quorum,
        found.server_stabilization_time,
        found.redundancy_zone_tag,
        found.disable_upgrade_migration,
        found.upgrade_version_tag,
    )
}

/// The value of a flag, if it was given.
fn given<T: std::str::FromStr>(matches: &ArgMatches, flag: &str) -> Result<Option<T>, Failure> {
    let Some(text) = matches.text(flag) else {
        return Ok(None);
    };
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| Failure::new(format!("invalid value {text:?} for flag -{flag}")))
}

async fn set(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let mut wanted = fetch(matches, shell).await?;
    let text = |flag: &str| matches.text(flag).map(str::to_owned);
    if let Some(cleanup) = matches.switch("cleanup-dead-servers") {
        wanted.cleanup_dead_servers = cleanup;
    }
    if let Some(threshold) = text("last-contact-threshold") {
        wanted.last_contact_threshold = threshold;
    }
    if let Some(logs) = given(matches, "max-trailing-logs")? {
        wanted.max_trailing_logs = logs;
    }
    if let Some(quorum) = given(matches, "min-quorum")? {
        wanted.min_quorum = quorum;
    }
    if let Some(time) = text("server-stabilization-time") {
        wanted.server_stabilization_time = time;
    }
    if let Some(disable) = matches.switch("disable-upgrade-migration") {
        wanted.disable_upgrade_migration = disable;
    }
    if let Some(tag) = text("redundancy-zone-tag") {
        wanted.redundancy_zone_tag = tag;
    }
    if let Some(tag) = text("upgrade-version-tag") {
        wanted.upgrade_version_tag = tag;
    }
    let body = serde_json::to_vec(&wanted)
        .map_err(|error| Failure::new("the settings cannot be written").because(error))?;
    let index = wanted.modify_index.to_string();
    let request = Request::put(CONFIGURATION).param("cas", &index).body(body);
    let applied: bool = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error setting Autopilot configuration"))?;
    match applied {
        true => shell.line("Configuration updated!"),
        false => Err(Failure::new(
            "Configuration could not be atomically updated, please try again",
        )),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    healthy: bool,
    failure_tolerance: u64,
    #[serde(default)]
    optimistic_failure_tolerance: u64,
    servers: BTreeMap<String, Server>,
    leader: String,
    #[serde(default)]
    voters: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    address: String,
    node_status: String,
    version: String,
    last_contact: String,
    last_term: u64,
    last_index: u64,
    healthy: bool,
    stable_since: String,
    status: String,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    node_type: String,
}

async fn state(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let state: State = shell
        .client(matches)?
        .fetch_json(Request::get("/v1/operator/autopilot/state"))
        .await
        .map_err(|error| error.while_("Error getting the state of the autopilot"))?;
    if Format::of(matches) == Format::Json {
        return shell.object(&state);
    }
    shell.text(&report(&state))
}

fn report(state: &State) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "Healthy:                      {}\nFailure Tolerance:            {}\nOptimistic Failure Tolerance: {}\n\
         Leader:                       {}\nVoters:\n",
        state.healthy, state.failure_tolerance, state.optimistic_failure_tolerance, state.leader,
    );
    for voter in &state.voters {
        let _ = writeln!(text, "   {voter}");
    }
    text.push_str("Servers:\n");
    for server in state.servers.values() {
        let _ = write!(
            text,
            "   {}\n      Name:            {}\n      Address:         {}\n      Version:         {}\n      \
             Status:          {}\n      Node Type:       {}\n      Node Status:     {}\n      \
             Healthy:         {}\n      Last Contact:    {}\n      Last Term:       {}\n      \
             Last Index:      {}\n      Stable Since:    {}\n",
            server.id,
            server.name,
            server.address,
            server.version,
            server.status,
            server.node_type,
            server.node_status,
            server.healthy,
            server.last_contact,
            server.last_term,
            server.last_index,
            server.stable_since,
        );
        let meta = server.meta.iter().flatten();
        let meta: Vec<String> = meta
            .map(|(key, value)| format!("         {key:?}: {value:?}\n"))
            .collect();
        if !meta.is_empty() {
            text.push_str("      Meta:\n");
            text.push_str(&meta.concat());
        }
    }
    text
}
