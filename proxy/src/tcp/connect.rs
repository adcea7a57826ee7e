//! A connection to one of a cluster's instances.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout_at,
};

use crate::{
    config::{Cluster, ClusterState, Endpoint, EndpointState, Target},
    metrics::Shard,
    worker::Worker,
};

/// A dead peer is noticed after `KEEPALIVE_IDLE` + 3 probes, and unacknowledged data after `USER_TIMEOUT`.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Set on each side of the proxy. On a listening socket they are inherited by what it accepts.
pub(crate) fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Why no instance could be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no healthy instance of {service:?}")]
    NoInstance { service: Box<str> },
    #[error("no instance of {service:?} accepts connections ({tried} tried; last: {last})")]
    AllFailed {
        service: Box<str>,
        tried: usize,
        last: io::Error,
    },
    #[error("{service:?} is at its limit of {limit} {what}")]
    Overloaded {
        service: Box<str>,
        limit: u32,
        what: &'static str,
    },
}

/// Counts one request, or one TCP connection, as work of an instance while it exists.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<EndpointState>);

impl InFlight {
    pub(crate) fn new(endpoint: &Arc<EndpointState>) -> Self {
        endpoint.in_flight.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint))
    }

    pub(crate) fn endpoint(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// One of the cluster's connections, counted while it exists.
#[derive(Debug)]
pub(crate) struct Slot(Arc<ClusterState>);

impl Slot {
    /// `None` when the cluster has all the connections it may have.
    pub(crate) fn take(cluster: &Cluster) -> Option<Self> {
        let state = &cluster.state;
        let limit = cluster.limits.connections.unwrap_or(u32::MAX);
        if state.connections.fetch_add(1, Relaxed) >= limit {
            state.connections.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(Arc::clone(state)))
    }

    pub(crate) fn cluster(&self) -> &Arc<ClusterState> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.0.released.notify_waiters();
    }
}

/// What was tried so far for one request or connection.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Ids of the instances that refused. Empty, and so without an allocation, nearly always.
    tried: Vec<u64>,
    last: Option<io::Error>,
    began: Option<Instant>,
}

impl Attempts {
    /// The next instance to try, or why there is none.
    ///
    /// Every instance is tried at most once. No new attempt begins after twice the cluster's connect timeout: instances
    /// that refuse cost microseconds and may all be tried, but a caller does not wait for a whole rack that is gone.
    pub(crate) fn next<'c>(
        &mut self,
        worker: &Worker,
        cluster: &'c Cluster,
    ) -> Result<&'c Endpoint, ConnectError> {
        let budget = cluster.connect_timeout * 2;
        let in_time = self.began.is_none_or(|began| began.elapsed() < budget);
        let endpoint = if in_time {
            cluster.pick(&worker.rng, Instant::now, &self.tried)
        } else {
            None
        };
        match (endpoint, self.last.take()) {
            (Some(endpoint), last) => {
                self.last = last;
                Ok(endpoint)
            }
            (None, Some(last)) => Err(ConnectError::AllFailed {
                service: cluster.service.clone(),
                tried: self.tried.len(),
                last,
            }),
            (None, None) => Err(ConnectError::NoInstance {
                service: cluster.service.clone(),
            }),
        }
    }

    /// Notes that an instance accepted a connection and closed it before anything was sent.
    pub(crate) fn closed(&mut self, endpoint: &EndpointState) {
        self.failed(
            endpoint,
            io::Error::new(
                io::ErrorKind::ConnectionReset,
                "closed as soon as it was open",
            ),
        );
    }

    fn failed(&mut self, endpoint: &EndpointState, error: io::Error) {
        endpoint.connect_failed(Instant::now());
        self.tried.push(endpoint.id);
        self.last = Some(error);
    }

    /// Notes that another request has just failed to connect to this instance.
    pub(crate) fn skip(&mut self, endpoint: &EndpointState) {
        self.tried.push(endpoint.id);
        self.last.get_or_insert_with(|| {
            io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "it just failed for others",
            )
        });
    }

    pub(crate) fn any_failed(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Connects to the instance that [`next`](Self::next) gave. A failure is noted, with the instance and the counters,
    /// so that the next attempt goes elsewhere.
    pub(crate) async fn connect(
        &mut self,
        endpoint: &Endpoint,
        timeout: Duration,
        shard: &Shard,
    ) -> Option<TcpStream> {
        let began = Instant::now();
        self.began.get_or_insert(began);
        match connect(&endpoint.target, began + timeout).await {
            Ok(stream) => {
                endpoint.state.connected();
                Some(stream)
            }
            Err(error) => {
                shard.connect_failures.fetch_add(1, Relaxed);
                self.failed(&endpoint.state, error);
                None
            }
        }
    }
}

async fn connect(target: &Target, deadline: Instant) -> io::Result<TcpStream> {
    let attempt = async {
        match target {
            Target::Address(address) => connect_to(*address).await,
            Target::Name { host, port } => {
                let mut last =
                    io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
                for address in tokio::net::lookup_host((&**host, *port)).await? {
                    match connect_to(address).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    };
    match timeout_at(deadline.into(), attempt).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connect timed out")),
    }
}

async fn connect_to(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    set_options(&SockRef::from(&socket))?;
    socket.connect(address).await
}
