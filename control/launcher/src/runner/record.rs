//! `runner.json`: how far an allocation has come, for the agent that comes after this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wharf_registry::model::{Str, platform::TaskState};

use super::restart::History;

/// Largest record that is read: some kB of events per task are usual.
const LIMIT: u64 = 4 << 20;

/// What is remembered. Written whole after every step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// A shim was started. Without one that answers, it was killed.
    pub(crate) shim: bool,
    /// The last of its events that was dealt with.
    pub(crate) last_event: u64,
    /// Tasks that this shim was told to start, and that have not ended.
    pub(crate) started: BTreeSet<Str>,
    /// What asks a task to end, if it was ever started: its image says it, and may be gone by then.
    pub(crate) signals: BTreeMap<Str, i32>,
    pub(crate) states: BTreeMap<Str, TaskState>,
    pub(crate) restarts: BTreeMap<Str, History>,
    /// Where it is reached; empty before it is connected.
    pub(crate) address: Str,
    /// The services are in the catalog.
    pub(crate) published: bool,
    /// It is being taken down, and why.
    pub(crate) ending: Option<Ending>,
    /// Nothing of it is left but its output.
    pub(crate) done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(crate) failed: bool,
    pub(crate) why: String,
}

impl Record {
    /// The record in `directory`; a fresh one if there is none.
    ///
    /// # Errors
    /// What is there and cannot be read is not guessed at.
    pub(crate) fn load(directory: &Path) -> io::Result<Self> {
        let path = directory.join("runner.json");
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > LIMIT => {
                return Err(io::Error::other(format!("{} is too large", path.display())));
            }
            Ok(_) => {}
        }
        serde_json::from_slice(&fs::read(&path)?)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }

    pub(crate) fn save(&self, directory: &Path) -> io::Result<()> {
        write(&directory.join("runner.json"), &serde_json::to_vec(self)?)
    }
}

/// Puts `content` at `path`, whole or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, content)?;
    fs::rename(&fresh, path)
}

/// The places of one allocation.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `<state>/allocs/<id>`
    pub(crate) dir: PathBuf,
    /// `<run>/<first 8 of id>`
    pub(crate) run: PathBuf,
    /// `wharf/<id>`
    pub(crate) group: PathBuf,
}

impl Places {
    pub(crate) fn new(allocs: &Path, run: &Path, id: &str) -> Self {
        let short = id.get(..8).unwrap_or(id);
        Self {
            dir: allocs.join(id),
            run: run.join(short),
            group: Path::new(crate::container::cgroup::ROOT).join(id),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("shim.sock")
    }

    pub(crate) fn notify(&self) -> PathBuf {
        self.run.join("notify.sock")
    }

    pub(crate) fn task(&self, task: &str) -> PathBuf {
        self.dir.join("tasks").join(task)
    }

    pub(crate) fn make(&self, tasks: impl Iterator<Item = Str>) -> io::Result<()> {
        let mut all = vec![self.dir.clone(), self.run.clone(), self.dir.join("network")];
        all.extend(tasks.map(|task| self.task(&task)));
        for directory in all {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        Ok(())
    }

    /// Removes what is of no use to anybody once nothing runs: everything but output and exit records.
    pub(crate) fn clear(&self) {
        let _ = fs::remove_dir_all(&self.run);
        let tasks = fs::read_dir(self.dir.join("tasks"));
        for task in tasks.into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(task.path().join("bundle"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_broken_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(directory.path()).unwrap(), Record::default());
        let record = Record {
            shim: true,
            last_event: 7,
            ending: Some(Ending {
                failed: true,
                why: "because".into(),
            }),
            ..Record::default()
        };
        record.save(directory.path()).unwrap();
        assert_eq!(Record::load(directory.path()).unwrap(), record);
        fs::write(directory.path().join("runner.json"), "{").unwrap();
        Record::load(directory.path()).unwrap_err();
    }
}
