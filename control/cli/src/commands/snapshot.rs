//! `snapshot`: the whole state, kept in a file and brought back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, Command};
use http_body_util::BodyExt as _;
use serde_json::json;
use wharf_agent::snapshot::{Inspected, SnapshotsError, inspect as read_archive};

use super::{GroupHelp, client_command, image::size};
use crate::{
    failure::{Failure, chain},
    flags::{Given, argument},
    http::Request,
    output::{Format, columns, pairs},
    shell::Shell,
    upload,
};

/// How long a snapshot may take to be put together, or to be taken over.
const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) fn command() -> Command {
    Command::new("snapshot")
        .about("Save the state of the servers to a file, and bring it back")
        .group_help(
            "  $ wharf snapshot save backup.snap
  $ wharf snapshot inspect backup.snap
  $ wharf snapshot restore backup.snap",
        )
        .subcommands([save_command(), restore_command(), inspect_command()])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "save" => save(matches, shell).await,
        "restore" => restore(matches, shell).await,
        _ => inspect(matches, shell),
    }
}

fn save_command() -> Command {
    client_command("save", "Save everything to a file, and check it")
        .arg(argument("FILE"))
        .long_about(
            "The file has everything: keys, the catalog, configuration, jobs. It is written beside\n\
             FILE and takes its name when it has been read again to its end. Only its owner may\n\
             read it.",
        )
        .after_help(
            "  $ wharf snapshot save backup.snap
  $ wharf snapshot save -stale backup.snap     # when there is no leader",
        )
}

fn restore_command() -> Command {
    client_command("restore", "Bring a saved state back")
        .arg(argument("FILE"))
        .long_about(
            "What the servers have is replaced by what the file has, at once and on all of them; a\n\
             damaged file changes nothing. No index that a client has seen goes back.",
        )
        .after_help("  $ wharf snapshot restore backup.snap")
}

fn inspect_command() -> Command {
    Command::new("inspect")
        .about("Check a file and show what is in it; needs no agent")
        .arg(argument("FILE"))
        .arg(Format::flag())
        .after_help("  $ wharf snapshot inspect backup.snap")
}

fn file(matches: &ArgMatches) -> Result<PathBuf, Failure> {
    match matches.text("FILE") {
        Some(file) => Ok(PathBuf::from(file)),
        None => Err(Failure::new("Missing FILE argument")),
    }
}

async fn save(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let file = file(matches)?;
    // It would be replaced by a file: a device is not to be.
    if fs::metadata(&file).is_ok_and(|there| !there.is_file()) {
        return Err(
            Failure::new("Error creating snapshot file").because(format_args!(
                "{}: there is something that is no file: choose another name",
                file.display()
            )),
        );
    }
    let mut client = shell.client(matches)?;
    let request = Request::get("/v1/snapshot").within(PATIENCE);
    let body = client.stream(request).await;
    let mut body = body.map_err(|error| error.while_("Error saving snapshot"))?;
    let mut unverified = Unverified::create(&file)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new("Error saving snapshot: it broke off").because(chain(&error))
        })?;
        if let Ok(bytes) = frame.into_data() {
            let written = unverified.file.write_all(&bytes);
            written.map_err(|error| unverified.failed(error))?;
        }
    }
    let synced = unverified.file.sync_all();
    synced.map_err(|error| unverified.failed(error))?;
    let inspected = open(&unverified.path)
        .and_then(|file| read_archive(file).map_err(|error| unreadable(&error)))
        .map_err(|error| Failure::new("Error verifying snapshot file").because(error))?;
    unverified.keep(&file)?;
    shell.line(format_args!(
        "Saved and verified snapshot to index {}",
        inspected.meta.index
    ))
}

/// A file that goes unless it is kept.
struct Unverified {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Unverified {
    fn create(beside: &Path) -> Result<Unverified, Failure> {
        let mut path = beside.as_os_str().to_owned();
        path.push(".unverified");
        let path = PathBuf::from(path);
        // Of an earlier attempt, whose permissions may be others'.
        let _ = fs::remove_file(&path);
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match opened {
            Ok(file) => Ok(Unverified {
                path,
                file,
                kept: false,
            }),
            Err(error) => Err(Failure::new("Error creating snapshot file")
                .because(format_args!("{}: {error}", path.display()))),
        }
    }

    fn failed(&self, error: io::Error) -> Failure {
        Failure::new("Error writing snapshot file")
            .because(format_args!("{}: {error}", self.path.display()))
    }

    fn keep(&mut self, name: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, name).map_err(|error| self.failed(error))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Unverified {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed says by its name what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn unreadable(error: &SnapshotsError) -> String {
    chain(error)
}

async fn restore(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let path = file(matches)?;
    let file =
        open(&path).map_err(|error| Failure::new("Error opening snapshot file").because(error))?;
    let length = file.metadata().ok().filter(fs::Metadata::is_file);
    let length = length.map(|metadata| metadata.len());
    let mut client = shell.client(matches)?;
    let request = Request::put("/v1/snapshot").within(PATIENCE);
    let failed = "Error restoring snapshot".to_owned();
    upload::send(&mut client, request, failed, length, move |uploader| {
        io::copy(&mut &file, uploader).map(drop)
    })
    .await?;
    shell.line("Restored snapshot")
}

fn inspect(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let path = file(matches)?;
    let file =
        open(&path).map_err(|error| Failure::new("Error opening snapshot file").because(error))?;
    let inspected = read_archive(file)
        .map_err(|error| Failure::new("Error verifying snapshot").because(unreadable(&error)))?;
    if Format::of(matches) == Format::Json {
        let text = serde_json::to_vec(&shown(&inspected)).unwrap_or_default();
        return shell.json(&text);
    }
    let Inspected { meta, tables } = &inspected;
    shell.text(&pairs(
        &[
            ("ID", meta.id.clone()),
            ("Size", meta.size.to_string()),
            ("Index", meta.index.to_string()),
            ("Term", meta.term.to_string()),
            ("Version", meta.version.to_string()),
        ],
        6,
    ))?;
    let header = ["Type", "Count", "Size"].map(str::to_owned);
    let rows = tables.iter().map(|table| {
        [
            table.name.to_owned(),
            table.records.to_string(),
            size(table.bytes),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    shell.text("\n")?;
    shell.text(&columns(&rows))
}

fn shown(inspected: &Inspected) -> serde_json::Value {
    let Inspected { meta, tables } = inspected;
    let tables: Vec<_> = tables
        .iter()
        .map(|table| json!({"Name": table.name, "Count": table.records, "Sum": table.bytes}))
        .collect();
    json!({
        "Meta": {
            "ID": meta.id, "Size": meta.size, "Index": meta.index, "Term": meta.term,
            "Version": meta.version,
        },
        "Stats": tables,
    })
}
