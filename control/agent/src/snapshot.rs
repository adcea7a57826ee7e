//! Saving the whole state to an archive, and taking one over.
//!
//! What is saved is one view, written while everything goes on. A restore is checked whole before anything of it is
//! proposed, and then goes through the log in parts: every server takes it over at the same place.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, read::GzEncoder};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::spawn_blocking,
};
use uuid::Uuid;
use wharf_registry::{
    Command, View,
    command::{MAX_RESTORE_PART, RestoreCommand},
    consensus::Member,
    snapshot::{
        SnapshotError,
        archive::{self, ArchiveError, ArchiveMeta, ArchivedServer, Configuration, Table},
    },
};

use crate::{
    cluster::{Cluster, ClusterError},
    platform::unix_now,
};

/// The largest archive that is taken over, and the largest snapshot in one, in bytes.
pub const MAX_ARCHIVE: u64 = 4 << 30;
const MAX_STATE: u64 = 16 << 30;
/// Parts that are compressed before the log has taken them.
const READY: usize = 4;
/// How often a part is proposed whose outcome is unknown, and the pause before it is again.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Where snapshots are put together, and that it is one at a time.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// For files that have no name: they go with whoever has them open.
    directory: PathBuf,
    turn: Arc<Semaphore>,
}

/// Why nothing was saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    #[error("a snapshot is being saved or restored already; try again")]
    Busy,
    #[error("cannot keep the snapshot in {directory}: {source}")]
    Disk {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the snapshot: {0}")]
    Write(#[from] SnapshotError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("the work ended early: {0}")]
    Stopped(String),
}

/// An archive that was saved. The next can be when this is gone.
#[derive(Debug)]
pub struct Saved {
    /// At its beginning.
    pub archive: File,
    pub meta: ArchiveMeta,
    _turn: OwnedSemaphorePermit,
}

/// An archive on its way in.
#[derive(Debug)]
pub struct Arriving {
    archive: File,
    turn: OwnedSemaphorePermit,
}

impl Arriving {
    /// Takes the next bytes of it. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.archive.write_all(bytes)
    }
}

/// What an archive holds that was read to its end.
#[derive(Debug)]
pub struct Inspected {
    pub meta: ArchiveMeta,
    pub tables: Vec<Table>,
}

/// Reads an archive as a restore does, and changes nothing.
///
/// # Errors
/// What a restore would refuse. Needs room for the snapshot in the system's temporary directory.
pub fn inspect(archive: impl Read) -> Result<Inspected, SnapshotsError> {
    let directory = std::env::temp_dir();
    unpack(archive, &directory).map(|(inspected, _)| inspected)
}

/// The snapshot of an archive in a file, checked.
fn unpack(archive: impl Read, directory: &Path) -> Result<(Inspected, File), SnapshotsError> {
    let disk = disk(directory);
    let mut state = tempfile::tempfile_in(directory).map_err(&disk)?;
    let mut out = BufWriter::new(&mut state);
    let meta = archive::read(BufReader::new(archive), MAX_STATE, &mut out)?;
    out.flush().map_err(&disk)?;
    drop(out);
    state.seek(SeekFrom::Start(0)).map_err(&disk)?;
    let tables = archive::check_state(BufReader::new(&state))?;
    state.seek(SeekFrom::Start(0)).map_err(&disk)?;
    Ok((Inspected { meta, tables }, state))
}

fn disk(directory: &Path) -> impl Fn(io::Error) -> SnapshotsError {
    move |source| SnapshotsError::Disk {
        directory: directory.to_owned(),
        source,
    }
}

impl Snapshots {
    /// Snapshots are put together in this directory, which exists.
    pub fn new(directory: PathBuf) -> Snapshots {
        Snapshots {
            directory,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    fn begin(&self) -> Result<OwnedSemaphorePermit, SnapshotsError> {
        let turn = self.turn.clone().try_acquire_owned();
        turn.map_err(|_| SnapshotsError::Busy)
    }

    /// Makes room for an archive to be restored.
    pub fn receive(&self) -> Result<Arriving, SnapshotsError> {
        let turn = self.begin()?;
        let archive = tempfile::tempfile_in(&self.directory).map_err(disk(&self.directory))?;
        Ok(Arriving { archive, turn })
    }

    /// Saves the state as this server has it. Ask for a barrier first unless a stale one will do.
    pub async fn save(&self, cluster: &dyn Cluster) -> Result<Saved, SnapshotsError> {
        let turn = self.begin()?;
        let view = cluster.registry().view();
        let term = cluster.term();
        let servers = cluster.servers().into_iter().map(archived).collect();
        let directory = self.directory.clone();
        let saved = blocking(move || save(&view, term, servers, &directory)).await;
        let (archive, meta) = saved?;
        Ok(Saved {
            archive,
            meta,
            _turn: turn,
        })
    }

    /// Takes the state of an archive over, or changes nothing.
    pub async fn restore(
        &self,
        cluster: &dyn Cluster,
        arrived: Arriving,
    ) -> Result<ArchiveMeta, SnapshotsError> {
        let Arriving {
            mut archive,
            turn: _turn,
        } = arrived;
        let directory = self.directory.clone();
        let unpacked = blocking(move || {
            let start = archive.seek(SeekFrom::Start(0));
            start.map_err(disk(&directory))?;
            unpack(archive, &directory)
        });
        let (inspected, state) = unpacked.await?;
        let id = Uuid::new_v4().to_string();
        let (sender, parts) = mpsc::channel(READY);
        let compressing = spawn_blocking(move || compress(state, &sender));
        let restored = propose(cluster, &id, parts).await;
        if restored.is_err() {
            let abandon = RestoreCommand::Abandon {
                id: id.as_str().into(),
            };
            // If this does not get through either, it is forgotten later.
            if let Err(error) = cluster.write(Command::Restore(abandon)).await {
                tracing::warn!(%error, "the parts of a restore that failed stay for now");
            }
        }
        restored?;
        compressing
            .await
            .map_err(|error| SnapshotsError::Stopped(error.to_string()))?;
        Ok(inspected.meta)
    }
}

fn save(
    view: &View,
    term: u64,
    servers: Vec<ArchivedServer>,
    directory: &Path,
) -> Result<(File, ArchiveMeta), SnapshotsError> {
    let disk = disk(directory);
    let mut state = tempfile::tempfile_in(directory).map_err(&disk)?;
    let size = archive::write_state(view, term, BufWriter::new(&mut state))?;
    state.seek(SeekFrom::Start(0)).map_err(&disk)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let index = view.applied();
    let meta = ArchiveMeta {
        version: 1,
        id: format!("{term}-{index}-{}", now.unwrap_or_default().as_millis()),
        index,
        term,
        configuration: Configuration { servers },
        configuration_index: 0,
        size,
    };
    let mut archive = tempfile::tempfile_in(directory).map_err(&disk)?;
    archive::write(BufWriter::new(&mut archive), &meta, BufReader::new(state))?;
    archive.seek(SeekFrom::Start(0)).map_err(&disk)?;
    Ok((archive, meta))
}

fn archived(member: Member) -> ArchivedServer {
    ArchivedServer {
        suffrage: u8::from(!member.voter),
        id: member.id.to_string(),
        address: member.address,
    }
}

/// Sends the snapshot, compressed and in parts; with an error as the last, if it cannot be read.
fn compress(state: File, parts: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut compressed = GzEncoder::new(BufReader::new(state), Compression::fast());
    loop {
        let mut part = Vec::new();
        let read = (&mut compressed)
            .take(MAX_RESTORE_PART as u64)
            .read_to_end(&mut part);
        let is_last = !matches!(read, Ok(count) if count > 0);
        let part = match read {
            Ok(0) => return,
            Ok(_) => Ok(part),
            Err(error) => Err(error),
        };
        // Nobody takes it any more when the restore has failed.
        if parts.blocking_send(part).is_err() || is_last {
            return;
        }
    }
}

async fn propose(
    cluster: &dyn Cluster,
    id: &str,
    mut parts: mpsc::Receiver<io::Result<Vec<u8>>>,
) -> Result<(), SnapshotsError> {
    let mut at = 0;
    while let Some(part) = parts.recv().await {
        let bytes = part.map_err(ArchiveError::Read)?;
        let part = RestoreCommand::Part {
            id: id.into(),
            at,
            bytes: bytes.into(),
            time: unix_now(),
        };
        write(cluster, part).await?;
        at += 1;
    }
    let finish = RestoreCommand::Finish {
        id: id.into(),
        parts: at,
    };
    // Once: what it comes to is not the same the second time.
    Ok(cluster.write(Command::Restore(finish)).await?)
}

/// Proposes a part until it is known to be there. That it comes twice does no harm.
async fn write(cluster: &dyn Cluster, part: RestoreCommand) -> Result<(), SnapshotsError> {
    let command = Command::Restore(part);
    for _ in 1..ATTEMPTS {
        match cluster.write(command.clone()).await {
            Err(
                error @ (ClusterError::OutcomeUnknown(_)
                | ClusterError::NoLeader
                | ClusterError::Overloaded),
            ) => {
                tracing::debug!(%error, "a part of a restore is proposed again");
                tokio::time::sleep(PAUSE).await;
            }
            other => return Ok(other?),
        }
    }
    Ok(cluster.write(command).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotsError> + Send + 'static,
) -> Result<T, SnapshotsError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SnapshotsError::Stopped(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
