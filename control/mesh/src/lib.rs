//! The control side of the mesh: what a proxy is told, computed from the registry.
//!
//! Pure functions over an immutable [`View`](wharf_registry::View): [`describe`] finds out what a
//! proxy is, [`compile`] what it has to do, [`update`] what changed since it was last told. Nothing
//! in here waits, and nothing touches a socket; the agent does that around it.
//!
//! Until the mesh has identities, everything is plain text: an upstream leads to the application
//! instances directly, never to the proxies before them, and an inbound listener keeps to loopback
//! unless the proxy's `bind_address` says otherwise.

#![forbid(unsafe_code)]

mod compile;
mod describe;
mod settings;
#[cfg(test)]
mod testing;
mod update;

pub use compile::{Compiled, compile};
pub use describe::{DescribeError, Place, ProxyDescription, Violation, describe};
pub use update::update;
