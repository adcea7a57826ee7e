//! Who has an address: the way back from an address to a name, without looking at every row.
//!
//! Derived from the catalog and kept beside it, so a snapshot does not carry it. An address that is a host name
//! is not in it: nobody comes back from one.

use std::net::IpAddr;

use imbl::OrdSet;

use super::catalog::InstanceKey;
use crate::model::Str;

/// The order of the entries of one address is that of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// With the folded name of the node.
    nodes: OrdSet<(IpAddr, Str)>,
    /// With the folded name of the service and its key there. Only instances with an address of their own.
    instances: OrdSet<(IpAddr, Str, InstanceKey)>,
}

/// IPv6 has many spellings, so addresses are compared as what they mean.
fn parse(address: &str) -> Option<IpAddr> {
    address.parse().ok()
}

impl Addresses {
    pub(super) fn add_node(&mut self, address: &str, node: &Str) {
        if let Some(address) = parse(address) {
            self.nodes.insert((address, node.clone()));
        }
    }

    pub(super) fn remove_node(&mut self, address: &str, node: &Str) {
        if let Some(address) = parse(address) {
            self.nodes.remove(&(address, node.clone()));
        }
    }

    pub(super) fn add_instance(&mut self, address: &str, service: &Str, key: &InstanceKey) {
        if let Some(address) = parse(address) {
            self.instances
                .insert((address, service.clone(), key.clone()));
        }
    }

    pub(super) fn remove_instance(&mut self, address: &str, service: &Str, key: &InstanceKey) {
        if let Some(address) = parse(address) {
            self.instances
                .remove(&(address, service.clone(), key.clone()));
        }
    }

    /// The folded names of the nodes with this address.
    pub(crate) fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Str> {
        self.nodes
            .range((address, Str::from(""))..)
            .take_while(move |(at, _)| *at == address)
            .map(|(_, node)| node)
    }

    /// The instances that have this address themselves, each with the folded name of its service.
    pub(crate) fn instances_at(
        &self,
        address: IpAddr,
    ) -> impl Iterator<Item = (&Str, &InstanceKey)> {
        let empty = || Str::from("");
        self.instances
            .range((address, empty(), (empty(), empty()))..)
            .take_while(move |(at, ..)| *at == address)
            .map(|(_, service, key)| (service, key))
    }
}
