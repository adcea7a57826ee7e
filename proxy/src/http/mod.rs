//! Layer 7: HTTP/1.1 and HTTP/2 from clients on one port, either to the instances.
//!
//! On hyper's connection types directly. The connection to an HTTP/1.1 instance is no task of its own: it is polled
//! by the request that uses it, then by the body of its response, and by nobody while it is idle in the pool. So one
//! client connection is one task on one thread, and a request crosses no queue between threads.

mod body;
mod connection;
mod forward;
mod headers;
mod io;
mod pool;
mod reply;
mod upstream;

#[cfg(test)]
pub(crate) use self::forward::handle;
pub(crate) use self::{connection::serve, pool::Pool};
