//! What a container is to be. Small on purpose: everything that is the same for all is in [`super::oci`].

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Longest host name the kernel takes (`HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

/// A container as the runner asks a shim for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Unique on this node while the container exists: letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// A directory of this container's own: `config.json`, mount points, a writable layer. Created if missing.
    pub bundle: PathBuf,
    pub rootfs: Rootfs,
    /// The command and its arguments. A command without `/` is looked for in `PATH`.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// `user`, `user:group`, by name or number; empty for root. Names are those of the root filesystem.
    #[serde(default)]
    pub user: String,
    /// Where the command starts; made if it is missing and the root filesystem can take it.
    pub cwd: PathBuf,
    pub hostname: String,
    /// The network namespace to join. Without one the container has the host's network.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Path of the control group below each hierarchy, such as `wharf/<alloc>/<task>`.
    pub cgroup: PathBuf,
    pub limits: Limits,
    /// Files and directories of the host that the container sees.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// Whether the root filesystem can be written to. `/tmp`, `/run` and `/dev/shm` always can.
    pub read_only: bool,
    /// Paths of the root filesystem that the container finds empty.
    #[serde(default)]
    pub masked: Vec<PathBuf>,
}

/// What the container sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rootfs {
    /// Directories laid over one another, the uppermost first. They are never written to.
    Layers(Vec<PathBuf>),
    /// The root of the host, without what is mounted on it except the filesystems that hold programs. Read-only.
    Host,
}

/// A file or directory of the host at a place in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// What a container may use at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Share of the processor when it is contended, in thousandths of a core.
    pub cpu_millis: u32,
    /// Hard ceiling in thousandths of a core, whether the processor is contended or not.
    #[serde(default)]
    pub cpu_max_millis: Option<u32>,
    /// What is set aside, in bytes: taken back last when the node runs short.
    pub memory: u64,
    /// Where the container is killed, in bytes. There is no swap beside it.
    pub memory_max: u64,
    pub pids: u32,
}

/// Why a description is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("{0:?} is no container id: use letters, digits, '-', '_' and '.'")]
    Id(String),
    #[error("no command is given")]
    NoCommand,
    #[error("{what} holds a NUL byte")]
    Nul { what: &'static str },
    #[error("{0:?} is no name of an environment variable")]
    EnvName(String),
    #[error("{path:?} of {what} is not an absolute path without '..'")]
    Path { what: &'static str, path: PathBuf },
    #[error("{0:?} is no path of a control group: it is relative and without '..'")]
    Cgroup(PathBuf),
    #[error("{0:?} is no host name")]
    Hostname(String),
    #[error("a root filesystem of no layers")]
    NoLayers,
    #[error("memory_max ({max} bytes) is below memory ({memory} bytes)")]
    Memory { memory: u64, max: u64 },
}

impl Spec {
    /// Whether this can be asked of the kernel at all.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        if !is_id(&self.id) {
            return Err(InvalidSpec::Id(self.id.clone()));
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(InvalidSpec::NoCommand);
        }
        if self.argv.iter().any(|word| word.contains('\0')) {
            return Err(InvalidSpec::Nul {
                what: "the command",
            });
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(InvalidSpec::EnvName(name.clone()));
            }
            if value.contains('\0') {
                return Err(InvalidSpec::Nul {
                    what: "the environment",
                });
            }
        }
        absolute("the working directory", &self.cwd)?;
        absolute("the bundle", &self.bundle)?;
        for bind in &self.binds {
            absolute("a mount's source", &bind.source)?;
            absolute("a mount's target", &bind.target)?;
        }
        for path in &self.masked {
            absolute("a masked path", path)?;
        }
        let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
        if self.cgroup.as_os_str().is_empty() || !self.cgroup.components().all(plain) {
            return Err(InvalidSpec::Cgroup(self.cgroup.clone()));
        }
        if self.hostname.is_empty() || self.hostname.len() > HOSTNAME_MAX || !is_id(&self.hostname)
        {
            return Err(InvalidSpec::Hostname(self.hostname.clone()));
        }
        if let Rootfs::Layers(layers) = &self.rootfs {
            if layers.is_empty() {
                return Err(InvalidSpec::NoLayers);
            }
            for layer in layers {
                absolute("a layer", layer)?;
            }
        }
        if self.limits.memory_max < self.limits.memory {
            return Err(InvalidSpec::Memory {
                memory: self.limits.memory,
                max: self.limits.memory_max,
            });
        }
        Ok(())
    }
}

/// A name that is safe as the last component of a path.
fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn absolute(what: &'static str, path: &Path) -> Result<(), InvalidSpec> {
    let plain = path.is_absolute()
        && !path.as_os_str().as_encoded_bytes().contains(&0)
        && path
            .components()
            .all(|component| matches!(component, Component::RootDir | Component::Normal(_)));
    if plain {
        Ok(())
    } else {
        Err(InvalidSpec::Path {
            what,
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Spec {
        Spec {
            id: "a1b2c3d4-web".into(),
            bundle: "/var/lib/wharf/allocs/a/tasks/web/bundle".into(),
            rootfs: Rootfs::Layers(vec!["/layers/1".into()]),
            argv: vec!["sh".into(), "-c".into(), "true".into()],
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            user: String::new(),
            cwd: "/".into(),
            hostname: "web-0".into(),
            netns: None,
            cgroup: "wharf/a/web".into(),
            limits: Limits {
                cpu_millis: 500,
                cpu_max_millis: None,
                memory: 64 << 20,
                memory_max: 128 << 20,
                pids: 100,
            },
            binds: Vec::new(),
            read_only: true,
            masked: Vec::new(),
        }
    }

    fn refused(change: impl FnOnce(&mut Spec)) -> InvalidSpec {
        let mut spec = sample();
        change(&mut spec);
        spec.validate().expect_err("accepted")
    }

    #[test]
    fn a_plain_description_is_valid_and_survives_the_wire() {
        let spec = sample();
        spec.validate().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn what_could_leave_its_place_is_refused() {
        assert!(matches!(
            refused(|s| s.id = "../x".into()),
            InvalidSpec::Id(_)
        ));
        assert!(matches!(
            refused(|s| s.id = "..".into()),
            InvalidSpec::Id(_)
        ));
        for path in ["/wharf", "wharf/../../x", ""] {
            assert!(matches!(
                refused(|s| s.cgroup = path.into()),
                InvalidSpec::Cgroup(_)
            ));
        }
        for path in ["relative", "/a/../b", "/a\0b"] {
            let bind = Bind {
                source: "/etc/hosts".into(),
                target: path.into(),
                read_only: true,
            };
            assert!(matches!(
                refused(|s| s.binds.push(bind)),
                InvalidSpec::Path { .. }
            ));
        }
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(refused(|s| s.argv.clear()), InvalidSpec::NoCommand);
        assert!(matches!(
            refused(|s| s.argv.push("a\0".into())),
            InvalidSpec::Nul { .. }
        ));
        assert!(matches!(
            refused(|s| {
                s.env.insert("A=B".into(), String::new());
            }),
            InvalidSpec::EnvName(_)
        ));
        assert!(matches!(
            refused(|s| s.limits.memory_max = 1),
            InvalidSpec::Memory { .. }
        ));
        assert!(matches!(
            refused(|s| s.hostname = "a b".into()),
            InvalidSpec::Hostname(_)
        ));
        assert_eq!(
            refused(|s| s.rootfs = Rootfs::Layers(vec![])),
            InvalidSpec::NoLayers
        );
    }
}
