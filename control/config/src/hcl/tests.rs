use proptest::prelude::*;
use serde_json::json;

use super::*;

fn value(text: &str) -> serde_json::Value {
    parse_hcl("x.hcl", text)
        .unwrap_or_else(|error| panic!("{error}"))
        .to_json()
}

fn message(text: &str) -> String {
    let shown = parse_hcl("x.hcl", text).expect_err(text).to_string();
    shown.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn an_empty_text_is_an_empty_map() {
    for text in ["", "\n", "# only\n// comments\n/* here */"] {
        assert_eq!(value(text), json!({}));
    }
}

#[test]
fn values() {
    assert_eq!(
        value(
            "a = 1\nb = -2.5e1\nc = \"x\"\nd = true\ne = [1, \"y\", ]\nf = null\ng = 0x1F\nh = 0644\ni = 0"
        ),
        json!({"a": 1, "b": -25.0, "c": "x", "d": true, "e": [1, "y"], "f": null, "g": 31, "h": 420, "i": 0})
    );
}

#[test]
fn blocks_and_objects_are_the_same() {
    let expected = json!({"ports": {"http": 8500, "dns": -1}});
    for text in [
        "ports { http = 8500\n dns = -1 }",
        "ports { http = 8500, dns = -1 }",
        "ports { http = 8500 dns = -1 }",
        "ports = { http = 8500, dns = -1 }",
        "ports = { http: 8500, \"dns\": -1 }",
        "ports\n{\nhttp = 8500\ndns = -1\n}",
        "\"ports\" = { \"http\" = 8500, \"dns\" = -1, }",
        "{\"ports\": {\"http\": 8500, \"dns\": -1}}",
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
}

#[test]
fn repeated_objects_become_a_list() {
    assert_eq!(
        value("service { name = \"a\" }\nservice { name = \"b\" }\nservice = { name = \"c\" }"),
        json!({"service": [{"name": "a"}, {"name": "b"}, {"name": "c"}]})
    );
    assert_eq!(
        value("services = [{ name = \"a\" }]\nservices { name = \"b\" }"),
        json!({"services": [{"name": "a"}, {"name": "b"}]})
    );
}

#[test]
fn labels_nest_and_join() {
    assert_eq!(
        value("service \"web\" { port = 80 }"),
        json!({"service": {"web": {"port": 80}}})
    );
    assert_eq!(
        value(
            "key \"a\" { policy = \"read\" }\nkey \"b\" { policy = \"write\" }\nkey \"a\" { x = 1 }"
        ),
        json!({"key": {"a": [{"policy": "read"}, {"x": 1}], "b": {"policy": "write"}}})
    );
    assert_eq!(
        value("r \"a\" \"x\" { n = 1 }\nr \"a\" \"y\" { n = 2 }\nr \"b\" \"x\" { n = 3 }"),
        json!({"r": {"a": {"x": {"n": 1}, "y": {"n": 2}}, "b": {"x": {"n": 3}}}})
    );
}

#[test]
fn quoted_keys_in_blocks_as_consul_documents_them() {
    assert_eq!(
        value("dns_config { service_ttl { \"*\" = \"5s\" \"web-*\" = \"30s\" } }"),
        json!({"dns_config": {"service_ttl": {"*": "5s", "web-*": "30s"}}})
    );
}

#[test]
fn strings_escapes_and_interpolations() {
    assert_eq!(
        value(r#"a = "q\" b\\ n\n \u00e9 \x41 \101""#),
        json!({"a": "q\" b\\ n\n \u{e9} A A"})
    );
    let template = r#"http://x/${service("a b").name}?y=${z{1}}$5"#;
    assert_eq!(
        value(&format!("a = \"{template}\"")),
        json!({"a": template})
    );
    assert_eq!(
        value(r#"a = "{{ GetInterfaceIP \"eth0\" }}""#),
        json!({"a": "{{ GetInterfaceIP \"eth0\" }}"})
    );
}

#[test]
fn heredocs() {
    assert_eq!(
        value("a = <<EOF\none\n  two\nEOF\nb = 1"),
        json!({"a": "one\n  two\n", "b": 1})
    );
    assert_eq!(
        value("a = <<-EOF\n    one\n\n      two\n    EOF\nb = 1"),
        json!({"a": "one\n\n  two\n", "b": 1})
    );
    // Less indented than the closing line: nothing can be taken off.
    assert_eq!(
        value("a = <<-EOF\n  one\n    EOF\n"),
        json!({"a": "  one\n"})
    );
    assert_eq!(
        value("a = [<<X\n1\nX\n, \"2\"]"),
        json!({"a": ["1\n", "2"]})
    );
    assert_eq!(value("a = <<EOF\nEOF"), json!({"a": ""}));
    assert_eq!(
        value("a = <<EOF\r\none\r\nEOF\r\nb = 2"),
        json!({"a": "one\r\n", "b": 2})
    );
}

#[test]
fn positions() {
    let node = parse_hcl("x.hcl", "# c\nservice {\n  tags = [\"a\",\n    \"b\"]\n}\n").unwrap();
    let entry = node.as_map().unwrap().entry("service").unwrap();
    assert_eq!(entry.position.to_string(), "x.hcl:2:1");
    assert_eq!(entry.node.position.to_string(), "x.hcl:2:9");
    let tags = entry.node.get("tags").unwrap().as_list().unwrap();
    assert_eq!(tags[1].position.to_string(), "x.hcl:4:5");
}

#[test]
fn mistakes_are_told_where_they_are() {
    let cases = [
        (
            "a = 1\nb 2",
            "x.hcl:2:3: expected `=` or `{` after \"b\", found `2`",
        ),
        (
            "a = foo",
            "x.hcl:1:5: expected a value, found `foo` (a string is written in double quotes)",
        ),
        (
            "a = ",
            "x.hcl:1:5: expected a value, found the end of the text",
        ),
        ("a =\n}", "x.hcl:2:1: expected a value, found `}`"),
        ("a {\n b = 1", "x.hcl:1:3: this `{` is never closed"),
        ("a = [1, 2", "x.hcl:1:5: this `[` is never closed"),
        (
            "a = [1 2]",
            "x.hcl:1:8: expected `,` or `]` in the list, found `2`",
        ),
        ("a = 1 }", "x.hcl:1:7: this `}` closes nothing"),
        (
            "a = \"x\nb = 1",
            "x.hcl:1:5: this string has no closing double quote on its line",
        ),
        (
            "a = \"${x\"",
            "x.hcl:1:5: this string has a `${` without its `}`",
        ),
        (
            "a = 10s",
            "x.hcl:1:5: `10s` is not a number (a duration is written in double quotes: \"10s\")",
        ),
        ("a = 80a", "x.hcl:1:5: `80a` is not a number"),
        ("a = 1.2.3", "x.hcl:1:5: `1.2.3` is not a number"),
        (
            "a = <<EOF\nx",
            "x.hcl:1:5: no line with `EOF` alone ends this text",
        ),
        (
            "a = <<",
            "x.hcl:1:5: expected `<<` and a word alone on the rest of the line",
        ),
        ("/* a", "x.hcl:1:1: this comment is never closed"),
        (
            "service \"web\" = 1",
            "x.hcl:1:15: expected `{` after \"web\", found `=`",
        ),
        ("= 1", "x.hcl:1:1: expected a key, found `=`"),
        (
            "a: 1",
            "x.hcl:1:2: expected `=` or `{` after \"a\", found `:`",
        ),
        (
            "a = \"\\q\"",
            "x.hcl:1:6: unknown escape sequence in a string (a backslash is written `\\\\`)",
        ),
        (
            "a = \"\\u12\"",
            "x.hcl:1:6: this escape needs 4 digits that name a character",
        ),
        (
            "{\"a\": 1,}",
            "x.hcl:1:9: expected a key in double quotes, found `}`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn depth_is_limited_not_the_stack() {
    let lists = |n: usize| format!("a = {}{}", "[".repeat(n), "]".repeat(n));
    assert!(parse_hcl("", &lists(MAX_DEPTH)).is_ok());
    assert!(message(&lists(MAX_DEPTH + 1)).ends_with("nested deeper than 64 levels"));
    assert!(parse_hcl("", &"a {".repeat(200_000)).is_err());
    assert!(parse_hcl("", &format!("a {} {{}}", "\"x\" ".repeat(200_000))).is_err());
}

#[test]
fn a_repeated_scalar_is_remembered() {
    let node = parse_hcl("x.hcl", "a = 1\na = 2").unwrap();
    assert_eq!(
        node.as_map().unwrap().repeated().unwrap().first.to_string(),
        "x.hcl:1:1"
    );
}

// === properties ===

/// Trees as configuration has them: maps with plain keys, and lists that are not made of objects alone (in HCL a
/// list of one object and the object are told apart, but repeated objects and their list are not).
fn tree() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        (-1e9..1e9f64).prop_map(serde_json::Value::from),
        "[ -#&-~é]{0,12}".prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            object(inner),
        ]
    })
}

fn object(
    inner: impl Strategy<Value = serde_json::Value>,
) -> impl Strategy<Value = serde_json::Value> {
    proptest::collection::btree_map("[a-z_][a-z0-9_]{0,6}", inner, 0..5)
        .prop_map(|map| serde_json::Value::Object(map.into_iter().collect()))
}

/// Writes a tree as HCL, objects as blocks where `blocks` says so.
fn write(value: &serde_json::Value, blocks: bool, out: &mut String) {
    use serde_json::Value as Json;
    match value {
        Json::Array(items) => {
            out.push('[');
            for item in items {
                // Inside a value, HCL 2 has no blocks.
                write(item, false, out);
                out.push_str(", ");
            }
            out.push(']');
        }
        Json::Object(map) => {
            out.push_str("{\n");
            write_body(map, blocks, out);
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_body(map: &serde_json::Map<String, serde_json::Value>, blocks: bool, out: &mut String) {
    for (key, value) in map {
        out.push_str(key);
        out.push_str(if blocks && value.is_object() {
            " "
        } else {
            " = "
        });
        write(value, blocks, out);
        out.push('\n');
    }
}

proptest! {
    #[test]
    fn hcl_and_json_give_the_same_tree(tree in object(tree()), blocks: bool) {
        let mut text = String::new();
        write_body(tree.as_object().unwrap(), blocks, &mut text);
        let from_json = parse_json("", &tree.to_string()).unwrap();
        prop_assert_eq!(parse_hcl("", &text).unwrap().to_json(), from_json.to_json());
    }

    /// On the part that HCL 1 and HCL 2 share, an HCL 2 parser reads the same.
    #[test]
    fn reads_as_hcl2_does(tree in object(tree()), blocks: bool) {
        let mut text = String::new();
        write_body(tree.as_object().unwrap(), blocks, &mut text);
        let theirs: hcl_edit::structure::Body = text.parse().unwrap();
        prop_assert_eq!(parse_hcl("", &text).unwrap().to_json(), body_to_json(&theirs));
    }

    #[test]
    fn never_panics(text in "\\PC{0,64}") {
        let _ = parse_hcl("", &text);
    }

    #[test]
    fn never_panics_on_its_own_pieces(
        pieces in proptest::collection::vec(
            proptest::sample::select(&[
                "a", "b ", "=", "{", "}", "[", "]", ",", ":", "\"", "\"x\"", "${", "\\", "\\u00", "<<E\n", "<<-E\n",
                "E\n", "\n", "#", "/*", "*/", "1", "-", ".5", "e+", "é", "\u{feff}", " ",
            ][..]),
            0..24,
        )
    ) {
        let _ = parse_hcl("", &pieces.concat());
    }
}

fn body_to_json(body: &hcl_edit::structure::Body) -> serde_json::Value {
    let pairs = body.iter().map(|structure| match structure {
        hcl_edit::structure::Structure::Attribute(attribute) => (
            attribute.key.to_string(),
            expression_to_json(&attribute.value),
        ),
        hcl_edit::structure::Structure::Block(block) => {
            (block.ident.to_string(), body_to_json(&block.body))
        }
    });
    serde_json::Value::Object(
        pairs
            .map(|(key, value)| (key.trim().to_owned(), value))
            .collect(),
    )
}

fn expression_to_json(expression: &hcl_edit::expr::Expression) -> serde_json::Value {
    use hcl_edit::expr::Expression;
    match expression {
        Expression::Null(_) => serde_json::Value::Null,
        Expression::Bool(value) => (*value.value()).into(),
        Expression::Number(number) => {
            let number = number.value();
            match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => int.into(),
                (None, Some(uint)) => uint.into(),
                _ => number.as_f64().into(),
            }
        }
        Expression::String(text) => text.value().as_str().into(),
        Expression::Array(items) => items.iter().map(expression_to_json).collect(),
        Expression::Object(object) => {
            let pairs = object.iter().map(|(key, value)| {
                let key = match key {
                    hcl_edit::expr::ObjectKey::Ident(ident) => ident.to_string(),
                    hcl_edit::expr::ObjectKey::Expression(expr) => {
                        expr.as_str().unwrap().to_owned()
                    }
                };
                (key.trim().to_owned(), expression_to_json(value.expr()))
            });
            serde_json::Value::Object(pairs.collect())
        }
        other => panic!("not plain: {other:?}"),
    }
}
