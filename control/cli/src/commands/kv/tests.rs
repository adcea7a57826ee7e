use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::{
    persona::Persona,
    stub::{Asked, Printed, Reply, Stub},
};

/// Keys in a map, for as much of the API as the commands use.
fn store() -> Stub {
    let mut store: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    Stub::new(move |request| answer(&mut store, request))
}

fn answer(store: &mut BTreeMap<String, (u64, Vec<u8>)>, request: &Asked) -> Reply {
    let (method, target) = request.line.split_once(' ').expect("method and target");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.strip_prefix("/v1/kv/").expect("a key");
    let key = percent_decode_str(key)
        .decode_utf8()
        .expect("UTF-8")
        .into_owned();
    let param = |name: &str| {
        query
            .split('&')
            .find_map(|pair| match pair.split_once('=') {
                Some((known, value)) if known == name => Some(value.to_owned()),
                None if pair == name => Some(String::new()),
                _ => None,
            })
    };
    match method {
        "PUT" => {
            if param("cas").is_some_and(|index| (index == "0") == store.contains_key(&key)) {
                return Reply::ok("false");
            }
            let flags = param("flags").map_or(0, |flags| flags.parse().expect("a number"));
            store.insert(key, (flags, request.body.clone()));
            Reply::ok("true")
        }
        "DELETE" => {
            let recurse = param("recurse").is_some();
            store.retain(|known, _| !(*known == key || recurse && known.starts_with(&key)));
            Reply::ok("true")
        }
        _ => {
            let recurse = param("recurse").is_some();
            let pairs: Vec<_> = store
                .iter()
                .filter(|(known, _)| **known == key || recurse && known.starts_with(&key))
                .map(|(key, (flags, value))| {
                    json!({
                        "LockIndex": 0, "Key": key, "Flags": flags, "CreateIndex": 7, "ModifyIndex": 8,
                        "Value": if value.is_empty() { None } else { Some(STANDARD.encode(value)) },
                    })
                })
                .collect();
            if pairs.is_empty() {
                return Reply::new(404, "");
            }
            Reply::ok(json!(pairs).to_string())
        }
    }
}

fn out(text: &str) -> Printed {
    Printed {
        code: 0,
        out: text.to_owned(),
        err: String::new(),
    }
}

fn err(text: &str) -> Printed {
    Printed {
        code: 1,
        out: String::new(),
        err: text.to_owned(),
    }
}

#[test]
fn put_get_delete_in_consuls_words() {
    let store = store();
    for persona in [Persona::Wharf, Persona::Consul] {
        let run = |words: &[&str]| store.run(persona, words, b"");
        assert_eq!(
            run(&["kv", "put", "a/b", "-5"]),
            out("Success! Data written to: a/b\n")
        );
        assert_eq!(
            run(&["kv", "put", "-flags", "42", "a/c"]),
            out("Success! Data written to: a/c\n")
        );
        assert_eq!(run(&["kv", "get", "a/b"]), out("-5\n"));
        assert_eq!(run(&["kv", "get", "/a/b"]), out("-5\n"));
        assert_eq!(run(&["kv", "get", "a/c"]), out("\n"));
        assert_eq!(run(&["kv", "get", "-base64", "a/b"]), out("LTU=\n"));
        assert_eq!(run(&["kv", "get", "-recurse", "a/"]), out("a/b:-5\na/c:\n"));
        assert_eq!(
            run(&["kv", "get", "nope"]),
            err("Error! No key exists at: nope\n")
        );
        assert_eq!(run(&["kv", "get", "-recurse", "nope"]), out(""));
        assert_eq!(
            run(&["kv", "delete", "a/b"]),
            out("Success! Deleted key: a/b\n")
        );
        assert_eq!(
            run(&["kv", "delete", "-recurse", "a/"]),
            out("Success! Deleted keys with prefix: a/\n")
        );
        assert_eq!(run(&["kv", "get", "-recurse"]), out(""));
    }
}

#[test]
fn details_are_consuls() {
    let store = store();
    store.wharf(&["kv", "put", "-flags=3", "k", "v"]);
    store.wharf(&["kv", "put", "l"]);
    let expected = "\
CreateIndex      7
Flags            3
Key              k
LockIndex        0
ModifyIndex      8
Session          -
Value            v

CreateIndex      7
Flags            0
Key              l
LockIndex        0
ModifyIndex      8
Session          -
Value
";
    assert_eq!(
        store.wharf(&["kv", "get", "-detailed", "-recurse"]),
        out(expected)
    );
}

#[test]
fn data_comes_from_the_line_a_file_or_stdin() {
    let store = store();
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), "from a file\n").expect("written");
    store.wharf(&["kv", "put", "f", &format!("@{}", file.path().display())]);
    assert_eq!(store.wharf(&["kv", "get", "f"]).out, "from a file\n\n");
    store.run(Persona::Wharf, &["kv", "put", "i", "-"], b"from stdin");
    assert_eq!(store.wharf(&["kv", "get", "i"]).out, "from stdin\n");
    store.wharf(&["kv", "put", "-base64", "b", "aGk="]);
    assert_eq!(store.wharf(&["kv", "get", "b"]).out, "hi\n");
    assert_eq!(store.wharf(&["kv", "put", "-base64", "b", "!"]).code, 1);
    assert_eq!(store.wharf(&["kv", "put", "f", "@/nonexistent"]).code, 1);
}

#[test]
fn conditions_of_a_write() {
    let store = store();
    let cas = |index: &str| store.wharf(&["kv", "put", "-cas", "-modify-index", index, "k", "v"]);
    assert_eq!(cas("0"), out("Success! Data written to: k\n"));
    assert_eq!(cas("0"), err("Error! Did not write to k: CAS failed\n"));
    assert_eq!(
        store.wharf(&["kv", "put", "-cas", "k", "v"]),
        err("Must specify -modify-index with -cas!\n")
    );
    assert_eq!(
        store.wharf(&["kv", "put", "-acquire", "k", "v"]),
        err("Error! Missing -session (required with -acquire and -release)\n")
    );
    store.wharf(&["kv", "put", "-acquire", "-session=s", "k", "v"]);
    assert_eq!(
        store.lines().last().map(String::as_str),
        Some("PUT /v1/kv/k?acquire=s")
    );
}

#[test]
fn what_is_exported_can_be_imported() {
    let (from, to) = (store(), store());
    from.wharf(&["kv", "put", "-flags=18446744073709551615", "a/ü %?#", "ß"]);
    from.wharf(&["kv", "put", "-base64", "a/bytes", "AP8K"]);
    from.wharf(&["kv", "put", "a/empty"]);
    from.wharf(&["kv", "put", "b", "not exported"]);

    let exported = from.wharf(&["kv", "export", "a/"]).out;
    assert!(exported.starts_with(
        "[\n\t{\n\t\t\"key\": \"a/bytes\",\n\t\t\"flags\": 0,\n\t\t\"value\": \"AP8K\"\n\t},"
    ));
    let imported = to.run(Persona::Wharf, &["kv", "import", "-"], exported.as_bytes());
    assert_eq!(
        imported,
        out("Imported: a/bytes\nImported: a/empty\nImported: a/ü %?#\n")
    );
    assert_eq!(to.wharf(&["kv", "export"]).out, exported);

    to.run(
        Persona::Wharf,
        &["kv", "import", "-prefix=x/", "-"],
        exported.as_bytes(),
    );
    assert_eq!(to.wharf(&["kv", "get", "x/a/ü %?#"]).out, "ß\n");
    assert_eq!(store().wharf(&["kv", "export"]).out, "[]\n");
}

#[test]
fn a_damaged_import_changes_nothing() {
    let store = store();
    for data in [
        "[{",
        "{}",
        r#"[{"key":"a","value":"aGk="},{"key":"b","value":"!"}]"#,
        r#"[{"value":"aGk="}]"#,
    ] {
        let printed = store.wharf(&["kv", "import", data]);
        assert_eq!((printed.code, printed.out.as_str()), (1, ""), "{data}");
    }
    assert_eq!(store.lines(), Vec::<String>::new());
}

#[test]
fn json_is_the_apis_own() {
    let store = store();
    store.wharf(&["kv", "put", "k", "v"]);
    let one = store.wharf(&["kv", "get", "-format=json", "k"]).out;
    assert!(
        one.starts_with("{\n    \"Key\": \"k\",\n    \"CreateIndex\": 7,"),
        "{one}"
    );
    let many = store.wharf(&["kv", "get", "-format=json", "-recurse"]).out;
    assert!(
        many.starts_with("[\n    {\n        \"Key\": \"k\","),
        "{many}"
    );
    assert_eq!(
        store
            .wharf(&["kv", "get", "-format=json", "-recurse", "z"])
            .out,
        "[]\n"
    );
}
