use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::{GoDuration, parse_hcl};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    name: Arc<str>,
    tags: Vec<String>,
    port: u16,
    #[serde(rename = "EnableTagOverride")]
    enable_tag_override: bool,
    meta: HashMap<String, String>,
    tagged_addresses: BTreeMap<String, Address>,
    check: Option<Box<Check>>,
    checks: Vec<Check>,
    weight: f64,
    kind: Kind,
    config: serde_json::Map<String, serde_json::Value>,
    wrapped: Wrapped,
    pair: (i8, u8),
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Address {
    address: String,
    port: u16,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    name: String,
    #[serde(default)]
    interval: GoDuration,
    #[serde(default, rename = "TLSSkipVerify")]
    tls_skip_verify: bool,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    #[default]
    Typical,
    ConnectProxy,
    Port(u16),
    At {
        address: String,
    },
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Wrapped(u64);

fn hcl(text: &str) -> Result<Service> {
    decode(&parse_hcl("web.hcl", text).unwrap(), Mode::Strict)
}

fn lenient(json: &str) -> Result<Service> {
    decode_json_bytes(json.as_bytes(), Mode::Lenient)
}

fn message(text: &str) -> String {
    hcl(text).expect_err(text).to_string()
}

#[test]
fn any_spelling_of_a_field() {
    let expected = Service {
        id: "w1".into(),
        enable_tag_override: true,
        ..Service::default()
    };
    for text in [
        "ID = \"w1\"\nEnableTagOverride = true",
        "id = \"w1\"\nenable_tag_override = true",
        "Id = \"w1\"\nenabletagoverride = true",
        "i_d = \"w1\"\nENABLE_TAG_OVERRIDE = true",
    ] {
        assert_eq!(hcl(text).unwrap(), expected);
    }
}

#[test]
fn every_kind_of_type() {
    let service = hcl(r#"
        name = "web"
        tags = ["a", null, "b"]
        port = 80
        meta { version = "1", "x_y" = "z" }
        tagged_addresses { lan = { address = "10.0.0.1", port = 1 } wan { port = 2 } }
        check { name = "c", interval = "1m30s" }
        checks { name = "d" interval = 1000 }
        weight = 3
        kind = "connect-proxy"
        config { nested { list = [1, { k = null }] } "Key_A" = 1.5 }
        wrapped = 18446744073709551615
        pair = [-128, 255]
        "#)
    .unwrap();
    let check = |name: &str, interval| Check {
        name: name.into(),
        interval,
        tls_skip_verify: false,
    };
    assert_eq!(&*service.name, "web");
    assert_eq!(service.tags, ["a", "b"]);
    assert_eq!(service.meta["x_y"], "z");
    assert_eq!(service.tagged_addresses["wan"].port, 2);
    assert_eq!(
        *service.check.unwrap(),
        check("c", GoDuration::from_secs(90))
    );
    assert_eq!(service.checks, [check("d", GoDuration::from_nanos(1000))]);
    assert_eq!(service.weight, 3.0);
    assert_eq!(service.kind, Kind::ConnectProxy);
    assert_eq!(
        serde_json::Value::Object(service.config),
        serde_json::json!({"nested": {"list": [1, {"k": null}]}, "Key_A": 1.5})
    );
    assert_eq!(service.wrapped, Wrapped(u64::MAX));
    assert_eq!(service.pair, (-128, 255));
}

#[test]
fn enums_with_content() {
    assert_eq!(hcl("kind { port = 5 }").unwrap().kind, Kind::Port(5));
    let at = Kind::At {
        address: "x".into(),
    };
    assert_eq!(hcl("kind { at { Address = \"x\" } }").unwrap().kind, at);
    assert_eq!(
        message("kind = \"conect-proxy\""),
        "web.hcl:1:8: kind: expected one of \"typical\", \"connect-proxy\", \"port\", \"at\", found \"conect-proxy\""
    );
    assert_eq!(
        message("kind = \"port\""),
        "web.hcl:1:8: kind: expected an object with the key \"port\", found a string \"port\""
    );
    assert_eq!(
        message("kind { typical {} }"),
        "web.hcl:1:6: kind: expected the string \"typical\", found an object"
    );
}

#[test]
fn unknown_keys_are_named_with_the_nearest() {
    assert_eq!(
        message("id = \"a\"\n  nam = \"b\""),
        "web.hcl:2:3: unknown key \"nam\" (did you mean \"name\"?)"
    );
    assert_eq!(
        message("tagged_adresses {}"),
        "web.hcl:1:1: unknown key \"tagged_adresses\" (did you mean \"tagged_addresses\"?)"
    );
    assert_eq!(
        message("TaggedAdresses {}"),
        "web.hcl:1:1: unknown key \"TaggedAdresses\" (did you mean \"TaggedAddresses\"?)"
    );
    assert_eq!(message("zzz = 1"), "web.hcl:1:1: unknown key \"zzz\"");
    assert_eq!(
        message("checks = [{ name = \"a\" }, { name = \"b\", tls_skip_verfy = true }]"),
        "web.hcl:1:41: unknown key \"checks[1].tls_skip_verfy\" (did you mean \"tls_skip_verify\"?)"
    );
    assert!(message(&format!("{} = 1", "k".repeat(100_000))).len() < 200);
}

#[test]
fn wrong_types_are_told_with_their_path() {
    let cases = [
        (
            "port = \"80a\"",
            "web.hcl:1:8: port: expected an integer, found a string \"80a\"",
        ),
        (
            "port = 65536",
            "web.hcl:1:8: port: expected an integer from 0 to 65535, found 65536",
        ),
        (
            "port = -1",
            "web.hcl:1:8: port: expected an integer from 0 to 65535, found -1",
        ),
        (
            "port = 1.5",
            "web.hcl:1:8: port: expected an integer, found 1.5",
        ),
        ("name = 5", "web.hcl:1:8: name: expected a string, found 5"),
        (
            "tags = \"a\"",
            "web.hcl:1:8: tags: expected a list, found a string \"a\"",
        ),
        (
            "tags = [\"a\", true]",
            "web.hcl:1:14: tags[1]: expected a string, found true",
        ),
        (
            "meta = []",
            "web.hcl:1:8: meta: expected an object, found a list",
        ),
        (
            "enable_tag_override = \"yes\"",
            "web.hcl:1:23: enable_tag_override: expected true or false, found a string \"yes\"",
        ),
        (
            "weight = \"x\"",
            "web.hcl:1:10: weight: expected a number, found a string \"x\"",
        ),
        (
            "check { interval = \"1s\" }",
            "web.hcl:1:7: check: missing key \"Name\"",
        ),
        (
            "check { name = \"c\", interval = \"ten\" }",
            "web.hcl:1:32: check.interval: time: invalid duration \"ten\"",
        ),
        (
            "check { name = \"c\", interval = true }",
            "web.hcl:1:32: check.interval: expected a duration such as \"10s\", found true",
        ),
        (
            "check { name = \"a\" }\ncheck { name = \"b\" }",
            "web.hcl:2:7: check: expected one object, found 2 of them",
        ),
        (
            "pair = [1]",
            "web.hcl:1:8: pair: invalid length 1, expected a tuple of size 2",
        ),
        (
            "tagged_addresses { lan { port = {} } }",
            "web.hcl:1:33: tagged_addresses.lan.port: expected an integer, found an object",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn repeated_keys() {
    assert_eq!(
        message("port = 1\nport = 2"),
        "web.hcl:2:1: key \"port\" is there twice (first at web.hcl:1:1)"
    );
    assert_eq!(
        message("port = 1\nPort = 2"),
        "web.hcl:2:1: key \"Port\" is there twice (first at web.hcl:1:1)"
    );
    assert_eq!(
        message("meta { a = \"1\", a = \"2\" }"),
        "web.hcl:1:17: key \"meta.a\" is there twice (first at web.hcl:1:8)"
    );
    assert_eq!(
        lenient(r#"{"Port": 1, "port": 2, "port": 3}"#)
            .unwrap()
            .port,
        3
    );
}

#[test]
fn bodies_are_lenient_about_keys_but_not_about_types() {
    let service =
        lenient(r#"{"Name": "web", "Nonsense": {"a": []}, "Tags": null, "Check": null}"#).unwrap();
    assert_eq!(&*service.name, "web");
    let error = lenient(r#"{"Checks": [{"Name": "x"}, {"Name": 5}]}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Checks[1].Name: expected a string, found 5"
    );
    assert_eq!(
        lenient(r#"{"Tags": {}}"#).unwrap_err().to_string(),
        "Tags: expected a list, found an object"
    );
    assert_eq!(
        lenient("[]").unwrap_err().to_string(),
        "expected an object, found a list"
    );
    let error = lenient("{\"Name\": }").unwrap_err().to_string();
    assert!(
        error.starts_with("1:10: expected a value, found `}`"),
        "{error}"
    );
    let error = decode_json_bytes::<Service>(b"{\"Name\": \"\xff\"}", Mode::Lenient).unwrap_err();
    assert_eq!(error.to_string(), "not text in UTF-8 (byte 10)");
}

#[test]
fn values_decode_as_bodies_do() {
    let value = serde_json::json!({"service_id": 1, "ID": "x", "port": 80});
    assert_eq!(
        decode_json_value::<Service>(&value, Mode::Lenient)
            .unwrap()
            .port,
        80
    );
    let error = decode_json_value::<Service>(&value, Mode::Strict).unwrap_err();
    assert_eq!(error.to_string(), "unknown key \"service_id\"");
    let deep = (0..100).fold(serde_json::json!(1), |value, _| serde_json::json!([value]));
    assert_eq!(
        decode_json_value::<serde_json::Value>(&deep, Mode::Lenient)
            .unwrap_err()
            .kind(),
        &DecodeErrorKind::TooDeep
    );
}

#[test]
fn all_errors_at_once() {
    let text = "nam = 1\nport = \"x\"\ntags = [1, \"ok\", 2]\nport = 3\ncheck { }\nchecks { name = 1 }\nmeta { a = 1 }";
    let errors = decode_all::<Service>(&parse_hcl("w", text).unwrap(), Mode::Strict).unwrap_err();
    let shown: Vec<String> = errors.iter().map(DecodeError::to_string).collect();
    assert_eq!(
        shown,
        [
            "w:4:1: key \"port\" is there twice (first at w:2:1)",
            "w:1:1: unknown key \"nam\" (did you mean \"name\"?)",
            "w:3:9: tags[0]: expected a string, found 1",
            "w:3:18: tags[2]: expected a string, found 2",
            "w:7:12: meta.a: expected a string, found 1",
            "w:5:7: check: missing key \"Name\"",
            "w:6:17: checks[0].name: expected a string, found 1",
        ]
    );
    let many = (0..100)
        .map(|i| format!("key{i}x = 1\n"))
        .collect::<String>();
    assert_eq!(
        decode_all::<Service>(&parse_hcl("w", &many).unwrap(), Mode::Strict)
            .unwrap_err()
            .len(),
        MAX_ERRORS
    );
    assert!(decode_all::<Service>(&parse_hcl("w", "port = 1").unwrap(), Mode::Strict).is_ok());
}

#[test]
fn snake_case_of_consuls_names() {
    for (name, snake) in [
        ("TaggedAddresses", "tagged_addresses"),
        ("ServiceID", "service_id"),
        ("TLSSkipVerify", "tls_skip_verify"),
        ("HTTP", "http"),
        ("bind_addr", "bind_addr"),
        ("FailuresBeforeCritical", "failures_before_critical"),
    ] {
        assert_eq!(snake_case(name), snake);
    }
}

#[test]
fn hostile_bodies_take_linear_time() {
    // 100,000 distinct keys, and as many times the same one: quadratic work would take minutes.
    let distinct: String = (0..100_000).map(|i| format!("\"k{i}\":1,")).collect();
    let same = "\"Port\":1,".repeat(100_000);
    assert_eq!(
        lenient(&format!("{{{distinct}{same}\"Port\":2}}"))
            .unwrap()
            .port,
        2
    );
}

proptest! {
    #[test]
    fn never_panics_on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode_json_bytes::<Service>(&bytes, Mode::Strict);
        let _ = decode_json_bytes::<serde_json::Value>(&bytes, Mode::Lenient);
    }

    /// Well-formed documents of the wrong shape: an answer in both modes, and pruning ends.
    #[test]
    fn never_panics_on_shapes(
        pieces in proptest::collection::vec(
            (
                proptest::sample::select(&["name", "Port", "tags", "meta", "check", "checks", "kind", "pair", "config", "zz"][..]),
                proptest::sample::select(&[
                    "1", "-1", "\"x\"", "null", "[]", "{}", "[{}]", "[1, \"a\", null]", "{ name = 1 }", "[[{}]]", "1e300",
                    "{ name = \"a\", interval = \"x\" }", "{ port = 1 }", "true", "18446744073709551615",
                ][..]),
            ),
            0..12,
        )
    ) {
        let text: String = pieces.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let node = parse_hcl("", &text).unwrap();
        let strict = decode::<Service>(&node, Mode::Strict);
        let all = decode_all::<Service>(&node, Mode::Strict);
        prop_assert_eq!(strict.as_ref().err(), all.as_ref().err().map(|errors| &errors[0]));
        let _ = decode::<Service>(&node, Mode::Lenient);
    }
}
