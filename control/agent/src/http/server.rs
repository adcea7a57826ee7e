//! Connections: accepted, bounded, and let go.
//!
//! A connection costs one task and a small buffer until it sends a request; one that sends none is
//! closed after [`FIRST_BYTE_TIMEOUT`]. A client address may hold a number of connections; one more is
//! answered with a bare 429 and closed, as Consul does.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{
    HttpContext,
    request::{self, canonical},
    router::Router,
};
use crate::tls::ServerTls;

/// How long a new connection may stay silent. It costs a task and a socket until then, no buffer.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for the head of a request, and may idle before the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest head of a request.
const MAX_HEAD: usize = 64 * 1024;
/// How long requests in flight may go on once the agent stops.
const DRAIN: Duration = Duration::from_secs(3);
/// How long to rest when the machine has no file descriptor left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

const TOO_MANY: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A bound socket, ready to serve.
pub enum HttpListener {
    Plain(TcpListener),
    Tls(TcpListener, Arc<ServerTls>),
    /// The file is removed when the server ends.
    Unix(UnixListener, PathBuf),
}

impl std::fmt::Debug for HttpListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HttpListener::Plain(listener) => f.debug_tuple("Plain").field(listener).finish(),
            HttpListener::Tls(listener, _) => f.debug_tuple("Tls").field(listener).finish(),
            HttpListener::Unix(_, path) => f.debug_tuple("Unix").field(path).finish(),
        }
    }
}

/// The running servers of the API.
#[derive(Debug)]
pub struct HttpServer {
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    context: Arc<HttpContext>,
    router: Router,
    clients: Arc<Clients>,
    tasks: TaskTracker,
}

impl HttpServer {
    /// Serves the API on every listener until the context's shutdown is cancelled.
    pub fn start(context: Arc<HttpContext>, listeners: Vec<HttpListener>) -> HttpServer {
        let tasks = TaskTracker::new();
        let shared = Arc::new(Shared {
            context,
            router: Router::new(),
            clients: Arc::default(),
            tasks: tasks.clone(),
        });
        for listener in listeners {
            tasks.spawn(accept(shared.clone(), listener));
        }
        tasks.close();
        HttpServer { tasks }
    }

    /// Completes when every connection has ended, after the shutdown was cancelled.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}

async fn accept(shared: Arc<Shared>, listener: HttpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener) => accepted,
            () = shared.context.shutdown.cancelled() => break,
        };
        match accepted {
            Ok(connection) => spawn(&shared, &listener, connection),
            Err(error) if is_per_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "the HTTP server cannot accept connections");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    if let HttpListener::Unix(_, path) = &listener
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(%error, path = %path.display(), "the socket file stays behind");
    }
}

enum Connection {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

async fn accept_one(listener: &HttpListener) -> io::Result<Connection> {
    match listener {
        HttpListener::Plain(listener) | HttpListener::Tls(listener, _) => {
            let (stream, peer) = listener.accept().await?;
            Ok(Connection::Tcp(stream, peer))
        }
        HttpListener::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok(Connection::Unix(stream))
        }
    }
}

/// Errors of the connection that was being accepted, not of the socket that accepts.
fn is_per_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn spawn(shared: &Arc<Shared>, listener: &HttpListener, connection: Connection) {
    let shared = shared.clone();
    let tasks = shared.tasks.clone();
    match connection {
        Connection::Unix(stream) => {
            tasks.spawn(converse(shared, stream, None, None));
        }
        Connection::Tcp(mut stream, peer) => {
            let ip = canonical(peer.ip());
            let limit = shared.context.settings.load().max_conns_per_client;
            let Some(slot) = Clients::enter(&shared.clients, ip, limit) else {
                metrics::counter!("wharf_http_connections_refused_total").increment(1);
                tasks.spawn(async move {
                    // Best effort: the client is told, but never waited for.
                    let _ = timeout(Duration::from_secs(1), stream.write_all(TOO_MANY)).await;
                });
                return;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection keeps its delay");
            }
            let acceptor = match listener {
                HttpListener::Tls(_, tls) => Some(tls.acceptor()),
                HttpListener::Plain(_) | HttpListener::Unix(..) => None,
            };
            tasks.spawn(converse(shared, stream, acceptor, Some(slot)));
        }
    }
}

/// A connection, to its end. While it is silent it holds this future and its socket: what serves requests is
/// boxed, and made when there is something to read.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would hold its arguments twice"
)]
fn converse<S: Socket>(
    shared: Arc<Shared>,
    stream: S,
    acceptor: Option<TlsAcceptor>,
    slot: Option<Slot>,
) -> impl Future<Output = ()> {
    async move {
        tokio::select! {
            first = timeout(FIRST_BYTE_TIMEOUT, poll_fn(|cx| stream.poll_first_byte(cx))) => {
                if first.is_err() {
                    return;
                }
            }
            () = shared.context.shutdown.cancelled() => return,
        }
        let peer = slot.as_ref().map(|slot| slot.ip);
        match acceptor {
            None => Box::pin(serve(&shared, stream, peer)).await,
            Some(acceptor) => Box::pin(serve_tls(&shared, stream, acceptor, peer)).await,
        }
        drop(slot);
    }
}

/// A socket that can tell whether there is anything to read.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {
    /// Completes when there is a byte to read, or the end, or an error. Readiness alone does not tell: tokio
    /// takes a new socket for ready until a read has shown otherwise.
    fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Socket for TcpStream {
    fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<()> {
        let peek = || self.try_io(Interest::READABLE, || peek(SockRef::from(self)));
        poll_peek(cx, |cx| self.poll_read_ready(cx), peek)
    }
}

impl Socket for UnixStream {
    fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<()> {
        let peek = || self.try_io(Interest::READABLE, || peek(SockRef::from(self)));
        poll_peek(cx, |cx| self.poll_read_ready(cx), peek)
    }
}

fn peek(socket: SockRef<'_>) -> io::Result<usize> {
    socket.peek(&mut [MaybeUninit::uninit()])
}

fn poll_peek(
    cx: &mut Context<'_>,
    ready: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    peek: impl Fn() -> io::Result<usize>,
) -> Poll<()> {
    loop {
        // An error shows again when the stream is read.
        let _ = std::task::ready!(ready(cx));
        match peek() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return Poll::Ready(()),
        }
    }
}

async fn serve_tls<S: Socket>(
    shared: &Arc<Shared>,
    stream: S,
    acceptor: TlsAcceptor,
    peer: Option<IpAddr>,
) {
    let within = shared.context.settings.load().handshake_timeout;
    let handshake = Box::pin(timeout(within, acceptor.accept(stream)));
    match handshake.await {
        Ok(Ok(stream)) => Box::pin(serve(shared, stream, peer)).await,
        Ok(Err(error)) => tracing::debug!(%error, from = ?peer, "TLS handshake failed"),
        Err(_) => tracing::debug!(from = ?peer, "TLS handshake timed out"),
    }
}

async fn serve<S>(shared: &Arc<Shared>, stream: S, peer: Option<IpAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: http::Request<Incoming>| async move {
        let request = request.map(request::Body::Left);
        Ok::<_, Infallible>(shared.router.serve(&shared.context, request, peer).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        // As Go writes them: there are clients that look for `X-Consul-Index` letter by letter.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = &mut connection => {
            if let Err(error) = result {
                tracing::trace!(%error, "a connection ended badly");
            }
            return;
        }
        () = shared.context.shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Whoever is still writing after this is cut off with the runtime.
    let _ = timeout(DRAIN, connection).await;
}

/// How many connections each client address holds.
#[derive(Debug, Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One connection of a client, counted while it lives.
#[derive(Debug)]
struct Slot {
    clients: Arc<Clients>,
    ip: IpAddr,
}

impl Clients {
    /// Counts a connection in, unless its client has as many as it may. 0: no limit.
    fn enter(this: &Arc<Self>, ip: IpAddr, limit: usize) -> Option<Slot> {
        let mut counts = this.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if limit != 0 && *count >= limit {
            return None;
        }
        *count += 1;
        Some(Slot {
            clients: this.clone(),
            ip,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self
            .clients
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// The size of what a function returns, without calling it.
    fn size_of_future<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_silent_connection_is_a_small_future() {
        let tcp = size_of_future(converse::<TcpStream>);
        assert!(tcp <= 512, "{tcp} bytes for each connection over TCP");
        let unix = size_of_future(converse::<UnixStream>);
        assert!(unix <= 512, "{unix} bytes for each over a Unix socket");
    }

    #[tokio::test]
    async fn a_connection_is_silent_until_its_first_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        speaks_when_spoken_to(&server, &mut client).await;
        let (server, mut client) = UnixStream::pair().unwrap();
        speaks_when_spoken_to(&server, &mut client).await;

        let (server, client) = UnixStream::pair().unwrap();
        drop(client);
        poll_fn(|cx| server.poll_first_byte(cx)).await;
    }

    async fn speaks_when_spoken_to(server: &impl Socket, client: &mut (impl AsyncWrite + Unpin)) {
        let first = || poll_fn(|cx| server.poll_first_byte(cx));
        assert!(first().now_or_never().is_none(), "it is silent");
        client.write_all(b"G").await.unwrap();
        first().await;
    }

    #[test]
    fn a_client_gets_its_slots_and_no_more() {
        let clients = Arc::new(Clients::default());
        let (one, other) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = Clients::enter(&clients, one, 2);
        let second = Clients::enter(&clients, one, 2);
        assert!(first.is_some() && second.is_some());
        assert!(Clients::enter(&clients, one, 2).is_none());
        assert!(Clients::enter(&clients, other, 2).is_some());
        drop(first);
        assert!(Clients::enter(&clients, one, 2).is_some());
        drop(second);
        assert!(
            clients.0.lock().unwrap().is_empty(),
            "nothing is kept of who has gone"
        );
    }
}
