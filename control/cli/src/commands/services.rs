//! `services`: register and remove instances on the agent.

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use serde::Serialize;
use wharf_agent::definition::ServiceDefinition;
use wharf_config::{Mode, Node, Value, decode};

use super::{GroupHelp, catalog::key_values, client_command};
use crate::{
    document,
    failure::Failure,
    flags::{Given, argument, repeated, value},
    http::{Client, Request, segment},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("services")
        .about("Register services with the agent, and remove them")
        .group_help(
            "  $ wharf services register web.hcl
  $ wharf services register -name=web -port=8080 -tag=v1
  $ wharf services deregister -id=web",
        )
        .subcommands([register_command(), deregister_command()])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "register" => register(matches, shell).await,
        _ => deregister(matches, shell).await,
    }
}

fn register_command() -> Command {
    client_command("register", "Register services, from files or from flags")
        .arg(argument("FILE").num_args(0..))
        .args([
            value("name", "name", "Name of the service"),
            value("id", "id", "Id of the instance (default: the name)"),
            value("address", "address", "Address of the instance (default: the node's)"),
            value("port", "port", "Port of the instance").value_parser(clap::value_parser!(u16)),
            repeated("tag", "tag", "A tag; may be repeated"),
            repeated("meta", "key=value", "Metadata; may be repeated"),
            repeated("tagged-address", "name=host:port", "An address under a name; may be repeated"),
            value("kind", "kind", "Kind of the service, such as connect-proxy"),
        ])
        .long_about(
            "Files are HCL or JSON with `service` and `services` as in the agent's configuration. A service of\n\
             the same id is replaced. Checks can only be given in files.",
        )
        .after_help(
            "  $ wharf services register web.hcl db.json
  $ wharf services register -name=web -port=8080 -tag=v1 -meta=team=shop",
        )
}

/// A service given by flags, as the API takes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Service<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<&'a str>,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<&'a str, ServiceAddress<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<&'a str, &'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceAddress<'a> {
    address: &'a str,
    port: u16,
}

async fn register(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let files = matches.texts("FILE");
    let name = matches.text("name");
    let mut client = match (files.as_slice(), name) {
        ([], None) => {
            return Err(Failure::new(
                "Service registration requires at least one argument or flags.",
            ));
        }
        ([_, ..], Some(_)) => {
            return Err(Failure::new(
                "Service registration requires arguments or -id, not both.",
            ));
        }
        _ => shell.client(matches)?,
    };
    let Some(name) = name else {
        let mut definitions = Vec::new();
        for file in files {
            definitions.extend(Definition::read(file, shell)?);
        }
        for definition in definitions {
            send(&mut client, &definition.name, &definition.body).await?;
            shell.line(format_args!("Registered service: {}", definition.name))?;
        }
        return Ok(());
    };
    let service = Service {
        kind: matches.text("kind"),
        id: matches.text("id"),
        name,
        tags: matches.texts("tag"),
        port: matches.get_one("port").copied().unwrap_or(0),
        address: matches.text("address"),
        tagged_addresses: tagged_addresses(matches)?,
        meta: key_values("meta", matches)?
            .into_iter()
            .filter_map(|pair| pair.split_once('='))
            .collect(),
    };
    send(&mut client, name, &service).await?;
    shell.line(format_args!("Registered service: {name}"))
}

async fn send(client: &mut Client, name: &str, body: &impl Serialize) -> Result<(), Failure> {
    let result = async {
        let request = Request::put("/v1/agent/service/register").json(body)?;
        client.fetch(request).await
    };
    let registered = result.await.map(|_| ());
    registered.map_err(|error| error.while_(format!("Error registering service {name:?}")))
}

fn tagged_addresses(matches: &ArgMatches) -> Result<BTreeMap<&str, ServiceAddress<'_>>, Failure> {
    let mut addresses = BTreeMap::new();
    for pair in key_values("tagged-address", matches)? {
        let Some((tag, address)) = pair.split_once('=') else {
            continue;
        };
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        let Ok(port) = port.parse() else {
            return Err(
                Failure::new(format!("invalid value {pair:?} for flag -tagged-address"))
                    .because("what follows the last colon is not a port"),
            );
        };
        addresses.insert(
            tag,
            ServiceAddress {
                address: host.trim_start_matches('[').trim_end_matches(']'),
                port,
            },
        );
    }
    Ok(addresses)
}

/// A service as a file defines it.
struct Definition {
    id: String,
    name: String,
    body: serde_json::Value,
}

impl Definition {
    /// The definitions in a file, under `service` and `services`, each one or a list.
    fn read(file: &str, shell: &mut Shell<'_>) -> Result<Vec<Self>, Failure> {
        let document = document::read(file, shell)?;
        let mut definitions = Vec::new();
        for key in ["service", "services"] {
            match document.get(key).map(|node| (node, &node.value)) {
                None => {}
                Some((_, Value::List(services))) => {
                    for service in services {
                        definitions.push(Self::of(service)?);
                    }
                }
                Some((service, _)) => definitions.push(Self::of(service)?),
            }
        }
        if definitions.is_empty() {
            return Err(Failure::new(format!("{file} defines no service"))
                .hint("service {\n  name = \"web\"\n  port = 8080\n}"));
        }
        Ok(definitions)
    }

    fn of(service: &Node) -> Result<Self, Failure> {
        decode::<ServiceDefinition>(service, Mode::Strict)
            .map_err(|error| Failure::new(error.to_string()))?;
        let text = |key| {
            service
                .get(key)
                .and_then(Node::as_str)
                .filter(|text| !text.is_empty())
        };
        let Some(name) = text("name") else {
            return Err(Failure::new(format!(
                "{}: a service needs a name",
                service.position
            )));
        };
        Ok(Self {
            id: text("id").unwrap_or(name).to_owned(),
            name: name.to_owned(),
            body: service.to_json(),
        })
    }
}

fn deregister_command() -> Command {
    client_command("deregister", "Remove services from the agent")
        .arg(argument("FILE").num_args(0..))
        .arg(value("id", "id", "Id of the instance to remove"))
        .after_help(
            "  $ wharf services deregister -id=web
  $ wharf services deregister web.hcl db.json",
        )
}

async fn deregister(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let files = matches.texts("FILE");
    let ids: Vec<String> = match (files.as_slice(), matches.text("id")) {
        ([], None) => {
            return Err(Failure::new(
                "Service deregistration requires at least one argument or -id.",
            ));
        }
        ([_, ..], Some(_)) => {
            return Err(Failure::new(
                "Service deregistration requires arguments or -id, not both.",
            ));
        }
        ([], Some(id)) => vec![id.to_owned()],
        (files, None) => {
            let mut ids = Vec::new();
            for file in files {
                ids.extend(
                    Definition::read(file, shell)?
                        .into_iter()
                        .map(|definition| definition.id),
                );
            }
            ids
        }
    };
    let mut client = shell.client(matches)?;
    for id in ids {
        client
            .fetch(Request::put(format!(
                "/v1/agent/service/deregister/{}",
                segment(&id)
            )))
            .await
            .map_err(|error| error.while_(format!("Error deregistering service {id:?}")))?;
        shell.line(format_args!("Deregistered service: {id}"))?;
    }
    Ok(())
}
