//! Requests over HTTP/1.1: one connection each, bounded in time, redirects followed with care.

use std::{
    fmt, io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::RegistryError;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the head of an answer may take, and a small body after it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Registries keep blobs elsewhere, behind one redirect or two.
const MAX_REDIRECTS: usize = 5;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    /// `host` or `host:port`.
    pub(super) authority: String,
    /// With its query.
    pub(super) path: String,
}

impl Url {
    /// Reads an absolute URL.
    pub(super) fn parse(text: &str) -> Option<Url> {
        let uri: Uri = text.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        // User and password in a URL are somebody else's.
        if authority.as_str().contains('@') {
            return None;
        }
        Some(Url {
            tls,
            authority: authority.as_str().to_owned(),
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
        })
    }

    /// Where `Location` leads from here.
    fn follow(&self, location: &str) -> Option<Url> {
        match location.starts_with('/') && !location.starts_with("//") {
            true => Some(Url {
                path: location.parse::<Uri>().ok()?.to_string(),
                ..self.clone()
            }),
            false => Url::parse(location),
        }
    }

    fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            // A colon within brackets belongs to the address.
            Some((host, port)) if !port.contains(']') => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> Option<u16> {
        match self.authority.rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => port.parse().ok(),
            _ => Some(if self.tls { 443 } else { 80 }),
        }
    }

    fn same_server(&self, other: &Url) -> bool {
        self.tls == other.tls
            && self.host().eq_ignore_ascii_case(other.host())
            && self.port() == other.port()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        // A query may carry a signature that is as good as a password.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority)
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
    host: String,
    _driver: Driver,
}

/// The task that moves a connection's bytes, which ends with it.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answer {
    /// The whole body, if it is not longer than that.
    pub(super) async fn bytes(&mut self, limit: u64) -> Result<Bytes, RegistryError> {
        let host = self.host.clone();
        let too_long = || RegistryError::TooLong {
            host: host.clone(),
            limit,
        };
        let announced = self.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let collect = async {
            let mut bytes = BytesMut::new();
            while let Some(frame) = self.body.frame().await {
                let frame = frame.map_err(|source| RegistryError::Broken {
                    host: host.clone(),
                    source,
                })?;
                if let Ok(data) = frame.into_data() {
                    if (bytes.len() + data.len()) as u64 > limit {
                        return Err(too_long());
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(bytes.freeze())
        };
        match timeout(ANSWER_PATIENCE, collect).await {
            Ok(result) => result,
            Err(_) => Err(silent(&host)),
        }
    }

    /// The beginning of the body as text for a message, if it comes soon.
    pub(super) async fn text(&mut self) -> String {
        let bytes = self.bytes(64 << 10).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.chars()
            .filter(|c| !c.is_control())
            .take(500)
            .collect::<String>()
            .trim()
            .to_owned()
    }
}

fn silent(host: &str) -> RegistryError {
    RegistryError::Silent {
        host: host.to_owned(),
        patience: ANSWER_PATIENCE,
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Http {
    /// Hosts that are spoken to over plain HTTP.
    insecure: Vec<String>,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl Http {
    pub(super) fn new(insecure: Vec<String>) -> Http {
        Http {
            insecure,
            tls: OnceLock::new(),
        }
    }

    pub(super) fn is_insecure(&self, authority: &str) -> bool {
        self.insecure
            .iter()
            .any(|host| host.eq_ignore_ascii_case(authority))
    }

    /// Why a server other than the one we asked may not be asked, if it may not.
    pub(super) fn refusal(&self, url: &Url) -> Option<&'static str> {
        (!url.tls && !self.is_insecure(&url.authority)).then_some(
            "it is plain HTTP, and the host is not in platform.images.insecure_registries",
        )
    }

    /// GET, with redirects. `authorization` goes to the first server only.
    pub(super) async fn get(
        &self,
        url: &Url,
        accept: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = authorization.filter(|_| at.same_server(url));
            let answer = self.get_once(&at, accept, own).await?;
            if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = answer.headers.get(header::LOCATION);
            let location = location.and_then(|value| value.to_str().ok()).unwrap_or("");
            let refused = |to: String, why| RegistryError::Redirect {
                host: url.authority.clone(),
                to,
                why,
            };
            let Some(next) = at.follow(location) else {
                let shown = location.chars().take(200).collect();
                return Err(refused(shown, "it is no address"));
            };
            if let Some(why) = self.refusal(&next) {
                return Err(refused(next.to_string(), why));
            }
            at = next;
        }
        Err(RegistryError::Redirect {
            host: url.authority.clone(),
            to: at.to_string(),
            why: "there were too many redirects before",
        })
    }

    async fn get_once(
        &self,
        url: &Url,
        accept: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let host = url.authority.clone();
        let bad = |_| RegistryError::Redirect {
            host: host.clone(),
            to: url.to_string(),
            why: "it is no address",
        };
        let mut request = Request::get(&url.path)
            .header(header::HOST, &url.authority)
            .header(header::ACCEPT, accept)
            .header(
                header::USER_AGENT,
                concat!("wharf/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(bad)?;
        let stream = timeout(CONNECT_PATIENCE, self.connect(url))
            .await
            .map_err(|_| RegistryError::Unreachable {
                host: host.clone(),
                source: io::ErrorKind::TimedOut.into(),
            })??;
        let broken = |source| RegistryError::Broken {
            host: host.clone(),
            source,
        };
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(256 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = Driver(tokio::spawn(async move {
            // The sender and the body learn of any error.
            let _ = connection.await;
        }));
        let response = timeout(ANSWER_PATIENCE, sender.send_request(request));
        let response = response.await.map_err(|_| silent(&host))?;
        let (parts, body) = response.map_err(broken)?.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            host: url.authority.clone(),
            _driver: driver,
        })
    }

    async fn connect(&self, url: &Url) -> Result<Box<dyn Stream>, RegistryError> {
        let unreachable = |source| RegistryError::Unreachable {
            host: url.authority.clone(),
            source,
        };
        let port = url.port();
        let port = port.ok_or_else(|| unreachable(io::ErrorKind::InvalidInput.into()))?;
        let stream = TcpStream::connect((url.host(), port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        if !url.tls {
            return Ok(Box::new(stream));
        }
        let failed = |source| RegistryError::Tls {
            host: url.authority.clone(),
            source,
        };
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|error| failed(io::Error::other(error)))?;
        let config = self.tls_config().map_err(failed)?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        Ok(Box::new(stream.map_err(failed)?))
    }

    /// The machine's own roots, read once.
    fn tls_config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(io::Error::other(
                "this machine has no certificates of authorities (ca-certificates)",
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://host.example/v2/a?b=c").unwrap();
        assert_eq!(
            (url.tls, url.host(), url.port()),
            (true, "host.example", Some(443))
        );
        assert_eq!(url.path, "/v2/a?b=c");
        assert_eq!(url.to_string(), "https://host.example/v2/a");
        let url = Url::parse("http://[::1]:5000/").unwrap();
        assert_eq!(
            (url.tls, url.host(), url.port()),
            (false, "::1", Some(5000))
        );
        assert_eq!(Url::parse("http://[::1]/").unwrap().port(), Some(80));
        for bad in [
            "ftp://host.example/",
            "/relative",
            "",
            "https://",
            "https://u:p@host.example/",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_redirect_leads_where_it_says() {
        let url = Url::parse("https://host.example/v2/a").unwrap();
        let next = url.follow("/v2/b?c").unwrap();
        assert!(next.same_server(&url) && next.path == "/v2/b?c");
        let elsewhere = url.follow("https://other.example/x").unwrap();
        assert!(!elsewhere.same_server(&url));
        assert!(
            !url.follow("http://host.example/x")
                .unwrap()
                .same_server(&url)
        );
        assert!(
            url.follow("https://host.example:443/x")
                .unwrap()
                .same_server(&url)
        );
        assert_eq!(url.follow("//other.example/x"), None);
    }
}
