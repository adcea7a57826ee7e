//! `kv`: the key-value store.

mod change;
mod get;
mod transfer;

use std::fmt;

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};

use super::{GroupHelp, client_command};
use crate::{failure::Failure, shell::Shell};

pub(super) fn command() -> Command {
    Command::new("kv")
        .about("Read and write the key-value store")
        .group_help(
            "  $ wharf kv put redis/maxconns 5      create or replace a key
  $ wharf kv get redis/maxconns        print its value
  $ wharf kv get -recurse redis/       print all keys below a prefix
  $ wharf kv delete redis/maxconns     remove it",
        )
        .subcommands([
            get::command(),
            change::put_command(),
            change::delete_command(),
            transfer::export_command(),
            transfer::import_command(),
        ])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "get" => get::run(matches, shell).await,
        "put" => change::put(matches, shell).await,
        "delete" => change::delete(matches, shell).await,
        "export" => transfer::export(matches, shell).await,
        _ => transfer::import(matches, shell).await,
    }
}

/// A pair as the API gives it, in the order Consul prints its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pair {
    pub(crate) key: String,
    create_index: u64,
    modify_index: u64,
    lock_index: u64,
    flags: u64,
    /// Base64; absent for an empty value.
    #[serde(default)]
    pub(crate) value: Option<String>,
    #[serde(default)]
    session: String,
}

/// A key never begins with a slash, but people type one: reads and deletes take it off, as Consul does.
fn without_slash(key: &str) -> &str {
    key.strip_prefix('/').unwrap_or(key)
}

fn missing_key() -> Failure {
    Failure::new("Error! Missing KEY argument")
}

fn not_base64(error: impl fmt::Display) -> Failure {
    Failure::new("Error! Cannot base 64 decode data").because(error)
}

#[cfg(test)]
mod tests;
