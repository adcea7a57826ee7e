//! `image build`: an image from files, the same every time.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command};
use wharf_launcher::image::{
    Build, BuildError, Built, ImageName, Source,
    document::{Empty, RunConfig},
};

use super::{client_command, digest_json, size, transfer};
use crate::{
    failure::{Failure, chain},
    flags::{Given, repeated, value},
    http::Request,
    output::Format,
    shell::Shell,
    upload,
};

pub(super) fn command() -> Command {
    client_command("build", "Build an image from files")
        .args([
            value("name", "name[:tag]", "What the image is called"),
            repeated(
                "file",
                "source[:place]",
                "A file or directory, and its absolute place in the image (default: its name below /); may be repeated",
            ),
            repeated("entrypoint", "word", "What is run: one word; may be repeated"),
            repeated("cmd", "word", "Arguments that a job may replace: one word; may be repeated"),
            repeated("env", "NAME=value", "A variable of the environment; may be repeated"),
            value("user", "user[:group]", "Who runs it, by number or by name in the image"),
            value("workdir", "directory", "Where it is run"),
            repeated("port", "port[/udp]", "A port it listens on; may be repeated"),
            value("stop-signal", "signal", "What asks it to end (default SIGTERM)"),
            repeated("label", "name=value", "A label; may be repeated"),
            value("arch", "amd64|arm64", "What it runs on (default: this machine)"),
            value("o", "file", "Write an OCI archive instead of asking an agent to keep the image"),
            Format::flag(),
        ])
        .long_about(
            "The image has one layer with the files, owned by root, readable by all, executable if\n\
             their owner may execute them. All times are that of SOURCE_DATE_EPOCH, else 1970. The same\n\
             files and flags give the same bytes and so the same digest.",
        )
        .after_help(
            "  $ wharf image build -name=web:1 -file=./server:/bin/server -entrypoint=/bin/server -port=8080
  $ wharf image build -file=./rootfs:/ -entrypoint=/bin/sh -o box.tar",
        )
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let build = read(matches, shell)?;
    let failed = "Error building the image";
    if let Some(path) = matches.text("o") {
        let built = to_file(&build, Path::new(path))
            .map_err(|error| Failure::new(failed).because(chain(&error)))?;
        if Format::of(matches) == Format::Json {
            return shell.object(&digest_json(&built.digest, built.size));
        }
        return shell.line(format_args!(
            "Built: {path}  {}  {}",
            built.digest,
            size(built.size)
        ));
    }
    if build.name.is_none() {
        return Err(
            Failure::new("Missing -name: the agent would not know what to call the image")
                .hint("-name=web:1, or -o=FILE to write an archive"),
        );
    }
    let request = Request::put("/v1/images/import").within(transfer::PATIENCE);
    let mut client = shell.client(matches)?;
    let answer = upload::send(
        &mut client,
        request,
        failed.to_owned(),
        None,
        move |uploader| {
            build
                .write(uploader)
                .map(drop)
                .map_err(|error| match error {
                    // The agent has given up and says why itself.
                    BuildError::Write(error) => error,
                    error => io::Error::other(error),
                })
        },
    );
    transfer::show("Built", &answer.await?, matches, shell)
}

/// Writes the archive under another name first: a half one is never taken for a whole one.
fn to_file(build: &Build, path: &Path) -> Result<Built, BuildError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(name);
    let write = || {
        let file = File::create(&part).map_err(BuildError::Write)?;
        let built = build.write(BufWriter::with_capacity(1 << 20, file))?;
        fs::rename(&part, path).map_err(BuildError::Write)?;
        Ok(built)
    };
    let built = write();
    if built.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&part);
    }
    built
}

fn read(matches: &ArgMatches, shell: &Shell<'_>) -> Result<Build, Failure> {
    let name = match matches.text("name") {
        None => None,
        Some(text) => {
            let name = ImageName::parse(text).map_err(|error| Failure::new(error.to_string()))?;
            if name.digest.is_some() {
                return Err(Failure::new(
                    "-name has a digest; it comes out of what is built",
                ));
            }
            Some(name)
        }
    };
    let files = matches.texts("file");
    let files: Vec<Source> = files.into_iter().map(source).collect::<Result<_, _>>()?;
    if files.is_empty() {
        return Err(Failure::new(
            "Missing -file: there is nothing to put into the image",
        ));
    }
    let words = |flag| matches.texts(flag).into_iter().map(str::to_owned).collect();
    let text = |flag| matches.text(flag).unwrap_or_default().to_owned();
    let labels = super::super::catalog::key_values("label", matches)?;
    let config = RunConfig {
        user: text("user"),
        exposed_ports: matches
            .texts("port")
            .into_iter()
            .map(|port| (port.to_owned(), Empty {}))
            .collect(),
        env: words("env"),
        entrypoint: words("entrypoint"),
        cmd: words("cmd"),
        working_dir: text("workdir"),
        stop_signal: text("stop-signal"),
        labels: labels
            .into_iter()
            .filter_map(|label| label.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    };
    let epoch = match (shell.env)("SOURCE_DATE_EPOCH") {
        None => 0,
        Some(text) => text.trim().parse().map_err(|_| {
            Failure::new(format!(
                "SOURCE_DATE_EPOCH is {text:?}, which is no number of seconds"
            ))
        })?,
    };
    Ok(Build {
        files,
        config,
        architecture: matches.text("arch").map(str::to_owned),
        name,
        epoch,
    })
}

/// `SOURCE`, or `SOURCE:PLACE` with an absolute place.
fn source(text: &str) -> Result<Source, Failure> {
    let (from, to) = match text.rsplit_once(':') {
        Some((from, to)) if to.starts_with('/') => (from, PathBuf::from(to)),
        _ => {
            let name = Path::new(text).file_name().ok_or_else(|| {
                Failure::new(format!("-file={text} has no name to put it under"))
                    .hint(format!("-file={text}:/PLACE"))
            })?;
            (text, Path::new("/").join(name))
        }
    };
    if from.is_empty() {
        return Err(Failure::new(format!("-file={text} has no source")));
    }
    Ok(Source {
        from: from.into(),
        to,
    })
}
