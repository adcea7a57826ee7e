//! Netlink (RFC 3549) as far as the launcher needs it: one encoder of messages, one bounded parser, one
//! blocking socket, for both the routing and the netfilter family.
//!
//! The launcher speaks some ten kinds of messages. A crate for each family would bring an asynchronous
//! connection that a thread inside another network namespace cannot use, and types for hundreds of
//! attributes that nobody sets here.

mod message;
mod socket;

pub(super) use message::{Fields, Message, attributes, u32_of};
pub use socket::NetlinkError;
pub(super) use socket::Socket;

/// Flags of a request (`linux/netlink.h`).
pub(super) mod flag {
    pub(in crate::network) const REQUEST: u16 = 0x001;
    pub(in crate::network) const ACK: u16 = 0x004;
    /// `NLM_F_ROOT | NLM_F_MATCH`: all objects.
    pub(in crate::network) const DUMP: u16 = 0x300;
    pub(in crate::network) const EXCL: u16 = 0x200;
    pub(in crate::network) const CREATE: u16 = 0x400;
    pub(in crate::network) const APPEND: u16 = 0x800;
}
