//! A small HTTP/1.1 client for the agent's API: one connection, one request at a time, kept open between
//! requests so that an import of ten thousand keys is not ten thousand handshakes.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    endpoint::{Endpoint, Transport},
    failure::{Failure, chain},
    tls::TlsError,
    upload::Outgoing,
};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How long a blocking query may outstay its `wait`: the server's jitter is a sixteenth, and then some.
const BLOCKING_SLACK: Duration = Duration::from_secs(30);
/// An answer beyond this is refused instead of filling memory.
const MAX_ANSWER: usize = 512 << 20;

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const KEY: &AsciiSet = &SEGMENT.remove(b'/');

/// One path segment, escaped.
pub(crate) fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, SEGMENT)
}

/// A KV key as part of a path: its slashes stay.
pub(crate) fn key(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, KEY)
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("cannot reach the agent at {address}")]
    Unreachable { address: String, source: io::Error },
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    #[error("the agent at {address} is there, but TLS with it fails")]
    Handshake { address: String, source: io::Error },
    #[error("no answer from the agent at {address} within {} s", patience.as_secs())]
    NoAnswer { address: String, patience: Duration },
    #[error("the agent at {address} does not speak HTTP as expected")]
    Protocol {
        address: String,
        source: hyper::Error,
    },
    #[error("the request cannot be written as HTTP")]
    Request(#[from] http::Error),
    #[error("the answer is cut off or longer than {} MiB", MAX_ANSWER >> 20)]
    Answer {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Consul's words; scripts match them.
    #[error("Unexpected response code: {} ({text})", code.as_u16())]
    Status { code: StatusCode, text: String },
    #[error("the answer is not the JSON that belongs here")]
    Json(#[from] serde_json::Error),
}

impl HttpError {
    /// The failure of a command that was `doing` something: "Error retrieving members".
    pub(crate) fn while_(self, doing: impl fmt::Display) -> Failure {
        let failure = Failure::new(format!("{doing}: {self}"));
        let cause = std::error::Error::source(&self).map(chain);
        let failure = match cause {
            Some(cause) => failure.because(cause),
            None => failure,
        };
        match self {
            Self::Unreachable { .. } => {
                failure.hint("start an agent with `wharf agent -dev`, or name one with -http-addr=HOST:PORT")
            }
            Self::Protocol { source, .. } if source.is_parse() => {
                failure.hint("if this is an HTTPS port, say so: -http-addr=https://HOST:PORT")
            }
            Self::Handshake { .. } => failure.hint(
                "name the CA with -ca-file, the certificate's name with -tls-server-name, or use http:// if the port is plain",
            ),
            Self::NoAnswer { .. } => failure.hint("see whether the cluster has a leader: curl the agent at /v1/status/leader"),
            Self::Status { code, .. } if code == StatusCode::FORBIDDEN => {
                failure.hint("pass a token that may do this with -token or WHARF_HTTP_TOKEN")
            }
            _ => failure,
        }
    }
}

/// One request to the API. Paths are without the endpoint's prefix, and already escaped.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Bytes,
    patience: Duration,
}

impl Request {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: Bytes::new(),
            patience: ANSWER_PATIENCE,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// A parameter that says all by being there: `?recurse`.
    pub(crate) fn mark(self, name: &'static str) -> Self {
        self.param(name, "")
    }

    pub(crate) fn param(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn maybe(self, name: &'static str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.param(name, value),
            None => self,
        }
    }

    pub(crate) fn each(self, name: &'static str, values: &[&str]) -> Self {
        values
            .iter()
            .fold(self, |request, value| request.param(name, *value))
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn json(self, body: &impl Serialize) -> Result<Self, HttpError> {
        Ok(self.body(serde_json::to_vec(body)?))
    }

    /// How long the answer may take.
    pub(crate) fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Has the server hold a blocking query for up to `wait`.
    pub(crate) fn waiting(mut self, wait: Duration) -> Self {
        self.patience = wait + wait / 16 + BLOCKING_SLACK;
        self.param("wait", format!("{}s", wait.as_secs()))
    }

    fn target(&self, endpoint: &Endpoint) -> String {
        let mut target = format!("{}{}", endpoint.prefix, self.path);
        let datacenter = endpoint.datacenter.iter().map(|name| ("dc", name.as_str()));
        let stale = (endpoint.stale && self.method == Method::GET).then_some(("stale", ""));
        let query = self
            .query
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let mut separator = '?';
        for (name, value) in query.chain(datacenter).chain(stale) {
            target.push(separator);
            target.push_str(name);
            if !value.is_empty() {
                target.push('=');
                target.extend(segment(value));
            }
            separator = '&';
        }
        target
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Anything but 200 becomes the error Consul's client makes of it.
    pub(crate) fn ok(self) -> Result<Self, HttpError> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        Err(HttpError::Status {
            code: self.status,
            text: printable(&self.body),
        })
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// The index to wait on next.
    pub(crate) fn index(&self) -> Option<u64> {
        self.headers
            .get("x-consul-index")?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// What identifies the content of an answer that is waited on by content.
    pub(crate) fn hash(&self) -> Option<String> {
        Some(
            self.headers
                .get("x-consul-contenthash")?
                .to_str()
                .ok()?
                .to_owned(),
        )
    }
}

/// What a server said, fit for a terminal: no escape sequences, no flood.
fn printable(body: &[u8]) -> String {
    const MOST: usize = 4096;
    let text = String::from_utf8_lossy(&body[..body.len().min(MOST)]);
    text.trim()
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Reuse {
    Answered(http::Response<Incoming>),
    Unsent(http::Request<Outgoing>),
}

/// An open connection and the task that moves its bytes, which ends with it.
struct Connection {
    sender: SendRequest<Outgoing>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) struct Client {
    endpoint: Endpoint,
    connection: Option<Connection>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            connection: None,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.endpoint.to_string()
    }

    /// The whole answer, whatever its status.
    pub(crate) async fn send(&mut self, request: Request) -> Result<Answer, HttpError> {
        let body = Outgoing::Whole(Some(request.body.clone()));
        self.exchange(request, body).await
    }

    /// Sends a request with a body that is written meanwhile. The answer must be 200.
    pub(crate) async fn upload(
        &mut self,
        request: Request,
        body: Outgoing,
    ) -> Result<Answer, HttpError> {
        // A server may answer without having read all of it.
        let answer = self.exchange(request, body).await;
        self.connection = None;
        answer?.ok()
    }

    async fn exchange(&mut self, request: Request, body: Outgoing) -> Result<Answer, HttpError> {
        let patience = request.patience;
        let answer = async {
            let response = self.open(&request, body).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|source| HttpError::Answer { source })?
                .to_bytes();
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        let result = timeout(patience, answer).await;
        result.unwrap_or_else(|_| {
            // What is still under way on the connection would be taken for the answer to the next request.
            self.connection = None;
            Err(HttpError::NoAnswer {
                address: self.address(),
                patience,
            })
        })
    }

    /// The answer, which must be 200.
    pub(crate) async fn fetch(&mut self, request: Request) -> Result<Answer, HttpError> {
        self.send(request).await?.ok()
    }

    pub(crate) async fn fetch_json<T: DeserializeOwned>(
        &mut self,
        request: Request,
    ) -> Result<T, HttpError> {
        self.fetch(request).await?.json()
    }

    /// An answer whose body has no end; the status must be 200.
    pub(crate) async fn stream(&mut self, request: Request) -> Result<Incoming, HttpError> {
        let patience = request.patience;
        let body = Outgoing::Whole(Some(request.body.clone()));
        let response = match timeout(patience, self.open(&request, body)).await {
            Ok(response) => response?,
            Err(_) => {
                return Err(HttpError::NoAnswer {
                    address: self.address(),
                    patience,
                });
            }
        };
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|source| HttpError::Answer { source })?;
        Err(HttpError::Status {
            code,
            text: printable(&body.to_bytes()),
        })
    }

    async fn open(
        &mut self,
        request: &Request,
        body: Outgoing,
    ) -> Result<http::Response<Incoming>, HttpError> {
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(request.target(&self.endpoint))
            .header(header::HOST, &self.endpoint.authority)
            .header(
                header::USER_AGENT,
                concat!("wharf/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.endpoint.token {
            builder = builder.header("x-consul-token", token);
        }
        if let Some(basic) = &self.endpoint.basic_auth {
            builder = builder.header(header::AUTHORIZATION, basic);
        }
        let message = builder.body(body)?;

        let message = match self.reuse(message).await? {
            Reuse::Answered(response) => return Ok(response),
            Reuse::Unsent(message) => message,
        };
        let sent = self.connect().await?.send_request(message).await;
        sent.map_err(|source| self.broken(source))
    }

    /// Sends on the connection that is already open. The agent may close an idle one at any time; a
    /// request it has certainly not seen comes back, to go out again on a new one.
    async fn reuse(&mut self, message: http::Request<Outgoing>) -> Result<Reuse, HttpError> {
        let Some(connection) = &mut self.connection else {
            return Ok(Reuse::Unsent(message));
        };
        if connection.sender.ready().await.is_err() {
            return Ok(Reuse::Unsent(message));
        }
        match connection.sender.try_send_request(message).await {
            Ok(response) => Ok(Reuse::Answered(response)),
            Err(mut error) => match error.take_message() {
                Some(message) => Ok(Reuse::Unsent(message)),
                None => Err(self.broken(error.into_error())),
            },
        }
    }

    fn broken(&self, source: hyper::Error) -> HttpError {
        HttpError::Protocol {
            address: self.address(),
            source,
        }
    }

    async fn connect(&mut self) -> Result<&mut SendRequest<Outgoing>, HttpError> {
        let stream = self.dial().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        // The sender learns of any error of the connection itself.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(&mut self.connection.insert(Connection { sender, driver }).sender)
    }

    async fn dial(&self) -> Result<Box<dyn Stream>, HttpError> {
        let unreachable = |source| HttpError::Unreachable {
            address: self.address(),
            source,
        };
        let late = |_| {
            let text = format!("no connection within {} s", CONNECT_PATIENCE.as_secs());
            unreachable(io::Error::new(io::ErrorKind::TimedOut, text))
        };
        match &self.endpoint.transport {
            Transport::Unix(path) => Ok(Box::new(
                UnixStream::connect(path).await.map_err(unreachable)?,
            )),
            Transport::Plain { host, port } => {
                let connect = TcpStream::connect((host.as_str(), *port));
                let stream = timeout(CONNECT_PATIENCE, connect).await.map_err(late)?;
                Ok(Box::new(without_delay(stream.map_err(unreachable)?)))
            }
            Transport::Tls { host, port } => {
                let config = Arc::new(self.endpoint.tls.client_config()?);
                let name = self.endpoint.tls.server_name(host)?;
                let connect = TcpStream::connect((host.as_str(), *port));
                let stream = timeout(CONNECT_PATIENCE, connect).await.map_err(late)?;
                let stream = without_delay(stream.map_err(unreachable)?);
                let handshake = TlsConnector::from(config).connect(name, stream);
                let handshake = timeout(CONNECT_PATIENCE, handshake).await.map_err(late)?;
                Ok(Box::new(handshake.map_err(|source| {
                    HttpError::Handshake {
                        address: self.address(),
                        source,
                    }
                })?))
            }
        }
    }
}

/// Small requests should not wait for more of them. Only speed depends on it, so a refusal is no error.
fn without_delay(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    stream
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
