//! Small commands to and about a running agent: `reload`, `leave`, `monitor`.

use clap::{ArgMatches, Command};

use super::client_command;
use crate::{
    failure::Failure,
    flags::{Given, argument, switch, value},
    http::{Request, segment},
    shell::Shell,
    stream::{Ended, print_stream},
};

pub(super) fn reload_command() -> Command {
    client_command("reload", "Have the agent read its configuration again")
        .after_help("  $ wharf reload")
}

pub(super) async fn reload(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    shell
        .client(matches)?
        .fetch(Request::put("/v1/agent/reload"))
        .await
        .map_err(|error| error.while_("Error reloading"))?;
    shell.line("Configuration reload triggered")
}

pub(super) fn leave_command() -> Command {
    client_command("leave", "Have the agent leave the cluster and stop")
        .after_help("  $ wharf leave")
}

pub(super) async fn leave(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    shell
        .client(matches)?
        .fetch(Request::put("/v1/agent/leave"))
        .await
        .map_err(|error| error.while_("Error leaving"))?;
    shell.line("Graceful leave complete")
}

pub(super) fn join_command() -> Command {
    client_command("join", "Have a server look for others at these addresses")
        .args([
            argument("ADDRESS").num_args(0..),
            switch("wan", "Join another datacenter, which is not built yet"),
        ])
        .long_about("Until it restarts: what is to last belongs into retry_join.")
        .after_help("  $ wharf join 10.0.0.2\n  $ wharf join 10.0.0.2:8300 10.0.0.3:8300")
}

pub(super) async fn join(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let addresses = matches.texts("ADDRESS");
    if addresses.is_empty() {
        return Err(Failure::new(
            "At least one address to join must be specified.",
        ));
    }
    let mut joined = 0;
    for address in addresses {
        let mut request = Request::put(format!("/v1/agent/join/{}", segment(address)));
        if matches.on("wan") {
            request = request.mark("wan");
        }
        match shell.client(matches)?.fetch(request).await {
            Ok(_) => joined += 1,
            Err(error) => {
                shell.note(format_args!("Error joining address '{address}': {error}"));
            }
        }
    }
    match joined {
        0 => Err(Failure::new("Failed to join any nodes.")),
        _ => shell.line(format_args!(
            "Successfully joined cluster by contacting {joined} nodes."
        )),
    }
}

pub(super) fn force_leave_command() -> Command {
    client_command(
        "force-leave",
        "Take a member that is dead out of the cluster",
    )
    .args([
        argument("NODE").required(true),
        switch(
            "prune",
            "Take it out of the list of members too; otherwise it is shown as left for a day",
        ),
    ])
    .long_about(
        "NODE is the name of a server or an agent that is gone for good. The rest of the servers\n\
             has to have a live majority without it. Who is alive stays.",
    )
    .after_help("  $ wharf force-leave s3\n  $ wharf force-leave -prune s3")
}

pub(super) async fn force_leave(
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    let node = matches.text("NODE").unwrap_or_default();
    let path = format!("/v1/agent/force-leave/{}", segment(node));
    let mut request = Request::put(path);
    if matches.on("prune") {
        request = request.mark("prune");
    }
    shell
        .client(matches)?
        .fetch(request)
        .await
        .map_err(|error| error.while_("Error force leaving"))?;
    Ok(())
}

pub(super) fn monitor_command() -> Command {
    client_command("monitor", "Follow the log of an agent")
        .args([
            value(
                "log-level",
                "level",
                "From this level up: trace, debug, info, warn, err (default info)",
            ),
            switch("log-json", "One JSON object a line"),
        ])
        .after_help("  $ wharf monitor -log-level=debug\n  $ wharf monitor -log-json | jq .")
}

pub(super) async fn monitor(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let mut request = Request::get("/v1/agent/monitor")
        .param("loglevel", matches.text("log-level").unwrap_or("INFO"));
    if matches.on("log-json") {
        request = request.mark("logjson");
    }
    let mut client = shell.client(matches)?;
    let body = client
        .stream(request)
        .await
        .map_err(|error| error.while_("Error starting monitor"))?;
    match print_stream(body, "the log broke off", shell).await? {
        Ended::Interrupted => Ok(()),
        Ended::Whole => Err(Failure::new("the agent ended the log")
            .because("it stopped, or the connection was cut")),
    }
}
