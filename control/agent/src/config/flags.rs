//! The flags of `agent`: every one that Consul has.
//!
//! A flag that means something names the configuration key it sets, so that a flag and a file are checked by the
//! same code and a mistake is reported in the same way. The command line is parsed elsewhere, from this table.

use std::path::PathBuf;
use std::sync::Arc;

use wharf_config::{Format, GoDuration, Map, Node, Position, Value};

/// One flag of `agent`.
#[derive(Clone, Copy, Debug)]
pub struct FlagSpec {
    /// The name, without dashes in front.
    pub name: &'static str,
    pub kind: FlagKind,
    pub help: &'static str,
    pub effect: FlagEffect,
}

/// What values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// May stand alone; `-flag=false` is possible.
    Bool,
    String,
    Int,
    /// As Go writes durations: `10s`, `1h30m`.
    Duration,
    /// A string that may be given several times.
    Repeated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagEffect {
    /// Sets this configuration key (a dot enters a block).
    Sets(&'static str),
    /// Says what configuration is read, see [`AgentFlags`].
    Source,
    /// Accepted for Consul's sake. Why it has no meaning here.
    Ignored(&'static str),
}

/// Why the value of a flag is refused. The text is that of Go's flag package.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("invalid value {value:?} for flag -{name}: {why}")]
    Value {
        name: &'static str,
        value: String,
        why: String,
    },
}

/// The flags of one command line, checked.
#[derive(Clone, Debug)]
pub struct AgentFlags {
    pub dev: bool,
    /// Files and folders, in the order in which they were given.
    pub sources: Vec<PathBuf>,
    /// For every file, whatever its name.
    pub format: Option<Format>,
    /// Pieces of HCL. They win over everything else.
    pub hcl: Vec<String>,
    /// The lists that flags gave: files append to them.
    pub(super) lists: Node,
    /// The single values that flags gave: they win over files.
    pub(super) values: Node,
    /// Flags without meaning here, each once.
    pub(super) ignored: Vec<&'static FlagSpec>,
}

const fn flag(
    name: &'static str,
    kind: FlagKind,
    key: &'static str,
    help: &'static str,
) -> FlagSpec {
    FlagSpec {
        name,
        kind,
        help,
        effect: FlagEffect::Sets(key),
    }
}

const fn source(name: &'static str, kind: FlagKind, help: &'static str) -> FlagSpec {
    FlagSpec {
        name,
        kind,
        help,
        effect: FlagEffect::Source,
    }
}

const fn ignored(name: &'static str, kind: FlagKind, why: &'static str) -> FlagSpec {
    FlagSpec {
        name,
        kind,
        help: "Accepted, and has no effect.",
        effect: FlagEffect::Ignored(why),
    }
}

use super::known::{NO_ENTERPRISE, NO_GOSSIP, NO_WAN};
use FlagKind::{Bool, Duration, Int, Repeated, String as Text};

/// Every flag of `consul agent`, in alphabetical order.
static FLAGS: &[FlagSpec] = &[
    flag(
        "advertise",
        Text,
        "advertise_addr",
        "The address that other nodes reach this one at.",
    ),
    flag(
        "advertise-wan",
        Text,
        "advertise_addr_wan",
        "The address that nodes of other datacenters reach this one at.",
    ),
    flag(
        "allow-write-http-from",
        Repeated,
        "http_config.allow_write_http_from",
        "A network (CIDR) from which writes over HTTP are accepted. Default: from everywhere.",
    ),
    flag(
        "alt-domain",
        Text,
        "alt_domain",
        "A second domain to answer DNS queries for.",
    ),
    flag(
        "auto-reload-config",
        Bool,
        "auto_reload_config",
        "Reload the configuration when its files change.",
    ),
    flag(
        "bind",
        Text,
        "bind_addr",
        "The address to listen on for other nodes. Default: 0.0.0.0.",
    ),
    flag(
        "bootstrap",
        Bool,
        "bootstrap",
        "Let this server elect itself leader of a new cluster.",
    ),
    flag(
        "bootstrap-expect",
        Int,
        "bootstrap_expect",
        "Start a new cluster once this many servers are there.",
    ),
    flag(
        "check_output_max_size",
        Int,
        "check_output_max_size",
        "The most bytes of a check's output that are kept.",
    ),
    flag(
        "client",
        Text,
        "client_addr",
        "The addresses to listen on for clients: HTTP, DNS, gRPC. Default: 127.0.0.1.",
    ),
    source(
        "config-dir",
        Repeated,
        "A folder of configuration files: *.json and *.hcl, in alphabetical order.",
    ),
    source(
        "config-file",
        Repeated,
        "A configuration file, .json or .hcl.",
    ),
    source(
        "config-format",
        Text,
        "The format of all configuration files, hcl or json, whatever their names.",
    ),
    flag(
        "data-dir",
        Text,
        "data_dir",
        "The folder that holds the agent's state.",
    ),
    flag(
        "datacenter",
        Text,
        "datacenter",
        "The datacenter of this agent. Default: dc1.",
    ),
    flag(
        "default-query-time",
        Duration,
        "default_query_time",
        "How long a blocking query waits that does not say.",
    ),
    source(
        "dev",
        Bool,
        "Development: one server, all in memory, everything on, bound to loopback.",
    ),
    flag(
        "disable-host-node-id",
        Bool,
        "disable_host_node_id",
        "Make a random node ID rather than one derived from the machine.",
    ),
    ignored("disable-keyring-file", Bool, NO_GOSSIP),
    flag(
        "dns-port",
        Int,
        "ports.dns",
        "The port of the DNS server; -1: off. Default: 8600.",
    ),
    flag(
        "domain",
        Text,
        "domain",
        "The domain to answer DNS queries for. Default: consul.",
    ),
    flag(
        "enable-local-script-checks",
        Bool,
        "enable_local_script_checks",
        "Run script checks that are defined in configuration files.",
    ),
    flag(
        "enable-script-checks",
        Bool,
        "enable_script_checks",
        "Run script checks, also those registered over HTTP: whoever reaches the API can run programs.",
    ),
    ignored("encrypt", Text, NO_GOSSIP),
    flag(
        "grpc-port",
        Int,
        "ports.grpc",
        "The port of the gRPC server; -1: off.",
    ),
    flag(
        "grpc-tls-port",
        Int,
        "ports.grpc_tls",
        "The port of the gRPC server with TLS; -1: off.",
    ),
    source(
        "hcl",
        Repeated,
        "A piece of configuration in HCL. Wins over files and other flags.",
    ),
    flag(
        "http-port",
        Int,
        "ports.http",
        "The port of the HTTP server; -1: off. Default: 8500.",
    ),
    flag(
        "https-port",
        Int,
        "ports.https",
        "The port of the HTTPS server; -1: off. Default: off.",
    ),
    flag(
        "join",
        Repeated,
        "start_join",
        "The address of a server to join. As -retry-join: what does not answer is tried again, and the agent starts.",
    ),
    ignored("join-wan", Repeated, NO_WAN),
    flag(
        "log-file",
        Text,
        "log_file",
        "A file to write the log to, as well as to the terminal.",
    ),
    flag("log-json", Bool, "log_json", "Write the log as JSON."),
    flag(
        "log-level",
        Text,
        "log_level",
        "trace, debug, info, warn or error. Default: info.",
    ),
    flag(
        "log-rotate-bytes",
        Int,
        "log_rotate_bytes",
        "Start a new log file after this many bytes.",
    ),
    flag(
        "log-rotate-duration",
        Duration,
        "log_rotate_duration",
        "Start a new log file after this time.",
    ),
    flag(
        "log-rotate-max-files",
        Int,
        "log_rotate_max_files",
        "How many old log files to keep; 0: all.",
    ),
    flag(
        "max-query-time",
        Duration,
        "max_query_time",
        "The longest that a blocking query may wait.",
    ),
    flag(
        "node",
        Text,
        "node_name",
        "The name of this node, unique in the cluster. Default: the host name.",
    ),
    flag("node-id", Text, "node_id", "The ID of this node, a UUID."),
    flag(
        "node-meta",
        Repeated,
        "node_meta",
        "A key:value pair of metadata of this node.",
    ),
    flag(
        "pid-file",
        Text,
        "pid_file",
        "A file to write the process ID to.",
    ),
    ignored("primary-gateway", Repeated, NO_WAN),
    ignored("protocol", Int, NO_GOSSIP),
    ignored(
        "raft-protocol",
        Int,
        "there is one version of the replication protocol",
    ),
    ignored("read-replica", Bool, NO_ENTERPRISE),
    flag(
        "recursor",
        Repeated,
        "recursors",
        "The address of a DNS server for names outside our domain.",
    ),
    ignored(
        "rejoin",
        Bool,
        "an agent always rejoins the servers it knew",
    ),
    ignored(
        "retry-interval",
        Duration,
        "the time between attempts adapts by itself",
    ),
    ignored("retry-interval-wan", Duration, NO_WAN),
    flag(
        "retry-join",
        Repeated,
        "retry_join",
        "The address of a server to join, tried until it works.",
    ),
    ignored("retry-join-wan", Repeated, NO_WAN),
    ignored("retry-max", Int, "joining is tried until it works"),
    ignored("retry-max-wan", Int, NO_WAN),
    ignored("segment", Text, NO_ENTERPRISE),
    ignored("serf-lan-allowed-cidrs", Repeated, NO_GOSSIP),
    ignored("serf-lan-bind", Text, NO_GOSSIP),
    ignored("serf-lan-port", Int, NO_GOSSIP),
    ignored("serf-wan-allowed-cidrs", Repeated, NO_GOSSIP),
    ignored("serf-wan-bind", Text, NO_GOSSIP),
    ignored("serf-wan-port", Int, NO_GOSSIP),
    flag(
        "server",
        Bool,
        "server",
        "Be a server: hold the replicated state.",
    ),
    flag(
        "server-port",
        Int,
        "ports.server",
        "The port for other servers and agents. Default: 8300.",
    ),
    ignored(
        "syslog",
        Bool,
        "the log goes to standard error, where a service manager picks it up",
    ),
    flag("ui", Bool, "ui_config.enabled", "Serve the web interface."),
    flag(
        "ui-content-path",
        Text,
        "ui_config.content_path",
        "The path of the web interface. Default: /ui/.",
    ),
    ignored("ui-dir", Text, "the web interface is a part of the program"),
];

/// Every flag of `agent`, for whoever parses the command line.
pub fn agent_flags() -> &'static [FlagSpec] {
    FLAGS
}

impl Default for AgentFlags {
    fn default() -> Self {
        Self {
            dev: false,
            sources: Vec::new(),
            format: None,
            hcl: Vec::new(),
            lists: Node::empty(),
            values: Node::empty(),
            ignored: Vec::new(),
        }
    }
}

impl AgentFlags {
    /// Flags in the order of the command line, as (name without dashes, value). A bool that stands alone has the
    /// value `true`. All mistakes are told at once.
    pub fn parse<N: AsRef<str>, V: AsRef<str>>(
        given: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, Vec<FlagError>> {
        let mut flags = Self::default();
        let mut errors = Vec::new();
        for (name, value) in given {
            let (name, value) = (name.as_ref(), value.as_ref());
            let Some(spec) = FLAGS.iter().find(|spec| spec.name == name) else {
                errors.push(FlagError::Unknown(name.to_owned()));
                continue;
            };
            if let Err(why) = flags.add(spec, value) {
                errors.push(FlagError::Value {
                    name: spec.name,
                    value: value.to_owned(),
                    why,
                });
            }
        }
        if errors.is_empty() {
            Ok(flags)
        } else {
            Err(errors)
        }
    }

    fn add(&mut self, spec: &'static FlagSpec, text: &str) -> Result<(), String> {
        let value = parse_value(spec.kind, text)?;
        match (spec.effect, spec.name) {
            (FlagEffect::Ignored(_), name) => {
                if !self.ignored.iter().any(|ignored| ignored.name == name) {
                    self.ignored.push(spec);
                }
            }
            (FlagEffect::Source, "dev") => self.dev = value == Value::Bool(true),
            (FlagEffect::Source, "config-format") => {
                self.format = Some(match text {
                    "hcl" => Format::Hcl,
                    "json" => Format::Json,
                    _ => return Err("must be 'hcl' or 'json'".to_owned()),
                });
            }
            (FlagEffect::Source, "hcl") => self.hcl.push(text.to_owned()),
            (FlagEffect::Source, _) => self.sources.push(PathBuf::from(text)),
            (FlagEffect::Sets(key), name) => {
                let position = Position {
                    file: Arc::from(format!("flag -{name}")),
                    line: 0,
                    column: 0,
                };
                let node = |value| Node::new(value, position.clone());
                let (target, value) = match spec.kind {
                    FlagKind::Repeated if key == "node_meta" => {
                        let (key, value) = text.split_once(':').ok_or("expected key:value")?;
                        let mut map = Map::new();
                        map.insert(key, node(Value::String(value.to_owned())));
                        (&mut self.values, node(Value::Map(map)))
                    }
                    FlagKind::Repeated => (&mut self.lists, node(Value::List(vec![node(value)]))),
                    _ => (&mut self.values, node(value)),
                };
                let nested = key.rsplit('.').fold(value, |value, key| {
                    let mut map = Map::new();
                    map.insert(key, value);
                    node(Value::Map(map))
                });
                target.merge(nested);
            }
        }
        Ok(())
    }
}

/// A flag's value as Go reads it.
fn parse_value(kind: FlagKind, text: &str) -> Result<Value, String> {
    match kind {
        FlagKind::Bool => match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err("parse error".to_owned()),
        },
        FlagKind::Int => text
            .parse()
            .map(Value::Int)
            .map_err(|_| "parse error".to_owned()),
        FlagKind::Duration => match text.parse::<GoDuration>() {
            Ok(_) => Ok(Value::String(text.to_owned())),
            Err(error) => Err(error.to_string()),
        },
        FlagKind::String | FlagKind::Repeated => Ok(Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_become_configuration() {
        let flags = AgentFlags::parse([
            ("server", "true"),
            ("http-port", "9500"),
            ("dns-port", "-1"),
            ("recursor", "1.1.1.1"),
            ("recursor", "8.8.8.8"),
            ("node-meta", "rack:a:1"),
            ("node-meta", "zone:b"),
            ("default-query-time", "1m"),
            ("config-dir", "/etc/wharf"),
            ("config-file", "/tmp/x.hcl"),
            ("serf-lan-port", "8301"),
            ("serf-lan-port", "8302"),
            ("ui", "T"),
        ])
        .unwrap();
        assert_eq!(
            flags.values.to_json(),
            json!({
                "server": true,
                "ports": {"http": 9500, "dns": -1},
                "node_meta": {"rack": "a:1", "zone": "b"},
                "default_query_time": "1m",
                "ui_config": {"enabled": true},
            })
        );
        assert_eq!(
            flags.lists.to_json(),
            json!({"recursors": ["1.1.1.1", "8.8.8.8"]})
        );
        assert_eq!(
            flags.sources,
            [PathBuf::from("/etc/wharf"), PathBuf::from("/tmp/x.hcl")]
        );
        assert_eq!(flags.ignored.len(), 1);
        assert!(!flags.dev);
    }

    #[test]
    fn bad_values_are_told_as_go_tells_them() {
        let errors = AgentFlags::parse([
            ("http-port", "80a"),
            ("server", "yes"),
            ("max-query-time", "10"),
            ("node-meta", "novalue"),
            ("config-format", "yaml"),
            ("nope", "1"),
        ])
        .unwrap_err();
        let shown: Vec<String> = errors.iter().map(FlagError::to_string).collect();
        assert_eq!(
            shown,
            [
                "invalid value \"80a\" for flag -http-port: parse error",
                "invalid value \"yes\" for flag -server: parse error",
                "invalid value \"10\" for flag -max-query-time: time: missing unit in duration \"10\"",
                "invalid value \"novalue\" for flag -node-meta: expected key:value",
                "invalid value \"yaml\" for flag -config-format: must be 'hcl' or 'json'",
                "flag provided but not defined: -nope",
            ]
        );
    }

    #[test]
    fn the_table_is_sorted_without_repeats() {
        assert!(FLAGS.is_sorted_by(|a, b| a.name < b.name));
    }

    /// The list of Consul 1.21's `agent -help`.
    #[test]
    fn no_flag_of_consul_is_missing() {
        let consul = "advertise advertise-wan bind client bootstrap bootstrap-expect config-dir config-file \
            config-format data-dir datacenter dev disable-host-node-id disable-keyring-file dns-port domain alt-domain \
            enable-script-checks enable-local-script-checks allow-write-http-from encrypt grpc-port grpc-tls-port \
            http-port https-port join join-wan retry-join retry-join-wan retry-interval retry-interval-wan retry-max \
            retry-max-wan log-level log-json log-file log-rotate-bytes log-rotate-duration log-rotate-max-files \
            max-query-time default-query-time node node-id node-meta pid-file protocol raft-protocol recursor \
            primary-gateway rejoin auto-reload-config serf-lan-bind serf-lan-port serf-lan-allowed-cidrs serf-wan-bind \
            serf-wan-port serf-wan-allowed-cidrs server server-port syslog ui ui-content-path ui-dir hcl read-replica \
            segment";
        for name in consul.split_whitespace() {
            assert!(FLAGS.iter().any(|spec| spec.name == name), "{name}");
        }
    }
}
