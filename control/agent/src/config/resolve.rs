//! From the merged file configuration to the one the agent runs with: defaults that depend on something, checks
//! of meaning. Addresses and ports are in [`super::listen`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;
use wharf_config::{GoDuration, Node};
use wharf_registry::model::{ConfigEntry, UnknownKind};

use super::Environment;
use super::file::{self, FileConfig};
use super::listen::{detect_advertised, ip_key, listeners, port_range};
use super::runtime::{
    DnsConfig, Document, HttpConfig, Limits, LogConfig, LogLevel, Network, RaftConfig, Reloadable,
    RuntimeConfig, SoaConfig, TelemetryConfig, TelemetryFilter, TlsConfig, TlsFiles, TlsVersion,
    Tokens, UiConfig, UnixSocket,
};
use crate::config_entry::{self, ConfigEntryError};
use crate::definition::{Origin, ScriptPolicy, dns_warning, validate_node_meta};

/// Collects what is wrong, each with the place of the key it is about.
pub(super) struct Problems<'d> {
    pub(super) document: &'d Node,
    list: Vec<String>,
}

impl Problems<'_> {
    /// Reports a problem of the key at `path` (a dot enters a block).
    pub(super) fn at(&mut self, path: &str, message: impl std::fmt::Display) {
        self.at_node(self.document.at(path.split('.')), message);
    }

    pub(super) fn at_node(&mut self, node: Option<&Node>, message: impl std::fmt::Display) {
        match node
            .map(|node| &node.position)
            .filter(|position| position.is_in_file())
        {
            Some(position) => self.list.push(format!("{position}: {message}")),
            None => self.list.push(message.to_string()),
        }
    }

    /// The value, or a problem and a stand-in, so that the other keys are looked at too.
    pub(super) fn or_default<T: Default, E: std::fmt::Display>(
        &mut self,
        path: &str,
        result: Result<T, E>,
    ) -> T {
        result.unwrap_or_else(|error| {
            self.at(path, format!("{path}: {error}"));
            T::default()
        })
    }
}

pub(super) fn resolve(
    file: FileConfig,
    document: Node,
    dev: bool,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<RuntimeConfig, Vec<String>> {
    let mut problems = Problems {
        document: &document,
        list: Vec::new(),
    };
    let p = &mut problems;

    let datacenter = file.datacenter.to_lowercase();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if datacenter.is_empty() || !datacenter.bytes().all(plain) {
        p.at(
            "datacenter",
            "datacenter can only contain lowercase alphanumeric, - or _ characters.",
        );
    }
    let node_name = file
        .node_name
        .clone()
        .or_else(|| environment.hostname.clone())
        .unwrap_or_default();
    if node_name.trim().is_empty() {
        p.at("node_name", "node_name cannot be empty");
    }
    warnings.extend(dns_warning("Node name", &node_name));
    let node_id = match file.node_id.as_str() {
        "" => None,
        text => Uuid::parse_str(text)
            .map_err(|_| p.at("node_id", format!("node_id {text:?} is not a UUID")))
            .ok(),
    };
    if let Err(error) = validate_node_meta(&file.node_meta) {
        p.at("node_meta", format!("node_meta invalid: {error}"));
    }
    if file.data_dir.is_empty() && !dev {
        p.at("data_dir", "data_dir cannot be empty");
    }

    let bootstrap_expect = check_bootstrap(
        file.server,
        file.bootstrap,
        file.bootstrap_expect,
        dev,
        p,
        warnings,
    );
    let bootstrap = dev || file.bootstrap || bootstrap_expect == 1;
    if file.server
        && !bootstrap
        && bootstrap_expect == 0
        && file.retry_join.is_empty()
        && file.start_join.is_empty()
    {
        warnings.push(
            "this server knows no other (retry_join) and may not start a cluster (bootstrap, bootstrap_expect): it \
             will wait for one to join it"
                .to_owned(),
        );
    }

    let interfaces = &environment.interfaces;
    let bind_addr = ip_key(p, "bind_addr", &file.bind_addr, interfaces);
    let advertise_addr = match &file.advertise_addr {
        Some(text) => ip_key(p, "advertise_addr", text, interfaces),
        None if bind_addr.is_unspecified() => detect_advertised(interfaces, p, warnings),
        None => bind_addr,
    };
    if file.advertise_addr.is_some() && advertise_addr.is_unspecified() {
        p.at(
            "advertise_addr",
            "Advertise address cannot be 0.0.0.0, :: or [::]",
        );
    }
    let advertise_addr_wan = match &file.advertise_addr_wan {
        Some(text) => ip_key(p, "advertise_addr_wan", text, interfaces),
        None => advertise_addr,
    };

    let tls = tls(&file.tls, p);
    let listen = listeners(&file, &tls, bind_addr, interfaces, p, warnings);
    let sidecar_ports = port_range(
        p,
        "sidecar",
        file.ports.sidecar_min_port,
        file.ports.sidecar_max_port,
    );
    let expose_ports = port_range(
        p,
        "expose",
        file.ports.expose_min_port,
        file.ports.expose_max_port,
    );

    if !(1..=10).contains(&file.performance.raft_multiplier) {
        let given = file.performance.raft_multiplier;
        let message =
            format!("performance.raft_multiplier cannot be {given}. Must be between 1 and 10");
        p.at("performance.raft_multiplier", message);
    }
    if file.check_output_max_size < 1 {
        p.at(
            "check_output_max_size",
            "check_output_max_size must be positive",
        );
    }
    let log_level = LogLevel::parse(&file.log_level).unwrap_or_else(|| {
        let message = format!(
            "Invalid log level: {}. Valid log levels are: [TRACE DEBUG INFO WARN ERROR]",
            file.log_level
        );
        p.at("log_level", message);
        LogLevel::Info
    });
    for (key, duration) in [
        ("default_query_time", file.default_query_time),
        ("max_query_time", file.max_query_time),
        ("check_update_interval", file.check_update_interval),
        ("discovery_max_stale", file.discovery_max_stale),
        ("session_ttl_min", file.session_ttl_min),
        (
            "performance.leave_drain_time",
            file.performance.leave_drain_time,
        ),
        (
            "performance.rpc_hold_timeout",
            file.performance.rpc_hold_timeout,
        ),
    ] {
        if duration < GoDuration::ZERO {
            p.at(
                key,
                format!("{key} cannot be {duration}. Must be greater than or equal to zero"),
            );
        }
    }
    if file.acl.enabled {
        match file.acl.default_policy.as_str() {
            // Denying is a promise that could not be kept.
            "deny" => p.at("acl.default_policy", "ACLs are not built yet: with acl.enabled and default_policy \"deny\" this agent would still allow everything"),
            "" | "allow" | "extend-cache" => {
                warnings.push("ACLs are not built yet: acl.enabled has no effect and everything is allowed".to_owned());
            }
            other => p.at("acl.default_policy", format!("unknown default_policy {other:?}: allow or deny")),
        }
    }

    let scripts = ScriptPolicy {
        from_api: file.enable_script_checks,
        from_files: file.enable_local_script_checks,
    };
    check_definitions(&file, scripts, p, warnings);
    let config_entries = config_entries(p, warnings);
    for (index, watch) in file.watches.iter().enumerate() {
        if let Err(error) = watch.validate() {
            let node = p
                .document
                .get("watches")
                .and_then(Node::as_list)
                .and_then(|list| list.get(index));
            p.at_node(node, format!("watches[{index}]: {error}"));
        }
    }

    let domain = domain(p, "domain", &file.domain);
    let alt_domain =
        (!file.alt_domain.is_empty()).then(|| domain_alt(p, &file.alt_domain, &datacenter));
    let http = http(&file.http_config, p);
    let dns = dns(&file.dns_config, &file.recursors, p);
    let mode = match file.unix_sockets.mode.as_str() {
        "" => None,
        text => u32::from_str_radix(text, 8)
            .map_err(|_| {
                p.at(
                    "unix_sockets.mode",
                    format!("unix_sockets.mode {text:?} is not an octal number"),
                )
            })
            .ok(),
    };
    let content_path = file.ui_config.content_path.trim_matches('/');
    if !content_path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/'))
    {
        p.at(
            "ui_config.content_path",
            "ui-content-path can only contain alphanumeric, -, _, or /.",
        );
    }
    let content_path = if content_path.is_empty() {
        "/".to_owned()
    } else {
        format!("/{content_path}/")
    };
    let (telemetry_filter, bad_filters) = telemetry_filter(&file.telemetry);
    for filter in bad_filters {
        p.at(
            "telemetry.prefix_filter",
            format!("Filter rule must begin with either '+' or '-': {filter:?}"),
        );
    }

    // What is wrong in tls.defaults is found once for each that uses it.
    problems.list.dedup();
    if !problems.list.is_empty() {
        return Err(problems.list);
    }
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let tokens = file.acl.tokens;
    Ok(RuntimeConfig {
        node_name,
        node_id,
        datacenter,
        dev_mode: dev,
        server: file.server,
        bootstrap,
        bootstrap_expect,
        data_dir: path(&file.data_dir),
        pid_file: path(&file.pid_file),
        bind_addr,
        advertise_addr,
        advertise_addr_wan,
        retry_join: file.retry_join.into_iter().chain(file.start_join).collect(),
        listen,
        unix_socket: UnixSocket {
            user: file.unix_sockets.user,
            group: file.unix_sockets.group,
            mode,
        },
        sidecar_ports,
        expose_ports,
        http,
        tls,
        ui: UiConfig {
            enabled: file.ui_config.enabled,
            content_path,
        },
        log: LogConfig {
            json: file.log_json,
            file: path(&file.log_file),
            rotate_bytes: u64::try_from(file.log_rotate_bytes).unwrap_or_default(),
            rotate_after: file.log_rotate_duration.to_std(),
            rotate_max_files: match file.log_rotate_max_files {
                0 => None,
                // Consul's -1: none but the one that is written.
                count => Some(u32::try_from(count).unwrap_or_default()),
            },
        },
        raft: RaftConfig {
            multiplier: u32::try_from(file.performance.raft_multiplier).unwrap_or(1),
            snapshot_threshold: file.raft_snapshot_threshold,
            trailing_logs: file.raft_trailing_logs,
        },
        domain,
        alt_domain,
        scripts,
        check_update_interval: file.check_update_interval.to_std(),
        check_output_max_size: usize::try_from(file.check_output_max_size).unwrap_or_default(),
        default_query_time: file.default_query_time.to_std(),
        max_query_time: file.max_query_time.to_std(),
        discovery_max_stale: file.discovery_max_stale.to_std(),
        session_ttl_min: file.session_ttl_min.to_std(),
        leave_on_terminate: file.leave_on_terminate.unwrap_or(!file.server),
        skip_leave_on_interrupt: file.skip_leave_on_interrupt.unwrap_or(file.server),
        leave_drain_time: file.performance.leave_drain_time.to_std(),
        rpc_hold_timeout: file.performance.rpc_hold_timeout.to_std(),
        translate_wan_addrs: file.translate_wan_addrs,
        connect_enabled: file.connect.enabled,
        enable_debug: file.enable_debug,
        disable_host_node_id: file.disable_host_node_id,
        auto_reload_config: file.auto_reload_config,
        acl_enabled: file.acl.enabled,
        telemetry: TelemetryConfig {
            metrics_prefix: file.telemetry.metrics_prefix,
            disable_hostname: file.telemetry.disable_hostname,
            prometheus_retention: file.telemetry.prometheus_retention_time.to_std(),
        },
        reloadable: Reloadable {
            services: file.services,
            checks: file.checks,
            watches: file.watches,
            config_entries,
            node_meta: file
                .node_meta
                .iter()
                .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
                .collect(),
            log_level,
            dns,
            limits: Limits {
                http_max_conns_per_client: file.limits.http_max_conns_per_client,
                rpc_max_conns_per_client: file.limits.rpc_max_conns_per_client,
                https_handshake_timeout: file.limits.https_handshake_timeout.to_std(),
                kv_max_value_size: file.limits.kv_max_value_size,
                txn_max_req_len: file.limits.txn_max_req_len,
            },
            tokens: Tokens {
                default: tokens.default,
                agent: tokens.agent,
                agent_recovery: tokens.agent_recovery,
                config_file_service_registration: tokens.config_file_service_registration,
                dns: tokens.dns,
                replication: tokens.replication,
                initial_management: tokens.initial_management,
            },
            discard_check_output: file.discard_check_output,
            telemetry_filter,
        },
        document: Document(document),
    })
}

/// The rules of starting a cluster. Returns how many servers start it.
fn check_bootstrap(
    server: bool,
    bootstrap: bool,
    expect: i64,
    dev: bool,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) -> u32 {
    if expect < 0 {
        p.at(
            "bootstrap_expect",
            format!("bootstrap_expect cannot be {expect}. Must be greater than or equal to zero"),
        );
    }
    if expect > 0 && dev {
        p.at(
            "bootstrap_expect",
            "'bootstrap_expect' not allowed in dev mode",
        );
    }
    if expect > 0 && !server {
        p.at(
            "bootstrap_expect",
            "'bootstrap_expect > 0' requires 'server = true'",
        );
    }
    if expect > 0 && bootstrap {
        p.at(
            "bootstrap",
            "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive",
        );
    }
    if bootstrap && !server {
        p.at("bootstrap", "'bootstrap = true' requires 'server = true'");
    }
    if bootstrap {
        warnings.push("bootstrap = true: do not enable unless necessary".to_owned());
    }
    match expect {
        1 => warnings.push("BootstrapExpect is set to 1; this is the same as Bootstrap mode.".to_owned()),
        2 => warnings.push(
            "bootstrap_expect = 2: A cluster with 2 servers will provide no failure tolerance. See \
             https://www.consul.io/docs/internals/consensus.html#deployment-table"
                .to_owned(),
        ),
        even if even > 2 && even % 2 == 0 => warnings.push(
            "bootstrap_expect is even number: A cluster with an even number of servers does not achieve optimum fault \
             tolerance. See https://www.consul.io/docs/internals/consensus.html#deployment-table"
                .to_owned(),
        ),
        _ => {}
    }
    u32::try_from(expect).unwrap_or_default()
}

// === the parts ===

fn tls(file: &file::Tls, p: &mut Problems<'_>) -> TlsConfig {
    let mut part = |name: &str, own: &file::TlsPart| {
        let path = |own: &Option<String>, default: &Option<String>| {
            own.as_ref()
                .or(default.as_ref())
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        };
        let defaults = &file.defaults;
        let min_version = match own
            .tls_min_version
            .as_deref()
            .or(defaults.tls_min_version.as_deref())
        {
            // rustls speaks nothing older than 1.2, which is then the least.
            None
            | Some(
                "" | "TLSv1_0" | "TLSv1_1" | "TLSv1_2" | "TLS10" | "TLS11" | "TLS12" | "tls10"
                | "tls11" | "tls12",
            ) => TlsVersion::V1_2,
            Some("TLSv1_3" | "TLS13" | "tls13") => TlsVersion::V1_3,
            Some(other) => {
                let from = if own.tls_min_version.is_some() {
                    name
                } else {
                    "defaults"
                };
                p.at(
                    &format!("tls.{from}.tls_min_version"),
                    format!(
                        "tls.{from}.tls_min_version: unknown version {other:?}: TLSv1_2 or TLSv1_3"
                    ),
                );
                TlsVersion::V1_2
            }
        };
        let files = TlsFiles {
            ca_file: path(&own.ca_file, &defaults.ca_file),
            ca_path: path(&own.ca_path, &defaults.ca_path),
            cert_file: path(&own.cert_file, &defaults.cert_file),
            key_file: path(&own.key_file, &defaults.key_file),
            verify_incoming: own
                .verify_incoming
                .or(defaults.verify_incoming)
                .unwrap_or_default(),
            verify_outgoing: own
                .verify_outgoing
                .or(defaults.verify_outgoing)
                .unwrap_or_default(),
            min_version,
        };
        if files.cert_file.is_some() != files.key_file.is_some() {
            p.at(
                &format!("tls.{name}"),
                format!("tls.{name}: cert_file and key_file need each other"),
            );
        }
        if files.verify_incoming && files.ca_file.is_none() && files.ca_path.is_none() {
            p.at(
                &format!("tls.{name}"),
                format!("tls.{name}: VerifyIncoming set but no CA certificates were provided"),
            );
        }
        files
    };
    TlsConfig {
        https: part("https", &file.https),
        grpc: part("grpc", &file.grpc),
        internal_rpc: part("internal_rpc", &file.internal_rpc),
    }
}

fn http(file: &file::Http, p: &mut Problems<'_>) -> HttpConfig {
    let allow_write_from = file.allow_write_http_from.iter().filter_map(|text| {
        let network = Network::parse(text);
        if network.is_none() {
            let message = format!(
                "http_config.allow_write_http_from: {text:?} is not a network such as 10.0.0.0/8"
            );
            p.at("http_config.allow_write_http_from", message);
        }
        network
    });
    HttpConfig {
        allow_write_from: allow_write_from.collect(),
        response_headers: file.response_headers.clone(),
        block_endpoints: file.block_endpoints.clone(),
        max_header_bytes: file.max_header_bytes,
        read_timeout: file.read_timeout.to_std(),
        read_header_timeout: file.read_header_timeout.to_std(),
        write_timeout: file.write_timeout.to_std(),
        idle_timeout: file.idle_timeout.to_std(),
    }
}

fn dns(file: &file::Dns, recursors: &[String], p: &mut Problems<'_>) -> DnsConfig {
    let mut limit = |key: &str, value: i64| {
        usize::try_from(value).unwrap_or_else(|_| {
            let message = format!(
                "dns_config.{key} cannot be {value}. Must be greater than or equal to zero"
            );
            p.at(&format!("dns_config.{key}"), message);
            0
        })
    };
    let (udp_answer_limit, a_record_limit) = (
        limit("udp_answer_limit", file.udp_answer_limit),
        limit("a_record_limit", file.a_record_limit),
    );
    let random_recursor = match file.recursor_strategy.as_str() {
        "random" => true,
        "" | "sequential" => false,
        other => {
            let message = format!(
                "dns_config.recursor_strategy: unknown strategy {other:?}: sequential or random"
            );
            p.at("dns_config.recursor_strategy", message);
            false
        }
    };
    let recursors = recursors.iter().filter_map(|text| {
        let address = recursor(text);
        if address.is_none() {
            p.at(
                "recursors",
                format!("recursors: {text:?} is not an address with or without a port"),
            );
        }
        address
    });
    DnsConfig {
        recursors: recursors.collect(),
        only_passing: file.only_passing,
        allow_stale: file.allow_stale,
        max_stale: file.max_stale.to_std(),
        node_ttl: file.node_ttl.to_std(),
        service_ttl: file
            .service_ttl
            .iter()
            .map(|(name, ttl)| (name.clone(), ttl.to_std()))
            .collect::<BTreeMap<_, Duration>>(),
        enable_truncate: file.enable_truncate,
        udp_answer_limit,
        a_record_limit,
        disable_compression: file.disable_compression,
        node_meta_txt: file.enable_additional_node_meta_txt,
        soa: SoaConfig {
            refresh: file.soa.refresh,
            retry: file.soa.retry,
            expire: file.soa.expire,
            min_ttl: file.soa.min_ttl,
        },
        random_recursor,
        recursor_timeout: file.recursor_timeout.to_std(),
    }
}

fn recursor(text: &str) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(bare.parse().ok()?, 53)))
}

/// A domain with its closing dot.
fn domain(p: &mut Problems<'_>, key: &str, text: &str) -> String {
    let name = text.trim_matches('.').to_lowercase();
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 200 || !name.split('.').all(good_label) {
        p.at(key, format!("{key}: {text:?} is not a domain"));
    }
    format!("{name}.")
}

/// The alternative domain. Its first label must not look like a part of a name in the domain.
fn domain_alt(p: &mut Problems<'_>, text: &str, datacenter: &str) -> String {
    let name = domain(p, "alt_domain", text);
    let first = name.split('.').next().unwrap_or_default();
    if ["service", "connect", "node", "query", "addr", datacenter].contains(&first) {
        p.at(
            "alt_domain",
            format!(
                "alt_domain cannot start with {{service,connect,node,query,addr,{datacenter}}}"
            ),
        );
    }
    name
}

fn telemetry_filter(file: &file::Telemetry) -> (TelemetryFilter, Vec<&String>) {
    let mut filter = TelemetryFilter {
        default: file.filter_default,
        allow: Vec::new(),
        block: Vec::new(),
    };
    let mut bad = Vec::new();
    for rule in &file.prefix_filter {
        match (rule.strip_prefix('+'), rule.strip_prefix('-')) {
            (Some(allowed), _) => filter.allow.push(allowed.to_owned()),
            (_, Some(blocked)) => filter.block.push(blocked.to_owned()),
            _ => bad.push(rule),
        }
    }
    (filter, bad)
}

fn check_definitions(
    file: &FileConfig,
    scripts: ScriptPolicy,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) {
    let nodes = |key: &str| {
        p.document
            .get(key)
            .and_then(Node::as_list)
            .unwrap_or_default()
    };
    let (service_nodes, check_nodes) = (nodes("services"), nodes("checks"));
    for (index, service) in file.services.iter().enumerate() {
        if let Err(error) = service.validate(Origin::File, scripts) {
            p.at_node(
                service_nodes.get(index),
                format!("services[{index}] ({:?}): {error}", service.name),
            );
        }
        warnings.extend(service.warnings());
    }
    for (index, check) in file.checks.iter().enumerate() {
        let mut problem = |error: &dyn std::fmt::Display| {
            p.at_node(
                check_nodes.get(index),
                format!("checks[{index}] ({:?}): {error}", check.name),
            );
        };
        if check.name.is_empty() {
            problem(&"Missing check name");
        }
        if let Err(error) = check.validate(Origin::File, scripts) {
            problem(&format!("Invalid check: {error}"));
        }
    }
}

fn config_entries(p: &mut Problems<'_>, warnings: &mut Vec<String>) -> Vec<ConfigEntry> {
    let document = p.document;
    let nodes = document
        .at(["config_entries", "bootstrap"])
        .and_then(Node::as_list)
        .unwrap_or_default();
    let mut entries = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match config_entry::decode_node(node) {
            Ok(entry) => entries.push(entry),
            Err(ConfigEntryError::Kind(error @ UnknownKind::NotBuilt(_))) => {
                warnings.push(format!(
                    "config_entries.bootstrap[{index}] has no effect: {error}"
                ));
            }
            // Has its place already.
            Err(ConfigEntryError::Decode(error)) => p.list.push(error.to_string()),
            Err(error) => p.at_node(
                Some(node),
                format!("config_entries.bootstrap[{index}]: {error}"),
            ),
        }
    }
    entries
}
