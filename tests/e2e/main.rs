//! End-to-end tests: what users do, with the binary they have.
//!
//! Every module is one of their occupations. A test starts its own agent on its own ports and
//! leaves nothing behind.

#![forbid(unsafe_code)]

mod blocking;
mod checks;
mod conformance;
mod durability;
mod lifecycle;
mod registry;
mod sidecar;
