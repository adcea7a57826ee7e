//! From the registry to the listeners and clusters of one proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use serde_json::Value;
use wharf_proto::v1::{
    Cluster, Endpoint, Listener, ListenerDirection, LoadBalancing, ProxyProtocol, ProxySnapshot,
};
use wharf_registry::{
    View,
    model::{
        CheckStatus, ConfigEntry, ConfigEntryKind, ProxyDefaults, ServiceDefaults, Settings,
        Upstream, UpstreamSettings,
    },
    state::Instance,
    watch::WatchKey,
};

use crate::{
    describe::ProxyDescription,
    settings::{self, Source, number_in},
};

/// The name of the cluster behind an inbound listener, as in Consul's Envoy configuration.
const LOCAL_APPLICATION: &str = "local_app";

/// What a proxy has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// Listeners and clusters are sorted by name.
    pub snapshot: ProxySnapshot,
    /// Everything this depends on: while none of these changes, compiling again gives the same.
    pub keys: BTreeSet<WatchKey>,
    /// What of the registration could not be used, for the log.
    pub problems: Vec<String>,
}

/// Compiles the configuration of a proxy.
///
/// It never fails: what cannot be used is left out and reported, and an upstream whose service does
/// not exist is a cluster without endpoints until it does.
pub fn compile(view: &View, description: &ProxyDescription) -> Compiled {
    let mut compiler = Compiler {
        view,
        description,
        keys: BTreeSet::new(),
        problems: Vec::new(),
        listeners: BTreeMap::new(),
        clusters: BTreeMap::new(),
    };
    compiler
        .keys
        .insert(WatchKey::node(&description.place.node));
    compiler.inbound();
    for upstream in &description.proxy.upstreams {
        compiler.outbound(upstream);
    }
    Compiled {
        snapshot: ProxySnapshot {
            proxy_id: description.id.to_string(),
            service: description.service.to_string(),
            node: description.place.node.to_string(),
            datacenter: description.place.datacenter.to_string(),
            listeners: compiler.listeners.into_values().collect(),
            clusters: compiler.clusters.into_values().collect(),
        },
        keys: compiler.keys,
        problems: compiler.problems,
    }
}

struct Compiler<'a> {
    view: &'a View,
    description: &'a ProxyDescription,
    keys: BTreeSet<WatchKey>,
    problems: Vec<String>,
    /// By name.
    listeners: BTreeMap<String, Listener>,
    clusters: BTreeMap<String, Cluster>,
}

impl<'a> Compiler<'a> {
    /// From the network to the application. A proxy without a port has none.
    fn inbound(&mut self) {
        let proxy = &self.description.proxy;
        let own = Source {
            name: "proxy",
            settings: &proxy.config,
        };
        let port = own
            .number("bind_port", &mut self.problems)
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port != 0)
            .unwrap_or(self.description.port);
        if port == 0 {
            return;
        }
        let local_port = match proxy.local_service_port {
            0 => self.description.application_port,
            port => port,
        };
        if local_port == 0 {
            self.problems.push(
                "proxy: no inbound listener, because the port of the application is not known"
                    .into(),
            );
            return;
        }
        let bind = own
            .text("bind_address", &mut self.problems)
            .unwrap_or("127.0.0.1");
        let Ok(bind) = bind.parse::<IpAddr>() else {
            self.problems
                .push(format!("proxy: bind_address {bind:?} is not an IP address"));
            return;
        };
        let defaults = self.service_defaults(&self.description.service);
        let protocol = self.protocol(defaults, &[own]);
        let mut limit =
            |key, of_service: u32| own.number(key, &mut self.problems).unwrap_or(of_service);
        let of_service = defaults.cloned().unwrap_or_default();
        let max_connections = limit(
            "max_inbound_connections",
            of_service.max_inbound_connections,
        );
        let cluster = Cluster {
            name: LOCAL_APPLICATION.into(),
            service: self.description.service.to_string(),
            protocol: protocol.into(),
            load_balancing: LoadBalancing::LeastRequest.into(),
            connect_timeout_ms: limit(
                "local_connect_timeout_ms",
                of_service.local_connect_timeout_ms,
            ),
            request_timeout_ms: limit(
                "local_request_timeout_ms",
                of_service.local_request_timeout_ms,
            ),
            endpoints: vec![Endpoint {
                address: match &*proxy.local_service_address {
                    "" => "127.0.0.1".into(),
                    address => address.to_owned(),
                },
                port: local_port.into(),
                weight: 1,
                node: self.description.place.node.to_string(),
                instance_id: proxy.destination_service_id.to_string(),
            }],
            ..Cluster::default()
        };
        let listener = Listener {
            name: format!("public_listener:{bind}:{port}"),
            direction: ListenerDirection::Inbound.into(),
            address: bind.to_string(),
            port: port.into(),
            protocol: protocol.into(),
            cluster: cluster.name.clone(),
            max_connections,
        };
        self.clusters.insert(cluster.name.clone(), cluster);
        self.listeners.insert(listener.name.clone(), listener);
    }

    /// From a local port to the instances of a service.
    fn outbound(&mut self, upstream: &'a Upstream) {
        let name = format!("upstream {:?}", upstream.destination_name);
        if !matches!(&*upstream.destination_type, "" | "service") {
            self.problems.push(format!(
                "{name}: destination type {:?} is not supported",
                upstream.destination_type
            ));
            return;
        }
        if upstream.destination_name.is_empty() || upstream.local_bind_port == 0 {
            self.problems
                .push(format!("{name}: it needs a destination and a local port"));
            return;
        }
        let bind = match &*upstream.local_bind_address {
            "" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            text => text.parse(),
        };
        let Ok(bind) = bind else {
            self.problems.push(format!(
                "{name}: local address {:?} is not an IP address",
                upstream.local_bind_address
            ));
            return;
        };
        let (address, port) = (bind.to_string(), u32::from(upstream.local_bind_port));
        let mut others = self.listeners.values();
        if let Some(other) = others.find(|other| other.address == address && other.port == port) {
            self.problems.push(format!(
                "{name}: {address} port {port} is already that of {:?}",
                other.name
            ));
            return;
        }
        let mut listener = Listener {
            name: format!("{}:{address}:{port}", upstream.destination_name),
            direction: ListenerDirection::Outbound.into(),
            address,
            port,
            ..Listener::default()
        };
        let mut cluster = self.upstream_cluster(&name, upstream);
        // Two upstreams may lead to one service with different settings.
        if self
            .clusters
            .get(&cluster.name)
            .is_some_and(|other| *other != cluster)
        {
            cluster.name.clone_from(&listener.name);
        }
        listener.protocol = cluster.protocol;
        listener.cluster.clone_from(&cluster.name);
        self.clusters.insert(cluster.name.clone(), cluster);
        self.listeners.insert(listener.name.clone(), listener);
    }

    fn upstream_cluster(&mut self, name: &str, upstream: &'a Upstream) -> Cluster {
        let destination = &upstream.destination_name;
        let elsewhere = !upstream.datacenter.is_empty()
            && upstream.datacenter != self.description.place.datacenter;
        let own = Source {
            name,
            settings: &upstream.config,
        };
        // What the clients of the destination are told about it comes from the client's own entry.
        let (named, all) = self
            .service_defaults(&self.description.service)
            .and_then(|defaults| defaults.upstream_config.as_ref())
            .map_or((None, None), |config| {
                let named = config
                    .overrides
                    .iter()
                    .find(|settings| settings.name == *destination);
                (named, config.defaults.as_ref())
            });
        let central: Vec<&UpstreamSettings> = [named, all].into_iter().flatten().collect();

        let defaults = self.service_defaults(destination);
        let protocol = self.protocol(defaults, &[own]);
        let connect_timeout_ms = own
            .number("connect_timeout_ms", &mut self.problems)
            .or_else(|| {
                let mut timeouts = central.iter().map(|settings| settings.connect_timeout_ms);
                timeouts.find(|&ms| ms != 0)
            })
            .unwrap_or(0);
        let limits: Vec<&Value> = own
            .object("limits")
            .into_iter()
            .chain(
                central
                    .iter()
                    .filter_map(|settings| settings.limits.as_ref()),
            )
            .collect();
        let mut limit = |key| {
            let mut values = limits
                .iter()
                .filter_map(|limits| number_in(limits, name, key, &mut self.problems));
            values.next().unwrap_or(0)
        };
        let (max_connections, max_pending_requests, max_concurrent_requests) = (
            limit("max_connections"),
            limit("max_pending_requests"),
            limit("max_concurrent_requests"),
        );
        let endpoints = if elsewhere {
            self.problems.push(format!(
                "{name}: datacenter {:?} is not reachable from here",
                upstream.datacenter
            ));
            Vec::new()
        } else {
            self.keys.insert(WatchKey::service(destination));
            self.view
                .service(destination)
                .map(|service| {
                    service
                        .instances
                        .values()
                        .filter_map(|i| endpoint(i))
                        .collect()
                })
                .unwrap_or_default()
        };
        Cluster {
            name: if elsewhere {
                format!("{destination}.{}", upstream.datacenter)
            } else {
                destination.to_string()
            },
            service: destination.to_string(),
            protocol: protocol.into(),
            load_balancing: LoadBalancing::LeastRequest.into(),
            connect_timeout_ms,
            request_timeout_ms: 0,
            max_connections,
            max_pending_requests,
            max_concurrent_requests,
            endpoints,
        }
    }

    /// The service's own defaults decide, then what the proxy was registered with, then the
    /// defaults of every proxy.
    fn protocol(
        &mut self,
        defaults: Option<&ServiceDefaults>,
        registered: &[Source<'_>],
    ) -> ProxyProtocol {
        let of_service = defaults.and_then(|defaults| {
            let source = format!("service-defaults {:?}", defaults.name);
            settings::protocol(&defaults.protocol, &source, &mut self.problems)
        });
        if let Some(protocol) = of_service {
            return protocol;
        }
        let empty = Settings::new();
        let global = Source {
            name: "proxy-defaults \"global\"",
            settings: self
                .proxy_defaults()
                .map_or(&empty, |global| &global.config),
        };
        registered
            .iter()
            .chain([&global])
            .find_map(|source| {
                let text = source.text("protocol", &mut self.problems)?;
                settings::protocol(text, source.name, &mut self.problems)
            })
            .unwrap_or(ProxyProtocol::Tcp)
    }

    fn service_defaults(&mut self, service: &str) -> Option<&'a ServiceDefaults> {
        match self.config_entry(ConfigEntryKind::ServiceDefaults, service)? {
            ConfigEntry::ServiceDefaults(entry) => Some(entry),
            ConfigEntry::ProxyDefaults(_) => None,
        }
    }

    fn proxy_defaults(&mut self) -> Option<&'a ProxyDefaults> {
        match self.config_entry(ConfigEntryKind::ProxyDefaults, "global")? {
            ConfigEntry::ProxyDefaults(entry) => Some(entry),
            ConfigEntry::ServiceDefaults(_) => None,
        }
    }

    fn config_entry(&mut self, kind: ConfigEntryKind, name: &str) -> Option<&'a ConfigEntry> {
        self.keys.insert(WatchKey::ConfigEntry(kind, name.into()));
        self.view.config_entry(kind, name).map(|entry| &**entry)
    }
}

/// How an instance is dialled; `None` when it must not be, or cannot.
///
/// A critical instance gets no traffic, and neither does one whose weight is 0 in its state.
fn endpoint(instance: &Instance) -> Option<Endpoint> {
    let weights = &instance.service.weights;
    let weight = match instance.status {
        CheckStatus::Passing => weights.passing,
        CheckStatus::Warning => weights.warning,
        CheckStatus::Critical => 0,
    };
    let port = instance.service.port;
    (weight > 0 && port > 0).then(|| Endpoint {
        address: instance.address().to_string(),
        port: port.into(),
        weight,
        node: instance.node.name.to_string(),
        instance_id: instance.service.id.to_string(),
    })
}

#[cfg(test)]
mod tests;
