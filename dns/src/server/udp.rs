//! Queries over UDP.

use std::{io, sync::Arc};

use hickory_server::net::xfer::Protocol;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::{Handler, exchange::exchange, rest};

/// The largest query that is read whole; of a longer one the rest is lost, and it is refused.
const MAX_QUERY: usize = 4096;

/// Receives and answers until told to stop.
pub(super) async fn serve(socket: UdpSocket, handler: Arc<Handler>, stop: CancellationToken) {
    let mut buffer = vec![0; MAX_QUERY];
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let received = tokio::select! {
            biased;
            () = &mut stopped => return,
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
        let Some(reply) = exchange(&handler, &buffer[..length], client, Protocol::Udp).await else {
            continue;
        };
        if let Err(error) = socket.send_to(&reply, client).await {
            tracing::debug!(%error, %client, "DNS: a reply was not sent");
        }
    }
}
