//! OCI image layouts (OCI image specification 1.1, image-layout.md).

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{Content, ImportError, Imported, Select};
use crate::image::{
    Digest, ImageName,
    document::{Descriptor, DocumentError, FULL_NAME, Index, Platform, REF_NAME},
    store::{Store, StoreError},
};

/// A layout in a directory.
pub(super) struct Directory<'a>(pub(super) &'a Path);

impl Directory<'_> {
    fn open(&self, path: &str) -> Result<Option<File>, ImportError> {
        let path = self.0.join(path);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.0.is_dir() => Ok(None),
            Err(source) => Err(ImportError::Read { path, source }),
        }
    }
}

impl Content for Directory<'_> {
    fn small(
        &self,
        path: &str,
        what: &'static str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| ImportError::Read {
                path: self.0.join(path),
                source,
            })?;
        if bytes.len() as u64 > limit {
            let bytes = bytes.len() as u64;
            return Err(DocumentError::TooLarge { what, bytes, limit }.into());
        }
        Ok(Some(bytes))
    }

    fn put(&self, store: &Store, path: &str, blob: &Descriptor) -> Result<(), ImportError> {
        if store.has_blob(blob) {
            return Ok(());
        }
        let file = self.open(path)?;
        let file = file.ok_or_else(|| ImportError::Missing(path.to_owned()))?;
        match store.put_blob(blob, file) {
            Err(StoreError::WrongDigest {
                expected, actual, ..
            }) => Err(ImportError::WrongDigest {
                path: self.0.join(path).display().to_string(),
                expected,
                actual,
            }),
            result => Ok(result?),
        }
    }
}

/// Takes over the images of a layout.
pub(super) fn import(
    store: &Store,
    content: &impl Content,
    index: &[u8],
    select: &Select,
) -> Result<Vec<Imported>, ImportError> {
    let index = Index::parse(index)?;
    let chosen = choose(&index, select)?;
    let mut imported: Vec<Imported> = Vec::new();
    for described in chosen {
        let names = match &select.name {
            Some(name) => vec![name.clone().with_default_tag()],
            None => full_name(described).into_iter().collect(),
        };
        let one = store.adopt(content, described, names)?;
        // One image under two tags is listed twice in an index.
        match imported
            .iter_mut()
            .find(|earlier| earlier.image.digest == one.image.digest)
        {
            Some(earlier) => earlier.names.extend(one.names),
            None => imported.push(one),
        }
    }
    Ok(imported)
}

fn choose<'i>(index: &'i Index, select: &Select) -> Result<Vec<&'i Descriptor>, ImportError> {
    let all: Vec<&Descriptor> = index.manifests.iter().collect();
    if all.is_empty() {
        return Err(ImportError::NoImage);
    }
    let there = || all.iter().filter_map(|d| label(d)).map(str::to_owned);
    let chosen = match &select.tag {
        Some(tag) => {
            let chosen: Vec<_> = all.iter().copied().filter(|d| has_tag(d, tag)).collect();
            if chosen.is_empty() {
                return Err(ImportError::NoTag {
                    tag: tag.clone(),
                    there: there().collect(),
                });
            }
            chosen
        }
        None => all.clone(),
    };
    let same = |d: &&Descriptor| label(d) == label(chosen[0]);
    if chosen.len() > 1 && chosen.iter().all(same) {
        // One image for several platforms, written flat.
        let flat = Index {
            manifests: chosen.iter().map(|d| (*d).clone()).collect(),
            ..index.clone()
        };
        let digest = flat.select(Platform::own())?.digest;
        return Ok(chosen
            .into_iter()
            .filter(|d| d.digest == digest)
            .take(1)
            .collect());
    }
    if chosen.len() > 1 && select.name.is_some() {
        return Err(ImportError::Several {
            there: there().collect(),
        });
    }
    Ok(chosen)
}

fn label(described: &Descriptor) -> Option<&str> {
    described
        .annotation(FULL_NAME)
        .or_else(|| described.annotation(REF_NAME))
}

fn has_tag(described: &Descriptor, tag: &str) -> bool {
    [REF_NAME, FULL_NAME]
        .into_iter()
        .filter_map(|key| described.annotation(key))
        .any(|own| own == tag || own.rsplit_once(':').is_some_and(|(_, own)| own == tag))
}

/// The whole name that an index gives to an image. Some write only a tag there, which is none.
fn full_name(described: &Descriptor) -> Option<ImageName> {
    let label = label(described).filter(|label| label.contains(['/', ':']))?;
    ImageName::parse(label)
        .ok()
        .map(ImageName::with_default_tag)
}

/// Writes a layout in a directory as an archive: what an agent elsewhere imports.
pub fn pack_layout(directory: &Path, out: impl io::Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(true);
    for name in ["oci-layout", "index.json"] {
        let path = directory.join(name);
        archive
            .append_path_with_name(&path, name)
            .map_err(|error| of_path(&path, error))?;
    }
    let blobs = directory.join("blobs/sha256");
    let entries = std::fs::read_dir(&blobs).map_err(|error| of_path(&blobs, error))?;
    for entry in entries {
        let path = entry?.path();
        let Some(hex) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if Digest::from_hex(hex).is_ok() {
            archive
                .append_path_with_name(&path, format!("blobs/sha256/{hex}"))
                .map_err(|error| of_path(&path, error))?;
        }
    }
    archive.finish()
}

/// An error that says where, of the kind it was.
fn of_path(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
