use std::collections::BTreeSet;

use wharf_registry::model::platform::{AllocPort, NO_BRIDGE, NetworkMode, NodeStatus, PortRange};

use super::*;
use crate::{Ask, ClusterView, Dimension, Nowhere, Placed, Random, Scheduler};

fn place(group: &TaskGroup, cluster: &ClusterView, seed: u64) -> Result<Placed, Nowhere> {
    let job = text("web");
    let ask = Ask::new(&job, group, None);
    Scheduler::default().place(&ask, cluster, &mut Random::new(seed))
}

fn taking(id: &str, node: &str, cpu: u64, memory_mb: u64, port: u16) -> Arc<Alloc> {
    Arc::new(Alloc {
        job_name: "other".into(),
        resources: Resources {
            cpu,
            memory_mb,
            memory_max_mb: 0,
        },
        ports: vec![AllocPort {
            label: "p".into(),
            value: port,
            to: port,
        }],
        ..alloc(id, 0, node)
    })
}

#[test]
fn the_fuller_of_two_nodes_is_packed() {
    let nodes = [node("empty", 4000, 4096), node("half", 4000, 4096)];
    let cluster = ClusterView::new(&nodes, &[taking("a", "half", 2000, 2048, 1)]);
    for seed in 0..20 {
        let placed = place(&group("web", 1, 500, 512), &cluster, seed).unwrap();
        assert_eq!(&*placed.node.id, "half");
        let best = &placed.placement.scores[0];
        let expected = (20.0 - 2.0 * 10f64.powf(0.375)) / 18.0;
        assert!((best.scores["binpack"] - expected).abs() < 1e-9, "{best:?}");
        assert_eq!(placed.placement.nodes_evaluated, 2);
    }
}

#[test]
fn instances_of_one_group_keep_apart() {
    let nodes = [node("n1", 4000, 4096), node("n2", 4000, 4096)];
    let one = Arc::new(Alloc {
        resources: Resources {
            cpu: 500,
            memory_mb: 512,
            memory_max_mb: 0,
        },
        ..alloc("a", 0, "n1")
    });
    let cluster = ClusterView::new(&nodes, &[one]);
    for seed in 0..20 {
        let placed = place(&group("web", 2, 500, 512), &cluster, seed).unwrap();
        assert_eq!(&*placed.node.id, "n2");
        let worse = &placed.placement.scores[1];
        assert_eq!(worse.scores["job-anti-affinity"], -1.0);
    }
}

#[test]
fn a_few_instances_spread_over_a_few_nodes() {
    let nodes = ["n1", "n2", "n3"].map(|id| node(id, 4000, 4096));
    let on = |index: u32, id: &str| {
        let resources = Resources {
            cpu: 500,
            memory_mb: 512,
            memory_max_mb: 0,
        };
        let name = format!("a{index}");
        Arc::new(Alloc {
            resources,
            ..alloc(&name, index, id)
        })
    };
    let cluster = ClusterView::new(&nodes, &[on(0, "n1"), on(1, "n2")]);
    for seed in 0..50 {
        let placed = place(&group("web", 3, 500, 512), &cluster, seed).unwrap();
        assert_eq!(&*placed.node.id, "n3", "{seed}");
    }
}

#[test]
fn the_node_of_the_last_failure_is_avoided() {
    let nodes = [node("n1", 4000, 4096), node("n2", 4000, 4096)];
    let cluster = ClusterView::new(&nodes, &[]);
    let (job, failed_on) = (text("web"), text("n1"));
    let group = group("web", 1, 500, 512);
    for seed in 0..20 {
        let ask = Ask::new(&job, &group, Some(&failed_on));
        let placed = Scheduler::default()
            .place(&ask, &cluster, &mut Random::new(seed))
            .unwrap();
        assert_eq!(&*placed.node.id, "n2");
    }
}

#[test]
fn nowhere_is_told_by_dimension() {
    let mut sick = PlatformNode::clone(&node("sick", 4000, 4096));
    let health = sick.drivers.get_mut(&Driver::Exec).unwrap();
    health.healthy = false;
    health.reason = "not root".into();
    let mut down = PlatformNode::clone(&node("down", 4000, 4096));
    down.status = NodeStatus::Down;
    let mut closed = PlatformNode::clone(&node("closed", 4000, 4096));
    closed.eligible = false;
    let mut bare = PlatformNode::clone(&node("bare", 4000, 4096));
    bare.drivers.clear();
    let mut cut_off = PlatformNode::clone(&node("cut off", 4000, 4096));
    let reason = "no veth".into();
    cut_off.attributes.insert(NO_BRIDGE.into(), reason);
    let nodes = [
        node("small", 100, 100),
        node("busy", 1000, 1024),
        Arc::new(sick),
        Arc::new(down),
        Arc::new(closed),
        Arc::new(bare),
        Arc::new(cut_off),
    ];
    let cluster = ClusterView::new(&nodes, &[taking("a", "busy", 700, 10, 8080)]);
    let wanted = with_port(group("web", 1, 500, 512), "http", 8080, 0);
    let nowhere = place(&wanted, &cluster, 1).unwrap_err();
    assert_eq!(
        nowhere.to_string(),
        "none of 7 nodes can take it: 1 node down; 1 node not eligible; 1 node without the driver exec; \
         driver exec unhealthy on 1 node (not root); no network for instances on 1 node (no veth); cpu exhausted on 2 nodes: it needs 500m, 300m free at most; \
         memory exhausted on 1 node: it needs 512 MiB, 100 MiB free at most; port 8080 taken on 1 node"
    );
    assert!(nowhere.lacks(&Dimension::Port(8080)));
    let empty = place(&wanted, &ClusterView::default(), 1).unwrap_err();
    assert_eq!(empty.to_string(), "there is no node");
}

#[test]
fn ports_are_static_or_found_and_mapped_in_bridge_mode() {
    let cluster = ClusterView::new(&[node("n1", 4000, 4096)], &[]);
    let mut wanted = with_port(group("web", 1, 1, 1), "http", 0, 8080);
    wanted = with_port(wanted, "fixed", 9000, 0);
    wanted = with_port(wanted, "same", 0, 0);
    let placed = place(&wanted, &cluster, 5).unwrap();
    let [http, fixed, same] = &placed.ports[..] else {
        panic!("{:?}", placed.ports)
    };
    assert_eq!((http.to, fixed.value, fixed.to), (8080, 9000, 9000));
    assert_eq!(same.value, same.to);
    assert!((20000..=32000).contains(&http.value) && http.value != same.value);
    wanted.network.mode = NetworkMode::Host;
    let placed = place(&wanted, &cluster, 5).unwrap();
    assert!(placed.ports.iter().all(|port| port.value == port.to));
}

#[test]
fn the_last_free_dynamic_port_is_found_and_then_there_is_none() {
    let mut small = PlatformNode::clone(&node("n1", 4000, 4096));
    small.dynamic_ports = PortRange {
        min: 20000,
        max: 20199,
    };
    small.reserved_ports = vec![20007];
    let mut cluster = ClusterView::new(&[Arc::new(small)], &[]);
    let wanted = with_port(group("web", 1, 1, 1), "http", 0, 80);
    let mut found = BTreeSet::new();
    for n in 0..199 {
        let placed = place(&wanted, &cluster, n).unwrap();
        let port = placed.ports[0].value;
        assert!(found.insert(port), "{port} twice");
        cluster.set_alloc(&taking(&format!("a{n}"), "n1", 0, 0, port));
    }
    assert!(!found.contains(&20007));
    let nowhere = place(&wanted, &cluster, 1).unwrap_err();
    assert_eq!(
        nowhere.to_string(),
        "none of 1 node can take it: no dynamic port free on 1 node"
    );
}

#[test]
fn a_few_nodes_of_many_are_looked_at() {
    let nodes: Vec<_> = (0..1000)
        .map(|n| node(&format!("n{n}"), 4000, 4096))
        .collect();
    let cluster = ClusterView::new(&nodes, &[]);
    let chosen: BTreeSet<Str> = (0..50)
        .map(|seed| {
            let placed = place(&group("web", 1, 500, 512), &cluster, seed).unwrap();
            assert_eq!(placed.placement.nodes_evaluated, 10);
            placed.node.id.clone()
        })
        .collect();
    assert!(chosen.len() > 40, "not always the same: {}", chosen.len());
}

#[test]
fn a_view_that_was_changed_step_by_step_is_one_made_anew() {
    let nodes = [node("n1", 4000, 4096), node("n2", 4000, 4096)];
    let mut stepwise = ClusterView::default();
    let one = taking("a", "n1", 500, 512, 8080);
    stepwise.set_alloc(&one);
    stepwise.set_node(nodes[0].clone());
    stepwise.set_node(nodes[1].clone());
    stepwise.set_alloc(&taking("b", "n2", 100, 100, 8081));
    stepwise.set_alloc(&taking("b", "n2", 200, 300, 8082));
    let mut ended = Alloc::clone(&one);
    ended.client_status = wharf_registry::model::platform::ClientStatus::Complete;
    stepwise.set_alloc(&Arc::new(ended));
    stepwise.remove_node("n1");
    let anew = ClusterView::new(&nodes[1..], &[taking("b", "n2", 200, 300, 8082)]);
    assert_eq!(format!("{stepwise:?}"), format!("{anew:?}"));
}
