use std::{path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{commands::tree, stub::Printed};

/// An endpoint as a command line gives it.
fn endpoint(address: &str, more: &[&str], env: &[(&str, &str)]) -> Endpoint {
    let members = tree()
        .find_subcommand("members")
        .expect("a command")
        .clone();
    let address = format!("--http-addr={address}");
    let given = [&[address.as_str()], more].concat();
    let matches = members
        .no_binary_name(true)
        .try_get_matches_from(given)
        .expect("flags");
    let env = |name: &str| {
        env.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Endpoint::from_flags(&matches, &env).expect("endpoint")
}

/// Reads one request head and answers it with "true".
async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue")
        .await
}

#[tokio::test]
async fn one_connection_serves_many_requests_and_is_replaced_when_it_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    // Closes each connection after two requests; ends with how many there were.
    let server = tokio::spawn(async move {
        for connection in 1.. {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            for _ in 0..2 {
                if answer(&mut stream).await.is_err() {
                    return connection;
                }
            }
        }
        0
    });
    let mut client = Client::new(endpoint(&address, &[], &[]));
    for _ in 0..5 {
        let answer: bool = client
            .fetch_json(Request::get("/v1/x"))
            .await
            .expect("answered");
        assert!(answer);
    }
    drop(client);
    assert_eq!(server.await.expect("no panic"), 3);
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("http.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        answer(&mut stream).await
    });
    let mut client = Client::new(endpoint(&format!("unix://{}", path.display()), &[], &[]));
    assert!(
        client
            .fetch_json::<bool>(Request::get("/v1/x"))
            .await
            .expect("answered")
    );
    server.await.expect("no panic").expect("served");

    let away = Client::new(endpoint("unix:///nonexistent", &[], &[]))
        .fetch(Request::get("/"))
        .await;
    assert!(
        matches!(away, Err(HttpError::Unreachable { .. })),
        "{away:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let mut client = Client::new(endpoint(&address, &[], &[]));
    let silence = client.fetch(Request::get("/v1/x")).await;
    let Err(HttpError::NoAnswer { patience, .. }) = silence else {
        panic!("{silence:?}");
    };
    assert_eq!(patience, ANSWER_PATIENCE);
    // A blocking query is waited for as long as it was asked to take, and longer.
    let request = Request::get("/v1/x").waiting(Duration::from_secs(300));
    assert!(request.patience > Duration::from_secs(300 + 300 / 16));
}

#[tokio::test]
async fn what_is_not_http_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        // The alert of a TLS server that was spoken to in the clear.
        stream
            .write_all(b"\x15\x03\x01\x00\x02\x02\x46")
            .await
            .expect("written");
    });
    let failure = Client::new(endpoint(&address, &[], &[]))
        .fetch(Request::get("/v1/x"))
        .await;
    let failure = failure
        .expect_err("not HTTP")
        .while_("Error")
        .text(crate::persona::Persona::Wharf);
    assert!(
        failure.contains("-http-addr=https://HOST:PORT"),
        "{failure}"
    );
    server.await.expect("no panic");
}

struct Pki {
    dir: tempfile::TempDir,
    server: ServerConfig,
}

/// A CA, a server certificate for "agent.test" signed by it, and a client's.
fn pki(ask_for_client: bool) -> Pki {
    let dir = tempfile::tempdir().expect("directory");
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("CA");
    let signed = |name: &str| {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &ca).expect("signed"), key)
    };
    let (cert, key) = signed("agent.test");
    let (client_cert, client_key) = signed("client.test");
    let write =
        |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).expect("written");
    write("ca.pem", ca.pem());
    write("client.pem", client_cert.pem());
    write("client-key.pem", client_key.serialize_pem());

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("CA");
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = if ask_for_client {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.expect("verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let server = builder
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("server");
    Pki { dir, server }
}

/// One request over TLS to a server with that configuration.
async fn over_tls(
    server: ServerConfig,
    more: &[&str],
    env: &[(&str, &str)],
) -> Result<bool, HttpError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = format!("https://{}", listener.local_addr().expect("bound"));
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        answer(&mut acceptor.accept(stream).await?).await
    });
    let result = Client::new(endpoint(&address, more, env))
        .fetch_json(Request::get("/v1/x"))
        .await;
    // What went wrong before the connection leaves the server waiting for one.
    serving.abort();
    result
}

fn flag(name: &str, path: &Path, file: &str) -> String {
    format!("--{name}={}", path.join(file).display())
}

#[tokio::test]
async fn the_agents_certificate_is_verified() {
    let Pki { dir, server } = pki(false);
    let (ca_file, ca_path) = (
        flag("ca-file", dir.path(), "ca.pem"),
        flag("ca-path", dir.path(), ""),
    );
    let name = "--tls-server-name=agent.test";
    assert!(
        over_tls(server.clone(), &[&ca_file, name], &[])
            .await
            .expect("trusted")
    );

    let only_ca = tempfile::tempdir().expect("directory");
    std::fs::copy(dir.path().join("ca.pem"), only_ca.path().join("a.pem")).expect("copied");
    let good_path = flag("ca-path", only_ca.path(), "");
    assert!(
        over_tls(server.clone(), &[&good_path, name], &[])
            .await
            .expect("trusted")
    );
    // A key among the CAs is a mistake worth telling.
    let mixed = over_tls(server.clone(), &[&ca_path, name], &[]).await;
    assert!(
        matches!(mixed, Err(HttpError::Tls(TlsError::NoCertificate { .. }))),
        "{mixed:?}"
    );

    for more in [
        &[ca_file.as_str()][..],
        &[name],
        &[&ca_file, "--tls-server-name=other.test"],
    ] {
        let refused = over_tls(server.clone(), more, &[]).await;
        assert!(
            matches!(refused, Err(HttpError::Handshake { .. })),
            "{more:?} {refused:?}"
        );
    }
    let unverified = over_tls(server, &[], &[("CONSUL_HTTP_SSL_VERIFY", "false")]).await;
    assert!(unverified.expect("not verified"));
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let Pki { dir, server } = pki(true);
    let ca = flag("ca-file", dir.path(), "ca.pem");
    let cert = flag("client-cert", dir.path(), "client.pem");
    let key = flag("client-key", dir.path(), "client-key.pem");
    let name = "--tls-server-name=agent.test";
    assert!(
        over_tls(server.clone(), &[&ca, name, &cert, &key], &[])
            .await
            .expect("known client")
    );
    assert!(over_tls(server.clone(), &[&ca, name], &[]).await.is_err());
    let half = over_tls(server, &[&ca, name, &cert], &[]).await;
    assert!(
        matches!(half, Err(HttpError::Tls(TlsError::HalfAPair))),
        "{half:?}"
    );
}

#[test]
fn the_log_is_followed_to_its_end() {
    let stub = crate::stub::Stub::new(|_| crate::stub::Reply::ok("one\ntwo\n"));
    let printed = stub.wharf(&["monitor", "-log-level=debug", "-log-json"]);
    assert_eq!(
        printed,
        Printed {
            code: 1,
            out: "one\ntwo\n".to_owned(),
            err: "the agent ended the log\n  cause: it stopped, or the connection was cut\n"
                .to_owned(),
        }
    );
    assert_eq!(
        stub.lines(),
        ["GET /v1/agent/monitor?loglevel=debug&logjson"]
    );
}
