//! Records and the names they point to.

use std::net::IpAddr;

use hickory_server::proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};

use crate::settings::{Domain, SoaSettings};

/// Where something is, as it was registered.
pub(super) enum Place {
    Address(IpAddr),
    /// A host name, absolute whether or not it ends with a dot.
    Host(Name),
}

impl Place {
    /// `None` for text that is neither an address nor a host name.
    pub(super) fn parse(text: &str) -> Option<Place> {
        if let Ok(address) = text.parse() {
            return Some(Place::Address(address));
        }
        let labels = text.strip_suffix('.').unwrap_or(text).split('.');
        Name::from_labels(labels.map(str::as_bytes))
            .ok()
            .map(Place::Host)
    }
}

/// Whether an address of this family answers a question of this type.
pub(super) fn answers(kind: RecordType, address: &IpAddr) -> bool {
    match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    }
}

pub(super) fn address(owner: &Name, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(owner.clone(), ttl, data)
}

pub(super) fn cname(owner: &Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::CNAME(CNAME(target)))
}

pub(super) fn ns(owner: &Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::NS(NS(target)))
}

pub(super) fn ptr(owner: &Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::PTR(PTR(target)))
}

/// Consul gives every instance the same priority, 1: clients choose by weight.
pub(super) fn srv(owner: &Name, ttl: u32, weight: u32, port: u16, target: Name) -> Record {
    let weight = u16::try_from(weight).unwrap_or(u16::MAX);
    Record::from_rdata(
        owner.clone(),
        ttl,
        RData::SRV(SRV::new(1, weight, port, target)),
    )
}

/// A TXT record, in character strings of at most 255 bytes (RFC 1035, section 3.3.14).
pub(super) fn txt(owner: &Name, ttl: u32, text: &str) -> Record {
    let strings = if text.is_empty() {
        vec![&b""[..]]
    } else {
        text.as_bytes().chunks(255).collect()
    };
    Record::from_rdata(owner.clone(), ttl, RData::TXT(TXT::from_bytes(strings)))
}

pub(super) fn soa(domain: &Domain, serial: u32, soa: &SoaSettings) -> Record {
    let signed = |seconds: u32| i32::try_from(seconds).unwrap_or(i32::MAX);
    let data = SOA::new(
        below(domain, &["ns"]),
        below(domain, &["hostmaster"]),
        serial,
        signed(soa.refresh),
        signed(soa.retry),
        signed(soa.expire),
        soa.min_ttl,
    );
    Record::from_rdata(domain.apex.clone(), soa.min_ttl, RData::SOA(data))
}

/// The zone's own name for a node; `None` for a node whose name does not fit in one.
pub(super) fn node_name(node: &str, datacenter: &str, domain: &Domain) -> Option<Name> {
    let labels = node.split('.').chain(["node", datacenter]);
    try_below(domain, labels)
}

pub(super) fn service_name(service: &str, datacenter: &str, domain: &Domain) -> Option<Name> {
    try_below(domain, [service, "service", datacenter].into_iter())
}

/// The zone's own name for an address.
pub(super) fn address_name(address: IpAddr, datacenter: &str, domain: &Domain) -> Name {
    let digits = match address {
        IpAddr::V4(address) => format!("{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    };
    below(domain, &[&digits, "addr", datacenter])
}

fn try_below<'l>(domain: &'l Domain, labels: impl Iterator<Item = &'l str>) -> Option<Name> {
    let labels = labels.map(str::as_bytes).chain(domain.apex.iter());
    Name::from_labels(labels).ok()
}

/// For labels that are known to be short; the apex leaves room for them.
fn below(domain: &Domain, labels: &[&str]) -> Name {
    try_below(domain, labels.iter().copied()).unwrap_or_else(|| domain.apex.clone())
}
