//! `kv get`

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{ArgMatches, Command};
use http::StatusCode;

use super::{Pair, client_command, missing_key, not_base64, without_slash};
use crate::{
    failure::Failure,
    flags::{Given, argument, switch, value},
    http::{Client, HttpError, Request, key},
    output::{Format, pairs},
    shell::Shell,
};

pub(super) fn command() -> Command {
    client_command(
        "get",
        "Print the value of a key, or what lies below a prefix",
    )
    .arg(argument("KEY_OR_PREFIX"))
    .args([
        switch("base64", "Print values as base64 (default: as they are)"),
        switch(
            "detailed",
            "Also print indexes, flags and the session that holds the key",
        ),
        switch(
            "keys",
            "List the keys that begin with the prefix, without values",
        ),
        switch("recurse", "Print all keys that begin with the prefix"),
        value(
            "separator",
            "string",
            "With -keys: list only up to the next separator (default \"/\")",
        ),
        Format::flag(),
    ])
    .after_help(
        "  $ wharf kv get redis/maxconns
  $ wharf kv get -detailed redis/maxconns
  $ wharf kv get -recurse redis/
  $ wharf kv get -keys -separator= redis/",
    )
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = without_slash(matches.text("KEY_OR_PREFIX").unwrap_or_default());
    let format = Format::of(matches);
    let mut client = shell.client(matches)?;
    if matches.on("keys") {
        return keys(name, matches, format, &mut client, shell).await;
    }
    let recurse = matches.on("recurse");
    if name.is_empty() && !recurse {
        return Err(missing_key());
    }
    let pairs = read(&mut client, name, recurse).await?;
    if format == Format::Json {
        return match (pairs.as_slice(), recurse) {
            (pairs, true) => shell.object(&pairs),
            ([pair, ..], false) => shell.object(pair),
            ([], false) => Err(absent(name)),
        };
    }
    if pairs.is_empty() && !recurse {
        return Err(absent(name));
    }
    let (detailed, base64) = (matches.on("detailed"), matches.on("base64"));
    for (n, pair) in pairs.iter().enumerate() {
        let bytes = pair.bytes(base64)?;
        if detailed {
            if n > 0 {
                shell.line("")?;
            }
            shell.text(&details(pair, &bytes))?;
        } else {
            if recurse {
                write!(shell.out, "{}:", pair.key)?;
            }
            shell.out.write_all(&bytes)?;
            shell.line("")?;
        }
    }
    Ok(())
}

fn absent(name: &str) -> Failure {
    Failure::new(format!("Error! No key exists at: {name}"))
}

/// The pairs at a key or below a prefix; none is no error here.
pub(super) async fn read(
    client: &mut Client,
    name: &str,
    recurse: bool,
) -> Result<Vec<Pair>, Failure> {
    let request = Request::get(format!("/v1/kv/{}", key(name)));
    let request = if recurse {
        request.mark("recurse")
    } else {
        request
    };
    let result = async {
        let answer = client.send(request).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.body.is_empty() {
            return Ok(Vec::new());
        }
        answer.ok()?.json()
    };
    result.await.map_err(querying)
}

fn querying(error: HttpError) -> Failure {
    error.while_("Error querying Consul agent")
}

async fn keys(
    prefix: &str,
    matches: &ArgMatches,
    format: Format,
    client: &mut Client,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    // Given but empty is not the same as not given: it asks for everything below.
    let separator = match matches.texts("separator").last() {
        Some(given) => (*given).to_owned(),
        None => "/".to_owned(),
    };
    let request = Request::get(format!("/v1/kv/{}", key(prefix)))
        .mark("keys")
        .param("separator", separator);
    let answer = client.send(request).await.map_err(querying)?;
    let keys: Vec<String> = if answer.status == StatusCode::NOT_FOUND {
        Vec::new()
    } else {
        answer
            .ok()
            .and_then(|answer| answer.json())
            .map_err(querying)?
    };
    if format == Format::Json {
        return shell.object(&keys);
    }
    keys.iter().try_for_each(|key| shell.line(key))
}

impl Pair {
    /// The value as it is printed: decoded, or as base64.
    fn bytes(&self, base64: bool) -> Result<Vec<u8>, Failure> {
        let encoded = self.value.as_deref().unwrap_or_default();
        if base64 {
            return Ok(encoded.as_bytes().to_vec());
        }
        STANDARD.decode(encoded).map_err(not_base64)
    }
}

/// One line for each field, in the order of their names.
fn details(pair: &Pair, value: &[u8]) -> String {
    let session = match pair.session.as_str() {
        "" => "-",
        session => session,
    };
    let rows = [
        ("CreateIndex", pair.create_index.to_string()),
        ("Flags", pair.flags.to_string()),
        ("Key", pair.key.clone()),
        ("LockIndex", pair.lock_index.to_string()),
        ("ModifyIndex", pair.modify_index.to_string()),
        ("Session", session.to_owned()),
        ("Value", String::from_utf8_lossy(value).into_owned()),
    ];
    // An empty value leaves no trailing blanks.
    pairs(&rows, 6).trim_end().to_owned() + "\n"
}
