//! Images from files: one layer, the same bytes every time.
//!
//! What would differ between two machines or two days is left out: owners are 0:0, modes are 0755 for
//! directories and what its owner may execute, else 0644, times are one time for all, entries are in the order
//! of their names, and nothing is compressed, so that no compressor's version is part of a digest. The digest
//! of an image says what is in it, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Digest, ImageName,
    digest::Hasher,
    document::{
        Descriptor, FULL_NAME, ImageConfig, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
        Platform, REF_NAME, RootFs, RunConfig,
    },
};

/// What an image is made of.
#[derive(Clone, Debug, Default)]
pub struct Build {
    pub files: Vec<Source>,
    pub config: RunConfig,
    /// `amd64`, `arm64`; the machine's own if absent.
    pub architecture: Option<String>,
    pub name: Option<ImageName>,
    /// The time of every file, in seconds since 1970: `SOURCE_DATE_EPOCH`, else 0.
    pub epoch: u64,
}

/// A file or a directory with everything in it, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub from: PathBuf,
    /// Absolute. Below it a directory's content is put; `/` is the root itself.
    pub to: PathBuf,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The digest of the image's manifest.
    pub digest: Digest,
    /// Bytes of its layer.
    pub size: u64,
    /// Files, links and directories.
    pub entries: usize,
}

/// Why an image is not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("there is nothing to put into the image")]
    Empty,
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is neither file, directory nor link", path.display())]
    Kind { path: PathBuf },
    #[error("{} is no place in an image: {why}", path.display())]
    Place { path: PathBuf, why: &'static str },
    #[error("{} would be in the image twice: as {first} and as {second}", path.display())]
    Twice {
        path: PathBuf,
        first: String,
        second: String,
    },
    #[error("{} changed while it was read; build again", path.display())]
    Changed { path: PathBuf },
    #[error("some of the files changed while they were read; build again")]
    Unstable,
    #[error("environment {0:?} is not NAME=value")]
    Environment(String),
    #[error("port {0:?} is not a number from 1 to 65535, with or without /tcp or /udp")]
    Port(String),
    #[error("writing the image: {0}")]
    Write(#[source] io::Error),
}

/// The longest target of a link that a header of tar holds.
const LINK_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { from: PathBuf, mode: u32, size: u64 },
    Link(PathBuf),
}

impl Node {
    fn describe(&self) -> String {
        match self {
            Node::Directory => "a directory".to_owned(),
            Node::File { from, .. } => from.display().to_string(),
            Node::Link(to) => format!("a link to {}", to.display()),
        }
    }
}

impl Build {
    /// Writes the image as an OCI archive: a tar of an OCI image layout.
    pub fn write(&self, out: impl Write) -> Result<Built, BuildError> {
        let config = self.checked_config()?;
        let nodes = self.collect()?;
        if nodes.is_empty() {
            return Err(BuildError::Empty);
        }
        // Once for the digest, which stands before the content in the archive, and once for the content.
        let mut hasher = Hasher::default();
        self.write_layer(&nodes, &mut hasher)?;
        let size = hasher.bytes();
        let layer = hasher.finish();

        let architecture = match &self.architecture {
            Some(architecture) => architecture.clone(),
            None => Platform::own().architecture.to_owned(),
        };
        let config = json(&ImageConfig {
            architecture,
            os: "linux".to_owned(),
            config,
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: vec![layer],
            },
        })?;
        let config_digest = Digest::of(&config);
        let manifest = json(&Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::new(OCI_CONFIG, config_digest, config.len() as u64),
            layers: vec![Descriptor::new(OCI_LAYER, layer, size)],
        })?;
        let digest = Digest::of(&manifest);
        let mut described = Descriptor::new(OCI_MANIFEST, digest, manifest.len() as u64);
        if let Some(name) = &self.name {
            let name = name.clone().with_default_tag().to_string();
            let names = [REF_NAME, FULL_NAME].map(|key| (key.to_owned(), name.clone()));
            described.annotations = Some(names.into());
        }
        let index = json(&Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![described],
        })?;

        let mut archive = tar::Builder::new(out);
        let small = [(config_digest, &config), (digest, &manifest)];
        let blobs: BTreeMap<Digest, Option<&Vec<u8>>> = small
            .into_iter()
            .map(|(digest, bytes)| (digest, Some(bytes)))
            .chain([(layer, None)])
            .collect();
        for (blob, bytes) in blobs {
            let path = format!("blobs/sha256/{}", blob.hex());
            match bytes {
                Some(bytes) => self.append(&mut archive, &path, bytes)?,
                None => self.append_layer(&mut archive, &path, &nodes, size, layer)?,
            }
        }
        self.append(&mut archive, "index.json", &index)?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        self.append(&mut archive, "oci-layout", layout)?;
        let mut out = archive.into_inner().map_err(BuildError::Write)?;
        out.flush().map_err(BuildError::Write)?;
        Ok(Built {
            digest,
            size,
            entries: nodes.len(),
        })
    }

    fn checked_config(&self) -> Result<RunConfig, BuildError> {
        let mut config = self.config.clone();
        for variable in &config.env {
            match variable.split_once('=') {
                Some((name, _)) if !name.is_empty() => {}
                _ => return Err(BuildError::Environment(variable.clone())),
            }
        }
        let ports = std::mem::take(&mut config.exposed_ports);
        for (port, nothing) in ports {
            let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            let good = number.parse::<u16>().is_ok_and(|number| number != 0)
                && matches!(protocol, "tcp" | "udp");
            if !good {
                return Err(BuildError::Port(port));
            }
            config
                .exposed_ports
                .insert(format!("{number}/{protocol}"), nothing);
        }
        Ok(config)
    }

    /// Everything that goes into the layer, by its path there.
    fn collect(&self) -> Result<BTreeMap<PathBuf, Node>, BuildError> {
        let mut nodes = BTreeMap::new();
        for source in &self.files {
            let place = place(&source.to)?;
            let metadata = fs::metadata(&source.from).map_err(read_error(&source.from))?;
            if metadata.is_dir() {
                // A link given by name is followed; links in a directory stay links.
                collect_directory(&mut nodes, &source.from, &place)?;
                if !place.as_os_str().is_empty() {
                    add(&mut nodes, &place, Node::Directory)?;
                }
            } else {
                if place.as_os_str().is_empty() {
                    return Err(BuildError::Place {
                        path: source.to.clone(),
                        why: "a file needs a name",
                    });
                }
                let node = file_node(&source.from, &metadata)?;
                add(&mut nodes, &place, node)?;
            }
        }
        let above: BTreeSet<PathBuf> = nodes
            .keys()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|path| !path.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect();
        for path in above {
            add(&mut nodes, &path, Node::Directory)?;
        }
        Ok(nodes)
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_mtime(self.epoch);
        header
    }

    fn append<W: Write>(
        &self,
        archive: &mut tar::Builder<W>,
        path: &str,
        bytes: &[u8],
    ) -> Result<(), BuildError> {
        let mut header = self.header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
        archive
            .append_data(&mut header, path, bytes)
            .map_err(BuildError::Write)
    }

    /// Appends the layer without holding it in memory.
    fn append_layer<W: Write>(
        &self,
        archive: &mut tar::Builder<W>,
        path: &str,
        nodes: &BTreeMap<PathBuf, Node>,
        size: u64,
        digest: Digest,
    ) -> Result<(), BuildError> {
        let mut header = self.header(tar::EntryType::Regular, 0o644, size);
        header.set_path(path).map_err(BuildError::Write)?;
        header.set_cksum();
        let out = archive.get_mut();
        out.write_all(header.as_bytes())
            .map_err(BuildError::Write)?;
        let mut tee = Tee {
            out,
            hasher: Hasher::default(),
        };
        self.write_layer(nodes, &mut tee)?;
        let written = tee.hasher.bytes();
        if written != size || tee.hasher.finish() != digest {
            return Err(BuildError::Unstable);
        }
        // A tar is in blocks of 512 bytes, so nothing needs to be filled up.
        Ok(())
    }

    /// Appends a link whose target stays as it is written: tar's own would drop what says nothing in it.
    fn append_link<W: Write>(
        &self,
        layer: &mut tar::Builder<W>,
        path: &Path,
        target: &Path,
    ) -> io::Result<()> {
        let target = target.as_os_str().as_bytes();
        if target.len() > LINK_MAX {
            let kind = tar::EntryType::GNULongLink;
            let mut long = self.header(kind, 0o644, target.len() as u64 + 1);
            long.set_mtime(0);
            long.set_path("././@LongLink")?;
            long.set_cksum();
            layer.append(&long, target.chain(&[0][..]))?;
        }
        let mut header = self.header(tar::EntryType::Symlink, 0o777, 0);
        header.set_link_name_literal(&target[..target.len().min(LINK_MAX)])?;
        layer.append_data(&mut header, path, io::empty())
    }

    fn write_layer(
        &self,
        nodes: &BTreeMap<PathBuf, Node>,
        out: impl Write,
    ) -> Result<(), BuildError> {
        let mut layer = tar::Builder::new(out);
        let kind = tar::EntryType::Regular;
        for (path, node) in nodes {
            match node {
                Node::Directory => {
                    let mut header = self.header(tar::EntryType::Directory, 0o755, 0);
                    let mut name = path.clone().into_os_string();
                    name.push("/");
                    layer.append_data(&mut header, name, io::empty())
                }
                Node::Link(target) => self.append_link(&mut layer, path, target),
                Node::File { from, mode, size } => {
                    let file = File::open(from).map_err(read_error(from))?;
                    let mut header = self.header(kind, *mode, *size);
                    let mut counted = Counted {
                        file: file.take(*size),
                        read: 0,
                        failed: false,
                    };
                    let appended = layer.append_data(&mut header, path, &mut counted);
                    if counted.failed
                        && let Err(source) = appended
                    {
                        let path = from.clone();
                        return Err(BuildError::Read { path, source });
                    }
                    if appended.is_ok() && counted.read != *size {
                        return Err(BuildError::Changed { path: from.clone() });
                    }
                    appended
                }
            }
            .map_err(BuildError::Write)?;
        }
        layer.finish().map_err(BuildError::Write)
    }
}

/// Reads a file and remembers whose fault an error is.
struct Counted {
    file: io::Take<File>,
    read: u64,
    failed: bool,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(read) => {
                self.read += read as u64;
                Ok(read)
            }
            Err(error) => {
                self.failed = error.kind() != io::ErrorKind::Interrupted;
                Err(error)
            }
        }
    }
}

struct Tee<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> BuildError + '_ {
    move |source| BuildError::Read {
        path: path.to_owned(),
        source,
    }
}

/// A place in an image as a path below its root.
fn place(to: &Path) -> Result<PathBuf, BuildError> {
    let bad = |why| BuildError::Place {
        path: to.to_owned(),
        why,
    };
    let bytes = to.as_os_str().as_bytes();
    if !bytes.starts_with(b"/") {
        return Err(bad("it must be absolute"));
    }
    let mut place = PathBuf::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(bad("it goes up")),
            part => place.push(OsStr::from_bytes(part)),
        }
    }
    Ok(place)
}

fn file_node(from: &Path, metadata: &fs::Metadata) -> Result<Node, BuildError> {
    if !metadata.is_file() {
        return Err(BuildError::Kind {
            path: from.to_owned(),
        });
    }
    let executable = metadata.permissions().mode() & 0o100 != 0;
    Ok(Node::File {
        from: from.to_owned(),
        mode: if executable { 0o755 } else { 0o644 },
        size: metadata.len(),
    })
}

fn collect_directory(
    nodes: &mut BTreeMap<PathBuf, Node>,
    from: &Path,
    to: &Path,
) -> Result<(), BuildError> {
    for entry in fs::read_dir(from).map_err(read_error(from))? {
        let entry = entry.map_err(read_error(from))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().as_bytes().starts_with(b".wh.") {
            return Err(BuildError::Place {
                path: to,
                why: "in a layer, names with .wh. hide others",
            });
        }
        let metadata = entry.metadata().map_err(read_error(&from))?;
        if metadata.is_dir() {
            add(nodes, &to, Node::Directory)?;
            collect_directory(nodes, &from, &to)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from).map_err(read_error(&from))?;
            add(nodes, &to, Node::Link(target))?;
        } else {
            add(nodes, &to, file_node(&from, &metadata)?)?;
        }
    }
    Ok(())
}

fn add(nodes: &mut BTreeMap<PathBuf, Node>, path: &Path, node: Node) -> Result<(), BuildError> {
    match nodes.get(path) {
        Some(there) if *there != node => Err(BuildError::Twice {
            path: Path::new("/").join(path),
            first: there.describe(),
            second: node.describe(),
        }),
        _ => {
            nodes.insert(path.to_owned(), node);
            Ok(())
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(value).map_err(|error| BuildError::Write(error.into()))
}

#[cfg(test)]
mod tests;
