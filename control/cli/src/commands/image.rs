//! `image`: the images that jobs run.

mod build;
mod transfer;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgMatches, Command};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{GroupHelp, client_command};
use crate::{
    failure::Failure,
    flags::{Given, argument, number},
    http::{Request, key},
    output::{Format, columns},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("image")
        .about("Build, fetch and remove images")
        .group_help(
            "  $ wharf image build -name=web:1 -file=./server:/bin/server -entrypoint=/bin/server
  $ wharf image import web.tar
  $ wharf image pull registry.example/team/web:1
  $ wharf image ls",
        )
        .subcommands([
            build::command(),
            transfer::import_command(),
            transfer::pull_command(),
            ls_command(),
            inspect_command(),
            rm_command(),
            prune_command(),
        ])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "build" => build::run(matches, shell).await,
        "import" => transfer::import(matches, shell).await,
        "pull" => transfer::pull(matches, shell).await,
        "inspect" => inspect(matches, shell).await,
        "rm" => rm(matches, shell).await,
        "prune" => prune(matches, shell).await,
        _ => ls(matches, shell).await,
    }
}

/// What of an image is shown in a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    digest: String,
    names: Vec<String>,
    size: u64,
    /// Nanoseconds since 1970.
    added: u64,
    used_by: Vec<String>,
}

/// What a removal answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Removed {
    names: Vec<String>,
    images: Vec<String>,
    bytes: u64,
}

impl Image {
    fn rows(&self) -> Vec<[String; 5]> {
        let none = ["<none>".to_owned()];
        let names: &[String] = if self.names.is_empty() {
            &none
        } else {
            &self.names
        };
        let used = match self.used_by.len() {
            0 => String::new(),
            1 => "1 allocation".to_owned(),
            many => format!("{many} allocations"),
        };
        let row = |name: &String| {
            [
                name.clone(),
                short(&self.digest),
                size(self.size),
                age(self.added),
                used.clone(),
            ]
        };
        names.iter().map(row).collect()
    }
}

/// The digits of a digest that tell it from others in a table.
fn short(digest: &str) -> String {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.chars().take(12).collect()
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How long ago a moment was.
fn age(nanos: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_nanos(nanos);
    let seconds = SystemTime::now()
        .duration_since(then)
        .unwrap_or_default()
        .as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn ls_command() -> Command {
    client_command("ls", "List the images of the agent's node")
        .arg(Format::flag())
        .after_help("  $ wharf image ls\n  $ wharf image ls -format=json")
}

async fn ls(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let answer = shell
        .client(matches)?
        .fetch(Request::get("/v1/images"))
        .await
        .map_err(|error| error.while_("Error listing images"))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let images: Vec<Image> = answer
        .json()
        .map_err(|error| error.while_("Error listing images"))?;
    let header = ["Name", "Digest", "Size", "Age", "Used by"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header)
        .chain(images.iter().flat_map(Image::rows))
        .collect();
    shell.text(&columns(&rows))
}

fn inspect_command() -> Command {
    client_command("inspect", "Print what is known of an image")
        .arg(argument("IMAGE"))
        .after_help(
            "IMAGE is a name, a digest, or the beginning of one.\n
  $ wharf image inspect web:1",
        )
}

async fn inspect(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let image = one(matches)?;
    let answer = shell
        .client(matches)?
        .fetch(Request::get(format!("/v1/image/{}", key(image))))
        .await
        .map_err(|error| error.while_(format_args!("Error reading image {image}")))?;
    shell.json(&answer.body)
}

/// The one image that a command is about.
fn one(matches: &ArgMatches) -> Result<&str, Failure> {
    matches
        .text("IMAGE")
        .ok_or_else(|| Failure::new("Missing IMAGE argument"))
}

fn rm_command() -> Command {
    client_command("rm", "Remove images from the agent's node")
        .arg(argument("IMAGE").num_args(0..))
        .after_help(
            "A name goes alone while its image has others. What runs is not removed.\n
  $ wharf image rm web:1 4bcf33d5",
        )
}

async fn rm(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let images = matches.texts("IMAGE");
    if images.is_empty() {
        return Err(Failure::new("Missing IMAGE argument"));
    }
    let mut client = shell.client(matches)?;
    for image in images {
        let removed: Removed = client
            .fetch_json(Request::delete(format!("/v1/image/{}", key(image))))
            .await
            .map_err(|error| error.while_(format_args!("Error removing image {image}")))?;
        report(&removed, shell)?;
    }
    Ok(())
}

fn prune_command() -> Command {
    client_command("prune", "Remove the images that nothing runs")
        .arg(number(
            "keep",
            "How many of them stay, those used last (default 0)",
        ))
        .after_help(
            "What was built or imported stays as long as it has a name.\n
  $ wharf image prune -keep=5",
        )
}

async fn prune(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let keep = matches.number("keep").unwrap_or(0);
    let request = Request::put("/v1/images/prune").param("keep", keep.to_string());
    let removed: Removed = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_("Error pruning images"))?;
    report(&removed, shell)
}

fn report(removed: &Removed, shell: &mut Shell<'_>) -> Result<(), Failure> {
    for name in &removed.names {
        shell.line(format_args!("Removed name: {name}"))?;
    }
    for image in &removed.images {
        shell.line(format_args!("Removed image: {image}"))?;
    }
    if removed.bytes > 0 {
        shell.line(format_args!("Freed: {}", size(removed.bytes)))?;
    }
    Ok(())
}

/// An image that came in, in a line.
fn added(what: &str, image: &Image, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = image.names.join(", ");
    let name = if name.is_empty() {
        "<none>".to_owned()
    } else {
        name
    };
    shell.line(format_args!(
        "{what}: {name}  {}  {}",
        image.digest,
        size(image.size)
    ))
}

fn digest_json(digest: &impl ToString, size: u64) -> Value {
    json!({ "Digest": digest.to_string(), "Size": size })
}

#[cfg(test)]
mod tests;
