//! `maint`: take a node or a service out of every answer for a while.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::client_command;
use crate::{
    failure::Failure,
    flags::{Given, switch, value},
    http::{Client, HttpError, Request, segment},
    output::Format,
    shell::Shell,
};

const NODE_CHECK: &str = "_node_maintenance";
const SERVICE_CHECK: &str = "_service_maintenance:";

pub(super) fn command() -> Command {
    client_command("maint", "Take a node or a service out of service, or back in")
        .args([
            switch("enable", "Begin maintenance"),
            switch("disable", "End maintenance"),
            value("reason", "text", "With -enable: why, for others to read"),
            value("service", "id", "A service instance of the agent (default: the whole node)"),
            Format::flag(),
        ])
        .long_about(
            "While in maintenance, a node or service is critical: DNS, the API and the mesh leave it out.\n\
             It survives a restart of the agent. Without flags, prints what is in maintenance now.",
        )
        .after_help(
            "  $ wharf maint -enable -reason=\"new disks\"
  $ wharf maint -enable -service=web-1
  $ wharf maint
  $ wharf maint -disable",
        )
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let (enable, disable) = (matches.on("enable"), matches.on("disable"));
    let (reason, service) = (matches.text("reason"), matches.text("service"));
    if enable && disable {
        return Err(Failure::new(
            "Only one of -enable or -disable may be provided",
        ));
    }
    if !enable && reason.is_some() {
        return Err(Failure::new("Reason may only be provided with -enable"));
    }
    if !enable && !disable && service.is_some() {
        return Err(Failure::new("Service requires either -enable or -disable"));
    }
    let mut client = shell.client(matches)?;
    if !enable && !disable {
        return show(&mut client, Format::of(matches), shell).await;
    }
    let path = match service {
        Some(id) => format!("/v1/agent/service/maintenance/{}", segment(id)),
        None => "/v1/agent/maintenance".to_owned(),
    };
    let request = Request::put(path)
        .param("enable", enable.to_string())
        .maybe("reason", reason);
    let (verb, state) = if enable {
        ("enabling", "enabled")
    } else {
        ("disabling", "disabled")
    };
    let what = if service.is_some() { "service" } else { "node" };
    client
        .fetch(request)
        .await
        .map_err(|error| error.while_(format!("Error {verb} {what} maintenance")))?;
    match service {
        Some(id) => shell.line(format_args!(
            "Service maintenance is now {state} for {id:?}"
        )),
        None => shell.line(format_args!("Node maintenance is now {state}")),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: String,
    #[serde(default)]
    notes: String,
    #[serde(rename = "ServiceID", default)]
    service_id: String,
}

async fn show(client: &mut Client, format: Format, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let checks: BTreeMap<String, Check> = client
        .fetch_json(Request::get("/v1/agent/checks"))
        .await
        .map_err(|error: HttpError| error.while_("Error querying Consul agent"))?;
    let maintained: Vec<&Check> = checks
        .values()
        .filter(|check| check.check_id == NODE_CHECK || check.check_id.starts_with(SERVICE_CHECK))
        .collect();
    if format == Format::Json {
        return shell.object(&maintained);
    }
    for check in maintained {
        if check.check_id == NODE_CHECK {
            shell.line(format_args!("Node:\n  Name:   {}", check.node))?;
        } else {
            shell.line(format_args!("Service:\n  ID:     {}", check.service_id))?;
        }
        shell.line(format_args!("  Reason: {}\n", check.notes))?;
    }
    Ok(())
}
