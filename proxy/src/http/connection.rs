//! One client connection: which HTTP it speaks, how long it may be silent, and how it ends.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{sleep_until, timeout},
};

use super::{forward, io::poll_write_gathered};
use crate::{
    drain::Phase,
    metrics::{Shard, Traffic},
    tcp::{self, Copy, InFlight, Slot},
    tuning::{
        H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, MAX_H2_HEADER_LIST, MAX_H2_STREAMS, MAX_HEAD,
    },
    worker::{Cell, Worker},
};

/// RFC 9113 §3.4. Its first line is a request for a method that HTTP/1 servers are told to refuse.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HTTP/2 clients that vanished are noticed by a ping after this long, and given as long to answer.
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What the task of a client connection, its requests and its socket have in common.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) worker: Arc<Worker>,
    pub(crate) cell: Arc<Cell>,
    traffic: Arc<Traffic>,
    clock: Clock,
    /// Left by a request that was answered with 101, for the connection's task to run when hyper lets go of the socket.
    tunnel: Mutex<Option<Tunnel>>,
}

/// Both ends of an upgraded connection, before they are joined.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: TcpStream,
    /// Sent by the instance right behind its 101.
    pub(crate) early: Bytes,
    pub(crate) slot: Slot,
    pub(crate) in_flight: InFlight,
}

/// Serves one accepted connection of an HTTP listener to its end.
pub(crate) async fn serve(worker: Arc<Worker>, cell: Arc<Cell>, mut client: TcpStream) {
    // Until the first byte a connection is this small future and a socket: thousands of silent ones are cheap.
    let mut read = BytesMut::new();
    let first = cell.drain.run(|cx, news| match news {
        Some(_) => Poll::Ready(None),
        None => poll_version(cx, &mut client, &mut read),
    });
    let limit = worker.tuning.header_timeout;
    if let Ok(Some(Some(version))) = timeout(limit, first).await {
        Box::pin(speak(worker, cell, client, version, read.freeze())).await;
    }
}

async fn speak(
    worker: Arc<Worker>,
    cell: Arc<Cell>,
    client: TcpStream,
    version: Version,
    prefix: Bytes,
) {
    let traffic = Arc::clone(&cell.listener().traffic);
    let conn = Arc::new(Conn {
        worker,
        cell,
        traffic,
        clock: Clock::new(Instant::now()),
        tunnel: Mutex::new(None),
    });
    conn.shard()
        .bytes_received
        .fetch_add(prefix.len() as u64, Relaxed);
    let io = TokioIo::new(ClientIo {
        stream: client,
        prefix,
        conn: Arc::clone(&conn),
    });
    match version {
        Version::Http1 => http1(conn, io).await,
        Version::Http2 => http2(conn, io).await,
    }
}

/// Reads until the bytes can only be one version or the other. `None` when the client ends before that.
fn poll_version(
    cx: &mut Context<'_>,
    client: &mut TcpStream,
    read: &mut BytesMut,
) -> Poll<Option<Version>> {
    loop {
        let mut piece = [0; 1024];
        let mut buf = ReadBuf::new(&mut piece);
        let result = ready!(Pin::new(&mut *client).poll_read(cx, &mut buf));
        if result.is_err() || buf.filled().is_empty() {
            return Poll::Ready(None);
        }
        read.extend_from_slice(buf.filled());
        if let Some(version) = version_of(read) {
            return Poll::Ready(Some(version));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

fn version_of(bytes: &[u8]) -> Option<Version> {
    if bytes.starts_with(PREFACE) {
        Some(Version::Http2)
    } else if PREFACE.starts_with(bytes) {
        None
    } else {
        Some(Version::Http1)
    }
}

async fn http1(conn: Arc<Conn>, io: TokioIo<ClientIo>) {
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request| forward::handle(Arc::clone(&conn), request))
    };
    let server = http1::Builder::new()
        // `Clock` bounds the head, and tells a client that is slow from one that has nothing to ask; hyper's own timer
        // takes both for the same.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service)
        .with_upgrades();
    let mut server = pin!(server);
    conn.watch(|cx, drain| {
        if drain {
            server.as_mut().graceful_shutdown();
        }
        server.as_mut().poll(cx).map(drop)
    })
    .await;
    let tunnel = conn
        .tunnel
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(tunnel) = tunnel {
        tunnel.run(&conn).await;
    }
}

async fn http2(conn: Arc<Conn>, io: TokioIo<ClientIo>) {
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request| forward::handle(Arc::clone(&conn), request))
    };
    let server = http2::Builder::new(Exec(Arc::clone(&conn.worker)))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(MAX_H2_HEADER_LIST)
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .serve_connection(io, service);
    let mut server = pin!(server);
    // Pings show that the client is alive, so only the drain ends the connection from this side.
    conn.cell
        .drain
        .run(|cx, news| {
            if news.is_some() {
                server.as_mut().graceful_shutdown();
            }
            server.as_mut().poll(cx).map(drop)
        })
        .await;
}

/// Runs the tasks hyper needs for HTTP/2, on this worker's thread, owned by it.
#[derive(Clone, Debug)]
pub(crate) struct Exec(pub(crate) Arc<Worker>);

impl<F> hyper::rt::Executor<F> for Exec
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.drivers.spawn(future);
    }
}

// === impl Conn ===

impl Conn {
    pub(crate) fn shard(&self) -> &Shard {
        self.traffic.shard(self.worker.id)
    }

    pub(crate) fn leave_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    /// Notes that a request has begun; answers when.
    pub(crate) fn request_began(&self) -> Instant {
        self.clock.request_began()
    }

    pub(crate) fn request_ended(&self, now: Instant) {
        self.clock.request_ended(now);
    }

    /// Runs an HTTP/1 connection until it ends, is silent for too long, or the drain is forced. `poll` is told once
    /// when the drain begins.
    async fn watch(&self, mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<()>) {
        let tuning = &self.worker.tuning;
        // One timer per connection, not per request: it looks now and then whether time is up.
        let every = tuning.header_timeout / 3;
        let mut timer = pin!(sleep_until((Instant::now() + every).into()));
        self.cell
            .drain
            .run(|cx, news| {
                while timer.as_mut().poll(cx).is_ready() {
                    let now = Instant::now();
                    if self
                        .clock
                        .expired(now, tuning.header_timeout, tuning.client_idle)
                    {
                        return Poll::Ready(());
                    }
                    timer.as_mut().reset((now + every).into());
                }
                poll(cx, news == Some(Phase::Graceful))
            })
            .await;
    }
}

impl Tunnel {
    async fn run(self, conn: &Conn) {
        let Ok(upgraded) = self.client.await else {
            return;
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<ClientIo>>() else {
            return;
        };
        let ClientIo { stream, prefix, .. } = parts.io.into_inner();
        // hyper has read all of the prefix before it read more.
        let from_client = if prefix.is_empty() {
            parts.read_buf
        } else {
            prefix
        };
        let copy = Copy::with_early(stream, self.upstream, from_client, self.early);
        tcp::tunnel(copy, &conn.worker, &conn.cell, conn.shard()).await;
        drop((self.slot, self.in_flight));
    }
}

/// When an HTTP/1 connection last did what, in microseconds from its beginning. Only its own task writes.
#[derive(Debug)]
struct Clock {
    epoch: Instant,
    /// Requests in work.
    active: AtomicU32,
    /// When the first bytes of the head that is being read came; 0 when there are none.
    head_since: AtomicU64,
    idle_since: AtomicU64,
}

impl Clock {
    /// A connection begins with its first bytes read.
    fn new(now: Instant) -> Self {
        Self {
            epoch: now - Duration::from_micros(1),
            active: AtomicU32::new(0),
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(1),
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    fn bytes_came(&self) {
        if self.head_since.load(Relaxed) == 0 && self.active.load(Relaxed) == 0 {
            self.head_since.store(self.micros(Instant::now()), Relaxed);
        }
    }

    /// Answers when the request's first bytes came. Those of one that waited behind another, or beside it on an HTTP/2
    /// connection, came at a time nobody noted: then it is now.
    fn request_began(&self) -> Instant {
        self.active.fetch_add(1, Relaxed);
        match self.head_since.swap(0, Relaxed) {
            0 => Instant::now(),
            since => self.epoch + Duration::from_micros(since),
        }
    }

    fn request_ended(&self, now: Instant) {
        self.active.fetch_sub(1, Relaxed);
        self.idle_since.store(self.micros(now), Relaxed);
    }

    fn expired(&self, now: Instant, header: Duration, idle: Duration) -> bool {
        if self.active.load(Relaxed) > 0 {
            return false;
        }
        let (since, limit) = match self.head_since.load(Relaxed) {
            0 => (self.idle_since.load(Relaxed), idle),
            since => (since, header),
        };
        u128::from(self.micros(now).saturating_sub(since)) >= limit.as_micros()
    }
}

/// The client's socket as hyper sees it: counted, and with the bytes first that were read to tell the version.
#[derive(Debug)]
struct ClientIo {
    stream: TcpStream,
    prefix: Bytes,
    conn: Arc<Conn>,
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..n]);
            this.prefix.advance(n);
            if this.prefix.is_empty() {
                this.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.conn.clock.bytes_came();
        this.conn
            .shard()
            .bytes_received
            .fetch_add((buf.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl ClientIo {
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.conn.shard().bytes_sent.fetch_add(n as u64, Relaxed);
        }
        written
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = poll_write_gathered(Pin::new(&mut self.stream), cx, bufs);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_told_as_soon_as_it_can_be() {
        assert_eq!(version_of(b"GET / HTTP/1.1\r\n"), Some(Version::Http1));
        assert_eq!(version_of(b"PRI"), None);
        assert_eq!(version_of(b"PRINT / HTTP/1.1\r\n"), Some(Version::Http1));
        assert_eq!(version_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"), None);
        assert_eq!(
            version_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"),
            Some(Version::Http2)
        );
    }

    #[test]
    fn a_slow_head_expires_sooner_than_an_idle_connection_and_a_request_never() {
        let (header, idle) = (Duration::from_secs(15), Duration::from_secs(75));
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let clock = Clock::new(start);
        assert!(!clock.expired(at(14), header, idle));
        assert!(
            clock.expired(at(15), header, idle),
            "the first bytes came, no head followed"
        );
        assert!(
            clock.request_began() < at(1),
            "it began with its first bytes"
        );
        assert!(
            !clock.expired(at(10_000), header, idle),
            "a request takes as long as it takes"
        );
        clock.request_ended(at(20));
        assert!(!clock.expired(at(94), header, idle));
        assert!(clock.expired(at(96), header, idle));
    }
}
