//! HTTPS and gRPC over TLS: certificates, clients that have to show one, and their renewal.

use std::{
    fs,
    future::Future,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::Service,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use wharf_tests::{Agent, Ended, Http, Ports, Reply, SOON, run};

/// A certificate authority in a directory: `ca.pem`, and `agent` and `client` pairs it has signed.
struct Pki {
    directory: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Pki {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki { directory, ca };
        fs::write(pki.path("ca.pem"), pki.ca.pem()).unwrap();
        pki.issue("agent");
        pki.issue("client");
        pki
    }

    /// A new certificate with a new key, in place of the one before.
    fn issue(&self, name: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The configuration of an agent that serves with the `agent` pair.
    fn agent_file(&self, verify_incoming: bool) -> PathBuf {
        let text = format!(
            "tls {{\n  defaults {{\n    ca_file = {:?}\n    cert_file = {:?}\n    key_file = {:?}\n    \
             verify_incoming = {verify_incoming}\n  }}\n}}\n",
            self.path("ca.pem"),
            self.path("agent.pem"),
            self.path("agent-key.pem"),
        );
        let path = self.path("agent.hcl");
        fs::write(&path, text).unwrap();
        path
    }

    fn agent(&self, verify_incoming: bool) -> Agent {
        let file = format!(
            "-config-file={}",
            self.agent_file(verify_incoming).display()
        );
        let agent = Agent::on(Ports::choose_with_tls(), &["-dev", &file]);
        agent.unwrap_or_else(|text| panic!("the agent does not start:\n{text}"))
    }

    /// A client that trusts the authority, with a certificate of its own or without.
    fn client(&self, with_certificate: bool) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(if with_certificate {
            let chain = CertificateDer::from_pem_file(self.path("client.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.path("client-key.pem")).unwrap();
            builder.with_client_auth_cert(vec![chain], key).unwrap()
        } else {
            builder.with_no_client_auth()
        })
    }
}

fn https(agent: &Agent) -> u16 {
    agent.ports.https.unwrap()
}

/// One request over HTTPS, and the certificate the agent showed.
fn get(
    agent: &Agent,
    client: &Arc<ClientConfig>,
    path: &str,
) -> io::Result<(Reply, CertificateDer<'static>)> {
    let http = Http::local(https(agent));
    let socket = TcpStream::connect(http.address)?;
    socket.set_read_timeout(Some(SOON))?;
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(client.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let reply = http.request_over(&mut stream, "GET", path, &[], b"")?;
    let shown = stream.conn.peer_certificates().and_then(<[_]>::first);
    Ok((reply, shown.unwrap().clone().into_owned()))
}

/// Connects tonic's channels with TLS.
#[derive(Clone)]
struct Tls {
    address: SocketAddr,
    connector: TlsConnector,
}

type Connecting =
    Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<tokio::net::TcpStream>>>> + Send>>;

impl Service<Uri> for Tls {
    type Response = TokioIo<TlsStream<tokio::net::TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Connecting {
        let Tls { address, connector } = self.clone();
        Box::pin(async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            let name = "localhost".try_into().unwrap();
            Ok(TokioIo::new(connector.connect(name, socket).await?))
        })
    }
}

/// What the health service says over TLS.
async fn health(agent: &Agent, client: &Arc<ClientConfig>) -> Result<ServingStatus, String> {
    let mut client = (**client).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Tls {
        address: SocketAddr::from(([127, 0, 0, 1], agent.ports.grpc_tls.unwrap())),
        connector: TlsConnector::from(Arc::new(client)),
    };
    let ask = async {
        let channel = Channel::from_static("http://localhost");
        let channel = channel.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let request = HealthCheckRequest::default();
        let answer = HealthClient::new(channel).check(request).await;
        Ok(answer
            .map_err(|error| error.to_string())?
            .into_inner()
            .status())
    };
    timeout(SOON, ask).await.expect("an answer or an error")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_apis_are_served_over_tls() {
    let pki = Pki::new();
    let agent = pki.agent(false);
    let client = pki.client(false);
    let (reply, _) = get(&agent, &client, "/v1/agent/self").unwrap();
    let own = reply.json();
    assert_eq!(own["DebugConfig"]["HTTPSPort"], https(&agent));
    assert_eq!(own["xDS"]["Ports"]["TLS"], agent.ports.grpc_tls.unwrap());
    assert_eq!(health(&agent, &client).await, Ok(ServingStatus::Serving));
    // A client that trusts somebody else does not take this agent for its own.
    let stranger = Pki::new().client(false);
    assert!(get(&agent, &stranger, "/v1/agent/self").is_err());
    assert!(health(&agent, &stranger).await.is_err());
    let text = agent.process.text();
    assert!(
        text.contains(&format!("https://127.0.0.1:{}", https(&agent))),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn verify_incoming_refuses_who_shows_no_certificate() {
    let pki = Pki::new();
    let agent = pki.agent(true);
    let (known, unknown) = (pki.client(true), pki.client(false));
    let (reply, _) = get(&agent, &known, "/v1/status/leader").unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(health(&agent, &known).await, Ok(ServingStatus::Serving));
    assert!(get(&agent, &unknown, "/v1/status/leader").is_err());
    assert!(health(&agent, &unknown).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn plain_text_on_a_tls_port_is_closed_and_costs_nothing() {
    let pki = Pki::new();
    let agent = pki.agent(false);
    let ports = [https(&agent), agent.ports.grpc_tls.unwrap()];
    let before = agent.process.resident();
    for round in 0..200 {
        for port in ports {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let request: &[u8] = match round % 2 {
                0 => b"GET /v1/status/leader HTTP/1.1\r\nHost: a\r\n\r\n",
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            };
            stream.write_all(request).unwrap();
            let mut answer = Vec::new();
            // Closed, not left waiting: with an alert of TLS, and no byte of what was asked.
            let end = stream.read_to_end(&mut answer);
            let kind = end.as_ref().err().map(io::Error::kind);
            assert!(
                !matches!(
                    kind,
                    Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
                ),
                "port {port} keeps a plain-text client waiting"
            );
            assert!(
                answer.len() < 16 && !answer.starts_with(b"HTTP"),
                "{answer:?}"
            );
        }
    }
    let grown = agent.process.resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for clients that have gone");
    let client = pki.client(false);
    assert_eq!(
        get(&agent, &client, "/v1/status/leader").unwrap().0.status,
        200
    );
    assert_eq!(health(&agent, &client).await, Ok(ServingStatus::Serving));
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", ports[1])).unwrap();
    if let Ok(channel) = endpoint.connect().await {
        let check = HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await;
        assert!(check.is_err());
    }
}

/// `wharf` at the HTTPS port, with nothing but these variables and flags.
fn wharf(agent: &Agent, variables: &[(&str, &Path)], words: &[&str]) -> Ended {
    let mut command = agent.cli(words);
    command.env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", https(agent)));
    command.env("CONSUL_HTTP_SSL", "true");
    command.envs(variables.iter().copied());
    run(&mut command)
}

#[test]
fn the_command_line_speaks_https() {
    let pki = Pki::new();
    let agent = pki.agent(true);
    let (ca, cert, key) = (
        pki.path("ca.pem"),
        pki.path("client.pem"),
        pki.path("client-key.pem"),
    );
    let variables = [
        ("CONSUL_CACERT", ca.as_path()),
        ("CONSUL_CLIENT_CERT", &cert),
        ("CONSUL_CLIENT_KEY", &key),
    ];
    wharf(&agent, &variables, &["kv", "put", "a", "over TLS"]).success();
    let url = format!("-http-addr=https://localhost:{}", https(&agent));
    let flags = [
        format!("-ca-file={}", ca.display()),
        format!("-client-cert={}", cert.display()),
        format!("-client-key={}", key.display()),
    ];
    let words = ["kv", "get", &url, &flags[0], &flags[1], &flags[2], "a"];
    assert_eq!(agent.run(&words).success().trim(), "over TLS");

    // What is missing is told, and the exit code says that it failed.
    let error = wharf(&agent, &variables[1..], &["kv", "get", "a"]).failure();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = wharf(&agent, &variables[..1], &["kv", "get", "a"]).failure();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    // Plain text where TLS is spoken, and the other way round.
    let mut plain = agent.cli(&["kv", "get", "a"]);
    plain.env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", https(&agent)));
    assert!(!run(&mut plain).failure().is_empty());
    let mut tls = agent.cli(&["kv", "get", "a"]);
    tls.env("CONSUL_HTTP_SSL", "true");
    assert!(!run(&mut tls).failure().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_serves_a_renewed_certificate() {
    let pki = Pki::new();
    let agent = pki.agent(false);
    let client = pki.client(true);
    let old = CertificateDer::from_pem_file(pki.path("agent.pem")).unwrap();
    assert_eq!(get(&agent, &client, "/v1/status/leader").unwrap().1, old);

    let renewed = pki.issue("agent");
    assert_eq!(
        get(&agent, &client, "/v1/status/leader").unwrap().1,
        old,
        "not before a reload"
    );
    agent.run(&["reload"]).success();
    assert_eq!(
        get(&agent, &client, "/v1/status/leader").unwrap().1,
        renewed
    );
    assert_eq!(health(&agent, &client).await, Ok(ServingStatus::Serving));

    // A certificate without its key is refused, and what was served goes on being served.
    let key = fs::read(pki.path("agent-key.pem")).unwrap();
    pki.issue("agent");
    fs::write(pki.path("agent-key.pem"), key).unwrap();
    let reply = agent.http.put("/v1/agent/reload", "");
    assert_eq!(reply.status, 500, "{}", reply.text());
    assert!(reply.text().contains("HTTPS"), "{}", reply.text());
    assert_eq!(
        get(&agent, &client, "/v1/status/leader").unwrap().1,
        renewed
    );

    // Whether clients are verified is renewed with it.
    pki.issue("agent");
    pki.agent_file(true);
    agent.run(&["reload"]).success();
    let unknown = pki.client(false);
    assert!(get(&agent, &unknown, "/v1/status/leader").is_err());
    assert!(health(&agent, &unknown).await.is_err());
    assert_eq!(health(&agent, &client).await, Ok(ServingStatus::Serving));
}
