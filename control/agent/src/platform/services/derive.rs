//! From an allocation to registrations. Pure.
//!
//! Where a service is found depends on who has to find it. A node that advertises a loopback address is alone, and its
//! allocations are reached by their own addresses. Otherwise other nodes come by the node's address and the port that
//! is mapped. Checks are run from this node, and go to the allocation itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde_json::json;
use wharf_launcher::{
    network::PortMapping,
    services::{AllocServices, ServicesError, Sidecar},
};
use wharf_registry::model::{
    CheckStatus, ConnectProxy, Node, NodeService, ServiceKind, Str,
    platform::{JobCheck, JobCheckType, JobService, JobSidecar, PortRef},
};

use crate::{
    local::{CheckKind, CheckSpec, HttpCheck, Registration, Source},
    platform::health::service_id,
};

/// Who made an instance, in its metadata, as Consul's other integrations say it.
const EXTERNAL_SOURCE: (&str, &str) = ("external-source", "wharf");
/// What the check of the tasks says while all is well.
pub(super) const ALL_RUNNING: &str = "all tasks run";
/// The first metrics port of a sidecar in a network of its own.
const FIRST_ADMIN_PORT: u16 = 19001;

/// Where the node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    address: Str,
}

impl Place {
    pub(super) fn of(node: &Node) -> Place {
        Place {
            address: node.address.clone(),
        }
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.address
            .parse()
            .is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// A service of an allocation.
#[derive(Debug)]
pub(super) struct Derived {
    pub(super) registration: Registration,
    pub(super) sidecar: Option<DerivedSidecar>,
}

#[derive(Debug)]
pub(super) struct DerivedSidecar {
    pub(super) registration: Registration,
    pub(super) run: Sidecar,
}

/// The services of an allocation and their ids.
pub(super) fn ids(services: &AllocServices) -> impl Iterator<Item = (&JobService, Str)> {
    services.group.services.iter().map(|service| {
        let id = service_id(&services.alloc, &services.group.name, service);
        (service, id)
    })
}

pub(super) fn sidecar_id(service_id: &str) -> Str {
    format!("{service_id}-sidecar-proxy").into()
}

pub(super) fn tasks_check_id(service_id: &str) -> Str {
    format!("{service_id}:tasks").into()
}

/// The services whose sidecars leave their port to the node.
pub(super) fn unported_sidecars(services: &AllocServices) -> impl Iterator<Item = &JobService> {
    let all = services.group.services.iter();
    all.filter(|service| {
        service
            .sidecar()
            .is_some_and(|sidecar| sidecar.port.is_none())
    })
}

/// Everything an allocation registers. `sidecar_ports` has a port for each of [`unported_sidecars`].
pub(super) fn derive(
    services: &AllocServices,
    place: &Place,
    sidecar_ports: &BTreeMap<Str, u16>,
) -> Result<Vec<Derived>, ServicesError> {
    let mut admin_ports = FIRST_ADMIN_PORT..;
    ids(services)
        .map(|(service, id)| {
            let reach = Reach { services, place };
            let failed = |reason| ServicesError::Service {
                service: service.name.clone(),
                reason,
            };
            let port = reach.port(&service.port).map_err(failed)?;
            let checks = checks(&reach, service, &id).map_err(failed)?;
            let sidecar = match service.sidecar() {
                None => None,
                Some(sidecar) => {
                    let chosen = sidecar_ports.get(&service.name).copied();
                    let admin = admin_ports.next();
                    Some(
                        self::sidecar(&reach, service, sidecar, &id, &port, chosen, admin)
                            .map_err(failed)?,
                    )
                }
            };
            Ok(Derived {
                registration: Registration {
                    service: instance(service, id, port),
                    checks,
                    source: Source::Platform,
                    ..Registration::default()
                },
                sidecar,
            })
        })
        .collect()
}

/// An address, and the port there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct At {
    address: Str,
    port: u16,
}

impl At {
    fn host_port(&self) -> String {
        match self.address.contains(':') {
            true => format!("[{}]:{}", self.address, self.port),
            false => format!("{}:{}", self.address, self.port),
        }
    }
}

/// A port of an allocation, as others find it and as this node does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortAt {
    public: At,
    inside: At,
}

struct Reach<'a> {
    services: &'a AllocServices,
    place: &'a Place,
}

impl Reach<'_> {
    fn port(&self, port: &PortRef) -> Result<PortAt, String> {
        let ports = &self.services.ports;
        let found = match port {
            PortRef::None => None,
            PortRef::Label(label) => {
                let known = ports.iter().find(|port| port.label == *label);
                Some(known.ok_or_else(|| format!("the group has no port {label:?}"))?)
            }
            PortRef::Number(number) => ports.iter().find(|port| port.to == *number),
        };
        let number = match port {
            PortRef::Number(number) => *number,
            _ => 0,
        };
        let node = |port| At {
            address: self.place.address.clone(),
            port,
        };
        let host = found.map_or(number, |port| port.value);
        let Some(address) = self.services.address else {
            return Ok(PortAt {
                public: node(host),
                inside: node(host),
            });
        };
        let inside = At {
            address: address.to_string().into(),
            port: match found {
                Some(port) if port.to != 0 => port.to,
                Some(port) => port.value,
                None => number,
            },
        };
        let mapped = !self.place.is_loopback() && (found.is_some() || *port == PortRef::None);
        Ok(PortAt {
            public: if mapped { node(host) } else { inside.clone() },
            inside,
        })
    }
}

fn instance(service: &JobService, id: Str, port: PortAt) -> NodeService {
    let mut meta = service.meta.clone();
    let (key, value) = EXTERNAL_SOURCE;
    meta.entry(key.into()).or_insert_with(|| value.into());
    NodeService {
        id,
        name: service.name.clone(),
        tags: service.tags.as_slice().into(),
        meta,
        address: port.public.address,
        port: port.public.port,
        ..NodeService::default()
    }
}

fn checks(reach: &Reach<'_>, service: &JobService, id: &Str) -> Result<Vec<CheckSpec>, String> {
    let tasks = CheckSpec {
        id: tasks_check_id(id),
        name: "Tasks of the allocation".into(),
        service_id: id.clone(),
        kind: CheckKind::Tasks,
        status: Some(CheckStatus::Passing),
        source: Source::Platform,
        ..CheckSpec::default()
    };
    let mut all = vec![tasks];
    for (index, check) in service.checks.iter().enumerate() {
        let port = match check.port.is_none() {
            true => &service.port,
            false => &check.port,
        };
        let at = reach.port(port)?.inside;
        if at.port == 0 {
            return Err(format!(
                "its {} check needs a port, of its own or of the service",
                check.kind
            ));
        }
        all.push(CheckSpec {
            id: format!("{id}:check-{}", index + 1).into(),
            name: match &*check.name {
                "" => format!("Service '{}' check", service.name).into(),
                _ => check.name.clone(),
            },
            service_id: id.clone(),
            kind: kind(check, &at),
            interval: check.interval.to_std(),
            timeout: check.timeout.to_std(),
            thresholds: crate::local::Thresholds {
                success_before_passing: check.success_before_passing,
                failures_before_warning: check.failures_before_warning,
                failures_before_critical: check.failures_before_critical,
            },
            source: Source::Platform,
            eager: true,
            ..CheckSpec::default()
        });
    }
    Ok(all)
}

fn kind(check: &JobCheck, at: &At) -> CheckKind {
    let address = at.host_port();
    match check.kind {
        JobCheckType::Http => {
            let slash = if check.path.starts_with('/') { "" } else { "/" };
            CheckKind::Http(Box::new(HttpCheck {
                url: format!("http://{address}{slash}{}", check.path).into(),
                method: check.method.clone(),
                headers: check.header.clone(),
                body: check.body.clone(),
                ..HttpCheck::default()
            }))
        }
        JobCheckType::Tcp => CheckKind::Tcp {
            address: address.into(),
            tls: None,
        },
        JobCheckType::Grpc => CheckKind::Grpc {
            address: address.into(),
            service: check.grpc_service.clone(),
            tls: None,
        },
    }
}

fn sidecar(
    reach: &Reach<'_>,
    service: &JobService,
    sidecar: &JobSidecar,
    service_id: &Str,
    application: &PortAt,
    chosen: Option<u16>,
    admin_port: Option<u16>,
) -> Result<DerivedSidecar, String> {
    let own_network = reach.services.address.is_some();
    let (at, mapping) = match (&sidecar.port, chosen) {
        (PortRef::None, Some(port)) => {
            let mut at = reach.port(&PortRef::Number(port))?;
            let mapped = own_network && !reach.place.is_loopback();
            if mapped {
                at.public = At {
                    address: reach.place.address.clone(),
                    port,
                };
            }
            (
                at,
                mapped.then_some(PortMapping {
                    host: port,
                    to: port,
                }),
            )
        }
        (PortRef::None, None) => return Err("its sidecar has no port".to_owned()),
        (given, _) => (reach.port(given)?, None),
    };
    let id = sidecar_id(service_id);
    let mut config = sidecar.proxy.config.clone();
    if own_network || !reach.place.is_loopback() {
        config
            .entry("bind_address".into())
            .or_insert_with(|| json!("0.0.0.0"));
    }
    if at.inside.port != at.public.port {
        config
            .entry("bind_port".into())
            .or_insert_with(|| json!(at.inside.port));
    }
    let check = |suffix: &str, name: String, kind| CheckSpec {
        id: format!("{id}:{suffix}").into(),
        name: name.into(),
        service_id: id.clone(),
        kind,
        source: Source::Platform,
        ..CheckSpec::default()
    };
    let listening = CheckSpec {
        interval: std::time::Duration::from_secs(10),
        eager: true,
        ..check(
            "listening",
            "Connect Sidecar Listening".to_owned(),
            CheckKind::Tcp {
                address: at.inside.host_port().into(),
                tls: None,
            },
        )
    };
    let alias = check(
        "alias",
        format!("Connect Sidecar Aliasing {service_id}"),
        CheckKind::Alias {
            node: Str::default(),
            service: service_id.clone(),
        },
    );
    let instance = NodeService {
        kind: ServiceKind::ConnectProxy,
        name: format!("{}-sidecar-proxy", service.name).into(),
        proxy: Some(Arc::new(ConnectProxy {
            destination_service_name: service.name.clone(),
            destination_service_id: service_id.clone(),
            local_service_address: "127.0.0.1".into(),
            local_service_port: application.inside.port,
            config,
            upstreams: sidecar.proxy.upstreams.clone(),
            ..ConnectProxy::default()
        })),
        ..instance(service, id.clone(), at.clone())
    };
    Ok(DerivedSidecar {
        registration: Registration {
            service: instance,
            checks: vec![listening, alias],
            source: Source::Platform,
            ..Registration::default()
        },
        run: Sidecar {
            service: service.name.clone(),
            id,
            port: at.inside.port,
            mapping,
            admin: admin_port
                .filter(|_| own_network)
                .map(|port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port))),
        },
    })
}
