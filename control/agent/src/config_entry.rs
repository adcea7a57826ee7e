//! Configuration entries as users write them: strictly read, completed and checked.

use serde::Deserialize;
use wharf_config::{DecodeError, Mode, Node, decode, decode_json_bytes};
use wharf_registry::model::{
    ConfigEntry, ConfigEntryKind, ProxyDefaults, ServiceDefaults, UnknownKind,
};

/// Why an entry is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigEntryError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct KindOnly {
    kind: String,
}

/// Reads the JSON body of a request.
pub fn decode_json(body: &[u8]) -> Result<ConfigEntry, ConfigEntryError> {
    let KindOnly { kind } = decode_json_bytes(body, Mode::Lenient)?;
    match kind_of(&kind)? {
        ConfigEntryKind::ServiceDefaults => {
            service_defaults(decode_json_bytes(body, Mode::Strict)?)
        }
        ConfigEntryKind::ProxyDefaults => proxy_defaults(decode_json_bytes(body, Mode::Strict)?),
    }
}

/// Reads an entry of a file.
pub fn decode_node(node: &Node) -> Result<ConfigEntry, ConfigEntryError> {
    let KindOnly { kind } = decode(node, Mode::Lenient)?;
    match kind_of(&kind)? {
        ConfigEntryKind::ServiceDefaults => service_defaults(decode(node, Mode::Strict)?),
        ConfigEntryKind::ProxyDefaults => proxy_defaults(decode(node, Mode::Strict)?),
    }
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
        let unknown = refused(r#"{"Kind":"service-defaults","Name":"x","Protcol":"http"}"#);
        assert!(
            unknown.contains("Protcol") && unknown.contains("did you mean"),
            "{unknown}"
        );
        let bad = refused(r#"{"Kind":"service-defaults","Name":"x","Protocol":"udp"}"#);
        assert!(bad.contains("must be one of"));
    }
}
