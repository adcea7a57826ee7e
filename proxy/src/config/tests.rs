use std::sync::{Arc, atomic::Ordering::Relaxed};

use proptest::prelude::*;
use wharf_proto::v1::{self, proxy_configuration_response::Update};

use super::*;
use crate::balance::Rng;

fn listener(name: &str, port: u32, cluster: &str) -> v1::Listener {
    v1::Listener {
        name: name.into(),
        direction: v1::ListenerDirection::Outbound as i32,
        address: "127.0.0.1".into(),
        port,
        protocol: v1::ProxyProtocol::Http as i32,
        cluster: cluster.into(),
        max_connections: 0,
    }
}

fn cluster(name: &str, ports: &[u32]) -> v1::Cluster {
    let endpoints = ports
        .iter()
        .map(|&port| v1::Endpoint {
            address: "10.0.0.1".into(),
            port,
            weight: 1,
            ..v1::Endpoint::default()
        })
        .collect();
    v1::Cluster {
        name: name.into(),
        service: name.into(),
        protocol: v1::ProxyProtocol::Http as i32,
        endpoints,
        ..v1::Cluster::default()
    }
}

fn desired(listeners: Vec<v1::Listener>, clusters: Vec<v1::Cluster>) -> Desired {
    let mut desired = Desired::default();
    desired
        .apply(snapshot(1, listeners, clusters), true)
        .expect("a snapshot always applies");
    desired
}

fn snapshot(
    version: u64,
    listeners: Vec<v1::Listener>,
    clusters: Vec<v1::Cluster>,
) -> v1::ProxyConfigurationResponse {
    let snapshot = v1::ProxySnapshot {
        listeners,
        clusters,
        ..v1::ProxySnapshot::default()
    };
    v1::ProxyConfigurationResponse {
        version,
        update: Some(Update::Snapshot(snapshot)),
    }
}

fn delta(version: u64, delta: v1::ProxyDelta) -> v1::ProxyConfigurationResponse {
    v1::ProxyConfigurationResponse {
        version,
        update: Some(Update::Delta(delta)),
    }
}

#[test]
fn a_delta_removes_before_it_adds() {
    let mut have = desired(
        vec![listener("a", 1, "x"), listener("b", 2, "x")],
        vec![cluster("x", &[80])],
    );
    let change = v1::ProxyDelta {
        removed_listeners: vec!["a".into(), "b".into()],
        listeners: vec![listener("b", 3, "x")],
        ..v1::ProxyDelta::default()
    };
    have.apply(delta(2, change), false)
        .expect("it follows version 1");
    assert_eq!(have.version, 2);
    assert_eq!(have.listeners.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(have.listeners["b"].port, 3);
}

#[test]
fn a_message_out_of_step_changes_nothing() {
    let mut have = desired(vec![listener("a", 1, "x")], vec![]);
    let remove = || v1::ProxyDelta {
        removed_listeners: vec!["a".into()],
        ..v1::ProxyDelta::default()
    };
    assert_eq!(
        have.apply(delta(3, remove()), false),
        Err(OutOfStep::Gap { have: 1, got: 3 })
    );
    assert_eq!(
        have.apply(delta(2, remove()), true),
        Err(OutOfStep::NoSnapshot)
    );
    let empty = v1::ProxyConfigurationResponse {
        version: 2,
        update: None,
    };
    assert_eq!(have.apply(empty, false), Err(OutOfStep::Empty));
    assert_eq!((have.version, have.listeners.len()), (1, 1));
}

#[test]
fn state_is_carried_over_and_only_what_changed_is_rebuilt() {
    let first = compile(
        &Snapshot::default(),
        &desired(
            vec![listener("a", 1, "x")],
            vec![cluster("x", &[80, 81]), cluster("y", &[90])],
        ),
        1,
    );
    let x = &first.clusters["x"];
    x.endpoints[1].state.in_flight.store(7, Relaxed);

    let next = compile(
        &first,
        &desired(
            vec![listener("a", 1, "x")],
            vec![cluster("x", &[81, 82]), cluster("y", &[90])],
        ),
        1,
    );
    let (x2, kept) = (&next.clusters["x"], &x.endpoints[1].state);
    assert!(
        Arc::ptr_eq(&x2.endpoints[0].state, kept),
        "port 81 keeps its state"
    );
    assert_eq!(x2.endpoints[0].state.in_flight.load(Relaxed), 7);
    assert!(Arc::ptr_eq(&x2.state, &x.state));
    assert!(
        Arc::ptr_eq(&next.clusters["y"], &first.clusters["y"]),
        "an unchanged cluster is shared"
    );
    assert!(
        Arc::ptr_eq(&next.listeners["a"].traffic, &first.listeners["a"].traffic),
        "counters go on"
    );
    assert!(
        Arc::ptr_eq(&next.listeners["a"].cluster, x2),
        "the listener follows its cluster"
    );

    first.retire_missing(&next);
    assert!(x.endpoints[0].state.retired.load(Relaxed), "port 80 left");
    assert!(!kept.retired.load(Relaxed));
}

#[test]
fn a_bad_entry_is_refused_alone_and_the_last_good_one_stays() {
    let good = desired(
        vec![listener("a", 1, "x"), listener("b", 2, "x")],
        vec![cluster("x", &[80])],
    );
    let first = compile(&Snapshot::default(), &good, 1);
    assert_eq!(first.rejected, []);

    let mut bad = good;
    bad.listeners.insert(
        "a".into(),
        v1::Listener {
            address: "nowhere".into(),
            ..listener("a", 1, "x")
        },
    );
    bad.listeners.insert(
        "c".into(),
        v1::Listener {
            protocol: 99,
            ..listener("c", 3, "x")
        },
    );
    bad.clusters.insert(
        "x".into(),
        v1::Cluster {
            load_balancing: 42,
            ..cluster("x", &[81])
        },
    );
    let next = compile(&first, &bad, 1);
    assert_eq!(
        next.listeners.keys().map(|k| &**k).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(next.listeners["a"].bind, first.listeners["a"].bind);
    assert!(Arc::ptr_eq(&next.clusters["x"], &first.clusters["x"]));
    let reasons: Vec<_> = next
        .rejected
        .iter()
        .map(|r| (r.kind, r.name.as_str(), r.reason.clone()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("cluster", "x", Invalid::LoadBalancing(42)),
            ("listener", "a", Invalid::Address("nowhere".into())),
            ("listener", "c", Invalid::Protocol(99)),
        ]
    );
}

#[test]
fn every_bad_field_has_its_reason() {
    let refuse = |listener: v1::Listener| {
        let snapshot = compile(
            &Snapshot::default(),
            &desired(vec![listener], vec![cluster("x", &[])]),
            1,
        );
        assert!(snapshot.listeners.is_empty());
        snapshot.rejected[0].reason.clone()
    };
    let base = || listener("a", 1, "x");
    assert_eq!(
        refuse(v1::Listener {
            name: String::new(),
            ..base()
        }),
        Invalid::NoName
    );
    assert_eq!(refuse(v1::Listener { port: 0, ..base() }), Invalid::Port(0));
    assert_eq!(
        refuse(v1::Listener {
            port: 65_536,
            ..base()
        }),
        Invalid::Port(65_536)
    );
    assert_eq!(
        refuse(v1::Listener {
            direction: 0,
            ..base()
        }),
        Invalid::Direction(0)
    );

    let endpoint = |address: &str, port| v1::Endpoint {
        address: address.into(),
        port,
        ..v1::Endpoint::default()
    };
    let endpoints = vec![
        endpoint("10.0.0.1", 0),
        endpoint("bad name", 80),
        endpoint("", 80),
        endpoint("db.internal", 80),
        endpoint("::1", 80),
    ];
    let snapshot = compile(
        &Snapshot::default(),
        &desired(
            vec![],
            vec![v1::Cluster {
                endpoints,
                ..cluster("x", &[])
            }],
        ),
        1,
    );
    let targets: Vec<_> = snapshot.clusters["x"]
        .endpoints
        .iter()
        .map(|e| e.target.to_string())
        .collect();
    assert_eq!(targets, ["db.internal:80", "[::1]:80"]);
    assert_eq!(
        snapshot
            .rejected
            .iter()
            .map(|r| r.reason.clone())
            .collect::<Vec<_>>(),
        [
            Invalid::Port(0),
            Invalid::Host("bad name".into()),
            Invalid::Host(String::new())
        ]
    );
}

#[test]
fn two_listeners_cannot_share_an_address() {
    let snapshot = compile(
        &Snapshot::default(),
        &desired(
            vec![listener("a", 1, "x"), listener("b", 1, "x")],
            vec![cluster("x", &[])],
        ),
        1,
    );
    assert_eq!(snapshot.listeners.len(), 1);
    let address = "127.0.0.1:1".parse().expect("address");
    assert_eq!(
        snapshot.rejected[0].reason,
        Invalid::AddressTaken {
            address,
            other: "a".into()
        }
    );
}

#[test]
fn a_listener_without_its_cluster_has_no_instance_until_it_comes() {
    let mut want = desired(vec![listener("a", 1, "x")], vec![]);
    let first = compile(&Snapshot::default(), &want, 1);
    assert!(first.listeners["a"].cluster.endpoints.is_empty());
    assert_eq!(first.rejected[0].reason, Invalid::NoCluster("x".into()));
    want.clusters.insert("x".into(), cluster("x", &[80]));
    let next = compile(&first, &want, 1);
    assert_eq!(next.listeners["a"].cluster.endpoints.len(), 1);
    assert_eq!(next.rejected, []);
}

#[test]
fn an_instance_that_refuses_connections_is_avoided_while_there_are_others() {
    let snapshot = compile(
        &Snapshot::default(),
        &desired(vec![], vec![cluster("x", &[80, 81])]),
        1,
    );
    let x = &snapshot.clusters["x"];
    let (rng, now) = (Rng::from_seed(1), Instant::now());
    x.endpoints[0].state.connect_failed(now);
    let good = x.endpoints[1].state.id;
    for _ in 0..100 {
        assert_eq!(x.pick(&rng, || now, &[]).map(|e| e.state.id), Some(good));
    }
    assert_eq!(
        x.pick(&rng, || now, &[good]).map(|e| e.state.id),
        Some(x.endpoints[0].state.id),
        "the last resort"
    );
    let later = now + EndpointState::AVOID_FIRST;
    assert!(
        (0..100).any(|_| x.pick(&rng, || later, &[]).map(|e| e.state.id) != Some(good)),
        "it is tried again"
    );
}

proptest! {
    /// Whatever the agent sends, compiling never panics, never loses a valid entry and keeps carried state exact.
    #[test]
    fn a_removed_instance_is_never_picked(
        before in prop::collection::btree_set(1_u32..30, 0..20),
        after in prop::collection::btree_set(1_u32..30, 0..20),
        policy in 0_i32..4,
    ) {
        let with = |ports: &std::collections::BTreeSet<u32>| {
            let ports: Vec<u32> = ports.iter().copied().collect();
            desired(vec![], vec![v1::Cluster { load_balancing: policy, ..cluster("x", &ports) }])
        };
        let first = compile(&Snapshot::default(), &with(&before), 1);
        let next = compile(&first, &with(&after), 1);
        first.retire_missing(&next);
        let (rng, now) = (Rng::from_seed(5), Instant::now());
        for _ in 0..50 {
            match next.clusters["x"].pick(&rng, || now, &[]) {
                Some(e) => {
                    let Target::Address(address) = &e.target else { panic!("an address was configured") };
                    prop_assert!(after.contains(&u32::from(address.port())));
                    prop_assert!(!e.state.retired.load(Relaxed));
                }
                None => prop_assert!(after.is_empty()),
            }
        }
        for e in &*first.clusters["x"].endpoints {
            let Target::Address(address) = &e.target else { panic!("an address was configured") };
            prop_assert_eq!(e.state.retired.load(Relaxed), !after.contains(&u32::from(address.port())));
        }
    }
}
