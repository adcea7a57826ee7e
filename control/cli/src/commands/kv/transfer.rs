//! `kv export` and `kv import`: whole trees as JSON, in Consul's form, so that they move between the two.

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::{client_command, get, without_slash};
use crate::{
    failure::Failure,
    flags::{Given, argument, value},
    http::{Request, key},
    output::indented,
    shell::Shell,
};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(alias = "Key")]
    key: String,
    #[serde(alias = "Flags", default)]
    flags: u64,
    /// Base64.
    #[serde(alias = "Value", default)]
    value: Option<String>,
}

pub(super) fn export_command() -> Command {
    client_command("export", "Print all keys below a prefix as JSON")
        .arg(argument("KEY_OR_PREFIX"))
        .after_help(
            "  $ wharf kv export > everything.json
  $ wharf kv export vault/ | wharf kv import -http-addr=10.0.0.2:8500 -",
        )
}

pub(super) async fn export(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let prefix = without_slash(matches.text("KEY_OR_PREFIX").unwrap_or_default());
    let mut client = shell.client(matches)?;
    let entries: Vec<Entry> = get::read(&mut client, prefix, true)
        .await?
        .into_iter()
        .map(|pair| Entry {
            key: pair.key,
            flags: pair.flags,
            value: Some(pair.value.unwrap_or_default()),
        })
        .collect();
    let exported = serde_json::to_vec(&entries).and_then(|json| indented(&json, "\t"));
    shell.text(&exported.map_err(|error| Failure::new("Error exporting KV data").because(error))?)
}

pub(super) fn import_command() -> Command {
    client_command("import", "Write the keys of an export")
        .arg(argument("DATA"))
        .arg(value("prefix", "prefix", "Put the keys below this prefix"))
        .after_help(
            "  $ wharf kv import @everything.json
  $ cat everything.json | wharf kv import -
  $ wharf kv import -prefix=restored/ @everything.json",
        )
}

pub(super) async fn import(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(data) = matches.texts("DATA").first().copied() else {
        return Err(Failure::new("Error! Missing DATA argument"));
    };
    let data = shell
        .load(data)
        .map_err(|failure| failure.within("Error! "))?;
    // All is read before anything is written, so that a damaged file changes nothing.
    let entries = decode(&data)?;
    let prefix = matches.text("prefix").unwrap_or_default();
    let mut client = shell.client(matches)?;
    for (entry, value) in entries {
        let name = below(prefix, &entry.key);
        let mut request = Request::put(format!("/v1/kv/{}", key(&name))).body(value);
        if entry.flags > 0 {
            request = request.param("flags", entry.flags.to_string());
        }
        client
            .fetch(request)
            .await
            .map_err(|error| error.while_(format!("Error! Failed writing data for key {name}")))?;
        shell.line(format_args!("Imported: {name}"))?;
    }
    Ok(())
}

fn decode(data: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Failure> {
    let entries: Vec<Entry> = serde_json::from_slice(data)
        .map_err(|error| Failure::new(format!("Cannot unmarshal data: {error}")))?;
    entries
        .into_iter()
        .map(
            |entry| match STANDARD.decode(entry.value.as_deref().unwrap_or_default()) {
                Ok(value) => Ok((entry, value)),
                Err(error) => Err(Failure::new(format!(
                    "Error base 64 decoding value for key {}",
                    entry.key
                ))
                .because(error)),
            },
        )
        .collect()
}

fn below(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        return key.to_owned();
    }
    format!(
        "{}/{}",
        prefix.trim_matches('/'),
        key.trim_start_matches('/')
    )
}
