//! A worker's connections to instances, between requests.
//!
//! The last one used is the next one used: the others age, and are closed when they were idle for long. The locks are
//! never contended, they only let the worker be shared by its tasks.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::upstream::{H1, H2, H2Request};
use crate::tuning::MAX_IDLE_PER_ENDPOINT;

type ByEndpoint<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Default)]
pub(crate) struct Pool {
    // Boxed: a connection goes from hand to hand with every request, and only its address moves.
    #[expect(clippy::vec_box)]
    http1: Mutex<ByEndpoint<Vec<Box<H1>>>>,
    http2: Mutex<ByEndpoint<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Vec<H2>,
    /// Held while connecting, so that a burst of requests makes one connection and not one each.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

/// Endpoint ids are a counter: spread over the whole word they need no stronger hash, and nobody outside chooses them.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The connection to this instance that was used last. It may have been closed meanwhile: sending on it tells.
    pub(crate) fn take(&self, endpoint: u64) -> Option<Box<H1>> {
        lock(&self.http1).get_mut(&endpoint)?.pop()
    }

    /// Keeps a connection for the next request, unless its instance has left, enough are kept, or a request of
    /// another worker waits for one.
    pub(crate) fn put(&self, connection: Box<H1>, worker: usize) {
        let cluster = Arc::clone(connection.slot.cluster());
        if connection.endpoint.retired.load(Relaxed) || cluster.waits_elsewhere(worker) {
            return;
        }
        let mut pool = lock(&self.http1);
        let idle = pool.entry(connection.endpoint.id).or_default();
        if idle.len() < MAX_IDLE_PER_ENDPOINT {
            idle.push(connection);
        }
        drop(pool);
        if cluster.waits_here(worker) {
            cluster.released.notify_waiters();
        }
    }

    /// A share of the least busy open connection to this instance, if it carries fewer than `streams`.
    pub(crate) fn share(&self, endpoint: u64, streams: u32) -> Option<H2Request> {
        let mut pool = lock(&self.http2);
        let open = &mut pool.get_mut(&endpoint)?.open;
        open.retain(H2::is_open);
        open.iter()
            .filter(|c| c.streams() < streams)
            .min_by_key(|c| c.streams())
            .map(H2::request)
    }

    pub(crate) fn add(&self, connection: H2) -> H2Request {
        let request = connection.request();
        if !connection.endpoint.retired.load(Relaxed) {
            lock(&self.http2)
                .entry(connection.endpoint.id)
                .or_default()
                .open
                .push(connection);
        }
        request
    }

    pub(crate) fn connecting(&self, endpoint: u64) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&lock(&self.http2).entry(endpoint).or_default().connecting)
    }

    /// Closes what was idle for `max_idle`, what the instance closed, and what belongs to instances that have left.
    pub(crate) fn sweep(&self, worker: usize, max_idle: Duration) {
        let now = Instant::now();
        self.retain_http1(|c| {
            now.duration_since(c.idle_since) < max_idle
                && !c.endpoint.retired.load(Relaxed)
                && !c.slot.cluster().waits_elsewhere(worker)
                && c.is_open()
        });
        lock(&self.http2).retain(|_, shared| {
            shared.open.retain_mut(|c| {
                if c.streams() > 0 {
                    c.idle_since = now;
                }
                // Without its handle the connection ends after its last stream.
                c.is_open()
                    && !c.endpoint.retired.load(Relaxed)
                    && now.duration_since(c.idle_since) < max_idle.max(Duration::from_secs(60))
            });
            !shared.open.is_empty() || Arc::strong_count(&shared.connecting) > 1
        });
    }

    /// Closes idle connections of clusters that are at their limit and wanted by another worker.
    pub(crate) fn yield_to_others(&self, worker: usize) {
        self.retain_http1(|c| !c.slot.cluster().waits_elsewhere(worker));
    }

    pub(crate) fn clear(&self) {
        lock(&self.http1).clear();
        lock(&self.http2).clear();
    }

    fn retain_http1(&self, mut keep: impl FnMut(&mut H1) -> bool) {
        // Dropped after the lock is released: closing sockets takes system calls.
        let mut closed = Vec::new();
        let mut pool = lock(&self.http1);
        for id in pool.keys().copied().collect::<Vec<_>>() {
            let Entry::Occupied(mut idle) = pool.entry(id) else {
                continue;
            };
            closed.extend(idle.get_mut().extract_if(.., |c| !keep(c)));
            if idle.get().is_empty() {
                idle.remove();
            }
        }
        drop(pool);
        drop(closed);
    }
}
