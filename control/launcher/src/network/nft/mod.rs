//! nftables by netlink: the rules of a bridge, loaded in one transaction and without the `nft` program, whose start
//! alone takes longer than everything else about a container's network.
//!
//! The encoder knows the few expressions that the rules need; a test holds it to the bytes that `nft` makes of the
//! same rules. Everything is in one table of the bridge's own, so that nobody else's rules are touched, and all of it
//! goes with one request.

mod encode;
mod rule;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::Ipv4Addr};

use self::encode::{
    add_chain, add_rule, add_table, begin, delete_rule, delete_table, end, list_rules, list_tables,
    listed_rule, listed_table,
};
use super::{
    netlink::{Message, NetlinkError, Socket},
    subnet::Subnet,
};

/// The chain of the mapped ports. It is entered for what is addressed to this machine.
const PORTS: &str = "ports";

/// A port of this machine that leads to an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) host: u16,
    pub(super) to: u16,
    pub(super) address: Ipv4Addr,
    /// In the comment of its rules.
    pub(super) alloc: String,
}

/// Whose rules these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) bridge: String,
    pub(super) subnet: Subnet,
}

impl Table {
    pub(super) fn name(&self) -> String {
        format!("wharf_{}", self.bridge)
    }

    /// Puts the table in force with exactly these ports, in one transaction: connections that are open stay open, and
    /// no packet meets half of the rules. A table that is there already is replaced.
    pub(super) fn load(&self, socket: &mut Socket, ports: &[Mapping]) -> Result<(), NetlinkError> {
        let table = self.name();
        // Added first, so that it can be removed if it was not there.
        let mut body = vec![add_table(&table), delete_table(&table)];
        body.extend(self.body(ports));
        commit(socket, body)
    }

    /// The table with its chains and rules.
    fn body(&self, ports: &[Mapping]) -> Vec<Message> {
        let table = self.name();
        let chains = rule::CHAINS.iter();
        let mut body = vec![add_table(&table), add_chain(&table, PORTS, None)];
        body.extend(chains.map(|(chain, hook)| add_chain(&table, chain, Some(*hook))));
        body.extend(port_rules(&table, ports));
        body.extend(
            rule::fixed(self)
                .into_iter()
                .map(|(chain, rule)| add_rule(&table, chain, &rule)),
        );
        body
    }

    /// Adds ports to a table that is in force.
    pub(super) fn add(&self, socket: &mut Socket, ports: &[Mapping]) -> Result<(), NetlinkError> {
        match ports.is_empty() {
            true => Ok(()),
            false => commit(socket, port_rules(&self.name(), ports)),
        }
    }

    /// Removes the ports of an allocation. A table that is not there has none.
    pub(super) fn remove(&self, socket: &mut Socket, alloc: &str) -> Result<(), NetlinkError> {
        let table = self.name();
        let rules = match self.ports(socket) {
            Ok(mut rules) => rules.remove(alloc).unwrap_or_default(),
            Err(error) if super::link::is_missing(&error.source) => Vec::new(),
            Err(error) => return Err(error),
        };
        let deletions: Vec<Message> = rules
            .into_iter()
            .map(|handle| delete_rule(&table, PORTS, handle))
            .collect();
        match deletions.is_empty() {
            true => Ok(()),
            false => commit(socket, deletions),
        }
    }

    /// The handles of the rules in force, by allocation.
    pub(super) fn ports(
        &self,
        socket: &mut Socket,
    ) -> Result<BTreeMap<String, Vec<u64>>, NetlinkError> {
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        socket.ask(&list_rules(&self.name(), PORTS), |payload| {
            if let Some((handle, comment)) = listed_rule(payload) {
                found.entry(comment).or_default().push(handle);
            }
        })?;
        Ok(found)
    }

    /// Takes the table out of force, with all that is in it.
    pub(super) fn unload(&self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let table = self.name();
        commit(socket, vec![add_table(&table), delete_table(&table)])
    }
}

/// Whether this kernel has nf_tables.
pub(super) fn probe(socket: &mut Socket) -> Result<(), NetlinkError> {
    socket.ask(&list_tables(), |payload| drop(listed_table(payload)))
}

fn port_rules(table: &str, ports: &[Mapping]) -> Vec<Message> {
    ports
        .iter()
        .flat_map(rule::mapped)
        .map(|rule| add_rule(table, PORTS, &rule))
        .collect()
}

fn commit(socket: &mut Socket, body: Vec<Message>) -> Result<(), NetlinkError> {
    socket.transaction(&framed(body))
}

fn framed(mut body: Vec<Message>) -> Vec<Message> {
    body.insert(0, begin());
    body.push(end());
    body
}
