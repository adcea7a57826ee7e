//! Our own proxy, and the agent it needs: one that hands out a single configuration.

use std::{error::Error, net::Ipv4Addr, pin::Pin};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};
use wharf_proto::v1::{
    Cluster, Endpoint, Listener, ListenerDirection, ProxyConfigurationRequest,
    ProxyConfigurationResponse, ProxyProtocol, ProxySnapshot,
    proxy_configuration_response::Update,
    proxy_configuration_server::{ProxyConfiguration, ProxyConfigurationServer},
};
use wharf_proxy::{ProxyOptions, Target};

use super::peers::Ports;

pub(crate) fn run_proxy(agent: &str) -> Result<(), Box<dyn Error>> {
    wharf_proxy::run(ProxyOptions {
        agent_grpc: agent.to_owned(),
        token: None,
        target: Target::SidecarFor("bench".into()),
        admin: None,
        workers: Some(1),
        drain_timeout: ProxyOptions::DEFAULT_DRAIN_TIMEOUT,
        notify: None,
    })?;
    Ok(())
}

pub(crate) fn run_agent(port: u16, ports: Ports) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
            let incoming = stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            });
            let service = ProxyConfigurationServer::new(Fixed(snapshot(ports)));
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await?;
            Ok(())
        })
}

struct Fixed(ProxySnapshot);

#[tonic::async_trait]
impl ProxyConfiguration for Fixed {
    type StreamStream =
        Pin<Box<dyn Stream<Item = Result<ProxyConfigurationResponse, Status>> + Send>>;

    async fn stream(
        &self,
        _: Request<ProxyConfigurationRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let first = ProxyConfigurationResponse {
            version: 1,
            update: Some(Update::Snapshot(self.0.clone())),
        };
        Ok(Response::new(Box::pin(
            stream::iter([Ok(first)]).chain(stream::pending()),
        )))
    }
}

fn snapshot(ports: Ports) -> ProxySnapshot {
    let listener = |name: &str, port: u16, protocol: ProxyProtocol| Listener {
        name: name.into(),
        direction: ListenerDirection::Outbound as i32,
        address: "127.0.0.1".into(),
        port: port.into(),
        protocol: protocol as i32,
        cluster: name.into(),
        max_connections: 0,
    };
    let cluster = |name: &str, port: u16, protocol: ProxyProtocol| Cluster {
        name: name.into(),
        service: name.into(),
        protocol: protocol as i32,
        endpoints: vec![Endpoint {
            address: "127.0.0.1".into(),
            port: port.into(),
            ..Endpoint::default()
        }],
        ..Cluster::default()
    };
    ProxySnapshot {
        listeners: vec![
            listener("http", ports.http, ProxyProtocol::Http),
            listener("tcp", ports.tcp, ProxyProtocol::Tcp),
        ],
        clusters: vec![
            cluster("http", ports.http_backend, ProxyProtocol::Http),
            cluster("tcp", ports.tcp_backend, ProxyProtocol::Tcp),
        ],
        ..ProxySnapshot::default()
    }
}
