//! The answer to a question: a pure function of the view, the zone's settings, what the client may
//! see, the question and a random seed.
//!
//! Consul's rules hold, as its documentation tells them and Consul 1.8.7 shows them, except where
//! they make a caching resolver in front of the server believe what is not so:
//!
//! * A name that exists without data of the asked type is NOERROR with the SOA record (RFC 2308),
//!   for every type. Consul leaves the record out for nodes, and answers TXT with addresses.
//! * `service.consul`, `dc1.consul` and the apex exist (RFC 8020); Consul denies them, and with that
//!   denies everything below to a resolver that minimises its queries (RFC 9156).
//! * SOA and NS are answered at the apex only; Consul answers them for any name, about the apex.
//! * TC says that answers were left out; see [`crate::ZoneSettings::enable_truncate`].
//! * `ns.<domain>`, which the SOA record names, has addresses.
//!
//! A service without a healthy instance is NXDOMAIN, as in Consul.

mod apex;
mod fit;
mod node;
mod record;
mod service;

use std::{fmt, sync::Arc};

use hickory_server::proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use rand::{SeedableRng as _, rngs::SmallRng};
use wharf_registry::{
    View,
    mirror::Topic,
    state::{NodeEntry, ServiceEntry},
};

use crate::{
    catalog::Wanted,
    name::{self, Subject},
    settings::{Domain, Zone},
    visibility::Visibility,
};

/// What answers are made from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub view: &'a View,
    pub zone: &'a Zone,
    pub visibility: &'a dyn Visibility,
    /// Where to note what is looked up, for who has to see to it that the view has it.
    pub wanted: Option<&'a Wanted>,
}

impl<'a> Source<'a> {
    fn service(&self, name: &str) -> Option<&'a Arc<ServiceEntry>> {
        if let Some(wanted) = self.wanted {
            wanted.topic(Topic::service(name));
        }
        self.view.service(name)
    }

    fn node(&self, name: &str) -> Option<&'a Arc<NodeEntry>> {
        if let Some(wanted) = self.wanted {
            wanted.topic(Topic::node(name));
        }
        self.view.node(name)
    }
}

/// What is asked, of class IN.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// As the client wrote it; answers repeat it so.
    pub name: &'a Name,
    pub kind: RecordType,
    pub limits: Limits,
    /// Decides the order of the answers, and which are left out.
    pub seed: u64,
    /// Unix time in seconds: the serial of the SOA record, as in Consul.
    pub now: u32,
}

/// How much of an answer the transport takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole message in bytes, without what the OPT record takes.
    pub size: u16,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Without EDNS: [`crate::ZoneSettings::udp_answer_limit`] applies.
    PlainUdp,
    EdnsUdp,
    /// TCP and what is built on it. There is no better way to ask again, so answers are worth more
    /// than the additional records that spare a question.
    Stream,
}

/// The records of a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub truncated: bool,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    pub additionals: Vec<Record>,
}

/// Answers one question.
///
/// The encoding of the answer takes at most `limits.size` bytes. When records must be left out for
/// that, the answer says so in `truncated` unless only additional records are missing (RFC 2181,
/// section 9). Addresses in the additional section are those of the SRV targets that are left; over
/// UDP of all of them.
pub fn answer(source: Source<'_>, question: &Question<'_>) -> Answer {
    let mut resolver = Resolver {
        source,
        now: question.now,
        rng: SmallRng::seed_from_u64(question.seed),
        follows_left: MAX_FOLLOWS,
        most: usize::from(question.limits.size) / MIN_RECORD + 1,
    };
    let draft = resolver.resolve(question.name, question.kind, 0);
    fit::fit(draft, source.zone, question)
}

/// How many aliases in a row are followed, as in Consul.
const MAX_DEPTH: usize = 3;

/// How many names besides the asked one are looked up for one answer.
const MAX_FOLLOWS: usize = 16;

/// The least that an address or SRV record takes: an owner that is a pointer, and the address of an
/// A record.
const MIN_RECORD: usize = 16;

struct Resolver<'a> {
    source: Source<'a>,
    now: u32,
    rng: SmallRng,
    follows_left: usize,
    /// More records than can fit: where the search for more may end.
    most: usize,
}

/// An answer before it is made to fit.
struct Draft {
    code: ResponseCode,
    authoritative: bool,
    items: Vec<Item>,
    authority: Vec<Record>,
    /// Additional records that belong to no answer.
    extras: Vec<Record>,
}

/// A record of the answer section with what is told along with it.
struct Item {
    record: Record,
    /// Addresses of its target.
    addresses: Vec<Record>,
    /// Node metadata: the first to go when space is short.
    notes: Vec<Record>,
}

impl From<Record> for Item {
    fn from(record: Record) -> Item {
        Item {
            record,
            addresses: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Draft {
    fn of(items: Vec<Item>) -> Draft {
        Draft {
            code: ResponseCode::NoError,
            authoritative: true,
            items,
            authority: Vec::new(),
            extras: Vec::new(),
        }
    }
}

impl<'a> Resolver<'a> {
    fn resolve(&mut self, owner: &Name, kind: RecordType, depth: usize) -> Draft {
        let zone = self.source.zone;
        let Some(text) = name::folded(owner) else {
            return match zone.domains.iter().find(|d| d.apex.zone_of(owner)) {
                Some(domain) => self.denied(domain, ResponseCode::NXDomain),
                None => refused(),
            };
        };
        let (subject, domain) = name::parse(zone, &text);
        let Some(domain) = domain else {
            return match subject {
                Subject::Reverse(address) => self.reverse(owner, kind, address),
                _ => refused(),
            };
        };
        let asked = Asked {
            owner,
            kind,
            domain,
            depth,
        };
        let found = match subject {
            Subject::Apex => self.apex(&asked),
            Subject::NameServer => self.name_server(&asked),
            Subject::Service {
                service,
                tag,
                datacenter,
            } if name::is_local(zone, datacenter) => self.service(&asked, service, tag),
            Subject::Node { node, datacenter } if name::is_local(zone, datacenter) => {
                self.node(&asked, node)
            }
            Subject::Address(address) => self.address(&asked, address),
            Subject::Empty => Some(Draft::of(Vec::new())),
            _ => None,
        };
        match found {
            None => self.denied(domain, ResponseCode::NXDomain),
            Some(draft) if draft.items.is_empty() && draft.authority.is_empty() => {
                let mut denied = self.denied(domain, ResponseCode::NoError);
                denied.extras = draft.extras;
                denied
            }
            Some(draft) => draft,
        }
    }

    /// What a name in the zone stands for, where the answer has room to tell: an alias of it is
    /// followed.
    fn follow(&mut self, target: &Name, kind: RecordType, depth: usize) -> Option<Draft> {
        let in_zone = self
            .source
            .zone
            .domains
            .iter()
            .any(|domain| domain.apex.zone_of(target));
        if !in_zone || depth >= MAX_DEPTH || self.follows_left == 0 {
            return None;
        }
        self.follows_left -= 1;
        Some(self.resolve(target, kind, depth + 1))
    }

    /// An alias, with what it stands for when that is ours to say. The reply tells whether the last
    /// name of the chain exists (RFC 6604).
    fn alias(&mut self, asked: &Asked<'_>, target: Name, ttl: u32) -> Draft {
        if target == *asked.owner {
            // An instance that was registered under the name it is found by.
            return Draft::of(Vec::new());
        }
        let alias = record::cname(asked.owner, ttl, target.clone());
        let mut draft = Draft::of(vec![alias.into()]);
        if asked.kind != RecordType::CNAME
            && let Some(end) = self.follow(&target, asked.kind, asked.depth)
        {
            draft.code = end.code;
            draft.authority = end.authority;
            draft.items.extend(end.items);
        }
        draft
    }

    /// Says that there is nothing, and for how long that may be believed.
    fn denied(&self, domain: &Domain, code: ResponseCode) -> Draft {
        Draft {
            code,
            authority: vec![self.soa(domain)],
            ..Draft::of(Vec::new())
        }
    }
}

/// One name that is being looked up.
struct Asked<'a> {
    owner: &'a Name,
    kind: RecordType,
    /// The domain that the name is in: answers stay in it.
    domain: &'a Domain,
    depth: usize,
}

impl Asked<'_> {
    /// Whether addresses of either family are wanted.
    fn wants_addresses(&self) -> bool {
        matches!(
            self.kind,
            RecordType::A | RecordType::AAAA | RecordType::ANY
        )
    }
}

fn refused() -> Draft {
    Draft {
        code: ResponseCode::Refused,
        authoritative: false,
        ..Draft::of(Vec::new())
    }
}

impl fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.kind, self.limits)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
