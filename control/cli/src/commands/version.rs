//! `version`, and the other command that needs no agent: `keygen`.

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{ArgMatches, Command};
use serde::Serialize;
use wharf_agent::context::{CONSUL_VERSION, VERSION};

use crate::{failure::Failure, output::Format, persona::Persona, shell::Shell};

/// The version of the protocol between Consul's agents that such an agent would speak.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Protocol {
    default: u8,
    min: u8,
    max: u8,
}

const PROTOCOL: Protocol = Protocol {
    default: 2,
    min: 2,
    max: 3,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    consul_version: Option<&'static str>,
    revision: &'static str,
    prerelease: &'static str,
    #[serde(rename = "RPC")]
    protocol: Protocol,
}

pub(super) fn command() -> Command {
    Command::new("version")
        .about("Print the version")
        .arg(Format::flag())
        .after_help("  $ wharf version\n  $ wharf version -format=json")
}

pub(super) fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    if Format::of(matches) == Format::Table {
        return print(shell);
    }
    let (version, consul_version) = match shell.persona {
        Persona::Consul => (CONSUL_VERSION, None),
        Persona::Wharf => (VERSION, Some(CONSUL_VERSION)),
    };
    shell.object(&Version {
        version,
        consul_version,
        revision: "",
        prerelease: "",
        protocol: PROTOCOL,
    })
}

/// The text form, also of `-version`.
pub(crate) fn print(shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Protocol { default, min, max } = PROTOCOL;
    match shell.persona {
        Persona::Consul => shell.line(format_args!(
            "Consul v{CONSUL_VERSION}\nProtocol {default} spoken by default, understands {min} to {max} \
             (agent will automatically use protocol >{default} when speaking to compatible agents)\n"
        )),
        Persona::Wharf => shell.line(format_args!(
            "wharf v{VERSION}\nAnswers the API of Consul v{CONSUL_VERSION}"
        )),
    }
}

pub(super) fn keygen_command() -> Command {
    Command::new("keygen")
        .about("Print a new random key of 32 bytes, as base64")
        .after_help("  $ wharf keygen")
}

pub(super) fn keygen(shell: &mut Shell<'_>) -> Result<(), Failure> {
    let key: [u8; 32] = rand::random();
    shell.line(STANDARD.encode(key))
}
