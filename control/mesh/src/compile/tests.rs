use proptest::prelude::*;
use serde_json::json;
use wharf_proto::v1::proxy_configuration_request::Target;

use super::*;
use crate::{
    DescribeError, describe,
    testing::{Catalog, ad_hoc, applied, place},
    update,
};

use CheckStatus::{Critical, Passing, Warning};

fn compiled(catalog: &Catalog, target: &Target) -> Compiled {
    let view = catalog.view();
    compile(&view, &describe(&view, &place(), Some(target)).unwrap())
}

fn cluster<'a>(compiled: &'a Compiled, name: &str) -> &'a Cluster {
    let mut clusters = compiled.snapshot.clusters.iter();
    clusters.find(|cluster| cluster.name == name).unwrap()
}

fn sidecar() -> serde_json::Value {
    json!({
        "Kind": "connect-proxy", "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy", "Port": 21000,
        "Proxy": {
            "DestinationServiceName": "web", "DestinationServiceID": "web-1",
            "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
            "Config": {"local_request_timeout_ms": 1500},
            "Upstreams": [
                {"DestinationName": "db", "LocalBindPort": 5432},
                {"DestinationName": "api", "LocalBindPort": 9000, "Config": {
                    "protocol": "grpc", "connect_timeout_ms": 250, "limits": {"max_connections": 8}}},
            ],
        },
    })
}

#[test]
fn a_registered_sidecar_listens_both_ways() {
    let mut catalog = Catalog::new();
    catalog.instance(
        "n1",
        json!({"ID": "web-1", "Service": "web", "Port": 8080}),
        Passing,
    );
    catalog.instance("n1", sidecar(), Passing);
    catalog.instance(
        "n2",
        json!({"ID": "db", "Service": "db", "Port": 5432}),
        Passing,
    );
    catalog.service_defaults(
        json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http",
        "MaxInboundConnections": 7, "LocalConnectTimeoutMs": 300}),
    );

    let by_service = compiled(&catalog, &Target::SidecarFor("web-1".into()));
    let by_id = compiled(&catalog, &Target::ProxyId("web-1-sidecar-proxy".into()));
    assert_eq!(by_service, by_id);
    assert_eq!(by_id.problems, Vec::<String>::new());

    let snapshot = &by_id.snapshot;
    assert_eq!(
        (&*snapshot.proxy_id, &*snapshot.service),
        ("web-1-sidecar-proxy", "web")
    );
    let listeners: Vec<_> = snapshot
        .listeners
        .iter()
        .map(|l| {
            (
                &*l.name,
                &*l.address,
                l.port,
                l.direction(),
                l.protocol(),
                &*l.cluster,
                l.max_connections,
            )
        })
        .collect();
    use ListenerDirection::{Inbound, Outbound};
    use ProxyProtocol::{Grpc, Http, Tcp};
    assert_eq!(
        listeners,
        [
            (
                "api:127.0.0.1:9000",
                "127.0.0.1",
                9000,
                Outbound,
                Grpc,
                "api",
                0
            ),
            (
                "db:127.0.0.1:5432",
                "127.0.0.1",
                5432,
                Outbound,
                Tcp,
                "db",
                0
            ),
            (
                "public_listener:127.0.0.1:21000",
                "127.0.0.1",
                21000,
                Inbound,
                Http,
                "local_app",
                7
            ),
        ]
    );

    let local = cluster(&by_id, "local_app");
    assert_eq!(
        (local.connect_timeout_ms, local.request_timeout_ms),
        (300, 1500)
    );
    assert_eq!(
        (&*local.endpoints[0].address, local.endpoints[0].port),
        ("127.0.0.1", 8080)
    );
    let api = cluster(&by_id, "api");
    assert_eq!((api.connect_timeout_ms, api.max_connections), (250, 8));
    assert!(api.endpoints.is_empty(), "there is no such service yet");
    let db = cluster(&by_id, "db");
    assert_eq!(
        (&*db.endpoints[0].address, &*db.endpoints[0].node),
        ("10.0.0.2", "n2")
    );
}

#[test]
fn the_port_of_the_application_is_found_and_the_bind_address_obeyed() {
    let mut catalog = Catalog::new();
    catalog.instance(
        "n1",
        json!({"ID": "web-1", "Service": "web", "Port": 8081}),
        Passing,
    );
    let mut proxy = sidecar();
    proxy["Proxy"]["LocalServicePort"] = json!(0);
    proxy["Proxy"]["Config"] = json!({"bind_address": "0.0.0.0", "bind_port": 22000});
    catalog.instance("n1", proxy, Passing);
    let compiled = compiled(&catalog, &Target::SidecarFor("web-1".into()));
    let inbound = compiled
        .snapshot
        .listeners
        .iter()
        .find(|l| l.cluster == "local_app")
        .unwrap();
    assert_eq!((&*inbound.address, inbound.port), ("0.0.0.0", 22000));
    assert_eq!(cluster(&compiled, "local_app").endpoints[0].port, 8081);
}

#[test]
fn only_instances_that_may_be_called_are_endpoints() {
    let mut catalog = Catalog::new();
    let mut add = |id: &str, extra: serde_json::Value, status| {
        let mut service = json!({"ID": id, "Service": "db", "Port": 5432});
        service
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        catalog.instance("n2", service, status);
    };
    add("critical", json!({}), Critical);
    add("own-address", json!({"Address": "192.0.2.7"}), Passing);
    add("portless", json!({"Port": 0}), Passing);
    add(
        "unwanted",
        json!({"Weights": {"Passing": 0, "Warning": 1}}),
        Passing,
    );
    add(
        "warning",
        json!({"Weights": {"Passing": 10, "Warning": 2}}),
        Warning,
    );
    let compiled = compiled(&catalog, &ad_hoc(&[("db", 5000)]));
    let endpoints: Vec<_> = cluster(&compiled, "db")
        .endpoints
        .iter()
        .map(|e| (&*e.instance_id, &*e.address, e.weight))
        .collect();
    assert_eq!(
        endpoints,
        [("own-address", "192.0.2.7", 1), ("warning", "10.0.0.2", 2)]
    );
}

#[test]
fn the_nearest_word_on_the_protocol_counts() {
    let mut catalog = Catalog::new();
    catalog.instance("n1", sidecar(), Passing);
    let target = Target::ProxyId("web-1-sidecar-proxy".into());
    let protocols = |catalog: &Catalog| {
        let compiled = compiled(catalog, &target);
        (
            cluster(&compiled, "db").protocol(),
            cluster(&compiled, "api").protocol(),
        )
    };
    use ProxyProtocol::{Grpc, Http, Http2, Tcp};
    assert_eq!(protocols(&catalog), (Tcp, Grpc));
    catalog.proxy_defaults(json!({"protocol": "http"}));
    assert_eq!(
        protocols(&catalog),
        (Http, Grpc),
        "the upstream's own word is nearer"
    );
    catalog
        .service_defaults(json!({"Kind": "service-defaults", "Name": "api", "Protocol": "HTTP2"}));
    assert_eq!(protocols(&catalog), (Http, Http2), "the service knows best");
}

#[test]
fn limits_towards_upstreams_come_by_name_then_for_all() {
    let mut catalog = Catalog::new();
    catalog.service_defaults(json!({"Kind": "service-defaults", "Name": "client", "UpstreamConfig": {
        "Defaults": {"ConnectTimeoutMs": 900, "Limits": {"MaxConnections": 3, "MaxPendingRequests": 4}},
        "Overrides": [{"Name": "db", "Limits": {"MaxConnections": 50}}],
    }}));
    let compiled = compiled(&catalog, &ad_hoc(&[("db", 1), ("api", 2)]));
    let limits = |name| {
        let c = cluster(&compiled, name);
        (
            c.connect_timeout_ms,
            c.max_connections,
            c.max_pending_requests,
            c.max_concurrent_requests,
        )
    };
    assert_eq!(limits("db"), (900, 50, 4, 0));
    assert_eq!(limits("api"), (900, 3, 4, 0));
}

#[test]
fn what_cannot_be_used_is_left_out_and_told() {
    let mut catalog = Catalog::new();
    let mut proxy = sidecar();
    proxy["Proxy"]["Upstreams"] = json!([
        {"DestinationName": "a", "LocalBindPort": 1},
        {"DestinationName": "b", "LocalBindPort": 1},
        {"DestinationName": "c", "DestinationType": "prepared_query", "LocalBindPort": 2},
        {"DestinationName": "d", "LocalBindPort": 3, "LocalBindAddress": "localhost"},
        {"DestinationName": "e", "LocalBindPort": 4, "Datacenter": "dc2", "Config": {"protocol": "smtp"}},
        {"DestinationName": "f"},
    ]);
    catalog.instance("n1", proxy, Passing);
    let compiled = compiled(&catalog, &Target::ProxyId("web-1-sidecar-proxy".into()));
    let names: Vec<_> = compiled
        .snapshot
        .listeners
        .iter()
        .map(|l| &*l.name)
        .collect();
    assert_eq!(
        names,
        [
            "a:127.0.0.1:1",
            "e:127.0.0.1:4",
            "public_listener:127.0.0.1:21000"
        ]
    );
    assert_eq!(compiled.problems.len(), 6, "{:#?}", compiled.problems);
    assert_eq!(
        compiled.problems[0],
        "upstream \"b\": 127.0.0.1 port 1 is already that of \"a:127.0.0.1:1\""
    );
}

#[test]
fn upstreams_to_one_service_share_a_cluster_unless_they_differ() {
    let mut catalog = Catalog::new();
    let mut proxy = sidecar();
    proxy["Proxy"]["Upstreams"] = json!([
        {"DestinationName": "db", "LocalBindPort": 1},
        {"DestinationName": "db", "LocalBindPort": 2},
        {"DestinationName": "db", "LocalBindPort": 3, "Config": {"connect_timeout_ms": 1}},
        {"DestinationName": "local_app", "LocalBindPort": 4},
    ]);
    catalog.instance("n1", proxy, Passing);
    let compiled = compiled(&catalog, &Target::ProxyId("web-1-sidecar-proxy".into()));
    let clusters: Vec<_> = compiled
        .snapshot
        .listeners
        .iter()
        .map(|l| &*l.cluster)
        .collect();
    assert_eq!(
        clusters,
        [
            "db",
            "db",
            "db:127.0.0.1:3",
            "local_app:127.0.0.1:4",
            "local_app"
        ]
    );
}

#[test]
fn a_proxy_that_is_not_there_is_told_apart() {
    let mut catalog = Catalog::new();
    let found = |catalog: &Catalog, target: &Target| {
        describe(&catalog.view(), &place(), Some(target)).map(|proxy| proxy.id.to_string())
    };
    let of_web = Target::SidecarFor("web-1".into());
    let unknown = DescribeError::UnknownService("web-1".into());
    assert_eq!(found(&catalog, &of_web), Err(unknown));
    catalog.instance("n1", json!({"ID": "web-1", "Service": "web"}), Passing);
    assert_eq!(
        found(&catalog, &of_web),
        Err(DescribeError::NoSidecar("web-1".into()))
    );
    let not_a_proxy = found(&catalog, &Target::ProxyId("web-1".into())).unwrap_err();
    assert_eq!(
        not_a_proxy.to_string(),
        "the instance with id \"web-1\" is a service, not a sidecar proxy"
    );
    // A sidecar on another node is not this agent's.
    catalog.instance("n2", sidecar(), Passing);
    assert_eq!(
        found(&catalog, &of_web),
        Err(DescribeError::NoSidecar("web-1".into()))
    );
    catalog.instance("n1", sidecar(), Passing);
    assert_eq!(
        found(&catalog, &of_web).as_deref(),
        Ok("web-1-sidecar-proxy")
    );
    let mut second = sidecar();
    second["ID"] = json!("another");
    catalog.instance("n1", second, Passing);
    assert!(matches!(
        found(&catalog, &of_web),
        Err(DescribeError::SeveralSidecars { .. })
    ));
}

#[test]
fn an_ad_hoc_proxy_is_checked_whole() {
    let mut target = ad_hoc(&[("db", 5000), ("", 0), ("api", 70000), ("api", 5000)]);
    if let Target::AdHoc(proxy) = &mut target {
        proxy.service.clear();
        proxy.upstreams[2].local_bind_address = "localhost".into();
    }
    let Err(DescribeError::Invalid(violations)) =
        describe(&Catalog::new().view(), &place(), Some(&target))
    else {
        panic!("it is accepted");
    };
    let fields: Vec<_> = violations.iter().map(|v| &*v.field).collect();
    assert_eq!(
        fields,
        [
            "ad_hoc.service",
            "ad_hoc.upstreams[1].destination",
            "ad_hoc.upstreams[1].local_bind_port",
            "ad_hoc.upstreams[2].local_bind_address",
            "ad_hoc.upstreams[2].local_bind_port",
            "ad_hoc.upstreams[3].local_bind_port",
        ]
    );
    assert!(matches!(
        describe(&Catalog::new().view(), &place(), None),
        Err(DescribeError::Invalid(_))
    ));
}

/// One thing that happens to the catalog.
#[derive(Clone, Debug)]
enum Change {
    Instance {
        node: u8,
        service: &'static str,
        id: u8,
        port: u16,
        status: CheckStatus,
    },
    Remove {
        node: u8,
        service: &'static str,
        id: u8,
    },
    Defaults {
        service: &'static str,
        protocol: &'static str,
    },
    Global {
        protocol: &'static str,
    },
    Sidecar {
        port: u16,
        upstreams: Vec<(&'static str, u16)>,
    },
    NoSidecar,
}

fn change() -> impl Strategy<Value = Change> {
    let service = || prop::sample::select(vec!["db", "api", "other", "Web"]);
    let protocol = || prop::sample::select(vec!["", "tcp", "http", "grpc"]);
    let status = prop::sample::select(vec![Passing, Warning, Critical]);
    let upstreams = prop::collection::vec((service(), 1..6u16), 0..4);
    prop_oneof![
        6 => (1..4u8, service(), 0..3u8, 0..3u16, status)
            .prop_map(|(node, service, id, port, status)| Change::Instance { node, service, id, port, status }),
        2 => (1..4u8, service(), 0..3u8).prop_map(|(node, service, id)| Change::Remove { node, service, id }),
        2 => (service(), protocol()).prop_map(|(service, protocol)| Change::Defaults { service, protocol }),
        1 => protocol().prop_map(|protocol| Change::Global { protocol }),
        2 => (0..3u16, upstreams).prop_map(|(port, upstreams)| Change::Sidecar { port, upstreams }),
        1 => Just(Change::NoSidecar),
    ]
}

fn happen(catalog: &mut Catalog, change: &Change) {
    match change {
        Change::Instance {
            node,
            service,
            id,
            port,
            status,
        } => catalog.instance(
            &format!("n{node}"),
            json!({"ID": format!("{service}-{id}"), "Service": service, "Port": port}),
            *status,
        ),
        Change::Remove { node, service, id } => {
            catalog.remove(&format!("n{node}"), &format!("{service}-{id}"));
        }
        Change::Defaults { service, protocol } => catalog.service_defaults(
            json!({"Kind": "service-defaults", "Name": service, "Protocol": protocol}),
        ),
        Change::Global { protocol } => catalog.proxy_defaults(json!({"protocol": protocol})),
        Change::Sidecar { port, upstreams } => {
            let mut proxy = sidecar();
            proxy["Port"] = json!(port);
            proxy["Proxy"]["Upstreams"] = upstreams
                .iter()
                .map(|(name, port)| json!({"DestinationName": name, "LocalBindPort": port}))
                .collect();
            catalog.instance("n1", proxy, Passing);
        }
        Change::NoSidecar => catalog.remove("n1", "web-1-sidecar-proxy"),
    }
}

proptest! {
    /// Whatever happens, an update makes of the old snapshot the new one, says nothing when nothing
    /// changed, and the keys announce every difference.
    #[test]
    fn updates_are_exact_and_announced(changes in prop::collection::vec(change(), 1..40)) {
        use futures_util::FutureExt as _;

        let mut catalog = Catalog::new();
        catalog.instance("n1", sidecar(), Passing);
        let target = Target::ProxyId("web-1-sidecar-proxy".into());
        let mut known = compiled(&catalog, &target);
        for change in &changes {
            let mut watchers: Vec<_> =
                known.keys.iter().map(|key| catalog.registry.watch(key.clone())).collect();
            happen(&mut catalog, change);
            let announced = watchers.iter_mut().any(|watcher| watcher.changed().now_or_never().is_some());
            let view = catalog.view();
            let Ok(description) = describe(&view, &place(), Some(&target)) else {
                prop_assert!(announced, "the proxy went unannounced: {change:?}");
                catalog.instance("n1", sidecar(), Passing);
                known = compiled(&catalog, &target);
                continue;
            };
            let now = compile(&view, &description);
            let told = update(&known.snapshot, &now.snapshot);
            prop_assert_eq!(told.is_some(), known.snapshot != now.snapshot);
            prop_assert!(announced || told.is_none(), "unannounced: {change:?}");
            prop_assert_eq!(applied(known.snapshot, told), now.snapshot.clone());
            known = now;
        }
    }

    /// Two unrelated catalogs: an update leads from any snapshot to any other.
    #[test]
    fn an_update_leads_anywhere(
        one in prop::collection::vec(change(), 0..12),
        other in prop::collection::vec(change(), 0..12),
    ) {
        let snapshot = |changes: &[Change]| {
            let mut catalog = Catalog::new();
            for change in changes.iter().filter(|change| !matches!(change, Change::NoSidecar)) {
                happen(&mut catalog, change);
            }
            catalog.instance("n1", sidecar(), Passing);
            for change in changes.iter().filter(|change| matches!(change, Change::Sidecar { .. })) {
                happen(&mut catalog, change);
            }
            compiled(&catalog, &Target::ProxyId("web-1-sidecar-proxy".into())).snapshot
        };
        let (old, new) = (snapshot(&one), snapshot(&other));
        prop_assert_eq!(applied(old.clone(), update(&old, &new)), new);
    }
}
