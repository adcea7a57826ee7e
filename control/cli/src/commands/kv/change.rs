//! `kv put` and `kv delete`

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{ArgMatches, Command};

use super::{client_command, missing_key, not_base64, without_slash};
use crate::{
    failure::Failure,
    flags::{Given, argument, number, switch, value},
    http::{Request, key},
    shell::Shell,
};

pub(super) fn put_command() -> Command {
    client_command("put", "Create or replace a key")
        .arg(argument("KEY"))
        .arg(argument("DATA").allow_hyphen_values(true))
        .args([
            switch("acquire", "Lock the key for -session"),
            switch("release", "Unlock the key held by -session"),
            value("session", "id", "Session for -acquire and -release"),
            switch("cas", "Write only if the key is still at -modify-index"),
            number(
                "modify-index",
                "ModifyIndex for -cas; 0 means the key must not exist",
            ),
            number(
                "flags",
                "Number to keep with the value, for your own use (default 0)",
            ),
            switch("base64", "DATA is base64: decode it first"),
        ])
        .after_help(
            "  $ wharf kv put redis/maxconns 5
  $ wharf kv put license @license.txt          the content of a file
  $ date | wharf kv put started -              what comes on stdin
  $ wharf kv put -cas -modify-index=844 redis/maxconns 10",
        )
}

pub(super) async fn put(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(name) = matches.text("KEY") else {
        return Err(missing_key());
    };
    if name.starts_with('/') {
        return Err(Failure::new(format!(
            "Error! Failed writing data: Invalid key. Key must not begin with a '/': {name}"
        )));
    }
    let (acquire, release) = (matches.on("acquire"), matches.on("release"));
    let session = matches.text("session");
    if (acquire || release) && session.is_none() {
        return Err(Failure::new(
            "Error! Missing -session (required with -acquire and -release)",
        ));
    }
    let cas = check_and_set(matches)?;
    let mut data = shell
        .load(matches.text("DATA").unwrap_or_default())
        .map_err(|failure| failure.within("Error! "))?;
    if matches.on("base64") {
        data = STANDARD.decode(data.trim_ascii()).map_err(not_base64)?;
    }

    let mut request = Request::put(format!("/v1/kv/{}", key(name))).body(data);
    if let Some(flags) = matches.number("flags").filter(|flags| *flags > 0) {
        request = request.param("flags", flags.to_string());
    }
    let (request, done, refused) = match (cas, session) {
        (Some(index), _) => (
            request.param("cas", index.to_string()),
            format!("Success! Data written to: {name}"),
            format!("Error! Did not write to {name}: CAS failed"),
        ),
        (None, Some(session)) if acquire => (
            request.param("acquire", session),
            format!("Success! Lock acquired on: {name}"),
            "Error! Did not acquire lock".to_owned(),
        ),
        (None, Some(session)) if release => (
            request.param("release", session),
            format!("Success! Lock released on: {name}"),
            "Error! Did not release lock".to_owned(),
        ),
        (None, _) => (
            request,
            format!("Success! Data written to: {name}"),
            format!("Error! Did not write to {name}"),
        ),
    };
    let written: bool = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error! Failed writing data"))?;
    if !written {
        return Err(Failure::new(refused));
    }
    shell.line(done)
}

/// The index of `-cas`. Zero is told apart from none: it asks that the key does not exist yet.
fn check_and_set(matches: &ArgMatches) -> Result<Option<u64>, Failure> {
    match (matches.on("cas"), matches.number("modify-index")) {
        (true, None) => Err(Failure::new("Must specify -modify-index with -cas!")),
        (true, index) => Ok(index),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Failure::new("Cannot specify -modify-index without -cas!")),
    }
}

pub(super) fn delete_command() -> Command {
    client_command("delete", "Remove a key, or all keys below a prefix")
        .arg(argument("KEY_OR_PREFIX"))
        .args([
            switch("recurse", "Remove all keys that begin with the prefix"),
            switch("cas", "Remove only if the key is still at -modify-index"),
            number("modify-index", "ModifyIndex for -cas"),
        ])
        .after_help(
            "  $ wharf kv delete redis/maxconns
  $ wharf kv delete -recurse redis/
  $ wharf kv delete -cas -modify-index=844 redis/maxconns",
        )
}

pub(super) async fn delete(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = without_slash(matches.text("KEY_OR_PREFIX").unwrap_or_default());
    let recurse = matches.on("recurse");
    if name.is_empty() && !recurse {
        return Err(missing_key());
    }
    if recurse && matches.on("cas") {
        return Err(Failure::new("Cannot specify both -cas and -recurse!"));
    }
    let cas = check_and_set(matches)?;
    let request = Request::delete(format!("/v1/kv/{}", key(name)));
    let (request, done) = match (cas, recurse) {
        (_, true) => (
            request.mark("recurse"),
            format!("Success! Deleted keys with prefix: {name}"),
        ),
        (Some(index), _) => (
            request.param("cas", index.to_string()),
            format!("Success! Deleted key: {name}"),
        ),
        (None, _) => (request, format!("Success! Deleted key: {name}")),
    };
    let deleted: bool = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_(format!("Error! Did not delete key {name}")))?;
    if !deleted {
        return Err(Failure::new(format!(
            "Error! Did not delete key {name}: CAS failed"
        )));
    }
    shell.line(done)
}
