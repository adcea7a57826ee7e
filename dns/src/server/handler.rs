//! Requests in, the answer function's answers out: what the protocol asks of any server.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use hickory_server::{
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode},
        rr::{
            DNSClass, RecordType,
            rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::time::timeout;
use wharf_registry::View;

use crate::{
    answer::{Answer, Limits, Question, Source, Transport, answer},
    catalog::{Catalog, Wanted},
    metering::{Metering, Outcome},
    settings::Zone,
    visibility::Visibility,
};

/// How long an answer waits for what the catalog does not have yet. Clients ask again after five seconds, or two.
const CATALOG_WITHIN: Duration = Duration::from_secs(3);
/// How often an answer is tried: an alias is seen only when its service is known.
const MAX_LOOKS: usize = 8;

/// Answers requests from the newest view, by the newest settings.
pub struct Handler {
    zone: Arc<ArcSwap<Zone>>,
    catalog: Arc<dyn Catalog>,
    visibility: Arc<dyn Visibility>,
    pub(super) metering: Metering,
}

impl Handler {
    pub(super) fn new(
        zone: Arc<ArcSwap<Zone>>,
        catalog: Arc<dyn Catalog>,
        visibility: Arc<dyn Visibility>,
    ) -> Handler {
        Handler {
            zone,
            catalog,
            visibility,
            metering: Metering::new(),
        }
    }

    /// Whether an answer may have to wait.
    pub(super) fn may_wait(&self) -> bool {
        self.catalog.partial().is_some()
    }

    /// Answers from the views there are, or waits until they have what the answer takes.
    async fn answer(&self, request: &Request, zone: &Zone, edns: Option<&Edns>) -> Answer {
        let mut view = self.catalog.view();
        let Some(partial) = self.catalog.partial() else {
            return self.answer_from(&view, request, zone, edns, None);
        };
        let mut told_of = None;
        for _ in 0..MAX_LOOKS {
            let wanted = Wanted::default();
            let answer = self.answer_from(&view, request, zone, edns, Some(&wanted));
            let (topics, address) = wanted.take();
            let in_time = match address {
                Some(address) if told_of != Some(address) => {
                    let reversed = timeout(CATALOG_WITHIN, partial.reverse(address)).await;
                    match reversed.ok().flatten() {
                        Some(reversed) => {
                            told_of = Some(address);
                            view = reversed;
                            true
                        }
                        None => false,
                    }
                }
                Some(_) => return answer,
                None if partial.has(&topics) => return answer,
                None => {
                    let followed = timeout(CATALOG_WITHIN, partial.follow(topics)).await;
                    view = self.catalog.view();
                    followed == Ok(true)
                }
            };
            if !in_time {
                break;
            }
        }
        bare(ResponseCode::ServFail)
    }

    fn answer_from(
        &self,
        view: &View,
        request: &Request,
        zone: &Zone,
        edns: Option<&Edns>,
        wanted: Option<&Wanted>,
    ) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return bare(ResponseCode::NotImp);
        }
        let [query] = request.queries.queries() else {
            return bare(ResponseCode::FormErr);
        };
        if request.version() > 0 {
            return bare(ResponseCode::BADVERS);
        }
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return bare(ResponseCode::NotImp);
        }
        if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            return bare(ResponseCode::Refused);
        }
        let (size, transport) = match (request.protocol(), edns) {
            (Protocol::Udp, None) => (512, Transport::PlainUdp),
            (Protocol::Udp, Some(_)) => {
                let most = zone.settings().max_udp_payload;
                (request.max_payload().min(most), Transport::EdnsUdp)
            }
            _ => (u16::MAX, Transport::Stream),
        };
        let question = Question {
            name: query.original().name(),
            kind: query.query_type(),
            limits: Limits {
                size: size - edns.map_or(0, opt_size),
                transport,
            },
            seed: rand::random(),
            now: unix_seconds(),
        };
        let source = Source {
            view,
            zone,
            visibility: &*self.visibility,
            wanted,
        };
        answer(source, &question)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let started = Instant::now();
        let zone = self.zone.load_full();
        let edns = request
            .edns
            .as_ref()
            .map(|edns| reply_edns(edns, zone.settings().max_udp_payload));
        let answer = self.answer(request, &zone, edns.as_ref()).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.truncation = answer.truncated;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &answer.answers,
            &answer.authority,
            [],
            &answer.additionals,
        );
        let sent = response_handle.send_response(response).await;
        let outcome = Outcome {
            kind: request.queries.queries().first().map(|q| q.query_type()),
            code: answer.code,
            truncated: answer.truncated,
        };
        let seconds = started.elapsed().as_secs_f64();
        self.metering.answered(request.protocol(), outcome, seconds);
        match sent {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "DNS: a reply was not sent");
                metadata.response_code = ResponseCode::ServFail;
                let counts = HeaderCounts::default();
                ResponseInfo::from(Header { metadata, counts })
            }
        }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// A reply that says a code and nothing about the zone.
fn bare(code: ResponseCode) -> Answer {
    Answer {
        code,
        authoritative: false,
        truncated: false,
        answers: Vec::new(),
        authority: Vec::new(),
        additionals: Vec::new(),
    }
}

/// The OPT record of the reply (RFC 6891): what we take, DO as it was asked, and a client subnet
/// with scope 0, for it changed nothing (RFC 7871). Other options are ignored.
fn reply_edns(asked: &Edns, max_udp_payload: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(max_udp_payload)
        .set_version(0)
        .set_dnssec_ok(asked.flags().dnssec_ok);
    if let Some(EdnsOption::Subnet(subnet)) = asked.option(EdnsCode::Subnet) {
        let echoed = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), 0);
        edns.options_mut().insert(EdnsOption::Subnet(echoed));
    }
    edns
}

/// How many bytes the OPT record takes.
fn opt_size(edns: &Edns) -> u16 {
    const FIXED: u16 = 11;
    const OPTION_FIXED: u16 = 4;
    match edns.option(EdnsCode::Subnet) {
        Some(option) => FIXED + OPTION_FIXED + option.len(),
        None => FIXED,
    }
}

/// The serial of the SOA record; wraps as serials do (RFC 1982).
fn unix_seconds() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as u32)
}
