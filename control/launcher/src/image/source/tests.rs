use std::{fs, path::Path};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::image::{
    document::{Index, OCI_INDEX, RunConfig},
    testing::{Entry, Layout, Node, gzip, plain, tar, tree},
};

fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("images")).unwrap();
    (directory, store)
}

fn layer(content: &str) -> (Vec<u8>, Digest) {
    plain(tar(&[Entry::file("file", content)]))
}

fn import(store: &Store, archive: &[u8]) -> Result<Vec<Imported>, ImportError> {
    store.import(archive, &Select::default())
}

/// Nothing is left of an import that failed.
fn assert_empty(store: &Store) {
    for part in ["tmp", "blobs/sha256", "images", "refs"] {
        let left: Vec<_> = fs::read_dir(store.path(part)).unwrap().collect();
        assert!(left.is_empty(), "{part}: {left:?}");
    }
}

fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

#[test]
fn a_layout_is_imported_from_a_directory() {
    let (directory, store) = store();
    let layout = Layout::new("v1", &[layer("x")]);
    let path = directory.path().join("layout");
    layout.write_to(&path);
    let reference = |text: String| Reference::parse(&text).unwrap();
    let whole = reference(format!("oci:{}", path.display()));
    let imported = store.import_reference(&whole, Some(name("web:1"))).unwrap();
    assert_eq!(imported[0].image.digest, layout.digest);
    assert_eq!(store.lookup(&name("web:1")).unwrap(), Some(layout.digest));
    // A tag alone is no name.
    let tagged = reference(format!("oci:{}:v1", path.display()));
    assert_eq!(store.import_reference(&tagged, None).unwrap()[0].names, []);
    let mut packed = Vec::new();
    pack_layout(&path, &mut packed).unwrap();
    assert_eq!(
        import(&store, &packed).unwrap()[0].image.digest,
        layout.digest
    );
    let error = pack_layout(&directory.path().join("none"), io::sink()).unwrap_err();
    assert!(error.to_string().contains("none/oci-layout"), "{error}");
    let other = reference(format!("oci:{}:v2", path.display()));
    let error = store.import_reference(&other, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no image in it has the tag \"v2\"; there is v1"
    );
    let nowhere = reference(format!("oci:{}", directory.path().join("none").display()));
    let error = store.import_reference(&nowhere, None).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
    let empty = reference(format!("oci:{}", directory.path().display()));
    assert!(matches!(
        store.import_reference(&empty, None),
        Err(ImportError::NoImage)
    ));
    let registry = reference("host.example/web:1".into());
    assert!(matches!(
        store.import_reference(&registry, None),
        Err(ImportError::NotOnDisk(_))
    ));
}

#[test]
fn an_archive_may_be_compressed_and_in_any_order() {
    let (_directory, store) = store();
    let layout = Layout::new("host.example:5000/team/web:1", &[layer("x"), layer("y")]);
    let mut entries: Vec<Entry> = layout
        .files
        .iter()
        .map(|(path, content)| Entry {
            content: content.clone(),
            ..Entry::new(b'0', format!("./{path}"))
        })
        .collect();
    entries.reverse();
    entries.insert(0, Entry::directory("./blobs/"));
    let imported = import(&store, &gzip(&tar(&entries))).unwrap();
    assert_eq!(imported[0].names, [name("host.example:5000/team/web:1")]);
    assert_eq!(imported[0].image.layers.len(), 2);
}

#[test]
fn an_index_gives_the_image_of_this_platform() {
    let (_directory, store) = store();
    let own = Platform::own().architecture;
    let other = if own == "amd64" { "arm64" } else { "amd64" };
    let mut files = std::collections::BTreeMap::new();
    let mut manifests = Vec::new();
    for architecture in [other, own] {
        let image = Layout::of(
            "x",
            &[layer(architecture)],
            architecture,
            RunConfig::default(),
        );
        let mut described = Index::parse(&image.files["index.json"])
            .unwrap()
            .manifests
            .remove(0);
        described.annotations = None;
        described.platform = Some(crate::image::document::DescribedPlatform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        });
        files.extend(image.files);
        manifests.push(described);
    }
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let inner = serde_json::to_vec(&inner).unwrap();
    let digest = Digest::of(&inner);
    let outer = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": OCI_INDEX, "digest": digest, "size": inner.len(),
        "annotations": {"org.opencontainers.image.ref.name": "web:1"}}]});
    files.insert(blob_path(&digest), inner);
    files.insert("index.json".into(), outer.to_string().into_bytes());
    let layout = Layout { files, digest };
    let imported = import(&store, &layout.archive()).unwrap();
    // The name stands for the index, as on nodes of the other kind.
    assert_eq!(imported[0].image.digest, digest);
    assert_ne!(imported[0].image.manifest, digest);
    let prepared = store.prepare(&digest).unwrap();
    let file = &tree(&prepared.layers[0])[Path::new("file")];
    assert_eq!(*file, Node::File(0o644, own.as_bytes().to_vec()));
}

#[test]
fn an_image_for_another_platform_is_refused() {
    let (_directory, store) = store();
    let layout = Layout::of("web:1", &[layer("x")], "riscv64", RunConfig::default());
    let error = import(&store, &layout.archive()).unwrap_err().to_string();
    assert!(
        error.contains("linux/riscv64") && error.contains(Platform::own().architecture),
        "{error}"
    );
    assert_empty(&store);
}

#[test]
fn hostile_archives_leave_nothing() {
    let (_directory, store) = store();
    let layout = || Layout::new("web:1", &[layer("x")]);
    let layer_path = |layout: &Layout| blob_path(&layout.manifest().layers[0].digest);

    let mut missing = layout();
    missing.files.remove(&layer_path(&missing));
    let error = import(&store, &missing.archive()).unwrap_err();
    assert!(matches!(error, ImportError::Missing(_)), "{error}");
    assert_empty(&store);

    let mut wrong = layout();
    let path = layer_path(&wrong);
    wrong.files.get_mut(&path).unwrap()[0] ^= 1;
    let error = import(&store, &wrong.archive()).unwrap_err();
    assert!(matches!(error, ImportError::WrongDigest { .. }), "{error}");
    assert_empty(&store);

    let mut twice = layout();
    twice.files.remove("index.json");
    let error = import(&store, &twice.archive()).unwrap_err();
    assert!(matches!(error, ImportError::NoImage), "{error}");
    let error = import(&store, b"PK\x03\x04 this is a zip").unwrap_err();
    assert!(matches!(error, ImportError::Archive(_)), "{error}");
    let archive = layout().archive();
    let error = import(&store, &archive[..archive.len() / 2]).unwrap_err();
    assert!(
        matches!(error, ImportError::Content(_) | ImportError::Archive(_)),
        "{error}"
    );
    let error = import(
        &store,
        &tar(&[Entry::file("index.json", &" ".repeat(5 << 20))]),
    )
    .unwrap_err();
    assert!(
        matches!(error, ImportError::Document(DocumentError::TooLarge { .. })),
        "{error}"
    );
    // Names of files are never paths here.
    let escape = tar(&[
        Entry::file("../../escaped", "x"),
        Entry::symlink("index.json", "/etc/passwd"),
    ]);
    let error = import(&store, &escape).unwrap_err();
    assert!(matches!(error, ImportError::NoImage), "{error}");
    assert_empty(&store);
}

#[test]
fn hostile_archives_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let limits = crate::image::Limits {
        blob: 64 << 10,
        layer: 1 << 20,
        entries: 10,
    };
    let store = Store::open_with(directory.path().join("images"), limits).unwrap();
    let mut large = Entry::file("blobs/sha256/x", "");
    large.content = vec![0; 128 << 10];
    let error = import(&store, &gzip(&tar(&[large]))).unwrap_err();
    assert!(
        matches!(error, ImportError::Content(UnpackError::TooLarge { .. })),
        "{error}"
    );
    let mut part = Entry::file("part", "");
    part.content = vec![0; 60 << 10];
    let error = import(&store, &gzip(&tar(&vec![part; 32]))).unwrap_err();
    assert!(
        matches!(error, ImportError::Content(UnpackError::TooLarge { .. })),
        "{error}"
    );
    assert_empty(&store);
}

#[test]
fn what_docker_saves_is_imported() {
    let (_directory, store) = store();
    let (bytes, diff_id) = layer("x");
    let config = json!({"architecture": Platform::own().architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": null}, "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]}});
    let manifest = json!([{"Config": "abc.json", "RepoTags": ["busybox:1", "host.example/busybox:2"],
        "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    let mut first = Entry::file("1/layer.tar", "");
    first.content = bytes;
    let archive = tar(&[
        first,
        // As old versions wrote a layer that is there already.
        Entry::symlink("2/layer.tar", "../1/layer.tar"),
        Entry::file("abc.json", &config.to_string()),
        Entry::file("manifest.json", &manifest.to_string()),
        Entry::file("repositories", "{}"),
    ]);
    let imported = import(&store, &archive).unwrap();
    assert_eq!(
        imported[0].names,
        [name("busybox:1"), name("host.example/busybox:2")]
    );
    let prepared = store.prepare(&imported[0].image.digest).unwrap();
    assert_eq!(prepared.config.cmd, ["/bin/sh"]);
    assert_eq!(prepared.layers.len(), 2);
    // The manifest it gets is the same each time.
    assert_eq!(
        import(&store, &archive).unwrap()[0].image.digest,
        imported[0].image.digest
    );

    let selected = Select {
        tag: Some("2".into()),
        name: Some(name("box")),
    };
    let again = store.import(archive.as_slice(), &selected).unwrap();
    assert_eq!(again[0].names, [name("box:latest")]);
    let missing = tar(&[Entry::file("manifest.json", &manifest.to_string())]);
    let error = import(&store, &missing).unwrap_err();
    assert_eq!(error.to_string(), "abc.json is not in the archive");
    let broken = tar(&[Entry::file("manifest.json", "{}")]);
    assert!(matches!(
        import(&store, &broken),
        Err(ImportError::DockerManifest(_))
    ));
}
