//! What holds for every answer, whatever is registered and however little room there is.

use std::collections::HashSet;

use hickory_server::proto::{
    op::{Message, MessageType, Metadata, OpCode, Query},
    rr::{DNSClass, Name, RData, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncoder},
};
use hickory_server::{server::Request, zone_handler::MessageResponseBuilder};
use proptest::prelude::*;
use wharf_registry::model::CheckStatus;

use super::*;
use crate::{
    settings::ZoneSettings,
    testing::{Catalog, node, service, tagged},
    visibility::Everything,
};

#[derive(Clone, Debug)]
struct Registered {
    node: usize,
    service: &'static str,
    address: &'static str,
    port: u16,
    status: CheckStatus,
    meta: usize,
}

fn registered() -> impl Strategy<Value = Registered> {
    let service = prop::sample::select(&["web", "Web", "db", "a-service-with-a-longer-name"][..]);
    let address = prop::sample::select(
        &[
            "",
            "",
            "10.7.0.1",
            "fd00::7",
            "db.service.consul",
            "x.example.com",
            "odd one",
        ][..],
    );
    let status = prop::sample::select(
        &[
            CheckStatus::Passing,
            CheckStatus::Warning,
            CheckStatus::Critical,
        ][..],
    );
    (0..120usize, service, address, 0..3u16, status, 0..300usize).prop_map(
        |(node, service, address, port, status, meta)| Registered {
            node,
            service,
            address,
            port,
            status,
            meta,
        },
    )
}

fn catalog_of(instances: &[Registered]) -> Catalog {
    let mut catalog = Catalog::default();
    for (at, one) in instances.iter().enumerate() {
        let address = match one.node % 10 {
            0 => format!("fd00::{}", one.node),
            1 => format!("host-{}.example.com", one.node),
            _ => format!("10.0.{}.{}", one.node / 200, one.node % 200 + 1),
        };
        let mut node = node(&format!("Node-{}", one.node), &address);
        node.meta = [("k".into(), "v".repeat(one.meta).into())].into();
        let mut instance = tagged(service(one.service, one.address, one.port), &["t.u"]);
        instance.id = format!("{at}").into();
        catalog.instance(node, instance, one.status);
    }
    catalog
}

fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        &[
            "web.service.consul.",
            "WEB.sErViCe.consul.",
            "t.u.web.service.dc1.consul.",
            "_db._tcp.service.consul.",
            "a-service-with-a-longer-name.service.consul.",
            "node-12.node.consul.",
            "node-11.node.consul.",
            "consul.",
            "0a000001.addr.consul.",
            "1.0.0.10.in-addr.arpa.",
            "nothing.service.consul.",
            "elsewhere.example.",
        ][..],
    )
}

fn kinds() -> impl Strategy<Value = RecordType> {
    prop::sample::select(
        &[
            RecordType::A,
            RecordType::AAAA,
            RecordType::SRV,
            RecordType::TXT,
            RecordType::ANY,
            RecordType::CNAME,
            RecordType::PTR,
            RecordType::NS,
            RecordType::SOA,
        ][..],
    )
}

/// The reply as the server encodes it: from a request that was received.
fn encoded(name: &Name, kind: RecordType, answer: &Answer) -> Vec<u8> {
    let mut asked = Message::new(0x1234, MessageType::Query, OpCode::Query);
    asked.add_query(Query::query(name.clone(), kind));
    let source = ([127, 0, 0, 1], 5353).into();
    let protocol = hickory_server::net::xfer::Protocol::Udp;
    let request = Request::from_bytes(asked.to_vec().unwrap(), source, protocol).unwrap();
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = answer.code;
    metadata.truncation = answer.truncated;
    let mut bytes = Vec::new();
    MessageResponseBuilder::from_message_request(&request)
        .build(
            metadata,
            &answer.answers,
            &answer.authority,
            [],
            &answer.additionals,
        )
        .destructive_emit(&mut BinEncoder::new(&mut bytes))
        .unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_answer_fits_parses_and_agrees_with_itself(
        instances in prop::collection::vec(registered(), 0..90),
        text in names(),
        kind in kinds(),
        size in prop_oneof![Just(512u16), Just(1221), Just(4096), Just(u16::MAX), 501..3000u16],
        seed in any::<u64>(),
        only_passing in any::<bool>(),
    ) {
        let catalog = catalog_of(&instances);
        let zone = Zone::new(ZoneSettings { only_passing, ..ZoneSettings::default() }).unwrap();
        let view = catalog.registry().view();
        let name = Name::from_ascii(text).unwrap();
        let source = Source { view: &view, zone: &zone, visibility: &Everything, wanted: None };
        let transport = match size {
            512 => Transport::PlainUdp,
            u16::MAX => Transport::Stream,
            _ => Transport::EdnsUdp,
        };
        let limits = Limits { size, transport };
        let question = Question { name: &name, kind, limits, seed, now: 0 };
        let told = answer(source, &question);
        let all = answer(
            source,
            &Question { limits: Limits { size: u16::MAX, transport: Transport::Stream }, ..question },
        );

        // It fits, and says the same when it is read back.
        let bytes = encoded(&name, kind, &told);
        prop_assert!(bytes.len() <= usize::from(size), "{} > {size}", bytes.len());
        let read = Message::from_vec(&bytes).unwrap();
        prop_assert!(read.queries[0].name().eq_case(&name));
        prop_assert_eq!(&read.answers, &told.answers);
        prop_assert_eq!(&read.authorities, &told.authority);
        prop_assert_eq!(&read.additionals, &told.additionals);
        prop_assert!(told.answers.iter().all(|r| r.dns_class == DNSClass::IN));

        // What is left out is said to be, and nothing is made up.
        prop_assert_eq!(told.truncated, told.answers.len() < all.answers.len());
        prop_assert_eq!(&told.answers[..], &all.answers[..told.answers.len()]);
        prop_assert_eq!(told.code, all.code);

        // Nothing is told about targets that are not there; what is there is told about in full,
        // unless only one answer was left.
        let targets: HashSet<Name> = told.answers.iter().filter_map(|r| match &r.data {
            RData::SRV(srv) => Some(srv.target.clone()),
            _ => None,
        }).collect();
        if kind == RecordType::SRV {
            prop_assert!(told.additionals.iter().all(|r| targets.contains(&r.name)));
            if told.answers.len() > 1 {
                let told_of: HashSet<&Name> = told.additionals.iter().map(|r| &r.name).collect();
                let ours = targets.iter().filter(|t| {
                    let labels: Vec<_> = t.iter().collect();
                    labels.contains(&&b"addr"[..]) || labels.contains(&&b"node"[..])
                });
                for target in ours {
                    prop_assert!(told_of.contains(target), "{target}");
                }
            }
        }

        // An address of a service is that of an instance that may be used.
        if text == "web.service.consul." && kind == RecordType::A {
            let worst = if only_passing { CheckStatus::Passing } else { CheckStatus::Warning };
            let usable: HashSet<String> = view.service("web").into_iter()
                .flat_map(|entry| entry.instances.values())
                .filter(|instance| instance.status <= worst)
                .map(|instance| instance.address().to_string())
                .collect();
            for record in &told.answers {
                if let RData::A(address) = &record.data && record.name == name {
                    prop_assert!(usable.contains(&address.to_string()));
                }
            }
            prop_assert_eq!(told.code == ResponseCode::NXDomain, usable.is_empty());
        }
    }

    #[test]
    fn any_name_gets_an_answer(labels in prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..20),
            prop::sample::select(&["service", "consul", "node", "addr", "_x", "dc1", "dc", "arpa"][..])
                .prop_map(|label| label.as_bytes().to_vec()),
        ], 0..8), kind in kinds())
    {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
        let view = Catalog::default().registry().view();
        let zone = Zone::new(ZoneSettings::default()).unwrap();
        let source = Source { view: &view, zone: &zone, visibility: &Everything, wanted: None };
        let limits = Limits { size: 501, transport: Transport::PlainUdp };
        let told = answer(source, &Question { name: &name, kind, limits, seed: 0, now: 0 });
        let bytes = encoded(&name, kind, &told);
        prop_assert!(bytes.len() <= 501);
        let mut decoder = BinDecoder::new(&bytes);
        prop_assert!(Message::read(&mut decoder).is_ok());
    }
}
