//! The control thread: follows the configuration, keeps the workers and their listeners in step with it, and ends them
//! in order. It touches no request.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::{
    sync::{Notify as Nudge, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    ProxyError, ProxyOptions,
    admin::Admin,
    binder::Binder,
    config::{Desired, Snapshot, compile},
    notify::Notify,
    source::Source,
    tuning::Tuning,
    worker::{self, Command, Handle},
};

/// What the admin port may look at.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) snapshot: ArcSwap<Snapshot>,
    /// A configuration has been received and applied.
    pub(crate) configured: AtomicBool,
    pub(crate) draining: AtomicBool,
    pub(crate) agent_connected: Arc<AtomicBool>,
    pub(crate) failed_listeners: Mutex<Vec<(Arc<str>, SocketAddr, String)>>,
    pub(crate) workers: usize,
}

/// Runs a proxy until `stop` gives a first word; a second one cuts the drain short.
pub(crate) async fn run(
    options: ProxyOptions,
    tuning: Tuning,
    mut stop: mpsc::Receiver<()>,
) -> Result<(), ProxyError> {
    // The cores this process may use: affinity and control group quota are taken into account.
    let workers = options
        .workers
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let status = Arc::new(Status {
        snapshot: ArcSwap::default(),
        configured: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        agent_connected: Arc::default(),
        failed_listeners: Mutex::default(),
        workers,
    });
    let mut waiting = options.notify.as_deref().map(Notify::new).transpose()?;
    let source = Source::new(&options, Arc::clone(&status.agent_connected))?;
    let admin = match options.admin {
        Some(address) => Some(Admin::start(address, Arc::clone(&status))?),
        None => None,
    };
    let mut control = Control {
        workers: start_workers(workers, tuning)?,
        binder: Binder::default(),
        status,
    };
    // Only the latest counts: what changes while a snapshot is built is built together.
    let (updates, mut received) = watch::channel(Desired::default());
    let mut following = std::pin::pin!(source.follow(updates));
    let ended = loop {
        let retry = control.binder.next_retry();
        tokio::select! {
            ended = &mut following => break ended,
            Ok(()) = received.changed() => {
                let desired = received.borrow_and_update().clone();
                control.apply(&desired).await;
                if let Some(notify) = waiting.take()
                    && let Err(error) = control.all_bound().and_then(|()| notify.ready())
                {
                    break Err(error);
                }
            }
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => control.bind().await,
            _ = stop.recv() => break Ok(()),
        }
    };
    control.drain(options.drain_timeout, &mut stop).await;
    drop(admin);
    ended
}

fn start_workers(count: usize, tuning: Tuning) -> Result<Vec<Handle>, ProxyError> {
    let nudges: Arc<[Nudge]> = (0..count).map(|_| Nudge::new()).collect();
    (0..count)
        .map(|id| worker::start(id, Arc::clone(&nudges), tuning))
        .collect::<Result<_, _>>()
        .map_err(|source| ProxyError::Start {
            what: "worker",
            source,
        })
}

struct Control {
    workers: Vec<Handle>,
    binder: Binder,
    status: Arc<Status>,
}

impl Control {
    async fn apply(&mut self, desired: &Desired) {
        let old = self.status.snapshot.load_full();
        let next = Arc::new(compile(&old, desired, self.workers.len()));
        for rejected in next.rejected.iter().filter(|r| !old.rejected.contains(r)) {
            tracing::warn!(kind = rejected.kind, name = %rejected.name, reason = %rejected.reason, "refused a part of the configuration");
        }
        self.status.snapshot.store(Arc::clone(&next));
        // Before the workers look for connections to close.
        old.retire_missing(&next);
        for worker in &self.workers {
            // A worker ends before its time only by a panic, which the runtime has reported.
            let _ = worker
                .commands
                .send(Command::Update(Arc::clone(&next)))
                .await;
        }
        self.bind().await;
        self.status.configured.store(true, Relaxed);
        tracing::debug!(version = next.version, "configuration applied");
    }

    async fn bind(&mut self) {
        let snapshot = self.status.snapshot.load_full();
        self.binder.reconcile(&snapshot, &self.workers).await;
        *self
            .status
            .failed_listeners
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = self.binder.failures();
    }

    /// Refuses to go on without a port.
    fn all_bound(&self) -> Result<(), ProxyError> {
        match self.binder.failures().into_iter().next() {
            None => Ok(()),
            Some((listener, address, reason)) => Err(ProxyError::Listen {
                listener: listener.to_string(),
                address,
                reason,
            }),
        }
    }

    async fn drain(self, timeout: Duration, stop: &mut mpsc::Receiver<()>) {
        self.status.draining.store(true, Relaxed);
        tracing::info!(
            ?timeout,
            "draining: no new connections, running requests finish"
        );
        let (force, forced) = watch::channel(false);
        let mut ends = Vec::with_capacity(self.workers.len());
        let mut threads = Vec::with_capacity(self.workers.len());
        for Handle {
            commands,
            ended,
            thread,
        } in self.workers
        {
            let _ = commands
                .send(Command::Drain {
                    forced: forced.clone(),
                })
                .await;
            ends.push(ended);
            threads.push(thread);
        }
        let mut ends = std::pin::pin!(join_all(ends));
        let counts = tokio::select! {
            counts = &mut ends => counts,
            () = async {
                tokio::select! {
                    () = sleep(timeout) => {}
                    _ = stop.recv() => {}
                }
            } => {
                force.send_replace(true);
                ends.await
            }
        };
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
        let cut: usize = counts.into_iter().map(Result::unwrap_or_default).sum();
        if cut > 0 {
            tracing::warn!(
                connections = cut,
                "cut connections that did not end in time"
            );
        } else {
            tracing::info!("drained");
        }
    }
}
