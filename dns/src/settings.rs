//! What the operator decides about the zone, and the form in which answers use it.

use std::{collections::BTreeMap, time::Duration};

use hickory_server::proto::rr::Name;

/// The `dns_config` block and its neighbours, by Consul's names and meanings. Everything here can
/// change while the server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// The domain that is served: `consul.`
    pub domain: String,
    /// A second name for the same zone; answers use the one that was asked for.
    pub alt_domain: Option<String>,
    pub datacenter: String,
    /// This agent's node: the name server of the zone while no server is registered.
    pub node_name: String,
    /// How long the answer about a node may be cached.
    pub node_ttl: Duration,
    /// By service name, by prefix (`web-*`) or for all (`*`); the most exact wins, otherwise 0.
    pub service_ttl: BTreeMap<String, Duration>,
    /// Leaves out instances in the warning state, too.
    pub only_passing: bool,
    /// Sets TC when answers were left out for want of space. On by default, unlike in Consul,
    /// which leaves a client no way to know that there is more.
    pub enable_truncate: bool,
    /// At most so many answers over UDP without EDNS. Unset by default, where Consul has 3: the
    /// size alone is the limit then, as Consul's successor of this setting has it.
    pub udp_answer_limit: Option<usize>,
    /// At most so many addresses in any answer; 0 for no limit. Not a truncation.
    pub a_record_limit: usize,
    /// Adds the metadata of a node as TXT records to answers that name the node.
    pub enable_additional_node_meta_txt: bool,
    pub soa: SoaSettings,
    /// The largest answer over UDP, even where the client takes more: what passes unfragmented.
    pub max_udp_payload: u16,
    /// Where to ask for names outside the zone. Accepted and reported, not built: such names are
    /// refused.
    pub recursors: Vec<String>,
}

/// The fields of the zone's SOA record, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoaSettings {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// How long an answer that there is nothing may be cached; also the TTL of the SOA record
    /// (RFC 2308, section 3).
    pub min_ttl: u32,
}

impl Default for SoaSettings {
    fn default() -> Self {
        SoaSettings {
            refresh: 3600,
            retry: 600,
            expire: 86400,
            min_ttl: 0,
        }
    }
}

impl Default for ZoneSettings {
    fn default() -> Self {
        ZoneSettings {
            domain: "consul.".to_owned(),
            alt_domain: None,
            datacenter: "dc1".to_owned(),
            node_name: String::new(),
            node_ttl: Duration::ZERO,
            service_ttl: BTreeMap::new(),
            only_passing: false,
            enable_truncate: true,
            udp_answer_limit: None,
            a_record_limit: 0,
            enable_additional_node_meta_txt: true,
            soa: SoaSettings::default(),
            max_udp_payload: 1232,
            recursors: Vec::new(),
        }
    }
}

/// Settings that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidZone {
    #[error("{key} = {value:?} is not a domain name: {reason}")]
    Domain {
        key: &'static str,
        value: String,
        reason: String,
    },
    #[error("datacenter = {0:?} is not a DNS label of 1 to 63 letters, digits, '-' and '_'")]
    Datacenter(String),
    #[error("max_udp_payload = {0} is below 512, which every client takes")]
    UdpPayload(u16),
}

/// A checked set of settings, with what is derived from it once.
#[derive(Clone, Debug)]
pub struct Zone {
    pub(crate) settings: ZoneSettings,
    /// That of `domain`.
    pub(crate) primary: Domain,
    /// All, the longest first: a name below several belongs to the first of them.
    pub(crate) domains: Vec<Domain>,
    /// Folded, as names are when they are read.
    pub(crate) datacenter: String,
    /// Prefixes without the star, longest first; the bare star is the empty prefix.
    ttl_prefixes: Vec<(String, u32)>,
    ttl_exact: BTreeMap<String, u32>,
    pub(crate) node_ttl: u32,
}

/// One of the names of the zone.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(crate) apex: Name,
    /// Folded, dotted, without the last dot.
    pub(crate) text: String,
}

impl Zone {
    pub fn new(settings: ZoneSettings) -> Result<Zone, InvalidZone> {
        let primary = Domain::new("domain", &settings.domain)?;
        let mut domains = vec![primary.clone()];
        if let Some(alternative) = settings.alt_domain.as_deref().filter(|d| !d.is_empty()) {
            domains.push(Domain::new("alt_domain", alternative)?);
        }
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.text.len()));
        let label = &settings.datacenter;
        let is_label = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if label.is_empty() || label.len() > 63 || !label.bytes().all(is_label) {
            return Err(InvalidZone::Datacenter(label.clone()));
        }
        if settings.max_udp_payload < 512 {
            return Err(InvalidZone::UdpPayload(settings.max_udp_payload));
        }
        let mut ttl_prefixes = Vec::new();
        let mut ttl_exact = BTreeMap::new();
        for (pattern, ttl) in &settings.service_ttl {
            let pattern = pattern.to_lowercase();
            match pattern.strip_suffix('*') {
                Some(prefix) => ttl_prefixes.push((prefix.to_owned(), seconds(*ttl))),
                None => {
                    ttl_exact.insert(pattern, seconds(*ttl));
                }
            }
        }
        ttl_prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(Zone {
            datacenter: settings.datacenter.to_ascii_lowercase(),
            node_ttl: seconds(settings.node_ttl),
            primary,
            domains,
            ttl_prefixes,
            ttl_exact,
            settings,
        })
    }

    pub fn settings(&self) -> &ZoneSettings {
        &self.settings
    }

    /// The TTL of answers about a service, in seconds; `name` is folded.
    pub(crate) fn service_ttl(&self, name: &str) -> u32 {
        if let Some(ttl) = self.ttl_exact.get(name) {
            return *ttl;
        }
        self.ttl_prefixes
            .iter()
            .find(|(prefix, _)| name.starts_with(prefix.as_str()))
            .map_or(0, |(_, ttl)| *ttl)
    }
}

impl Domain {
    fn new(key: &'static str, value: &str) -> Result<Domain, InvalidZone> {
        let invalid = |reason: String| InvalidZone::Domain {
            key,
            value: value.to_owned(),
            reason,
        };
        let text = value.trim_matches('.').to_lowercase();
        let apex = Name::from_labels(text.split('.').map(str::as_bytes))
            .map_err(|error| invalid(error.to_string()))?;
        // The zone's own names need room below the apex.
        if apex.len() > 128 {
            return Err(invalid("it is longer than 128 bytes".to_owned()));
        }
        Ok(Domain { apex, text })
    }
}

/// RFC 2181, section 8: a TTL has 31 bits.
fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).map_or(i32::MAX as u32, |s| s.min(i32::MAX as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_ttl_wins() {
        let secs = Duration::from_secs;
        let zone = Zone::new(ZoneSettings {
            service_ttl: BTreeMap::from([
                ("*".into(), secs(1)),
                ("we*".into(), secs(2)),
                ("web-*".into(), secs(3)),
                ("Web-A".into(), secs(4)),
            ]),
            ..ZoneSettings::default()
        })
        .unwrap();
        for (name, ttl) in [("db", 1), ("web", 2), ("web-b", 3), ("web-a", 4), ("w", 1)] {
            assert_eq!(zone.service_ttl(name), ttl, "{name}");
        }
    }

    #[test]
    fn settings_that_cannot_be_served_are_refused() {
        let domain = |domain: &str| ZoneSettings {
            domain: domain.into(),
            ..ZoneSettings::default()
        };
        for bad in ["", ".", "a..b", &"x".repeat(64), &"abc.".repeat(40)] {
            assert!(Zone::new(domain(bad)).is_err(), "{bad:?}");
        }
        for good in ["consul", "Consul.", "corp.example.com."] {
            assert!(Zone::new(domain(good)).is_ok(), "{good:?}");
        }
        let datacenter = |datacenter: &str| ZoneSettings {
            datacenter: datacenter.into(),
            ..ZoneSettings::default()
        };
        assert!(Zone::new(datacenter("")).is_err());
        assert!(Zone::new(datacenter("a.b")).is_err());
    }
}
