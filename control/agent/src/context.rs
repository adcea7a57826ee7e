//! What every server of the agent needs to know about it.

use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use wharf_registry::model::{Str, StrMap};

use crate::{
    config::RuntimeConfig,
    telemetry::{logs::Logs, recorder::Recorder},
};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of Consul whose API this agent answers. Clients compare it with what they need.
pub const CONSUL_VERSION: &str = "1.21.5";

/// The identity of this node. Fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: Str,
    /// A UUID.
    pub id: Str,
    pub datacenter: Str,
    /// The address under which others reach this node.
    pub address: Str,
    pub tagged_addresses: StrMap,
    pub meta: StrMap,
    pub server: bool,
}

/// The running agent, for endpoints that show or change the agent itself.
#[derive(Debug)]
pub struct AgentContext {
    /// As of the start or the last reload.
    pub config: ArcSwap<RuntimeConfig>,
    pub logs: Logs,
    pub recorder: Recorder,
    pub control: mpsc::Sender<Control>,
    pub started: Instant,
}

/// Takes what became of leaving.
pub type Left = oneshot::Sender<Result<(), String>>;

/// What a request may ask of the agent as a whole.
#[derive(Debug)]
pub enum Control {
    /// Read the configuration again; answered when it is in force, or with what is wrong with it.
    Reload(oneshot::Sender<Result<(), String>>),
    /// Leave the cluster and end; answered when this agent has left, or with why it has not. It ends in both cases.
    Leave(Left),
}
