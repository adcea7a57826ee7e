use std::{net::IpAddr, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use wharf_registry::{
    model::{HealthCheck, Node, NodeService},
    state::Instance,
};

use super::*;
use crate::{
    anti_entropy::AntiEntropy,
    checks::CheckRunner,
    cluster::testing::Solo,
    definition::ScriptPolicy,
    local::{self, CheckKind},
};

const ALLOC: &str = "5c0f0a52-8d3c-4f6e-9a1f-0123456789ab";
const WEB: &str = "_wharf-5c0f0a52-8d3c-4f6e-9a1f-0123456789ab-web-web-http";

/// A service `web` with a sidecar and a check; the task listens on 8080, the node has 20080 for it.
fn web(address: Option<&str>) -> AllocServices {
    serde_json::from_value(json!({
        "Alloc": ALLOC,
        "Job": "web",
        "Group": {
            "Name": "web",
            "Network": { "Ports": [{ "Label": "http", "To": 8080 }] },
            "Services": [{
                "Name": "web",
                "Port": "http",
                "Tags": ["v1"],
                "Checks": [{ "Type": "tcp" }],
                "Connect": { "SidecarService": { "Proxy": { "Upstreams": [
                    { "DestinationName": "db", "LocalBindPort": 5432 },
                ] } } },
            }],
        },
        "Address": address,
        "Ports": [{ "Label": "http", "Value": 20080, "To": 8080 }],
    }))
    .expect("an allocation")
}

fn at(address: &str) -> Place {
    Place::of(&node(address))
}

fn node(address: &str) -> Node {
    Node {
        name: "n1".into(),
        address: address.into(),
        ..Node::default()
    }
}

fn derived(
    services: &AllocServices,
    node: &str,
) -> (NodeService, NodeService, Sidecar, Vec<CheckKind>) {
    let ports = BTreeMap::from([("web".into(), 21000)]);
    let mut all = derive(services, &at(node), &ports).expect("derived");
    let one = all.remove(0);
    let sidecar = one.sidecar.expect("a sidecar");
    let checks = one.registration.checks.into_iter().map(|check| check.kind);
    (
        one.registration.service,
        sidecar.registration.service,
        sidecar.run,
        checks.collect(),
    )
}

fn reached(service: &NodeService) -> (&str, u16) {
    (&service.address, service.port)
}

fn tcp(kind: &CheckKind) -> &str {
    match kind {
        CheckKind::Tcp { address, .. } => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_is_found_where_its_clients_can_reach_it() {
    // Alone on its machine: by the allocation's own address.
    let (service, sidecar, run, checks) = derived(&web(Some("172.26.64.2")), "127.0.0.1");
    assert_eq!(reached(&service), ("172.26.64.2", 8080));
    assert_eq!(reached(&sidecar), ("172.26.64.2", 21000));
    assert_eq!(tcp(&checks[1]), "172.26.64.2:8080");
    assert_eq!((run.port, run.mapping), (21000, None));
    let proxy = sidecar.proxy.expect("a proxy");
    assert_eq!(proxy.local_service_port, 8080);
    assert_eq!(proxy.config["bind_address"], "0.0.0.0");
    assert_eq!(proxy.upstreams.len(), 1);
    assert_eq!(&*service.meta["external-source"], "wharf");
    // One of many: by the node's address and the mapped ports; its own checks go straight to it.
    let (service, sidecar, run, checks) = derived(&web(Some("172.26.64.2")), "10.0.0.5");
    assert_eq!(reached(&service), ("10.0.0.5", 20080));
    assert_eq!(reached(&sidecar), ("10.0.0.5", 21000));
    assert_eq!(tcp(&checks[1]), "172.26.64.2:8080");
    assert_eq!(run.mapping.expect("mapped").host, 21000);
    assert_eq!(run.admin.expect("its own").to_string(), "127.0.0.2:19001");
    // In the node's network.
    let (service, sidecar, run, checks) = derived(&web(None), "10.0.0.5");
    assert_eq!(reached(&service), ("10.0.0.5", 20080));
    assert_eq!(reached(&sidecar), ("10.0.0.5", 21000));
    assert_eq!(tcp(&checks[1]), "10.0.0.5:20080");
    assert_eq!((run.mapping, run.admin), (None, None));
    assert_eq!(sidecar.proxy.expect("a proxy").local_service_port, 20080);
}

#[test]
fn ids_and_checks_are_those_of_the_allocation() {
    let services = web(Some("::1"));
    assert_eq!(
        derive::ids(&services).map(|(_, id)| id).collect::<Vec<_>>(),
        [Str::from(WEB)]
    );
    let (_, sidecar, run, checks) = derived(&services, "127.0.0.1");
    assert_eq!(sidecar.id, Str::from(format!("{WEB}-sidecar-proxy")));
    assert_eq!(run.id, sidecar.id);
    assert_eq!(checks[0], CheckKind::Tasks);
    assert_eq!(tcp(&checks[1]), "[::1]:8080");
    let http =
        json!({ "Type": "http", "Path": "healthz", "Header": { "X": ["y"] }, "Interval": "2s" });
    let group = json!({ "Name": "g", "Services": [{ "Name": "s", "Port": 80, "Checks": [http] }] });
    let services = AllocServices {
        group: Arc::new(serde_json::from_value(group).expect("a group")),
        ..services
    };
    let all = derive(&services, &at("127.0.0.1"), &BTreeMap::new()).expect("derived");
    let check = &all[0].registration.checks[1];
    let CheckKind::Http(http) = &check.kind else {
        panic!("{check:?}")
    };
    assert_eq!(&*http.url, "http://[::1]:80/healthz");
    assert_eq!(check.interval, Duration::from_secs(2));
    for (service, reason) in [
        (json!({ "Name": "s", "Port": "none" }), "no port \"none\""),
        (
            json!({ "Name": "s", "Checks": [{ "Type": "tcp" }] }),
            "needs a port",
        ),
    ] {
        let group = json!({ "Name": "g", "Services": [service] });
        let services = AllocServices {
            group: Arc::new(serde_json::from_value(group).expect("a group")),
            ..services.clone()
        };
        let error = derive(&services, &at("127.0.0.1"), &BTreeMap::new()).expect_err("refused");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// An agent with a catalog.
struct Agent {
    local: LocalState,
    cluster: Arc<dyn Cluster>,
    services: Arc<NodeServices>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts where an earlier one has left off.
    async fn start(cluster: Arc<dyn Cluster>, directory: &TempDir) -> Agent {
        let local =
            LocalState::open(local::Options::default(), node("127.0.0.1")).expect("a state");
        let services =
            NodeServices::new(local.clone(), cluster.clone(), directory.path().to_owned());
        services.adopt().await;
        let stop = CancellationToken::new();
        let entropy = AntiEntropy::of_client(local.clone(), cluster.clone());
        let runner = CheckRunner::new(local.clone(), cluster.clone(), ScriptPolicy::default());
        Agent {
            local,
            cluster,
            services: Arc::new(services),
            tasks: vec![
                tokio::spawn(entropy.run(stop.clone())),
                tokio::spawn(runner.run(stop.clone())),
            ],
            stop,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("no panic");
        }
    }

    fn instance(&self, service: &str) -> Option<Arc<Instance>> {
        let view = self.cluster.registry().view();
        view.service(service)?.instances.values().next().cloned()
    }

    fn check(&self, id: &str) -> Option<Arc<HealthCheck>> {
        self.cluster
            .registry()
            .view()
            .node("n1")?
            .checks
            .get(id)
            .cloned()
    }

    /// Waits for the catalog to show this status.
    async fn until(&self, service: &str, status: CheckStatus) {
        let seen = async {
            loop {
                let now = self.instance(service).map(|instance| instance.status);
                if now == Some(status) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let status = tokio::time::timeout(Duration::from_secs(5), seen).await;
        status.unwrap_or_else(|_| panic!("{service} is {:?}", self.instance(service)));
    }
}

/// An allocation on this machine's loopback, whose task listens.
async fn running() -> (AllocServices, TcpListener) {
    let task = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut services = web(Some("127.0.0.1"));
    services.ports[0].to = task.local_addr().expect("bound").port();
    (services, task)
}

fn solo() -> Arc<dyn Cluster> {
    Arc::new(Solo::new())
}

#[tokio::test]
async fn the_life_of_an_allocation_is_that_of_its_services() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(solo(), &directory).await;
    let (services, _task) = running().await;
    let sidecars = agent
        .services
        .prepare(services.clone())
        .await
        .expect("prepared");
    assert_eq!((&*sidecars[0].service, sidecars[0].port), ("web", 21000));
    assert!(
        agent.instance("web-sidecar-proxy").is_some(),
        "its configuration is found"
    );
    assert!(agent.instance("web").is_none());
    agent.services.publish(ALLOC).await.expect("published");
    // Well within the check's interval of ten seconds.
    agent.until("web", CheckStatus::Passing).await;
    let again = agent.services.prepare(services).await.expect("prepared");
    agent.services.publish(ALLOC).await.expect("published");
    assert_eq!(again, sidecars);
    assert_eq!(
        agent.instance("web").expect("there").status,
        CheckStatus::Passing,
        "it did not flap"
    );

    agent.services.withdraw(ALLOC).await.expect("withdrawn");
    assert!(agent.instance("web").is_none(), "gone when it returns");
    let sidecar = agent
        .instance("web-sidecar-proxy")
        .expect("still configured");
    assert_eq!(sidecar.status, CheckStatus::Critical);
    agent.services.remove(ALLOC).await.expect("removed");
    assert!(agent.local.synced(CATALOG_WITHIN).await);
    assert!(agent.instance("web-sidecar-proxy").is_none());
    for _ in 0..2 {
        agent.services.withdraw(ALLOC).await.expect("nothing to do");
        agent.services.remove(ALLOC).await.expect("nothing to do");
    }
    let unknown = agent
        .services
        .publish(ALLOC)
        .await
        .expect_err("unknown")
        .to_string();
    assert!(unknown.contains(ALLOC), "{unknown}");
    agent.stop().await;
}

#[tokio::test]
async fn a_task_that_ends_is_critical_at_once_and_passes_when_it_is_checked_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(solo(), &directory).await;
    let (services, task) = running().await;
    agent
        .services
        .prepare(services.clone())
        .await
        .expect("prepared");
    agent.services.publish(ALLOC).await.expect("published");
    agent.until("web", CheckStatus::Passing).await;
    let address = task.local_addr().expect("bound");
    drop(task);
    agent.services.task_down(ALLOC, "server", "exit code 1");
    assert!(agent.local.synced(CATALOG_WITHIN).await);
    let instance = agent.instance("web").expect("there");
    assert_eq!(
        instance.status,
        CheckStatus::Critical,
        "before any check has run"
    );
    let check = agent.check(&derive::tasks_check_id(WEB)).expect("there");
    assert_eq!(&*check.output, "task \"server\": exit code 1");
    // The process is there again, but does not listen yet.
    agent.services.task_up(ALLOC, "server");
    assert!(agent.local.synced(CATALOG_WITHIN).await);
    assert_eq!(
        agent.instance("web").expect("there").status,
        CheckStatus::Critical
    );
    let _task = TcpListener::bind(address).await.expect("its port");
    agent.until("web", CheckStatus::Passing).await;
    // One task of two.
    agent.services.task_down(ALLOC, "a", "killed");
    agent.services.task_down(ALLOC, "b", "killed");
    agent.services.task_up(ALLOC, "b");
    assert!(agent.local.synced(CATALOG_WITHIN).await);
    assert_eq!(
        agent
            .check(&derive::tasks_check_id(WEB))
            .expect("there")
            .status,
        CheckStatus::Critical
    );
    // Published again while it is down, as by a restarted runner.
    agent.services.publish(ALLOC).await.expect("published");
    assert_eq!(
        agent.instance("web").expect("there").status,
        CheckStatus::Critical
    );
    agent.services.task_up(ALLOC, "a");
    agent.until("web", CheckStatus::Passing).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_changes_nothing_in_the_catalog() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = solo();
    let agent = Agent::start(cluster.clone(), &directory).await;
    let (services, _task) = running().await;
    agent
        .services
        .prepare(services.clone())
        .await
        .expect("prepared");
    agent.services.publish(ALLOC).await.expect("published");
    agent.until("web", CheckStatus::Passing).await;
    agent.stop().await;
    let indexes = |agent: &Agent| {
        let view = agent.cluster.registry().view();
        let node = view.node("n1").cloned().expect("there");
        let checks = node
            .checks
            .values()
            .filter(|check| &*check.service_id == WEB);
        let checks: Vec<_> = checks
            .map(|check| (check.id.clone(), check.modify_index))
            .collect();
        let instance = agent.instance("web").expect("there");
        (instance.service.modify_index, checks)
    };
    let agent = Agent::start(cluster.clone(), &directory).await;
    let before = indexes(&agent);
    assert!(
        agent.local.synced(CATALOG_WITHIN).await,
        "everything is compared"
    );
    assert_eq!(
        agent.instance("web").expect("there").status,
        CheckStatus::Passing
    );
    agent.services.prepare(services).await.expect("prepared");
    agent.services.publish(ALLOC).await.expect("published");
    assert_eq!(indexes(&agent), before);
    // Its runner is not there any more: it goes, and so does its file.
    let swept = agent.services.sweep(&HashSet::new()).await.expect("swept");
    assert_eq!(swept, [Str::from(ALLOC)]);
    assert!(agent.local.synced(CATALOG_WITHIN).await);
    assert!(agent.instance("web").is_none());
    agent.stop().await;
    let agent = Agent::start(cluster, &directory).await;
    assert!(agent.local.services().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn sidecars_of_a_shared_network_have_different_ports() {
    let directory = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(solo(), &directory).await;
    let mut ports = Vec::new();
    for (alloc, address) in [
        ("a", Some("172.26.64.2")),
        ("b", Some("172.26.64.3")),
        ("c", None),
        ("d", None),
    ] {
        let services = AllocServices {
            alloc: alloc.into(),
            address: address.map(|address| address.parse::<IpAddr>().expect("an address")),
            ..web(None)
        };
        let sidecars = agent.services.prepare(services).await.expect("prepared");
        ports.push(sidecars[0].port);
    }
    assert_eq!(ports, [21000, 21000, 21001, 21002]);
    agent.stop().await;
}
