//! The answer function on sockets.
//!
//! UDP: one task for each socket receives, answers and sends, one query after the other: answering
//! neither waits nor blocks, so nothing queues but in the kernel. Where the catalog is
//! [partial](crate::Partial) an answer that has to wait does so aside, within a bound. TCP: one task for each connection,
//! with a cap on connections, in all and per client, and a time within which a client has to ask.
//!
//! hickory-server logs two lines for each query under its own server, which is not used here; its
//! log filter should still be `hickory_server=warn`, as it reports what strangers send.

mod exchange;
mod handler;
mod tcp;
mod udp;

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::handler::Handler;
use crate::{
    catalog::Catalog,
    settings::{InvalidZone, Zone, ZoneSettings},
    visibility::Visibility,
};

/// What strangers may take of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// TCP connections at once, over all listeners; more are closed at once.
    pub tcp_connections: usize,
    /// Of these, from one address.
    pub tcp_connections_per_client: usize,
    /// How long a connection may take from one whole query to the next, and to take an answer.
    pub tcp_idle: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            tcp_connections: 1024,
            tcp_connections_per_client: 256,
            tcp_idle: Duration::from_secs(10),
        }
    }
}

/// A running DNS server. Dropping it ends it at once; see [`DnsServer::shutdown`].
#[derive(Debug)]
pub struct DnsServer {
    zone: Arc<ArcSwap<Zone>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl DnsServer {
    /// Serves on sockets that are bound already, within the default [`ServerLimits`]. Must be called
    /// within a tokio runtime.
    pub fn start(
        settings: ZoneSettings,
        catalog: Arc<dyn Catalog>,
        visibility: Arc<dyn Visibility>,
        udp: Vec<UdpSocket>,
        tcp: Vec<TcpListener>,
    ) -> Result<DnsServer, InvalidZone> {
        let limits = ServerLimits::default();
        Self::start_within(limits, settings, catalog, visibility, udp, tcp)
    }

    /// As [`DnsServer::start`], within other limits.
    pub fn start_within(
        limits: ServerLimits,
        settings: ZoneSettings,
        catalog: Arc<dyn Catalog>,
        visibility: Arc<dyn Visibility>,
        udp: Vec<UdpSocket>,
        tcp: Vec<TcpListener>,
    ) -> Result<DnsServer, InvalidZone> {
        let zone = Arc::new(ArcSwap::from_pointee(checked(settings)?));
        let handler = Arc::new(Handler::new(zone.clone(), catalog, visibility));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for socket in udp {
            tasks.spawn(udp::serve(socket, handler.clone(), stop.clone()));
        }
        let slots = tcp::Slots::new(limits);
        for listener in tcp {
            let serve = tcp::serve(listener, handler.clone(), slots.clone(), stop.clone());
            tasks.spawn(serve);
        }
        Ok(DnsServer { zone, stop, tasks })
    }

    /// Answers by other settings from the next query on. Settings that cannot be served change
    /// nothing.
    pub fn reload(&self, settings: ZoneSettings) -> Result<(), InvalidZone> {
        if *self.zone.load().settings() != settings {
            self.zone.store(Arc::new(checked(settings)?));
        }
        Ok(())
    }

    /// Stops listening, lets answers that are under way go out, and returns when all is closed.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn checked(settings: ZoneSettings) -> Result<Zone, InvalidZone> {
    let zone = Zone::new(settings)?;
    let recursors = &zone.settings().recursors;
    if !recursors.is_empty() {
        tracing::warn!(
            ?recursors,
            "recursors are configured, but asking them is not built yet: \
             names outside the zone are refused"
        );
    }
    Ok(zone)
}

/// How long a loop rests after the operating system refused it something, so that an error that
/// stays does not take a core.
const REST: Duration = Duration::from_millis(100);

/// Reports the error and rests. Returns whether to go on.
async fn rest(stop: &CancellationToken, what: &'static str, error: &io::Error) -> bool {
    tracing::warn!(%error, "DNS: {what} failed, going on");
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(REST) => true,
    }
}

#[cfg(test)]
mod tests;
