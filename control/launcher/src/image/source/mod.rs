//! Images from files: an OCI layout in a directory or a tar, and what `docker save` writes.

mod archive;
mod docker;
mod layout;

use std::{fs::File, io, path::PathBuf};

pub use layout::pack_layout;

use super::{
    Digest, ImageName, OnDisk, Reference,
    document::{Descriptor, Document, DocumentError, Platform},
    limits::{MAX_CONFIG, MAX_MANIFEST},
    store::{Image, Origin, Store, StoreError},
    unpack::UnpackError,
};

/// Which of the images of an archive, and under which name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Only the image with this tag.
    pub tag: Option<String>,
    /// The name it gets, in place of those it brings.
    pub name: Option<ImageName>,
}

/// An image that was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub image: Image,
    pub names: Vec<ImageName>,
}

/// Why an image is not imported. Nothing of it is kept then, unless others were at work in the store: then it
/// goes with the next removal.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the archive cannot be read: {0}")]
    Archive(#[source] io::Error),
    #[error("the archive: {0}")]
    Content(UnpackError),
    #[error("this is no image: it has neither index.json nor manifest.json at its top")]
    NoImage,
    #[error("{0} is not in the archive")]
    Missing(String),
    #[error("{path} should have the digest {expected}, but has {actual}")]
    WrongDigest {
        path: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("no image in it has the tag {tag:?}; there is {}", list(there))]
    NoTag { tag: String, there: Vec<String> },
    #[error(
        "there are several images in it, so one name is not enough: choose a tag of {}",
        list(there)
    )]
    Several { there: Vec<String> },
    #[error("manifest.json is not what docker save writes: {0}")]
    DockerManifest(serde_json::Error),
    #[error("{0} is in a registry, not in a file")]
    NotOnDisk(String),
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none with a tag".to_owned(),
        names => names.join(", "),
    }
}

/// The files that an image is in.
trait Content {
    /// A small file; `None` if there is none.
    fn small(
        &self,
        path: &str,
        what: &'static str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ImportError>;

    /// Puts a file into the store as this blob.
    fn put(&self, store: &Store, path: &str, blob: &Descriptor) -> Result<(), ImportError>;
}

impl Store {
    /// Imports from an archive as it comes: an OCI archive or one of `docker save`, compressed or not.
    pub fn import(
        &self,
        archive: impl io::Read,
        select: &Select,
    ) -> Result<Vec<Imported>, ImportError> {
        let hold = self.hold()?;
        let staged = archive::Staged::read(self, archive)?;
        let index = staged.small("index.json", "index", MAX_MANIFEST)?;
        // Newer versions of docker save write both; the layout says more.
        let imported = match index {
            Some(index) => layout::import(self, &staged, &index, select),
            None => match staged.small("manifest.json", "manifest.json", MAX_MANIFEST)? {
                Some(manifest) => docker::import(self, &staged, &manifest, select),
                None => Err(ImportError::NoImage),
            },
        };
        // What was staged goes before others may sweep.
        drop(staged);
        drop(hold);
        if imported.is_err() {
            self.collect_if_idle();
        }
        imported
    }

    /// Imports from a path.
    pub fn import_reference(
        &self,
        reference: &Reference,
        name: Option<ImageName>,
    ) -> Result<Vec<Imported>, ImportError> {
        let select = |on_disk: &OnDisk| Select {
            tag: on_disk.tag.clone(),
            name: name.clone(),
        };
        match reference {
            Reference::Named(name) => Err(ImportError::NotOnDisk(name.to_string())),
            Reference::OciLayout(on_disk) => {
                let hold = self.hold()?;
                let content = layout::Directory(&on_disk.path);
                let index = content.small("index.json", "index", MAX_MANIFEST)?;
                let index = index.ok_or(ImportError::NoImage)?;
                let imported = layout::import(self, &content, &index, &select(on_disk));
                drop(hold);
                if imported.is_err() {
                    self.collect_if_idle();
                }
                imported
            }
            Reference::OciArchive(on_disk) | Reference::DockerArchive(on_disk) => {
                let file = File::open(&on_disk.path).map_err(|source| ImportError::Read {
                    path: on_disk.path.clone(),
                    source,
                })?;
                self.import(file, &select(on_disk))
            }
        }
    }

    /// Takes over a manifest and what it refers to, and gives it its names.
    fn adopt(
        &self,
        content: &impl Content,
        described: &Descriptor,
        names: Vec<ImageName>,
    ) -> Result<Imported, ImportError> {
        let manifest = match self.take_document(content, described)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let chosen = index.select(Platform::own())?;
                match self.take_document(content, chosen)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(
                            DocumentError::MediaType("an index within an index".into()).into()
                        );
                    }
                }
            }
        };
        let config = blob_path(&manifest.config.digest);
        content.put(self, &config, &manifest.config)?;
        // Before gigabytes of layers are taken over.
        self.config(&manifest.config.digest)?
            .check(&manifest, Platform::own())?;
        for layer in &manifest.layers {
            content.put(self, &blob_path(&layer.digest), layer)?;
        }
        self.named(described.digest, names)
    }

    fn named(&self, digest: Digest, names: Vec<ImageName>) -> Result<Imported, ImportError> {
        let image = self.complete(digest, Origin::Import)?;
        for name in &names {
            self.tag(name, image.digest)?;
        }
        Ok(Imported { image, names })
    }

    fn take_document(
        &self,
        content: &impl Content,
        described: &Descriptor,
    ) -> Result<Document, ImportError> {
        if described.size > MAX_MANIFEST.max(MAX_CONFIG) {
            return Err(DocumentError::TooLarge {
                what: "manifest",
                bytes: described.size,
                limit: MAX_MANIFEST,
            }
            .into());
        }
        content.put(self, &blob_path(&described.digest), described)?;
        Ok(self.document(&described.digest)?)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[cfg(test)]
mod tests;
