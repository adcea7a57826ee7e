//! The life of an agent: configuration, sockets, state, servers; reload; and the end.
//!
//! The order of the start is that of what can fail: the configuration is complete, then every socket
//! is bound, then the data directory is opened, and only then anything is served. An error on the
//! way ends the start with one message and leaves nothing behind.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::level_filters::LevelFilter;
use uuid::Uuid;
use wharf_dns::{DnsServer, Visibility, ZoneSettings};
use wharf_registry::{
    Command,
    command::ConfigCommand,
    consensus::{Consensus, ConsensusConfig, StartError, Timings},
    model::{Node, NodeService, Str, StrMap},
};

use crate::{
    anti_entropy::AntiEntropy,
    authz::{Access, AllowAll, Authorizer, Caller, Resource},
    banner,
    checks::CheckRunner,
    cluster::Cluster,
    config::{self, AgentFlags, ConfigError, LogLevel, RuntimeConfig},
    context::{AgentContext, Control, NodeInfo},
    definition::Origin,
    grpc::{self, GrpcContext},
    housekeeping,
    http::{HttpContext, HttpServer, HttpSettings},
    local::{self, CheckSpec, LocalState, Registration},
    server::Server,
    sockets::{SocketError, Sockets},
    telemetry::{
        logs::{LogFormat, LogOutput, Logs},
        recorder::Recorder,
    },
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
    #[error(
        "this agent would be a client of other servers, which is not built yet: run it as a server (-server -bootstrap -data-dir=DIR) or with -dev"
    )]
    ClientAgent,
    #[error(
        "this server would wait for {0} servers to form a cluster, which is not built yet: use -bootstrap or -bootstrap-expect=1"
    )]
    Cluster(u32),
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
}

/// Files that exist as long as the agent runs.
#[derive(Default)]
struct Leftovers(Vec<PathBuf>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a file stays behind");
            }
        }
    }
}

impl Agent {
    async fn run(flags: AgentFlags, loaded: config::Loaded) -> Result<(), RunError> {
        let started = Instant::now();
        let config = loaded.config;
        buildable(&config)?;
        let mut signals = Signals::new().map_err(RunError::Runtime)?;
        let mut leftovers = Leftovers::default();
        let sockets = Sockets::bind(&config)?;
        leftovers.0.extend(sockets.socket_files());
        if let Some(path) = &config.pid_file {
            let pid = format!("{}\n", std::process::id());
            fs::write(path, pid).map_err(|source| file_error(path, source))?;
            leftovers.0.push(path.clone());
        }
        let output = log_output(&config)?;
        let node_uuid = node_uuid(&config)?;
        let listening = sockets.listening.clone();
        let recorder = Recorder::install();
        let node = node_info(&config, node_uuid);

        let server_port = config.listen.server.map_or(8300, |address| address.port());
        let server_address = join_host_port(&config.advertise_addr.to_string(), server_port);
        let consensus = Consensus::start(ConsensusConfig {
            data_dir: config.data_dir.clone(),
            timings: Timings::single(),
            ..ConsensusConfig::single(&config.node_name, node_uuid, &server_address)
        })
        .await?;
        let cluster: Arc<dyn Cluster> = Arc::new(Server::new(
            consensus.clone(),
            server_address,
            config.rpc_hold_timeout,
        ));
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
        for ignored in &loaded.ignored_keys {
            tracing::info!(
                "{} ({}) has no effect: {}",
                ignored.key,
                ignored.position,
                ignored.reason
            );
        }

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let authorizer: Arc<dyn Authorizer> = Arc::new(AllowAll);
        let (control, mut requests) = mpsc::channel(8);
        let settings = http_settings(&config);
        let dns = match sockets.dns_udp.is_empty() {
            true => None,
            false => Some(DnsServer::start(
                zone(&config),
                cluster.registry().clone(),
                Arc::new(DnsVisibility::new(&*authorizer, &config)),
                sockets.dns_udp,
                sockets.dns_tcp,
            )?),
        };
        let http = Arc::new(HttpContext {
            cluster: cluster.clone(),
            local: local.clone(),
            agent: Arc::new(AgentContext {
                config: ArcSwap::from_pointee(config),
                logs: logs.clone(),
                recorder,
                control,
                started,
            }),
            authorizer: authorizer.clone(),
            node: Arc::new(node.clone()),
            settings: ArcSwap::from_pointee(settings),
            shutdown: shutdown.clone(),
        });
        let mut agent = Agent {
            flags,
            http: http.clone(),
            dns,
            cluster: cluster.clone(),
        };

        let entropy = AntiEntropy::of_server(
            local.clone(),
            cluster.clone(),
            NodeService {
                port: server_port,
                meta: server_meta(),
                ..NodeService::default()
            },
        );
        agent.apply_definitions(&http.agent.config.load()).await;
        // These outlive the servers: what a client changed last still reaches the catalog. They begin when
        // all definitions are in force: what is not there yet would be deregistered.
        let settle = CancellationToken::new();
        tasks.spawn(entropy.run(settle.clone()));
        let runner = CheckRunner::new(
            local.clone(),
            cluster.clone(),
            http.agent.config.load().scripts,
        );
        tasks.spawn(runner.run(settle.clone()));
        tasks.spawn(housekeeping::reap_tombstones(
            cluster.clone(),
            settle.clone(),
        ));
        tasks.spawn(bootstrap_entries(
            cluster.clone(),
            http.agent.config.load_full(),
            settle.clone(),
        ));

        let grpc = GrpcContext {
            cluster: cluster.clone(),
            local: local.clone(),
            authorizer,
            node,
            limits: grpc::Limits::default(),
        };
        let grpc_server = tasks.spawn(grpc::serve(sockets.grpc, grpc, shutdown.clone()));
        let http_server = HttpServer::start(http.clone(), sockets.http);

        let reason = agent.until_told_to_end(&mut signals, &mut requests).await;
        tracing::info!(reason, "the agent is shutting down");
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
        consensus.shutdown().await;
        tracing::info!("the agent has ended");
        Ok(())
    }

    /// The main loop. Returns why the agent ends.
    async fn until_told_to_end(
        &mut self,
        signals: &mut Signals,
        requests: &mut mpsc::Receiver<Control>,
    ) -> &'static str {
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return "interrupted",
                _ = signals.terminate.recv() => return "terminated",
                _ = signals.hangup.recv() => {
                    if let Err(error) = self.reload().await {
                        tracing::error!("the configuration stays as it was: {error}");
                    }
                }
                Some(request) = requests.recv() => match request {
                    Control::Reload(answer) => {
                        let result = self.reload().await;
                        if let Err(error) = &result {
                            tracing::error!("the configuration stays as it was: {error}");
                        }
                        // Who asked may have gone.
                        let _ = answer.send(result);
                    }
                    Control::Leave(answer) => {
                        let _ = answer.send(());
                        return "leaving";
                    }
                },
            }
        }
    }

    /// Reads the configuration again and puts what can change into force; all of it or nothing.
    async fn reload(&mut self) -> Result<(), String> {
        let loaded = config::load(&self.flags).map_err(|error| error.to_string())?;
        let new = loaded.config;
        if let Some(dns) = &self.dns {
            dns.reload(zone(&new)).map_err(|error| error.to_string())?;
        }
        let current = self.http.agent.config.load_full();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for key in current.needs_restart(&new) {
            tracing::warn!("{key} has changed: that takes effect at the next start");
        }
        // What cannot change keeps its running value, so that the API shows what is in force.
        let mut running = (*current).clone();
        running.reloadable = new.reloadable;
        self.http
            .agent
            .logs
            .set_level(level(running.reloadable.log_level));
        self.http.settings.store(Arc::new(http_settings(&running)));
        let mut node = (*self.http.local.node()).clone();
        node.meta = node_meta(&running);
        self.http.local.set_node(node);
        self.apply_definitions(&running).await;
        let running = Arc::new(running);
        apply_entries(&*self.cluster, &running).await;
        self.http.agent.config.store(running);
        tracing::info!("the configuration is reloaded");
        Ok(())
    }

    /// Makes the services and checks of the configuration files those of the agent.
    async fn apply_definitions(&self, config: &RuntimeConfig) {
        for definition in &config.reloadable.services {
            for warning in definition.warnings() {
                tracing::warn!("{warning}");
            }
        }
        let token = config
            .reloadable
            .tokens
            .config_file_service_registration
            .token();
        let services = config.reloadable.services.iter().map(|definition| {
            let mut registration = Registration::from_definition(definition.clone(), Origin::File);
            registration.token = registration.token.or_else(|| token.clone());
            registration
        });
        let checks = config
            .reloadable
            .checks
            .iter()
            .map(|definition| CheckSpec::from_definition(definition.clone(), Origin::File));
        let problems = self
            .http
            .local
            .replace_config(services.collect(), checks.collect())
            .await;
        for (id, error) in problems {
            tracing::error!(id = &*id, %error, "a definition of the configuration is not in force");
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Refuses what later issues bring, before anything starts.
fn buildable(config: &RuntimeConfig) -> Result<(), RunError> {
    if !config.server {
        return Err(RunError::ClientAgent);
    }
    if config.bootstrap_expect > 1 {
        return Err(RunError::Cluster(config.bootstrap_expect));
    }
    if !config.dev_mode && !config.bootstrap && config.bootstrap_expect == 0 {
        return Err(RunError::Cluster(1));
    }
    Ok(())
}

fn file_error(path: &Path, source: io::Error) -> RunError {
    RunError::File {
        path: path.to_owned(),
        source,
    }
}

fn log_output(config: &RuntimeConfig) -> Result<LogOutput, RunError> {
    let Some(path) = &config.log.file else {
        return Ok(LogOutput::Stdout);
    };
    // A directory stands for the usual name in it, as in Consul.
    let path = if path.is_dir() {
        path.join("wharf.log")
    } else {
        path.clone()
    };
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    Ok(LogOutput::File(
        file.map_err(|source| file_error(&path, source))?,
    ))
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// The node's id: the configured one, the one of an earlier start, or a new one that is kept.
fn node_uuid(config: &RuntimeConfig) -> Result<Uuid, RunError> {
    let Some(directory) = &config.data_dir else {
        return Ok(config.node_id.unwrap_or_else(Uuid::new_v4));
    };
    let path = directory.join("node-id");
    let kept = match fs::read_to_string(&path) {
        Ok(text) => {
            let uuid = text.trim().parse().map_err(|_| RunError::NodeId {
                path: path.clone(),
                text: text.trim().chars().take(64).collect(),
            })?;
            Some(uuid)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(file_error(&path, source)),
    };
    if let Some(uuid) = kept.filter(|kept| config.node_id.is_none_or(|wanted| wanted == *kept)) {
        return Ok(uuid);
    }
    let uuid = config.node_id.unwrap_or_else(Uuid::new_v4);
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let temporary = directory.join("node-id.tmp");
        let mut file = fs::File::create(&temporary)?;
        writeln!(file, "{uuid}")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| file_error(&path, source))?;
    Ok(uuid)
}

fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn node_info(config: &RuntimeConfig, id: Uuid) -> NodeInfo {
    let address: Str = config.advertise_addr.to_string().into();
    let wan: Str = config.advertise_addr_wan.to_string().into();
    let family = |name: &str, ip: std::net::IpAddr| -> Str {
        format!("{name}_{}", if ip.is_ipv4() { "ipv4" } else { "ipv6" }).into()
    };
    let tagged_addresses = StrMap::from([
        ("lan".into(), address.clone()),
        (family("lan", config.advertise_addr), address.clone()),
        ("wan".into(), wan.clone()),
        (family("wan", config.advertise_addr_wan), wan),
    ]);
    NodeInfo {
        name: config.node_name.as_str().into(),
        id: id.to_string().into(),
        datacenter: config.datacenter.as_str().into(),
        address,
        tagged_addresses,
        meta: node_meta(config),
        server: config.server,
    }
}

/// The configured metadata, and what Consul always adds.
fn node_meta(config: &RuntimeConfig) -> StrMap {
    let mut meta = config.reloadable.node_meta.clone();
    meta.insert("consul-network-segment".into(), "".into());
    meta.insert(
        "consul-version".into(),
        crate::context::CONSUL_VERSION.into(),
    );
    meta
}

fn server_meta() -> StrMap {
    StrMap::from([
        ("version".into(), crate::context::CONSUL_VERSION.into()),
        ("wharf".into(), crate::context::VERSION.into()),
        ("raft_version".into(), "3".into()),
    ])
}

fn catalog_node(node: &NodeInfo) -> Node {
    Node {
        id: node.id.clone(),
        name: node.name.clone(),
        address: node.address.clone(),
        datacenter: node.datacenter.clone(),
        tagged_addresses: node.tagged_addresses.clone(),
        meta: node.meta.clone(),
        ..Node::default()
    }
}

fn local_options(config: &RuntimeConfig) -> local::Options {
    local::Options {
        data_dir: config.data_dir.clone(),
        server: config.server,
        check_output_max_size: config.check_output_max_size,
        discard_check_output: config.reloadable.discard_check_output,
        check_update_interval: config.check_update_interval,
        sidecar_ports: config.sidecar_ports.clone(),
    }
}

fn http_settings(config: &RuntimeConfig) -> HttpSettings {
    let limits = &config.reloadable.limits;
    let headers = config
        .http
        .response_headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        });
    HttpSettings {
        pretty: config.dev_mode,
        default_query_time: config.default_query_time,
        max_query_time: config.max_query_time,
        kv_max_value_size: usize::try_from(limits.kv_max_value_size).unwrap_or(usize::MAX),
        response_headers: headers.collect(),
        block_endpoints: config.http.block_endpoints.clone(),
        allow_write_from: config.http.allow_write_from.clone(),
        max_conns_per_client: limits.http_max_conns_per_client as usize,
    }
}

fn zone(config: &RuntimeConfig) -> ZoneSettings {
    let dns = &config.reloadable.dns;
    ZoneSettings {
        domain: config.domain.clone(),
        alt_domain: config.alt_domain.clone(),
        datacenter: config.datacenter.clone(),
        node_name: config.node_name.clone(),
        node_ttl: dns.node_ttl,
        service_ttl: dns.service_ttl.clone(),
        only_passing: dns.only_passing,
        enable_truncate: dns.enable_truncate,
        udp_answer_limit: Some(dns.udp_answer_limit).filter(|limit| *limit > 0),
        a_record_limit: dns.a_record_limit,
        enable_additional_node_meta_txt: dns.node_meta_txt,
        soa: wharf_dns::SoaSettings {
            refresh: dns.soa.refresh,
            retry: dns.soa.retry,
            expire: dns.soa.expire,
            min_ttl: dns.soa.min_ttl,
        },
        recursors: dns.recursors.iter().map(ToString::to_string).collect(),
        ..ZoneSettings::default()
    }
}

/// What DNS clients may see: what the agent's DNS token may.
#[derive(Debug)]
struct DnsVisibility(Option<Caller>);

impl DnsVisibility {
    fn new(authorizer: &dyn Authorizer, config: &RuntimeConfig) -> DnsVisibility {
        let tokens = &config.reloadable.tokens;
        let token = tokens.dns.token().or_else(|| tokens.default.token());
        // A token that is unknown sees nothing.
        DnsVisibility(authorizer.resolve(token).ok())
    }

    fn may_read(&self, resource: Resource<'_>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|caller| caller.may(resource, Access::Read))
    }
}

impl Visibility for DnsVisibility {
    fn service_visible(&self, name: &str) -> bool {
        self.may_read(Resource::Service(name))
    }

    fn node_visible(&self, name: &str) -> bool {
        self.may_read(Resource::Node(name))
    }
}

/// Writes the configured entries as soon as there is a leader.
async fn bootstrap_entries(
    cluster: Arc<dyn Cluster>,
    config: Arc<RuntimeConfig>,
    stop: CancellationToken,
) {
    loop {
        // Listening begins before the look: a leader that comes in between is not missed.
        let changed = cluster.leader_changed();
        if cluster.leader().is_some() {
            break;
        }
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
    }
    apply_entries(&*cluster, &config).await;
}

/// Writes the configured entries that do not exist yet: those that do may have been changed since.
async fn apply_entries(cluster: &dyn Cluster, config: &RuntimeConfig) {
    for entry in &config.reloadable.config_entries {
        let name = entry.name().clone();
        let kind = entry.kind();
        let command = ConfigCommand::CompareAndUpsert {
            entry: entry.clone(),
            index: 0,
        };
        match cluster.write_if(Command::Config(command)).await {
            Ok(true) => tracing::info!(%kind, name = &*name, "a configuration entry is set"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%kind, name = &*name, %error, "a configuration entry is not set");
            }
        }
    }
}
