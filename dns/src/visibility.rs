//! What a client of the DNS server may see.
//!
//! DNS carries no token, so one decision is made per server: the agent's DNS token, or the
//! anonymous one. What is not visible does not exist: the answer is NXDOMAIN, as in Consul.

use std::fmt;

/// Decides for one server, per query and per instance; must be cheap and must not block.
pub trait Visibility: fmt::Debug + Send + Sync {
    /// Whether instances of the service may be named. The name is in the case it was registered in
    /// or asked for.
    fn service_visible(&self, name: &str) -> bool;

    /// Whether the node, and instances on it, may be named.
    fn node_visible(&self, name: &str) -> bool;
}

/// Shows all there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everything;

impl Visibility for Everything {
    fn service_visible(&self, _name: &str) -> bool {
        true
    }

    fn node_visible(&self, _name: &str) -> bool {
        true
    }
}
