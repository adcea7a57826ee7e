//! What a server runs on: its tasks, the clock by which leases are counted, the dice for elections.
//!
//! That is tokio. Only under this room's own tests it is a runtime on which servers are stopped and go on, are killed,
//! have clocks that run fast or slow, and throw the same dice again (`tests/process.rs`). Whatever a server does by itself
//! is begun here, so that it belongs to that server.

use openraft::AsyncRuntime;
use tokio::task::JoinHandle;

#[cfg(not(test))]
pub(super) type Runtime = openraft::impls::TokioRuntime;
#[cfg(test)]
pub(super) use super::tests::process::Runtime;

/// A reading of the clock that leases are counted by.
pub(super) type Instant = <Runtime as AsyncRuntime>::Instant;

pub(super) fn now() -> Instant {
    <Instant as openraft::Instant>::now()
}

pub(super) async fn sleep_until(at: Instant) {
    Runtime::sleep_until(at).await;
}

pub(super) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    Runtime::spawn(task)
}

#[cfg(test)]
pub(super) use super::tests::process::spawn_blocking;
#[cfg(test)]
pub(super) use super::tests::watch;
/// Tells of changes of one value.
#[cfg(not(test))]
pub(super) use tokio::sync::watch;

/// Does work that blocks, where it holds up nothing else.
#[cfg(not(test))]
pub(super) use tokio::task::spawn_blocking;
