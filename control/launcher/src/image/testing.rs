//! What the tests of images share: layers made by hand, trees compared, root required.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use super::{
    Digest,
    document::{
        Descriptor, Document, ImageConfig, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
        Platform, REF_NAME, RootFs, RunConfig,
    },
};

/// Whether this process may do what only root may. Says why not, and fails where everything is required.
pub(super) fn is_root(for_what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("WHARF_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "WHARF_REQUIRE_ALL is set, and {for_what} needs root"
        );
        println!("skipped: {for_what} needs root");
    }
    root
}

/// One entry of a tar, written without any of the care a library takes.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) mtime: u64,
    /// What the header says, if that is not the length of the content.
    pub(super) size: Option<u64>,
    pub(super) pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(super) fn new(kind: u8, name: impl AsRef<[u8]>) -> Entry {
        Entry {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            content: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            mtime: 1_000_000_000,
            size: None,
            pax: Vec::new(),
        }
    }

    pub(super) fn file(name: &str, content: &str) -> Entry {
        Entry {
            content: content.as_bytes().to_vec(),
            ..Entry::new(b'0', name)
        }
    }

    pub(super) fn directory(name: &str) -> Entry {
        Entry::new(b'5', name)
    }

    pub(super) fn symlink(name: &str, target: &str) -> Entry {
        Entry::new(b'2', name).to(target)
    }

    pub(super) fn hard_link(name: &str, target: &str) -> Entry {
        Entry::new(b'1', name).to(target)
    }

    fn to(mut self, target: &str) -> Entry {
        self.link = target.as_bytes().to_vec();
        self
    }

    pub(super) fn mode(mut self, mode: u32) -> Entry {
        self.mode = mode;
        self
    }

    pub(super) fn pax(mut self, key: &str, value: &[u8]) -> Entry {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &self.pax {
                // The length counts its own digits.
                let rest = key.len() + value.len() + 3;
                let mut length = rest;
                while length != rest + length.to_string().len() {
                    length = rest + length.to_string().len();
                }
                records.extend(format!("{length} {key}=").bytes());
                records.extend(value);
                records.push(b'\n');
            }
            let extension = Entry {
                content: records,
                ..Entry::new(b'x', "pax")
            };
            extension.write(out);
        }
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        if self.name.len() > 100 {
            let long = Entry {
                content: [self.name.as_slice(), b"\0"].concat(),
                ..Entry::new(b'L', "././@LongLink")
            };
            long.write(out);
        }
        let size = self.size.unwrap_or(self.content.len() as u64);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.uid).as_bytes());
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(&self.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

pub(super) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut out));
    out.resize(out.len() + 1024, 0);
    out
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What is at a path, as far as an image says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory(u32),
    File(u32, Vec<u8>),
    Link(PathBuf),
    Whiteout,
    Other,
}

/// Everything below a directory.
pub(super) fn tree(directory: &Path) -> BTreeMap<PathBuf, Node> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let mode = metadata.mode() & 0o7777;
            let kind = metadata.file_type();
            let node = if kind.is_dir() {
                pending.push(entry.path());
                Node::Directory(mode)
            } else if kind.is_symlink() {
                Node::Link(fs::read_link(entry.path()).unwrap())
            } else if kind.is_file() {
                Node::File(mode, fs::read(entry.path()).unwrap())
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                Node::Whiteout
            } else {
                Node::Other
            };
            let path = entry.path().strip_prefix(directory).unwrap().to_owned();
            tree.insert(path, node);
        }
    }
    tree
}

pub(super) fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// The files of an OCI layout with one image of these layers (as stored, and as unpacked).
pub(super) struct Layout {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) digest: Digest,
}

impl Layout {
    pub(super) fn new(tag: &str, layers: &[(Vec<u8>, Digest)]) -> Layout {
        Layout::of(
            tag,
            layers,
            Platform::own().architecture,
            RunConfig::default(),
        )
    }

    pub(super) fn of(
        tag: &str,
        layers: &[(Vec<u8>, Digest)],
        architecture: &str,
        config: RunConfig,
    ) -> Layout {
        let mut files = BTreeMap::new();
        let mut blob = |bytes: Vec<u8>, kind: &str| {
            let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
            let path = format!("blobs/sha256/{}", descriptor.digest.hex());
            files.insert(path, bytes);
            descriptor
        };
        let config = ImageConfig {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            config,
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: layers.iter().map(|(_, diff_id)| *diff_id).collect(),
            },
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: blob(serde_json::to_vec(&config).unwrap(), OCI_CONFIG),
            layers: layers
                .iter()
                .map(|(bytes, _)| blob(bytes.clone(), OCI_LAYER))
                .collect(),
        };
        let mut described = blob(serde_json::to_vec(&manifest).unwrap(), OCI_MANIFEST);
        described.annotations = Some([(REF_NAME.to_owned(), tag.to_owned())].into());
        let digest = described.digest;
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![described],
        };
        files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        files.insert(
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        Layout { files, digest }
    }

    pub(super) fn manifest(&self) -> Manifest {
        let path = format!("blobs/sha256/{}", self.digest.hex());
        match Document::parse(&self.files[&path]).unwrap() {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => panic!("an index"),
        }
    }

    pub(super) fn archive(&self) -> Vec<u8> {
        let entries: Vec<Entry> = self
            .files
            .iter()
            .map(|(name, content)| Entry {
                content: content.clone(),
                ..Entry::new(b'0', name)
            })
            .collect();
        tar(&entries)
    }

    pub(super) fn write_to(&self, directory: &Path) {
        for (name, content) in &self.files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}

/// A layer as it is, with its digest.
pub(super) fn plain(tar: Vec<u8>) -> (Vec<u8>, Digest) {
    let digest = Digest::of(&tar);
    (tar, digest)
}
