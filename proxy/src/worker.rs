//! A worker: one thread, one current-thread runtime, and everything a request needs without leaving that thread.
//!
//! Workers share the snapshot, the state of endpoints and the counters' exposition, and nothing else: a connection
//! lives and dies on the worker that accepted it, with that worker's pool, timers and random numbers. Futures are
//! `Send` all the same, so the runtime is a choice of this file alone.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    balance::Rng,
    config::{Listener, Protocol, Snapshot},
    drain::{Drain, Phase},
    http::{self, Pool},
    metrics::{Refusal, Traffic},
    tcp,
    tuning::Tuning,
};

/// How often idle connections to instances are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Between force and the end of the thread: connections notice at their next poll.
const FORCE_GRACE: Duration = Duration::from_millis(500);

/// What the connections of one thread have in common.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: usize,
    pub(crate) rng: Rng,
    pub(crate) pool: Pool,
    pub(crate) tuning: Tuning,
    /// One per worker: a request waits for a connection that only another worker can free.
    pub(crate) nudges: Arc<[Notify]>,
    /// Accepted connections.
    connections: TaskTracker,
    /// Drivers of HTTP/2 connections to instances: they end when the pool and the last stream let go.
    pub(crate) drivers: TaskTracker,
}

/// A listener as one worker sees it: replaced when the configuration changes, followed by its open connections.
#[derive(Debug)]
pub(crate) struct Cell {
    current: ArcSwap<Listener>,
    pub(crate) drain: Drain,
}

impl Cell {
    pub(crate) fn listener(&self) -> Arc<Listener> {
        self.current.load_full()
    }
}

/// What the control thread tells a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Listeners that are open follow this snapshot; connections to instances it does not know are closed.
    Update(Arc<Snapshot>),
    /// Accept from this socket, in place of the listener's former one if it has one.
    Open {
        listener: Arc<Listener>,
        socket: std::net::TcpListener,
    },
    /// Accept no more, and answer when the socket is closed. When the listener is to `leave`, running requests finish
    /// and its connections end; when it only moves, they stay.
    Stop {
        name: Arc<str>,
        leave: bool,
        stopped: oneshot::Sender<()>,
    },
    /// Close all listeners and finish; cut what is left when `forced` changes or its sender is gone.
    Drain { forced: watch::Receiver<bool> },
}

/// The control thread's end of a worker.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Bounded: the control thread waits for a worker that is busy.
    pub(crate) commands: mpsc::Sender<Command>,
    /// How many connections had to be cut, once the worker has ended.
    pub(crate) ended: oneshot::Receiver<usize>,
    pub(crate) thread: thread::JoinHandle<()>,
}

/// Starts worker `id`, one of as many as there are `nudges`.
pub(crate) fn start(id: usize, nudges: Arc<[Notify]>, tuning: Tuning) -> io::Result<Handle> {
    let (commands, receiver) = mpsc::channel(64);
    let (report, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let worker = Arc::new(Worker {
        id,
        rng: Rng::from_entropy(),
        pool: Pool::default(),
        tuning,
        nudges,
        connections: TaskTracker::new(),
        drivers: TaskTracker::new(),
    });
    let thread = thread::Builder::new()
        .name(format!("worker-{id}"))
        .spawn(move || {
            let cut = runtime.block_on(
                Loop {
                    worker,
                    listeners: HashMap::new(),
                    leaving: Vec::new(),
                }
                .run(receiver),
            );
            // Ends what is left before the report: then nothing of this worker runs any more.
            drop(runtime);
            let _ = report.send(cut);
        })?;
    Ok(Handle {
        commands,
        ended,
        thread,
    })
}

/// A listener that accepts.
struct Open {
    cell: Arc<Cell>,
    accepting: Option<Accepting>,
}

/// Dropping `stop` makes the task end, once it has taken what waits in the queue.
struct Accepting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Loop {
    worker: Arc<Worker>,
    listeners: HashMap<Arc<str>, Open>,
    /// Closed listeners that may still have connections.
    leaving: Vec<Arc<Cell>>,
}

impl Loop {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> usize {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let worker = Arc::clone(&self.worker);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Update(snapshot)) => self.update(&snapshot),
                    Some(Command::Open { listener, socket }) => self.open(listener, socket),
                    Some(Command::Stop { name, leave, stopped }) => {
                        self.stop(&name, leave).await;
                        // The control thread may have given up waiting.
                        let _ = stopped.send(());
                    }
                    Some(Command::Drain { forced }) => return self.drain(forced).await,
                    // The control thread is gone without a word: there is no one to wait for.
                    None => return self.drain(watch::channel(true).1).await,
                },
                _ = sweep.tick() => {
                    worker.pool.sweep(worker.id, worker.tuning.upstream_idle);
                    self.leaving.retain(|cell| Arc::strong_count(cell) > 1);
                }
                () = worker.nudges[worker.id].notified() => worker.pool.yield_to_others(worker.id),
            }
        }
    }

    fn update(&mut self, snapshot: &Snapshot) {
        for (name, open) in &self.listeners {
            if let Some(listener) = snapshot.listeners.get(name) {
                open.cell.current.store(Arc::clone(listener));
            }
        }
        self.worker
            .pool
            .sweep(self.worker.id, self.worker.tuning.upstream_idle);
    }

    fn open(&mut self, listener: Arc<Listener>, socket: std::net::TcpListener) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = %listener.name, %error, "cannot register the listening socket");
                return;
            }
        };
        let name = Arc::clone(&listener.name);
        // A listener that moves keeps its cell: its open connections still follow the configuration.
        let cell = match self.listeners.remove(&name) {
            Some(open) => open.cell,
            None => Arc::new(Cell {
                current: ArcSwap::new(listener),
                drain: Drain::default(),
            }),
        };
        let (stop, stopped) = oneshot::channel();
        let accept = tcp::accept(Arc::clone(&self.worker), Arc::clone(&cell), socket, stopped);
        let task = self.worker.connections.spawn(accept);
        self.listeners.insert(
            name,
            Open {
                cell,
                accepting: Some(Accepting { stop, task }),
            },
        );
    }

    async fn stop(&mut self, name: &str, leave: bool) {
        let Some(open) = self.listeners.get_mut(name) else {
            return;
        };
        if let Some(Accepting { stop, task }) = open.accepting.take() {
            drop(stop);
            // A panic in it was reported by the runtime; the socket is closed either way.
            let _ = task.await;
        }
        if leave && let Some(Open { cell, .. }) = self.listeners.remove(name) {
            cell.drain.advance(Phase::Graceful);
            self.leaving.push(cell);
        }
    }

    async fn drain(mut self, mut forced: watch::Receiver<bool>) -> usize {
        for name in self.listeners.keys().cloned().collect::<Vec<_>>() {
            self.stop(&name, true).await;
        }
        self.worker.pool.clear();
        let connections = &self.worker.connections;
        connections.close();
        tokio::select! {
            () = connections.wait() => return 0,
            _ = forced.wait_for(|forced| *forced) => {}
        }
        let cut = connections.len();
        for cell in &self.leaving {
            cell.drain.advance(Phase::Forced);
        }
        let _ = timeout(FORCE_GRACE, connections.wait()).await;
        cut
    }
}

impl Worker {
    /// Begins to serve an accepted connection, or closes it when the listener has as many as it may have.
    pub(crate) fn serve(self: &Arc<Self>, cell: &Arc<Cell>, client: TcpStream) {
        let listener = cell.listener();
        let guard = Connection::open(&listener, self.id);
        if listener
            .max_connections
            .is_some_and(|max| listener.state.connections.load(Relaxed) > max)
        {
            listener.traffic.shard(self.id).refuse(Refusal::Overloaded);
            return;
        }
        let (worker, cell) = (Arc::clone(self), Arc::clone(cell));
        match listener.protocol {
            Protocol::Tcp => {
                self.connections.spawn(async move {
                    let _guard = guard;
                    tcp::serve(worker, cell, client).await;
                });
            }
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
                self.connections.spawn(async move {
                    let _guard = guard;
                    http::serve(worker, cell, client).await;
                });
            }
        }
    }
}

/// Counts a connection while it exists.
struct Connection {
    traffic: Arc<Traffic>,
    state: Arc<crate::config::ListenerState>,
    worker: usize,
}

impl Connection {
    fn open(listener: &Listener, worker: usize) -> Self {
        let (traffic, state) = (Arc::clone(&listener.traffic), Arc::clone(&listener.state));
        traffic.shard(worker).connection_opened();
        state.connections.fetch_add(1, Relaxed);
        Self {
            traffic,
            state,
            worker,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.traffic.shard(self.worker).connection_closed();
        self.state.connections.fetch_sub(1, Relaxed);
    }
}
