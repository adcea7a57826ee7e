//! What a server has when it starts: whose the data is, the log, the snapshots, and that they fit together.

use std::{io, path::PathBuf, sync::Arc};

use uuid::Uuid;

use super::{
    ConsensusConfig, Recovered, StartError,
    data_dir::DataDir,
    disk::Space,
    identity::Identity,
    recovery::{self, NewMembers},
};
use crate::{
    log::{DiskLog, DiskLogConfig, LogStore, MemoryLog, ServerId},
    snapshot::SnapshotStore,
};

/// The stores of a server.
pub(super) struct Opened {
    pub(super) id: ServerId,
    pub(super) identity: Arc<Identity>,
    pub(super) log: Arc<dyn LogStore>,
    pub(super) snapshots: SnapshotStore,
    pub(super) space: Arc<Space>,
    /// Who the members are by a recovery, this one or one before.
    pub(super) members: Option<Arc<NewMembers>>,
    pub(super) recovered: Option<Recovered>,
    pub(super) data_dir: Option<DataDir>,
}

impl Opened {
    /// With everything else in memory.
    pub(super) fn in_memory(node_uuid: Uuid, log: Arc<dyn LogStore>) -> Opened {
        let id = ServerId(node_uuid);
        Opened {
            id,
            identity: Arc::new(Identity::in_memory(id)),
            log,
            snapshots: SnapshotStore::in_memory(),
            space: Space::in_memory(),
            members: None,
            recovered: None,
            data_dir: None,
        }
    }

    /// Blocks while the log is read.
    pub(super) fn open(config: &ConsensusConfig) -> Result<Opened, StartError> {
        let Some(data_dir) = &config.data_dir else {
            return Ok(Opened::in_memory(
                config.node_uuid,
                Arc::new(MemoryLog::new()),
            ));
        };
        let data_dir = DataDir::open(data_dir, config.node_uuid, config.node_uuid_reused)?;
        let log = DiskLog::open(DiskLogConfig::new(data_dir.log())).map_err(StartError::Log)?;
        let id = data_dir.server();
        let identity = Identity::open(id, data_dir.root(), log.state().last.is_some())?;
        let mut snapshots = SnapshotStore::open(data_dir.snapshots())?;
        check_reach(&log, &snapshots, data_dir.snapshots())?;
        let recovered = recovery::recover(data_dir.root(), id, &log, &identity, &snapshots)?;
        if recovered.is_some() {
            snapshots = SnapshotStore::open(data_dir.snapshots())?;
        }
        let members = NewMembers::open(data_dir.root(), log.state())?;
        follow(&log, &snapshots).map_err(StartError::Log)?;
        let space = Space::of(data_dir.root());
        let room = {
            let space = space.clone();
            move |bytes| space.admit_snapshot(bytes).map_err(io::Error::other)
        };
        Ok(Opened {
            id,
            identity: Arc::new(identity),
            log: Arc::new(log),
            snapshots: snapshots.within(room),
            space,
            members: members.map(Arc::new),
            recovered,
            data_dir: Some(data_dir),
        })
    }
}

/// The log goes on where the snapshot ends, or before: what was purged is in a snapshot, unless that was damaged.
fn check_reach(
    log: &dyn LogStore,
    snapshots: &SnapshotStore,
    directory: PathBuf,
) -> Result<(), StartError> {
    let begin = log.state().purged.map_or(0, |purged| purged.index + 1);
    let end = snapshots
        .current()
        .and_then(|snapshot| snapshot.meta().last);
    match begin > end.map_or(0, |last| last.index + 1) {
        true => Err(StartError::Lacking { directory, begin }),
        false => Ok(()),
    }
}

/// The log ends at the snapshot at least. A server that was killed after it took the snapshot of a leader, and before
/// its log had followed, may have entries of a former leader in it: they contradict what the snapshot's leader wrote
/// at their places, and were never agreed on.
fn follow(log: &dyn LogStore, snapshots: &SnapshotStore) -> io::Result<()> {
    let Some(snapshot) = snapshots
        .current()
        .and_then(|snapshot| snapshot.meta().last)
    else {
        return Ok(());
    };
    let state = log.state();
    if state.last >= Some(snapshot) {
        return Ok(());
    }
    if state.last.is_some_and(|last| last.index > snapshot.index) {
        let own = match log.read(snapshot.index..snapshot.index + 1, 1)?.first() {
            Some(entry) => Some(entry.id),
            None => state.purged,
        };
        log.truncate_after(own)?;
    }
    log.purge(snapshot)
}
