//! The files of a running agent outside its data directory: sockets, the pid file, the log.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::RunError;
use crate::{config::RuntimeConfig, telemetry::logs::LogOutput};

/// Files that exist as long as the agent runs.
#[derive(Default)]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// These, made by someone else, go with the agent.
    pub(super) fn extend(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.0.extend(paths);
    }

    /// Writes this process's id to `path`.
    pub(super) fn write_pid_file(&mut self, path: &Path) -> Result<(), RunError> {
        let pid = format!("{}\n", std::process::id());
        fs::write(path, pid).map_err(|source| file_error(path, source))?;
        self.0.push(path.to_owned());
        Ok(())
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a file stays behind");
            }
        }
    }
}

pub(super) fn log_output(config: &RuntimeConfig) -> Result<LogOutput, RunError> {
    let Some(path) = &config.log.file else {
        return Ok(LogOutput::Stdout);
    };
    // A directory stands for the usual name in it, as in Consul.
    let path = if path.is_dir() {
        path.join("wharf.log")
    } else {
        path.clone()
    };
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    Ok(LogOutput::File(
        file.map_err(|source| file_error(&path, source))?,
    ))
}

pub(super) fn file_error(path: &Path, source: io::Error) -> RunError {
    RunError::File {
        path: path.to_owned(),
        source,
    }
}
