//! The DNS server: Consul's names, answered from a read view of the registry.
//!
//! [`name`] reads a query name, [`answer`] turns it into records: a pure function of view, settings
//! and question. [`server`] puts it on sockets. The wire format is hickory's; the loops around it
//! are ours, because hickory-server 0.26 has no bound on connections or queries in flight, ends a
//! listener on the first `accept` error and logs two lines per query.
//!
//! Sources: RFC 1034/1035, 2181, 2308, 2782 (SRV), 6891 (EDNS), 8020 (NXDOMAIN), 8906 (odd
//! requests), and Consul's documented DNS interface with the behaviour of Consul 1.8.7 as oracle.
//! Where the two disagree on what a resolver may cache, the RFC wins; see [`answer`] for the list.

#![forbid(unsafe_code)]

pub mod answer;
pub mod catalog;
mod metering;
pub mod name;
mod screen;
pub mod server;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod visibility;

pub use answer::{Answer, Limits, Question, Source, Transport, answer};
pub use catalog::{Catalog, Partial};
pub use server::{DnsServer, ServerLimits};
pub use settings::{InvalidZone, SoaSettings, Zone, ZoneSettings};
pub use visibility::{Everything, Visibility};
