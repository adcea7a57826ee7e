//! `image import` and `image pull`: images from files and from registries.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use clap::{ArgMatches, Command};
use wharf_launcher::image::{ImageName, Reference, pack_layout};

use super::{Image, added, client_command, one};
use crate::{
    failure::{Failure, chain},
    flags::{Given, argument, value},
    http::{Answer, Client, Request},
    output::Format,
    shell::Shell,
    upload::{self, Uploader},
};

/// How long an image may be on its way.
const PATIENCE: Duration = Duration::from_secs(3600);

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
    let request = Request::put("/v1/images/import").maybe("name", name);
    let mut client = shell.client(matches)?;
    let failed = format!("Error importing {file}");
    let answer = if file == "-" {
        // The thread that reads it cannot borrow the shell's.
        upload(&mut client, request, failed, None, |uploader| {
            io::copy(&mut io::stdin().lock(), uploader).map(drop)
        })
        .await?
    } else {
        let path = match Reference::parse(&file) {
            Ok(Reference::OciLayout(layout)) => {
                let answer = upload(&mut client, request, failed, None, move |uploader| {
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
        upload(&mut client, request, failed, length, move |uploader| {
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

/// Sends a request whose body a thread writes.
pub(super) async fn upload(
    client: &mut Client,
    request: Request,
    failed: String,
    length: Option<u64>,
    write: impl FnOnce(&mut Uploader) -> io::Result<()> + Send + 'static,
) -> Result<Answer, Failure> {
    let (mut uploader, body) = upload::channel(length);
    let problem: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let noted = problem.clone();
    // It ends when the request does: there is nobody to write to then.
    thread::spawn(move || {
        match write(&mut uploader) {
            // It is the agent that has gone, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            // Noted before the uploader cuts the request off, as it does when it goes.
            Err(error) => *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            // That nobody takes the end is no news: the answer is there.
            Ok(()) => drop(uploader.finish()),
        }
    });
    let answer = client.upload(request.within(PATIENCE), body).await;
    // Why the body was cut off says more than that it was.
    if let Some(error) = problem
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        return Err(Failure::new(failed).because(chain(&error)));
    }
    answer.map_err(|error| error.while_(failed))
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
