//! Queries over UDP.

use std::{io, net::SocketAddr, sync::Arc, task::Poll};

use futures_util::poll;
use hickory_server::net::xfer::Protocol;
use tokio::{net::UdpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Handler, exchange::exchange, rest};

/// The largest query that is read whole; of a longer one the rest is lost, and it is refused.
const MAX_QUERY: usize = 4096;

/// Queries that wait for the catalog at once; more are dropped, and asked again.
const MAX_WAITING: usize = 1024;

/// Receives and answers until told to stop.
pub(super) async fn serve(socket: UdpSocket, handler: Arc<Handler>, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_QUERY];
    let mut waiting = JoinSet::new();
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let received = tokio::select! {
            biased;
            () = &mut stopped => return,
            Some(_) = waiting.join_next() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, client) = match received {
            Ok(received) => received,
            // An earlier reply found nobody: a matter of its client, not of the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                if rest(&stop, "receiving", &error).await {
                    continue;
                }
                return;
            }
        };
        if client.port() == 0 {
            // Nobody can be reached there; the source is forged.
            handler.metering.dropped(Protocol::Udp, "source");
            continue;
        }
        if !handler.may_wait() {
            let reply = exchange(&handler, &buffer[..length], client, Protocol::Udp).await;
            send(&socket, reply, client).await;
            continue;
        }
        let (answering, message) = (handler.clone(), buffer[..length].to_vec());
        let mut reply =
            Box::pin(async move { exchange(&answering, &message, client, Protocol::Udp).await });
        match poll!(reply.as_mut()) {
            Poll::Ready(reply) => send(&socket, reply, client).await,
            Poll::Pending if waiting.len() < MAX_WAITING => {
                let socket = socket.clone();
                waiting.spawn(async move { send(&socket, reply.await, client).await });
            }
            Poll::Pending => handler.metering.dropped(Protocol::Udp, "waiting"),
        }
    }
}

async fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, client: SocketAddr) {
    if let Some(reply) = reply
        && let Err(error) = socket.send_to(&reply, client).await
    {
        tracing::debug!(%error, %client, "DNS: a reply was not sent");
    }
}
