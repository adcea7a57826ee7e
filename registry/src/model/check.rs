use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Settings, Str};

/// The result of a check. The order is from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckStatus {
    Passing,
    Warning,
    /// Also what is assumed of a check that has not run yet.
    #[default]
    Critical,
}

/// A status that Consul does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid check status: '{0}'")]
pub struct UnknownStatus(pub String);

impl CheckStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            CheckStatus::Passing => "passing",
            CheckStatus::Warning => "warning",
            CheckStatus::Critical => "critical",
        }
    }
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        match text {
            "passing" => Ok(CheckStatus::Passing),
            "warning" => Ok(CheckStatus::Warning),
            "critical" => Ok(CheckStatus::Critical),
            other => Err(UnknownStatus(other.to_owned())),
        }
    }
}

impl Serialize for CheckStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An absent or empty status means critical, as in Consul.
impl<'de> Deserialize<'de> for CheckStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(CheckStatus::Critical);
        }
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A check and its latest result, of a node or of one instance on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthCheck {
    pub node: Str,
    /// Unique on the node.
    #[serde(rename = "CheckID")]
    pub id: Str,
    pub name: Str,
    pub status: CheckStatus,
    pub notes: Str,
    pub output: Str,
    /// Empty: the check speaks for the whole node.
    #[serde(rename = "ServiceID")]
    pub service_id: Str,
    pub service_name: Str,
    /// The tags of the instance when the check was registered.
    pub service_tags: Arc<[Str]>,
    /// `http`, `tcp`, `ttl`, `maintenance` and so on; empty when the registrant did not say.
    #[serde(rename = "Type")]
    pub kind: Str,
    pub interval: Str,
    pub timeout: Str,
    pub exposed_port: u16,
    pub definition: CheckDefinition,
    pub create_index: u64,
    pub modify_index: u64,
}

impl HealthCheck {
    /// Whether `other` says the same, indexes aside.
    pub fn is_same(&self, other: &HealthCheck) -> bool {
        self.node == other.node
            && self.id == other.id
            && self.name == other.name
            && self.status == other.status
            && self.notes == other.notes
            && self.output == other.output
            && self.service_id == other.service_id
            && self.service_name == other.service_name
            && self.service_tags == other.service_tags
            && self.kind == other.kind
            && self.interval == other.interval
            && self.timeout == other.timeout
            && self.exposed_port == other.exposed_port
            && self.definition == other.definition
    }
}

/// What an external monitor needs to run a check. Durations are Go duration strings.
///
/// Absent for most checks, and then one pointer wide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckDefinition(Option<Arc<Settings>>);

impl CheckDefinition {
    /// Keeps the fields that are set, by the names the API gives them.
    pub fn from_fields(fields: Settings) -> Self {
        if fields.is_empty() {
            CheckDefinition(None)
        } else {
            CheckDefinition(Some(Arc::new(fields)))
        }
    }

    pub fn fields(&self) -> impl Iterator<Item = (&Str, &serde_json::Value)> {
        self.0.iter().flat_map(|inner| inner.iter())
    }
}

impl Serialize for CheckDefinition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.fields())
    }
}

impl<'de> Deserialize<'de> for CheckDefinition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Option::<Settings>::deserialize(deserializer)?;
        Ok(Self::from_fields(fields.unwrap_or_default()))
    }
}
