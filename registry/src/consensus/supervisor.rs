//! What has to be looked after while a server runs: who leads, when to take a snapshot, and whether
//! the core is still alive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{Instant as _, Raft, async_runtime::watch::WatchReceiver, errors::Fatal};

use super::{
    FatalHandler, Leader,
    contact::Contact,
    disk::{Room, Space},
    leader,
    machine::{Machine, Purgeable, Snapshots},
    network::Addresses,
    raft::TypeConfig,
    runtime::{self, Instant, watch},
};
use crate::log::ServerId;

pub(super) struct Supervisor {
    raft: Raft<TypeConfig, Machine>,
    touch: Touch,
    /// Since when this server leads.
    leading_since: Option<Instant>,
    snapshots: Arc<Snapshots>,
    space: Arc<Space>,
    /// The log is longer than it would be without those that are sent a snapshot.
    purge_waits: bool,
    addresses: Addresses,
    stopping: Arc<AtomicBool>,
    on_fatal: FatalHandler,
    leader: watch::Sender<Option<Leader>>,
}

/// By what a server tells that it is cut off: the core names the last leader until there is another.
pub(super) struct Touch {
    pub(super) own: ServerId,
    pub(super) contact: Arc<Contact>,
    /// How long the leader may be silent, and a quorum to a leader. `None` where there are no others.
    pub(super) patience: Option<Duration>,
}

impl Supervisor {
    pub(super) fn new(
        raft: Raft<TypeConfig, Machine>,
        touch: Touch,
        snapshots: Arc<Snapshots>,
        space: Arc<Space>,
        addresses: Addresses,
        stopping: Arc<AtomicBool>,
        on_fatal: FatalHandler,
    ) -> (Supervisor, watch::Receiver<Option<Leader>>) {
        let (sender, receiver) = watch::channel(None);
        let supervisor = Supervisor {
            raft,
            touch,
            leading_since: None,
            snapshots,
            space,
            purge_waits: false,
            addresses,
            stopping,
            on_fatal,
            leader: sender,
        };
        (supervisor, receiver)
    }

    pub(super) async fn run(mut self) {
        let look_again = self.touch.patience.map(|patience| patience / 4);
        let mut metrics = self.raft.server_metrics();
        let mut snapshot = self.raft.watch_snapshot_progress();
        loop {
            self.publish_leader();
            self.publish_addresses();
            // What is rare first: the metrics of a busy server change all the time.
            tokio::select! {
                biased;
                () = self.snapshots.due.notified() => {
                    if self.raft.trigger().snapshot().await.is_err() {
                        break;
                    }
                }
                changed = snapshot.changed() => {
                    if changed.is_err() || self.purge().await.is_err() {
                        break;
                    }
                }
                changed = metrics.changed() => if changed.is_err() { break },
                () = pause(look_again) => {
                    if self.purge_waits && self.purge().await.is_err() {
                        break;
                    }
                }
            }
        }
        self.leader.send_replace(None);
        if !self.stopping.load(Ordering::Relaxed) {
            self.on_fatal.call(&self.reason());
        }
    }

    /// Shortens the log after a snapshot.
    async fn purge(&mut self) -> Result<(), Fatal<TypeConfig>> {
        let room = self.space.look() == Room::Enough;
        let Some(Purgeable { up_to, waits }) = self.snapshots.purgeable(room) else {
            return Ok(());
        };
        self.purge_waits = waits;
        self.raft.trigger().purge_log(up_to).await
    }

    fn publish_leader(&mut self) {
        let current = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.current_leader.and_then(|id| {
                let server = metrics.membership_config.get_node(&id)?;
                Some(leader(id, server.clone()))
            })
        };
        let current = current.filter(|leader| self.is_in_touch(leader));
        self.leader.send_if_modified(|published| {
            let changed = *published != current;
            if changed {
                match &current {
                    Some(leader) => {
                        tracing::info!(name = leader.name, address = leader.address, "new leader");
                    }
                    None => tracing::warn!("the leader is lost"),
                }
                *published = current;
            }
            changed
        });
    }

    /// Whether the leader was heard lately, or this server, being the leader, by a quorum.
    fn is_in_touch(&mut self, leader: &Leader) -> bool {
        if leader.id != self.touch.own {
            self.leading_since = None;
            let silence = self.touch.contact.silence();
            return self
                .touch
                .patience
                .is_none_or(|patience| silence < patience);
        }
        let now = runtime::now();
        let since = *self.leading_since.get_or_insert(now);
        let Some(patience) = self.touch.patience else {
            return true;
        };
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.voter_ids().eq([self.touch.own]) {
            return true;
        }
        let acknowledged = metrics.last_quorum_acked.as_ref().map(|at| **at);
        let heard = acknowledged.map_or(since, |at| at.max(since));
        let silence = now.saturating_duration_since(heard);
        // Once it does not lead any more, this is what its view is as old as.
        self.touch.contact.was_made(silence);
        silence < patience
    }

    /// Streams to servers that moved go to where they are now.
    fn publish_addresses(&self) {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let servers = metrics.membership_config.nodes();
        let addresses = servers.map(|(id, server)| (*id, server.address.clone()));
        self.addresses.replace(addresses.collect());
    }

    /// Why the core ended.
    fn reason(&self) -> String {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match &metrics.running_state {
            Ok(()) => "the consensus task ended unexpectedly".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

async fn pause(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
