//! Queries over TCP (RFC 7766): each message behind its length, answered in order.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hickory_server::net::xfer::Protocol;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Handler, ServerLimits, exchange::exchange, rest};

/// The largest query that is read; a longer one ends its connection.
const MAX_QUERY: usize = 4096;

/// Accepts connections until told to stop, then waits for those that are answering.
pub(super) async fn serve(
    listener: TcpListener,
    handler: Arc<Handler>,
    slots: Arc<Slots>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => match slots.take(client.ip()) {
                Some(slot) => {
                    let (handler, stop) = (handler.clone(), stop.clone());
                    connections.spawn(async move {
                        handler.metering.tcp_connections.increment(1);
                        converse(stream, client, &handler, slot.idle(), &stop).await;
                        handler.metering.tcp_connections.decrement(1);
                    });
                }
                None => handler.metering.tcp_refused.increment(1),
            },
            // The connection went before it was accepted: nothing is wrong here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Most often too many open files: wait for some to close.
            Err(error) => {
                if !rest(&stop, "accepting", &error).await {
                    break;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers the queries of one connection until it ends, idles or breaks a rule.
async fn converse(
    stream: TcpStream,
    client: SocketAddr,
    handler: &Handler,
    idle: Duration,
    stop: &CancellationToken,
) {
    // Replies are written whole; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::with_capacity(MAX_QUERY, stream);
    let mut query = Vec::new();
    loop {
        let read = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            read = timeout(idle, read_query(&mut stream, &mut query)) => read,
        };
        let Ok(Ok(())) = read else { return };
        let Some(reply) = exchange(handler, &query, client, Protocol::Tcp).await else {
            return;
        };
        let Ok(length) = u16::try_from(reply.len()) else {
            return;
        };
        let mut message = Vec::with_capacity(2 + reply.len());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&reply);
        match timeout(idle, stream.write_all(&message)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

async fn read_query(stream: &mut BufReader<TcpStream>, query: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    query.resize(length, 0);
    stream.read_exact(query).await?;
    Ok(())
}

/// The connections that may be open at once.
#[derive(Debug)]
pub(super) struct Slots {
    limits: ServerLimits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One open connection. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    client: IpAddr,
}

impl Slots {
    pub(super) fn new(limits: ServerLimits) -> Arc<Slots> {
        Arc::new(Slots {
            limits,
            taken: Mutex::default(),
        })
    }

    /// `None`: there are as many connections as there may be, in all or from this client.
    fn take(self: &Arc<Slots>, client: IpAddr) -> Option<Slot> {
        let client = client.to_canonical();
        let mut taken = self.lock();
        let own = taken.by_client.get(&client).copied().unwrap_or(0);
        if taken.all >= self.limits.tcp_connections || own >= self.limits.tcp_connections_per_client
        {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, own + 1);
        Some(Slot {
            slots: self.clone(),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn idle(&self) -> Duration {
        self.slots.limits.tcp_idle
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_in_all_and_per_client_and_come_back() {
        let slots = Slots::new(ServerLimits {
            tcp_connections: 3,
            tcp_connections_per_client: 2,
            ..ServerLimits::default()
        });
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = slots.take(one).unwrap();
        let _second = slots.take("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(slots.take(one).is_none(), "per client");
        let third = slots.take(other).unwrap();
        assert!(slots.take(other).is_none(), "in all");
        drop(first);
        assert!(slots.take(one).is_some());
        drop(third);
        assert!(!slots.lock().by_client.contains_key(&other));
    }
}
