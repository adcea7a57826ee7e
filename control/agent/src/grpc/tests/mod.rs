//! The server as clients meet it: over loopback, with a cluster of one.

mod proxy;
mod registry;
mod server;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use wharf_registry::{
    Command,
    command::Register,
    model::{CheckStatus, HealthCheck, Node, StrMap},
};

use super::*;
use crate::{anti_entropy::AntiEntropy, authz::AllowAll, cluster::testing::Solo, local};

/// No answer of a test takes longer, unless it never comes.
const SOON: Duration = Duration::from_secs(10);

struct Harness {
    address: SocketAddr,
    cluster: Arc<dyn Cluster>,
    local: LocalState,
    shutdown: CancellationToken,
    catalog: JoinHandle<()>,
    server: JoinHandle<Result<(), GrpcError>>,
}

impl Harness {
    async fn start() -> Harness {
        Harness::with(Limits::default(), Arc::new(AllowAll), None).await
    }

    async fn with(
        limits: Limits,
        authorizer: Arc<dyn Authorizer>,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Harness {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let cluster: Arc<dyn Cluster> = Arc::new(Solo::new());
        let node = Node {
            name: "n1".into(),
            address: "10.0.0.1".into(),
            ..Node::default()
        };
        let local = LocalState::open(local::Options::default(), node).unwrap();
        let shutdown = CancellationToken::new();
        let catalog = AntiEntropy::of_client(local.clone(), cluster.clone());
        let catalog = tokio::spawn(catalog.run(shutdown.clone()));
        let context = GrpcContext {
            cluster: cluster.clone(),
            local: local.clone(),
            authorizer,
            node: NodeInfo {
                name: "n1".into(),
                id: "".into(),
                datacenter: "dc1".into(),
                address: "10.0.0.1".into(),
                tagged_addresses: StrMap::new(),
                meta: StrMap::new(),
                server: false,
            },
            limits,
            rates: Default::default(),
        };
        let listeners = vec![match tls {
            None => GrpcListener::Plain(socket),
            Some(config) => {
                let tls = ServerTls::new((*config).clone(), &[b"h2"]);
                GrpcListener::Tls(socket, Arc::new(tls))
            }
        }];
        let server = tokio::spawn(serve(listeners, context, shutdown.clone()));
        Harness {
            address,
            cluster,
            local,
            shutdown,
            catalog,
            server,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// Shuts down and waits until all is over.
    async fn stop(self) {
        self.shutdown.cancel();
        soon(self.server).await.unwrap().unwrap();
        soon(self.catalog).await.unwrap();
    }

    /// Puts an instance, given as JSON of the API, into the catalog, with one check. What is on this
    /// node goes there by its agent, which would not suffer it otherwise.
    async fn instance(&self, node: &str, service: Value, status: CheckStatus) {
        let service: wharf_registry::model::NodeService = serde_json::from_value(service).unwrap();
        let check = format!("service:{}", service.id).into();
        if node == "n1" {
            let check = local::CheckSpec {
                id: check,
                status: Some(status),
                ..local::CheckSpec::default()
            };
            let registration = local::Registration {
                service,
                checks: vec![check],
                ..local::Registration::default()
            };
            self.local.register_service(registration).await.unwrap();
            assert!(self.local.synced(SOON).await);
            return;
        }
        let check = HealthCheck {
            id: check,
            service_id: service.id.clone(),
            status,
            ..HealthCheck::default()
        };
        let register = Register {
            node: Node {
                name: node.into(),
                address: "10.0.0.1".into(),
                ..Node::default()
            },
            service: Some(service),
            checks: vec![check],
            ..Register::default()
        };
        let command = Command::Register(Box::new(register));
        self.cluster.write(command).await.unwrap();
    }

    /// Removes an instance of this node.
    async fn remove(&self, id: &str) {
        self.local.deregister_service(id).await.unwrap();
        assert!(self.local.synced(SOON).await);
    }

    /// Waits until nothing of the registry is watched any more.
    async fn until_unwatched(&self) {
        soon(async {
            while self.cluster.registry().watches().watchers() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it never comes")
}
