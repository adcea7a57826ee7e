//! Removing images, and what no image needs any more.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use super::{Hold, Listed, Origin, REMOVE_PATIENCE, Store, StoreError, remove_all};
use crate::image::{Digest, ImageName};

/// What a removal took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub names: Vec<ImageName>,
    pub images: Vec<Digest>,
    /// Bytes of blobs; unpacked layers come on top.
    pub bytes: u64,
}

impl Store {
    /// Removes a name, and its image if that was its last name; or, by digest, an image with all its names.
    /// What is pinned or `in_use` (by digest) is refused.
    pub fn remove(&self, target: &str, in_use: &BTreeSet<Digest>) -> Result<Removed, StoreError> {
        let alone = self.alone(REMOVE_PATIENCE)?;
        let image = self.find(target)?;
        let listed = self.list()?;
        let names = listed
            .iter()
            .find(|listed| listed.image.digest == image.digest)
            .map(|listed| listed.names.clone())
            .unwrap_or_default();
        let by_name = ImageName::parse(target)
            .ok()
            .map(ImageName::with_default_tag)
            .filter(|name| names.contains(name));
        if let Some(name) = by_name.filter(|_| names.len() > 1) {
            self.unname(&name)?;
            return Ok(Removed {
                names: vec![name],
                ..Removed::default()
            });
        }
        let used = self.used(in_use)?;
        if used.contains(&image.digest) || used.contains(&image.manifest) {
            return Err(StoreError::InUse {
                image: target.to_owned(),
            });
        }
        let mut removed = Removed::default();
        self.forget(
            &Listed {
                image,
                names,
                last_used: std::time::UNIX_EPOCH,
            },
            &mut removed,
        )?;
        self.collect(&alone, &mut removed)?;
        Ok(removed)
    }

    /// Removes images that are neither pinned nor `in_use`, but for the `keep` that were used last, and everything that no
    /// image needs. An imported image with a name stays: there may be no other copy.
    pub fn prune(&self, in_use: &BTreeSet<Digest>, keep: usize) -> Result<Removed, StoreError> {
        let alone = self.alone(REMOVE_PATIENCE)?;
        let mut removed = Removed::default();
        let in_use = self.used(in_use)?;
        let used = |listed: &Listed| {
            in_use.contains(&listed.image.digest) || in_use.contains(&listed.image.manifest)
        };
        let precious =
            |listed: &Listed| listed.image.origin == Origin::Import && !listed.names.is_empty();
        let candidates = self.list()?;
        let candidates = candidates
            .iter()
            .filter(|listed| !used(listed) && !precious(listed));
        for listed in candidates.skip(keep) {
            self.forget(listed, &mut removed)?;
        }
        self.collect(&alone, &mut removed)?;
        Ok(removed)
    }

    /// Removes what no image needs, if nobody is adding anything: what an import that failed left behind.
    pub(in crate::image) fn collect_if_idle(&self) {
        let Ok(alone) = self.alone(Duration::ZERO) else {
            return;
        };
        if let Err(error) = self.collect(&alone, &mut Removed::default()) {
            tracing::warn!(%error, "what a failed import left behind stays for now");
        }
    }

    fn unname(&self, name: &ImageName) -> Result<(), StoreError> {
        let path = self.ref_path(name);
        fs::remove_file(&path).map_err(StoreError::file(&path))
    }

    /// Names first: a name must never stand for an image that is not there.
    fn forget(&self, listed: &Listed, removed: &mut Removed) -> Result<(), StoreError> {
        for name in &listed.names {
            self.unname(name)?;
            removed.names.push(name.clone());
        }
        let path = self.image_path(&listed.image.digest);
        fs::remove_file(&path).map_err(StoreError::file(&path))?;
        removed.images.push(listed.image.digest);
        Ok(())
    }

    /// Removes blobs and layers that no image refers to.
    fn collect(&self, _alone: &Hold, removed: &mut Removed) -> Result<(), StoreError> {
        let mut blobs = BTreeSet::new();
        let mut layers = BTreeSet::new();
        for Listed { image, .. } in self.list()? {
            blobs.extend([image.digest, image.manifest, image.config].map(|d| d.hex()));
            blobs.extend(image.layers.iter().map(|layer| layer.digest.hex()));
            layers.extend(image.layers.iter().map(|layer| layer.diff_id.hex()));
        }
        let unneeded = |directory: &Path, needed: &BTreeSet<String>| -> Result<_, StoreError> {
            let mut paths = Vec::new();
            for entry in fs::read_dir(directory).map_err(StoreError::file(directory))? {
                let entry = entry.map_err(StoreError::file(directory))?;
                let name = entry.file_name();
                // What is no digest is not of images: the empty layer.
                let is_digest = name
                    .to_str()
                    .is_some_and(|hex| Digest::from_hex(hex).is_ok());
                if is_digest && name.to_str().is_none_or(|name| !needed.contains(name)) {
                    paths.push(entry.path());
                }
            }
            Ok(paths)
        };
        for path in unneeded(&self.path("layers"), &layers)? {
            // Half a layer never has a layer's name.
            let temporary = self.temporary();
            fs::rename(&path, temporary.path()).map_err(StoreError::file(&path))?;
            drop(temporary);
        }
        for path in unneeded(&self.path("blobs/sha256"), &blobs)? {
            removed.bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            remove_all(&path);
        }
        Ok(())
    }
}
