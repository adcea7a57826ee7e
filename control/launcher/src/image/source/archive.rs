//! Archives: all their files are staged in the store's `tmp/` as they come, since what explains them may be
//! the last.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use super::{Content, ImportError};
use crate::image::{
    Digest, Hasher,
    document::{Descriptor, DocumentError},
    store::{Store, StoreError, Temporary, sync_parent},
    unpack::{self, UnpackError},
};

/// More files than any archive of images has.
const MAX_FILES: usize = 10_000;

/// The files of an archive by name. Removed with this, but for those that became blobs.
pub(super) struct Staged {
    files: HashMap<String, StagedFile>,
    /// Links by name: old versions of docker save wrote a layer once and linked to it.
    links: HashMap<String, String>,
}

/// A staged file.
struct StagedFile {
    digest: Digest,
    size: u64,
    temporary: RefCell<Option<Temporary>>,
}

impl Staged {
    pub(super) fn read(store: &Store, archive: impl Read) -> Result<Staged, ImportError> {
        let limit = store.limits().layer;
        let stream = unpack::bounded(archive, limit).map_err(ImportError::Archive)?;
        let fail = |error| match stream.explain(error, UnpackError::Tar) {
            UnpackError::Tar(error) => ImportError::Archive(error),
            error => ImportError::Content(error),
        };
        let mut staged = Staged {
            files: HashMap::new(),
            links: HashMap::new(),
        };
        let mut archive = tar::Archive::new(&stream);
        stream.begin_metadata();
        for entry in archive.entries().map_err(&fail)? {
            let mut entry = entry.map_err(&fail)?;
            stream.end_metadata();
            let name = entry.path_bytes();
            let name = String::from_utf8_lossy(&name);
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if staged.files.len() + staged.links.len() >= MAX_FILES {
                let limit = MAX_FILES as u64;
                return Err(ImportError::Content(UnpackError::TooManyEntries { limit }));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let size = entry.size();
                    if size > store.limits().blob {
                        let limit = store.limits().blob;
                        return Err(ImportError::Content(UnpackError::TooLarge { limit }));
                    }
                    let file = stage(store, &mut entry, size, &name, &fail)?;
                    staged.files.insert(name, file);
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let from = match entry.header().entry_type() {
                        tar::EntryType::Symlink => name.rsplit_once('/').map_or("", |(d, _)| d),
                        _ => "",
                    };
                    staged.links.insert(name.clone(), resolve(from, &target));
                }
                // Directories, and what an image has no use for.
                _ => {}
            }
            stream.begin_metadata();
        }
        Ok(staged)
    }

    fn find(&self, path: &str) -> Option<&StagedFile> {
        self.files.get(path).or_else(|| {
            let target = self.links.get(path)?;
            self.files.get(target)
        })
    }

    /// Digest and size of a file.
    pub(super) fn describe(&self, path: &str) -> Result<(Digest, u64), ImportError> {
        let file = self.find(path);
        let file = file.ok_or_else(|| ImportError::Missing(shortened(path)))?;
        Ok((file.digest, file.size))
    }

    /// The first bytes of a file.
    pub(super) fn head(&self, path: &str) -> Result<Vec<u8>, ImportError> {
        let mut head = Vec::new();
        if let Some(file) = self.open(path)? {
            file.take(4)
                .read_to_end(&mut head)
                .map_err(ImportError::Archive)?;
        }
        Ok(head)
    }

    /// Opens a file that is still staged.
    fn open(&self, path: &str) -> Result<Option<File>, ImportError> {
        let Some(file) = self.find(path) else {
            return Ok(None);
        };
        match &*file.temporary.borrow() {
            None => Ok(None),
            Some(temporary) => {
                let opened = File::open(temporary.path());
                Ok(Some(opened.map_err(StoreError::file(temporary.path()))?))
            }
        }
    }
}

impl Content for Staged {
    fn small(
        &self,
        path: &str,
        what: &'static str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(file) = self.find(path) else {
            return Ok(None);
        };
        if file.size > limit {
            let bytes = file.size;
            return Err(DocumentError::TooLarge { what, bytes, limit }.into());
        }
        match &*file.temporary.borrow() {
            None => Ok(None),
            Some(temporary) => {
                let bytes = fs::read(temporary.path());
                Ok(Some(bytes.map_err(StoreError::file(temporary.path()))?))
            }
        }
    }

    fn put(&self, store: &Store, path: &str, blob: &Descriptor) -> Result<(), ImportError> {
        if store.has_blob(blob) {
            return Ok(());
        }
        let file = self.find(path);
        let file = file.ok_or_else(|| ImportError::Missing(shortened(path)))?;
        if file.digest != blob.digest {
            return Err(ImportError::WrongDigest {
                path: shortened(path),
                expected: blob.digest,
                actual: file.digest,
            });
        }
        if file.size != blob.size {
            return Err(StoreError::WrongSize {
                what: shortened(path),
                expected: blob.size,
                actual: file.size,
            }
            .into());
        }
        let Some(temporary) = file.temporary.borrow_mut().take() else {
            return Err(ImportError::Missing(shortened(path)));
        };
        File::open(temporary.path())
            .and_then(|file| file.sync_all())
            .map_err(StoreError::file(temporary.path()))?;
        let place = store.blob_path(&blob.digest);
        temporary.keep(&place).map_err(StoreError::file(&place))?;
        Ok(sync_parent(&place)?)
    }
}

fn stage(
    store: &Store,
    content: &mut impl Read,
    size: u64,
    name: &str,
    fail: &impl Fn(io::Error) -> ImportError,
) -> Result<StagedFile, ImportError> {
    let temporary = store.temporary();
    let write = |error| ImportError::from(StoreError::file(temporary.path())(error));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary.path())
        .map_err(write)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 128 << 10)).unwrap_or(1)];
    loop {
        let read = content.read(&mut buffer).map_err(fail)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(write)?;
        hasher.update(&buffer[..read]);
    }
    if hasher.bytes() != size {
        return Err(ImportError::Content(UnpackError::Truncated {
            entry: shortened(name),
            missing: size.saturating_sub(hasher.bytes()),
        }));
    }
    Ok(StagedFile {
        digest: hasher.finish(),
        size,
        temporary: RefCell::new(Some(temporary)),
    })
}

/// Where a link leads within the archive; by names alone, as nothing of it is on disk under its name.
fn resolve(from: &str, target: &str) -> String {
    let mut path: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => from.split('/').filter(|part| !part.is_empty()).collect(),
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path.join("/")
}

fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(200).collect()
}
