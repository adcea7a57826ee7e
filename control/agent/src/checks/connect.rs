//! Connections to what is checked.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UdpSocket, lookup_host},
    sync::OnceCell,
};
use tokio_rustls::TlsConnector;

use crate::local::CheckTls;

/// How much later than the one before it an address of a name is tried (RFC 8305 §5 recommends this).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("address {0}: missing port in address")]
    NoPort(String),
    #[error("lookup {host}: {source}")]
    Lookup { host: String, source: io::Error },
    #[error("lookup {0}: no such host")]
    NoSuchHost(String),
    #[error("dial {protocol} {address}: connect: {}", reason(source))]
    Dial {
        protocol: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{0:?} is not a name that a certificate can have")]
    ServerName(String),
    #[error("TLS with {address}: {source}")]
    Tls { address: String, source: io::Error },
}

/// The words of the system without its number, as in Go: `connection refused`.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// A plain or encrypted connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The parts of `host:port`, the brackets of an IPv6 address taken off.
pub(super) fn split_address(address: &str) -> Result<(&str, u16), ConnectError> {
    address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .map(|(host, port)| (bare_host(host), port))
        .ok_or_else(|| ConnectError::NoPort(address.to_owned()))
}

pub(super) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = lookup_host((host, port))
        .await
        .map_err(|source| ConnectError::Lookup {
            host: host.to_owned(),
            source,
        })?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() {
        return Err(ConnectError::NoSuchHost(host.to_owned()));
    }
    // The families take turns: one that leads nowhere does not hold up the other.
    let (mut first, mut second): (Vec<SocketAddr>, Vec<SocketAddr>) = found
        .iter()
        .copied()
        .partition(|address| address.is_ipv6() == found[0].is_ipv6());
    let mut ordered = Vec::with_capacity(found.len());
    first.reverse();
    second.reverse();
    while !first.is_empty() || !second.is_empty() {
        ordered.extend(first.pop());
        ordered.extend(second.pop());
    }
    Ok(ordered)
}

/// Connects to the first address that answers. The caller limits the time.
pub(super) async fn tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses = resolve(host, port).await?;
    let attempts = addresses
        .into_iter()
        .zip(0u32..)
        .map(async |(address, turn)| {
            tokio::time::sleep(NEXT_ADDRESS * turn).await;
            TcpStream::connect(address)
                .await
                .map_err(|source| ConnectError::Dial {
                    protocol: "tcp",
                    address,
                    source,
                })
        });
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut failure = ConnectError::NoSuchHost(host.to_owned());
    while let Some(result) = attempts.next().await {
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A UDP socket that talks to the first address of a name.
pub(super) async fn udp(host: &str, port: u16) -> Result<UdpSocket, ConnectError> {
    let address = resolve(host, port).await?[0];
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let dial = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(socket)
    };
    dial.await.map_err(|source| ConnectError::Dial {
        protocol: "udp",
        address,
        source,
    })
}

/// Connects, and encrypts if `tls` says so.
pub(super) async fn stream(
    host: &str,
    port: u16,
    tls: Option<&CheckTls>,
    alpn: &[&[u8]],
) -> Result<Box<dyn Stream>, ConnectError> {
    let stream = tcp(host, port).await?;
    // What fails here only makes the check slower.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let name = match &*tls.server_name {
        "" => host,
        given => given,
    };
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| ConnectError::ServerName(name.to_owned()))?;
    let mut config = client_config(tls.skip_verify).await;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(server, stream)
        .await
        .map_err(|source| ConnectError::Tls {
            address: format!("{host}:{port}"),
            source,
        })?;
    Ok(Box::new(stream))
}

async fn client_config(skip_verify: bool) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    if skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            .with_no_client_auth()
    } else {
        builder
            .with_root_certificates(system_roots().await)
            .with_no_client_auth()
    }
}

/// The certificates that this machine trusts, read once, as it takes many files.
async fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    let roots = ROOTS.get_or_try_init(async || tokio::task::spawn_blocking(read).await);
    // Only fails when the runtime is going down: then nobody is trusted.
    roots
        .await
        .cloned()
        .unwrap_or_else(|_| Arc::new(RootCertStore::empty()))
}

/// Takes any certificate, for checks that ask for that (`tls_skip_verify`).
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_at_the_port() {
        let split = |text: &'static str| split_address(text).ok();
        assert_eq!(split("localhost:80"), Some(("localhost", 80)));
        assert_eq!(split("[::1]:80"), Some(("::1", 80)));
        assert_eq!(split("localhost"), None);
        assert_eq!(split("localhost:http"), None);
        assert_eq!(split("localhost:70000"), None);
    }
}
