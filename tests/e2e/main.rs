//! End-to-end tests: what users do, with the binary they have.
//!
//! Every module is one of their occupations. A test starts its own agent on its own ports and
//! leaves nothing behind.

#![forbid(unsafe_code)]

mod bad_input;
mod blocking;
mod chaos;
mod checks;
mod cluster;
mod command;
mod conformance;
mod containers;
mod demo;
mod durability;
mod grpc;
mod idle;
mod images;
mod jobs;
mod lifecycle;
mod platform;
mod registry;
mod sidecar;
mod sidecar_registration;
mod slow_reader;
mod snapshots;
mod tls;
mod watch;
mod watching;
