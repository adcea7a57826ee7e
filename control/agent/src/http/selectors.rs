//! The fields of an answer's rows, as selectors of `?filter=` name them.
//!
//! A selector that names no field is a mistake in the request, and is told: it would otherwise
//! quietly choose nothing. Names are those of Consul's rows, also where wharf leaves a field out
//! because it is empty.

/// What may follow in a selector.
#[derive(Debug)]
pub(crate) enum Fields {
    /// Anything: a map, or a value whose inside is not listed here.
    Open,
    Named(&'static [(&'static str, &'static Fields)]),
}

impl Fields {
    /// Whether a selector leads to a field.
    pub(crate) fn have(&self, selector: &[String]) -> bool {
        match (self, selector.split_first()) {
            (Fields::Open, _) | (_, None) => true,
            (Fields::Named(names), Some((first, rest))) => names
                .iter()
                .find(|(name, _)| name == first)
                .is_some_and(|(_, fields)| fields.have(rest)),
        }
    }
}

macro_rules! fields {
    ($($name:ident $(: $fields:expr)?),+ $(,)?) => {
        Fields::Named(&[$((stringify!($name), fields!(@ $($fields)?))),+])
    };
    (@) => { &Fields::Named(&[]) };
    (@ $fields:expr) => { &$fields };
}

const WEIGHTS: Fields = fields![Passing, Warning];

pub(crate) const NODE: Fields = fields![
    ID, Node, Address, Datacenter, Partition, PeerName, TaggedAddresses: Fields::Open,
    Meta: Fields::Open, Locality: Fields::Open, CreateIndex, ModifyIndex,
];

/// An instance in the catalog, and the agent's own with its datacenter and hash.
pub(crate) const SERVICE: Fields = fields![
    Kind, ID, Service, Tags, Address, TaggedAddresses: Fields::Open, Meta: Fields::Open, Port,
    Ports: Fields::Open, SocketPath, Weights: WEIGHTS, EnableTagOverride, Proxy: Fields::Open,
    Connect: Fields::Open, LocallyRegisteredAsSidecar, Locality: Fields::Open, PeerName, Namespace,
    Partition, Datacenter, ContentHash, CreateIndex, ModifyIndex,
];

pub(crate) const CHECK: Fields = fields![
    Node, CheckID, Name, Status, Notes, Output, ServiceID, ServiceName, ServiceTags, Type, Interval,
    Timeout, ExposedPort, Definition: Fields::Open, Namespace, Partition, PeerName, CreateIndex,
    ModifyIndex,
];

/// A row of `/v1/catalog/service`.
pub(crate) const CATALOG_SERVICE: Fields = fields![
    ID, Node, Address, Datacenter, TaggedAddresses: Fields::Open, NodeMeta: Fields::Open,
    ServiceKind, ServiceID, ServiceName, ServiceTags, ServiceAddress,
    ServiceTaggedAddresses: Fields::Open, ServiceWeights: WEIGHTS, ServiceMeta: Fields::Open,
    ServicePort, ServicePorts: Fields::Open, ServiceSocketPath, ServiceEnableTagOverride,
    ServiceProxy: Fields::Open, ServiceConnect: Fields::Open, ServiceLocality: Fields::Open,
    Namespace, Partition, PeerName, CreateIndex, ModifyIndex,
];

/// A row of `/v1/health/service`.
pub(crate) const HEALTH_SERVICE: Fields = fields![Node: NODE, Service: SERVICE, Checks: CHECK];

pub(crate) const MEMBER: Fields = fields![
    Name, Addr, Port, Tags: Fields::Open, Status, ProtocolMin, ProtocolMax, ProtocolCur,
    DelegateMin, DelegateMax, DelegateCur,
];

/// A job in a list.
pub(crate) const JOB: Fields = fields![
    ID, Name, Type, Version, Stop, SubmitTime, Status, Summary: Fields::Open, CreateIndex,
    ModifyIndex, JobModifyIndex,
];

/// An allocation in a list.
pub(crate) const ALLOC: Fields = fields![
    ID, Name, JobName, JobVersion, Group, Index, NodeID, Node, DesiredStatus, DesiredDescription,
    ClientStatus, ClientDescription, Address, Ports: Fields::Open, TaskStates: Fields::Open,
    PreviousAlloc, CreateIndex, ModifyIndex, CreateTime, ModifyTime, StopTime, EndTime,
];

/// A node of the platform in a list.
pub(crate) const PLATFORM_NODE: Fields = fields![
    ID, Name, Address, Status, StatusDescription, Eligible, Drivers: Fields::Open,
    Resources: Fields::Open, Reserved: Fields::Open, Allocations, CreateIndex, ModifyIndex,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn have(fields: &Fields, selector: &str) -> bool {
        let parts: Vec<String> = selector.split('.').map(str::to_owned).collect();
        fields.have(&parts)
    }

    #[test]
    fn a_selector_leads_to_a_field() {
        assert!(have(&HEALTH_SERVICE, "Service.Meta.anything.at.all"));
        assert!(have(&HEALTH_SERVICE, "Checks.Status"));
        assert!(have(&HEALTH_SERVICE, "Service"));
        assert!(have(&SERVICE, "Weights.Passing"));
        assert!(!have(&HEALTH_SERVICE, "Service.Name"));
        assert!(!have(&HEALTH_SERVICE, "Meta.os"));
        assert!(!have(&SERVICE, "Weights.Critical"));
        assert!(!have(&SERVICE, "Port.Number"));
        assert!(!have(&SERVICE, "service"));
    }
}
