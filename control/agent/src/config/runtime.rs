//! The configuration as the agent uses it: complete, checked, every default decided.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;
use wharf_config::Node;
use wharf_registry::model::{AutopilotConfig, ConfigEntry, StrMap};

use super::{Listen, Secret, WatchDefinition};
use crate::definition::{CheckDefinition, ScriptPolicy, ServiceDefinition};
use crate::rates::RateLimits;

/// Everything an agent is told when it starts.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    pub node_name: String,
    /// Absent: the agent makes one up, or finds the one it had.
    pub node_id: Option<Uuid>,
    pub datacenter: String,
    /// All in memory, one server, conveniences for trying things out.
    pub dev_mode: bool,
    pub server: bool,
    /// Whether this server may elect itself leader of a new cluster.
    pub bootstrap: bool,
    /// How many servers start a new cluster; 0: not by number.
    pub bootstrap_expect: u32,
    /// Absent only in [development mode](Self::dev_mode).
    pub data_dir: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub bind_addr: IpAddr,
    pub advertise_addr: IpAddr,
    pub advertise_addr_wan: IpAddr,
    /// Servers to join, each an address with or without a port.
    pub retry_join: Vec<String>,
    /// The port of a server that is named without one: that of all servers.
    pub join_port: u16,
    pub listen: Listeners,
    pub unix_socket: UnixSocket,
    /// The ports that sidecars without one of their own get.
    pub sidecar_ports: RangeInclusive<u16>,
    pub expose_ports: RangeInclusive<u16>,
    pub http: HttpConfig,
    pub tls: TlsConfig,
    pub ui: UiConfig,
    pub log: LogConfig,
    pub raft: RaftConfig,
    /// With the closing dot.
    pub domain: String,
    /// With the closing dot.
    pub alt_domain: Option<String>,
    pub scripts: ScriptPolicy,
    pub check_update_interval: Duration,
    pub check_output_max_size: usize,
    pub default_query_time: Duration,
    pub max_query_time: Duration,
    /// Reads of catalog and health may be this stale; zero: they are not.
    pub discovery_max_stale: Duration,
    pub session_ttl_min: Duration,
    pub leave_on_terminate: bool,
    pub skip_leave_on_interrupt: bool,
    pub leave_drain_time: Duration,
    /// How long a request waits for a leader.
    pub rpc_hold_timeout: Duration,
    /// After how long a dead node is taken out of the catalog.
    pub reconnect_timeout: Duration,
    pub translate_wan_addrs: bool,
    pub connect_enabled: bool,
    pub enable_debug: bool,
    pub disable_host_node_id: bool,
    pub auto_reload_config: bool,
    pub acl_enabled: bool,
    pub telemetry: TelemetryConfig,
    pub platform: PlatformConfig,
    /// The settings of the autopilot that a new cluster begins with.
    pub autopilot: AutopilotConfig,
    /// What a reload replaces.
    pub reloadable: Reloadable,
    /// The merged document, to tell at a reload which keys changed. Has secrets in it.
    pub(super) document: Document,
}

/// How this node runs allocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    pub enabled: bool,
    /// `None`: the first of wharf0, wharf1 ... that is free.
    pub bridge: Option<String>,
    /// `None`: the first free /24 of 172.26.64.0/18.
    pub subnet: Option<wharf_launcher::network::Subnet>,
    /// Registries of images that are spoken to over plain HTTP, each `host` or `host:port`.
    pub insecure_registries: Vec<String>,
}

/// What a running agent takes over from a new configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloadable {
    pub services: Vec<ServiceDefinition>,
    pub checks: Vec<CheckDefinition>,
    pub watches: Vec<WatchDefinition>,
    pub config_entries: Vec<ConfigEntry>,
    pub node_meta: StrMap,
    pub log_level: LogLevel,
    pub dns: DnsConfig,
    pub limits: Limits,
    pub tokens: Tokens,
    pub discard_check_output: bool,
    pub telemetry_filter: TelemetryFilter,
}

/// Where each server listens. An empty list is a server that is off. Port 0 is any free port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// Servers and agents talk to each other here; only on servers.
    pub server: Option<SocketAddr>,
    pub http: Vec<Listen>,
    pub https: Vec<Listen>,
    pub dns: Vec<SocketAddr>,
    pub grpc: Vec<Listen>,
    pub grpc_tls: Vec<Listen>,
}

/// Who owns the Unix sockets that are listened on. Empty: as the system makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    pub user: String,
    pub group: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    pub response_headers: BTreeMap<String, String>,
    /// Paths that answer 403, with everything below them.
    pub block_endpoints: Vec<String>,
    /// Networks that may write. Empty: all may.
    pub allow_write_from: Vec<Network>,
    /// 0: the server's own limit.
    pub max_header_bytes: u32,
    pub read_timeout: Duration,
    pub read_header_timeout: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
}

/// A block of addresses, written as CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    pub https: TlsFiles,
    pub grpc: TlsFiles,
    pub internal_rpc: TlsFiles,
}

/// The certificates of one listener or client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub verify_incoming: bool,
    pub verify_outgoing: bool,
    pub min_version: TlsVersion,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    #[default]
    V1_2,
    V1_3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiConfig {
    pub enabled: bool,
    /// With a slash at both ends.
    pub content_path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub json: bool,
    pub file: Option<PathBuf>,
    /// 0: by time only.
    pub rotate_bytes: u64,
    pub rotate_after: Duration,
    /// `None`: all are kept.
    pub rotate_max_files: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// Scales the times of heartbeats and elections, 1 to 10.
    pub multiplier: u32,
    /// Log entries between snapshots.
    pub snapshot_threshold: u64,
    /// Log entries that are kept behind a snapshot.
    pub trailing_logs: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    pub only_passing: bool,
    pub allow_stale: bool,
    pub max_stale: Duration,
    pub node_ttl: Duration,
    /// By service name; `*` and `prefix*` are patterns.
    pub service_ttl: BTreeMap<String, Duration>,
    pub enable_truncate: bool,
    pub udp_answer_limit: usize,
    /// 0: no limit.
    pub a_record_limit: usize,
    pub disable_compression: bool,
    pub node_meta_txt: bool,
    pub soa: SoaConfig,
    pub recursors: Vec<SocketAddr>,
    pub random_recursor: bool,
    pub recursor_timeout: Duration,
}

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoaConfig {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    pub min_ttl: u32,
}

/// 0 is no limit on connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub http_max_conns_per_client: u32,
    pub rpc_max_conns_per_client: u32,
    pub https_handshake_timeout: Duration,
    pub kv_max_value_size: u64,
    pub txn_max_req_len: u64,
    pub rates: RateLimits,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// For requests without a token.
    pub default: Secret,
    pub agent: Secret,
    pub agent_recovery: Secret,
    pub config_file_service_registration: Secret,
    pub dns: Secret,
    pub replication: Secret,
    pub initial_management: Secret,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    pub metrics_prefix: String,
    pub disable_hostname: bool,
    /// Zero: metrics are not served in Prometheus's format.
    pub prometheus_retention: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryFilter {
    /// Metrics that no prefix speaks for.
    pub default: bool,
    pub allow: Vec<String>,
    pub block: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Document(pub(super) Node);

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hidden")
    }
}

impl LogLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Reads a level in any case; `ERR` is Consul's old name of `ERROR`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warn,
            "err" | "error" => Self::Error,
            _ => return None,
        })
    }
}

impl TlsFiles {
    /// Whether there is a certificate to serve with.
    pub fn can_serve(&self) -> bool {
        self.cert_file.is_some() && self.key_file.is_some()
    }
}

impl Network {
    /// Reads CIDR notation: `10.0.0.0/8`, `::1/128`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix = prefix.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { address, prefix })
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let shift = |longest: u8| u32::from(longest - self.prefix);
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                (own.to_bits() ^ ip.to_bits())
                    .checked_shr(shift(32))
                    .unwrap_or_default()
                    == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                (own.to_bits() ^ ip.to_bits())
                    .checked_shr(shift(128))
                    .unwrap_or_default()
                    == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses() {
        let contains = |network: &str, ip: &str| {
            Network::parse(network)
                .unwrap()
                .contains(ip.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("0.0.0.0/0", "203.0.113.1"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("127.0.0.1/32", "127.0.0.1"));
        assert!(!contains("127.0.0.1/32", "127.0.0.2"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/"] {
            assert_eq!(Network::parse(bad), None);
        }
    }
}
