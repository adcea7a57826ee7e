//! openraft's own conformance suite, on both stores and both places for snapshots.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::*;
use crate::log::DiskLogConfig;

impl From<u64> for ServerId {
    fn from(id: u64) -> ServerId {
        ServerId(Uuid::from_u128(id.into()))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, Storage, Machine> for InMemory {
    async fn build(&self) -> Result<((), Storage, Machine), StorageError<TypeConfig>> {
        let snapshots = Snapshots::new(SnapshotStore::in_memory(), SnapshotPolicy::default(), None);
        let (machine, _) = Machine::new(Replica::new(), snapshots);
        Ok(((), Storage::new(Arc::new(MemoryLog::new()), None), machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, Storage, Machine, tempfile::TempDir> for OnDisk {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, Storage, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(dir.path(), Uuid::from_u128(1), false).unwrap();
        let log = DiskLog::open(DiskLogConfig::new(data_dir.log())).unwrap();
        let store = SnapshotStore::open(data_dir.snapshots()).unwrap();
        let snapshots = Snapshots::new(store, SnapshotPolicy::default(), None);
        let (machine, _) = Machine::new(Replica::new(), snapshots);
        Ok((dir, Storage::new(Arc::new(log), None), machine))
    }
}

#[tokio::test]
async fn the_memory_log_conforms() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test]
async fn the_disk_log_conforms() {
    Suite::test_all(OnDisk).await.unwrap();
}
