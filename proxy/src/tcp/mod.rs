//! Layer 4: accepting, connecting, and moving bytes without reading them.

mod accept;
mod connect;
mod copy;

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

pub(crate) use self::{
    accept::{accept, listen},
    connect::{Attempts, ConnectError, InFlight, Slot},
    copy::Copy,
};
use crate::{
    config::Listener,
    metrics::{Refusal, Shard},
    worker::{Cell, Worker},
};

/// Serves one accepted connection of a `tcp` listener to its end.
pub(crate) async fn serve(worker: Arc<Worker>, cell: Arc<Cell>, client: TcpStream) {
    let listener = cell.listener();
    let traffic = Arc::clone(&listener.traffic);
    let shard = traffic.shard(worker.id);
    let Some((upstream, slot, in_flight)) = reach(&worker, &listener, shard, &client).await else {
        return;
    };
    // The connection may live for days: it must not keep its snapshot alive.
    drop(listener);
    tunnel(Copy::new(client, upstream), &worker, &cell, shard).await;
    drop((slot, in_flight));
}

async fn reach(
    worker: &Worker,
    listener: &Listener,
    shard: &Shard,
    client: &TcpStream,
) -> Option<(TcpStream, Slot, InFlight)> {
    let cluster = &listener.cluster;
    let Some(slot) = Slot::take(cluster) else {
        refuse(client, shard, Refusal::Overloaded);
        return None;
    };
    let mut attempts = Attempts::default();
    loop {
        if attempts.any_failed() {
            shard.retries.fetch_add(1, Relaxed);
        }
        match attempts.next(worker, cluster) {
            Ok(endpoint) => {
                let in_flight = InFlight::new(&endpoint.state);
                if let Some(upstream) = attempts
                    .connect(endpoint, cluster.connect_timeout, shard)
                    .await
                {
                    return Some((upstream, slot, in_flight));
                }
            }
            Err(error) => {
                let why = match error {
                    ConnectError::NoInstance { .. } => Refusal::NoInstance,
                    ConnectError::AllFailed { .. } => Refusal::ConnectFailed,
                    ConnectError::Overloaded { .. } => Refusal::Overloaded,
                };
                refuse(client, shard, why);
                return None;
            }
        }
    }
}

/// Closes with a reset: an orderly end would look like an empty answer.
fn refuse(client: &TcpStream, shard: &Shard, why: Refusal) {
    shard.refuse(why);
    // On failure the close is an orderly one.
    let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
}

/// Copies until both ends are done, nothing has moved for the idle time, or the drain is forced.
pub(crate) async fn tunnel(mut copy: Copy, worker: &Worker, cell: &Cell, shard: &Shard) {
    let idle = worker.tuning.tunnel_idle;
    let mut sleep = pin!(sleep_until(Instant::now() + idle));
    // Whether anything moved since the timer was set. The timer is set again only when it fires, so a silent
    // connection ends after one to two idle times and a busy one never touches the timer.
    let mut moved = false;
    let ended = cell.drain.run(|cx, _| {
        let done = copy.poll(cx, |from_client, from_upstream| {
            moved = true;
            shard.bytes_received.fetch_add(from_client, Relaxed);
            shard.bytes_sent.fetch_add(from_upstream, Relaxed);
        });
        if done.is_ready() {
            return done.map(drop);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut moved) {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + idle);
        }
        Poll::Pending
    });
    // Ended or forced, the sockets close here. Errors of either peer are theirs.
    ended.await;
}
