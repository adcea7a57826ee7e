//! How much room the file system of the log has, looked at before anything is given to it.
//!
//! A log that meets the end of the space has lost its order: what it wrote is unknown, and the process ends.
//! So a part of the file system is kept back. Below that, commands are refused while everything else goes on;
//! below a quarter of it entries of a leader are refused too, and in the end votes: what would fail is not
//! begun, and a server that was full goes on when there is room.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What is kept back at most; of a small file system it is a twentieth.
const MAX_RESERVE: u64 = 64 << 20;
/// Below this not even a vote is written.
const LAST: u64 = 64 << 10;
/// How old a look may be: others fill the disk too. In between it is looked again after every eighth of the reserve
/// that is written. A look costs a microsecond.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What may still be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Room {
    Nothing,
    /// Votes, but no entries of a leader.
    Votes,
    /// All but commands and snapshots.
    Entries,
    Enough,
}

impl Room {
    fn of(level: u8) -> Room {
        match level {
            0 => Room::Nothing,
            1 => Room::Votes,
            2 => Room::Entries,
            _ => Room::Enough,
        }
    }
}

/// The size of a file system, and what is free of it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Extent {
    pub(in super::super) total: u64,
    pub(in super::super) free: u64,
}

type Probe = Box<dyn Fn() -> io::Result<Extent> + Send + Sync>;

/// The file system that the log is on.
pub(in super::super) struct Space {
    /// `None`: in memory.
    probe: Option<Probe>,
    started: Instant,
    /// When it was looked last, in milliseconds after the start, plus one; 0: never.
    looked: AtomicU64,
    /// Given to the log since.
    written: AtomicUsize,
    free: AtomicU64,
    reserve: AtomicU64,
    level: AtomicU8,
}

/// A file system without room for more commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of the leader is full: {} MiB are free, of which {} MiB are kept for the consensus. \
     Nothing is written until there is room again; reads go on",
    free.div_ceil(1 << 20), reserve.div_ceil(1 << 20)
)]
pub struct DiskFull {
    /// In bytes.
    pub free: u64,
    /// What is kept back, in bytes.
    pub reserve: u64,
}

impl Space {
    pub(in super::super) fn in_memory() -> Arc<Space> {
        Space::with(None)
    }

    pub(in super::super) fn of(directory: &Path) -> Arc<Space> {
        let directory = directory.to_owned();
        Space::with(Some(Box::new(move || extent(&directory))))
    }

    pub(in super::super) fn with(probe: Option<Probe>) -> Arc<Space> {
        Arc::new(Space {
            probe,
            started: Instant::now(),
            looked: AtomicU64::new(0),
            written: AtomicUsize::new(0),
            free: AtomicU64::new(u64::MAX),
            reserve: AtomicU64::new(0),
            level: AtomicU8::new(Room::Enough as u8),
        })
    }

    /// The room there is; what was seen a moment ago will do.
    pub(in super::super) fn look(&self) -> Room {
        self.look_before(0, 0)
    }

    /// The room there is when `waiting` bytes will have been written that the file system does not know of yet,
    /// and `more` after them.
    fn look_before(&self, waiting: usize, more: usize) -> Room {
        let Some(probe) = &self.probe else {
            return Room::Enough;
        };
        let written = self.written.fetch_add(more, Ordering::Relaxed) + more;
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        let looked = self.looked.load(Ordering::Relaxed);
        let is_old = looked == 0 || now + 1 - looked.min(now + 1) >= LOOK_EVERY.as_millis() as u64;
        let is_much = written as u64 > self.reserve.load(Ordering::Relaxed) / 8;
        if is_old || is_much {
            self.looked.store(now + 1, Ordering::Relaxed);
            self.written.store(0, Ordering::Relaxed);
            match probe() {
                Ok(extent) => self.found(extent),
                // The log will say so, if it is true.
                Err(error) => tracing::debug!(%error, "the free space cannot be looked at"),
            }
        }
        let level = Room::of(self.level.load(Ordering::Relaxed));
        let coming = (waiting + more) as u64;
        level.min(self.room(self.free.load(Ordering::Relaxed).saturating_sub(coming)))
    }

    fn room(&self, free: u64) -> Room {
        let reserve = self.reserve.load(Ordering::Relaxed);
        if free < LAST {
            Room::Nothing
        } else if free < reserve / 4 {
            Room::Votes
        } else if free < reserve {
            Room::Entries
        } else {
            Room::Enough
        }
    }

    fn found(&self, Extent { total, free }: Extent) {
        let reserve = MAX_RESERVE.min(total / 20);
        self.reserve.store(reserve, Ordering::Relaxed);
        self.free.store(free, Ordering::Relaxed);
        metrics::gauge!("wharf_raft_disk_free_bytes").set(free as f64);
        let before = Room::of(self.level.load(Ordering::Relaxed));
        let mut now = self.room(free);
        // What is written and removed at the border does not open and close the door each time.
        if before < Room::Enough && now == Room::Enough && free < reserve + reserve / 4 {
            now = Room::Entries;
        }
        self.change(now);
    }

    fn change(&self, now: Room) {
        let before = Room::of(self.level.swap(now as u8, Ordering::Relaxed));
        if before == now {
            return;
        }
        let DiskFull { free, reserve } = self.full();
        match (before, now) {
            (_, Room::Enough) => tracing::warn!(free, "the disk has room again"),
            (Room::Enough, _) => tracing::warn!(
                free,
                reserve,
                "the disk is full: what is kept back is for the consensus, and commands are refused"
            ),
            (_, Room::Entries) => tracing::warn!(free, "the disk has room for entries again"),
            (_, _) => tracing::warn!(
                free,
                "the disk is full: this server takes no entries until there is room"
            ),
        }
    }

    /// Whether commands of `bytes` in all, those included that are on their way, may be written.
    pub(in super::super) fn admit_command(
        &self,
        in_flight: usize,
        bytes: usize,
    ) -> Result<(), DiskFull> {
        let waiting = in_flight.saturating_sub(bytes);
        if self.look_before(waiting, bytes) == Room::Enough {
            return Ok(());
        }
        // Also when it is this one that does not fit: it is the border, which is crossed once.
        if Room::of(self.level.load(Ordering::Relaxed)) == Room::Enough {
            self.change(Room::Entries);
        }
        Err(self.full())
    }

    /// Whether a leader's entries may be, beside what waits for the disk.
    pub(in super::super) fn admit_entries(
        &self,
        waiting: usize,
        bytes: usize,
    ) -> Result<(), DiskFull> {
        match self.look_before(waiting, bytes) {
            Room::Enough | Room::Entries => Ok(()),
            _ => Err(self.full()),
        }
    }

    pub(in super::super) fn admit_vote(&self) -> Result<(), DiskFull> {
        match self.look() {
            Room::Nothing => Err(self.full()),
            _ => Ok(()),
        }
    }

    /// Whether `bytes` of a snapshot may be: half of what is kept back is not for snapshots.
    pub(in super::super) fn admit_snapshot(&self, bytes: u64) -> Result<(), DiskFull> {
        self.look();
        let free = self.free.load(Ordering::Relaxed).saturating_sub(bytes);
        match free >= self.reserve.load(Ordering::Relaxed) / 2 {
            true => Ok(()),
            false => Err(self.full()),
        }
    }

    fn full(&self) -> DiskFull {
        DiskFull {
            free: self.free.load(Ordering::Relaxed),
            reserve: self.reserve.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("free", &self.free)
            .finish_non_exhaustive()
    }
}

/// What a process without privileges may still use counts as free.
fn extent(directory: &Path) -> io::Result<Extent> {
    let found = rustix::fs::statvfs(directory)?;
    Ok(Extent {
        total: found.f_blocks.saturating_mul(found.f_frsize),
        free: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(total: u64, free: u64) -> (Arc<Space>, Arc<Mutex<Extent>>) {
        let extent = Arc::new(Mutex::new(Extent { total, free }));
        let probe = {
            let extent = extent.clone();
            move || Ok(*extent.lock().unwrap())
        };
        (Space::with(Some(Box::new(probe))), extent)
    }

    async fn later() {
        tokio::time::advance(LOOK_EVERY).await;
    }

    #[tokio::test(start_paused = true)]
    async fn commands_go_first_then_entries_then_votes() {
        let (space, extent) = space(10_000 * MIB, 65 * MIB);
        let mib = MIB as usize;
        space.admit_command(mib, mib).unwrap();
        // What is on its way counts.
        let full = space.admit_command(2 * mib, mib).unwrap_err();
        assert_eq!((full.free, full.reserve), (65 * MIB, 64 * MIB));
        assert!(full.to_string().contains("65 MiB are free"), "{full}");
        assert_eq!(space.look(), Room::Entries, "and it stays so");
        space.admit_entries(10 * mib, 2 * mib).unwrap();
        space.admit_snapshot(33 * MIB).unwrap();
        space.admit_snapshot(34 * MIB).unwrap_err();

        extent.lock().unwrap().free = 17 * MIB;
        later().await;
        space.admit_command(0, 0).unwrap_err();
        space.admit_entries(0, mib).unwrap();
        space.admit_entries(mib, mib).unwrap_err();
        extent.lock().unwrap().free = MIB;
        later().await;
        space.admit_entries(0, 0).unwrap_err();
        space.admit_vote().unwrap();
        extent.lock().unwrap().free = LAST - 1;
        later().await;
        space.admit_vote().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn the_border_is_crossed_once() {
        let (space, extent) = space(10_000 * MIB, 63 * MIB);
        assert_eq!(space.look(), Room::Entries);
        extent.lock().unwrap().free = 70 * MIB;
        later().await;
        assert_eq!(space.look(), Room::Entries, "not yet");
        extent.lock().unwrap().free = 80 * MIB;
        assert_eq!(space.look(), Room::Entries, "seen a moment ago");
        later().await;
        assert_eq!(space.look(), Room::Enough);
        extent.lock().unwrap().free = 65 * MIB;
        later().await;
        assert_eq!(space.look(), Room::Enough, "and down at the lower border");
    }

    #[tokio::test(start_paused = true)]
    async fn much_is_looked_at_more_often_and_a_small_one_keeps_less() {
        let (space, extent) = space(20 * MIB, 10 * MIB);
        assert_eq!(space.look(), Room::Enough);
        extent.lock().unwrap().free = MIB / 2;
        // An eighth of a twentieth.
        space.admit_command(0, 128 << 10).unwrap();
        space.admit_command(0, 128 << 10).unwrap_err();
        assert_eq!(space.full().reserve, MIB);
    }

    #[test]
    fn a_real_one_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let found = extent(directory.path()).unwrap();
        assert!(found.total > 0 && found.free <= found.total, "{found:?}");
    }
}
