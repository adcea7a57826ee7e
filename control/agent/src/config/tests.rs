use std::fs;

use serde_json::json;
use wharf_registry::model::ConfigEntryKind;

use super::*;

/// A folder of configuration files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            fs::write(folder.path(name), content).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let mut all = vec![("config-dir", self.0.path().to_str().unwrap())];
        all.extend(flags);
        load_in(&AgentFlags::parse(all).unwrap(), &environment())
    }

    /// The problems, without the name of the folder.
    fn problems(&self, flags: &[(&str, &str)]) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        let error = self.load(flags).expect_err("this is no good configuration");
        error
            .problems
            .iter()
            .map(|problem| problem.replace(&folder, ""))
            .collect()
    }
}

fn environment() -> Environment {
    Environment {
        hostname: Some("host-1".to_owned()),
        interfaces: Interfaces {
            addresses: vec![
                ("lo".to_owned(), "127.0.0.1".parse().unwrap()),
                ("eth0".to_owned(), "10.0.0.5".parse().unwrap()),
            ],
            default_route: Some("eth0".to_owned()),
        },
    }
}

fn with_flags(flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_in(
        &AgentFlags::parse(flags.iter().copied()).unwrap(),
        &environment(),
    )
}

fn config(flags: &[(&str, &str)]) -> RuntimeConfig {
    with_flags(flags)
        .unwrap_or_else(|error| panic!("{error}"))
        .config
}

/// The one problem of a piece of HCL over an otherwise good configuration.
fn problem(hcl: &str) -> String {
    let error = with_flags(&[("data-dir", "/d"), ("hcl", hcl)]).expect_err(hcl);
    assert_eq!(error.problems.len(), 1, "{error}");
    error.problems[0].clone()
}

fn show(listen: &[Listen]) -> Vec<String> {
    listen.iter().map(ToString::to_string).collect()
}

// === defaults ===

#[test]
fn the_defaults_of_a_client() {
    let config = config(&[("data-dir", "/d")]);
    assert_eq!(
        (config.node_name.as_str(), config.datacenter.as_str()),
        ("host-1", "dc1")
    );
    assert_eq!(config.bind_addr.to_string(), "0.0.0.0");
    assert_eq!(config.advertise_addr.to_string(), "10.0.0.5");
    assert_eq!(show(&config.listen.http), ["tcp://127.0.0.1:8500"]);
    assert_eq!(config.listen.dns, ["127.0.0.1:8600".parse().unwrap()]);
    assert!(
        config.listen.https.is_empty()
            && config.listen.grpc.is_empty()
            && config.listen.server.is_none()
    );
    // Where its servers are, if they are named without a port.
    assert_eq!(config.join_port, 8300);
    let elsewhere = with_flags(&[
        ("data-dir", "/d"),
        ("retry-join", "a"),
        ("server-port", "9300"),
    ]);
    let elsewhere = elsewhere.unwrap().config;
    assert!(elsewhere.listen.server.is_none());
    assert_eq!(elsewhere.join_port, 9300);
    assert_eq!(
        (config.sidecar_ports.clone(), config.expose_ports.clone()),
        (21000..=21255, 21500..=21755)
    );
    assert!(config.leave_on_terminate && !config.skip_leave_on_interrupt);
    assert_eq!(config.raft.multiplier, 5);
    assert_eq!(config.domain, "consul.");
    assert_eq!(config.reloadable.limits.kv_max_value_size, 524_288);
    assert_eq!(
        (
            config.default_query_time.as_secs(),
            config.max_query_time.as_secs()
        ),
        (300, 600)
    );
    assert_eq!(config.reloadable.log_level, LogLevel::Info);
    assert!(config.connect_enabled && !config.ui.enabled && !config.dev_mode && !config.bootstrap);
}

#[test]
fn development_mode() {
    let loaded = with_flags(&[("dev", "true")]).unwrap();
    let config = loaded.config;
    assert!(
        config.dev_mode
            && config.server
            && config.bootstrap
            && config.ui.enabled
            && config.enable_debug
    );
    assert_eq!(config.data_dir, None);
    assert_eq!(config.advertise_addr.to_string(), "127.0.0.1");
    assert_eq!(config.listen.server.unwrap().to_string(), "127.0.0.1:8300");
    assert_eq!(show(&config.listen.grpc), ["tcp://127.0.0.1:8502"]);
    assert_eq!(config.raft.multiplier, 1);
    assert_eq!(config.reloadable.log_level, LogLevel::Debug);
    assert!(config.skip_leave_on_interrupt && !config.leave_on_terminate);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let client = "0.0.0.0";
    let config = self::config(&[
        ("dev", "true"),
        ("client", client),
        ("http-port", "0"),
        ("dns-port", "-1"),
    ]);
    assert_eq!(show(&config.listen.http), ["tcp://0.0.0.0:0"]);
    assert!(config.listen.dns.is_empty());
}

// === files ===

const SERVER_HCL: &str = r#"
# A server, as one finds them.
datacenter       = "DC2"
data_dir         = "/opt/consul"
node_name        = "server-1"
server           = true
bootstrap_expect = 3
retry_join       = ["10.0.0.2", "provider=aws tag_key=consul"]
client_addr      = "127.0.0.1 {{ GetInterfaceIP \"eth0\" }}"
encrypt          = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="

addresses { http = "unix:///run/consul/http.sock 10.0.0.5" }
ports {
  grpc     = 8502
  serf_lan = 8301
}
node_meta { rack = "a1" "zone-id" = "z" }
dns_config {
  service_ttl { "*" = "5s" "web-*" = "30s" }
  enable_truncate = true
  soa { min_ttl = 60 }
}
recursors = ["8.8.8.8", "[2001:db8::1]:5353", "::1"]
performance { raft_multiplier = 1 }
limits { http_max_conns_per_client = 1000 }
telemetry {
  prometheus_retention_time = "1h"
  prefix_filter = ["+consul.raft", "-consul.http"]
  statsd_address = "localhost:8125"
}
http_config {
  response_headers { "Access-Control-Allow-Origin" = "*" }
  allow_write_http_from = ["127.0.0.0/8"]
}
acl {
  enabled = true
  default_policy = "allow"
  tokens { agent = "s3cret-agent" default = "s3cret-default" }
}
ui_config { enabled = true }
config_entries {
  bootstrap = [
    { Kind = "proxy-defaults", Name = "global", Config { protocol = "http" } },
    { kind = "service-defaults", name = "web", protocol = "http" },
    { kind = "mesh" },
  ]
}
watches = [{ type = "services", args = ["/usr/bin/notify"] }]
"#;

#[test]
fn a_real_looking_server() {
    let folder = Folder::new(&[
        ("server.hcl", SERVER_HCL),
        ("notes.txt", "not configuration {"),
    ]);
    let loaded = folder.load(&[]).unwrap_or_else(|error| panic!("{error}"));
    let config = &loaded.config;
    assert_eq!(
        (config.datacenter.as_str(), config.node_name.as_str()),
        ("dc2", "server-1")
    );
    assert_eq!((config.bootstrap, config.bootstrap_expect), (false, 3));
    assert_eq!(
        show(&config.listen.http),
        ["unix:///run/consul/http.sock", "tcp://10.0.0.5:8500"]
    );
    assert_eq!(
        show(&config.listen.grpc),
        ["tcp://127.0.0.1:8502", "tcp://10.0.0.5:8502"]
    );
    assert_eq!(config.listen.server.unwrap().to_string(), "0.0.0.0:8300");
    let live = &config.reloadable;
    assert_eq!(&*live.node_meta["zone-id"], "z");
    assert_eq!(live.dns.service_ttl["web-*"].as_secs(), 30);
    assert_eq!(live.dns.soa.min_ttl, 60);
    let recursors: Vec<String> = live.dns.recursors.iter().map(ToString::to_string).collect();
    assert_eq!(recursors, ["8.8.8.8:53", "[2001:db8::1]:5353", "[::1]:53"]);
    assert_eq!(live.telemetry_filter.block, ["consul.http"]);
    assert_eq!(
        config.http.response_headers["Access-Control-Allow-Origin"],
        "*"
    );
    assert_eq!(live.tokens.agent.secret(), "s3cret-agent");
    let kinds: Vec<_> = live
        .config_entries
        .iter()
        .map(|entry| entry.kind())
        .collect();
    assert_eq!(
        kinds,
        [
            ConfigEntryKind::ProxyDefaults,
            ConfigEntryKind::ServiceDefaults
        ]
    );
    assert_eq!(live.watches[0].args, ["/usr/bin/notify"]);
    let mut ignored: Vec<&str> = loaded
        .ignored_keys
        .iter()
        .map(|ignored| ignored.key.as_str())
        .collect();
    ignored.sort();
    assert_eq!(
        ignored,
        ["encrypt", "ports.serf_lan", "telemetry.statsd_address"]
    );
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.contains("ACLs are not built")),
        "{:?}",
        loaded.warnings
    );
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.contains("config_entries.bootstrap[2]"))
    );
}

#[test]
fn secrets_are_not_shown() {
    let config = Folder::new(&[("server.hcl", SERVER_HCL)])
        .load(&[])
        .unwrap()
        .config;
    let shown = config.debug_config();
    for text in [format!("{config:?}"), shown.to_string()] {
        assert!(
            !text.contains("s3cret") && !text.contains("pUqJr"),
            "{text}"
        );
    }
    assert_eq!(shown["ACLTokens"]["ACLAgentToken"], "hidden");
    assert_eq!(shown["ACLTokens"]["DNSToken"], "");
    assert_eq!(shown["GRPCPort"], 8502);
    assert_eq!(shown["GRPCTLSPort"], -1);
    assert_eq!(shown["ConnectEnabled"], true);
    assert_eq!(shown["DNSPort"], 8600);
    assert_eq!(shown["DNSAddrs"][0], "tcp://127.0.0.1:8600");
    assert_eq!(shown["SerfAdvertiseAddrLAN"], "tcp://10.0.0.5:8301");
    assert_eq!(shown["DefaultQueryTime"], "5m0s");
}

#[test]
fn services_in_both_formats() {
    let folder = Folder::new(&[
        (
            "web.json",
            r#"{"service": {"name": "web", "port": 80, "token": "t",
                "checks": [{"id": "h", "http": "http://localhost", "interval": "10s"}],
                "connect": {"sidecar_service": {"proxy": {"upstreams": [{"destination_name": "db", "local_bind_port": 9191}]}}}}}"#,
        ),
        (
            "db.hcl",
            "service {\n  name = \"db\"\n  id = \"db1\"\n}\nservice { name = \"cache\" }\ncheck { name = \"disk\" ttl = \"30s\" }",
        ),
        (
            "more.hcl",
            "services { Name = \"api\" Port = 8080 EnableTagOverride = true }\nchecks = [{ name = \"load\", ttl = \"1m\" }]",
        ),
        ("nothing.hcl", ""),
        ("empty.json", "{}"),
    ]);
    let config = folder
        .load(&[("data-dir", "/d")])
        .unwrap_or_else(|error| panic!("{error}"))
        .config;
    let names: Vec<&str> = config
        .reloadable
        .services
        .iter()
        .map(|service| &*service.name)
        .collect();
    assert_eq!(names, ["db", "cache", "api", "web"]);
    let checks: Vec<&str> = config
        .reloadable
        .checks
        .iter()
        .map(|check| &*check.name)
        .collect();
    assert_eq!(checks, ["disk", "load"]);
    assert!(config.reloadable.services[3].sidecar(21000).is_some());
}

#[test]
fn later_wins_and_lists_append() {
    let folder = Folder::new(&[
        (
            "a.hcl",
            "datacenter = \"a\"\nports { http = 1, dns = 2 }\nrecursors = [\"1.1.1.1\"]\nnode_meta { x = \"1\", y = \"1\" }",
        ),
        (
            "b.json",
            r#"{"datacenter": "b", "ports": {"http": 3}, "recursors": ["2.2.2.2"], "node_meta": {"y": "2"}}"#,
        ),
    ]);
    let flags = [
        ("data-dir", "/d"),
        ("recursor", "0.0.0.1"),
        ("http-port", "4"),
        ("node-meta", "z:3"),
    ];
    let config = folder.load(&flags).unwrap().config;
    assert_eq!(config.datacenter, "b");
    assert_eq!(show(&config.listen.http), ["tcp://127.0.0.1:4"]);
    assert_eq!(config.listen.dns[0].port(), 2);
    let recursors: Vec<String> = config
        .reloadable
        .dns
        .recursors
        .iter()
        .map(|r| r.ip().to_string())
        .collect();
    assert_eq!(recursors, ["0.0.0.1", "1.1.1.1", "2.2.2.2"]);
    assert_eq!(
        serde_json::to_value(&config.reloadable.node_meta).unwrap(),
        json!({"x": "1", "y": "2", "z": "3"})
    );
    let config = folder
        .load(&[&flags[..], &[("hcl", "ports { http = 5 }")]].concat())
        .unwrap()
        .config;
    assert_eq!(show(&config.listen.http), ["tcp://127.0.0.1:5"]);
}

#[test]
fn formats_of_files() {
    let folder = Folder::new(&[("a.conf", "datacenter = \"x\"")]);
    let path = folder.path("a.conf");
    let path = path.to_str().unwrap();
    let error = with_flags(&[("data-dir", "/d"), ("config-file", path)]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("neither .hcl nor .json: the format must be given (-config-format)")
    );
    let config = config(&[
        ("data-dir", "/d"),
        ("config-file", path),
        ("config-format", "hcl"),
    ]);
    assert_eq!(config.datacenter, "x");
    let error = with_flags(&[("data-dir", "/d"), ("config-file", "/nowhere.hcl")]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nowhere.hcl: cannot read it"),
        "{error}"
    );
    // Not a matter of its name.
    let error = with_flags(&[("data-dir", "/d"), ("config-file", "/nowhere")]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("/nowhere: cannot read it: No such file"),
        "{error}"
    );
}

// === mistakes ===

#[test]
fn every_mistake_is_told_with_its_place() {
    let folder = Folder::new(&[
        (
            "a.hcl",
            "bind_adr = \"x\"\nports {\n  http = \"80a\"\n}\nservice {\n  name = \"web\"\n  prot = 80\n}",
        ),
        ("b.json", "{\"data_dir\": \"/d\",\n \"server\": 1}"),
        ("c.hcl", "node_name = foo"),
    ]);
    assert_eq!(
        folder.problems(&[]),
        [
            "c.hcl:1:13: expected a value, found `foo` (a string is written in double quotes)\n  1 | node_name = foo\n    |             ^",
            "a.hcl:1:1: unknown key \"bind_adr\" (did you mean \"bind_addr\"?)",
            "a.hcl:3:10: ports.http: expected an integer, found a string \"80a\"",
            "a.hcl:7:3: unknown key \"services[0].prot\" (did you mean \"port\"?)",
            "b.json:2:12: server: expected true or false, found 1",
        ]
    );
}

#[test]
fn a_wrong_type_is_told_though_something_later_overrides_it() {
    let folder = Folder::new(&[
        (
            "a.hcl",
            "data_dir = \"/d\"\nserver = \"maybe\"\nports { http = \"80a\" }",
        ),
        ("b.hcl", "ports { http = 80 }"),
    ]);
    assert_eq!(
        folder.problems(&[("server", "true")]),
        [
            "a.hcl:3:16: ports.http: expected an integer, found a string \"80a\"",
            "a.hcl:2:10: server: expected true or false, found a string \"maybe\"",
        ]
    );
}

#[test]
fn mistakes_of_meaning_are_told_with_their_place() {
    let folder = Folder::new(&[(
        "a.hcl",
        "datacenter = \"dc 1\"\nnode_id = \"x\"\nlog_level = \"loud\"\nports {\n  http = 70000\n}\n\
         performance { raft_multiplier = 11 }\nservice {\n  name = \"web\"\n  check { http = \"http://x\" }\n}\n\
         check { ttl = \"1s\" }\nwatches { type = \"nope\" }\nconfig_entries { bootstrap { kind = \"nope\" } }",
    )]);
    assert_eq!(
        folder.problems(&[]),
        [
            "a.hcl:1:14: datacenter can only contain lowercase alphanumeric, - or _ characters.",
            "a.hcl:2:11: node_id \"x\" is not a UUID",
            "data_dir cannot be empty: set it (-data-dir=DIR), or try things out in memory with -dev",
            "a.hcl:5:10: ports.http: 70000 is not a port: 1 to 65535, -1 for off, 0 for any free one",
            "a.hcl:7:33: performance.raft_multiplier cannot be 11. Must be between 1 and 10",
            "a.hcl:3:13: Invalid log level: loud. Valid log levels are: [TRACE DEBUG INFO WARN ERROR]",
            "a.hcl:8:9: services[0] (\"web\"): Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
            "a.hcl:12:7: checks[0] (\"\"): Missing check name",
            "a.hcl:14:28: config_entries.bootstrap[0]: invalid config entry kind: nope",
            "a.hcl:13:9: watches[0]: Unsupported watch type: nope",
        ]
    );
}

#[test]
fn one_mistake_each() {
    let at = |message: &str| format!("flag -hcl (1):1:{message}");
    let cases = [
        (
            "bind_addr = \"localhost\"",
            "13: bind_addr: \"localhost\" is not an IP address",
        ),
        (
            "bind_addr = \"1.1.1.1 2.2.2.2\"",
            "13: bind_addr: one address is needed, not 2",
        ),
        (
            "advertise_addr = \"0.0.0.0\"",
            "18: Advertise address cannot be 0.0.0.0, :: or [::]",
        ),
        (
            "client_addr = \"{{ GetSomething }}\"",
            "15: client_addr: template \"GetSomething\" is not understood: GetPrivateIP, GetPublicIP and GetInterfaceIP \"name\" are",
        ),
        (
            "addresses { dns = \"unix:///x\" }",
            "19: DNS address cannot be a unix socket",
        ),
        (
            "bootstrap = true",
            "13: 'bootstrap = true' requires 'server = true'",
        ),
        (
            "bootstrap_expect = 3",
            "20: 'bootstrap_expect > 0' requires 'server = true'",
        ),
        (
            "server = true bootstrap = true bootstrap_expect = 3",
            "27: 'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive",
        ),
        (
            "ports { dns = 8500 }",
            "15: http address tcp://127.0.0.1:8500 already configured for dns",
        ),
        (
            "ports { https = 8501 }",
            "17: ports.https needs a certificate: set tls.https.cert_file and tls.https.key_file",
        ),
        (
            "ports { sidecar_min_port = 22000 }",
            "28: sidecar_min_port must be less than sidecar_max_port. To disable, set both to zero.",
        ),
        (
            "dns_config { udp_answer_limit = -1 }",
            "33: dns_config.udp_answer_limit cannot be -1. Must be greater than or equal to zero",
        ),
        (
            "dns_config { recursor_strategy = \"best\" }",
            "34: dns_config.recursor_strategy: unknown strategy \"best\": sequential or random",
        ),
        (
            "recursors = [\"dns.example\"]",
            "13: recursors: \"dns.example\" is not an address with or without a port",
        ),
        ("domain = \"a..b\"", "10: domain: \"a..b\" is not a domain"),
        (
            "alt_domain = \"service.x\"",
            "14: alt_domain cannot start with {service,connect,node,query,addr,dc1}",
        ),
        (
            "reconnect_timeout = \"1h\"",
            "21: reconnect_timeout cannot be 1h0m0s. Must be at least 8h0m0s: a node is taken out of the catalog after it, with everything on it",
        ),
        (
            "check_output_max_size = 0",
            "25: check_output_max_size must be positive",
        ),
        (
            "max_query_time = \"-1s\"",
            "18: max_query_time cannot be -1s. Must be greater than or equal to zero",
        ),
        (
            "max_query_time = \"long\"",
            "18: max_query_time: time: invalid duration \"long\"",
        ),
        (
            "node_meta { \"a b\" = \"c\" }",
            "11: node_meta invalid: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters",
        ),
        (
            "tls { https { cert_file = \"a\" } }",
            "13: tls.https: cert_file and key_file need each other",
        ),
        (
            "tls { grpc { verify_incoming = true } }",
            "12: tls.grpc: VerifyIncoming set but no CA certificates were provided",
        ),
        (
            "tls { defaults { tls_min_version = \"SSL3\" } }",
            "36: tls.defaults.tls_min_version: unknown version \"SSL3\": TLSv1_2 or TLSv1_3",
        ),
        (
            "acl { enabled = true default_policy = \"deny\" }",
            "39: ACLs are not built yet: with acl.enabled and default_policy \"deny\" this agent would still allow everything",
        ),
        (
            "http_config { allow_write_http_from = [\"10\"] }",
            "39: http_config.allow_write_http_from: \"10\" is not a network such as 10.0.0.0/8",
        ),
        (
            "telemetry { prefix_filter = [\"x\"] }",
            "29: Filter rule must begin with either '+' or '-': \"x\"",
        ),
        (
            "unix_sockets { mode = \"9\" }",
            "23: unix_sockets.mode \"9\" is not an octal number",
        ),
        (
            "service { name = \"x\" check { args = [\"a\"] interval = \"1s\" } }",
            "9: services[0] (\"x\"): Invalid check: Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true",
        ),
        (
            "server = true bootstrap = true ports { server = -1 }",
            "49: ports.server: a server needs one: other servers and all agents find it there (to try things out alone: -dev)",
        ),
        (
            "ports { http = 1 } ports { http = 2 }",
            "26: ports: expected one object, found 2 of them",
        ),
    ];
    for (hcl, message) in cases {
        assert_eq!(problem(hcl), at(message), "{hcl}");
    }
    let error = with_flags(&[("dev", "true"), ("dns-port", "8500")]).unwrap_err();
    assert_eq!(
        error.problems,
        ["flag -dns-port: http address tcp://127.0.0.1:8500 already configured for dns"]
    );
    let error = with_flags(&[("dev", "true"), ("http-port", "99999")]).unwrap_err();
    assert_eq!(
        error.problems,
        [
            "flag -http-port: ports.http: 99999 is not a port: 1 to 65535, -1 for off, 0 for any free one"
        ]
    );
    let error = with_flags(&[("dev", "true"), ("bootstrap-expect", "3")]).unwrap_err();
    assert_eq!(
        error.problems,
        ["flag -bootstrap-expect: 'bootstrap_expect' not allowed in dev mode"]
    );
}

#[test]
fn a_list_is_no_configuration() {
    let folder = Folder::new(&[("a.json", "[]")]);
    assert_eq!(
        folder.problems(&[("data-dir", "/d")]),
        ["a.json:1:1: expected an object with configuration keys"]
    );
}

#[test]
fn the_advertised_address_may_need_a_choice() {
    let mut environment = environment();
    environment
        .interfaces
        .addresses
        .push(("eth0".to_owned(), "10.0.0.6".parse().unwrap()));
    let flags = AgentFlags::parse([("data-dir", "/d")]).unwrap();
    let error = load_in(&flags, &environment).unwrap_err();
    assert_eq!(
        error.problems,
        [
            "Multiple private IPv4 addresses found. Please configure one with 'bind' and/or 'advertise'."
        ]
    );
    let loaded = load_in(
        &flags,
        &Environment {
            hostname: Some("h".into()),
            ..Environment::default()
        },
    )
    .unwrap();
    assert_eq!(loaded.config.advertise_addr.to_string(), "127.0.0.1");
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
    let error = load_in(
        &flags,
        &Environment {
            hostname: None,
            ..environment
        },
    )
    .unwrap_err();
    assert!(
        error
            .problems
            .contains(&"node_name cannot be empty".to_owned())
    );
}

#[test]
fn warnings() {
    let warnings = |flags: &[(&str, &str)]| {
        with_flags(&[&[("data-dir", "/d")], flags].concat())
            .unwrap()
            .warnings
    };
    assert!(
        warnings(&[("node", "my_node")])[0]
            .starts_with("Node name \"my_node\" will not be discoverable via DNS")
    );
    assert!(
        warnings(&[("server", "true"), ("bootstrap-expect", "1")])[0]
            .contains("same as Bootstrap mode")
    );
    assert!(warnings(&[("server", "true")])[0].contains("knows no other"));
    assert!(warnings(&[])[0].contains("knows no server"));
    assert!(warnings(&[("server", "true"), ("retry-join", "10.0.0.1")]).is_empty());
    assert_eq!(
        warnings(&[("serf-lan-port", "8301"), ("retry-join", "10.0.0.1")]),
        [
            "flag -serf-lan-port has no effect: there is no gossip here: servers detect failures by leases"
        ]
    );
    assert!(
        warnings(&[("hcl", "ca_file = \"x\"")])[0]
            .contains("Use the 'tls.defaults.ca_file' field instead.")
    );
}

#[test]
fn certificates_open_the_tls_listeners() {
    let hcl = "tls { defaults { cert_file = \"c\", key_file = \"k\" } https { key_file = \"k2\" } }\nports { https = 8501 }";
    let config = config(&[("data-dir", "/d"), ("server", "true"), ("hcl", hcl)]);
    assert_eq!(show(&config.listen.https), ["tcp://127.0.0.1:8501"]);
    assert_eq!(show(&config.listen.grpc_tls), ["tcp://127.0.0.1:8503"]);
    assert_eq!(config.tls.https.key_file.as_deref(), Some(Path::new("k2")));
    assert_eq!(config.debug_config()["TLS"]["HTTPS"]["KeyFile"], "hidden");
}

// === reload ===

#[test]
fn a_reload_tells_what_needs_a_restart() {
    let old = config(&[
        ("data-dir", "/d"),
        ("hcl", "log_level = \"info\"\nports { http = 1, dns = 2 }"),
    ]);
    let new = config(&[
        ("data-dir", "/e"),
        (
            "hcl",
            "log_level = \"warn\"\nports { http = 1, dns = 3 }\nservice { name = \"a\" }\ndns_config { node_ttl = \"5s\" }",
        ),
    ]);
    assert_eq!(old.needs_restart(&new), ["data_dir", "ports.dns"]);
    assert!(old.needs_restart(&old).is_empty());
    assert_ne!(old.reloadable, new.reloadable);
    assert_eq!(new.reloadable.log_level, LogLevel::Warn);
}
