//! Answers by table: names and settings in, records out.

use std::{collections::BTreeMap, time::Duration};

use hickory_server::proto::rr::{Name, Record, RecordType};
use wharf_registry::{
    Registry,
    command::Register,
    model::{CheckStatus, Weights},
};

use super::*;
use crate::{
    settings::ZoneSettings,
    testing::{Catalog, node, service, tagged},
    visibility::Everything,
};

/// The registry that the tables ask.
fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    let mut first = node("N1", "10.0.0.1");
    first.meta = BTreeMap::from([
        ("os".into(), "linux".into()),
        ("rfc1035-spf".into(), "v=spf1 x".into()),
        ("k=e`y ".into(), "a b".into()),
    ]);
    let mut web = tagged(service("web", "", 80), &["v1", "a.b"]);
    web.weights = Weights {
        passing: 3,
        warning: 70000,
    };
    catalog.instance(first.clone(), web.clone(), CheckStatus::Warning);
    web.id = "same place".into();
    catalog.instance(first, web, CheckStatus::Warning);
    catalog.instance(
        node("n2.rack", "10.0.0.2"),
        tagged(service("web", "10.9.9.9", 81), &["V2"]),
        CheckStatus::Passing,
    );
    catalog.instance(
        node("n3", "10.0.0.3"),
        tagged(service("web", "", 82), &["v1"]),
        CheckStatus::Critical,
    );
    catalog.instance(
        node("n3", "10.0.0.3"),
        service("down", "", 1),
        CheckStatus::Critical,
    );
    catalog.instance(
        node("n5", "fd00::5"),
        service("six", "", 443),
        CheckStatus::Passing,
    );
    catalog.instance(
        node("host-node", "n.example.com"),
        service("ext", "", 443),
        CheckStatus::Passing,
    );
    let n2 = || node("n2.rack", "10.0.0.2");
    for (name, address) in [
        ("alias", "n1.node.consul"),
        ("gone", "nobody.node.consul."),
        ("loop-a", "loop-b.service.consul"),
        ("loop-b", "loop-a.service.consul"),
        ("self", "self.service.consul"),
        ("odd", "not a..name"),
    ] {
        catalog.instance(n2(), service(name, address, 5), CheckStatus::Passing);
    }
    catalog.instance(
        node("a..b", "10.0.0.8"),
        service("unnamable", "", 9),
        CheckStatus::Passing,
    );
    catalog.instance(
        node("srv1", "10.0.0.9"),
        service("consul", "", 8300),
        CheckStatus::Passing,
    );
    catalog
}

fn zone(change: impl FnOnce(&mut ZoneSettings)) -> Zone {
    let mut settings = ZoneSettings {
        alt_domain: Some("Alt.example".into()),
        node_ttl: Duration::from_secs(7),
        service_ttl: BTreeMap::from([("*".into(), Duration::from_secs(5))]),
        node_name: "me".into(),
        ..ZoneSettings::default()
    };
    change(&mut settings);
    Zone::new(settings).unwrap()
}

pub(super) const TCP: Limits = Limits {
    size: u16::MAX,
    transport: Transport::Stream,
};

fn ask_of(
    registry: &Registry,
    zone: &Zone,
    name: &str,
    kind: RecordType,
    limits: Limits,
) -> Answer {
    let view = registry.view();
    let source = Source {
        view: &view,
        zone,
        visibility: &Everything,
        wanted: None,
    };
    let question = Question {
        name: &Name::from_ascii(name).unwrap(),
        kind,
        limits,
        seed: 1,
        now: 77,
    };
    answer(source, &question)
}

fn lines(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = records.iter().map(Record::to_string).collect();
    lines.sort();
    lines
}

/// A reply in one string: code, answers, `auth:` records, `add:` records, each sorted.
fn told(answer: &Answer) -> String {
    let mut text = vec![format!("{:?}", answer.code)];
    text.extend(lines(&answer.answers));
    text.extend(
        lines(&answer.authority)
            .into_iter()
            .map(|l| format!("auth: {l}")),
    );
    text.extend(
        lines(&answer.additionals)
            .into_iter()
            .map(|l| format!("add: {l}")),
    );
    text.join("\n")
}

#[track_caller]
fn check(zone: &Zone, name: &str, kind: RecordType, expected: &[&str]) {
    let answer = ask_of(&catalog().registry(), zone, name, kind, TCP);
    let expected: Vec<String> = expected
        .iter()
        .map(|line| {
            line.replace(
                "SOA!",
                "0 IN SOA ns.consul. hostmaster.consul. 77 3600 600 86400 0",
            )
        })
        .collect();
    assert_eq!(told(&answer), expected.join("\n"), "{name} {kind}");
    assert_eq!(answer.authoritative, answer.code != ResponseCode::Refused);
    assert!(!answer.truncated);
}

const NODATA: &[&str] = &["NoError", "auth: consul. SOA!"];
const NXDOMAIN: &[&str] = &["NXDomain", "auth: consul. SOA!"];

#[test]
fn services_have_addresses() {
    let zone = &zone(|_| {});
    let both = [
        "NoError",
        "web.service.consul. 5 IN A 10.0.0.1",
        "web.service.consul. 5 IN A 10.9.9.9",
    ];
    check(zone, "web.service.consul.", RecordType::A, &both);
    check(zone, "web.service.consul.", RecordType::ANY, &both);
    check(
        zone,
        "WEB.Service.alt.EXAMPLE.",
        RecordType::A,
        &[
            "NoError",
            "WEB.Service.alt.EXAMPLE. 5 IN A 10.0.0.1",
            "WEB.Service.alt.EXAMPLE. 5 IN A 10.9.9.9",
        ],
    );
    for name in [
        "a.b.web.service.consul.",
        "_web._v1.consul.",
        "_web._V1.service.dc1.consul.",
    ] {
        check(
            zone,
            name,
            RecordType::A,
            &["NoError", &format!("{name} 5 IN A 10.0.0.1")],
        );
    }
    check(
        zone,
        "v2.web.service.dc1.dc.consul.",
        RecordType::A,
        &["NoError", "v2.web.service.dc1.dc.consul. 5 IN A 10.9.9.9"],
    );
    check(
        zone,
        "six.service.consul.",
        RecordType::AAAA,
        &["NoError", "six.service.consul. 5 IN AAAA fd00::5"],
    );
    for kind in [
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::MX,
        RecordType::SOA,
        RecordType::NS,
    ] {
        check(zone, "web.service.consul.", kind, NODATA);
    }
    check(zone, "six.service.consul.", RecordType::A, NODATA);
}

#[test]
fn what_cannot_be_used_does_not_exist() {
    let default = &zone(|_| {});
    for name in [
        "down.service.consul.",
        "nothing.service.consul.",
        "v9.web.service.consul.",
        "web.service.dc2.consul.",
        "n3.node.dc2.consul.",
        "n9.node.consul.",
        "web.connect.consul.",
        "web.virtual.consul.",
        "any.query.consul.",
        "foo.consul.",
        "zz000001.addr.consul.",
        "a\\.b.service.consul.",
    ] {
        for kind in [
            RecordType::A,
            RecordType::SRV,
            RecordType::ANY,
            RecordType::SOA,
        ] {
            check(default, name, kind, NXDOMAIN);
        }
    }
    let strict = &zone(|settings| settings.only_passing = true);
    check(
        strict,
        "web.service.consul.",
        RecordType::A,
        &["NoError", "web.service.consul. 5 IN A 10.9.9.9"],
    );
    check(strict, "v1.web.service.consul.", RecordType::A, NXDOMAIN);
}

#[test]
fn srv_records_point_to_nodes_addresses_and_hosts() {
    let default = &zone(|_| {});
    check(
        default,
        "_web._tcp.service.consul.",
        RecordType::SRV,
        &[
            "NoError",
            "_web._tcp.service.consul. 5 IN SRV 1 1 81 0a090909.addr.dc1.consul.",
            "_web._tcp.service.consul. 5 IN SRV 1 65535 80 N1.node.dc1.consul.",
            "add: 0a090909.addr.dc1.consul. 5 IN A 10.9.9.9",
            "add: N1.node.dc1.consul. 5 IN A 10.0.0.1",
            "add: N1.node.dc1.consul. 5 IN TXT k`=e``y` =a b",
            "add: N1.node.dc1.consul. 5 IN TXT os=linux",
            "add: N1.node.dc1.consul. 5 IN TXT v=spf1 x",
        ],
    );
    let silent = &zone(|settings| settings.enable_additional_node_meta_txt = false);
    check(
        silent,
        "v1.web.service.alt.example.",
        RecordType::SRV,
        &[
            "NoError",
            "v1.web.service.alt.example. 5 IN SRV 1 65535 80 N1.node.dc1.alt.example.",
            "add: N1.node.dc1.alt.example. 5 IN A 10.0.0.1",
        ],
    );
    check(
        default,
        "ext.service.consul.",
        RecordType::SRV,
        &[
            "NoError",
            "ext.service.consul. 5 IN SRV 1 1 443 n.example.com.",
        ],
    );
    check(
        silent,
        "alias.service.consul.",
        RecordType::SRV,
        &[
            "NoError",
            "alias.service.consul. 5 IN SRV 1 1 5 n1.node.consul.",
            "add: n1.node.consul. 7 IN A 10.0.0.1",
        ],
    );
    check(
        default,
        "unnamable.service.consul.",
        RecordType::SRV,
        &[
            "NoError",
            "unnamable.service.consul. 5 IN SRV 1 1 9 0a000008.addr.dc1.consul.",
            "add: 0a000008.addr.dc1.consul. 5 IN A 10.0.0.8",
        ],
    );
    check(default, "odd.service.consul.", RecordType::SRV, NODATA);
}

#[test]
fn host_names_are_aliases_and_followed_within_the_zone() {
    let zone = &zone(|settings| settings.enable_additional_node_meta_txt = false);
    let ext = &["NoError", "ext.service.consul. 5 IN CNAME n.example.com."];
    for kind in [
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::ANY,
    ] {
        check(zone, "ext.service.consul.", kind, ext);
    }
    check(
        zone,
        "host-node.node.consul.",
        RecordType::A,
        &[
            "NoError",
            "host-node.node.consul. 7 IN CNAME n.example.com.",
        ],
    );
    let alias = "alias.service.consul. 5 IN CNAME n1.node.consul.";
    check(
        zone,
        "alias.service.consul.",
        RecordType::A,
        &["NoError", alias, "n1.node.consul. 7 IN A 10.0.0.1"],
    );
    check(
        zone,
        "alias.service.consul.",
        RecordType::CNAME,
        &["NoError", alias],
    );
    // The code and the SOA record speak of the end of the chain.
    check(
        zone,
        "alias.service.consul.",
        RecordType::AAAA,
        &["NoError", alias, "auth: consul. SOA!"],
    );
    check(
        zone,
        "gone.service.consul.",
        RecordType::A,
        &[
            "NXDomain",
            "gone.service.consul. 5 IN CNAME nobody.node.consul.",
            "auth: consul. SOA!",
        ],
    );
    check(zone, "self.service.consul.", RecordType::A, NODATA);
    let looping = ask_of(
        &catalog().registry(),
        zone,
        "loop-a.service.consul.",
        RecordType::A,
        TCP,
    );
    assert_eq!(looping.answers.len(), 1 + MAX_DEPTH, "a loop ends");
}

#[test]
fn nodes_have_addresses_and_metadata() {
    let default = &zone(|_| {});
    let meta = [
        "n1.node.consul. 7 IN TXT k`=e``y` =a b",
        "n1.node.consul. 7 IN TXT os=linux",
        "n1.node.consul. 7 IN TXT v=spf1 x",
    ];
    let address = "n1.node.consul. 7 IN A 10.0.0.1";
    let additional: Vec<String> = meta.iter().map(|l| format!("add: {l}")).collect();
    let [a, b, c] = [&*additional[0], &*additional[1], &*additional[2]];
    check(
        default,
        "n1.node.consul.",
        RecordType::A,
        &["NoError", address, a, b, c],
    );
    check(
        default,
        "n1.node.consul.",
        RecordType::TXT,
        &["NoError", meta[0], meta[1], meta[2]],
    );
    check(
        default,
        "n1.node.consul.",
        RecordType::ANY,
        &["NoError", address, meta[0], meta[1], meta[2]],
    );
    let silent = &zone(|settings| settings.enable_additional_node_meta_txt = false);
    check(
        silent,
        "n1.node.consul.",
        RecordType::A,
        &["NoError", address],
    );
    check(
        silent,
        "n1.node.consul.",
        RecordType::TXT,
        &["NoError", meta[0], meta[1], meta[2]],
    );
    for kind in [
        RecordType::AAAA,
        RecordType::SRV,
        RecordType::CNAME,
        RecordType::MX,
    ] {
        check(default, "n1.node.consul.", kind, NODATA);
    }
    check(
        default,
        "N2.Rack.node.dc1.consul.",
        RecordType::A,
        &["NoError", "N2.Rack.node.dc1.consul. 7 IN A 10.0.0.2"],
    );
    // Health says nothing about a node's address.
    check(
        default,
        "n3.node.consul.",
        RecordType::A,
        &["NoError", "n3.node.consul. 7 IN A 10.0.0.3"],
    );
}

#[test]
fn addresses_say_themselves_and_are_found_again() {
    let zone = &zone(|_| {});
    let four = "0a0000fe.addr.dc2.consul. 7 IN A 10.0.0.254";
    check(
        zone,
        "0a0000fe.addr.dc2.consul.",
        RecordType::A,
        &["NoError", four],
    );
    check(
        zone,
        "0a0000fe.addr.dc2.consul.",
        RecordType::AAAA,
        &["NoError", "auth: consul. SOA!", &format!("add: {four}")],
    );
    check(zone, "0a0000fe.addr.dc2.consul.", RecordType::SRV, NODATA);
    let six = "fd000000000000000000000000000005.addr.dc1.consul.";
    check(
        zone,
        six,
        RecordType::AAAA,
        &["NoError", &format!("{six} 7 IN AAAA fd00::5")],
    );

    let reverse = "1.0.0.10.in-addr.arpa.";
    let pointer = format!("{reverse} 7 IN PTR N1.node.dc1.consul.");
    check(zone, reverse, RecordType::PTR, &["NoError", &pointer]);
    check(zone, reverse, RecordType::ANY, &["NoError", &pointer]);
    check(zone, reverse, RecordType::A, &["NoError"]);
    check(
        zone,
        "9.9.9.10.in-addr.arpa.",
        RecordType::PTR,
        &[
            "NoError",
            "9.9.9.10.in-addr.arpa. 5 IN PTR web.service.dc1.consul.",
        ],
    );
    let six = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
    check(
        zone,
        six,
        RecordType::PTR,
        &["NoError", &format!("{six} 7 IN PTR n5.node.dc1.consul.")],
    );
    check(
        zone,
        "77.0.0.10.in-addr.arpa.",
        RecordType::PTR,
        &["NXDomain"],
    );
    check(zone, "0.10.in-addr.arpa.", RecordType::PTR, &["Refused"]);
    check(zone, "example.com.", RecordType::A, &["Refused"]);
    check(zone, ".", RecordType::NS, &["Refused"]);
}

#[test]
fn the_zone_describes_itself() {
    let default = &zone(|_| {});
    let soa = "Consul. 0 IN SOA ns.consul. hostmaster.consul. 77 3600 600 86400 0";
    let ns = "Consul. 7 IN NS srv1.node.dc1.consul.";
    let glue = "add: srv1.node.dc1.consul. 7 IN A 10.0.0.9";
    check(default, "Consul.", RecordType::NS, &["NoError", ns, glue]);
    check(
        default,
        "Consul.",
        RecordType::SOA,
        &["NoError", soa, &format!("auth: {ns}"), glue],
    );
    check(
        default,
        "Consul.",
        RecordType::ANY,
        &["NoError", soa, ns, glue],
    );
    check(default, "consul.", RecordType::A, NODATA);
    check(
        default,
        "ns.consul.",
        RecordType::A,
        &["NoError", "ns.consul. 7 IN A 10.0.0.9"],
    );
    check(default, "ns.consul.", RecordType::AAAA, NODATA);
    for name in [
        "service.consul.",
        "node.dc1.consul.",
        "dc1.consul.",
        "_tcp.service.consul.",
    ] {
        check(default, name, RecordType::A, NODATA);
    }
    let negative = &zone(|settings| settings.soa.min_ttl = 30);
    let answer = ask_of(
        &catalog().registry(),
        negative,
        "x.service.consul.",
        RecordType::A,
        TCP,
    );
    assert_eq!(
        told(&answer),
        "NXDomain\nauth: consul. 30 IN SOA ns.consul. hostmaster.consul. 77 3600 600 86400 30"
    );
    let mut alone = Catalog::default();
    alone.node("me", "10.0.0.1");
    let answer = ask_of(&alone.registry(), default, "consul.", RecordType::NS, TCP);
    assert_eq!(
        told(&answer),
        "NoError\nconsul. 7 IN NS me.node.dc1.consul.\nadd: me.node.dc1.consul. 7 IN A 10.0.0.1"
    );
}

#[test]
fn what_is_hidden_does_not_exist() {
    #[derive(Debug)]
    struct Without(&'static str);
    impl Visibility for Without {
        fn service_visible(&self, name: &str) -> bool {
            name != self.0
        }
        fn node_visible(&self, name: &str) -> bool {
            name != self.0
        }
    }
    let zone = zone(|settings| settings.enable_additional_node_meta_txt = false);
    let view = catalog().registry().view();
    let ask = |visibility: &dyn Visibility, name: &str, kind| {
        let source = Source {
            view: &view,
            zone: &zone,
            visibility,
            wanted: None,
        };
        let question = Question {
            name: &Name::from_ascii(name).unwrap(),
            kind,
            limits: TCP,
            seed: 1,
            now: 77,
        };
        let answer = answer(source, &question);
        (answer.code, lines(&answer.answers))
    };
    let nothing = (ResponseCode::NXDomain, Vec::new());
    assert_eq!(
        ask(&Without("web"), "web.service.consul.", RecordType::A),
        nothing
    );
    assert_eq!(
        ask(&Without("N1"), "n1.node.consul.", RecordType::A),
        nothing
    );
    assert_eq!(
        ask(&Without("N1"), "1.0.0.10.in-addr.arpa.", RecordType::PTR),
        nothing
    );
    assert_eq!(
        ask(&Without("web"), "9.9.9.10.in-addr.arpa.", RecordType::PTR),
        nothing
    );
    let others = ask(&Without("N1"), "web.service.consul.", RecordType::A);
    assert_eq!(others.1, ["web.service.consul. 5 IN A 10.9.9.9"]);
}

#[test]
fn limits_on_the_number_of_answers() {
    let mut catalog = Catalog::default();
    catalog.instances("web", 10);
    let registry = catalog.registry();
    let count = |zone: &Zone, kind, limits| {
        let answer = ask_of(&registry, zone, "web.service.consul.", kind, limits);
        (answer.answers.len(), answer.truncated)
    };
    let plain = Limits {
        size: 512,
        transport: Transport::PlainUdp,
    };
    let edns = Limits {
        size: 1221,
        transport: Transport::EdnsUdp,
    };
    let default = zone(|_| {});
    assert_eq!(count(&default, RecordType::A, plain), (10, false));
    let three = zone(|settings| settings.udp_answer_limit = Some(3));
    assert_eq!(count(&three, RecordType::A, plain), (3, true));
    assert_eq!(count(&three, RecordType::SRV, plain), (3, true));
    assert_eq!(count(&three, RecordType::A, edns), (10, false));
    assert_eq!(count(&three, RecordType::A, TCP), (10, false));
    let quiet = zone(|settings| {
        settings.udp_answer_limit = Some(3);
        settings.enable_truncate = false;
    });
    assert_eq!(count(&quiet, RecordType::A, plain), (3, false));
    let four = zone(|settings| settings.a_record_limit = 4);
    assert_eq!(count(&four, RecordType::A, plain), (4, false));
    assert_eq!(count(&four, RecordType::ANY, TCP), (4, false));
    assert_eq!(count(&four, RecordType::SRV, TCP), (10, false));
}

#[test]
fn large_services_are_cut_over_udp_and_whole_over_tcp() {
    let mut catalog = Catalog::default();
    catalog.instances("web", 1000);
    let registry = catalog.registry();
    let zone = zone(|_| {});
    let ask = |kind, limits| ask_of(&registry, &zone, "web.service.consul.", kind, limits);
    let edns = Limits {
        size: 1232 - 11,
        transport: Transport::EdnsUdp,
    };
    // 12 + 24 for header and question, 34 for the first record, 16 for each other one.
    let cut = ask(RecordType::A, edns);
    assert_eq!(
        (cut.answers.len(), cut.truncated),
        (1 + (1221 - 36 - 34) / 16, true)
    );
    let cut = ask(RecordType::SRV, edns);
    assert!(
        cut.truncated && cut.answers.len() >= 15,
        "{}",
        cut.answers.len()
    );
    assert_eq!(cut.answers.len(), cut.additionals.len());
    for kind in [RecordType::A, RecordType::SRV] {
        let whole = ask(kind, TCP);
        let told = (whole.answers.len(), whole.truncated);
        assert_eq!(told, (1000, false), "{kind}");
    }
    // The order is another one with another seed, and so are those that are left out.
    assert_ne!(cut.answers[0], ask(RecordType::SRV, TCP).answers[999]);
}

#[test]
fn metadata_gives_way_and_an_answer_comes_without_its_address_rather_than_not_at_all() {
    let mut catalog = Catalog::default();
    let mut verbose = node("verbose", "10.0.0.1");
    verbose.meta = BTreeMap::from([("k".into(), "x".repeat(600).into())]);
    catalog.register(Register {
        node: verbose,
        service: Some(service("web", "", 80)),
        ..Register::default()
    });
    let registry = catalog.registry();
    let ask = |zone: &Zone, size| {
        let limits = Limits {
            size,
            transport: Transport::PlainUdp,
        };
        let answer = ask_of(
            &registry,
            zone,
            "web.service.consul.",
            RecordType::SRV,
            limits,
        );
        (
            answer.answers.len(),
            answer.additionals.len(),
            answer.truncated,
        )
    };
    let default = zone(|_| {});
    assert_eq!(ask(&default, 1200), (1, 2, false));
    assert_eq!(ask(&default, 512), (1, 1, false), "without the metadata");
    // 36 for header and question, 63 for the record, 16 for the address.
    assert_eq!(ask(&default, 114), (1, 0, false));
}

#[test]
fn every_instance_comes_first_at_times() {
    let mut catalog = Catalog::default();
    catalog.instances("web", 3);
    let view = catalog.registry().view();
    let zone = zone(|_| {});
    let mut first = BTreeMap::<String, usize>::new();
    for seed in 0..300 {
        let source = Source {
            view: &view,
            zone: &zone,
            visibility: &Everything,
            wanted: None,
        };
        let question = Question {
            name: &Name::from_ascii("web.service.consul.").unwrap(),
            kind: RecordType::A,
            limits: TCP,
            seed,
            now: 0,
        };
        let answer = answer(source, &question);
        *first.entry(answer.answers[0].data.to_string()).or_default() += 1;
    }
    assert!(
        first.len() == 3 && first.values().all(|n| *n > 50),
        "{first:?}"
    );
}
