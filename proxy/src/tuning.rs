//! The numbers that bound what one connection may cost. One place, so that they can be read, and shortened in tests.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// From the first byte of a request's head to its end; also how long a new HTTP connection may stay silent.
    pub(crate) header_timeout: Duration,
    /// How long a client's HTTP connection may be without a request. Longer than the idle time of common client
    /// pools, so that it is the client who closes and no request meets a closing connection.
    pub(crate) client_idle: Duration,
    /// How long a connection to an instance is kept for the next request. Shorter than what common servers allow.
    pub(crate) upstream_idle: Duration,
    /// How long a TCP connection or tunnel may be silent in both directions.
    pub(crate) tunnel_idle: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(15),
            client_idle: Duration::from_secs(75),
            upstream_idle: Duration::from_secs(15),
            tunnel_idle: Duration::from_secs(3600),
        }
    }
}

/// Of one request's head, in bytes.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// Of HTTP/2 header lists, in bytes. The same reason, a smaller default, as other proxies have it.
pub(crate) const MAX_H2_HEADER_LIST: u32 = 16 * 1024;
/// Streams of one HTTP/2 connection at a time, in both roles.
pub(crate) const MAX_H2_STREAMS: u32 = 100;
/// A stream's window is a quarter of its connection's, so that one slow reader does not stop the others.
pub(crate) const H2_STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Of a request body that is kept to be sent again.
pub(crate) const MAX_REPLAY: usize = 64 * 1024;
/// Idle connections kept per instance and worker.
pub(crate) const MAX_IDLE_PER_ENDPOINT: usize = 1024;
