//! What was registered over the API, on disk: it survives a restart of the agent.
//!
//! One file per object, `services/`, `checks/` and `checks/state/` under the data directory, named by
//! the SHA-256 of the object's id, since an id may hold any character. A file is replaced atomically
//! and is readable by its owner only: registrations carry tokens. A file that cannot be read is named
//! in the log and left alone; the agent starts without it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wharf_registry::model::{CheckStatus, NodeService, Str};

use super::spec::CheckSpec;

/// The version of the format that is written.
const VERSION: u32 = 1;
/// No file of ours comes near; a larger one is damaged.
const MAX_FILE: u64 = 4 << 20;

/// Which file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKey {
    Service(Str),
    Check(Str),
    /// The last report of a TTL check.
    State(Str),
}

/// The local registrations cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct StoreError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedService {
    pub(super) service: NodeService,
    #[serde(default)]
    pub(super) token: String,
    /// What the registrant gave, where the catalog's tags have replaced them.
    pub(super) registered_tags: Arc<[Str]>,
    #[serde(default)]
    pub(super) sidecar_of: Option<Str>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedState {
    pub(super) id: Str,
    pub(super) status: CheckStatus,
    pub(super) output: Str,
    /// When the report lapses, in milliseconds since 1970.
    pub(super) expires: u64,
}

/// The content of every readable file.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub(super) services: Vec<SavedService>,
    pub(super) checks: Vec<CheckSpec>,
    pub(super) states: Vec<SavedState>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    body: T,
}

/// The bytes of a file.
pub(super) fn encode(body: &impl Serialize) -> Vec<u8> {
    let version = VERSION;
    // The bodies are plain structures: they always encode.
    serde_json::to_vec(&Versioned { version, body }).unwrap_or_default()
}

#[derive(Debug)]
pub(super) struct Store {
    services: PathBuf,
    checks: PathBuf,
    states: PathBuf,
}

impl Store {
    /// Opens the store under `data_dir`, making its directories.
    pub(super) fn open(data_dir: &Path) -> Result<Store, StoreError> {
        let checks = data_dir.join("checks");
        let store = Store {
            services: data_dir.join("services"),
            states: checks.join("state"),
            checks,
        };
        for directory in [&store.services, &store.checks, &store.states] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| StoreError {
                    action: "create",
                    path: directory.clone(),
                    source,
                })?;
        }
        Ok(store)
    }

    /// Reads everything that can be read.
    pub(super) fn load(&self) -> Saved {
        Saved {
            services: read_all(&self.services),
            checks: read_all(&self.checks),
            states: read_all(&self.states),
        }
    }

    /// Writes each file, or removes it for `None`. Registrations are on disk when this returns; the
    /// reports of TTL checks are not waited for, as the next heartbeat replaces them. Returns the
    /// files that could not be written.
    pub(super) fn write(
        &self,
        batch: Vec<(FileKey, Option<Vec<u8>>)>,
    ) -> Vec<(FileKey, StoreError)> {
        let mut failed = Vec::new();
        let (mut services, mut checks) = (false, false);
        for (key, content) in batch {
            let (directory, id, durable) = match &key {
                FileKey::Service(id) => (&self.services, id, true),
                FileKey::Check(id) => (&self.checks, id, true),
                FileKey::State(id) => (&self.states, id, false),
            };
            let path = directory.join(file_name(id));
            let done = match content {
                Some(content) => replace_file(&path, &content, durable),
                None => remove(&path),
            };
            match done {
                Ok(changed) => {
                    services |= changed && matches!(key, FileKey::Service(_));
                    checks |= changed && matches!(key, FileKey::Check(_));
                }
                Err(source) => failed.push((
                    key,
                    StoreError {
                        action: "write",
                        path,
                        source,
                    },
                )),
            }
        }
        // A rename or removal is durable once its directory is.
        for (changed, directory, key) in [
            (services, &self.services, FileKey::Service as fn(Str) -> _),
            (checks, &self.checks, FileKey::Check as fn(Str) -> _),
        ] {
            if changed && let Err(source) = File::open(directory).and_then(|file| file.sync_all()) {
                let error = StoreError {
                    action: "sync",
                    path: directory.clone(),
                    source,
                };
                failed.push((key(Str::default()), error));
            }
        }
        failed
    }
}

fn file_name(id: &str) -> String {
    use std::fmt::Write as _;

    let digest = ring::digest::digest(&ring::digest::SHA256, id.as_bytes());
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut name, byte| {
            // Writing to a String does not fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
}

/// Writes a file, readable for its owner only, in the place of the one that is there. Returns whether anything changed on
/// disk: always, for a file that is written.
pub(crate) fn replace_file(path: &Path, content: &[u8], durable: bool) -> io::Result<bool> {
    let beside = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    Ok(true)
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_all<T: DeserializeOwned>(directory: &Path) -> Vec<T> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "cannot list saved registrations");
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            // Left by a crash in the middle of a write: the file beside it is whole.
            let _ = fs::remove_file(&path);
            continue;
        }
        match read::<T>(&path) {
            Ok(body) => all.push(body),
            Err(problem) => {
                tracing::warn!(file = %path.display(), problem, "skipping a saved registration that cannot be read");
            }
        }
    }
    all
}

/// What is wrong with a file is told without its content: it holds tokens.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file
        .take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .map_err(|error| error.to_string())?;
    if length as u64 > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    let damaged = |error: serde_json::Error| {
        let (line, column) = (error.line(), error.column());
        format!("not valid at line {line}, column {column}")
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&content).map_err(damaged)?;
    if version != VERSION {
        return Err(format!("version {version}, this binary reads {VERSION}"));
    }
    let Versioned { body, .. } = serde_json::from_slice(&content).map_err(damaged)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn service(id: &str) -> SavedService {
        SavedService {
            service: NodeService {
                id: id.into(),
                name: "web".into(),
                ..NodeService::default()
            },
            token: "s3cret".into(),
            registered_tags: ["a".into()].into(),
            sidecar_of: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_private() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let id = "../../etc/passwd\0é";
        let key = FileKey::Service(id.into());
        let failed = store.write(vec![(key.clone(), Some(encode(&service(id))))]);
        assert!(failed.is_empty());
        let file = fs::read_dir(data.path().join("services"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let saved = store.load();
        assert_eq!(&*saved.services[0].service.id, id);
        assert_eq!(saved.services[0].token, "s3cret");
        assert!(store.write(vec![(key, None)]).is_empty());
        assert!(store.load().services.is_empty());
    }

    #[test]
    fn damaged_newer_and_half_written_files_are_passed_over() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let good = (
            FileKey::Service("good".into()),
            Some(encode(&service("good"))),
        );
        store.write(vec![good]);
        let services = data.path().join("services");
        fs::write(services.join("torn"), b"{\"version\":1,\"serv").unwrap();
        fs::write(services.join("newer"), b"{\"version\":2}").unwrap();
        fs::write(services.join("empty"), b"").unwrap();
        fs::write(services.join("left.tmp"), b"{").unwrap();
        let saved = store.load();
        assert_eq!(saved.services.len(), 1);
        assert!(!services.join("left.tmp").exists());
        assert!(
            services.join("torn").exists(),
            "left for a person to look at"
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_is_reported() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        fs::remove_dir_all(data.path().join("services")).unwrap();
        let key = FileKey::Service("web".into());
        let failed = store.write(vec![(key.clone(), Some(b"{}".to_vec()))]);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, key);
    }
}
