//! What an allocation has registered, on disk beside it. A file is replaced by a rename and not synced: after a crash
//! of the machine nothing of it runs.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wharf_launcher::services::{AllocServices, ServicesError};
use wharf_registry::model::Str;

const FILE: &str = "services.json";
/// No file of ours comes near.
const MAX_FILE: u64 = 4 << 20;

/// What one allocation has registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Record {
    pub(super) services: AllocServices,
    /// By service, for the sidecars that name none.
    #[serde(default)]
    pub(super) sidecar_ports: BTreeMap<Str, u16>,
    #[serde(default)]
    pub(super) published: bool,
    #[serde(default)]
    pub(super) withdrawn: bool,
    /// Tasks that ended by themselves, and how.
    #[serde(default)]
    pub(super) down: BTreeMap<Str, String>,
}

impl Record {
    pub(super) fn new(services: AllocServices) -> Record {
        Record {
            services,
            sidecar_ports: BTreeMap::new(),
            published: false,
            withdrawn: false,
            down: BTreeMap::new(),
        }
    }

    /// Why the services are critical, if a task is down.
    pub(super) fn why_down(&self) -> Option<String> {
        self.down.values().next().cloned()
    }
}

/// The directory of allocations.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
}

impl Kept {
    pub(super) fn new(directory: PathBuf) -> Kept {
        Kept { directory }
    }

    /// Every record that can be read. One that cannot is named in the log.
    pub(super) fn load(&self) -> Vec<Record> {
        let directories = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let read = |path: &Path| -> io::Result<Option<Record>> {
            match fs::metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
                Ok(metadata) if metadata.len() > MAX_FILE => {
                    return Err(io::Error::other(format!("it has {} bytes", metadata.len())));
                }
                Ok(_) => {}
            }
            Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
        };
        directories
            .filter_map(|entry| {
                let path = entry.path().join(FILE);
                read(&path).unwrap_or_else(|error| {
                    tracing::warn!(path = %path.display(), %error, "cannot read what an allocation had registered");
                    None
                })
            })
            .collect()
    }

    pub(super) fn save(&self, record: &Record) -> Result<(), ServicesError> {
        let alloc = &record.services.alloc;
        let directory = self.directory.join(&**alloc);
        let path = directory.join(FILE);
        let beside = directory.join("services.json.new");
        let write = || {
            fs::create_dir_all(&directory)?;
            fs::write(&beside, serde_json::to_vec(record)?)?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| ServicesError::Keep {
            alloc: alloc.clone(),
            source,
        })
    }

    pub(super) fn remove(&self, alloc: &str) -> Result<(), ServicesError> {
        match fs::remove_file(self.directory.join(alloc).join(FILE)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ServicesError::Keep {
                alloc: alloc.into(),
                source,
            }),
            _ => Ok(()),
        }
    }
}
