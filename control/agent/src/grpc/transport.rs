//! Connections before they speak gRPC: accepted, counted, given a deadline, and decrypted.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::Sleep,
};
use tokio_rustls::{Accept, server::TlsStream};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::GrpcListener;

/// The client's side of the HTTP/2 preface (RFC 9113 §3.4). Whoever sent it speaks HTTP/2, and is
/// kept honest by pings from then on.
const PREFACE: usize = 24;

/// How long to wait after a failed accept: usually out of file descriptors, which only others can
/// give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is granted to connections.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Connections from one address.
    pub(crate) per_client: usize,
    /// Connections from this machine: the sidecars and applications of a node share its loopback.
    pub(crate) per_loopback: usize,
    /// From accept to the end of the HTTP/2 preface, a TLS handshake included.
    pub(crate) preface_within: Duration,
}

/// Counts the connections of each client.
#[derive(Debug)]
pub(crate) struct Gate {
    bounds: Bounds,
    open: Mutex<HashMap<IpAddr, usize>>,
    /// Cuts every connection when cancelled.
    cut: CancellationToken,
}

/// The next connection, and the address that it counts for.
async fn accept(listener: &GrpcListener) -> io::Result<(Io, IpAddr)> {
    let (socket, tls) = match listener {
        GrpcListener::Unix(socket) => {
            let (socket, _) = socket.accept().await?;
            return Ok((Io::Unix(socket), IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
        GrpcListener::Plain(socket) => (socket, None),
        GrpcListener::Tls(socket, tls) => (socket, Some(tls)),
    };
    let (socket, peer) = socket.accept().await?;
    // Small messages that somebody waits for; a socket that cannot do it still works.
    let _ = socket.set_nodelay(true);
    let io = match tls {
        None => Io::Plain(socket),
        Some(tls) => Io::Handshake(Box::new(tls.acceptor().accept(socket))),
    };
    Ok((io, peer.ip()))
}

/// One counted connection.
#[derive(Debug)]
struct Permit {
    gate: Arc<Gate>,
    client: IpAddr,
}

impl Gate {
    pub(crate) fn new(bounds: Bounds, cut: CancellationToken) -> Arc<Gate> {
        Arc::new(Gate {
            bounds,
            open: Mutex::default(),
            cut,
        })
    }

    fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let client = client.to_canonical();
        let most = if client.is_loopback() {
            self.bounds.per_loopback
        } else {
            self.bounds.per_client
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Permit {
            gate: self.clone(),
            client,
        })
    }

    /// The connections that a listener accepts and the gate admits. Ends never.
    pub(crate) fn accept(
        self: Arc<Self>,
        listener: GrpcListener,
    ) -> impl Stream<Item = io::Result<Connection>> + Send {
        stream::unfold((self, listener), |(gate, listener)| async move {
            loop {
                match accept(&listener).await {
                    Ok((io, client)) => {
                        if let Some(connection) = gate.connection(io, client) {
                            return Some((Ok(connection), (gate, listener)));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a gRPC connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }

    fn connection(self: &Arc<Self>, io: Io, client: IpAddr) -> Option<Connection> {
        let Some(permit) = self.admit(client) else {
            tracing::debug!(%client, "refused a gRPC connection: this client has too many");
            return None;
        };
        Some(Connection {
            io,
            preface_missing: PREFACE,
            deadline: Box::pin(tokio::time::sleep(self.bounds.preface_within)),
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            _permit: permit,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self
            .gate
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// An accepted connection. A TLS handshake happens in its first reads and writes, so that it holds
/// up nobody else.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    preface_missing: usize,
    deadline: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: Permit,
}

enum Io {
    Plain(TcpStream),
    Unix(UnixStream),
    Handshake(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    /// The handshake failed.
    Closed,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Io::Plain(_) => "Plain",
            Io::Unix(_) => "Unix",
            Io::Handshake(_) => "Handshake",
            Io::Tls(_) => "Tls",
            Io::Closed => "Closed",
        })
    }
}

/// Both kinds of established stream.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Io {
    /// The established stream; completes the handshake first.
    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut dyn Duplex>> {
        if let Io::Handshake(accept) = self {
            match ready!(Pin::new(&mut **accept).poll(cx)) {
                Ok(stream) => *self = Io::Tls(Box::new(stream)),
                Err(error) => {
                    *self = Io::Closed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match self {
            Io::Plain(stream) => Ok(stream),
            Io::Unix(stream) => Ok(stream),
            Io::Tls(stream) => Ok(&mut **stream),
            Io::Handshake(_) | Io::Closed => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if this.preface_missing > 0 && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let stream = ready!(this.io.poll_established(cx))?;
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.preface_missing = this.preface_missing.saturating_sub(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.io.poll_established(cx))?;
        Pin::new(stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.io.poll_established(cx))?;
        Pin::new(stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.io, Io::Plain(_) | Io::Unix(_))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = ready!(self.io.poll_established(cx))?;
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.io, Io::Handshake(_) | Io::Closed) {
            return Poll::Ready(Ok(()));
        }
        let stream = ready!(self.io.poll_established(cx))?;
        Pin::new(stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionCount;

    fn connect_info(&self) -> ConnectionCount {
        ConnectionCount::default()
    }
}

/// Requests of one connection, as far as who serves them counts them. Every request has that of its connection among
/// its extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionCount(Arc<AtomicUsize>);

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(ConnectionCount);

impl ConnectionCount {
    /// Counts one more; `None`: there are `most` already.
    pub(crate) fn count(&self, most: usize) -> Option<Counted> {
        let more = |count| (count < most).then_some(count + 1);
        let counted = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Counted(self.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_connections_and_no_more() {
        let bounds = Bounds {
            per_client: 2,
            per_loopback: 3,
            preface_within: Duration::from_secs(1),
        };
        let gate = Gate::new(bounds, CancellationToken::new());
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let first = gate.admit(client).unwrap();
        let _second = gate.admit(mapped).unwrap();
        assert!(gate.admit(client).is_none());
        assert!(
            gate.admit("192.0.2.2".parse().unwrap()).is_some(),
            "others are not concerned"
        );
        drop(first);
        assert!(gate.admit(client).is_some());
        let here: Vec<_> = (0..4).map(|_| gate.admit("::1".parse().unwrap())).collect();
        assert_eq!(here.iter().flatten().count(), 3);
        drop((_second, here));
        assert!(gate.open.lock().unwrap().is_empty());
    }
}
