//! The servers as they were last known, in a file: an agent that starts again finds its cluster though none of the
//! places that it was told is a server any more.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::local::replace_file;

/// In the data directory.
const FILE: &str = "servers.json";
const MAX_FILE: u64 = 64 << 10;

/// What the file says.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Content {
    /// Where the agent was told to look. Told something else, it is meant to go to another cluster.
    retry_join: Vec<String>,
    /// `host:port` of every server.
    servers: Vec<String>,
}

/// The file, if the agent has a data directory.
#[derive(Debug)]
pub(super) struct Remembered {
    path: Option<PathBuf>,
    retry_join: Vec<String>,
}

impl Remembered {
    /// Also returns what it says. A file that cannot be read says nothing, and that is said.
    pub(super) fn open(
        data_dir: Option<&Path>,
        retry_join: &[String],
    ) -> (Remembered, Vec<String>) {
        let remembered = Remembered {
            path: data_dir.map(|directory| directory.join(FILE)),
            retry_join: retry_join.to_vec(),
        };
        let content = match remembered.path.as_deref().map(read) {
            None => Content::default(),
            Some(Ok(content)) => content,
            Some(Err(error)) => {
                tracing::warn!(%error, file = FILE, "the servers of the last run are not known");
                Content::default()
            }
        };
        let servers = match content.retry_join == retry_join {
            true => content.servers,
            false => Vec::new(),
        };
        (remembered, servers)
    }

    /// These are the servers now.
    pub(super) fn keep(&self, servers: Vec<String>) {
        let Some(path) = &self.path else { return };
        let content = Content {
            retry_join: self.retry_join.clone(),
            servers,
        };
        // Not synced: nothing is lost with it but a shortcut.
        let written = serde_json::to_vec(&content)
            .map_err(io::Error::from)
            .and_then(|content| replace_file(path, &content, false));
        if let Err(error) = written {
            tracing::warn!(%error, file = FILE, "the servers are not known in the next run");
        }
    }
}

fn read(path: &Path) -> io::Result<Content> {
    let mut text = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_knows_the_servers_unless_it_is_to_go_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let told = ["one.example".to_owned()];
        let open = |told: &[String]| Remembered::open(Some(directory.path()), told);
        let (remembered, servers) = open(&told);
        assert!(servers.is_empty());
        let addresses = ["10.0.0.1:8300".to_owned(), "10.0.0.2:8300".to_owned()];
        remembered.keep(addresses.to_vec());
        assert_eq!(open(&told).1, addresses);
        assert!(open(&["two.example".to_owned()]).1.is_empty());
        let (nowhere, servers) = Remembered::open(None, &told);
        nowhere.keep(addresses.to_vec());
        assert!(servers.is_empty());
    }

    #[test]
    fn a_damaged_file_says_nothing_and_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), b"{\"RetryJoin\": [], \"Ser").unwrap();
        let (remembered, servers) = Remembered::open(Some(directory.path()), &[]);
        assert!(servers.is_empty());
        remembered.keep(vec!["10.0.0.1:8300".to_owned()]);
        let (_, servers) = Remembered::open(Some(directory.path()), &[]);
        assert_eq!(servers, ["10.0.0.1:8300"]);
    }
}
