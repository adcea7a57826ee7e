//! The life of an agent: configuration, sockets, state, servers; and the end. What happens in between is in
//! [`reload`].
//!
//! The order of the start is that of what can fail: the configuration is complete, then every socket
//! is bound, then the data directory is opened, and only then anything is served. An error on the
//! way ends the start with one message and leaves nothing behind.

mod definitions;
mod dns;
mod files;
mod identity;
mod raft;
mod reload;
mod role;
mod settings;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_dns::DnsServer;
use wharf_registry::consensus::StartError;

use self::{
    dns::{DnsVisibility, zone},
    files::{Leftovers, log_output},
    identity::{catalog_node, node_info, node_uuid},
    reload::Signals,
    role::Role,
    settings::{http_settings, level, local_options},
};
use crate::{
    authz::{AllowAll, Authorizer},
    banner,
    checks::CheckRunner,
    cluster::Cluster,
    config::{self, AgentFlags, ConfigError, RuntimeConfig},
    context::AgentContext,
    grpc::{self, GrpcContext, GrpcListener},
    http::{HttpContext, HttpServer},
    local::{self, LocalState},
    platform::{
        IdleNode, Platform, PlatformError, PlatformSockets, images::Images, scheduling::Decisions,
    },
    rates::Rates,
    servers::ForAgents,
    snapshot::Snapshots,
    sockets::{ListenerTls, SocketError, Sockets},
    telemetry::{
        logs::{LogFormat, Logs},
        recorder::Recorder,
    },
    watches::Watches,
};

/// How long the servers may take to let go of their clients.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Consensus(#[from] StartError),
    #[error("the agent's own services and checks cannot be kept: {0}")]
    Local(#[from] local::StoreError),
    #[error("{0}")]
    Dns(#[from] wharf_dns::InvalidZone),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the node id in {path} is {text:?}, which is no UUID: repair or remove the file")]
    NodeId { path: PathBuf, text: String },
    #[error("the asynchronous runtime does not start: {0}")]
    Runtime(io::Error),
}

/// Runs an agent until it is told to end. Blocks.
pub fn run(flags: AgentFlags) -> Result<(), RunError> {
    let loaded = config::load(&flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("wharf")
        .build()
        .map_err(RunError::Runtime)?;
    let result = runtime.block_on(Agent::run(flags, loaded));
    // Whatever still runs after the drain is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// What the main loop changes on a reload, and takes down at the end.
struct Agent {
    flags: AgentFlags,
    http: Arc<HttpContext>,
    dns: Option<DnsServer>,
    cluster: Arc<dyn Cluster>,
    tls: ListenerTls,
    watches: Watches,
}

impl Agent {
    async fn run(flags: AgentFlags, loaded: config::Loaded) -> Result<(), RunError> {
        let started = Instant::now();
        let config = loaded.config;
        let mut signals = Signals::new().map_err(RunError::Runtime)?;
        let mut leftovers = Leftovers::default();
        let sockets = Sockets::bind(&config)?;
        leftovers.extend(sockets.socket_files());
        if let Some(path) = &config.pid_file {
            leftovers.write_pid_file(path)?;
        }
        let output = log_output(&config)?;
        let node_uuid = node_uuid(&config)?;
        let listening = sockets.listening.clone();
        let recorder = Recorder::install();
        let node = node_info(&config, node_uuid);

        let rates = Rates::default();
        let mut role = Role::start(&config, &sockets, &node, node_uuid, &rates).await?;
        let cluster = role.cluster(&config);
        let local = LocalState::open(local_options(&config), catalog_node(&node))?;

        // Nothing can fail from here on: the log begins.
        let format = if config.log.json {
            LogFormat::Json
        } else {
            LogFormat::Text
        };
        banner::print(&config, &node, &listening);
        let logs = Logs::install(level(config.reloadable.log_level), format, output);
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        local.restore();
        role.tell_of_recovery();
        for ignored in &loaded.ignored_keys {
            tracing::info!(
                "{} ({}) has no effect: {}",
                ignored.key,
                ignored.position,
                ignored.reason
            );
        }

        let (platform, mut of_platform) = platform(&config, &local, &cluster);
        let images = match &platform {
            Ok(platform) => platform.images.clone(),
            Err(reason) => Images::closed(&reason.to_string()),
        };
        let scratch = config.data_dir.clone().unwrap_or_else(std::env::temp_dir);
        let snapshots = Snapshots::new(scratch);
        let mut sockets = sockets;
        sockets
            .grpc
            .extend(of_platform.grpc.take().map(GrpcListener::Unix));
        if let Some((udp, tcp)) = of_platform.dns.take() {
            sockets.dns_udp.push(udp);
            sockets.dns_tcp.push(tcp);
        }

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let authorizer: Arc<dyn Authorizer> = Arc::new(AllowAll);
        let (control, mut requests) = mpsc::channel(8);
        let settings = http_settings(&config, rates.clone());
        let dns = match sockets.dns_udp.is_empty() {
            true => None,
            false => Some(DnsServer::start(
                zone(&config),
                role.names(&cluster),
                Arc::new(DnsVisibility::new(&*authorizer, &config)),
                std::mem::take(&mut sockets.dns_udp),
                std::mem::take(&mut sockets.dns_tcp),
            )?),
        };
        let decisions = Decisions::default();
        let http = Arc::new(HttpContext {
            cluster: cluster.clone(),
            local: local.clone(),
            images,
            snapshots,
            allocs: platform
                .as_ref()
                .ok()
                .map(|platform| platform.dirs.allocs()),
            agent: Arc::new(AgentContext {
                config: ArcSwap::from_pointee(config),
                logs: logs.clone(),
                recorder,
                control,
                started,
            }),
            authorizer: authorizer.clone(),
            node: Arc::new(node.clone()),
            decisions: decisions.clone(),
            settings: ArcSwap::from_pointee(settings),
            shutdown: shutdown.clone(),
        });
        let grpc = GrpcContext {
            cluster: cluster.clone(),
            local: local.clone(),
            authorizer,
            node,
            limits: grpc::Limits::default(),
            rates,
        };
        let config = http.agent.config.load_full();
        let for_agents = ForAgents {
            cluster: cluster.clone(),
            http: http.clone(),
            grpc: Arc::new(grpc.clone()),
        };
        role.serve(&config, &mut sockets, for_agents);
        let mut agent = Agent {
            flags,
            http: http.clone(),
            dns,
            cluster: cluster.clone(),
            tls: sockets.tls,
            watches: Watches::new(http.clone(), tasks.clone(), shutdown.clone()),
        };

        let entropy = role.anti_entropy(&local, &cluster);
        agent.apply_definitions(&config).await;
        if let Ok(platform) = &platform {
            platform.services.adopt().await;
        }
        // These outlive the servers: what a client changed last still reaches the catalog. They begin when
        // all definitions are in force: what is not there yet would be deregistered.
        let settle = CancellationToken::new();
        let entropy_stop = settle.child_token();
        let entropy = tasks.spawn(entropy.run(entropy_stop.clone()));
        let runner = CheckRunner::new(local.clone(), cluster.clone(), config.scripts);
        tasks.spawn(runner.run(settle.clone()));
        role.keep_house(&config, &cluster, decisions, &tasks, &settle);

        let grpc_server = tasks.spawn(grpc::serve(sockets.grpc, grpc, shutdown.clone()));
        let http_server = HttpServer::start(http.clone(), sockets.http);
        agent.watches.replace(&config.reloadable.watches);

        let node_stop = CancellationToken::new();
        let node_loop = match &platform {
            Ok(platform) => {
                let node_loop = platform.node_loop(&config, &http.node.id, cluster.clone());
                Some(tokio::spawn(node_loop.run(node_stop.clone())))
            }
            Err(PlatformError::Disabled) => None,
            Err(reason) => {
                let (id, name) = (&http.node.id, &config.node_name);
                let reason = reason.to_string();
                let address = config.advertise_addr;
                let idle = IdleNode::new(cluster.clone(), id, name, address, &reason);
                Some(tokio::spawn(idle.run(node_stop.clone())))
            }
        };

        let (end, asked) = agent.until_told_to_end(&mut signals, &mut requests).await;
        tracing::info!(reason = %end, "the agent is shutting down");
        // First, while everything serves: what this agent takes along leaves the catalog, and its proxies, as planned.
        node_stop.cancel();
        if let Some(node_loop) = node_loop
            && let Err(error) = node_loop.await
        {
            tracing::error!(%error, "the allocations of this node were left as they are");
        }
        let leaves = end.leaves(&http.agent.config.load());
        if leaves {
            // What leaves the catalog is not put back.
            entropy_stop.cancel();
            if tokio::time::timeout(DRAIN, entropy).await.is_err() {
                tracing::warn!("the latest changes of this agent have not reached the catalog");
            }
        }
        let left = role.retire(&*cluster, leaves).await;
        if let Err(reason) = &left {
            tracing::warn!("{reason}");
        }
        if let Some(asked) = asked {
            // Who asked may have gone. If not, the answer goes out while the servers drain.
            let _ = asked.send(left);
        }
        shutdown.cancel();
        let served = async {
            http_server.stopped().await;
            match grpc_server.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the gRPC server ended badly"),
                Err(error) => tracing::warn!(%error, "the gRPC server ended badly"),
            }
            if let Some(dns) = agent.dns.take() {
                dns.shutdown().await;
            }
        };
        if tokio::time::timeout(DRAIN, served).await.is_err() {
            tracing::warn!("some clients were cut off");
        }
        settle.cancel();
        tasks.close();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!("some work of the agent was cut off");
        }
        if let Err(error) = local.save().await {
            tracing::error!(%error, "the latest local changes are not on disk");
        }
        role.stop().await;
        if let Ok(platform) = &platform {
            platform.dirs.close();
        }
        tracing::info!("the agent has ended");
        Ok(())
    }
}

/// The platform, if this node can have it. If it cannot, the agent serves everything else.
fn platform(
    config: &RuntimeConfig,
    local: &LocalState,
    cluster: &Arc<dyn Cluster>,
) -> (Result<Platform, PlatformError>, PlatformSockets) {
    let reason = match Platform::open(config, local.clone(), cluster.clone()) {
        Ok((platform, sockets)) => return (Ok(platform), sockets),
        Err(reason) => reason,
    };
    match reason {
        PlatformError::Disabled | PlatformError::NoRoot => {
            tracing::info!(%reason, "this node runs no allocations");
        }
        _ => tracing::warn!(%reason, "this node runs no allocations"),
    }
    (Err(reason), PlatformSockets::default())
}
