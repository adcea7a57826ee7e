//! Counters, each looked up by name once.
//!
//! The recorder must be installed before the server starts. A series appears with the first query
//! of its kind: type, code and transport together are many, most of them never seen.

use std::sync::OnceLock;

use hickory_server::{
    net::xfer::Protocol,
    proto::{op::ResponseCode, rr::RecordType},
};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

const KINDS: [&str; 10] = [
    "A", "AAAA", "SRV", "TXT", "PTR", "CNAME", "NS", "SOA", "ANY", "other",
];
const CODES: [&str; 8] = [
    "NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "SERVFAIL", "BADVERS", "other",
];
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];

#[derive(Default)]
struct PerTransport {
    queries: [[OnceLock<Counter>; CODES.len()]; KINDS.len()],
    duration: OnceLock<Histogram>,
    truncated: OnceLock<Counter>,
}

pub(crate) struct Metering {
    transports: [PerTransport; TRANSPORTS.len()],
    pub(crate) tcp_connections: Gauge,
    pub(crate) tcp_refused: Counter,
    pub(crate) panics: Counter,
}

/// What became of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// `None` for what was not parsed.
    pub(crate) kind: Option<RecordType>,
    pub(crate) code: ResponseCode,
    pub(crate) truncated: bool,
}

impl Metering {
    pub(crate) fn new() -> Metering {
        Metering {
            transports: Default::default(),
            tcp_connections: gauge!("wharf_dns_tcp_connections"),
            tcp_refused: counter!("wharf_dns_tcp_refused_total"),
            panics: counter!("wharf_dns_panics_total"),
        }
    }

    pub(crate) fn answered(&self, protocol: Protocol, outcome: Outcome, seconds: f64) {
        let transport = transport(protocol);
        let per = &self.transports[transport];
        let (kind, code) = (kind_index(outcome.kind), code_index(outcome.code));
        per.queries[kind][code]
            .get_or_init(|| {
                counter!(
                    "wharf_dns_queries_total",
                    "type" => KINDS[kind],
                    "rcode" => CODES[code],
                    "transport" => TRANSPORTS[transport],
                )
            })
            .increment(1);
        per.duration
            .get_or_init(|| {
                histogram!("wharf_dns_query_duration_seconds", "transport" => TRANSPORTS[transport])
            })
            .record(seconds);
        if outcome.truncated {
            per.truncated
                .get_or_init(
                    || counter!("wharf_dns_truncated_total", "transport" => TRANSPORTS[transport]),
                )
                .increment(1);
        }
    }

    /// Rare, so it is looked up each time.
    pub(crate) fn dropped(&self, protocol: Protocol, reason: &'static str) {
        let transport = TRANSPORTS[transport(protocol)];
        counter!("wharf_dns_dropped_total", "reason" => reason, "transport" => transport)
            .increment(1);
    }
}

fn transport(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Udp => 0,
        _ => 1,
    }
}

fn kind_index(kind: Option<RecordType>) -> usize {
    match kind {
        Some(RecordType::A) => 0,
        Some(RecordType::AAAA) => 1,
        Some(RecordType::SRV) => 2,
        Some(RecordType::TXT) => 3,
        Some(RecordType::PTR) => 4,
        Some(RecordType::CNAME) => 5,
        Some(RecordType::NS) => 6,
        Some(RecordType::SOA) => 7,
        Some(RecordType::ANY) => 8,
        _ => 9,
    }
}

fn code_index(code: ResponseCode) -> usize {
    match code {
        ResponseCode::NoError => 0,
        ResponseCode::NXDomain => 1,
        ResponseCode::Refused => 2,
        ResponseCode::FormErr => 3,
        ResponseCode::NotImp => 4,
        ResponseCode::ServFail => 5,
        ResponseCode::BADVERS => 6,
        _ => 7,
    }
}
