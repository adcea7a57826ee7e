use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Code, Request, codegen::Service, transport::Uri};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use wharf_proto::v1::{
    AdHocProxy, ProxyConfigurationRequest, proxy_configuration_client::ProxyConfigurationClient,
    proxy_configuration_request::Target, proxy_configuration_server, registry_server,
};

use super::*;
use crate::authz::{Access, Caller, Denied, Permissions, Resource, Token};

fn anyone() -> ProxyConfigurationRequest {
    let service = "client".to_owned();
    let upstreams = Vec::new();
    ProxyConfigurationRequest {
        target: Some(Target::AdHoc(AdHocProxy { service, upstreams })),
    }
}

#[tokio::test]
async fn health_follows_the_services_and_ends_with_the_agent() {
    let harness = Harness::start().await;
    let mut client = HealthClient::new(harness.channel().await);
    for service in [
        "",
        registry_server::SERVICE_NAME,
        proxy_configuration_server::SERVICE_NAME,
    ] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let service = "unheard.of".to_owned();
    let unknown = client
        .check(HealthCheckRequest { service })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watch = client
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let status = |answer: Option<tonic_health::pb::HealthCheckResponse>| answer.unwrap().status();
    assert_eq!(
        status(watch.message().await.unwrap()),
        ServingStatus::Serving
    );
    harness.shutdown.cancel();
    assert_eq!(
        status(soon(watch.message()).await.unwrap()),
        ServingStatus::NotServing
    );
    assert_eq!(soon(watch.message()).await.unwrap(), None);
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn reflection_knows_every_service() {
    let harness = Harness::start().await;
    let mut client = ServerReflectionClient::new(harness.channel().await);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = soon(answers.unwrap().into_inner().message())
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
    for name in [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        proxy_configuration_server::SERVICE_NAME,
        registry_server::SERVICE_NAME,
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    drop(client);
    harness.stop().await;
}

/// Generic clients show the details of an error only if they can look up what these are.
#[tokio::test]
async fn reflection_knows_the_details_of_errors() {
    let harness = Harness::start().await;
    let mut client = ServerReflectionClient::new(harness.channel().await);
    for name in [
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
    ] {
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::FileContainingSymbol(name.into())),
            ..ServerReflectionRequest::default()
        };
        let answers = client
            .server_reflection_info(tokio_stream::once(request))
            .await;
        let answer = soon(answers.unwrap().into_inner().message())
            .await
            .unwrap()
            .unwrap();
        assert!(
            matches!(
                answer.message_response,
                Some(MessageResponse::FileDescriptorResponse(_))
            ),
            "{name}: {answer:?}"
        );
    }
    drop(client);
    harness.stop().await;
}

/// Knows one token, which may do nothing.
#[derive(Debug)]
struct Strict;

impl Authorizer for Strict {
    fn resolve(&self, token: Option<Token>) -> Result<Caller, Denied> {
        match token {
            Some(token) if token.secret() == "known" => {
                Ok(Caller::new(Some(token), Arc::new(Strict)))
            }
            _ => Err(Denied::UnknownToken),
        }
    }
}

impl Permissions for Strict {
    fn allow(&self, _: Resource<'_>, _: Access) -> bool {
        false
    }
}

#[tokio::test]
async fn every_call_passes_the_seam_with_its_token() {
    let harness = Harness::with(Limits::default(), Arc::new(Strict), None).await;
    let mut client = ProxyConfigurationClient::new(harness.channel().await);
    let without = client.stream(anyone()).await.unwrap_err();
    assert_eq!(without.code(), Code::Unauthenticated);
    for (name, value) in [
        ("x-consul-token", "known"),
        ("authorization", "Bearer known"),
    ] {
        let mut request = Request::new(anyone());
        request.metadata_mut().insert(name, value.parse().unwrap());
        let with = client.stream(request).await.unwrap_err();
        assert_eq!(with.code(), Code::PermissionDenied);
        assert_eq!(
            with.message(),
            "Permission denied: the token lacks permission 'write' on service \"client\""
        );
    }
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_and_does_not_wait_for_idle_clients() {
    let harness = Harness::start().await;
    let channel = harness.channel().await;
    let mut client = ProxyConfigurationClient::new(channel);
    let mut stream = client.stream(anyone()).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap().unwrap();
    harness.shutdown.cancel();
    let ended = soon(stream.message()).await.unwrap_err();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "the agent is shutting down")
    );
    let started = tokio::time::Instant::now();
    harness.stop().await;
    assert!(started.elapsed() < GRACE, "the connection closed by itself");
    drop(client);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let limits = Limits {
        preface_within: Duration::from_millis(20),
        ..Limits::default()
    };
    let harness = Harness::with(limits, Arc::new(AllowAll), None).await;
    let mut silent = TcpStream::connect(harness.address).await.unwrap();
    let mut received = Vec::new();
    let closed = soon(silent.read_to_end(&mut received)).await;
    // The server's own SETTINGS may have come before.
    assert!(closed.is_err() || received.len() < 200, "{closed:?}");
    harness.stop().await;
}

#[tokio::test]
async fn one_client_cannot_take_all_connections() {
    let limits = Limits {
        connections_from_loopback: 2,
        ..Limits::default()
    };
    let harness = Harness::with(limits, Arc::new(AllowAll), None).await;
    let _one = HealthClient::new(harness.channel().await);
    let mut two = HealthClient::new(harness.channel().await);
    two.check(HealthCheckRequest::default()).await.unwrap();
    let mut three = TcpStream::connect(harness.address).await.unwrap();
    let refused = soon(three.read(&mut [0; 64])).await;
    assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
    drop((_one, two));
    harness.stop().await;
}

/// Connects with TLS, trusting one certificate.
#[derive(Clone)]
struct Tls {
    address: SocketAddr,
    connector: TlsConnector,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<Uri> for Tls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Tls { address, connector } = self.clone();
        Box::pin(async move {
            let socket = TcpStream::connect(address).await?;
            let name = "localhost".try_into().unwrap();
            Ok(TokioIo::new(connector.connect(name, socket).await?))
        })
    }
}

#[tokio::test]
async fn tls_is_served_with_the_given_certificate() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.unwrap())
        .unwrap();
    let harness = Harness::with(
        Limits::default(),
        Arc::new(AllowAll),
        Some(Arc::new(server)),
    )
    .await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Tls {
        address: harness.address,
        connector: TlsConnector::from(Arc::new(client)),
    };
    let endpoint = Channel::from_static("http://localhost");
    let channel = soon(endpoint.connect_with_connector(connector)).await;
    let mut client = HealthClient::new(channel.unwrap());
    let answer = client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);

    // Plain text on this port, for whatever it is, is no HTTP/2.
    let endpoint = Channel::from_shared(format!("http://{}", harness.address)).unwrap();
    if let Ok(channel) = soon(endpoint.connect()).await {
        let mut plain = HealthClient::new(channel);
        let answer = soon(plain.check(HealthCheckRequest::default())).await;
        assert!(answer.is_err());
    }
    drop(client);
    harness.stop().await;
}
