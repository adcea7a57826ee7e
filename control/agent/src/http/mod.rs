//! Consul's HTTP API.
//!
//! [`server`] accepts connections and bounds them, [`router`] finds the endpoint of a request and
//! refuses what is none, [`blocking`] answers reads at once or on a change, and one module per
//! resource holds the endpoints. An endpoint gets a [`Request`](request::Request) whose caller is
//! known and returns a response or an error; headers, status codes of errors and limits are made
//! here, once.

mod agent;
mod agent_checks;
mod agent_services;
mod alloc_logs;
mod allocations;
mod autopilot;
mod blocking;
mod catalog;
mod compression;
mod config_entries;
mod error;
mod expression;
mod filter;
mod health;
mod images;
mod inside;
mod jobs;
mod kv;
mod members;
mod named;
mod operator;
mod platform_nodes;
mod request;
mod response;
mod router;
mod selectors;
mod server;
mod shapes;
mod snapshot;
mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;

pub(crate) use inside::{Forwarded, Inside, InsideAnswer, InsideError};
pub(crate) use request::{ChannelBody, RequestBody};
pub(crate) use response::{Body as ResponseBody, Response};
pub use server::{HttpListener, HttpServer};

use crate::{
    authz::Authorizer,
    cluster::Cluster,
    config::Network,
    context::{AgentContext, NodeInfo},
    local::LocalState,
    platform::{images::Images, scheduling::Decisions},
    rates::Rates,
    snapshot::Snapshots,
};

/// What the endpoints work with.
#[derive(Debug)]
pub struct HttpContext {
    pub cluster: Arc<dyn Cluster>,
    pub local: LocalState,
    pub images: Images,
    pub snapshots: Snapshots,
    /// The directories of this node's allocations, if it runs any.
    pub allocs: Option<PathBuf>,
    pub agent: Arc<AgentContext>,
    pub authorizer: Arc<dyn Authorizer>,
    pub node: Arc<NodeInfo>,
    /// What the scheduler of this agent decided, while it led.
    pub decisions: Decisions,
    pub settings: ArcSwap<HttpSettings>,
    /// Cancelled when the agent stops: parked reads answer at once.
    pub shutdown: CancellationToken,
}

impl HttpContext {
    /// Whether the answer to a request is indented: `?pretty`, or always, as on a dev agent.
    fn pretty(&self, request: &request::Request) -> bool {
        self.settings.load().pretty || request.query.has("pretty")
    }
}

/// What of the configuration concerns the API. Replaced whole on a reload.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Indent every JSON answer (`-dev`).
    pub pretty: bool,
    pub default_query_time: Duration,
    pub max_query_time: Duration,
    /// The longest value of a key, in bytes.
    pub kv_max_value_size: usize,
    /// Added to every answer.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Path prefixes that are refused.
    pub block_endpoints: Vec<String>,
    /// Client addresses that may write; empty: all may.
    pub allow_write_from: Vec<Network>,
    /// Connections that one client address may hold.
    pub max_conns_per_client: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How many requests a second are served.
    pub rates: Rates,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            pretty: false,
            default_query_time: Duration::from_secs(300),
            max_query_time: Duration::from_secs(600),
            kv_max_value_size: 512 * 1024,
            response_headers: Vec::new(),
            block_endpoints: Vec::new(),
            allow_write_from: Vec::new(),
            max_conns_per_client: 200,
            handshake_timeout: Duration::from_secs(5),
            rates: Rates::default(),
        }
    }
}

#[cfg(test)]
mod tests;
