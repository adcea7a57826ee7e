use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;

use super::{Resources, names};
use crate::model::{Str, StrMap, is_default, map_or_null};

/// One process, with what it may use.
///
/// `${WHARF_...}` expands in `Command`, `Args` and the values of `Env`; see the launcher for the names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Task {
    /// Unique in the group.
    pub name: Str,
    pub driver: Driver,
    /// What a container is made of: a reference to an image.
    #[serde(skip_serializing_if = "is_default")]
    pub image: Str,
    /// The image's digest (`sha256:...`), found when the job is registered: what runs, even if the tag
    /// moves.
    #[serde(skip_serializing_if = "is_default")]
    pub image_digest: Str,
    /// The program; empty for a container: what the image says.
    #[serde(skip_serializing_if = "is_default")]
    pub command: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<Str>,
    #[serde(with = "map_or_null")]
    pub env: StrMap,
    /// A name, or numbers as `uid` or `uid:gid`; empty: what the image says, or nobody for `exec`.
    #[serde(skip_serializing_if = "is_default")]
    pub user: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub work_dir: Str,
    pub resources: Resources,
    /// What a stop sends first; empty: what the image says, or SIGTERM.
    #[serde(skip_serializing_if = "is_default")]
    pub kill_signal: Str,
    /// How long the task may take to end after that, before it is killed.
    pub kill_timeout: GoDuration,
    pub readonly_rootfs: bool,
    pub logs: Logs,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The root is an image.
    #[default]
    Container,
    /// The root is the node's own, read-only.
    Exec,
}

names!(Driver { Container => "container", Exec => "exec" });

/// How much of a task's output is kept, of each of its two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Logs {
    pub max_files: u32,
    #[serde(rename = "MaxFileSizeMB", alias = "MaxFileSize")]
    pub max_file_size_mb: u64,
}

impl Default for Logs {
    /// Nomad's.
    fn default() -> Self {
        Logs {
            max_files: 10,
            max_file_size_mb: 10,
        }
    }
}

impl Default for Task {
    fn default() -> Self {
        Task {
            name: Str::default(),
            driver: Driver::default(),
            image: Str::default(),
            image_digest: Str::default(),
            command: Str::default(),
            args: Vec::new(),
            env: StrMap::new(),
            user: Str::default(),
            work_dir: Str::default(),
            resources: Resources::default(),
            kill_signal: Str::default(),
            kill_timeout: GoDuration::from_secs(5),
            readonly_rootfs: true,
            logs: Logs::default(),
        }
    }
}
