//! The zone itself: SOA, NS and the name server's addresses.

use std::net::IpAddr;

use hickory_server::proto::rr::{Name, Record, RecordType};
use rand::seq::SliceRandom as _;

use super::{
    Asked, Draft, Item, Resolver,
    record::{self, Place},
};
use crate::settings::Domain;

/// The service that every server registers.
const SERVERS: &str = "consul";

/// How many servers are told, as in Consul.
const MAX_SERVERS: usize = 3;

struct NameServer {
    name: Name,
    address: Option<IpAddr>,
}

impl Resolver<'_> {
    pub(super) fn soa(&self, domain: &Domain) -> Record {
        record::soa(domain, self.now, &self.source.zone.settings.soa)
    }

    pub(super) fn apex(&mut self, asked: &Asked<'_>) -> Option<Draft> {
        // The records are owned by the apex as it was asked for, in its case.
        let mut soa = self.soa(asked.domain);
        soa.name = asked.owner.clone();
        Some(match asked.kind {
            RecordType::SOA => {
                let mut draft = Draft::of(vec![soa.into()]);
                for server in self.name_servers(asked) {
                    draft.extras.extend(server.addresses);
                    draft.authority.push(server.record);
                }
                draft
            }
            RecordType::NS => Draft::of(self.name_servers(asked)),
            RecordType::ANY => {
                let mut items = vec![Item::from(soa)];
                items.extend(self.name_servers(asked));
                Draft::of(items)
            }
            _ => Draft::of(Vec::new()),
        })
    }

    /// `ns.<domain>` has the addresses of the servers.
    pub(super) fn name_server(&mut self, asked: &Asked<'_>) -> Option<Draft> {
        let ttl = self.source.zone.node_ttl;
        let items = self
            .servers(asked.domain)
            .into_iter()
            .filter_map(|server| server.address)
            .filter(|address| record::answers(asked.kind, address))
            .map(|address| record::address(asked.owner, ttl, address).into())
            .collect();
        Some(Draft::of(items))
    }

    fn name_servers(&mut self, asked: &Asked<'_>) -> Vec<Item> {
        let ttl = self.source.zone.node_ttl;
        self.servers(asked.domain)
            .into_iter()
            .map(|server| Item {
                record: record::ns(asked.owner, ttl, server.name.clone()),
                addresses: server
                    .address
                    .map(|address| record::address(&server.name, ttl, address))
                    .into_iter()
                    .collect(),
                notes: Vec::new(),
            })
            .collect()
    }

    /// Some servers that are up, or this agent's node while none is registered.
    fn servers(&mut self, domain: &Domain) -> Vec<NameServer> {
        let settings = &self.source.zone.settings;
        let name_server = |node: &str, address: &str| {
            let name = record::node_name(node, &settings.datacenter, domain)?;
            let address = match Place::parse(address) {
                Some(Place::Address(address)) => Some(address),
                _ => None,
            };
            Some(NameServer { name, address })
        };
        let mut instances = self.instances(SERVERS, None);
        instances.shuffle(&mut self.rng);
        let servers: Vec<NameServer> = instances
            .iter()
            .filter_map(|instance| name_server(&instance.node.name, &instance.node.address))
            .take(MAX_SERVERS)
            .collect();
        if !servers.is_empty() {
            return servers;
        }
        let address = self
            .source
            .view
            .node(&settings.node_name)
            .map_or("", |entry| &*entry.node.address);
        name_server(&settings.node_name, address)
            .into_iter()
            .collect()
    }
}
