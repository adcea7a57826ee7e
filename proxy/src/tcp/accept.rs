//! Listening and accepting.

use std::{future::Future, io, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{net::TcpListener, time::Instant};

use super::connect::set_options;
use crate::worker::{Cell, Worker};

/// Connections that wait to be accepted; the kernel caps it with `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Waits after a failed accept. Descriptors or memory have run out: trying again at once would spin.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// At most one warning of failed accepts in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Binds `address` once per worker. The kernel spreads new connections over the sockets (SO_REUSEPORT).
///
/// # Errors
///
/// When the address is taken, also by another process that would share it: the first socket is bound without
/// SO_REUSEPORT, so that two proxies with the same port do not silently divide each other's traffic.
pub(crate) fn listen(
    address: SocketAddr,
    workers: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    let mut sockets = Vec::with_capacity(workers);
    for i in 0..workers {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        // Connections in TIME_WAIT of a proxy that ran here before are no conflict.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if i > 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        socket.set_reuse_port(true)?;
        set_options(&SockRef::from(&socket))?;
        sockets.push(socket);
    }
    // All are bound before the first one listens: nothing is accepted when one fails.
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets
        .into_iter()
        .map(std::net::TcpListener::from)
        .collect())
}

/// Accepts until `stop` completes, then takes what is already in the queue: closing the socket would reset it.
pub(crate) async fn accept(
    worker: Arc<Worker>,
    cell: Arc<Cell>,
    listener: TcpListener,
    stop: impl Future,
) {
    let mut stop = std::pin::pin!(stop);
    let mut backoff = BACKOFF_FIRST;
    let mut warned: Option<Instant> = None;
    loop {
        let next = std::future::poll_fn(|cx| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            Poll::Pending => stop.as_mut().poll(cx).map(|_| None),
        });
        match next.await {
            None => return,
            Some(Ok((stream, _))) => {
                backoff = BACKOFF_FIRST;
                worker.serve(&cell, stream);
            }
            // The client was gone before it was accepted.
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Some(Err(error)) => {
                if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                    warned = Some(Instant::now());
                    tracing::warn!(listener = %cell.listener().name, %error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}
