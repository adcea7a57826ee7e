//! Which listeners hold their port, and the retry of those that cannot have it.
//!
//! A port that is taken costs its own listener only. It is tried again with a backoff, and shown on the admin port.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    config::Snapshot,
    tcp,
    worker::{Command, Handle},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Binder {
    bound: BTreeMap<Arc<str>, SocketAddr>,
    failed: BTreeMap<Arc<str>, Failed>,
}

/// A listener without its port.
#[derive(Debug)]
struct Failed {
    address: SocketAddr,
    error: io::Error,
    backoff: Duration,
    retry_at: Instant,
}

impl Binder {
    /// Makes the workers listen where the snapshot says.
    ///
    /// What leaves stops first, so that its port is free for what comes. A listener that moves holds its old port until
    /// it has the new one, unless another listener wants the old one.
    pub(crate) async fn reconcile(&mut self, snapshot: &Snapshot, workers: &[Handle]) {
        let wanted: HashSet<SocketAddr> = snapshot.listeners.values().map(|l| l.bind).collect();
        let stops: Vec<(Arc<str>, bool)> = self
            .bound
            .iter()
            .filter_map(|(name, address)| match snapshot.listeners.get(name) {
                None => Some((Arc::clone(name), true)),
                Some(l) if l.bind != *address && wanted.contains(address) => {
                    Some((Arc::clone(name), false))
                }
                Some(_) => None,
            })
            .collect();
        for (name, leave) in stops {
            self.bound.remove(&name);
            if leave {
                tracing::info!(listener = %name, "stopped listening");
            }
            let mut waits = Vec::with_capacity(workers.len());
            for worker in workers {
                let (stopped, wait) = oneshot::channel();
                // A worker that is gone listens no more.
                if worker
                    .commands
                    .send(Command::Stop {
                        name: Arc::clone(&name),
                        leave,
                        stopped,
                    })
                    .await
                    .is_ok()
                {
                    waits.push(wait);
                }
            }
            for wait in waits {
                let _ = wait.await;
            }
        }
        self.failed
            .retain(|name, _| snapshot.listeners.contains_key(name));

        let now = Instant::now();
        for (name, listener) in &snapshot.listeners {
            if self.bound.get(name) == Some(&listener.bind) {
                self.failed.remove(name);
                continue;
            }
            let before = self.failed.get(name).filter(|f| f.address == listener.bind);
            if before.is_some_and(|f| now < f.retry_at) {
                continue;
            }
            match tcp::listen(listener.bind, workers.len()) {
                Ok(sockets) => {
                    for (worker, socket) in workers.iter().zip(sockets) {
                        let open = Command::Open {
                            listener: Arc::clone(listener),
                            socket,
                        };
                        // As above: without its worker the socket closes.
                        let _ = worker.commands.send(open).await;
                    }
                    tracing::info!(
                        listener = %name, address = %listener.bind, protocol = listener.protocol.label(),
                        cluster = %listener.cluster.name, "listening"
                    );
                    self.failed.remove(name);
                    self.bound.insert(Arc::clone(name), listener.bind);
                }
                Err(error) => {
                    if before.is_none_or(|f| f.error.kind() != error.kind()) {
                        tracing::error!(listener = %name, address = %listener.bind, %error, "cannot listen; trying again");
                    }
                    let backoff =
                        before.map_or(BACKOFF_FIRST, |f| (f.backoff * 2).min(BACKOFF_MAX));
                    let failed = Failed {
                        address: listener.bind,
                        error,
                        backoff,
                        retry_at: now + backoff,
                    };
                    self.failed.insert(Arc::clone(name), failed);
                }
            }
        }
    }

    /// When a listener that failed should be tried again.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.failed.values().map(|f| f.retry_at).min()
    }

    /// Name, address and error of each listener without its port.
    pub(crate) fn failures(&self) -> Vec<(Arc<str>, SocketAddr, String)> {
        self.failed
            .iter()
            .map(|(name, f)| (Arc::clone(name), f.address, f.error.to_string()))
            .collect()
    }
}
