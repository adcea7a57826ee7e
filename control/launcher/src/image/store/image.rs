//! Which images there are, and what they are called.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::image::{
    Digest, ImageName,
    document::{Descriptor, Document, Platform},
};

/// Where an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A registry, which has it still.
    Registry,
    /// An archive or a build: nobody else may have it.
    Import,
}

/// A complete image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    /// What a name resolves to and a job pins: the digest of the index, where there is one.
    pub digest: Digest,
    /// The manifest for this platform.
    pub manifest: Digest,
    pub config: Digest,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub origin: Origin,
    /// When it came here, in seconds since 1970.
    pub added: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Layer {
    pub digest: Digest,
    /// Bytes, as transferred.
    pub size: u64,
    /// The digest of what it unpacks to.
    #[serde(rename = "DiffID")]
    pub diff_id: Digest,
}

impl Image {
    /// Bytes of all layers, as transferred.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// An image with its names and its last use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub image: Image,
    pub names: Vec<ImageName>,
    pub last_used: SystemTime,
}

/// A name and what it stands for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) digest: Digest,
}

impl Store {
    pub(super) fn image_path(&self, digest: &Digest) -> PathBuf {
        self.path("images").join(format!("{}.json", digest.hex()))
    }

    pub(super) fn ref_path(&self, name: &ImageName) -> PathBuf {
        // A name may be longer than the name of a file.
        let hex = Digest::of(name.to_string().as_bytes()).hex();
        self.path("refs").join(format!("{hex}.json"))
    }

    /// Declares the image of a manifest or an index complete: all its blobs must be in the store. Call it
    /// under a [`Hold`](super::Hold) that is as old as the first blob.
    pub fn complete(&self, digest: Digest, origin: Origin) -> Result<Image, StoreError> {
        let (manifest_digest, manifest) = match self.document(&digest)? {
            Document::Manifest(manifest) => (digest, manifest),
            Document::Index(index) => {
                let chosen = index.select(Platform::own())?.digest;
                match self.document(&chosen)? {
                    Document::Manifest(manifest) => (chosen, manifest),
                    Document::Index(_) => {
                        return Err(crate::image::document::DocumentError::MediaType(
                            "an index within an index".to_owned(),
                        )
                        .into());
                    }
                }
            }
        };
        let config = self.config(&manifest.config.digest)?;
        config.check(&manifest, Platform::own())?;
        let missing = manifest.layers.iter().find(|layer| !self.has_blob(layer));
        if let Some(Descriptor { digest, .. }) = missing {
            return Err(StoreError::NoBlob(*digest));
        }
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let image = Image {
            digest,
            manifest: manifest_digest,
            config: manifest.config.digest,
            layers: layers
                .map(|(layer, diff_id)| Layer {
                    digest: layer.digest,
                    size: layer.size,
                    diff_id: *diff_id,
                })
                .collect(),
            origin,
            added: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
        };
        let json = serde_json::to_vec(&image).unwrap_or_default();
        self.write_whole(&self.image_path(&digest), &json)?;
        Ok(image)
    }

    /// The image of a digest, if it is complete here.
    pub fn image(&self, digest: &Digest) -> Result<Image, StoreError> {
        let path = self.image_path(digest);
        match read(&path)? {
            Some(image) => Ok(image),
            None => Err(StoreError::NoImage(digest.to_string())),
        }
    }

    /// Gives a name to an image that is there; the name leaves what it stood for before.
    pub fn tag(&self, name: &ImageName, digest: Digest) -> Result<(), StoreError> {
        let _hold = self.hold()?;
        self.image(&digest)?;
        let named = Named {
            name: name.to_string(),
            digest,
        };
        let json = serde_json::to_vec(&named).unwrap_or_default();
        self.write_whole(&self.ref_path(name), &json)
    }

    /// What a name stands for on this node. A digest in the name is what it stands for.
    pub fn lookup(&self, name: &ImageName) -> Result<Option<Digest>, StoreError> {
        if let Some(digest) = name.digest {
            return match self.image(&digest) {
                Ok(image) => Ok(Some(image.digest)),
                Err(StoreError::NoImage(_)) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let name = name.clone().with_default_tag();
        let named: Option<Named> = read(&self.ref_path(&name))?;
        Ok(named.map(|named| named.digest))
    }

    /// An image by name, by digest, or by the beginning of its digest's digits (at least 4).
    pub fn find(&self, text: &str) -> Result<Image, StoreError> {
        if let Ok(digest) = text.parse() {
            return self.image(&digest);
        }
        if let Ok(name) = ImageName::parse(text)
            && let Some(digest) = self.lookup(&name)?
        {
            return self.image(&digest);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            let listed = self.list()?;
            let mut found = listed
                .into_iter()
                .filter(|listed| listed.image.digest.hex().starts_with(digits));
            match (found.next(), found.count()) {
                (Some(only), 0) => return Ok(only.image),
                (Some(_), more) => {
                    return Err(StoreError::AmbiguousImage {
                        prefix: digits.to_owned(),
                        count: more + 1,
                    });
                }
                (None, _) => {}
            }
        }
        Err(StoreError::NoImage(text.chars().take(300).collect()))
    }

    /// All complete images, the one used last first.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut names: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for named in self.names()? {
            if let Ok(name) = ImageName::parse(&named.name) {
                names.entry(named.digest).or_default().push(name);
            }
        }
        let mut listed = Vec::new();
        for path in json_files(&self.path("images"))? {
            let Some(image) = read::<Image>(&path)? else {
                continue;
            };
            let last_used = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .unwrap_or(UNIX_EPOCH + Duration::from_secs(image.added));
            let mut names = names.remove(&image.digest).unwrap_or_default();
            names.sort();
            listed.push(Listed {
                image,
                names,
                last_used,
            });
        }
        listed.sort_by_key(|listed| (std::cmp::Reverse(listed.last_used), listed.image.digest));
        Ok(listed)
    }

    pub(super) fn names(&self) -> Result<Vec<Named>, StoreError> {
        let mut names = Vec::new();
        for path in json_files(&self.path("refs"))? {
            names.extend(read::<Named>(&path)?);
        }
        Ok(names)
    }

    /// Notes that an image is used now.
    pub(in crate::image) fn touch(&self, digest: &Digest) {
        let path = self.image_path(digest);
        let touched = fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(path = %path.display(), %error, "the use of an image is not noted");
        }
    }
}

/// Reads a file that was written whole; `None` if there is none.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    path: &std::path::Path,
) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::file(path)(error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| StoreError::File {
            path: path.to_owned(),
            source: io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{error}; remove the file, and fetch or import the image again"),
            ),
        })
}

pub(super) fn json_files(directory: &std::path::Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(StoreError::file(directory))? {
        let path = entry.map_err(StoreError::file(directory))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    Ok(paths)
}
