use serde_json::json;
use wharf_config::{GoDuration, Mode, decode, decode_json_bytes, parse_hcl};
use wharf_registry::model::{CheckStatus, ServiceKind, Weights};

use super::*;

const ALL_SCRIPTS: ScriptPolicy = ScriptPolicy {
    from_api: true,
    from_files: true,
};

fn service(json: serde_json::Value) -> ServiceDefinition {
    decode_json_bytes(json.to_string().as_bytes(), Mode::Lenient)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn check(json: serde_json::Value) -> CheckDefinition {
    decode_json_bytes(json.to_string().as_bytes(), Mode::Lenient)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(json: serde_json::Value) -> String {
    service(json)
        .validate(Origin::Api, ScriptPolicy::default())
        .unwrap_err()
        .to_string()
}

fn check_refusal(json: serde_json::Value) -> String {
    check(json)
        .validate(Origin::Api, ScriptPolicy::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn one_definition_from_the_api_and_from_a_file() {
    let api = service(json!({
        "ID": "web-1", "Name": "web", "Tags": ["a"], "Port": 80, "Address": "10.0.0.1",
        "Meta": {"version": "1"}, "EnableTagOverride": true, "Weights": {"Passing": 10, "Warning": 1},
        "TaggedAddresses": {"lan": {"Address": "10.0.0.1", "Port": 80}},
        "Check": {"HTTP": "http://localhost/health", "Interval": "10s", "Timeout": "1s", "TLSSkipVerify": true,
                  "Header": {"X-Foo": ["bar"]}, "DeregisterCriticalServiceAfter": "90m", "FailuresBeforeWarning": 1,
                  "FailuresBeforeCritical": 3},
        "Checks": [{"CheckID": "ttl", "TTL": "30s", "Status": "passing"}],
        "Proxy": null, "Unknown": true,
    }));
    let file = parse_hcl(
        "web.hcl",
        r#"
        id = "web-1"
        name = "web"
        tags = ["a"]
        port = 80
        address = "10.0.0.1"
        meta { version = "1" }
        enable_tag_override = true
        weights { passing = 10, warning = 1 }
        tagged_addresses { lan { address = "10.0.0.1", port = 80 } }
        check {
          http = "http://localhost/health"
          interval = "10s"
          timeout = "1s"
          tls_skip_verify = true
          header { "X-Foo" = ["bar"] }
          deregister_critical_service_after = "90m"
          failures_before_warning = 1
          failures_before_critical = 3
        }
        checks = [{ check_id = "ttl", ttl = "30s", status = "passing" }]
        "#,
    )
    .unwrap();
    assert_eq!(
        decode::<ServiceDefinition>(&file, Mode::Strict).unwrap(),
        api
    );
    api.validate(Origin::Api, ScriptPolicy::default()).unwrap();
    let back: ServiceDefinition =
        serde_json::from_value(serde_json::to_value(&api).unwrap()).unwrap();
    assert_eq!(back, api);
}

#[test]
fn ids_and_names_of_checks() {
    let ids = |json| {
        let checks = service(json).service_checks();
        checks
            .iter()
            .map(|check| format!("{} {}", check.id, check.name))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(json!({"Name": "web", "Check": {"TTL": "1s"}})),
        ["service:web Service 'web' check"]
    );
    assert_eq!(
        ids(
            json!({"ID": "w1", "Name": "web", "Check": {"TTL": "1s"}, "Checks": [{"ID": "x", "Name": "X"}, {"TTL": "2s"}]})
        ),
        [
            "service:w1:1 Service 'web' check",
            "x X",
            "service:w1:3 Service 'web' check"
        ]
    );
    let checks =
        service(json!({"ID": "w1", "Name": "web", "Check": {"TTL": "1s"}})).service_checks();
    assert_eq!(&*checks[0].definition.service_id, "w1");
}

#[test]
fn services_are_refused_in_consuls_words() {
    let cases = [
        (json!({"ID": "x"}), "Missing service name"),
        (
            json!({"Name": "x", "Address": "0.0.0.0"}),
            "Invalid service address",
        ),
        (
            json!({"Name": "x", "Address": "[::]"}),
            "Invalid service address",
        ),
        (
            json!({"Name": "x", "TaggedAddresses": {"lan": {"Address": "::"}}}),
            "Invalid service address",
        ),
        (
            json!({"Name": "x", "Meta": {"a b": "c"}}),
            "Invalid Service Meta: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters",
        ),
        (
            json!({"Name": "x", "Meta": {"consul-x": "c"}}),
            "Invalid Service Meta: Couldn't load metadata pair ('consul-x', 'c'): Key prefix 'consul-' is reserved for internal use",
        ),
        (
            json!({"Name": "x", "Weights": {"Passing": 0, "Warning": 1}}),
            "Invalid Weights: Passing must be greater than 0",
        ),
        (
            json!({"Name": "x", "Weights": {"Warning": 1}}),
            "Invalid Weights: Passing must be greater than 0",
        ),
        (
            json!({"Name": "x", "Weights": {"Passing": 70000}}),
            "Invalid Weights: DNS Weight must be between 0 and 65535",
        ),
        (
            json!({"Name": "x", "Check": {"HTTP": "http://x", "Interval": 0}}),
            "Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ),
        (
            json!({"Name": "x", "Checks": [{"Name": "what"}]}),
            "Invalid check: TTL must be > 0 for TTL checks",
        ),
        (
            json!({"Name": "x", "Kind": "connect-proxy", "Port": 1}),
            "Proxy.DestinationServiceName must be non-empty for Connect proxy services",
        ),
        (
            json!({"Name": "x", "Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "w"}}),
            "Port or SocketPath must be set for a Connect proxy",
        ),
        (
            json!({"Name": "x", "Kind": "connect-proxy", "Port": 1, "Proxy": {"DestinationServiceName": "w", "Upstreams": [
                {"DestinationName": "db"}]}}),
            "upstreams[0]: upstream local bind port or local socket path must be defined and nonzero",
        ),
        (
            json!({"Name": "x", "Kind": "connect-proxy", "Port": 1, "Proxy": {"DestinationServiceName": "w", "Upstreams": [
                {"DestinationName": "db", "LocalBindPort": 5}, {"DestinationName": "kv", "LocalBindAddress": "127.0.0.1", "LocalBindPort": 5}]}}),
            "upstreams[1]: upstreams cannot contain duplicates by local bind address and port: 127.0.0.1:5 is specified twice",
        ),
        (
            json!({"Name": "x", "Connect": {"SidecarService": {"Proxy": {"Upstreams": [{"LocalBindPort": 5}]}}}}),
            "upstreams[0]: upstream destination name cannot be empty",
        ),
        (
            json!({"Name": "x", "Connect": {"SidecarService": {"ID": "y"}}}),
            "SidecarService can't have an ID specified",
        ),
        (
            json!({"Name": "x", "Connect": {"SidecarService": {"Connect": {"SidecarService": {}}}}}),
            "SidecarService can't have a nested SidecarService",
        ),
        (
            json!({"Name": "x", "Namespace": "team"}),
            "Invalid Namespace: \"team\": namespaces and partitions are a Consul Enterprise feature",
        ),
    ];
    for (json, message) in cases {
        assert_eq!(refusal(json.clone()), message, "{json}");
    }
    let many: serde_json::Map<_, _> = (0..65).map(|i| (format!("k{i}"), json!("v"))).collect();
    assert!(
        refusal(json!({"Name": "x", "Meta": many}))
            .ends_with("cannot contain more than 64 key/value pairs")
    );
    for good in [
        json!({"Name": "x", "Namespace": "default"}),
        json!({"Name": "bad_name", "Tags": ["a b"]}),
    ] {
        service(good)
            .validate(Origin::Api, ScriptPolicy::default())
            .unwrap();
    }
}

#[test]
fn checks_are_refused_in_consuls_words() {
    let cases = [
        (json!({}), "TTL must be > 0 for TTL checks"),
        (
            json!({"TTL": "10s", "Interval": "1s"}),
            "Interval and TTL cannot both be specified",
        ),
        (
            json!({"TCP": "localhost:1"}),
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ),
        (
            json!({"TCP": "localhost:1", "Interval": "-1s"}),
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ),
        (
            json!({"AliasService": "x", "Interval": "1s"}),
            "Interval cannot be set for Alias checks",
        ),
        (
            json!({"AliasService": "x", "TTL": "1s"}),
            "TTL must be not be set for Alias checks",
        ),
        (
            json!({"TTL": "1s", "OutputMaxSize": -1}),
            "MaxOutputMaxSize must be positive",
        ),
        (
            json!({"TTL": "1s", "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 2}),
            "FailuresBeforeWarning can't be higher than FailuresBeforeCritical",
        ),
        (
            json!({"TTL": "1s", "Status": "fine"}),
            "Status for checks must 'passing', 'warning', 'critical'",
        ),
        (
            json!({"HTTP": "http://x", "TCP": "x:1", "Interval": "1s"}),
            "a check has one kind, this one is both http and tcp",
        ),
        (
            json!({"OSService": "x", "Interval": "1s"}),
            "os_service checks are not built into this agent",
        ),
        (
            json!({"Args": ["true"], "Interval": "1s"}),
            "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true",
        ),
    ];
    for (json, message) in cases {
        assert_eq!(check_refusal(json.clone()), message, "{json}");
    }
    let error =
        decode_json_bytes::<CheckDefinition>(br#"{"Interval": "ten"}"#, Mode::Lenient).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Interval: time: invalid duration \"ten\""
    );
}

#[test]
fn scripts_run_where_they_are_allowed() {
    let script = check(json!({"ScriptArgs": ["true"], "Interval": "1s"}));
    assert_eq!(script.kind(), CheckKind::Script);
    let local = ScriptPolicy {
        from_api: false,
        from_files: true,
    };
    assert_eq!(
        script.validate(Origin::Api, local),
        Err(CheckError::RemoteScripts)
    );
    assert_eq!(script.validate(Origin::File, local), Ok(()));
    assert_eq!(
        script.validate(Origin::File, ScriptPolicy::default()),
        Err(CheckError::Scripts)
    );
    assert_eq!(script.validate(Origin::Api, ALL_SCRIPTS), Ok(()));
}

#[test]
fn effective_values_of_a_check() {
    use std::time::Duration;
    let http = check(
        json!({"HTTP": "http://x", "Interval": "10ms", "DeregisterCriticalServiceAfter": "1s", "FailuresBeforeCritical": 2}),
    );
    assert_eq!(http.effective_interval(), Duration::from_secs(1));
    assert_eq!(http.effective_timeout(), Duration::from_secs(10));
    assert_eq!(
        http.effective_deregister_after(),
        Some(Duration::from_secs(60))
    );
    assert_eq!(http.effective_failures_before_warning(), 2);
    assert_eq!(http.initial_status(), CheckStatus::Critical);
    let script = check(json!({"Args": ["x"], "Interval": 5_000_000_000u64}));
    assert_eq!(script.effective_timeout(), Duration::from_secs(30));
    assert_eq!(script.interval, GoDuration::from_secs(5));
    assert_eq!(script.effective_deregister_after(), None);
}

#[test]
fn weights_by_origin() {
    let weights = |json, origin| service(json).weights(origin);
    assert_eq!(
        weights(json!({"Name": "x"}), Origin::Api),
        Weights {
            passing: 1,
            warning: 1
        }
    );
    assert_eq!(
        weights(json!({"Weights": {"Passing": 5}}), Origin::Api),
        Weights {
            passing: 5,
            warning: 0
        }
    );
    assert_eq!(
        weights(json!({"Weights": {"Passing": 5}}), Origin::File),
        Weights {
            passing: 5,
            warning: 1
        }
    );
}

#[test]
fn a_sidecar_by_default() {
    let web = service(
        json!({"ID": "w1", "Name": "web", "Port": 80, "Tags": ["a"], "Meta": {"v": "1"},
        "Connect": {"SidecarService": {"Proxy": {"Upstreams": [{"DestinationName": "db", "LocalBindPort": 5}]}}}}),
    );
    web.validate(Origin::Api, ScriptPolicy::default()).unwrap();
    assert_eq!(web.sidecar_port(), Some(0));
    let sidecar = web.sidecar(21000).unwrap();
    sidecar
        .validate(Origin::Api, ScriptPolicy::default())
        .unwrap();
    assert_eq!(
        (&**sidecar.id(), &*sidecar.name, sidecar.port),
        ("w1-sidecar-proxy", "web-sidecar-proxy", 21000)
    );
    assert_eq!(sidecar.kind, ServiceKind::ConnectProxy);
    assert_eq!((&sidecar.tags, &sidecar.meta), (&web.tags, &web.meta));
    let proxy = sidecar.proxy.as_ref().unwrap();
    assert_eq!(
        (
            &*proxy.destination_service_name,
            &*proxy.destination_service_id
        ),
        ("web", "w1")
    );
    assert_eq!(
        (&*proxy.local_service_address, proxy.local_service_port),
        ("127.0.0.1", 80)
    );
    assert_eq!(proxy.upstreams.len(), 1);
    let checks = sidecar.service_checks();
    assert_eq!(checks[0].definition.tcp, "127.0.0.1:21000");
    assert_eq!(&*checks[1].definition.alias_service, "w1");
    assert_eq!(&*checks[0].id, "service:w1-sidecar-proxy:1");
    assert!(
        service(json!({"Name": "x", "Connect": {"Native": true}}))
            .sidecar(1)
            .is_none()
    );
}

#[test]
fn the_catalog_form() {
    let node_service = service(json!({"Name": "web", "Port": 80, "Connect": {"Native": true}}))
        .to_node_service(Origin::Api);
    assert_eq!(
        (&*node_service.id, &*node_service.name, node_service.port),
        ("web", "web", 80)
    );
    assert!(node_service.connect.native);
    assert_eq!(node_service.weights, Weights::default());
}

#[test]
fn names_that_dns_cannot_have_are_warned_about() {
    let warnings = service(json!({"Name": "my_web", "Tags": ["ok", "not ok"]})).warnings();
    assert_eq!(
        warnings[0],
        "Service name \"my_web\" will not be discoverable via DNS due to invalid characters. Valid characters include \
         all alpha-numerics and dashes."
    );
    assert!(warnings[1].starts_with("Service tag \"not ok\""));
    assert!(
        dns_warning("Service name", &"a".repeat(64))
            .unwrap()
            .contains("too long")
    );
    assert_eq!(dns_warning("Service name", "web-1"), None);
}

#[test]
fn tokens_are_not_shown() {
    let web = service(
        json!({"Name": "web", "Token": "s3cret", "Check": {"TTL": "1s", "Token": "s3cret"}}),
    );
    assert!(!format!("{web:?}").contains("s3cret"));
    assert_eq!(web.token.secret(), "s3cret");
}
