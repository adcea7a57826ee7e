//! Keys of Consul's configuration that are accepted and have no effect, with the reason.
//!
//! A file written for Consul must start here, and its owner must learn once what is not done. A key that is
//! neither here nor in [`super::file`] is a mistake.

use wharf_config::{Map, Node, Position, Value, same_key};

pub(super) const NO_GOSSIP: &str = "there is no gossip here: servers detect failures by leases";
pub(super) const NO_WAN: &str = "joining datacenters is not built yet";
pub(super) const NO_ENTERPRISE: &str = "a feature of Consul Enterprise";
const NO_PEERING: &str = "cluster peering is not built yet";
const NO_AUTO_CONFIG: &str = "agents get no certificates from servers yet";
const NO_CA: &str = "the mesh certificate authority is not built yet";
const NO_ACL: &str = "ACLs are not built yet";
const OWN_STORE: &str = "the log store is wharf's own";
const OWN_UI: &str = "a setting of Consul's own web interface";
const PROMETHEUS: &str = "metrics are served for Prometheus; nothing is pushed";
const NO_CACHE: &str =
    "reads come from the local replica or the servers; there is no agent cache to tune";
const NO_XDS: &str = "there is no Envoy control plane yet";
const ONE_PROTOCOL: &str = "there is one version of the protocol";
const OLD: &str = "Consul itself no longer uses it";

/// A key that was given and has no effect.
#[derive(Clone, Debug, PartialEq)]
pub struct IgnoredKey {
    /// The key as it was written, with the blocks around it: `ports.serf_lan`.
    pub key: String,
    pub position: Position,
    pub reason: &'static str,
}

/// By path; a dot enters a block. Everything below a key goes with it.
static IGNORED: &[(&str, &str)] = &[
    ("acl.agent_recovery_token", NO_ACL),
    ("acl.default_policy_ttl", NO_ACL),
    ("acl.down_policy", NO_ACL),
    ("acl.enable_key_list_policy", NO_ACL),
    ("acl.enable_token_persistence", NO_ACL),
    ("acl.enable_token_replication", NO_ACL),
    ("acl.msp_disable_bootstrap", NO_ENTERPRISE),
    ("acl.policy_ttl", NO_ACL),
    ("acl.role_ttl", NO_ACL),
    ("acl.token_ttl", NO_ACL),
    ("acl.tokens.managed_service_provider", NO_ENTERPRISE),
    ("acl_agent_master_token", OLD),
    ("acl_agent_token", OLD),
    ("acl_datacenter", OLD),
    ("acl_default_policy", OLD),
    ("acl_down_policy", OLD),
    ("acl_enable_key_list_policy", OLD),
    ("acl_master_token", OLD),
    ("acl_replication_token", OLD),
    ("acl_token", OLD),
    ("acl_ttl", OLD),
    (
        "advertise_addr_ipv4",
        "advertise_addr is what is advertised",
    ),
    (
        "advertise_addr_ipv6",
        "advertise_addr is what is advertised",
    ),
    ("advertise_addr_wan_ipv4", NO_WAN),
    ("advertise_addr_wan_ipv6", NO_WAN),
    ("advertise_reconnect_timeout", NO_GOSSIP),
    ("allow_write_http_from", OLD),
    ("audit", NO_ENTERPRISE),
    ("auto_config", NO_AUTO_CONFIG),
    ("auto_encrypt", NO_AUTO_CONFIG),
    ("cache", NO_CACHE),
    ("check_reap_interval", OLD),
    ("cloud", "a service of HashiCorp"),
    ("connect.ca_config", NO_CA),
    ("connect.ca_provider", NO_CA),
    ("connect.enable_mesh_gateway_wan_federation", NO_WAN),
    ("connect.enable_serverless_plugin", NO_ENTERPRISE),
    ("connect.test_ca_leaf_root_change_spread", NO_CA),
    ("default_intention_policy", "intentions are not built yet"),
    ("disable_anonymous_signature", "nothing is ever sent home"),
    (
        "disable_coordinates",
        "network coordinates are not built yet",
    ),
    (
        "disable_http_unprintable_char_filter",
        "paths with unprintable characters are always refused",
    ),
    ("disable_keyring_file", NO_GOSSIP),
    (
        "disable_kv_key_validation",
        "keys are checked for path traversal only",
    ),
    (
        "disable_remote_exec",
        "remote execution does not exist here",
    ),
    ("disable_update_check", "nothing is ever sent home"),
    ("dns_config.cache_max_age", NO_CACHE),
    ("dns_config.prefer_namespace", NO_ENTERPRISE),
    ("dns_config.use_cache", NO_CACHE),
    ("enable_acl_replication", OLD),
    (
        "enable_agent_tls_for_checks",
        "the TLS settings of the check itself count",
    ),
    (
        "enable_central_service_config",
        "service-defaults and proxy-defaults always apply",
    ),
    (
        "enable_syslog",
        "the log goes to standard error, where a service manager picks it up",
    ),
    ("encrypt", NO_GOSSIP),
    ("encrypt_verify_incoming", NO_GOSSIP),
    ("encrypt_verify_outgoing", NO_GOSSIP),
    ("experiments", "there are none"),
    ("gossip_lan", NO_GOSSIP),
    ("gossip_wan", NO_GOSSIP),
    ("http_config.use_cache", NO_CACHE),
    ("license_path", NO_ENTERPRISE),
    (
        "limits.rpc_client_timeout",
        "a call to a server lasts as long as its caller waits",
    ),
    (
        "limits.rpc_handshake_timeout",
        "the handshake limit is fixed",
    ),
    (
        "limits.grpc_max_conns_per_client",
        "agents share one gRPC connection",
    ),
    ("locality", "routing by locality is not built yet"),
    ("node_meta_refresh", OLD),
    ("non_voting_server", NO_ENTERPRISE),
    ("partition", NO_ENTERPRISE),
    ("peering", NO_PEERING),
    (
        "performance.grpc_keepalive_interval",
        "keepalive times are fixed",
    ),
    (
        "performance.grpc_keepalive_timeout",
        "keepalive times are fixed",
    ),
    ("ports.serf_lan", NO_GOSSIP),
    ("ports.serf_wan", NO_GOSSIP),
    ("primary_datacenter", NO_WAN),
    ("primary_gateways", NO_WAN),
    ("primary_gateways_interval", NO_WAN),
    ("protocol", ONE_PROTOCOL),
    ("raft_boltdb", OWN_STORE),
    ("raft_logstore", OWN_STORE),
    (
        "raft_prevote_disabled",
        "candidates always ask before an election",
    ),
    ("raft_protocol", ONE_PROTOCOL),
    (
        "raft_snapshot_interval",
        "the number of new log entries decides when a snapshot is made",
    ),
    ("read_replica", NO_ENTERPRISE),
    ("reconnect_timeout_wan", NO_WAN),
    (
        "rejoin_after_leave",
        "an agent always rejoins the servers it knew",
    ),
    ("reporting", "nothing is ever sent home"),
    (
        "retry_interval",
        "the time between attempts adapts by itself",
    ),
    ("retry_interval_wan", NO_WAN),
    ("retry_join_wan", NO_WAN),
    ("retry_max", "joining is tried until it works"),
    ("retry_max_wan", NO_WAN),
    ("rpc.enable_streaming", "changes are always streamed"),
    ("segment", NO_ENTERPRISE),
    ("segments", NO_ENTERPRISE),
    ("serf_allowed_cidrs_lan", NO_GOSSIP),
    ("serf_allowed_cidrs_wan", NO_GOSSIP),
    ("serf_lan", NO_GOSSIP),
    ("serf_wan", NO_GOSSIP),
    (
        "server_name",
        "certificates are checked for the server's role, not for a name",
    ),
    (
        "server_rejoin_age_max",
        "a server that was away catches up, however long it was",
    ),
    ("snapshot_agent", NO_ENTERPRISE),
    ("start_join_wan", NO_WAN),
    (
        "syslog_facility",
        "the log goes to standard error, where a service manager picks it up",
    ),
    ("telemetry.circonus_api_app", PROMETHEUS),
    ("telemetry.circonus_api_token", PROMETHEUS),
    ("telemetry.circonus_api_url", PROMETHEUS),
    ("telemetry.circonus_broker_id", PROMETHEUS),
    ("telemetry.circonus_broker_select_tag", PROMETHEUS),
    ("telemetry.circonus_check_display_name", PROMETHEUS),
    (
        "telemetry.circonus_check_force_metric_activation",
        PROMETHEUS,
    ),
    ("telemetry.circonus_check_id", PROMETHEUS),
    ("telemetry.circonus_check_instance_id", PROMETHEUS),
    ("telemetry.circonus_check_search_tag", PROMETHEUS),
    ("telemetry.circonus_check_tags", PROMETHEUS),
    ("telemetry.circonus_submission_interval", PROMETHEUS),
    ("telemetry.circonus_submission_url", PROMETHEUS),
    ("telemetry.disable_compat_1.9", OLD),
    ("telemetry.disable_per_tenancy_usage_metrics", NO_ENTERPRISE),
    ("telemetry.dogstatsd_addr", PROMETHEUS),
    ("telemetry.dogstatsd_tags", PROMETHEUS),
    (
        "telemetry.enable_host_metrics",
        "the machine's metrics are its node exporter's",
    ),
    ("telemetry.retry_failed_connection", PROMETHEUS),
    ("telemetry.statsd_address", PROMETHEUS),
    ("telemetry.statsite_address", PROMETHEUS),
    (
        "tls.defaults.tls_cipher_suites",
        "the cipher suites of rustls are all safe",
    ),
    (
        "tls.defaults.verify_server_hostname",
        "servers always present a server certificate",
    ),
    (
        "tls.grpc.tls_cipher_suites",
        "the cipher suites of rustls are all safe",
    ),
    ("tls.grpc.use_auto_cert", NO_AUTO_CONFIG),
    (
        "tls.https.tls_cipher_suites",
        "the cipher suites of rustls are all safe",
    ),
    (
        "tls.internal_rpc.tls_cipher_suites",
        "the cipher suites of rustls are all safe",
    ),
    (
        "tls.internal_rpc.verify_server_hostname",
        "servers always present a server certificate",
    ),
    ("tls_cipher_suites", OLD),
    ("tls_prefer_server_cipher_suites", OLD),
    ("ui_config.dashboard_url_templates", OWN_UI),
    (
        "ui_config.dir",
        "the web interface is a part of the program",
    ),
    ("ui_config.hcp_enabled", OWN_UI),
    ("ui_config.metrics_provider", OWN_UI),
    ("ui_config.metrics_provider_files", OWN_UI),
    ("ui_config.metrics_provider_options_json", OWN_UI),
    ("ui_config.metrics_proxy", OWN_UI),
    ("ui_content_path", OLD),
    ("ui_dir", OLD),
    ("use_streaming_backend", "changes are always streamed"),
    (
        "verify_server_hostname",
        "servers always present a server certificate",
    ),
    ("version", OLD),
    ("version_prerelease", OLD),
    ("xds", NO_XDS),
];

/// Takes the keys without effect out of a document.
pub(super) fn take_ignored(document: &mut Node) -> Vec<IgnoredKey> {
    let mut found = Vec::new();
    for (path, reason) in IGNORED {
        let (blocks, last) = match path.rsplit_once('.') {
            // The one key with a dot in its name.
            _ if path.ends_with("_1.9") => ("telemetry", "disable_compat_1.9"),
            Some((blocks, last)) => (blocks, last),
            None => ("", *path),
        };
        take(
            document,
            &mut String::new(),
            blocks,
            last,
            reason,
            &mut found,
        );
    }
    found
}

fn take(
    node: &mut Node,
    above: &mut String,
    blocks: &str,
    last: &str,
    reason: &'static str,
    found: &mut Vec<IgnoredKey>,
) {
    match &mut node.value {
        Value::Map(map) if blocks.is_empty() => {
            while let Some((key, position)) = find(map, last) {
                map.remove(&key);
                found.push(IgnoredKey {
                    key: format!("{above}{key}"),
                    position,
                    reason,
                });
            }
        }
        Value::Map(map) => {
            let (block, rest) = blocks.split_once('.').unwrap_or((blocks, ""));
            let length = above.len();
            if let Some(inner) = map.get_mut(block) {
                above.push_str(block);
                above.push('.');
                take(inner, above, rest, last, reason, found);
            }
            above.truncate(length);
        }
        // A block in HCL may come as a list of one.
        Value::List(items) => items
            .iter_mut()
            .for_each(|item| take(item, above, blocks, last, reason, found)),
        _ => {}
    }
}

fn find(map: &Map, key: &str) -> Option<(String, Position)> {
    map.iter()
        .find(|entry| same_key(&entry.key, key))
        .map(|entry| (entry.key.clone(), entry.position.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wharf_config::parse_hcl;

    use super::*;

    #[test]
    fn ignored_keys_are_taken_out_and_told() {
        let text = "server = true\nencrypt = \"x\"\nports { http = 1\n serf_lan = 2 }\ngossip_lan { a = 1 }\n\
                    telemetry { \"disable_compat_1.9\" = true }\ntls { defaults { tls_cipher_suites = \"a\" } }";
        let mut document = parse_hcl("c.hcl", text).unwrap();
        let mut ignored = take_ignored(&mut document);
        ignored.sort_by_key(|ignored| ignored.position.line);
        let shown: Vec<String> = ignored
            .iter()
            .map(|i| format!("{} {}", i.position, i.key))
            .collect();
        assert_eq!(
            shown,
            [
                "c.hcl:2:1 encrypt",
                "c.hcl:4:2 ports.serf_lan",
                "c.hcl:5:1 gossip_lan",
                "c.hcl:6:13 telemetry.disable_compat_1.9",
                "c.hcl:7:18 tls.defaults.tls_cipher_suites",
            ]
        );
        assert_eq!(
            document.to_json(),
            json!({"server": true, "ports": {"http": 1}, "telemetry": {}, "tls": {"defaults": {}}})
        );
    }

    #[test]
    fn the_table_has_no_repeats() {
        let mut paths: Vec<_> = IGNORED.iter().map(|(path, _)| path).collect();
        paths.sort();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }
}
