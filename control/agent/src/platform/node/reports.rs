//! What runners say of their allocations, on its way into the log: the latest of each, some at a time.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wharf_launcher::runner::Reports;
use wharf_registry::{
    Command,
    command::PlatformCommand,
    model::{Str, platform::AllocUpdate},
};

use crate::{cluster::Cluster, platform::unix_now};

/// Pause between two entries of the log: what is said in it goes together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Pause after a write that failed.
const RETRY: Duration = Duration::from_millis(500);

/// How long the last reports of an agent may take.
const LAST: Duration = Duration::from_secs(3);

/// Updates that are not written yet, at most one for each allocation of the node.
#[derive(Debug, Default)]
pub(super) struct ReportQueue {
    pending: Mutex<BTreeMap<Str, AllocUpdate>>,
    news: Notify,
}

impl Reports for ReportQueue {
    fn update(&self, update: AllocUpdate) {
        self.lock().insert(update.id.clone(), update);
        self.news.notify_one();
    }
}

impl ReportQueue {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Str, AllocUpdate>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until `stop`, and then what is left.
    pub(super) async fn run(
        self: Arc<Self>,
        cluster: Arc<dyn Cluster>,
        node_id: Str,
        stop: CancellationToken,
    ) {
        let write = async {
            loop {
                self.news.notified().await;
                let pause = match self.write(&*cluster, &node_id).await {
                    true => TOGETHER,
                    false => RETRY,
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = write => {}
            () = stop.cancelled() => {}
        }
        if tokio::time::timeout(LAST, self.write(&*cluster, &node_id)).await != Ok(true) {
            tracing::warn!("the last reports of this node's allocations are not written");
        }
    }

    async fn write(&self, cluster: &dyn Cluster, node_id: &Str) -> bool {
        let taken = mem::take(&mut *self.lock());
        if taken.is_empty() {
            return true;
        }
        let command = Command::Platform(PlatformCommand::UpdateAllocs {
            node_id: node_id.clone(),
            updates: taken.values().cloned().collect(),
            time: unix_now(),
        });
        let Err(error) = cluster.write(command).await else {
            return true;
        };
        tracing::warn!(%error, allocs = taken.len(), "reports of allocations wait");
        let mut pending = self.lock();
        for (id, update) in taken {
            // What was said since counts.
            pending.entry(id).or_insert(update);
        }
        self.news.notify_one();
        false
    }
}
