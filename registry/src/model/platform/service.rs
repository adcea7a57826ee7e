use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use wharf_config::GoDuration;

use super::{Resources, names};
use crate::model::{Settings, Str, StrMap, Upstream, is_default, map_or_null};

/// What one sidecar reserves.
pub const SIDECAR_RESOURCES: Resources = Resources {
    cpu: 50,
    memory_mb: 32,
    memory_max_mb: 0,
};

/// A service that each instance of a group offers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobService {
    pub name: Str,
    pub port: PortRef,
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<Str>,
    #[serde(with = "map_or_null")]
    pub meta: StrMap,
    #[serde(alias = "Check", skip_serializing_if = "is_default")]
    pub checks: Vec<JobCheck>,
    #[serde(skip_serializing_if = "is_default")]
    pub connect: Option<JobConnect>,
}

impl JobService {
    pub fn sidecar(&self) -> Option<&JobSidecar> {
        self.connect.as_ref()?.sidecar_service.as_ref()
    }
}

/// A port of the group by its label, or by number: one that the task listens on in its own network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortRef {
    /// Not said: a service without a port, or a check of the service's own.
    #[default]
    None,
    Label(Str),
    Number(u16),
}

impl PortRef {
    /// What a service id carries of the port.
    pub fn label(&self) -> String {
        self.to_string()
    }

    pub fn is_none(&self) -> bool {
        *self == PortRef::None
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortRef::None => Ok(()),
            PortRef::Label(label) => f.write_str(label),
            PortRef::Number(number) => number.fmt(f),
        }
    }
}

impl Serialize for PortRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PortRef::Number(number) => serializer.serialize_u16(*number),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortRef, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = PortRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the label of a port, or a number from 1 to 65535")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRef, E> {
                Ok(match text.parse() {
                    _ if text.is_empty() => PortRef::None,
                    Ok(number) if number > 0 => PortRef::Number(number),
                    _ => PortRef::Label(text.into()),
                })
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortRef, E> {
                match u16::try_from(number) {
                    Ok(0) => Ok(PortRef::None),
                    Ok(port) => Ok(PortRef::Number(port)),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortRef, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A check of a service, relative to its address and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobCheck {
    /// Empty: one made from the service's name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: Str,
    #[serde(rename = "Type")]
    pub kind: JobCheckType,
    /// The port to check, if not the service's.
    #[serde(skip_serializing_if = "is_default")]
    pub port: PortRef,
    /// For `http`: what to ask for.
    #[serde(skip_serializing_if = "is_default")]
    pub path: Str,
    /// For `http`; empty: GET.
    #[serde(skip_serializing_if = "is_default")]
    pub method: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub header: BTreeMap<Str, Vec<Str>>,
    #[serde(skip_serializing_if = "is_default")]
    pub body: Str,
    /// For `grpc`: the service to ask about; empty: the server as a whole.
    #[serde(rename = "GRPCService", skip_serializing_if = "is_default")]
    pub grpc_service: Str,
    pub interval: GoDuration,
    pub timeout: GoDuration,
    #[serde(skip_serializing_if = "is_default")]
    pub success_before_passing: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_warning: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_critical: u32,
}

impl Default for JobCheck {
    fn default() -> Self {
        JobCheck {
            name: Str::default(),
            kind: JobCheckType::default(),
            port: PortRef::None,
            path: Str::default(),
            method: Str::default(),
            header: BTreeMap::new(),
            body: Str::default(),
            grpc_service: Str::default(),
            interval: GoDuration::from_secs(10),
            timeout: GoDuration::from_secs(2),
            success_before_passing: 0,
            failures_before_warning: None,
            failures_before_critical: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobCheckType {
    #[default]
    Http,
    Tcp,
    Grpc,
}

names!(JobCheckType { Http => "http", Tcp => "tcp", Grpc => "grpc" });

/// The mesh side of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobConnect {
    /// A proxy that runs beside the tasks, in their network.
    pub sidecar_service: Option<JobSidecar>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobSidecar {
    /// The port it takes connections of the mesh on. Empty: one that the node chooses.
    #[serde(skip_serializing_if = "is_default")]
    pub port: PortRef,
    #[serde(skip_serializing_if = "is_default")]
    pub proxy: JobProxy,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobProxy {
    /// Services that the tasks reach on a local port.
    #[serde(alias = "Upstream", skip_serializing_if = "is_default")]
    pub upstreams: Vec<Upstream>,
    /// Free-form settings, as in a registration.
    #[serde(skip_serializing_if = "is_default")]
    pub config: Settings,
}
