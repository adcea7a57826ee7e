//! Configuration entries as users write them: strictly read, completed and checked.

use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};
use wharf_config::{
    DecodeError, DecodeErrorKind, Mode, Node, decode, decode_all, parse_json_bytes,
};
use wharf_registry::model::{
    ConfigEntry, ConfigEntryKind, ProxyDefaults, ServiceDefaults, UnknownKind,
};

/// Why an entry is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigEntryError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    UnknownKeys(UnknownKeys),
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    #[error("Payload does not contain a kind/Kind key at the top level")]
    KindMissing,
    #[error("Must provide a Name for the {0} entry")]
    NameMissing(ConfigEntryKind),
    #[error("invalid name ({0:?}), only \"global\" is supported")]
    NotGlobal(String),
    #[error("invalid Protocol {0:?}: must be one of tcp, http, http2 and grpc")]
    Protocol(String),
}

/// Keys that nothing has a use for, at least one. Displayed as Consul lists them, which clients look into, each with
/// its place in the file and the key that may have been meant.
#[derive(Debug, Clone, PartialEq)]
pub struct UnknownKeys(Vec<DecodeError>);

impl UnknownKeys {
    pub fn iter(&self) -> impl Iterator<Item = &DecodeError> {
        self.0.iter()
    }
}

impl fmt::Display for UnknownKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        writeln!(f, "{} error{plural} occurred:", self.0.len())?;
        for error in &self.0 {
            write!(f, "\t* invalid config key {:?}", error.path())?;
            let place = error.position().map(ToString::to_string);
            let meant = match error.kind() {
                DecodeErrorKind::UnknownKey {
                    nearest: Some(nearest),
                } => Some(format!("did you mean {nearest:?}?")),
                _ => None,
            };
            match (place, meant) {
                (None, None) => writeln!(f)?,
                (Some(one), None) | (None, Some(one)) => writeln!(f, " ({one})")?,
                (Some(place), Some(meant)) => writeln!(f, " ({place}: {meant})")?,
            }
        }
        writeln!(f)
    }
}

impl std::error::Error for UnknownKeys {}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct KindOnly {
    kind: String,
}

/// Reads the JSON body of a request.
pub fn decode_json(body: &[u8]) -> Result<ConfigEntry, ConfigEntryError> {
    decode_node(&parse_json_bytes(body)?)
}

/// Reads an entry of a file.
pub fn decode_node(node: &Node) -> Result<ConfigEntry, ConfigEntryError> {
    let KindOnly { kind } = decode(node, Mode::Lenient)?;
    match kind_of(&kind)? {
        ConfigEntryKind::ServiceDefaults => service_defaults(strict(node)?),
        ConfigEntryKind::ProxyDefaults => proxy_defaults(strict(node)?),
    }
}

/// All unknown keys, or the first mistake of another kind.
fn strict<T: DeserializeOwned>(node: &Node) -> Result<T, ConfigEntryError> {
    let is_unknown =
        |error: &DecodeError| matches!(error.kind(), DecodeErrorKind::UnknownKey { .. });
    decode_all(node, Mode::Strict).map_err(|mut errors| {
        match errors.iter().position(|error| !is_unknown(error)) {
            Some(other) => ConfigEntryError::Decode(errors.swap_remove(other)),
            None => ConfigEntryError::UnknownKeys(UnknownKeys(errors)),
        }
    })
}

fn kind_of(kind: &str) -> Result<ConfigEntryKind, ConfigEntryError> {
    if kind.is_empty() {
        Err(ConfigEntryError::KindMissing)
    } else {
        Ok(kind.parse()?)
    }
}

fn service_defaults(mut entry: ServiceDefaults) -> Result<ConfigEntry, ConfigEntryError> {
    if entry.name.is_empty() {
        return Err(ConfigEntryError::NameMissing(
            ConfigEntryKind::ServiceDefaults,
        ));
    }
    if !matches!(
        &*entry.protocol.to_ascii_lowercase(),
        "" | "tcp" | "http" | "http2" | "grpc"
    ) {
        return Err(ConfigEntryError::Protocol(entry.protocol.to_string()));
    }
    entry.protocol = entry.protocol.to_ascii_lowercase().into();
    Ok(ConfigEntry::ServiceDefaults(Box::new(entry)))
}

fn proxy_defaults(entry: ProxyDefaults) -> Result<ConfigEntry, ConfigEntryError> {
    match &*entry.name {
        "" => Err(ConfigEntryError::NameMissing(
            ConfigEntryKind::ProxyDefaults,
        )),
        "global" => Ok(ConfigEntry::ProxyDefaults(Box::new(entry))),
        other => Err(ConfigEntryError::NotGlobal(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        decode_json(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn entries_are_read_strictly_and_completed() {
        let body = br#"{"kind":"service-defaults","name":"web","protocol":"HTTP",
            "UpstreamConfig":{"Defaults":{"ConnectTimeoutMs":250}}}"#;
        let ConfigEntry::ServiceDefaults(entry) = decode_json(body).unwrap() else {
            panic!()
        };
        assert_eq!((&*entry.name, &*entry.protocol), ("web", "http"));
        let defaults = entry.upstream_config.unwrap().defaults.unwrap();
        assert_eq!(defaults.connect_timeout_ms, 250);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(refused(r#"{"Name":"x"}"#).contains("does not contain a kind"));
        assert!(refused(r#"{"Kind":"nope"}"#).contains("invalid config entry kind: nope"));
        assert!(refused(r#"{"Kind":"service-router","Name":"x"}"#).contains("not built yet"));
        assert!(refused(r#"{"Kind":"service-defaults"}"#).contains("Must provide a Name"));
        assert!(refused(r#"{"Kind":"proxy-defaults","Name":"web"}"#).contains("\"global\""));
        let bad = refused(r#"{"Kind":"service-defaults","Name":"x","Protocol":"udp"}"#);
        assert!(bad.contains("must be one of"));
    }

    /// The form is that of Consul 1.8.7, measured: `1 error occurred:\n\t* invalid config key "Protcol"\n\n`.
    #[test]
    fn unknown_keys_are_listed_as_consul_does() {
        assert_eq!(
            refused(r#"{"Kind":"service-defaults","Name":"x","Protcol":"http"}"#),
            "1 error occurred:\n\t* invalid config key \"Protcol\" (did you mean \"Protocol\"?)\n\n"
        );
        assert_eq!(
            refused(
                r#"{"Kind":"service-defaults","Name":"x","Qqqqqq":{"Bar":1},"MeshGateway":{"Qqqqqq":1}}"#
            ),
            "2 errors occurred:\n\t* invalid config key \"Qqqqqq\"\n\t* invalid config key \"MeshGateway.Qqqqqq\"\n\n"
        );
        let file = wharf_config::parse_hcl(
            "web.hcl",
            "Kind = \"service-defaults\"\nName = \"web\"\nProtcol = \"http\"",
        );
        assert_eq!(
            decode_node(&file.unwrap()).unwrap_err().to_string(),
            "1 error occurred:\n\t* invalid config key \"Protcol\" (web.hcl:3:1: did you mean \"Protocol\"?)\n\n"
        );
    }
}
