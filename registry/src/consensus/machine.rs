//! The replica as openraft's state machine.
//!
//! It runs in one task of openraft's. Entries are applied in batches: all that is ready, up to
//! [`BATCH`], becomes one call to [`Replica::apply`], one new view and one wake per key, and only
//! then are the proposers answered. So a proposer that has its answer finds its write in the view.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot as RaftSnapshot,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::{Notify, Semaphore};

use super::{
    raft::{
        self, LeaderId, Proposal, RaftLogId, SnapshotMeta as RaftSnapshotMeta, StoredMembership,
        TypeConfig,
    },
    receiving::Receiving,
    recovery::NewMembers,
    runtime::{spawn_blocking, watch},
    sending::Sending,
};
use crate::{
    command::{Command, Outcome},
    log::{Server, ServerId},
    replica::{Committed, Replica},
    snapshot::{Snapshot, SnapshotError, SnapshotMeta, SnapshotStore},
    view::View,
};

/// How many entries are applied at once at most: it bounds how long the first of them waits for
/// its answer, and how stale the view can be under load.
const BATCH: usize = 512;

/// By how many times what makes a snapshot due the log may grow for one that is sent a snapshot.
const KEPT_FOR_SLOW: u64 = 4;

pub(super) struct Machine {
    /// Away only while entries are applied or it is restored; openraft stops for good if that fails.
    replica: Option<Replica>,
    applied: Option<RaftLogId>,
    membership: StoredMembership,
    snapshots: Arc<Snapshots>,
    /// Tells how far the published view is.
    published: watch::Sender<u64>,
}

/// The snapshots and what decides when to take the next one.
#[derive(Debug)]
pub(super) struct Snapshots {
    pub(super) store: SnapshotStore,
    /// One permit: held by whoever writes a snapshot.
    pub(super) writing: Arc<Semaphore>,
    /// Whose snapshot is arriving.
    pub(super) receiving: Arc<Receiving>,
    pub(super) policy: SnapshotPolicy,
    pub(super) sending: Sending,
    members: Option<Arc<NewMembers>>,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// The log has grown enough for a new snapshot.
    pub(super) due: Notify,
}

/// When to take a snapshot: as soon as the log has grown by this much since the last one. The log
/// keeps what came after the snapshot before the newest: between one and two times this much, which
/// also serves followers that were away shortly; and at least the last `trailing` entries behind the newest.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPolicy {
    pub entries: u64,
    pub bytes: u64,
    pub trailing: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> SnapshotPolicy {
        SnapshotPolicy {
            entries: 50_000,
            bytes: 128 << 20,
            trailing: 0,
        }
    }
}

/// What of the log can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purgeable {
    pub(super) up_to: u64,
    /// More could, were it not for a server that is sent a snapshot.
    pub(super) waits: bool,
}

impl Snapshots {
    /// `members`: who they are instead of those that an older snapshot names.
    pub(super) fn new(
        store: SnapshotStore,
        policy: SnapshotPolicy,
        members: Option<Arc<NewMembers>>,
    ) -> Arc<Snapshots> {
        Arc::new(Snapshots {
            store,
            writing: Arc::new(Semaphore::new(1)),
            receiving: Arc::default(),
            policy,
            sending: Sending::default(),
            members,
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            due: Notify::new(),
        })
    }

    /// The newest, with the members that count.
    fn current(&self) -> Option<Snapshot> {
        let mut current = self.store.current()?;
        if let Some(members) = &self.members {
            members.correct_snapshot(current.meta_mut());
        }
        Some(current)
    }

    /// Counts what was applied since the last snapshot.
    fn grew(&self, entries: u64, bytes: u64) {
        self.sending.grew(bytes);
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed) + entries;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if entries >= self.policy.entries || bytes >= self.policy.bytes {
            self.due.notify_one();
        }
    }

    /// Up to where the log can go; `None`: it is needed whole. Where there is no `room` to spare, it is not kept for
    /// those that are sent a snapshot.
    pub(super) fn purgeable(&self, room: bool) -> Option<Purgeable> {
        let unneeded = self.store.log_needed_after()?.index;
        let newest = self.store.current()?.meta().last?.index;
        let trailing = newest.checked_sub(self.policy.trailing)?;
        let up_to = unneeded.min(trailing);
        let most = self.policy.bytes.saturating_mul(KEPT_FOR_SLOW);
        let needed = self.sending.needed_after(most).filter(|_| room);
        Some(Purgeable {
            up_to: needed.map_or(up_to, |after| after.min(up_to)),
            waits: needed.is_some_and(|after| after < up_to),
        })
    }

    fn taken(&self) {
        self.entries.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Machine {
    /// The machine, and the index up to which it has applied and published the log.
    pub(super) fn new(
        replica: Replica,
        snapshots: Arc<Snapshots>,
    ) -> (Machine, watch::Receiver<u64>) {
        let (published, receiver) = watch::channel(0);
        let machine = Machine {
            replica: Some(replica),
            applied: None,
            membership: StoredMembership::default(),
            snapshots,
            published,
        };
        (machine, receiver)
    }

    /// Applies entries, and publishes the result.
    async fn advance(&mut self, committed: Vec<Committed>) -> io::Result<Vec<Outcome>> {
        let mut replica = self.replica.take().ok_or_else(gone)?;
        let restores = committed.iter().any(|entry| {
            entry
                .command
                .as_deref()
                .is_some_and(Command::replaces_state)
        });
        let (replica, outcomes) = match restores {
            // That may take seconds, in which others need this thread.
            true => {
                let apply = move || {
                    let outcomes = replica.apply(&committed);
                    (replica, outcomes)
                };
                spawn_blocking(apply).await.map_err(io::Error::other)?
            }
            false => {
                let outcomes = replica.apply(&committed);
                (replica, outcomes)
            }
        };
        self.replica = Some(replica);
        outcomes.map_err(io::Error::other)
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut committed = Vec::with_capacity(batch.len());
        let mut responders = Vec::with_capacity(batch.len());
        let mut bytes = 0;
        let mut applied = self.applied;
        let mut membership = None;
        for (entry, responder) in batch {
            let command = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(Proposal(command)) => Some(command),
                EntryPayload::Membership(new) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), new));
                    None
                }
            };
            bytes += command.as_ref().map_or(0, |command| command.len() as u64);
            committed.push(Committed {
                index: entry.log_id.index,
                command,
            });
            responders.push(responder);
            applied = Some(entry.log_id);
        }
        let entries = committed.len() as u64;
        let outcomes = self.advance(committed).await?;
        self.applied = applied;
        if let Some(membership) = membership {
            self.membership = membership;
        }
        if let Some(applied) = &self.applied {
            self.published.send_replace(applied.index);
        }
        for (responder, outcome) in responders.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        self.snapshots.grew(entries, bytes);
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::other("the state was lost in a failed restore")
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            self.apply_batch(batch.into_iter().collect::<io::Result<_>>()?)
                .await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.snapshots.taken();
        Builder {
            view: self.replica.as_ref().map(Replica::freeze),
            meta: SnapshotMeta {
                last: self.applied.as_ref().map(raft::log_id),
                membership: raft::membership(self.membership.membership()),
                membership_id: self.membership.log_id().as_ref().map(raft::log_id),
            },
            snapshots: self.snapshots.clone(),
        }
    }

    /// Also how a server starts from its own newest snapshot.
    async fn install_snapshot(
        &mut self,
        meta: &RaftSnapshotMeta,
        snapshot: Snapshot,
    ) -> io::Result<()> {
        let mut replica = self.replica.take().ok_or_else(gone)?;
        let snapshots = self.snapshots.clone();
        let restore = move || -> (Replica, Result<(), SnapshotError>) {
            let index = snapshot.meta().index();
            let restored = snapshot
                .reader()
                .and_then(|records| replica.restore(records, index))
                .and_then(|()| snapshots.store.adopt(&snapshot));
            (replica, restored)
        };
        let (replica, restored) = spawn_blocking(restore).await.map_err(io::Error::other)?;
        self.replica = Some(replica);
        restored.map_err(io::Error::other)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let Some(applied) = &self.applied {
            self.published.send_replace(applied.index);
        }
        self.snapshots.taken();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<RaftSnapshot<LeaderId, ServerId, Server, Snapshot>>> {
        self.snapshots.current().map(raft_snapshot).transpose()
    }
}

/// Writes one snapshot of a frozen view while the machine goes on.
pub(super) struct Builder {
    view: Option<Arc<View>>,
    meta: SnapshotMeta,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<RaftSnapshot<LeaderId, ServerId, Server, Snapshot>> {
        let permit = self.snapshots.writing.clone().acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let view = self.view.take();
        let view = view.ok_or_else(|| io::Error::other("no state to take a snapshot of"))?;
        let meta = self.meta.clone();
        let snapshots = self.snapshots.clone();
        let write = move || {
            let written = snapshots.store.write(&meta, view.records());
            // What only the snapshot still held is freed here, and not in the task that applies.
            drop(view);
            drop(permit);
            written
        };
        let written = spawn_blocking(write).await.map_err(io::Error::other)?;
        raft_snapshot(written.unwrap_or_else(|error| {
            // The log still has everything: a full disk is a reason to try again later, and none to
            // stop. The answer is that nothing has changed.
            match error {
                SnapshotError::Interrupted => tracing::debug!("no snapshot at the shutdown"),
                error => tracing::error!(%error, "no snapshot was taken"),
            }
            self.snapshots.current().unwrap_or_else(Snapshot::none)
        }))
    }
}

pub(super) fn raft_snapshot(
    snapshot: Snapshot,
) -> io::Result<RaftSnapshot<LeaderId, ServerId, Server, Snapshot>> {
    let meta = snapshot.meta();
    Ok(RaftSnapshot {
        meta: RaftSnapshotMeta {
            last_log_id: meta.last.map(raft::raft_log_id),
            last_membership: StoredMembership::new(
                meta.membership_id.map(raft::raft_log_id),
                raft::raft_membership(meta.membership.clone())?,
            ),
        },
        snapshot,
    })
}
