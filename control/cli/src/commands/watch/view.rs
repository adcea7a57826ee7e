//! What a watch looks at: its query, and what of the answer is the state.

use std::{fmt, time::Duration};

use bytes::Bytes;
use clap::ArgMatches;
use http::StatusCode;

use crate::{
    commands::kv::Pair,
    failure::Failure,
    flags::{Given, parse_bool},
    http::{Answer, HttpError, Request, key, segment},
};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    kind: Kind,
    filter: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Key(String),
    KeyPrefix(String),
    Services,
    Nodes,
    Service {
        name: String,
        tags: Vec<String>,
        passing_only: bool,
    },
    ChecksOfService(String),
    ChecksInState(String),
    AgentService(String),
}

/// The flags that say what to watch; each type takes some of them.
const PARAMETERS: [&str; 9] = [
    "key",
    "prefix",
    "service",
    "tag",
    "passingonly",
    "state",
    "service-id",
    "filter",
    "name",
];

impl View {
    pub(super) fn from_flags(matches: &ArgMatches) -> Result<Self, Failure> {
        let Some(kind) = matches.text("type") else {
            return Err(Failure::new("Watch type must be specified").hint("wharf watch -help"));
        };
        let needs = |flag: &str, what: &str| {
            let value = matches.text(flag).map(str::to_owned);
            value.ok_or_else(|| Failure::new(format!("Must specify a single {what} to watch")))
        };
        let (kind, allowed): (Kind, &[&str]) = match kind {
            "key" => (Kind::Key(needs("key", "key")?), &["key"]),
            "keyprefix" => (Kind::KeyPrefix(needs("prefix", "prefix")?), &["prefix"]),
            "services" => (Kind::Services, &["filter"]),
            "nodes" => (Kind::Nodes, &["filter"]),
            "service" => {
                let service = Kind::Service {
                    name: needs("service", "service")?,
                    tags: matches
                        .texts("tag")
                        .into_iter()
                        .map(str::to_owned)
                        .collect(),
                    passing_only: passing_only(matches)?,
                };
                (service, &["service", "tag", "passingonly", "filter"])
            }
            "checks" => match (matches.text("service"), matches.text("state")) {
                (Some(_), Some(_)) => return Err(Failure::new("Cannot specify service and state")),
                (Some(service), None) => (
                    Kind::ChecksOfService(service.to_owned()),
                    &["service", "filter"],
                ),
                (None, state) => (
                    Kind::ChecksInState(state.unwrap_or("any").to_owned()),
                    &["state", "filter"],
                ),
            },
            "agent_service" => (
                Kind::AgentService(needs("service-id", "service instance (-service-id)")?),
                &["service-id"],
            ),
            "event" | "connect_roots" | "connect_leaf" => {
                return Err(Failure::new(format!(
                    "the watch type {kind:?} is not built yet"
                )));
            }
            _ => return Err(Failure::new(format!("Unsupported watch type: {kind}"))),
        };
        let stray: Vec<&str> = PARAMETERS
            .into_iter()
            .filter(|flag| !allowed.contains(flag) && !matches.texts(flag).is_empty())
            .collect();
        if !stray.is_empty() {
            return Err(Failure::new(format!(
                "Invalid parameters: [{}]",
                stray.join(" ")
            )));
        }
        Ok(Self {
            kind,
            filter: matches.text("filter").map(str::to_owned),
        })
    }

    /// The query that answers when the state is past `index`, or differs from what has `hash`.
    pub(super) fn request(&self, index: u64, hash: &str, wait: Duration) -> Request {
        let request = match &self.kind {
            Kind::Key(name) => Request::get(format!("/v1/kv/{}", key(name))),
            Kind::KeyPrefix(prefix) => {
                Request::get(format!("/v1/kv/{}", key(prefix))).mark("recurse")
            }
            Kind::Services => Request::get("/v1/catalog/services"),
            Kind::Nodes => Request::get("/v1/catalog/nodes"),
            Kind::Service {
                name,
                tags,
                passing_only,
            } => {
                let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                let request = Request::get(format!("/v1/health/service/{}", segment(name)))
                    .each("tag", &tags);
                if *passing_only {
                    request.mark("passing")
                } else {
                    request
                }
            }
            Kind::ChecksOfService(name) => {
                Request::get(format!("/v1/health/checks/{}", segment(name)))
            }
            Kind::ChecksInState(state) => {
                Request::get(format!("/v1/health/state/{}", segment(state)))
            }
            Kind::AgentService(id) => Request::get(format!("/v1/agent/service/{}", segment(id))),
        };
        let request = request.maybe("filter", self.filter.as_deref());
        match &self.kind {
            Kind::AgentService(_) if hash.is_empty() => request,
            Kind::AgentService(_) => request.param("hash", hash).waiting(wait),
            _ if index == 0 => request,
            _ => request.param("index", index.to_string()).waiting(wait),
        }
    }

    /// The JSON that is passed on. A key that does not exist is `null`, an empty prefix `[]`.
    pub(super) fn state(&self, answer: Answer) -> Result<Bytes, HttpError> {
        let absent = answer.status == StatusCode::NOT_FOUND && answer.body.is_empty();
        match &self.kind {
            Kind::Key(_) if absent => Ok(Bytes::from_static(b"null")),
            Kind::KeyPrefix(_) if absent => Ok(Bytes::from_static(b"[]")),
            Kind::Key(_) => {
                let pairs: Vec<Pair> = answer.ok()?.json()?;
                Ok(serde_json::to_vec(&pairs.first())?.into())
            }
            Kind::KeyPrefix(_) => {
                let pairs: Vec<Pair> = answer.ok()?.json()?;
                Ok(serde_json::to_vec(&pairs)?.into())
            }
            _ => Ok(answer.ok()?.body),
        }
    }
}

fn passing_only(matches: &ArgMatches) -> Result<bool, Failure> {
    let Some(text) = matches.text("passingonly") else {
        return Ok(false);
    };
    parse_bool(text)
        .map_err(|why| Failure::new(format!("Failed to parse -passingonly: {text:?}")).because(why))
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Key(name) => write!(f, "key {name:?}"),
            Kind::KeyPrefix(prefix) => write!(f, "keys below {prefix:?}"),
            Kind::Services => f.write_str("services"),
            Kind::Nodes => f.write_str("nodes"),
            Kind::Service { name, .. } => write!(f, "service {name:?}"),
            Kind::ChecksOfService(name) => write!(f, "checks of service {name:?}"),
            Kind::ChecksInState(state) => write!(f, "checks in state {state:?}"),
            Kind::AgentService(id) => write!(f, "service instance {id:?}"),
        }
    }
}
