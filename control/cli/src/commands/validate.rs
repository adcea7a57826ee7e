//! `validate`: the configuration of an agent, checked without one.

use std::path::Path;

use clap::{ArgMatches, Command};
use wharf_agent::config::{self, AgentFlags};

use crate::{
    failure::Failure,
    flags::{Given, argument, switch, value},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("validate")
        .about("Check configuration files without starting anything")
        .arg(argument("FILE_OR_DIRECTORY").num_args(0..))
        .args([
            value("config-format", "hcl|json", "The format of the files, whatever their names"),
            switch("quiet", "Say nothing if all is well"),
        ])
        .long_about(
            "Reads the files as `agent` would, and reports every mistake with its file and line. The files must\n\
             be the whole configuration. Exit code 0 if it is valid, 1 if not.",
        )
        .after_help("  $ wharf validate /etc/wharf.d\n  $ wharf validate server.hcl services.json")
}

pub(super) fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let sources = matches.texts("FILE_OR_DIRECTORY");
    if sources.is_empty() {
        return Err(Failure::new(
            "Must specify at least one config file or directory",
        ));
    }
    let format = matches
        .text("config-format")
        .map(|format| ("config-format", format.to_owned()));
    let sources = sources.into_iter().map(|source| {
        let kind = if Path::new(source).is_dir() {
            "config-dir"
        } else {
            "config-file"
        };
        (kind, source.to_owned())
    });
    let flags = parse(format.into_iter().chain(sources).collect())?;
    let loaded = config::load(&flags)
        .map_err(|error| Failure::new(format!("Config validation failed: {error}")))?;
    if matches.on("quiet") {
        return Ok(());
    }
    let ignored = loaded.ignored_keys.iter().map(|ignored| {
        format!(
            "{}: {} has no effect: {}",
            ignored.position, ignored.key, ignored.reason
        )
    });
    for warning in loaded.warnings.into_iter().chain(ignored) {
        shell.note(warning);
    }
    shell.line("Configuration is valid!")
}

/// The flags of an agent, with every mistake in them.
pub(super) fn parse(given: Vec<(&str, String)>) -> Result<AgentFlags, Failure> {
    AgentFlags::parse(given).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::new(errors.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use crate::{persona::Persona, stub::run};

    #[test]
    fn files_are_validated_with_file_and_line() {
        let dir = tempfile::tempdir().expect("directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("UTF-8").to_owned()
        };
        let good = file(
            "good.hcl",
            "data_dir = \"/tmp/x\"\nbind_addr = \"127.0.0.1\"\n",
        );
        let bad = file(
            "bad.hcl",
            "data_dir = \"/tmp/x\"\nbind_adr = \"127.0.0.1\"\n",
        );
        let validate =
            |words: &[&str]| run(Persona::Wharf, &[&["validate"], words].concat(), b"", &[]);

        assert_eq!(validate(&[&good]).out, "Configuration is valid!\n");
        assert_eq!(validate(&["-quiet", &good]).out, "");
        let printed = validate(&[&bad]);
        assert_eq!(printed.code, 1);
        assert!(
            printed.err.starts_with("Config validation failed: "),
            "{}",
            printed.err
        );
        assert!(
            printed.err.contains("bad.hcl:2:1") && printed.err.contains("bind_addr"),
            "{}",
            printed.err
        );
        assert_eq!(validate(&[]).code, 1);
        assert_eq!(validate(&["/nonexistent"]).code, 1);
    }
}
