//! What a proxy is: which service it speaks for, where it listens, what it calls.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use wharf_proto::v1::{AdHocProxy, proxy_configuration_request::Target};
use wharf_registry::{
    View,
    model::{ConnectProxy, NodeService, ServiceKind, Str, Upstream},
    state::NodeEntry,
};

/// Upstreams of one proxy; more is a mistake, or hostile.
const MAX_UPSTREAMS: usize = 1024;

/// Where a proxy runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: Str,
    pub datacenter: Str,
}

/// A proxy as it was registered, or as it described itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyDescription {
    pub place: Place,
    /// The id of the proxy instance.
    pub id: Str,
    /// The service it speaks for.
    pub service: Str,
    /// The port it is reached at from the network; 0: it is not.
    pub port: u16,
    /// Where the application listens, when the registration of the proxy does not say; 0: unknown.
    pub application_port: u16,
    /// Its registration.
    pub proxy: Arc<ConnectProxy>,
}

/// A field of a request that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Why there is no such proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    #[error("no service with id {0:?} is registered on this agent")]
    UnknownService(String),
    #[error("no sidecar proxy is registered for the service with id {0:?}")]
    NoSidecar(String),
    #[error(
        "several sidecar proxies are registered for the service with id {service:?}: name one of {} by its own id",
        .proxies.join(", ")
    )]
    SeveralSidecars {
        service: String,
        proxies: Vec<String>,
    },
    #[error("no proxy with id {0:?} is registered on this agent")]
    UnknownProxy(String),
    #[error("the instance with id {id:?} is {kind}, not a sidecar proxy")]
    NotASidecar { id: String, kind: &'static str },
    #[error("the request cannot be served: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
}

/// Finds the proxy that a request means. What it depends on is the node of `place`.
pub fn describe(
    view: &View,
    place: &Place,
    target: Option<&Target>,
) -> Result<ProxyDescription, DescribeError> {
    let node = view.node(&place.node).map(Arc::as_ref);
    match target {
        Some(Target::SidecarFor(id)) => sidecar_for(node, place, id),
        Some(Target::ProxyId(id)) => {
            let found = node.and_then(|node| node.services.get(id.as_str()));
            let Some(instance) = found else {
                return Err(DescribeError::UnknownProxy(id.clone()));
            };
            registered(node, place, instance)
        }
        Some(Target::AdHoc(proxy)) => ad_hoc(place, proxy).map_err(DescribeError::Invalid),
        None => Err(DescribeError::Invalid(vec![violation(
            "target",
            "one of sidecar_for, proxy_id and ad_hoc must be set",
        )])),
    }
}

fn sidecar_for(
    node: Option<&NodeEntry>,
    place: &Place,
    id: &str,
) -> Result<ProxyDescription, DescribeError> {
    let unknown = || DescribeError::UnknownService(id.to_owned());
    let node = node.ok_or_else(unknown)?;
    let sidecars: Vec<&Arc<NodeService>> = node
        .services
        .values()
        .filter(|instance| {
            instance.kind == ServiceKind::ConnectProxy
                && instance
                    .proxy
                    .as_ref()
                    .is_some_and(|proxy| &*proxy.destination_service_id == id)
        })
        .collect();
    match sidecars.as_slice() {
        [only] => registered(Some(node), place, only),
        [] if node.services.contains_key(id) => Err(DescribeError::NoSidecar(id.to_owned())),
        [] => Err(unknown()),
        several => Err(DescribeError::SeveralSidecars {
            service: id.to_owned(),
            proxies: several.iter().map(|proxy| proxy.id.to_string()).collect(),
        }),
    }
}

fn registered(
    node: Option<&NodeEntry>,
    place: &Place,
    instance: &NodeService,
) -> Result<ProxyDescription, DescribeError> {
    let kind = match instance.kind {
        ServiceKind::ConnectProxy => None,
        ServiceKind::Typical => Some("a service"),
        gateway => Some(gateway.as_str()),
    };
    if let Some(kind) = kind {
        let id = instance.id.to_string();
        return Err(DescribeError::NotASidecar { id, kind });
    }
    let proxy = instance.proxy.clone().unwrap_or_default();
    let application = node.and_then(|node| node.services.get(&*proxy.destination_service_id));
    Ok(ProxyDescription {
        place: place.clone(),
        id: instance.id.clone(),
        service: proxy.destination_service_name.clone(),
        port: instance.port,
        application_port: application.map_or(0, |application| application.port),
        proxy,
    })
}

fn ad_hoc(place: &Place, wanted: &AdHocProxy) -> Result<ProxyDescription, Vec<Violation>> {
    let mut violations = Vec::new();
    if wanted.service.is_empty() {
        violations.push(violation("ad_hoc.service", "must not be empty"));
    }
    if wanted.upstreams.len() > MAX_UPSTREAMS {
        violations.push(violation(
            "ad_hoc.upstreams",
            &format!("at most {MAX_UPSTREAMS} upstreams"),
        ));
        return Err(violations);
    }
    let mut taken = BTreeMap::new();
    let mut upstreams = Vec::with_capacity(wanted.upstreams.len());
    for (i, upstream) in wanted.upstreams.iter().enumerate() {
        let mut wrong = |field: &str, reason: &str| {
            violations.push(violation(&format!("ad_hoc.upstreams[{i}].{field}"), reason));
        };
        if upstream.destination.is_empty() {
            wrong("destination", "must not be empty");
        }
        let address = match upstream.local_bind_address.as_str() {
            "" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            text => text.parse().ok(),
        };
        if address.is_none() {
            wrong("local_bind_address", "must be an IP address, or empty");
        }
        let port = u16::try_from(upstream.local_bind_port).unwrap_or(0);
        if port == 0 {
            wrong("local_bind_port", "must be between 1 and 65535");
        } else if let Some(address) = address
            && let Some(first) = taken.insert((address, port), i)
        {
            let reason = format!("{address} port {port} is also that of upstreams[{first}]");
            wrong("local_bind_port", &reason);
        }
        upstreams.push(Upstream {
            destination_name: upstream.destination.as_str().into(),
            datacenter: upstream.datacenter.as_str().into(),
            local_bind_address: upstream.local_bind_address.as_str().into(),
            local_bind_port: port,
            ..Upstream::default()
        });
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    let service = Str::from(wanted.service.as_str());
    Ok(ProxyDescription {
        place: place.clone(),
        id: service.clone(),
        service: service.clone(),
        port: 0,
        application_port: 0,
        proxy: Arc::new(ConnectProxy {
            destination_service_name: service,
            upstreams,
            ..ConnectProxy::default()
        }),
    })
}

fn violation(field: &str, reason: &str) -> Violation {
    Violation {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}
