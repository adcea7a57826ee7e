//! The configuration a proxy serves with: a [`Snapshot`], compiled from the agent's messages off the data path,
//! immutable, shared by all workers.
//!
//! What outlives a snapshot (requests in flight, connections, counters) lives in small state objects of atomics that
//! the next snapshot takes over: see [`compile`].

mod compile;
mod desired;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use wharf_proto::v1;

pub(crate) use self::{
    compile::compile,
    desired::{Desired, OutOfStep},
};
use crate::{
    balance::{Balancer, Policy, Rng},
    metrics::Traffic,
};

/// Everything the data path needs to know.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) identity: Identity,
    pub(crate) listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    pub(crate) clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// What of the agent's configuration could not be used, and why.
    pub(crate) rejected: Vec<Rejection>,
}

/// Who this proxy is, as its agent told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) proxy_id: String,
    pub(crate) service: String,
    pub(crate) node: String,
    pub(crate) datacenter: String,
}

/// An entry that was refused. The last good one with its name, if there was one, is still in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) reason: Invalid,
}

/// Why an entry was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("it has no name")]
    NoName,
    #[error("address {0:?} is not an IP address")]
    Address(String),
    #[error("address {0:?} is neither an IP address nor a host name")]
    Host(String),
    #[error("port {0} is not between 1 and 65535")]
    Port(u32),
    #[error("direction {0} is neither inbound nor outbound")]
    Direction(i32),
    #[error("protocol {0} is not known to this version")]
    Protocol(i32),
    #[error("load balancing policy {0} is not known to this version")]
    LoadBalancing(i32),
    #[error("{address} is already used by listener {other:?}")]
    AddressTaken { address: SocketAddr, other: String },
    #[error("it refers to cluster {0:?}, which is not configured: no instance until it is")]
    NoCluster(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How bytes are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    /// Either version from the client, HTTP/1.1 to the instance.
    Http,
    /// Either version from the client, HTTP/2 to the instance.
    Http2,
    /// As `Http2`; errors of the proxy itself are told as a gRPC status.
    Grpc,
}

impl Protocol {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }
}

/// A port the proxy listens on, and where its traffic goes.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) direction: Direction,
    pub(crate) bind: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) cluster: Arc<Cluster>,
    /// Connections at a time; `None` for no limit.
    pub(crate) max_connections: Option<u32>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) state: Arc<ListenerState>,
}

/// What outlives a [`Listener`] of the same name.
#[derive(Debug, Default)]
pub(crate) struct ListenerState {
    pub(crate) connections: AtomicU32,
}

/// The instances of one service, and how they are used.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: Arc<str>,
    /// What a person calls it.
    pub(crate) service: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) policy: Policy,
    pub(crate) connect_timeout: Duration,
    /// Until the response's head; `None` for no limit.
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) limits: Limits,
    pub(crate) endpoints: Box<[Endpoint]>,
    pub(crate) state: Arc<ClusterState>,
    balancer: Balancer,
    /// What it was compiled from: an unchanged message keeps the compiled cluster.
    source: v1::Cluster,
}

/// `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) connections: Option<u32>,
    pub(crate) pending: Option<u32>,
    pub(crate) concurrent: Option<u32>,
}

/// What outlives a [`Cluster`] of the same name.
#[derive(Debug)]
pub(crate) struct ClusterState {
    /// Connections to instances, busy or idle, over all workers.
    pub(crate) connections: AtomicU32,
    /// Requests in work; counted only while there is a limit.
    pub(crate) requests: AtomicU32,
    /// A connection was given up, or back: whoever waits for one may try again.
    pub(crate) released: Notify,
    /// Requests that wait for a connection, by worker.
    waiting: Box<[AtomicU32]>,
    turn: AtomicU64,
}

/// A request that waits for a connection, counted while it exists.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a AtomicU32);

impl ClusterState {
    fn new(workers: usize) -> Self {
        Self {
            connections: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            released: Notify::new(),
            waiting: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            turn: AtomicU64::new(0),
        }
    }

    /// `None` when as many as may already wait.
    pub(crate) fn wait(&self, worker: usize, limit: Option<u32>) -> Option<Waiting<'_>> {
        let own = &self.waiting[worker];
        own.fetch_add(1, Relaxed);
        let waiting = Waiting(own);
        let all: u32 = self.waiting.iter().map(|w| w.load(Relaxed)).sum();
        limit.is_none_or(|limit| all <= limit).then_some(waiting)
    }

    pub(crate) fn waits_here(&self, worker: usize) -> bool {
        self.waiting[worker].load(Relaxed) > 0
    }

    /// Whether requests of other workers wait, and none of this one.
    pub(crate) fn waits_elsewhere(&self, worker: usize) -> bool {
        !self.waits_here(worker) && self.waiting.iter().any(|w| w.load(Relaxed) > 0)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One instance.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) target: Target,
    pub(crate) weight: u32,
    pub(crate) node: Box<str>,
    pub(crate) instance_id: Box<str>,
    pub(crate) state: Arc<EndpointState>,
}

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Address(SocketAddr),
    /// Resolved by the operating system at each connect.
    Name {
        host: Box<str>,
        port: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// What outlives an [`Endpoint`] as long as some snapshot or connection knows it.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// Unique within the process: the key of its pooled connections.
    pub(crate) id: u64,
    /// Requests, or TCP connections, that it serves now.
    pub(crate) in_flight: AtomicU32,
    /// No snapshot knows it any more: its idle connections are not kept.
    pub(crate) retired: AtomicBool,
    /// Connects that failed since one succeeded.
    failures: AtomicU32,
    /// Milliseconds after [`EPOCH`] until which others are preferred.
    avoid_until: AtomicU64,
}

impl EndpointState {
    /// An instance that refuses connections has the fewest requests in flight and would attract the most: after a
    /// failed connect others are preferred for this long, doubled with each failure in a row.
    const AVOID_FIRST: Duration = Duration::from_millis(100);
    const AVOID_MAX: Duration = Duration::from_secs(5);

    pub(crate) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            in_flight: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            avoid_until: AtomicU64::new(0),
        })
    }

    pub(crate) fn connected(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.avoid_until.store(0, Relaxed);
        }
    }

    pub(crate) fn connect_failed(&self, now: Instant) {
        let before = self.failures.fetch_add(1, Relaxed).min(16);
        let avoid = (Self::AVOID_FIRST * 2_u32.pow(before)).min(Self::AVOID_MAX);
        self.avoid_until.store(since_epoch(now + avoid), Relaxed);
    }

    /// How many connects failed since one succeeded.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    fn avoided(&self, now: impl Fn() -> Instant) -> bool {
        let until = self.avoid_until.load(Relaxed);
        // The clock is asked for only when there was a failure.
        until != 0 && since_epoch(now()) < until
    }
}

/// Milliseconds from the first use of the clock: an `Instant` that fits an atomic.
fn since_epoch(now: Instant) -> u64 {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let epoch = *EPOCH.get_or_init(|| now - Duration::from_secs(1));
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}

impl Cluster {
    /// An instance for one attempt that is not in `tried`, with those that just failed only when there are no others.
    pub(crate) fn pick(
        &self,
        rng: &Rng,
        now: impl Fn() -> Instant,
        tried: &[u64],
    ) -> Option<&Endpoint> {
        let turn = match self.policy {
            Policy::RoundRobin => self.state.turn.fetch_add(1, Relaxed),
            Policy::LeastRequest | Policy::Random => 0,
        };
        let untried = |i: usize| tried.is_empty() || !tried.contains(&self.endpoints[i].state.id);
        let load = |i: usize| self.endpoints[i].state.in_flight.load(Relaxed);
        self.balancer
            .pick(rng, turn, load, |i| {
                untried(i) && !self.endpoints[i].state.avoided(&now)
            })
            .or_else(|| self.balancer.pick(rng, turn, load, untried))
            .map(|i| &self.endpoints[i])
    }
}

impl Snapshot {
    /// Marks the instances that `self` had and `next` has not, so that workers close their idle connections.
    pub(crate) fn retire_missing(&self, next: &Self) {
        let states = |snapshot: &Self| {
            let listened = snapshot.listeners.values().map(|l| &l.cluster);
            snapshot
                .clusters
                .values()
                .chain(listened)
                .flat_map(|c| c.endpoints.iter().map(|e| Arc::clone(&e.state)))
                .collect::<Vec<_>>()
        };
        let kept: std::collections::HashSet<u64> = states(next).iter().map(|s| s.id).collect();
        for state in states(self) {
            if !kept.contains(&state.id) {
                state.retired.store(true, Relaxed);
            }
        }
    }

    /// The sets of counters in use, each once.
    pub(crate) fn traffic(&self) -> Vec<Arc<Traffic>> {
        let mut sets: BTreeMap<_, _> = BTreeMap::new();
        for listener in self.listeners.values() {
            sets.insert(&listener.traffic.labels, Arc::clone(&listener.traffic));
        }
        sets.into_values().collect()
    }
}
