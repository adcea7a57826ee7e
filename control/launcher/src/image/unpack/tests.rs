use std::{
    fs,
    io::Read,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::image::testing::{Entry, Node, gzip, is_root, name, tar, tree};

/// A directory to unpack into, beside files that nothing may touch.
struct Place {
    _all: TempDir,
    root: PathBuf,
    outside: PathBuf,
}

impl Place {
    fn new() -> Place {
        let all = tempfile::tempdir().unwrap();
        let (root, outside) = (all.path().join("root"), all.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "untouched").unwrap();
        Place {
            _all: all,
            root,
            outside,
        }
    }

    fn unpack(&self, layer: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_with(layer, &small())
    }

    fn unpack_with(&self, layer: &[u8], limits: &Limits) -> Result<Unpacked, UnpackError> {
        let result = unpack(layer, &self.root, limits, Ownership::possible());
        self.assert_untouched();
        result
    }

    fn assert_untouched(&self) {
        let secret = fs::read_to_string(self.outside.join("secret")).unwrap();
        assert_eq!(secret, "untouched");
        assert_eq!(fs::read_dir(&self.outside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self._all.path()).unwrap().count(), 2);
    }

    fn good(&self, entries: &[Entry]) -> Unpacked {
        self.unpack(&tar(entries)).unwrap()
    }

    fn bad(&self, entries: &[Entry]) -> UnpackError {
        self.unpack(&tar(entries)).unwrap_err()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }
}

fn small() -> Limits {
    Limits {
        blob: 1 << 20,
        layer: 4 << 20,
        entries: 1000,
    }
}

// === what layers are ===

#[test]
fn files_directories_and_links_come_out_as_they_went_in() {
    let place = Place::new();
    let long = format!("dir/{}", "n".repeat(200));
    let unpacked = place.good(&[
        Entry::directory("./").mode(0o711),
        Entry::directory("dir/").mode(0o750),
        Entry::file("dir/a", "content").mode(0o640),
        Entry::file(&long, "long"),
        Entry::symlink("dir/link", "/dir/a"),
        Entry::hard_link("hard", "dir/a"),
        Entry::new(b'6', "pipe").mode(0o600),
        Entry::file("implied/parent/file", "x"),
    ]);
    assert_eq!(unpacked.entries, 8);
    let tree = tree(&place.root);
    assert_eq!(tree[Path::new("dir")], Node::Directory(0o750));
    assert_eq!(
        tree[Path::new("dir/a")],
        Node::File(0o640, b"content".to_vec())
    );
    assert_eq!(tree[Path::new("dir/link")], Node::Link("/dir/a".into()));
    assert_eq!(tree[Path::new("pipe")], Node::Other);
    assert_eq!(tree[Path::new("implied/parent")], Node::Directory(0o755));
    assert_eq!(place.read(&long), "long");
    let inode = |path: &str| fs::metadata(place.root.join(path)).unwrap().ino();
    assert_eq!(inode("hard"), inode("dir/a"));
    let root = fs::metadata(&place.root).unwrap();
    assert_eq!((root.mode() & 0o777, root.mtime()), (0o711, 1_000_000_000));
    // What came into a directory after it did not change its time.
    assert_eq!(
        fs::metadata(place.root.join("dir")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(fs::metadata(place.root.join("implied")).unwrap().mtime(), 0);
}

#[test]
fn owners_and_set_user_bits_are_kept() {
    if !is_root("giving files away") {
        return;
    }
    let place = Place::new();
    let mut file = Entry::file("su", "#!").mode(0o4755);
    file.uid = 1234;
    let mut directory = Entry::directory("tmp").mode(0o1777);
    directory.uid = 55;
    place.good(&[file, directory]);
    let metadata = fs::metadata(place.root.join("su")).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (1234, 0o4755));
    let metadata = fs::metadata(place.root.join("tmp")).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (55, 0o1777));
}

#[test]
fn extended_headers_say_more() {
    let place = Place::new();
    let unpacked = place.good(&[
        Entry::file("short", "x")
            .pax("path", b"a/longer/name")
            .pax("mtime", b"1234567890.5"),
        Entry::file("attributes", "x")
            .pax("SCHILY.xattr.user.note", b"\x00binary\xff")
            .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
            .pax("SCHILY.xattr.user.overlay.opaque", b"y"),
        Entry::new(b'g', "global").pax("comment", b"ignored"),
    ]);
    assert!(unpacked.entries >= 2);
    let metadata = fs::metadata(place.root.join("a/longer/name")).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_234_567_890, 500_000_000)
    );
    let path = place.root.join("attributes");
    let mut buffer = [0; 64];
    let length = rustix::fs::getxattr(&path, "user.note", &mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"\x00binary\xff");
    assert!(rustix::fs::getxattr(&path, "trusted.overlay.redirect", &mut buffer).is_err());
    assert!(rustix::fs::getxattr(&path, "user.overlay.opaque", &mut buffer).is_err());
}

#[test]
fn file_capabilities_are_kept() {
    if !is_root("giving capabilities to files") {
        return;
    }
    let place = Place::new();
    // cap_net_raw+ep, revision 2.
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let mut ping = Entry::file("ping", "x").mode(0o755);
    ping.uid = 7;
    place.good(&[ping.pax("SCHILY.xattr.security.capability", capability)]);
    let mut buffer = [0; 64];
    let path = place.root.join("ping");
    let length = rustix::fs::getxattr(&path, "security.capability", &mut buffer).unwrap();
    assert_eq!(&buffer[..length], capability);
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    if !is_root("the attribute of opaque directories") {
        return;
    }
    let place = Place::new();
    place.good(&[
        Entry::directory("dir"),
        Entry::file("dir/.wh.gone", ""),
        Entry::file("other/.wh..wh..opq", ""),
        Entry::file("other/new", "x"),
        Entry::file(".wh..wh.plnk", ""),
        // The same name in one layer: what is new stays, and hides what was below.
        Entry::file(".wh.replaced", ""),
        Entry::file("replaced/inside", "x"),
        Entry::file("kept", "x"),
        Entry::file(".wh.kept", ""),
        Entry::file("again/a", "x"),
        Entry::file(".wh.again", ""),
    ]);
    let all = tree(&place.root);
    assert_eq!(all[Path::new("dir/gone")], Node::Whiteout);
    assert_eq!(place.read("kept"), "x");
    assert!(
        all.keys()
            .all(|path| !path.to_string_lossy().contains(".wh."))
    );
    for (path, opaque) in [
        ("other", true),
        ("replaced", true),
        ("again", true),
        ("dir", false),
    ] {
        let mut buffer = [0; 8];
        let read = rustix::fs::getxattr(place.root.join(path), root::OPAQUE, &mut buffer);
        assert_eq!(
            read.is_ok_and(|length| &buffer[..length] == b"y"),
            opaque,
            "{path}"
        );
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let place = Place::new();
    place.good(&[
        Entry::file("a", "old"),
        Entry::file("a", "new"),
        Entry::file("dir/inside", "x"),
        Entry::file("dir", "a file now"),
        Entry::symlink("link", "/a"),
        Entry::file("link", "no link any more"),
        Entry::file("self", "still here"),
        Entry::hard_link("self", "self"),
        Entry::directory("d"),
        Entry::file("d/x", "x"),
        Entry::directory("d").mode(0o700),
    ]);
    assert_eq!(place.read("a"), "new");
    assert_eq!(place.read("dir"), "a file now");
    assert_eq!(place.read("link"), "no link any more");
    assert_eq!(place.read("self"), "still here");
    let all = tree(&place.root);
    assert_eq!(all[Path::new("d")], Node::Directory(0o700));
    assert!(all.contains_key(Path::new("d/x")));
}

#[test]
fn every_compression_gives_the_same_layer() {
    let layer = tar(&[Entry::file("a", "content"), Entry::directory("d")]);
    let plain = Place::new().unpack(&layer).unwrap();
    assert_eq!(plain.diff_id, Digest::of(&layer));
    let zipped = gzip(&layer);
    assert_eq!(Place::new().unpack(&zipped).unwrap(), plain);
    // Two members, as pigz and others write them.
    let (one, two) = layer.split_at(700);
    let members = [gzip(one), gzip(two)].concat();
    assert_eq!(Place::new().unpack(&members).unwrap(), plain);
    let zstd = |bytes: &[u8]| {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    };
    assert_eq!(Place::new().unpack(&zstd(&layer)).unwrap(), plain);
    // Frames and something to skip between them, as zstd:chunked writes it.
    let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frames = [skip.clone(), zstd(one), skip.clone(), zstd(two), skip].concat();
    assert_eq!(Place::new().unpack(&frames).unwrap(), plain);
    // A reader that gives little at a time.
    struct Drip<'a>(&'a [u8]);
    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = buffer.len().min(3);
            self.0.read(&mut buffer[..some])
        }
    }
    let place = Place::new();
    let dripped = unpack(Drip(&frames), &place.root, &small(), Ownership::possible());
    assert_eq!(dripped.unwrap(), plain);
}

// === what layers should not be, each by its name ===

#[test]
fn hostile_dot_dot_is_refused() {
    for path in ["../outside/x", "a/../../outside/x", "..", "a/..", "./../x"] {
        let place = Place::new();
        let error = place.bad(&[Entry::directory("a"), Entry::file(path, "x")]);
        assert!(
            matches!(&error, UnpackError::Escapes { entry } if entry == path),
            "{error}"
        );
    }
}

#[test]
fn hostile_absolute_names_stay_inside() {
    let place = Place::new();
    let absolute = place.outside.join("secret");
    place.good(&[Entry::file(absolute.to_str().unwrap(), "stolen")]);
    let inside = absolute.strip_prefix("/").unwrap();
    assert_eq!(place.read(inside.to_str().unwrap()), "stolen");
}

#[test]
fn hostile_absolute_link_is_not_followed_out() {
    let place = Place::new();
    let outside = place.outside.to_str().unwrap();
    // The target does not exist below the root.
    let error = place.bad(&[
        Entry::symlink("out", outside),
        Entry::file("out/secret", "stolen"),
    ]);
    assert!(matches!(error, UnpackError::Parent { .. }), "{error}");
    // Nor is the last part of a path followed.
    let place = Place::new();
    let secret = place.outside.join("secret");
    place.good(&[
        Entry::symlink("secret", secret.to_str().unwrap()),
        Entry::file("secret", "own"),
    ]);
    assert_eq!(place.read("secret"), "own");
}

#[test]
fn hostile_relative_link_is_not_followed_out() {
    let place = Place::new();
    let error = place.bad(&[
        Entry::symlink("out", "../outside"),
        Entry::file("out/secret", "stolen"),
    ]);
    assert!(matches!(error, UnpackError::Parent { .. }), "{error}");
    // A link that stays inside works, whichever way it is written.
    let place = Place::new();
    place.good(&[
        Entry::directory("usr/lib"),
        Entry::symlink("lib", "/usr/lib"),
        Entry::symlink("lib2", "../../../usr/lib"),
        Entry::file("lib/a", "a"),
        Entry::file("lib2/b", "b"),
    ]);
    assert_eq!(place.read("usr/lib/a") + &place.read("usr/lib/b"), "ab");
}

#[test]
fn hostile_chain_of_links_is_not_followed_out() {
    let place = Place::new();
    let error = place.bad(&[
        Entry::directory("a"),
        Entry::symlink("a/up", ".."),
        Entry::symlink("up2", "a/up/.."),
        Entry::symlink("out", "up2/outside"),
        Entry::file("out/secret", "stolen"),
    ]);
    assert!(matches!(error, UnpackError::Parent { .. }), "{error}");
    let place = Place::new();
    let error = place.bad(&[
        Entry::symlink("x", "y"),
        Entry::symlink("y", "x"),
        Entry::file("x/z", "loop"),
    ]);
    assert!(matches!(error, UnpackError::Entry { .. }), "{error}");
}

#[test]
fn hostile_directory_over_a_link_replaces_the_link() {
    let place = Place::new();
    let outside = place.outside.to_str().unwrap();
    place.good(&[
        Entry::symlink("d", outside),
        Entry::directory("d").mode(0o777),
        Entry::file("d/secret", "own"),
    ]);
    assert_eq!(place.read("d/secret"), "own");
}

#[test]
fn hostile_hard_links_stay_inside() {
    let secret = |place: &Place| place.outside.join("secret").to_str().unwrap().to_owned();
    let place = Place::new();
    let error = place.bad(&[Entry::hard_link("stolen", &secret(&place))]);
    assert!(matches!(error, UnpackError::LinkTarget { .. }), "{error}");
    let place = Place::new();
    let error = place.bad(&[Entry::hard_link("stolen", "../outside/secret")]);
    assert!(matches!(error, UnpackError::Escapes { .. }), "{error}");
    // Through a link that is in the layer.
    let place = Place::new();
    let error = place.bad(&[
        Entry::symlink("out", place.outside.to_str().unwrap()),
        Entry::hard_link("stolen", "out/secret"),
    ]);
    assert!(matches!(error, UnpackError::LinkTarget { .. }), "{error}");
    // A hard link to a link is one more link, and writing to it does not write through it.
    let place = Place::new();
    place.good(&[
        Entry::symlink("out", &secret(&place)),
        Entry::hard_link("again", "out"),
        Entry::file("again", "own"),
    ]);
    assert_eq!(place.read("again"), "own");
    let place = Place::new();
    let error = place.bad(&[Entry::directory("d"), Entry::hard_link("h", "d")]);
    assert!(matches!(error, UnpackError::LinkTarget { .. }), "{error}");
}

#[test]
fn hostile_device_nodes_are_refused() {
    for kind in [b'3', b'4'] {
        let place = Place::new();
        let error = place.bad(&[Entry::new(kind, "dev/sda")]);
        assert!(
            matches!(&error, UnpackError::Device { entry } if entry == "dev/sda"),
            "{error}"
        );
        assert!(tree(&place.root).is_empty());
    }
}

#[test]
fn hostile_whiteouts_name_nothing_outside() {
    for path in [".wh...", ".wh..", ".wh.", "a/.wh..."] {
        let error = Place::new().bad(&[Entry::directory("a"), Entry::file(path, "")]);
        assert!(
            matches!(error, UnpackError::Escapes { .. }),
            "{path}: {error}"
        );
    }
}

#[test]
fn hostile_sizes_and_numbers_are_refused() {
    let mut lying = Entry::file("a", "short");
    lying.size = Some(100_000);
    let mut bytes = Vec::new();
    lying.write(&mut bytes);
    let error = Place::new().unpack(&bytes).unwrap_err();
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");

    let mut huge = Entry::file("a", "short");
    huge.size = Some(0o7_777_777_777);
    let mut bytes = Vec::new();
    huge.write(&mut bytes);
    let error = Place::new().unpack(&bytes).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { .. }), "{error}");

    let error = Place::new().bad(&[Entry::file("a", "x").pax("uid", b"4294967295")]);
    assert!(matches!(error, UnpackError::Range { .. }), "{error}");
    let error = Place::new().bad(&[Entry::file("a", "x").pax("path", b"a\0b")]);
    assert!(matches!(error, UnpackError::Name { .. }), "{error}");
    let error = Place::new().bad(&[Entry::file(&"d/".repeat(3000), "x")]);
    assert!(matches!(error, UnpackError::Name { .. }), "{error}");
    let error = Place::new().bad(&[Entry::file(&"n".repeat(256), "x")]);
    assert!(matches!(error, UnpackError::Name { .. }), "{error}");
    let error = Place::new().bad(&[Entry::symlink("a", "")]);
    assert!(matches!(error, UnpackError::Name { .. }), "{error}");
    let error = Place::new().bad(&[Entry::symlink("./", "x")]);
    assert!(matches!(error, UnpackError::Name { .. }), "{error}");
}

#[test]
fn hostile_sparse_files_are_refused() {
    let error = Place::new().bad(&[Entry::file("a", "x").pax("GNU.sparse.major", b"1")]);
    assert!(matches!(error, UnpackError::Kind { .. }), "{error}");
    let error = Place::new().bad(&[Entry::new(b'V', "volume")]);
    assert!(matches!(error, UnpackError::Kind { .. }), "{error}");
}

#[test]
fn hostile_decompression_bombs_end_with_an_error() {
    let limits = Limits {
        layer: 1 << 20,
        ..small()
    };
    let mut zeros = Entry::file("zeros", "");
    zeros.content = vec![0; 3 << 20];
    let bomb = gzip(&tar(&[zeros]));
    assert!(bomb.len() < 32 << 10, "{}", bomb.len());
    let error = Place::new().unpack_with(&bomb, &limits).unwrap_err();
    assert!(
        matches!(error, UnpackError::TooLarge { limit: 1048576 }),
        "{error}"
    );
    // Zeros after the end of the archive count as well.
    let mut trailing = tar(&[Entry::file("a", "x")]);
    trailing.resize(3 << 20, 0);
    let error = Place::new()
        .unpack_with(&gzip(&trailing), &limits)
        .unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { .. }), "{error}");
}

#[test]
fn hostile_metadata_is_not_kept_in_memory() {
    // A name of two megabytes, and as much in extended headers.
    let mut long = Entry::new(b'L', "././@LongLink");
    long.content = vec![b'n'; 2 << 20];
    let error = Place::new().bad(&[long, Entry::file("a", "x")]);
    assert!(matches!(error, UnpackError::TooMuchMetadata), "{error}");
    let error = Place::new().bad(&[Entry::file("a", "x").pax("comment", &vec![b'c'; 2 << 20])]);
    assert!(matches!(error, UnpackError::TooMuchMetadata), "{error}");
}

#[test]
fn hostile_numbers_of_entries_end_with_an_error() {
    let entries: Vec<_> = (0..1001)
        .map(|n| Entry::directory(&format!("d{n}")))
        .collect();
    let error = Place::new().bad(&entries);
    assert!(
        matches!(error, UnpackError::TooManyEntries { limit: 1000 }),
        "{error}"
    );
}

#[test]
fn a_broken_layer_says_what_is_broken() {
    let layer = tar(&[Entry::file("a", &"content".repeat(1000))]);
    let zipped = gzip(&layer);
    let error = Place::new()
        .unpack(&zipped[..zipped.len() / 2])
        .unwrap_err();
    assert!(matches!(error, UnpackError::Compression(_)), "{error}");
    let mut flipped = zipped.clone();
    let middle = flipped.len() - 6;
    flipped[middle] ^= 0xff;
    let error = Place::new().unpack(&flipped).unwrap_err();
    assert!(matches!(error, UnpackError::Compression(_)), "{error}");
    let error = Place::new()
        .unpack(b"<html>this is no layer</html>")
        .unwrap_err();
    assert!(matches!(error, UnpackError::Tar(_)), "{error}");
    let error = Place::new().unpack(&layer[..1000]).unwrap_err();
    assert!(
        matches!(error, UnpackError::Truncated { .. } | UnpackError::Tar(_)),
        "{error}"
    );
    // Nothing at all is an empty layer: builders write them.
    assert_eq!(Place::new().unpack(&[0; 1024]).unwrap().entries, 0);
}

#[test]
fn a_file_where_a_directory_is_needed_is_told() {
    let error = Place::new().bad(&[Entry::file("a", "x"), Entry::file("a/b", "x")]);
    let text = error.to_string();
    assert!(matches!(error, UnpackError::Parent { .. }), "{text}");
    assert_eq!(
        text,
        r#""a/b" needs the directory "a", which is something else"#
    );
}

#[test]
fn messages_have_nothing_that_a_terminal_obeys() {
    let error = Place::new().bad(&[Entry::new(b'3', "dev/\x1b[31mred")]);
    assert!(!error.to_string().contains('\x1b'), "{error:?}");
}

// === any bytes at all ===

fn any_entry() -> impl Strategy<Value = Entry> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just(".."),
        Just("."),
        Just(""),
        Just(".wh.a"),
        Just(".wh..wh..opq"),
        Just("outside"),
        Just("secret"),
    ];
    let path = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop_oneof![
        4 => Just(b'0'), 3 => Just(b'5'), 3 => Just(b'2'), 2 => Just(b'1'), 1 => Just(b'6'),
    ];
    (kind, path.clone(), path, "[a-z]{0,20}", 0u32..0o10000).prop_map(
        |(kind, path, target, content, mode)| {
            let mut entry = Entry::new(kind, path).mode(mode);
            entry.link = target.into_bytes();
            if kind == b'0' {
                entry.content = content.into_bytes();
            }
            entry
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever entries there are, in whatever order, links and all: nothing outside is touched.
    #[test]
    fn nothing_outside_is_touched_by_any_entries(entries in proptest::collection::vec(any_entry(), 1..12)) {
        let place = Place::new();
        // Refused ones are left out, so that what follows them is tried too.
        for entry in &entries {
            let _ = place.unpack(&tar(std::slice::from_ref(entry)));
        }
        let _ = place.unpack(&tar(&entries));
    }

    /// Bytes of a good layer, changed, cut, doubled, compressed or not: an error or a layer, no panic, and
    /// nothing outside is touched.
    #[test]
    fn nothing_outside_is_touched_by_any_bytes(
        entries in proptest::collection::vec(any_entry(), 1..6),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..20),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        mended in any::<bool>(),
        compression in 0..3,
    ) {
        let mut bytes = tar(&entries);
        let compress = |bytes: &[u8]| match compression {
            0 => bytes.to_vec(),
            1 => gzip(bytes),
            _ => ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
        };
        if mended {
            // Changes that a checksum does not catch: each header gets a new one.
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                let header = at / 512 * 512;
                let block = &mut bytes[header..header + 512];
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            bytes = compress(&bytes);
        } else {
            bytes = compress(&bytes);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let place = Place::new();
        let _ = place.unpack(&bytes);
    }

    /// What was unpacked is what an independent reader of the tar sees.
    #[test]
    fn files_have_their_content(
        files in proptest::collection::btree_map("[a-d](/[e-h]){0,3}/[i-z]{1,120}", "\\PC{0,600}", 0..12)
    ) {
        let entries: Vec<Entry> = files.iter().map(|(path, content)| Entry::file(path, content)).collect();
        let layer = tar(&entries);
        let place = Place::new();
        let unpacked = place.unpack(&gzip(&layer)).unwrap();
        prop_assert_eq!(unpacked.diff_id, Digest::of(&layer));
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut seen = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = place.root.join(name(&entry.path_bytes()));
            prop_assert_eq!(fs::read(path).unwrap(), content);
            seen += 1;
        }
        prop_assert_eq!(seen, files.len());
    }
}
