use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _, sync::Barrier};

use tempfile::TempDir;

use super::*;
use crate::image::{
    ImageName, Select,
    document::{Descriptor, OCI_LAYER},
    testing::{Entry, Layout, Node, gzip, is_root, plain, tar, tree},
    unpack::UnpackError,
};

fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("images")).unwrap();
    (directory, store)
}

fn described(bytes: &[u8]) -> Descriptor {
    Descriptor::new(OCI_LAYER, Digest::of(bytes), bytes.len() as u64)
}

fn nothing() -> BTreeSet<Digest> {
    BTreeSet::new()
}

fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

/// An image with one file.
fn image(tag: &str, content: &str) -> Layout {
    Layout::new(tag, &[plain(tar(&[Entry::file("file", content)]))])
}

fn count(store: &Store, part: &str) -> usize {
    fs::read_dir(store.path(part)).unwrap().count()
}

#[test]
fn directories_are_for_the_owner_alone() {
    let (_directory, store) = store();
    for part in [
        "",
        "tmp",
        "blobs",
        "blobs/sha256",
        "layers",
        "images",
        "refs",
        "pins",
    ] {
        let mode = fs::metadata(store.path(part)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700, "{part}");
    }
}

#[test]
fn a_blob_is_there_only_when_it_is_what_it_should_be() {
    let (_directory, store) = store();
    let good = described(b"content");
    store.put_blob(&good, &b"content"[..]).unwrap();
    assert!(store.has_blob(&good));
    let mut text = String::new();
    io::Read::read_to_string(&mut store.open_blob(&good.digest).unwrap(), &mut text).unwrap();
    assert_eq!(text, "content");

    let other = described(b"another");
    let error = store.put_blob(&other, &b"changed"[..]).unwrap_err();
    assert!(matches!(error, StoreError::WrongDigest { .. }), "{error}");
    let error = store.put_blob(&other, &b"short"[..]).unwrap_err();
    assert!(matches!(error, StoreError::WrongSize { .. }), "{error}");
    let error = store.put_blob(&other, &b"much too long"[..]).unwrap_err();
    assert!(matches!(error, StoreError::WrongSize { .. }), "{error}");
    let huge = Descriptor {
        size: u64::MAX,
        ..other.clone()
    };
    let error = store.put_blob(&huge, &b""[..]).unwrap_err();
    assert!(matches!(error, StoreError::BlobTooLarge { .. }), "{error}");
    let mut writer = store.write_blob(&other).unwrap();
    writer.write(b"anot").unwrap();
    drop(writer);
    assert!(!store.has_blob(&other));
    assert_eq!(
        (count(&store, "tmp"), count(&store, "blobs/sha256")),
        (0, 1)
    );
}

#[test]
fn what_a_crash_left_is_swept_at_the_next_start() {
    let (directory, store) = store();
    // As a process that is killed leaves it: no destructor runs.
    let mut writer = store.write_blob(&described(b"never finished")).unwrap();
    writer.write(b"never").unwrap();
    std::mem::forget(writer);
    let half = store.temporary();
    fs::create_dir_all(half.path().join("usr/bin")).unwrap();
    fs::write(half.path().join("usr/bin/sh"), "half").unwrap();
    std::mem::forget(half);
    assert_eq!(count(&store, "tmp"), 2);
    // The lock of the forgotten writer lives as long as its process: while it does, nothing is swept.
    let again = Store::open(directory.path().join("images")).unwrap();
    assert_eq!(count(&again, "tmp"), 2);

    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("images");
    fs::create_dir_all(copied.join("tmp/half/usr")).unwrap();
    fs::write(copied.join("tmp/blob"), "half").unwrap();
    let store = Store::open(&copied).unwrap();
    assert_eq!(count(&store, "tmp"), 0);
}

#[test]
fn an_image_is_imported_prepared_and_removed() {
    let (_directory, store) = store();
    let layer = tar(&[Entry::file("bin/app", "#!").mode(0o755)]);
    let layers = [(gzip(&layer), Digest::of(&layer))];
    let layout = Layout::new("web:1", &layers);
    let imported = store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    assert_eq!(imported[0].image.digest, layout.digest);
    assert_eq!(imported[0].names, [name("web:1")]);
    assert_eq!(store.lookup(&name("web:1")).unwrap(), Some(layout.digest));
    assert_eq!(store.lookup(&name("web")).unwrap(), None);
    let short = &layout.digest.hex()[..8];
    assert_eq!(store.find(short).unwrap().digest, layout.digest);
    assert!(matches!(store.find("0000"), Err(StoreError::NoImage(_))));

    let prepared = store.prepare(&layout.digest).unwrap();
    assert_eq!(prepared.layers.len(), 2);
    let app = tree(&prepared.layers[0]);
    assert_eq!(app[Path::new("bin/app")], Node::File(0o755, b"#!".to_vec()));
    assert!(tree(&prepared.layers[1]).is_empty());
    assert_eq!(store.prepare(&layout.digest).unwrap(), prepared);

    let used = BTreeSet::from([layout.digest]);
    let error = store.remove("web:1", &used).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    let removed = store.remove("web:1", &nothing()).unwrap();
    assert_eq!(
        (removed.names, removed.images),
        (vec![name("web:1")], vec![layout.digest])
    );
    assert_eq!(count(&store, "blobs/sha256"), 0);
    assert_eq!(
        (
            count(&store, "images"),
            count(&store, "refs"),
            count(&store, "tmp")
        ),
        (0, 0, 0)
    );
    assert!(!prepared.layers[0].exists());
    let error = store.prepare(&layout.digest).unwrap_err();
    assert!(matches!(error, StoreError::NoImage(_)), "{error}");
}

#[test]
fn a_second_name_keeps_an_image() {
    let (_directory, store) = store();
    let layout = image("web:1", "x");
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    store.tag(&name("web:stable"), layout.digest).unwrap();
    let used = BTreeSet::from([layout.digest]);
    // Only the name goes, so that it is in use does not matter.
    assert_eq!(store.remove("web:1", &used).unwrap().images, []);
    assert_eq!(store.list().unwrap()[0].names, [name("web:stable")]);
    // A name that moves leaves what it stood for.
    let newer = image("web:stable", "y");
    store
        .import(newer.archive().as_slice(), &Select::default())
        .unwrap();
    assert_eq!(
        store.lookup(&name("web:stable")).unwrap(),
        Some(newer.digest)
    );
    let listed = store.list().unwrap();
    let old = listed
        .iter()
        .find(|l| l.image.digest == layout.digest)
        .unwrap();
    assert_eq!(old.names, []);
    assert!(store.tag(&name("none:1"), Digest::of(b"none")).is_err());
}

#[test]
fn pruning_keeps_what_is_used_and_what_nobody_else_has() {
    let (_directory, store) = store();
    let mut digests = Vec::new();
    for n in 0..4 {
        let layout = image("web:1", &format!("content {n}"));
        store
            .import(layout.archive().as_slice(), &Select::default())
            .unwrap();
        store.prepare(&layout.digest).unwrap();
        digests.push(layout.digest);
    }
    // 3 has the name; 0 runs; of 1 and 2, the one used last is kept.
    store.touch(&digests[1]);
    let removed = store.prune(&BTreeSet::from([digests[0]]), 1).unwrap();
    assert_eq!(removed.images, [digests[2]]);
    assert!(removed.bytes > 0);
    assert_eq!(count(&store, "layers"), 4, "three layers and the empty one");
    let removed = store.prune(&nothing(), 0).unwrap();
    assert_eq!(removed.images.len(), 2);
    assert_eq!(store.list().unwrap().len(), 1);
    store.prepare(&digests[3]).unwrap();
}

#[test]
fn a_pinned_image_stays_until_its_user_lets_go() {
    let (directory, store) = store();
    let layout = image("web:1", "x");
    assert!(matches!(
        store.pin("alloc", layout.digest),
        Err(StoreError::NoImage(_))
    ));
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    store.pin("alloc", layout.digest).unwrap();
    store.pin("other", layout.digest).unwrap();
    // As after a restart of the agent.
    let store = Store::open(directory.path().join("images")).unwrap();
    assert!(matches!(
        store.remove("web:1", &nothing()),
        Err(StoreError::InUse { .. })
    ));
    store.unpin("alloc").unwrap();
    store.unpin("alloc").unwrap();
    assert_eq!(
        store.pins().unwrap().into_keys().collect::<Vec<_>>(),
        ["other"]
    );
    assert!(
        store
            .remove(&layout.digest.to_string(), &nothing())
            .is_err()
    );
    store.unpin("other").unwrap();
    assert_eq!(
        store.remove("web:1", &nothing()).unwrap().images,
        [layout.digest]
    );
}

#[test]
fn nothing_is_removed_while_somebody_adds() {
    let (_directory, store) = store();
    let hold = store.hold().unwrap();
    assert!(matches!(store.alone(Duration::ZERO), Err(StoreError::Busy)));
    // Others may add meanwhile.
    let second = store.hold().unwrap();
    drop((hold, second));
    assert!(store.alone(Duration::ZERO).is_ok());
}

#[test]
fn many_at_once_unpack_a_layer_once() {
    let (directory, store) = store();
    let entries: Vec<_> = (0..200)
        .map(|n| Entry::file(&format!("f{n}"), "x"))
        .collect();
    let layout = Layout::new("web:1", &[plain(tar(&entries)), plain(tar(&entries[..9]))]);
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    // A second opening is what another process has.
    let other = Store::open(directory.path().join("images")).unwrap();
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for n in 0..8 {
            let store = if n % 2 == 0 { &store } else { &other };
            let (barrier, digest) = (&barrier, &layout.digest);
            scope.spawn(move || {
                barrier.wait();
                let prepared = store.prepare(digest).unwrap();
                assert_eq!(tree(&prepared.layers[1]).len(), 200);
            });
        }
    });
    assert_eq!((count(&store, "layers"), count(&store, "tmp")), (2, 0));
}

#[test]
fn many_at_once_import_prune_and_prepare() {
    let (_directory, store) = store();
    let layouts: Vec<Layout> = (0..4)
        .map(|n| image(&format!("web:{n}"), &n.to_string()))
        .collect();
    thread::scope(|scope| {
        for layout in &layouts {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..10 {
                    store
                        .import(layout.archive().as_slice(), &Select::default())
                        .unwrap();
                    store.prepare(&layout.digest).unwrap();
                }
            });
        }
        for _ in 0..20 {
            match store.prune(&nothing(), 0) {
                Ok(_) | Err(StoreError::Busy) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(store.list().unwrap().len(), 4);
    assert_eq!(count(&store, "tmp"), 0);
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_refused() {
    let (_directory, store) = store();
    let layout = Layout::new(
        "web:1",
        &[(tar(&[Entry::file("a", "x")]), Digest::of(b"other"))],
    );
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    let error = store.prepare(&layout.digest).unwrap_err();
    let StoreError::Unpack { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        matches!(**source, UnpackError::WrongDiffId { .. }),
        "{error}"
    );
    assert_eq!((count(&store, "layers"), count(&store, "tmp")), (0, 0));
}

#[test]
fn a_hostile_layer_leaves_nothing_in_the_store() {
    let (_directory, store) = store();
    let good = tar(&[Entry::file("a", "x")]);
    let bad = tar(&[Entry::file("b", "x"), Entry::file("../../../escaped", "x")]);
    let layout = Layout::new("web:1", &[plain(good), plain(bad)]);
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    let error = store.prepare(&layout.digest).unwrap_err().to_string();
    assert!(
        error.contains("layer 1 of") && error.contains("leads out"),
        "{error}"
    );
    assert_eq!(count(&store, "tmp"), 0);
    assert!(count(&store, "layers") <= 1);
}

#[test]
fn a_blob_that_the_disk_changed_is_noticed() {
    let (_directory, store) = store();
    let layout = image("web:1", "x");
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    let config = store.find("web:1").unwrap().config;
    let path = store.blob_path(&config);
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.prepare(&layout.digest).unwrap_err();
    assert!(matches!(error, StoreError::WrongDigest { .. }), "{error}");
}

/// A file system of 1 MiB of its own.
struct Tiny(TempDir);

impl Tiny {
    fn mount() -> Option<Tiny> {
        if !is_root("a small file system") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("wharf-test", directory.path(), "tmpfs", flags, c"size=1m").unwrap();
        Some(Tiny(directory))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_leaves_nothing_half() {
    let Some(disk) = Tiny::mount() else {
        return;
    };
    let store = Store::open(disk.0.path().join("images")).unwrap();
    // A blob that does not fit.
    let large = vec![7; 2 << 20];
    let error = store
        .put_blob(&described(&large), large.as_slice())
        .unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("no space is left"), "{error}");
    assert_eq!(
        (count(&store, "tmp"), count(&store, "blobs/sha256")),
        (0, 0)
    );
    // An archive that does not fit.
    let mut zeros = Entry::file("zeros", "");
    zeros.content = vec![0; 2 << 20];
    let layer = tar(&[Entry::file("first", "x"), zeros]);
    let layout = Layout::new("large:1", &[plain(layer.clone())]);
    assert!(
        store
            .import(layout.archive().as_slice(), &Select::default())
            .is_err()
    );
    assert_eq!(
        (count(&store, "tmp"), count(&store, "blobs/sha256")),
        (0, 0)
    );
    // A layer that fits only as long as it is compressed.
    let layout = Layout::new("zipped:1", &[(gzip(&layer), Digest::of(&layer))]);
    store
        .import(layout.archive().as_slice(), &Select::default())
        .unwrap();
    let error = store.prepare(&layout.digest).unwrap_err();
    let StoreError::Unpack { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(**source, UnpackError::DiskFull), "{error}");
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
    // And what fits goes on working.
    let small = image("small:1", "x");
    store
        .import(small.archive().as_slice(), &Select::default())
        .unwrap();
    store.prepare(&small.digest).unwrap();
}
