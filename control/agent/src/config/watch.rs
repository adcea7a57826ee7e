//! Watches: what an agent runs when something changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;

use super::Secret;

/// One entry of `watches`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchDefinition {
    #[serde(rename = "type")]
    pub kind: String,
    pub datacenter: String,
    pub token: Secret,
    pub stale: bool,
    /// `script` (also when empty) or `http`.
    pub handler_type: String,
    /// The program to run and its arguments; the new state is its standard input.
    pub args: Vec<String>,
    /// A command line for the shell. Deprecated in favour of `args`.
    pub handler: String,
    pub http_handler_config: Option<HttpHandler>,
    pub key: String,
    pub prefix: String,
    pub service: String,
    pub service_id: String,
    pub tag: Vec<String>,
    #[serde(rename = "passingonly")]
    pub passing_only: bool,
    pub state: String,
    pub name: String,
    pub filter: String,
}

/// A request to make when something changes; the new state is its body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpHandler {
    pub path: String,
    pub method: String,
    pub timeout: GoDuration,
    pub header: BTreeMap<String, Vec<String>>,
    pub tls_skip_verify: bool,
}

/// Why a watch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("Watch type not specified")]
    NoType,
    #[error("Unsupported watch type: {0}")]
    UnknownType(String),
    #[error("Must specify a single {parameter} to watch")]
    Missing { parameter: &'static str },
    #[error("Only one watch handler allowed")]
    TwoHandlers,
    #[error("Must define a watch handler")]
    NoHandler,
    #[error("Handler type '{0}' not recognized")]
    HandlerType(String),
    #[error("Missing required 'path' parameter to http handler")]
    NoPath,
}

impl WatchDefinition {
    pub fn validate(&self) -> Result<(), WatchError> {
        let required = match self.kind.as_str() {
            "" => return Err(WatchError::NoType),
            "key" => Some(("key", &self.key)),
            "keyprefix" => Some(("prefix", &self.prefix)),
            "service" | "connect_leaf" => Some(("service", &self.service)),
            "agent_service" => Some(("service_id", &self.service_id)),
            "services" | "nodes" | "checks" | "event" | "connect_roots" => None,
            other => return Err(WatchError::UnknownType(other.to_owned())),
        };
        if let Some((parameter, value)) = required
            && value.is_empty()
        {
            return Err(WatchError::Missing { parameter });
        }
        match (
            self.handler_type.as_str(),
            !self.args.is_empty(),
            !self.handler.is_empty(),
        ) {
            (_, true, true) => Err(WatchError::TwoHandlers),
            ("" | "script", false, false) => Err(WatchError::NoHandler),
            ("" | "script", _, _) => Ok(()),
            ("http", _, _) => match &self.http_handler_config {
                Some(config) if !config.path.is_empty() => Ok(()),
                _ => Err(WatchError::NoPath),
            },
            (other, _, _) => Err(WatchError::HandlerType(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_needs_a_subject_and_a_handler() {
        let watch = |kind: &str| WatchDefinition {
            kind: kind.into(),
            args: vec!["/bin/true".into()],
            ..WatchDefinition::default()
        };
        assert_eq!(watch("").validate(), Err(WatchError::NoType));
        assert_eq!(
            watch("nope").validate(),
            Err(WatchError::UnknownType("nope".into()))
        );
        assert_eq!(
            watch("key").validate(),
            Err(WatchError::Missing { parameter: "key" })
        );
        assert_eq!(watch("services").validate(), Ok(()));
        let no_handler = WatchDefinition {
            args: Vec::new(),
            ..watch("nodes")
        };
        assert_eq!(no_handler.validate(), Err(WatchError::NoHandler));
        let http = WatchDefinition {
            handler_type: "http".into(),
            ..watch("nodes")
        };
        assert_eq!(http.validate(), Err(WatchError::NoPath));
    }
}
