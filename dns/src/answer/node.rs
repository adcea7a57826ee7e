//! Nodes, addresses that say themselves, and the way back from an address.

use std::net::IpAddr;

use hickory_server::proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use wharf_registry::model::Node;

use super::{
    Asked, Draft, Item, Resolver,
    record::{self, Place},
};
use crate::settings::Domain;

impl<'a> Resolver<'a> {
    /// A node, whatever its health. `None`: there is no such node.
    pub(super) fn node(&mut self, asked: &Asked<'_>, name: &str) -> Option<Draft> {
        let node = &self.source.node(name)?.node;
        if !self.source.visibility.node_visible(&node.name) {
            return None;
        }
        let ttl = self.source.zone.node_ttl;
        let mut items = Vec::new();
        if asked.wants_addresses() || asked.kind == RecordType::CNAME {
            match Place::parse(&node.address) {
                Some(Place::Host(host)) => return Some(self.alias(asked, host, ttl)),
                Some(Place::Address(address)) if record::answers(asked.kind, &address) => {
                    items.push(Item::from(record::address(asked.owner, ttl, address)));
                }
                _ => {}
            }
        }
        let meta = || meta_records(node, asked.owner, ttl);
        if matches!(asked.kind, RecordType::TXT | RecordType::ANY) {
            items.extend(meta().into_iter().map(Item::from));
        } else if self.source.zone.settings.enable_additional_node_meta_txt
            && let Some(address) = items.first_mut()
        {
            address.notes = meta();
        }
        Some(Draft::of(items))
    }

    /// `0a000001.addr`: the address in the name. Of the other family it goes along as an
    /// additional record, as in Consul.
    pub(super) fn address(&mut self, asked: &Asked<'_>, address: IpAddr) -> Option<Draft> {
        let record = record::address(asked.owner, self.source.zone.node_ttl, address);
        let mut draft = Draft::of(Vec::new());
        if record::answers(asked.kind, &address) {
            draft.items.push(record.into());
        } else if asked.wants_addresses() {
            draft.extras.push(record);
        }
        Some(draft)
    }

    /// Who has an address: a node, or else a service. The answer is in the zone's `domain`.
    pub(super) fn reverse(&mut self, owner: &Name, kind: RecordType, address: IpAddr) -> Draft {
        let zone = self.source.zone;
        match self.holder(address, &zone.primary) {
            Some((target, ttl)) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                Draft::of(vec![record::ptr(owner, ttl, target).into()])
            }
            Some(_) => Draft::of(Vec::new()),
            // No SOA record: the zone of the name is not ours, so nothing is said for later.
            None => Draft {
                code: ResponseCode::NXDomain,
                ..Draft::of(Vec::new())
            },
        }
    }

    fn holder(&self, address: IpAddr, domain: &Domain) -> Option<(Name, u32)> {
        let zone = self.source.zone;
        let datacenter = &zone.settings.datacenter;
        let view = self.source.view;
        if let Some(wanted) = self.source.wanted {
            wanted.address(address);
        }
        let visibility = self.source.visibility;
        let node = view
            .nodes_at(address)
            .map(|entry| &entry.node)
            .filter(|node| visibility.node_visible(&node.name))
            .find_map(|node| record::node_name(&node.name, datacenter, domain));
        if let Some(name) = node {
            return Some((name, zone.node_ttl));
        }
        let (service, _) = view.instances_at(address).find(|(service, instance)| {
            visibility.service_visible(&service.name)
                && visibility.node_visible(&instance.node.name)
        })?;
        let name = record::service_name(&service.name, datacenter, domain)?;
        Some((name, zone.service_ttl(&service.name.to_lowercase())))
    }
}

/// A node's metadata as TXT records: `key=value` by RFC 1464, or the value alone where the key says
/// so by starting with `rfc1035-`.
pub(super) fn meta_records(node: &Node, owner: &Name, ttl: u32) -> Vec<Record> {
    node.meta
        .iter()
        .map(|(key, value)| {
            if key.starts_with("rfc1035-") {
                record::txt(owner, ttl, value)
            } else {
                record::txt(owner, ttl, &format!("{}={}", quoted(key), value))
            }
        })
        .collect()
}

/// RFC 1464: an accent before what would be read as part of the syntax.
fn quoted(key: &str) -> String {
    let blank = |c: char| c == ' ' || c == '\t';
    let start = key.len() - key.trim_start_matches(blank).len();
    let end = key.trim_end_matches(blank).len();
    let mut out = String::with_capacity(key.len());
    for (at, c) in key.char_indices() {
        let is_outer_blank = at < start || at >= end;
        if c == '`' || c == '=' || is_outer_blank {
            out.push('`');
        }
        out.push(c);
    }
    out
}
