use wharf_registry::{
    command::{Deregister, DeregisterTarget, Register},
    model::{CheckStatus, HealthCheck, Node, NodeService, Str},
    state::NodeEntry,
};

use super::*;
use crate::{
    cluster::testing::Solo,
    local::{CheckKind, CheckSpec, Options, Registration, SERF_HEALTH},
};

const SOON: Duration = Duration::from_millis(100);

fn local() -> LocalState {
    let node = Node {
        id: "2c1f4b3e-0000-0000-0000-000000000001".into(),
        name: "Node1".into(),
        address: "10.0.0.1".into(),
        ..Node::default()
    };
    LocalState::open(Options::default(), node).unwrap()
}

fn service(id: &str) -> NodeService {
    NodeService {
        id: id.into(),
        name: "web".into(),
        port: 80,
        ..NodeService::default()
    }
}

fn ttl(service: &str) -> CheckSpec {
    CheckSpec {
        id: format!("service:{service}").into(),
        name: "Service 'web' check".into(),
        service_id: service.into(),
        kind: CheckKind::Ttl(Duration::from_secs(3600)),
        ..CheckSpec::default()
    }
}

fn web(id: &str) -> Registration {
    Registration {
        service: service(id),
        checks: vec![ttl(id)],
        ..Registration::default()
    }
}

/// An agent whose anti-entropy runs, beside the catalog it writes to.
struct Agent {
    local: LocalState,
    solo: Arc<Solo>,
    _stop: tokio_util::sync::DropGuard,
}

impl Agent {
    fn start(local: LocalState, solo: Arc<Solo>, server: bool) -> Agent {
        let stop = CancellationToken::new();
        let cluster: Arc<dyn Cluster> = solo.clone();
        let task = if server {
            let service = NodeService {
                port: 8300,
                ..NodeService::default()
            };
            AntiEntropy::of_server(local.clone(), cluster, service)
        } else {
            AntiEntropy::of_client(local.clone(), cluster)
        };
        tokio::spawn(task.run(stop.clone()));
        let _stop = stop.drop_guard();
        Agent { local, solo, _stop }
    }

    fn entry(&self) -> Arc<NodeEntry> {
        let view = self.solo.registry().view();
        view.node("node1").expect("the node is registered").clone()
    }

    fn applied(&self) -> u64 {
        self.solo.registry().view().applied()
    }

    async fn synced(&self) {
        assert!(self.local.synced(Duration::from_secs(1)).await);
    }

    async fn propose(&self, command: Command) {
        let cluster: &dyn Cluster = &*self.solo;
        cluster.write(command).await.unwrap();
    }
}

fn ids<'a>(keys: impl Iterator<Item = &'a Str>) -> Vec<&'a str> {
    keys.map(|id| &**id).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_registers_itself_and_what_it_has() {
    let local = local();
    local.register_service(web("web-1")).await.unwrap();
    let agent = Agent::start(local, Arc::new(Solo::new()), true);
    agent.synced().await;
    let entry = agent.entry();
    assert_eq!(ids(entry.services.keys()), ["consul", "web-1"]);
    assert_eq!(ids(entry.checks.keys()), ["serfHealth", "service:web-1"]);
    assert_eq!(entry.checks["serfHealth"].status, CheckStatus::Passing);
    assert_eq!(entry.services["consul"].port, 8300);
    assert_eq!(&*entry.node.name, "Node1");
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_its_checks_is_one_command_and_agreement_is_none() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), true);
    agent.synced().await;
    tokio::time::sleep(SOON).await;
    let before = agent.applied();
    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    assert_eq!(agent.applied(), before + 1);

    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    tokio::time::sleep(FULL_INTERVAL * 3).await;
    assert_eq!(agent.applied(), before + 1, "nothing changed");
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_at_once_and_an_output_later() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), false);
    agent.local.register_service(web("web-1")).await.unwrap();
    let check = "service:web-1";
    let report = async |status, output| {
        agent.local.report_ttl(check, status, output).await.unwrap();
        agent.synced().await;
        tokio::time::sleep(SOON).await;
        let there = agent.entry().checks[check].clone();
        (there.status, there.output.to_string())
    };
    let (passing, warning) = (CheckStatus::Passing, CheckStatus::Warning);
    assert_eq!(report(passing, "one").await, (passing, "one".into()));
    assert_eq!(report(passing, "two").await, (passing, "one".into()));
    // Full comparisons leave the output alone too.
    tokio::time::sleep(Duration::from_secs(140)).await;
    assert_eq!(&*agent.entry().checks[check].output, "one");
    tokio::time::sleep(Duration::from_secs(320)).await;
    assert_eq!(&*agent.entry().checks[check].output, "two");
    assert_eq!(report(warning, "three").await, (warning, "three".into()));
}

#[tokio::test(start_paused = true)]
async fn what_others_did_to_our_rows_is_put_right() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), true);
    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    let foreign = Register {
        node: Node {
            name: "node1".into(),
            ..Node::default()
        },
        skip_node_update: true,
        service: Some(service("ghost")),
        checks: vec![HealthCheck {
            id: "stray".into(),
            name: "stray".into(),
            service_id: "web-1".into(),
            ..HealthCheck::default()
        }],
    };
    agent.propose(Command::Register(Box::new(foreign))).await;
    agent
        .propose(Command::Deregister(Deregister {
            node: "node1".into(),
            target: DeregisterTarget::Check("service:web-1".into()),
        }))
        .await;
    assert!(agent.entry().services.contains_key("ghost"));
    tokio::time::sleep(FULL_INTERVAL * 2 + SOON).await;
    let entry = agent.entry();
    assert_eq!(ids(entry.services.keys()), ["consul", "web-1"]);
    assert_eq!(ids(entry.checks.keys()), ["serfHealth", "service:web-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_leaves_what_the_servers_say_of_it() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), false);
    agent.synced().await;
    tokio::time::sleep(SOON).await;
    let by_servers = Register {
        node: Node {
            name: "node1".into(),
            ..Node::default()
        },
        skip_node_update: true,
        checks: vec![HealthCheck {
            id: SERF_HEALTH.into(),
            name: "Serf Health Status".into(),
            ..HealthCheck::default()
        }],
        ..Register::default()
    };
    agent.propose(Command::Register(Box::new(by_servers))).await;
    tokio::time::sleep(FULL_INTERVAL * 2 + SOON).await;
    assert_eq!(ids(agent.entry().checks.keys()), ["serfHealth"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_removed_comes_back_with_all_it_has() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), true);
    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    let gone = Deregister {
        node: "node1".into(),
        target: DeregisterTarget::Node,
    };
    agent.propose(Command::Deregister(gone)).await;
    // Even if it is a check that changes next: its instance has to come first.
    let report = agent
        .local
        .report_ttl("service:web-1", CheckStatus::Passing, "");
    report.await.unwrap();
    agent.synced().await;
    assert_eq!(ids(agent.entry().services.keys()), ["consul", "web-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_deregistration_is_repeated() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), true);
    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    *agent.solo.failure.lock().unwrap() = Some(ClusterError::NoLeader);
    agent.local.deregister_service("web-1").await.unwrap();
    agent.synced().await;
    assert!(agent.entry().services.contains_key("web-1"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    *agent.solo.failure.lock().unwrap() = None;
    tokio::time::sleep(LAST_RETRY).await;
    assert_eq!(ids(agent.entry().services.keys()), ["consul"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_at_the_start_everything_is_written_later() {
    let solo = Arc::new(Solo::new());
    *solo.failure.lock().unwrap() = Some(ClusterError::NoLeader);
    let agent = Agent::start(local(), solo, true);
    agent.local.register_service(web("web-1")).await.unwrap();
    agent.synced().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    *agent.solo.failure.lock().unwrap() = None;
    tokio::time::sleep(LAST_RETRY).await;
    assert_eq!(ids(agent.entry().services.keys()), ["consul", "web-1"]);
}

#[tokio::test(start_paused = true)]
async fn overridden_tags_stay_until_the_registrant_changes_them() {
    let agent = Agent::start(local(), Arc::new(Solo::new()), false);
    let tagged = |tag: &str| Registration {
        service: NodeService {
            tags: [tag.into()].into(),
            enable_tag_override: true,
            ..service("web-1")
        },
        checks: vec![ttl("web-1")],
        ..Registration::default()
    };
    agent.local.register_service(tagged("blue")).await.unwrap();
    agent.synced().await;
    let mut overridden = NodeService::clone(&agent.entry().services["web-1"]);
    overridden.tags = ["green".into()].into();
    let register = Register {
        node: Node {
            name: "node1".into(),
            ..Node::default()
        },
        skip_node_update: true,
        service: Some(overridden),
        ..Register::default()
    };
    agent.propose(Command::Register(Box::new(register))).await;
    let tags = || agent.entry().services["web-1"].tags.to_vec();
    tokio::time::sleep(FULL_INTERVAL * 2 + SOON).await;
    assert_eq!(tags(), ["green".into()]);
    assert_eq!(agent.local.service("web-1").unwrap().tags.to_vec(), tags());
    agent.local.register_service(tagged("blue")).await.unwrap();
    agent.synced().await;
    assert_eq!(tags(), ["green".into()], "the registrant said nothing new");
    agent.local.register_service(tagged("red")).await.unwrap();
    agent.synced().await;
    assert_eq!(tags(), ["red".into()]);
}

#[test]
fn big_clusters_compare_more_seldom() {
    let scaled = [1, 128, 129, 256, 257, 1024, 10_000].map(scale);
    assert_eq!(scaled, [1, 1, 2, 2, 3, 4, 8]);
}
