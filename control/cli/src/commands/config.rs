//! `config`: entries that configure the mesh for all nodes, such as `service-defaults`.

use clap::{ArgMatches, Command};
use serde::Deserialize;
use serde_json::Value;
use wharf_agent::config_entry::{self, ConfigEntryError};

use super::{GroupHelp, client_command};
use crate::{
    document,
    failure::Failure,
    flags::{Given, argument, number, switch, value},
    http::{Client, Request, segment},
    output::Format,
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("config")
        .about("Read and write the configuration entries of the mesh")
        .group_help(
            "  $ wharf config write web.hcl
  $ wharf config list -kind=service-defaults
  $ wharf config read -kind=service-defaults -name=web",
        )
        .subcommands([
            read_command(),
            write_command(),
            list_command(),
            delete_command(),
        ])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "read" => read(matches, shell).await,
        "write" => write(matches, shell).await,
        "list" => list(matches, shell).await,
        _ => delete(matches, shell).await,
    }
}

/// `-kind` or `-name`, which the command cannot do without.
fn needed<'m>(flag: &str, matches: &'m ArgMatches) -> Result<&'m str, Failure> {
    let value = matches.text(flag);
    value.ok_or_else(|| Failure::new(format!("Must specify the -{flag} parameter")))
}

/// Writes and deletes that ask for an index answer whether it was still that.
struct CheckAndSet(Option<u64>);

impl CheckAndSet {
    fn from_flags(matches: &ArgMatches) -> Result<Self, Failure> {
        match (matches.on("cas"), matches.number("modify-index")) {
            (true, index) => Ok(Self(Some(index.unwrap_or(0)))),
            (false, None) => Ok(Self(None)),
            (false, Some(_)) => Err(Failure::new("Cannot specify -modify-index without -cas!")),
        }
    }

    /// Whether the change was made. Without an index the answer's content says nothing.
    async fn send(
        self,
        client: &mut Client,
        request: Request,
        failing: &str,
    ) -> Result<bool, Failure> {
        let result = match self.0 {
            Some(index) => {
                client
                    .fetch_json(request.param("cas", index.to_string()))
                    .await
            }
            None => client.fetch(request).await.map(|_| true),
        };
        result.map_err(|error| error.while_(failing))
    }
}

fn read_command() -> Command {
    client_command("read", "Print an entry as JSON")
        .args([
            value("kind", "kind", "Kind of the entry"),
            value("name", "name", "Name of the entry"),
            Format::flag(),
        ])
        .after_help("  $ wharf config read -kind=proxy-defaults -name=global")
}

async fn read(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let (kind, name) = (needed("kind", matches)?, needed("name", matches)?);
    let request = Request::get(format!("/v1/config/{}/{}", segment(kind), segment(name)));
    let answer = shell.client(matches)?.fetch(request).await;
    let answer = answer
        .map_err(|error| error.while_(format!("Error reading config entry {kind}/{name}")))?;
    shell.json(&answer.body)
}

fn list_command() -> Command {
    client_command("list", "List the names of the entries of a kind")
        .args([
            value("kind", "kind", "Kind of the entries"),
            value(
                "filter",
                "expression",
                "Only entries for which the expression holds",
            ),
            Format::flag(),
        ])
        .after_help("  $ wharf config list -kind=service-defaults")
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: String,
}

async fn list(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let kind = needed("kind", matches)?;
    let request = Request::get(format!("/v1/config/{}", segment(kind)))
        .maybe("filter", matches.text("filter"));
    let failing = format!("Error listing config entries for kind {kind:?}");
    let answer = shell.client(matches)?.fetch(request).await;
    let answer = answer.map_err(|error| error.while_(&failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let entries: Vec<Named> = answer.json().map_err(|error| error.while_(&failing))?;
    entries.iter().try_for_each(|entry| shell.line(&entry.name))
}

fn write_command() -> Command {
    client_command("write", "Create or replace an entry")
        .arg(argument("FILE"))
        .args([
            switch("cas", "Write only if the entry is still at -modify-index"),
            number(
                "modify-index",
                "ModifyIndex for -cas; 0 means the entry must not exist",
            ),
        ])
        .after_help(
            "  $ wharf config write web.hcl
  $ cat web.json | wharf config write -
  $ wharf config write -cas -modify-index=12 web.hcl",
        )
}

async fn write(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(file) = matches.text("FILE") else {
        return Err(Failure::new(
            "Must provide exactly one positional argument to specify the config entry to write",
        ));
    };
    let cas = CheckAndSet::from_flags(matches)?;
    let document = document::read(file, shell)?;
    // Only here is it known where a key stands. All else is the agent's to judge, which may know more kinds.
    if let Err(ConfigEntryError::UnknownKeys(keys)) = config_entry::decode_node(&document) {
        return Err(Failure::new(format!(
            "Failed to decode config entry input: {keys}"
        )));
    }
    let entry = document.to_json();
    let (Some(kind), Some(name)) = (member(&entry, "kind"), member(&entry, "name")) else {
        return Err(Failure::new("Failed to decode config entry input")
            .because("an entry needs a Kind and a Name")
            .hint("Kind = \"service-defaults\"\nName = \"web\""));
    };
    let request = Request::put("/v1/config").json(&entry);
    let request = request.map_err(|error| error.while_("Failed to encode the config entry"))?;
    let failing = format!("Error writing config entry {kind}/{name}");
    if !cas
        .send(&mut shell.client(matches)?, request, &failing)
        .await?
    {
        return Err(Failure::new(format!(
            "Config entry not updated: {kind}/{name}"
        )));
    }
    shell.line(format_args!("Config entry written: {kind}/{name}"))
}

/// A text member, whatever the case of its key.
fn member<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    let mut members = object.as_object()?.iter();
    members
        .find(|(name, _)| name.eq_ignore_ascii_case(key))?
        .1
        .as_str()
}

fn delete_command() -> Command {
    client_command("delete", "Remove an entry")
        .args([
            value("kind", "kind", "Kind of the entry"),
            value("name", "name", "Name of the entry"),
            value(
                "filename",
                "file",
                "Take kind and name from a file with the entry",
            ),
            switch("cas", "Remove only if the entry is still at -modify-index"),
            number("modify-index", "ModifyIndex for -cas"),
        ])
        .after_help(
            "  $ wharf config delete -kind=service-defaults -name=web
  $ wharf config delete -filename=web.hcl",
        )
}

async fn delete(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let cas = CheckAndSet::from_flags(matches)?;
    let (kind, name) = match matches.text("filename") {
        Some(file) => {
            let entry = document::read(file, shell)?.to_json();
            match (member(&entry, "kind"), member(&entry, "name")) {
                (Some(kind), Some(name)) => (kind.to_owned(), name.to_owned()),
                _ => {
                    return Err(Failure::new(format!(
                        "{file} holds no entry with a Kind and a Name"
                    )));
                }
            }
        }
        None => (
            needed("kind", matches)?.to_owned(),
            needed("name", matches)?.to_owned(),
        ),
    };
    let request = Request::delete(format!("/v1/config/{}/{}", segment(&kind), segment(&name)));
    let failing = format!("Error deleting config entry {kind}/{name}");
    if !cas
        .send(&mut shell.client(matches)?, request, &failing)
        .await?
    {
        return Err(Failure::new(format!(
            "Config entry not deleted: {kind}/{name}"
        )));
    }
    shell.line(format_args!("Config entry deleted: {kind}/{name}"))
}
