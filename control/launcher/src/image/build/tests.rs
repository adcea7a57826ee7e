use std::{fs, os::unix::fs::symlink};

use proptest::prelude::*;

use super::*;
use crate::image::{
    Select, Store,
    document::Empty,
    testing::{Node as Found, tree},
};

fn source(from: &Path, to: &str) -> Source {
    Source {
        from: from.to_owned(),
        to: to.into(),
    }
}

fn write(build: &Build) -> (Vec<u8>, Built) {
    let mut bytes = Vec::new();
    let built = build.write(&mut bytes).unwrap();
    (bytes, built)
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The same content, made in another order, with other times and other modes where they say nothing.
    for (directory, names) in [(&one, ["b", "a", "sub/c"]), (&two, ["sub/c", "b", "a"])] {
        for name in names {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
    }
    fs::set_permissions(one.path().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(two.path().join("b"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let build = |directory: &Path| Build {
        files: vec![source(directory, "/srv")],
        config: RunConfig {
            entrypoint: vec!["/srv/a".into()],
            env: vec!["A=1".into()],
            user: "1000".into(),
            working_dir: "/srv".into(),
            exposed_ports: [("8080".to_owned(), Empty {})].into(),
            ..RunConfig::default()
        },
        architecture: Some("amd64".into()),
        name: Some(ImageName::parse("web:1").unwrap()),
        epoch: 0,
    };
    let (first, built) = write(&build(one.path()));
    let (second, again) = write(&build(two.path()));
    assert_eq!(built, again);
    assert!(first == second, "the archives differ");
    // It is a promise between versions: a change here changes the digest of everybody's images.
    assert_eq!(built.digest.to_string(), KNOWN);

    fs::write(one.path().join("a"), "other").unwrap();
    assert_ne!(write(&build(one.path())).1.digest, built.digest);
    let later = Build {
        epoch: 1,
        ..build(two.path())
    };
    assert_ne!(write(&later).1.digest, built.digest);
}

const KNOWN: &str = "sha256:1ce19fd30b57d5ece1da4c70454a3a063088d9acc09257019cad6042ebfbb799";

#[test]
fn the_configuration_reaches_the_store() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("server"), "#!").unwrap();
    let build = Build {
        files: vec![source(&directory.path().join("server"), "/bin/server")],
        config: RunConfig {
            entrypoint: vec!["/bin/server".into()],
            cmd: vec!["-v".into()],
            exposed_ports: [
                ("80/tcp".to_owned(), Empty {}),
                ("53/udp".to_owned(), Empty {}),
            ]
            .into(),
            stop_signal: "SIGINT".into(),
            ..RunConfig::default()
        },
        name: Some(ImageName::parse("server").unwrap()),
        ..Build::default()
    };
    let (bytes, built) = write(&build);
    let store = Store::open(directory.path().join("images")).unwrap();
    let imported = store.import(bytes.as_slice(), &Select::default()).unwrap();
    assert_eq!(imported[0].image.digest, built.digest);
    assert_eq!(imported[0].names[0].to_string(), "server:latest");
    assert_eq!(store.prepare(&built.digest).unwrap().config, build.config);
}

#[test]
fn what_cannot_be_built_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("a"), "a").unwrap();
    fs::write(path.join("b"), "b").unwrap();
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/.wh.x"), "").unwrap();
    let build = |files: Vec<Source>| {
        let build = Build {
            files,
            ..Build::default()
        };
        build.write(io::sink()).unwrap_err().to_string()
    };
    assert!(build(vec![]).contains("nothing"));
    let error = build(vec![source(&path.join("none"), "/x")]);
    assert!(
        error.contains("none") && error.contains("No such file"),
        "{error}"
    );
    assert!(build(vec![source(&path.join("a"), "x")]).contains("must be absolute"));
    assert!(build(vec![source(&path.join("a"), "/../x")]).contains("goes up"));
    assert!(build(vec![source(&path.join("a"), "/")]).contains("needs a name"));
    assert!(build(vec![source(Path::new("/dev/null"), "/x")]).contains("neither file"));
    assert!(build(vec![source(&path.join("d"), "/x")]).contains(".wh."));
    let error = build(vec![
        source(&path.join("a"), "/x"),
        source(&path.join("b"), "/x"),
    ]);
    assert!(error.contains("/x would be in the image twice"), "{error}");
    let error = build(vec![
        source(&path.join("a"), "/x"),
        source(&path.join("b"), "/x/y"),
    ]);
    assert!(error.contains("twice"), "{error}");
    for (config, problem) in [
        (
            RunConfig {
                env: vec!["=x".into()],
                ..RunConfig::default()
            },
            "NAME=value",
        ),
        (
            RunConfig {
                exposed_ports: [("http".to_owned(), Empty {})].into(),
                ..RunConfig::default()
            },
            "65535",
        ),
    ] {
        let build = Build {
            files: vec![source(&path.join("a"), "/x")],
            config,
            ..Build::default()
        };
        let error = build.write(io::sink()).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

fn any_tree() -> impl Strategy<Value = BTreeMap<String, Option<(bool, Vec<u8>)>>> {
    let path = "[a-d]{1,2}(/[e-h.-]{1,40}x){0,3}";
    let file = (
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..2000),
    );
    proptest::collection::btree_map(path, proptest::option::weighted(0.8, file), 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any tree of files, directories and links is the same tree when the image is unpacked.
    #[test]
    fn a_tree_survives_build_import_and_unpack(nodes in any_tree(), links in proptest::collection::btree_map("l[0-9]", "[a-z/.]{1,120}", 0..3)) {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        fs::create_dir(&from).unwrap();
        for (path, file) in &nodes {
            let path = from.join(path);
            // A file may be in the way of a deeper one: whoever is first stays.
            match file {
                None => drop(fs::create_dir_all(&path)),
                Some((executable, content)) => {
                    if fs::create_dir_all(path.parent().unwrap()).is_ok() && fs::write(&path, content).is_ok() {
                        let mode = if *executable { 0o755 } else { 0o644 };
                        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                    }
                }
            }
        }
        for (name, target) in &links {
            symlink(target, from.join(name)).unwrap();
        }
        // Directories get the mode of the umask here and 0755 there.
        let expected: BTreeMap<PathBuf, Found> = tree(&from)
            .into_iter()
            .map(|(path, node)| match node {
                Found::Directory(_) => (path, Found::Directory(0o755)),
                other => (path, other),
            })
            .collect();
        let build = Build { files: vec![source(&from, "/")], ..Build::default() };
        if expected.is_empty() {
            return Ok(());
        }
        let (bytes, built) = write(&build);
        let store = Store::open(directory.path().join("images")).unwrap();
        store.import(bytes.as_slice(), &Select::default()).unwrap();
        let prepared = store.prepare(&built.digest).unwrap();
        prop_assert_eq!(tree(&prepared.layers[0]), expected);
    }
}
