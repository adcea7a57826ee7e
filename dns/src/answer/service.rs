//! Services: addresses and SRV records of the instances that can be used.

use std::{collections::HashSet, net::IpAddr};

use hickory_server::proto::rr::{Name, Record, RecordType};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use wharf_registry::{model::CheckStatus, state::Instance};

use super::{
    Asked, Draft, Item, Resolver,
    node::meta_records,
    record::{self, Place},
};

impl<'a> Resolver<'a> {
    /// `None`: there is no such service, or no usable instance of it.
    pub(super) fn service(
        &mut self,
        asked: &Asked<'_>,
        service: &str,
        tag: Option<&str>,
    ) -> Option<Draft> {
        let instances = self.instances(service, tag);
        if instances.is_empty() {
            return None;
        }
        let instances = Drawn {
            rest: instances,
            rng: SmallRng::from_rng(&mut self.rng),
        };
        let ttl = self.source.zone.service_ttl(service);
        Some(match asked.kind {
            RecordType::SRV => self.service_targets(asked, instances, ttl),
            RecordType::A | RecordType::AAAA | RecordType::ANY | RecordType::CNAME => {
                self.service_addresses(asked, instances, ttl)
            }
            _ => Draft::of(Vec::new()),
        })
    }

    /// The instances that may be used and seen: passing or warning ones, or passing ones only.
    pub(super) fn instances(&self, service: &str, tag: Option<&str>) -> Vec<&'a Instance> {
        let worst = if self.source.zone.settings.only_passing {
            CheckStatus::Passing
        } else {
            CheckStatus::Warning
        };
        let Some(entry) = self.source.service(service) else {
            return Vec::new();
        };
        if !self.source.visibility.service_visible(&entry.name) {
            return Vec::new();
        }
        entry
            .instances
            .values()
            .map(|instance| &**instance)
            .filter(|instance| {
                instance.status <= worst
                    && tag.is_none_or(|tag| instance.service.has_tag(tag))
                    && self.source.visibility.node_visible(&instance.node.name)
            })
            .collect()
    }

    /// Every address once. An alias can only stand alone (RFC 1034, section 3.6.2), so it is told
    /// when no instance has an address.
    fn service_addresses(&mut self, asked: &Asked<'_>, instances: Drawn<'_>, ttl: u32) -> Draft {
        let limit = match self.source.zone.settings.a_record_limit {
            0 => self.most,
            limit => limit.min(self.most),
        };
        let expected = limit.min(instances.rest.len());
        let mut seen = HashSet::with_capacity(expected);
        let mut items = Vec::with_capacity(expected);
        let mut alias = None;
        for instance in instances {
            match Place::parse(instance.address()) {
                Some(Place::Address(address))
                    if record::answers(asked.kind, &address) && seen.insert(address) =>
                {
                    items.push(record::address(asked.owner, ttl, address).into());
                }
                Some(Place::Host(host)) if alias.is_none() => alias = Some(host),
                _ => {}
            }
            if items.len() == limit {
                break;
            }
        }
        match alias {
            Some(host) if items.is_empty() => self.alias(asked, host, ttl),
            _ => Draft::of(items),
        }
    }

    fn service_targets(&mut self, asked: &Asked<'_>, instances: Drawn<'_>, ttl: u32) -> Draft {
        let mut seen = HashSet::new();
        let mut items = Vec::new();
        for instance in instances {
            if items.len() == self.most {
                break;
            }
            let service = &instance.service;
            let place = (&instance.node.name, &service.address, service.port);
            if !seen.insert(place) {
                continue;
            }
            let Some(target) = self.target(asked, instance, ttl) else {
                continue;
            };
            let weight = match instance.status {
                CheckStatus::Passing => service.weights.passing,
                CheckStatus::Warning | CheckStatus::Critical => service.weights.warning,
            };
            items.push(Item {
                record: record::srv(asked.owner, ttl, weight, service.port, target.name),
                addresses: target.addresses,
                notes: target.notes,
            });
        }
        Draft::of(items)
    }

    /// Where an instance is: its node, its own address, or the host it was registered with.
    fn target(&mut self, asked: &Asked<'_>, instance: &Instance, ttl: u32) -> Option<Target> {
        let settings = &self.source.zone.settings;
        let place = Place::parse(instance.address())?;
        let address = match place {
            Place::Address(address) => address,
            Place::Host(host) => {
                let addresses = self.addresses_of(&host, asked.depth);
                return Some(Target {
                    name: host,
                    addresses,
                    notes: Vec::new(),
                });
            }
        };
        if instance.service.address.is_empty()
            && let Some(name) =
                record::node_name(&instance.node.name, &settings.datacenter, asked.domain)
        {
            let notes = if settings.enable_additional_node_meta_txt {
                meta_records(&instance.node, &name, ttl)
            } else {
                Vec::new()
            };
            return Some(Target::at(name, address, ttl, notes));
        }
        let name = record::address_name(address, &settings.datacenter, asked.domain);
        Some(Target::at(name, address, ttl, Vec::new()))
    }

    /// The addresses of a host name in the zone.
    fn addresses_of(&mut self, host: &Name, depth: usize) -> Vec<Record> {
        let Some(found) = self.follow(host, RecordType::ANY, depth) else {
            return Vec::new();
        };
        found
            .items
            .into_iter()
            .map(|item| item.record)
            .filter(|record| matches!(record.record_type(), RecordType::A | RecordType::AAAA))
            .filter(|record| record.name == *host)
            .take(MAX_HOST_ADDRESSES)
            .collect()
    }
}

/// Instances in random order. Each is drawn when it is wanted: an answer has room for a few dozen of
/// what may be thousands.
struct Drawn<'a> {
    rest: Vec<&'a Instance>,
    rng: SmallRng,
}

impl<'a> Iterator for Drawn<'a> {
    type Item = &'a Instance;

    fn next(&mut self) -> Option<&'a Instance> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.rng.random_range(..self.rest.len());
        Some(self.rest.swap_remove(at))
    }
}

/// How many addresses are told along with a target that is a name of the zone itself.
const MAX_HOST_ADDRESSES: usize = 8;

struct Target {
    name: Name,
    addresses: Vec<Record>,
    notes: Vec<Record>,
}

impl Target {
    fn at(name: Name, address: IpAddr, ttl: u32, notes: Vec<Record>) -> Target {
        Target {
            addresses: vec![record::address(&name, ttl, address)],
            name,
            notes,
        }
    }
}
