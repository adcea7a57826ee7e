//! Blobs: written under a temporary name, verified, and only then there.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    path::PathBuf,
};

use super::{Hold, Store, StoreError, Temporary, create, sync_parent};
use crate::image::{
    Digest,
    digest::Hasher,
    document::{Descriptor, Document, DocumentError, ImageConfig},
    limits::{MAX_CONFIG, MAX_MANIFEST},
};

/// A blob on its way into the store. Dropped before [`BlobWriter::finish`], nothing is left of it.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    digest: Digest,
    size: u64,
    file: File,
    temporary: Temporary,
    hasher: Hasher,
    _hold: Hold,
}

impl BlobWriter {
    /// Takes the next bytes; refuses more than were announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.hasher.bytes() + bytes.len() as u64;
        if written > self.size {
            return Err(self.wrong_size(written));
        }
        self.file
            .write_all(bytes)
            .map_err(StoreError::file(self.temporary.path()))?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Verifies size and digest and puts the blob in its place.
    pub fn finish(self) -> Result<(), StoreError> {
        if self.hasher.bytes() != self.size {
            return Err(self.wrong_size(self.hasher.bytes()));
        }
        let actual = self.hasher.finish();
        if actual != self.digest {
            return Err(StoreError::WrongDigest {
                what: "the blob".to_owned(),
                expected: self.digest,
                actual,
            });
        }
        self.file
            .sync_all()
            .map_err(StoreError::file(self.temporary.path()))?;
        let path = self.store.blob_path(&self.digest);
        self.temporary
            .keep(&path)
            .map_err(StoreError::file(&path))?;
        sync_parent(&path)
    }

    fn wrong_size(&self, actual: u64) -> StoreError {
        StoreError::WrongSize {
            what: format!("blob {}", self.digest),
            expected: self.size,
            actual,
        }
    }
}

impl Store {
    pub(in crate::image) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob of this digest and size is there.
    pub fn has_blob(&self, descriptor: &Descriptor) -> bool {
        std::fs::metadata(self.blob_path(&descriptor.digest))
            .is_ok_and(|metadata| metadata.len() == descriptor.size)
    }

    /// Begins to write a blob.
    pub fn write_blob(&self, descriptor: &Descriptor) -> Result<BlobWriter, StoreError> {
        let limit = self.limits().blob;
        if descriptor.size > limit {
            return Err(StoreError::BlobTooLarge {
                digest: descriptor.digest,
                bytes: descriptor.size,
                limit,
            });
        }
        let hold = self.hold()?;
        let temporary = self.temporary();
        let file = create(temporary.path()).map_err(StoreError::file(temporary.path()))?;
        Ok(BlobWriter {
            store: self.clone(),
            digest: descriptor.digest,
            size: descriptor.size,
            file,
            temporary,
            hasher: Hasher::default(),
            _hold: hold,
        })
    }

    /// Puts a blob into the store, unless it is there. The bytes must have the digest and size announced.
    pub fn put_blob(
        &self,
        descriptor: &Descriptor,
        mut reader: impl Read,
    ) -> Result<(), StoreError> {
        if self.has_blob(descriptor) {
            return Ok(());
        }
        let mut writer = self.write_blob(descriptor)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return writer.finish(),
                Ok(read) => writer.write(&buffer[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(StoreError::File {
                        path: format!("blob {}", descriptor.digest).into(),
                        source,
                    });
                }
            }
        }
    }

    /// Puts some bytes into the store.
    pub(in crate::image) fn put_bytes(
        &self,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Descriptor, StoreError> {
        let descriptor = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        self.put_blob(&descriptor, bytes)?;
        Ok(descriptor)
    }

    /// Opens a blob for reading. It was verified when it was written, and is not again.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoBlob(*digest))
            }
            result => result.map_err(StoreError::file(&path)),
        }
    }

    /// A small blob whole, verified.
    fn small_blob(
        &self,
        digest: &Digest,
        what: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.open_blob(digest)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(StoreError::file(&self.blob_path(digest)))?;
        if bytes.len() as u64 > limit {
            let bytes = bytes.len() as u64;
            return Err(DocumentError::TooLarge { what, bytes, limit }.into());
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::WrongDigest {
                what: format!("{what} on disk"),
                expected: *digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// The manifest or index of a digest.
    pub fn document(&self, digest: &Digest) -> Result<Document, StoreError> {
        let bytes = self.small_blob(digest, "manifest", MAX_MANIFEST)?;
        Ok(Document::parse(&bytes)?)
    }

    /// The configuration of an image.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfig, StoreError> {
        let bytes = self.small_blob(digest, "configuration of the image", MAX_CONFIG)?;
        Ok(ImageConfig::parse(&bytes)?)
    }
}
