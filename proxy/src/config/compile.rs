//! From the agent's messages to a [`Snapshot`]: a pure function of the previous snapshot and what is wanted now.
//!
//! The bias is availability: an entry that cannot be used is refused alone, with its reason, and the last good entry of
//! its name stays. A proxy that serves yesterday's route is better than one that serves none.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use wharf_proto::v1;

use super::{
    Cluster, ClusterState, Desired, Direction, Endpoint, EndpointState, Invalid, Limits, Listener,
    Protocol, Rejection, Snapshot, Target,
};
use crate::{
    balance::{Balancer, Policy},
    metrics::{Labels, Traffic},
};

/// Of a cluster that names none.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 1035 §2.3.4.
const MAX_HOST_NAME: usize = 253;

/// Builds the next snapshot. State of listeners, clusters and instances that stay, and the counters, are taken over
/// from `old`.
pub(crate) fn compile(old: &Snapshot, desired: &Desired, workers: usize) -> Snapshot {
    let mut rejected = Vec::new();
    let clusters = desired
        .clusters
        .iter()
        .filter_map(|(name, message)| {
            let before = old.clusters.get(name.as_str());
            let compiled = cluster(message, before, workers, &mut rejected).or_else(|reason| {
                rejected.push(Rejection {
                    kind: "cluster",
                    name: name.clone(),
                    reason,
                });
                before.cloned().ok_or(())
            });
            compiled.ok().map(|c| (Arc::clone(&c.name), c))
        })
        .collect::<BTreeMap<_, _>>();

    let mut builder = Listeners {
        old,
        clusters: &clusters,
        workers,
        traffic: traffic_of(old),
        rejected,
        taken: HashMap::new(),
    };
    let mut listeners = BTreeMap::new();
    for message in desired.listeners.values() {
        if let Some(listener) = builder.add(message) {
            listeners.insert(Arc::clone(&listener.name), listener);
        }
    }
    let rejected = builder.rejected;
    Snapshot {
        version: desired.version,
        identity: desired.identity.clone(),
        listeners,
        clusters,
        rejected,
    }
}

fn traffic_of(snapshot: &Snapshot) -> BTreeMap<Labels, Arc<Traffic>> {
    snapshot
        .traffic()
        .into_iter()
        .map(|set| (set.labels.clone(), set))
        .collect()
}

struct Listeners<'a> {
    old: &'a Snapshot,
    clusters: &'a BTreeMap<Arc<str>, Arc<Cluster>>,
    workers: usize,
    traffic: BTreeMap<Labels, Arc<Traffic>>,
    rejected: Vec<Rejection>,
    taken: HashMap<SocketAddr, String>,
}

impl Listeners<'_> {
    fn add(&mut self, message: &v1::Listener) -> Option<Arc<Listener>> {
        let before = self.old.listeners.get(message.name.as_str());
        match self.listener(message, before) {
            Ok(listener) => {
                self.taken.insert(listener.bind, message.name.clone());
                Some(listener)
            }
            Err(reason) => {
                self.reject(message, reason);
                let kept = before.filter(|l| !self.taken.contains_key(&l.bind))?;
                self.taken.insert(kept.bind, message.name.clone());
                // The listener stays as it was, but its cluster is today's.
                let cluster = self
                    .clusters
                    .get(&kept.cluster.name)
                    .unwrap_or(&kept.cluster);
                Some(Arc::new(Listener {
                    name: Arc::clone(&kept.name),
                    cluster: Arc::clone(cluster),
                    traffic: Arc::clone(&kept.traffic),
                    state: Arc::clone(&kept.state),
                    ..**kept
                }))
            }
        }
    }

    fn reject(&mut self, message: &v1::Listener, reason: Invalid) {
        self.rejected.push(Rejection {
            kind: "listener",
            name: message.name.clone(),
            reason,
        });
    }

    fn listener(
        &mut self,
        message: &v1::Listener,
        before: Option<&Arc<Listener>>,
    ) -> Result<Arc<Listener>, Invalid> {
        if message.name.is_empty() {
            return Err(Invalid::NoName);
        }
        let address = match message.address.as_str() {
            "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            text => text
                .parse()
                .map_err(|_| Invalid::Address(text.to_owned()))?,
        };
        let bind = SocketAddr::new(address, port(message.port)?);
        if let Some(other) = self.taken.get(&bind) {
            return Err(Invalid::AddressTaken {
                address: bind,
                other: other.clone(),
            });
        }
        let direction = match message.direction() {
            v1::ListenerDirection::Inbound => Direction::Inbound,
            v1::ListenerDirection::Outbound => Direction::Outbound,
            v1::ListenerDirection::Unspecified => {
                return Err(Invalid::Direction(message.direction));
            }
        };
        let protocol = protocol(message.protocol)?;
        let cluster = match self.clusters.get(message.cluster.as_str()) {
            Some(cluster) => Arc::clone(cluster),
            // It may come with a later message. Until then there is no instance, and that is what callers are told.
            None => {
                self.reject(message, Invalid::NoCluster(message.cluster.clone()));
                let source = v1::Cluster {
                    name: message.cluster.clone(),
                    service: message.cluster.clone(),
                    protocol: message.protocol,
                    ..v1::Cluster::default()
                };
                let state = Arc::new(ClusterState::new(self.workers));
                cluster_of(
                    source,
                    Arc::from(message.cluster.as_str()),
                    protocol,
                    Policy::LeastRequest,
                    Box::new([]),
                    state,
                )
            }
        };
        let labels = Labels {
            direction: direction.label(),
            service: cluster.service.clone(),
            cluster: (&*cluster.name).into(),
        };
        let traffic = self
            .traffic
            .entry(labels)
            .or_insert_with_key(|labels| Traffic::new(labels.clone(), self.workers));
        Ok(Arc::new(Listener {
            name: before.map_or_else(|| Arc::from(message.name.as_str()), |l| Arc::clone(&l.name)),
            direction,
            bind,
            protocol,
            cluster,
            max_connections: limit(message.max_connections),
            traffic: Arc::clone(traffic),
            state: before.map(|l| Arc::clone(&l.state)).unwrap_or_default(),
        }))
    }
}

fn cluster(
    message: &v1::Cluster,
    before: Option<&Arc<Cluster>>,
    workers: usize,
    rejected: &mut Vec<Rejection>,
) -> Result<Arc<Cluster>, Invalid> {
    if message.name.is_empty() {
        return Err(Invalid::NoName);
    }
    let protocol = protocol(message.protocol)?;
    let policy = match v1::LoadBalancing::try_from(message.load_balancing) {
        Ok(v1::LoadBalancing::Unspecified | v1::LoadBalancing::LeastRequest) => {
            Policy::LeastRequest
        }
        Ok(v1::LoadBalancing::RoundRobin) => Policy::RoundRobin,
        Ok(v1::LoadBalancing::Random) => Policy::Random,
        Err(_) => return Err(Invalid::LoadBalancing(message.load_balancing)),
    };

    // Refused instances are named again with each snapshot, so this is checked also when nothing changed.
    let known: HashMap<_, _> = before
        .iter()
        .flat_map(|c| c.endpoints.iter())
        .map(|e| ((&e.target, &*e.instance_id), &e.state))
        .collect();
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(message.endpoints.len());
    let mut seen = std::collections::HashSet::new();
    for endpoint in &message.endpoints {
        let target = match target(endpoint) {
            Ok(target) => target,
            Err(reason) => {
                let name = format!("{}:{} of {}", endpoint.address, endpoint.port, message.name);
                rejected.push(Rejection {
                    kind: "endpoint",
                    name,
                    reason,
                });
                continue;
            }
        };
        if !seen.insert((target.clone(), endpoint.instance_id.as_str())) {
            continue;
        }
        let state = known
            .get(&(&target, endpoint.instance_id.as_str()))
            .map(|s| Arc::clone(s));
        endpoints.push(Endpoint {
            target,
            weight: endpoint.weight.max(1),
            node: endpoint.node.as_str().into(),
            instance_id: endpoint.instance_id.as_str().into(),
            state: state.unwrap_or_else(EndpointState::new),
        });
    }
    if let Some(before) = before.filter(|c| c.source == *message) {
        return Ok(Arc::clone(before));
    }
    let name = before.map_or_else(|| Arc::from(message.name.as_str()), |c| Arc::clone(&c.name));
    let state = before.map_or_else(
        || Arc::new(ClusterState::new(workers)),
        |c| Arc::clone(&c.state),
    );
    Ok(cluster_of(
        message.clone(),
        name,
        protocol,
        policy,
        endpoints.into(),
        state,
    ))
}

fn cluster_of(
    source: v1::Cluster,
    name: Arc<str>,
    protocol: Protocol,
    policy: Policy,
    endpoints: Box<[Endpoint]>,
    state: Arc<ClusterState>,
) -> Arc<Cluster> {
    let weights: Vec<u32> = endpoints.iter().map(|e| e.weight).collect();
    let millis = |ms: u32| (ms != 0).then(|| Duration::from_millis(ms.into()));
    let service = if source.service.is_empty() {
        &source.name
    } else {
        &source.service
    };
    Arc::new(Cluster {
        name,
        service: service.as_str().into(),
        protocol,
        policy,
        connect_timeout: millis(source.connect_timeout_ms).unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        request_timeout: millis(source.request_timeout_ms),
        limits: Limits {
            connections: limit(source.max_connections),
            pending: limit(source.max_pending_requests),
            concurrent: limit(source.max_concurrent_requests),
        },
        balancer: Balancer::new(policy, &weights),
        endpoints,
        state,
        source,
    })
}

fn target(endpoint: &v1::Endpoint) -> Result<Target, Invalid> {
    let port = port(endpoint.port)?;
    let host = endpoint.address.as_str();
    if let Ok(ip) = host.parse() {
        return Ok(Target::Address(SocketAddr::new(ip, port)));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > MAX_HOST_NAME || !name.split('.').all(label) {
        return Err(Invalid::Host(host.to_owned()));
    }
    Ok(Target::Name {
        host: host.into(),
        port,
    })
}

fn port(port: u32) -> Result<u16, Invalid> {
    u16::try_from(port)
        .ok()
        .filter(|&p| p != 0)
        .ok_or(Invalid::Port(port))
}

fn protocol(number: i32) -> Result<Protocol, Invalid> {
    match v1::ProxyProtocol::try_from(number) {
        Ok(v1::ProxyProtocol::Unspecified | v1::ProxyProtocol::Tcp) => Ok(Protocol::Tcp),
        Ok(v1::ProxyProtocol::Http) => Ok(Protocol::Http),
        Ok(v1::ProxyProtocol::Http2) => Ok(Protocol::Http2),
        Ok(v1::ProxyProtocol::Grpc) => Ok(Protocol::Grpc),
        Err(_) => Err(Invalid::Protocol(number)),
    }
}

/// The wire's 0 is no limit.
fn limit(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}
