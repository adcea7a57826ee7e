//! `image import` and `image pull`: images from files and from registries.

use std::{fs::File, io, path::PathBuf, time::Duration};

use clap::{ArgMatches, Command};
use wharf_launcher::image::{ImageName, Reference, pack_layout};

use super::{Image, added, client_command, one};
use crate::{
    failure::Failure,
    flags::{Given, argument, value},
    http::{Answer, Request},
    output::Format,
    shell::Shell,
    upload,
};

/// How long an image may be on its way.
pub(super) const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) fn import_command() -> Command {
    client_command("import", "Import an image from a file to the agent's node")
        .arg(argument("FILE"))
        .args([
            value(
                "name",
                "name",
                "The name it gets, in place of those in the file",
            ),
            Format::flag(),
        ])
        .after_help(
            "FILE is an OCI archive or one of `docker save`, compressed or not; - is standard input,
oci:DIR a directory with an OCI image layout.\n
  $ wharf image import web.tar
  $ docker save web:1 | wharf image import -
  $ wharf image import -name=web:1 oci:./layout",
        )
}

pub(super) async fn import(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let file = matches
        .text("FILE")
        .ok_or_else(|| Failure::new("Missing FILE argument"))?
        .to_owned();
    let name = matches.text("name");
    if let Some(name) = name {
        // Before gigabytes are sent.
        ImageName::parse(name).map_err(|error| Failure::new(error.to_string()))?;
    }
    let request = Request::put("/v1/images/import")
        .maybe("name", name)
        .within(PATIENCE);
    let mut client = shell.client(matches)?;
    let failed = format!("Error importing {file}");
    let answer = if file == "-" {
        // The thread that reads it cannot borrow the shell's.
        upload::send(&mut client, request, failed, None, |uploader| {
            io::copy(&mut io::stdin().lock(), uploader).map(drop)
        })
        .await?
    } else {
        let path = match Reference::parse(&file) {
            Ok(Reference::OciLayout(layout)) => {
                let answer = upload::send(&mut client, request, failed, None, move |uploader| {
                    pack_layout(&layout.path, uploader)
                });
                return show("Imported", &answer.await?, matches, shell);
            }
            Ok(Reference::OciArchive(archive) | Reference::DockerArchive(archive)) => archive.path,
            _ => PathBuf::from(&file),
        };
        let unreadable = |error| {
            let failure = Failure::new(failed.clone());
            failure.because(format_args!("{}: {error}", path.display()))
        };
        let file = File::open(&path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let length = metadata.is_file().then_some(metadata.len());
        upload::send(&mut client, request, failed, length, move |uploader| {
            io::copy(&mut &file, uploader).map(drop)
        })
        .await?
    };
    show("Imported", &answer, matches, shell)
}

/// Prints what came in: one image a line, or what the agent says.
pub(super) fn show(
    what: &str,
    answer: &Answer,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let images: Vec<Image> = answer
        .json()
        .map_err(|error| error.while_("Error reading the answer"))?;
    images
        .iter()
        .try_for_each(|image| added(what, image, shell))
}

pub(super) fn pull_command() -> Command {
    client_command("pull", "Fetch an image from a registry to the agent's node")
        .arg(argument("IMAGE"))
        .arg(Format::flag())
        .after_help(
            "Jobs fetch what they need themselves. Plain HTTP is spoken to the registries that the
configuration of the agent lists: platform { images { insecure_registries = [...] } }.\n
  $ wharf image pull registry.example/team/web:1
  $ wharf image pull 127.0.0.1:5000/web@sha256:...",
        )
}

pub(super) async fn pull(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let image = one(matches)?;
    let name = ImageName::parse(image).map_err(|error| Failure::new(error.to_string()))?;
    let doing = format!("Error fetching {image}");
    let request = Request::put("/v1/images/pull")
        .json(&serde_json::json!({ "Image": name.to_string() }))
        .map_err(|error| error.while_(&doing))?;
    let answer = shell
        .client(matches)?
        .fetch(request.within(PATIENCE))
        .await
        .map_err(|error| error.while_(&doing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let image: Image = answer.json().map_err(|error| error.while_(&doing))?;
    added("Fetched", &image, shell)
}
