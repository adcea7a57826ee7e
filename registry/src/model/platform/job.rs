use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::{TaskGroup, UnixNanos, names};
use crate::model::{Str, StrMap, is_default, map_or_null};

/// What is to run, as its user wrote it, and what the state machine keeps beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Job {
    /// The same as the name.
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: Str,
    pub name: Str,
    #[serde(rename = "Type")]
    pub kind: JobType,
    #[serde(with = "map_or_null")]
    pub meta: StrMap,
    #[serde(alias = "Group")]
    pub groups: Vec<Arc<TaskGroup>>,

    // What follows is the state machine's: it is ignored in what a user sends.
    /// 0 at first, and one more with each changed specification.
    pub version: u64,
    /// The user stopped the job: nothing of it is to run.
    pub stop: bool,
    /// When this version, or the same again, was registered.
    pub submit_time: UnixNanos,
    pub create_index: u64,
    /// When anything of this record last changed.
    pub modify_index: u64,
    /// When the specification, or `Stop`, last changed: what a check-and-set compares.
    pub job_modify_index: u64,
}

/// How the instances of a job live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// Instances run until they are stopped.
    #[default]
    Service,
}

names!(JobType { Service => "service" });

/// Types that Nomad has and wharf does not have yet.
const LATER: [&str; 3] = ["batch", "system", "sysbatch"];

impl<'de> Deserialize<'de> for JobType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JobType, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        match &*text {
            "" | "service" => Ok(JobType::Service),
            later if LATER.contains(&later) => Err(serde::de::Error::custom(format_args!(
                "jobs of type {later:?} are not built yet: only \"service\" is"
            ))),
            other => Err(serde::de::Error::custom(format_args!(
                "unknown job type {other:?}: it must be \"service\""
            ))),
        }
    }
}

impl Job {
    pub fn group(&self, name: &str) -> Option<&Arc<TaskGroup>> {
        self.groups.iter().find(|group| &*group.name == name)
    }

    /// Whether `other` asks for the same, whatever the state machine keeps beside it.
    pub fn is_same_spec(&self, other: &Job) -> bool {
        self.name == other.name
            && self.kind == other.kind
            && self.meta == other.meta
            && self.groups == other.groups
    }
}
