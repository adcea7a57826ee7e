//! The replicated state of the whole platform.
//!
//! [`model`] names the objects, [`state`] changes them (pure and deterministic), [`view`] reads them
//! without locks, [`watch`] says when to read again, and the rooms below replicate and keep them.
//! There is no HTTP, no DNS and no clock in here: time reaches the state machine inside commands.

#![forbid(unsafe_code)]

pub mod command;
pub mod consensus;
pub mod log;
pub mod mirror;
pub mod model;
pub mod pieces;
pub mod replica;
pub mod snapshot;
pub mod state;
pub mod view;
pub mod watch;

pub use command::{Command, Outcome};
pub use consensus::{Consensus, ConsensusConfig};
pub use mirror::Mirror;
pub use replica::{Committed, Registry, Replica};
pub use view::View;
