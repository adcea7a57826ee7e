//! What has to be looked after while a server runs: who leads, when to take a snapshot, and whether
//! the core is still alive.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use openraft::{Raft, async_runtime::watch::WatchReceiver, errors::Fatal};
use tokio::sync::watch;

use super::{
    FatalHandler, Leader, leader,
    machine::{Machine, Snapshots},
    network::Addresses,
    raft::TypeConfig,
};

pub(super) struct Supervisor {
    raft: Raft<TypeConfig, Machine>,
    snapshots: Arc<Snapshots>,
    addresses: Addresses,
    stopping: Arc<AtomicBool>,
    on_fatal: FatalHandler,
    leader: watch::Sender<Option<Leader>>,
}

impl Supervisor {
    pub(super) fn new(
        raft: Raft<TypeConfig, Machine>,
        snapshots: Arc<Snapshots>,
        addresses: Addresses,
        stopping: Arc<AtomicBool>,
        on_fatal: FatalHandler,
    ) -> (Supervisor, watch::Receiver<Option<Leader>>) {
        let (sender, receiver) = watch::channel(None);
        let supervisor = Supervisor {
            raft,
            snapshots,
            addresses,
            stopping,
            on_fatal,
            leader: sender,
        };
        (supervisor, receiver)
    }

    pub(super) async fn run(self) {
        let mut metrics = self.raft.server_metrics();
        let mut snapshot = self.raft.watch_snapshot_progress();
        loop {
            self.publish_leader();
            self.publish_addresses();
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
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
            }
        }
        self.leader.send_replace(None);
        if !self.stopping.load(Ordering::Relaxed) {
            self.on_fatal.call(&self.reason());
        }
    }

    /// Shortens the log after a snapshot.
    async fn purge(&self) -> Result<(), Fatal<TypeConfig>> {
        match self.snapshots.store.log_needed_after() {
            Some(id) => self.raft.trigger().purge_log(id.index).await,
            None => Ok(()),
        }
    }

    fn publish_leader(&self) {
        let current = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.current_leader.and_then(|id| {
                let server = metrics.membership_config.get_node(&id)?;
                Some(leader(id, server.clone()))
            })
        };
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
