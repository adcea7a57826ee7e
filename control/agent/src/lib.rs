//! The node: local services and their checks, kept equal to the catalog; the HTTP, gRPC and DNS
//! servers over the registry.

#![forbid(unsafe_code)]

pub mod anti_entropy;
pub mod authz;
mod banner;
pub mod calendar;
pub mod checks;
mod client;
pub mod cluster;
pub mod config;
pub mod config_entry;
pub mod context;
pub mod definition;
pub mod grpc;
mod housekeeping;
pub mod http;
pub mod jobspec;
pub mod local;
pub mod platform;
pub mod rates;
mod run;
pub mod server;
pub(crate) mod servers;
pub mod snapshot;
mod sockets;
pub mod telemetry;
mod tls;
mod watches;

pub use run::{RunError, run};
pub use sockets::SocketError;
pub use tls::{ServerTls, TlsError};
