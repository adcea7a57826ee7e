//! The DNS server of the agent: its zone, and what its clients may see.

use wharf_dns::{Visibility, ZoneSettings};

use crate::{
    authz::{Access, Authorizer, Caller, Resource},
    config::RuntimeConfig,
};

pub(super) fn zone(config: &RuntimeConfig) -> ZoneSettings {
    let dns = &config.reloadable.dns;
    ZoneSettings {
        domain: config.domain.clone(),
        alt_domain: config.alt_domain.clone(),
        datacenter: config.datacenter.clone(),
        node_name: config.node_name.clone(),
        node_ttl: dns.node_ttl,
        service_ttl: dns.service_ttl.clone(),
        only_passing: dns.only_passing,
        enable_truncate: dns.enable_truncate,
        udp_answer_limit: Some(dns.udp_answer_limit).filter(|limit| *limit > 0),
        a_record_limit: dns.a_record_limit,
        enable_additional_node_meta_txt: dns.node_meta_txt,
        soa: wharf_dns::SoaSettings {
            refresh: dns.soa.refresh,
            retry: dns.soa.retry,
            expire: dns.soa.expire,
            min_ttl: dns.soa.min_ttl,
        },
        recursors: dns.recursors.iter().map(ToString::to_string).collect(),
        ..ZoneSettings::default()
    }
}

/// What DNS clients may see: what the agent's DNS token may.
#[derive(Debug)]
pub(super) struct DnsVisibility(Option<Caller>);

impl DnsVisibility {
    pub(super) fn new(authorizer: &dyn Authorizer, config: &RuntimeConfig) -> DnsVisibility {
        let tokens = &config.reloadable.tokens;
        let token = tokens.dns.token().or_else(|| tokens.default.token());
        // A token that is unknown sees nothing.
        DnsVisibility(authorizer.resolve(token).ok())
    }

    fn may_read(&self, resource: Resource<'_>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|caller| caller.may(resource, Access::Read))
    }
}

impl Visibility for DnsVisibility {
    fn service_visible(&self, name: &str) -> bool {
        self.may_read(Resource::Service(name))
    }

    fn node_visible(&self, name: &str) -> bool {
        self.may_read(Resource::Node(name))
    }
}
