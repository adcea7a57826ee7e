use std::fs;

use serde_json::json;

use super::*;
use crate::{
    persona::Persona,
    stub::{Printed, Reply, Stub, run as run_words},
};

fn wharf(words: &[&str]) -> Printed {
    run_words(Persona::Wharf, words, b"", &[])
}

fn image() -> Value {
    json!({"Digest": format!("sha256:{}", "ab".repeat(32)), "Manifest": "", "Names": ["web:1", "web:2"],
        "Size": 1_234_567, "Layers": [], "Origin": "Import", "Added": 0, "LastUsed": 0, "UsedBy": ["a"]})
}

#[test]
fn sizes_are_for_people() {
    for (bytes, text) in [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_960, "1.0 MB"),
        (u64::MAX, "18446744.1 TB"),
    ] {
        assert_eq!(size(bytes), text);
    }
}

#[test]
fn images_are_listed_by_name() {
    let stub = Stub::new(|_| Reply::ok(json!([image()]).to_string()));
    let printed = stub.wharf(&["image", "ls"]).out;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].starts_with("Name   Digest        Size    Age"),
        "{printed}"
    );
    assert!(
        lines[1].starts_with("web:1  abababababab  1.2 MB  "),
        "{printed}"
    );
    assert!(
        lines[2].starts_with("web:2  ") && lines[2].ends_with("1 allocation"),
        "{printed}"
    );
    let json = stub.wharf(&["image", "ls", "-format=json"]).out;
    assert!(json.contains("\"Names\": ["), "{json}");
}

#[test]
fn a_file_is_sent_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.tar");
    fs::write(&file, "archive").unwrap();
    let stub = Stub::new(|_| Reply::new(400, "the archive cannot be read: x"));
    let path = file.to_str().unwrap();
    let printed = stub.wharf(&["image", "import", "-name=web:1", path]);
    assert_eq!(printed.code, 1);
    assert!(printed.err.contains("cannot be read: x"), "{}", printed.err);
    assert_eq!(stub.lines(), ["PUT /v1/images/import?name=web%3A1"]);
    assert_eq!(stub.wharf(&["image", "import", "/none"]).code, 1);
    assert!(
        wharf(&["image", "import", "-name=Web", path])
            .err
            .contains("upper case")
    );
}

#[test]
fn an_archive_is_built_without_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let (file, out) = (
        directory.path().join("app"),
        directory.path().join("app.tar"),
    );
    fs::write(&file, "#!").unwrap();
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let words = [
        "image",
        "build",
        "-name=app",
        "-file",
        file,
        "-entrypoint=/app",
        "-o",
        out,
    ];
    let built = wharf(&words);
    assert_eq!((built.code, built.err.as_str()), (0, ""));
    let first = fs::read(out).unwrap();
    assert_eq!(wharf(&words), built);
    assert_eq!(fs::read(out).unwrap(), first);
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "no half file stays"
    );

    let bad = |words: &[&str]| {
        let printed = wharf(words);
        assert_eq!(printed.code, 1);
        printed.err
    };
    assert!(bad(&["image", "build", "-o", out]).contains("Missing -file"));
    assert!(bad(&["image", "build", "-file", file]).contains("Missing -name"));
    assert!(bad(&["image", "build", "-file=/none", "-o", out]).contains("/none"));
    assert!(bad(&["image", "build", "-file=/", "-o", out]).contains("has no name"));
    assert!(bad(&["image", "build", "-file", file, "-port=x", "-o", out]).contains("65535"));
    assert_eq!(fs::read(out).unwrap(), first);
}

#[test]
fn what_is_removed_is_told() {
    let stub = Stub::new(|_| {
        Reply::ok(json!({"Names": ["web:1"], "Images": ["sha256:ab"], "Bytes": 2000}).to_string())
    });
    let printed = stub.wharf(&["image", "rm", "host.example:5000/web:1"]);
    assert_eq!(
        printed.out,
        "Removed name: web:1\nRemoved image: sha256:ab\nFreed: 2.0 kB\n"
    );
    assert_eq!(stub.wharf(&["image", "prune", "-keep=3"]).code, 0);
    let asked = [
        "DELETE /v1/image/host.example%3A5000/web%3A1",
        "PUT /v1/images/prune?keep=3",
    ];
    assert_eq!(stub.lines(), asked);
    assert!(stub.wharf(&["image", "rm"]).err.contains("Missing IMAGE"));
}
