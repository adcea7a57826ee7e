//! `DebugConfig` of `/v1/agent/self`: the configuration under the names that Consul gives it, without secrets.

use serde_json::{Value, json};
use wharf_config::GoDuration;

use super::{Listen, RuntimeConfig, Secret, TlsFiles};

/// What stands for a secret that is set.
const HIDDEN: &str = "hidden";

impl RuntimeConfig {
    /// The configuration for people and tools to look at. No token or key is in it.
    pub fn debug_config(&self) -> Value {
        let duration = |duration| GoDuration::from(duration).to_string();
        let secret = |secret: &Secret| if secret.is_empty() { "" } else { HIDDEN };
        // Consul's word for "off".
        let port = |listen: &[Listen]| listen.iter().find_map(Listen::port).map_or(-1, i32::from);
        let addresses =
            |listen: &[Listen]| listen.iter().map(ToString::to_string).collect::<Vec<_>>();
        let dns_addresses: Vec<String> = self
            .listen
            .dns
            .iter()
            .flat_map(|a| [format!("tcp://{a}"), format!("udp://{a}")])
            .collect();
        let server_port = self
            .listen
            .server
            .map_or(-1, |address| i32::from(address.port()));
        let tls = |files: &TlsFiles| {
            json!({
                "CAFile": files.ca_file,
                "CAPath": files.ca_path,
                "CertFile": files.cert_file,
                "KeyFile": files.key_file.as_ref().map(|_| HIDDEN),
                "VerifyIncoming": files.verify_incoming,
                "VerifyOutgoing": files.verify_outgoing,
            })
        };
        let live = &self.reloadable;
        let services = live.services.iter().map(|service| {
            json!({"ID": service.id(), "Name": service.name, "Port": service.port, "Tags": service.tags, "Token": secret(&service.token)})
        });
        let checks = live.checks.iter().map(|check| {
            json!({"ID": check.id(), "Name": check.name, "Type": check.kind().as_str(), "Token": secret(&check.token)})
        });
        let keys = [
            ("ACLEnabled", json!(self.acl_enabled)),
            (
                "ACLTokens",
                json!({
                    "ACLAgentRecoveryToken": secret(&live.tokens.agent_recovery),
                    "ACLAgentToken": secret(&live.tokens.agent),
                    "ACLDefaultToken": secret(&live.tokens.default),
                    "ACLReplicationToken": secret(&live.tokens.replication),
                    "DNSToken": secret(&live.tokens.dns),
                }),
            ),
            ("AdvertiseAddrLAN", json!(self.advertise_addr)),
            ("AdvertiseAddrWAN", json!(self.advertise_addr_wan)),
            (
                "AllowWriteHTTPFrom",
                json!(
                    self.http
                        .allow_write_from
                        .iter()
                        .map(|network| format!("{}/{}", network.address, network.prefix))
                        .collect::<Vec<_>>()
                ),
            ),
            ("AutoReloadConfig", json!(self.auto_reload_config)),
            ("BindAddr", json!(self.bind_addr)),
            ("Bootstrap", json!(self.bootstrap)),
            ("BootstrapExpect", json!(self.bootstrap_expect)),
            ("CheckOutputMaxSize", json!(self.check_output_max_size)),
            (
                "CheckUpdateInterval",
                json!(duration(self.check_update_interval)),
            ),
            ("Checks", json!(checks.collect::<Vec<_>>())),
            ("ConnectEnabled", json!(self.connect_enabled)),
            ("ConnectSidecarMaxPort", json!(self.sidecar_ports.end())),
            ("ConnectSidecarMinPort", json!(self.sidecar_ports.start())),
            ("DNSARecordLimit", json!(live.dns.a_record_limit)),
            ("DNSAddrs", json!(dns_addresses)),
            ("DNSAllowStale", json!(live.dns.allow_stale)),
            (
                "DNSAltDomain",
                json!(self.alt_domain.as_deref().unwrap_or_default()),
            ),
            ("DNSDisableCompression", json!(live.dns.disable_compression)),
            ("DNSDomain", json!(self.domain)),
            ("DNSEnableTruncate", json!(live.dns.enable_truncate)),
            ("DNSMaxStale", json!(duration(live.dns.max_stale))),
            ("DNSNodeMetaTXT", json!(live.dns.node_meta_txt)),
            ("DNSNodeTTL", json!(duration(live.dns.node_ttl))),
            ("DNSOnlyPassing", json!(live.dns.only_passing)),
            (
                "DNSPort",
                json!(
                    self.listen
                        .dns
                        .first()
                        .map_or(-1, |address| i32::from(address.port()))
                ),
            ),
            (
                "DNSRecursorTimeout",
                json!(duration(live.dns.recursor_timeout)),
            ),
            ("DNSRecursors", json!(live.dns.recursors)),
            (
                "DNSSOA",
                json!({"Expire": live.dns.soa.expire, "Minttl": live.dns.soa.min_ttl, "Refresh": live.dns.soa.refresh, "Retry": live.dns.soa.retry}),
            ),
            (
                "DNSServiceTTL",
                json!(
                    live.dns
                        .service_ttl
                        .iter()
                        .map(|(name, ttl)| (name.clone(), Value::from(duration(*ttl))))
                        .collect::<serde_json::Map<_, _>>()
                ),
            ),
            ("DNSUDPAnswerLimit", json!(live.dns.udp_answer_limit)),
            (
                "DataDir",
                json!(
                    self.data_dir
                        .as_deref()
                        .map_or_else(String::new, |path| path.display().to_string())
                ),
            ),
            ("Datacenter", json!(self.datacenter)),
            ("DefaultQueryTime", json!(duration(self.default_query_time))),
            ("DevMode", json!(self.dev_mode)),
            ("DiscardCheckOutput", json!(live.discard_check_output)),
            (
                "DiscoveryMaxStale",
                json!(duration(self.discovery_max_stale)),
            ),
            ("EnableDebug", json!(self.enable_debug)),
            ("EnableLocalScriptChecks", json!(self.scripts.from_files)),
            ("EnableRemoteScriptChecks", json!(self.scripts.from_api)),
            ("ExposeMaxPort", json!(self.expose_ports.end())),
            ("ExposeMinPort", json!(self.expose_ports.start())),
            ("GRPCAddrs", json!(addresses(&self.listen.grpc))),
            ("GRPCPort", json!(port(&self.listen.grpc))),
            ("GRPCTLSAddrs", json!(addresses(&self.listen.grpc_tls))),
            ("GRPCTLSPort", json!(port(&self.listen.grpc_tls))),
            ("HTTPAddrs", json!(addresses(&self.listen.http))),
            ("HTTPBlockEndpoints", json!(self.http.block_endpoints)),
            (
                "HTTPMaxConnsPerClient",
                json!(live.limits.http_max_conns_per_client),
            ),
            ("HTTPPort", json!(port(&self.listen.http))),
            ("HTTPResponseHeaders", json!(self.http.response_headers)),
            ("HTTPSAddrs", json!(addresses(&self.listen.https))),
            (
                "HTTPSHandshakeTimeout",
                json!(duration(live.limits.https_handshake_timeout)),
            ),
            ("HTTPSPort", json!(port(&self.listen.https))),
            ("KVMaxValueSize", json!(live.limits.kv_max_value_size)),
            ("LeaveDrainTime", json!(duration(self.leave_drain_time))),
            ("LeaveOnTerm", json!(self.leave_on_terminate)),
            (
                "Logging",
                json!({
                    "LogFilePath": self.log.file,
                    "LogJSON": self.log.json,
                    "LogLevel": live.log_level.as_str().to_uppercase(),
                    "LogRotateBytes": self.log.rotate_bytes,
                    "LogRotateDuration": duration(self.log.rotate_after),
                    "LogRotateMaxFiles": self.log.rotate_max_files.unwrap_or_default(),
                }),
            ),
            ("MaxQueryTime", json!(duration(self.max_query_time))),
            (
                "NodeID",
                json!(self.node_id.map_or_else(String::new, |id| id.to_string())),
            ),
            ("NodeMeta", json!(live.node_meta)),
            ("NodeName", json!(self.node_name)),
            ("PidFile", json!(self.pid_file)),
            ("PrimaryDatacenter", json!(self.datacenter)),
            (
                "RPCAdvertiseAddr",
                json!(format!(
                    "tcp://{}",
                    std::net::SocketAddr::new(
                        self.advertise_addr,
                        u16::try_from(server_port).unwrap_or_default()
                    )
                )),
            ),
            (
                "RPCBindAddr",
                json!(self.listen.server.map(|address| format!("tcp://{address}"))),
            ),
            ("RPCHoldTimeout", json!(duration(self.rpc_hold_timeout))),
            ("RPCMaxBurst", json!(live.limits.rates.passed_on.burst)),
            (
                "RPCMaxConnsPerClient",
                json!(live.limits.rpc_max_conns_per_client),
            ),
            (
                "RPCRateLimit",
                json!(live.limits.rates.passed_on.rate.unwrap_or(-1.0)),
            ),
            ("RaftSnapshotThreshold", json!(self.raft.snapshot_threshold)),
            ("RaftTrailingLogs", json!(self.raft.trailing_logs)),
            (
                "ReconnectTimeoutLAN",
                json!(duration(self.reconnect_timeout)),
            ),
            ("RetryJoinLAN", json!(self.retry_join)),
            (
                "SerfAdvertiseAddrLAN",
                json!(format!(
                    "tcp://{}",
                    std::net::SocketAddr::new(self.advertise_addr, 8301)
                )),
            ),
            ("ServerMode", json!(self.server)),
            ("ServerPort", json!(server_port)),
            ("Services", json!(services.collect::<Vec<_>>())),
            ("SessionTTLMin", json!(duration(self.session_ttl_min))),
            ("SkipLeaveOnInt", json!(self.skip_leave_on_interrupt)),
            (
                "TLS",
                json!({"GRPC": tls(&self.tls.grpc), "HTTPS": tls(&self.tls.https), "InternalRPC": tls(&self.tls.internal_rpc)}),
            ),
            (
                "Telemetry",
                json!({
                    "AllowedPrefixes": live.telemetry_filter.allow,
                    "BlockedPrefixes": live.telemetry_filter.block,
                    "DisableHostname": self.telemetry.disable_hostname,
                    "FilterDefault": live.telemetry_filter.default,
                    "MetricsPrefix": self.telemetry.metrics_prefix,
                    "PrometheusOpts": {"Expiration": duration(self.telemetry.prometheus_retention)},
                }),
            ),
            ("TranslateWANAddrs", json!(self.translate_wan_addrs)),
            ("TxnMaxReqLen", json!(live.limits.txn_max_req_len)),
            (
                "UIConfig",
                json!({"ContentPath": self.ui.content_path, "Enabled": self.ui.enabled}),
            ),
            ("UnixSocketGroup", json!(self.unix_socket.group)),
            (
                "UnixSocketMode",
                json!(
                    self.unix_socket
                        .mode
                        .map_or_else(String::new, |mode| format!("{mode:o}"))
                ),
            ),
            ("UnixSocketUser", json!(self.unix_socket.user)),
            ("Watches", json!(live.watches.len())),
        ];
        Value::Object(
            keys.into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }
}
