//! From the merged file configuration to the one the agent runs with: defaults that depend on something, checks
//! of meaning. Addresses and ports are in [`super::listen`].

mod bootstrap;
mod definitions;
mod dns;
mod platform;
mod tls;

use std::path::PathBuf;

use uuid::Uuid;
use wharf_config::{GoDuration, Node};

use self::{
    bootstrap::check_bootstrap,
    definitions::{check_definitions, config_entries},
    dns::{dns, domain, domain_alt},
    platform::platform,
    tls::tls,
};
use super::Environment;
use super::file::{self, FileConfig};
use super::listen::{detect_advertised, ip_key, listeners, port_range};
use super::problems::Problems;
use super::runtime::{
    DnsConfig, Document, HttpConfig, Limits, LogConfig, LogLevel, Network, RaftConfig, Reloadable,
    RuntimeConfig, SoaConfig, TelemetryConfig, TelemetryFilter, TlsConfig, TlsFiles, TlsVersion,
    Tokens, UiConfig, UnixSocket,
};
use crate::definition::{ScriptPolicy, dns_warning, validate_node_meta};
use crate::rates::{PassedOn, RateLimits, RateMode};

/// The least `reconnect_timeout`, as Consul has it.
const RECONNECT_TIMEOUT_MIN: GoDuration = GoDuration::from_secs(8 * 3600);

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
        p.at(
            "data_dir",
            "data_dir cannot be empty: set it (-data-dir=DIR), or try things out in memory with -dev",
        );
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

    if file.server && !dev && file.ports.server < 0 {
        p.at(
            "ports.server",
            "ports.server: a server needs one: other servers and all agents find it there (to try things out alone: -dev)",
        );
    }
    if !file.server && !dev && file.retry_join.is_empty() && file.start_join.is_empty() {
        warnings.push(
            "this agent knows no server: say where one is with retry_join (-retry-join=ADDRESS)"
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
    if file.reconnect_timeout < RECONNECT_TIMEOUT_MIN {
        let message = format!(
            "reconnect_timeout cannot be {}. Must be at least {RECONNECT_TIMEOUT_MIN}: a node is taken out of the catalog after it, with everything on it",
            file.reconnect_timeout
        );
        p.at("reconnect_timeout", message);
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
    let platform = platform(&file.platform, p);
    let rates = rates(&file.limits, p);
    if let Err(error) = file.autopilot.check() {
        p.at("autopilot", format!("autopilot: {error}"));
    }
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
        // Where it is off, nobody says what it is elsewhere.
        join_port: match u16::try_from(file.ports.server) {
            Ok(port @ 1..) => port,
            _ => file::SERVER_PORT,
        },
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
        reconnect_timeout: file.reconnect_timeout.to_std(),
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
        platform,
        autopilot: file.autopilot.clone(),
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
                rates,
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

fn rates(limits: &file::Limits, p: &mut Problems<'_>) -> RateLimits {
    let file = &limits.request_limits;
    let mode = match file.mode.as_str() {
        "disabled" | "" => RateMode::Disabled,
        "permissive" => RateMode::Permissive,
        "enforcing" => RateMode::Enforcing,
        other => {
            let message = format!(
                "limits.request_limits.mode: {other:?} is none of disabled, permissive and enforcing"
            );
            p.at("limits.request_limits.mode", message);
            RateMode::Disabled
        }
    };
    let rate = |rate: f64| (rate >= 0.0 && rate.is_finite()).then_some(rate);
    RateLimits {
        mode,
        reads: rate(file.read_rate),
        writes: rate(file.write_rate),
        passed_on: PassedOn {
            rate: rate(limits.rpc_rate),
            burst: limits.rpc_max_burst,
        },
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
