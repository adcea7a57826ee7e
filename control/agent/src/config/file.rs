//! The configuration as files write it: Consul's keys, with the defaults of those that always have one.
//!
//! An `Option` is a key whose default depends on something else; [`super::resolve`] decides it.

use std::collections::BTreeMap;

use serde::Deserialize;
use wharf_config::GoDuration;
use wharf_registry::model::AutopilotConfig;

use super::Secret;
use super::watch::WatchDefinition;
use crate::definition::{CheckDefinition, ServiceDefinition};

/// Where servers are unless it is said.
pub(super) const SERVER_PORT: u16 = 8300;

/// Containers and processes that this node runs. Not a block of Consul's.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) enabled: bool,
    pub(super) images: PlatformImages,
    pub(super) network: PlatformNetwork,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            enabled: true,
            images: PlatformImages::default(),
            network: PlatformNetwork::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlatformImages {
    pub(super) insecure_registries: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlatformNetwork {
    pub(super) bridge: String,
    pub(super) subnet: String,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct FileConfig {
    pub(super) acl: Acl,
    pub(super) addresses: Addresses,
    pub(super) advertise_addr: Option<String>,
    pub(super) advertise_addr_wan: Option<String>,
    pub(super) alt_domain: String,
    pub(super) auto_reload_config: bool,
    pub(super) autopilot: AutopilotConfig,
    pub(super) bind_addr: String,
    pub(super) bootstrap: bool,
    pub(super) bootstrap_expect: i64,
    pub(super) check_output_max_size: i64,
    pub(super) check_update_interval: GoDuration,
    pub(super) checks: Vec<CheckDefinition>,
    pub(super) client_addr: String,
    pub(super) config_entries: ConfigEntries,
    pub(super) connect: Connect,
    pub(super) data_dir: String,
    pub(super) datacenter: String,
    pub(super) default_query_time: GoDuration,
    pub(super) disable_host_node_id: bool,
    pub(super) discard_check_output: bool,
    pub(super) discovery_max_stale: GoDuration,
    pub(super) dns_config: Dns,
    pub(super) domain: String,
    pub(super) enable_debug: bool,
    pub(super) enable_local_script_checks: bool,
    pub(super) enable_script_checks: bool,
    pub(super) http_config: Http,
    pub(super) leave_on_terminate: Option<bool>,
    pub(super) limits: Limits,
    pub(super) log_file: String,
    pub(super) log_json: bool,
    pub(super) log_level: String,
    pub(super) log_rotate_bytes: i64,
    pub(super) log_rotate_duration: GoDuration,
    pub(super) log_rotate_max_files: i64,
    pub(super) max_query_time: GoDuration,
    pub(super) node_id: String,
    pub(super) node_meta: BTreeMap<String, String>,
    pub(super) node_name: Option<String>,
    pub(super) performance: Performance,
    pub(super) pid_file: String,
    pub(super) platform: Platform,
    pub(super) ports: Ports,
    pub(super) raft_snapshot_threshold: u64,
    pub(super) raft_trailing_logs: u64,
    pub(super) recursors: Vec<String>,
    pub(super) retry_join: Vec<String>,
    pub(super) server: bool,
    pub(super) services: Vec<ServiceDefinition>,
    pub(super) reconnect_timeout: GoDuration,
    pub(super) session_ttl_min: GoDuration,
    pub(super) skip_leave_on_interrupt: Option<bool>,
    pub(super) start_join: Vec<String>,
    pub(super) telemetry: Telemetry,
    pub(super) tls: Tls,
    pub(super) translate_wan_addrs: bool,
    pub(super) ui_config: Ui,
    pub(super) unix_sockets: UnixSockets,
    pub(super) watches: Vec<WatchDefinition>,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            acl: Acl::default(),
            addresses: Addresses::default(),
            advertise_addr: None,
            advertise_addr_wan: None,
            alt_domain: String::new(),
            auto_reload_config: false,
            autopilot: AutopilotConfig::default(),
            bind_addr: "0.0.0.0".to_owned(),
            bootstrap: false,
            bootstrap_expect: 0,
            check_output_max_size: 4096,
            check_update_interval: GoDuration::from_secs(5 * 60),
            checks: Vec::new(),
            client_addr: "127.0.0.1".to_owned(),
            config_entries: ConfigEntries::default(),
            connect: Connect::default(),
            data_dir: String::new(),
            datacenter: "dc1".to_owned(),
            default_query_time: GoDuration::from_secs(300),
            disable_host_node_id: true,
            discard_check_output: false,
            discovery_max_stale: GoDuration::ZERO,
            dns_config: Dns::default(),
            domain: "consul.".to_owned(),
            enable_debug: false,
            enable_local_script_checks: false,
            enable_script_checks: false,
            http_config: Http::default(),
            leave_on_terminate: None,
            limits: Limits::default(),
            log_file: String::new(),
            log_json: false,
            log_level: "INFO".to_owned(),
            log_rotate_bytes: 0,
            log_rotate_duration: GoDuration::from_secs(24 * 3600),
            log_rotate_max_files: 0,
            max_query_time: GoDuration::from_secs(600),
            node_id: String::new(),
            node_meta: BTreeMap::new(),
            node_name: None,
            performance: Performance::default(),
            pid_file: String::new(),
            platform: Platform::default(),
            ports: Ports::default(),
            raft_snapshot_threshold: 16384,
            raft_trailing_logs: 10240,
            recursors: Vec::new(),
            retry_join: Vec::new(),
            server: false,
            services: Vec::new(),
            reconnect_timeout: GoDuration::from_secs(72 * 3600),
            session_ttl_min: GoDuration::from_secs(10),
            skip_leave_on_interrupt: None,
            start_join: Vec::new(),
            telemetry: Telemetry::default(),
            tls: Tls::default(),
            translate_wan_addrs: false,
            ui_config: Ui::default(),
            unix_sockets: UnixSockets::default(),
            watches: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Acl {
    pub(super) enabled: bool,
    pub(super) default_policy: String,
    pub(super) tokens: AclTokens,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AclTokens {
    pub(super) agent: Secret,
    pub(super) agent_recovery: Secret,
    pub(super) config_file_service_registration: Secret,
    pub(super) default: Secret,
    pub(super) dns: Secret,
    pub(super) initial_management: Secret,
    pub(super) replication: Secret,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Addresses {
    pub(super) dns: Option<String>,
    pub(super) grpc: Option<String>,
    pub(super) grpc_tls: Option<String>,
    pub(super) http: Option<String>,
    pub(super) https: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigEntries {
    pub(super) bootstrap: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Connect {
    pub(super) enabled: bool,
}

impl Default for Connect {
    fn default() -> Self {
        Self { enabled: true }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Dns {
    pub(super) a_record_limit: i64,
    pub(super) allow_stale: bool,
    pub(super) disable_compression: bool,
    pub(super) enable_additional_node_meta_txt: bool,
    pub(super) enable_truncate: bool,
    pub(super) max_stale: GoDuration,
    pub(super) node_ttl: GoDuration,
    pub(super) only_passing: bool,
    pub(super) recursor_strategy: String,
    pub(super) recursor_timeout: GoDuration,
    pub(super) service_ttl: BTreeMap<String, GoDuration>,
    pub(super) soa: Soa,
    pub(super) udp_answer_limit: i64,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            a_record_limit: 0,
            allow_stale: true,
            disable_compression: false,
            enable_additional_node_meta_txt: true,
            // Unlike Consul: a client that is not told that something is missing cannot ask for it.
            enable_truncate: true,
            max_stale: GoDuration::from_secs(10 * 365 * 24 * 3600),
            node_ttl: GoDuration::ZERO,
            only_passing: false,
            recursor_strategy: "sequential".to_owned(),
            recursor_timeout: GoDuration::from_secs(2),
            service_ttl: BTreeMap::new(),
            soa: Soa::default(),
            // Unlike Consul's 3: with the TC bit that would send every larger answer over TCP. The
            // size is the limit.
            udp_answer_limit: 0,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Soa {
    pub(super) expire: u32,
    pub(super) min_ttl: u32,
    pub(super) refresh: u32,
    pub(super) retry: u32,
}

impl Default for Soa {
    fn default() -> Self {
        Self {
            expire: 86400,
            min_ttl: 0,
            refresh: 3600,
            retry: 600,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Http {
    pub(super) allow_write_http_from: Vec<String>,
    pub(super) block_endpoints: Vec<String>,
    pub(super) idle_timeout: GoDuration,
    pub(super) max_header_bytes: u32,
    pub(super) read_header_timeout: GoDuration,
    pub(super) read_timeout: GoDuration,
    pub(super) response_headers: BTreeMap<String, String>,
    pub(super) write_timeout: GoDuration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            allow_write_http_from: Vec::new(),
            block_endpoints: Vec::new(),
            idle_timeout: GoDuration::from_secs(120),
            max_header_bytes: 0,
            read_header_timeout: GoDuration::from_secs(10),
            read_timeout: GoDuration::from_secs(15 * 60),
            response_headers: BTreeMap::new(),
            write_timeout: GoDuration::from_secs(15 * 60),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) http_max_conns_per_client: u32,
    pub(super) https_handshake_timeout: GoDuration,
    pub(super) kv_max_value_size: u64,
    pub(super) request_limits: RequestLimits,
    pub(super) rpc_max_burst: u32,
    pub(super) rpc_max_conns_per_client: u32,
    /// Below zero: without a limit.
    pub(super) rpc_rate: f64,
    pub(super) txn_max_req_len: u64,
}

/// Requests a second; below zero: as many as come.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct RequestLimits {
    pub(super) mode: String,
    pub(super) read_rate: f64,
    pub(super) write_rate: f64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            mode: "disabled".to_owned(),
            read_rate: -1.0,
            write_rate: -1.0,
        }
    }
}

/// What Raft proposes as the largest entry, and so the largest KV value and transaction.
const MAX_ENTRY: u64 = 512 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            http_max_conns_per_client: 200,
            https_handshake_timeout: GoDuration::from_secs(5),
            kv_max_value_size: MAX_ENTRY,
            request_limits: RequestLimits::default(),
            rpc_max_burst: 1000,
            rpc_max_conns_per_client: 100,
            rpc_rate: -1.0,
            txn_max_req_len: MAX_ENTRY,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Performance {
    pub(super) leave_drain_time: GoDuration,
    pub(super) raft_multiplier: i64,
    pub(super) rpc_hold_timeout: GoDuration,
}

impl Default for Performance {
    fn default() -> Self {
        Self {
            leave_drain_time: GoDuration::from_secs(5),
            raft_multiplier: 5,
            rpc_hold_timeout: GoDuration::from_secs(7),
        }
    }
}

/// Ports as given: -1 is off, and so is what is absent here.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Ports {
    pub(super) dns: i64,
    pub(super) expose_max_port: i64,
    pub(super) expose_min_port: i64,
    pub(super) grpc: i64,
    pub(super) grpc_tls: Option<i64>,
    pub(super) http: i64,
    pub(super) https: i64,
    pub(super) server: i64,
    pub(super) sidecar_max_port: i64,
    pub(super) sidecar_min_port: i64,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            dns: 8600,
            expose_max_port: 21755,
            expose_min_port: 21500,
            grpc: -1,
            grpc_tls: None,
            http: 8500,
            https: -1,
            server: i64::from(SERVER_PORT),
            sidecar_max_port: 21255,
            sidecar_min_port: 21000,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Telemetry {
    pub(super) disable_hostname: bool,
    pub(super) filter_default: bool,
    pub(super) metrics_prefix: String,
    pub(super) prefix_filter: Vec<String>,
    pub(super) prometheus_retention_time: GoDuration,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            disable_hostname: false,
            filter_default: true,
            metrics_prefix: "consul".to_owned(),
            prefix_filter: Vec::new(),
            // Consul's default is off (zero). Here Prometheus is how metrics are read.
            prometheus_retention_time: GoDuration::from_secs(60),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) defaults: TlsPart,
    pub(super) grpc: TlsPart,
    pub(super) https: TlsPart,
    pub(super) internal_rpc: TlsPart,
}

/// One user of TLS; what is absent comes from `tls.defaults`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TlsPart {
    pub(super) ca_file: Option<String>,
    pub(super) ca_path: Option<String>,
    pub(super) cert_file: Option<String>,
    pub(super) key_file: Option<String>,
    pub(super) tls_min_version: Option<String>,
    pub(super) verify_incoming: Option<bool>,
    pub(super) verify_outgoing: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Ui {
    pub(super) content_path: String,
    pub(super) enabled: bool,
}

impl Default for Ui {
    fn default() -> Self {
        Self {
            content_path: "/ui/".to_owned(),
            enabled: false,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UnixSockets {
    pub(super) group: String,
    pub(super) mode: String,
    pub(super) user: String,
}
