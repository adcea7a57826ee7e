//! From an image in the store to directories that a container's root is stacked from.

use std::{
    fs::{self, DirBuilder},
    io,
    num::NonZero,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    Digest,
    document::RunConfig,
    store::{Image, Layer, Store, StoreError, sync_parent},
    unpack::{self, Ownership, UnpackError},
};

/// The most layers of one image that are unpacked at once: it is the disk that ends to be fast.
const MAX_PARALLEL: usize = 4;

/// An image ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The digest that the image was asked for by.
    pub digest: Digest,
    /// How it starts.
    pub config: RunConfig,
    /// Directories for overlayfs, the top one first. Never fewer than two, as overlayfs takes no single one
    /// without an upper directory: the last is empty then.
    pub layers: Vec<PathBuf>,
}

impl Store {
    /// Unpacks the layers of an image, those that are not yet. An image asked for twice at once is unpacked
    /// once. Blocks; for a thread where that is allowed.
    ///
    /// Who runs the image pins it first ([`Store::pin`]): nothing else keeps it from being removed.
    pub fn prepare(&self, digest: &Digest) -> Result<Prepared, StoreError> {
        let _hold = self.hold()?;
        let image = self.image(digest)?;
        let config = self.config(&image.config)?;
        self.unpack_all(&image)?;
        let mut layers: Vec<PathBuf> = image
            .layers
            .iter()
            .rev()
            .map(|layer| self.layer_path(&layer.diff_id))
            .collect();
        if layers.len() == 1 {
            layers.push(self.empty_layer()?);
        }
        self.touch(digest);
        Ok(Prepared {
            digest: *digest,
            config: config.config,
            layers,
        })
    }

    fn unpack_all(&self, image: &Image) -> Result<(), StoreError> {
        let missing: Vec<(usize, &Layer)> = image
            .layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| !self.layer_path(&layer.diff_id).is_dir())
            .collect();
        let unpack = |&(index, layer): &(usize, &Layer)| {
            self.unpacking()
                .alone(layer.diff_id, || self.unpack_one(image, index, layer))
        };
        if let [only] = missing.as_slice() {
            return unpack(only);
        }
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = threads.min(MAX_PARALLEL).min(missing.len());
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = unpack(layer) {
                    // The others need not begin another.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    fn unpack_one(&self, image: &Image, index: usize, layer: &Layer) -> Result<(), StoreError> {
        let place = self.layer_path(&layer.diff_id);
        if place.is_dir() {
            // Another thread was faster.
            return Ok(());
        }
        let failed = |source| StoreError::Unpack {
            image: image.digest,
            index,
            digest: layer.digest,
            source: Box::new(source),
        };
        let blob = self.open_blob(&layer.digest)?;
        let temporary = self.temporary();
        let directory = temporary.path();
        DirBuilder::new()
            .mode(0o755)
            .create(directory)
            .map_err(StoreError::file(directory))?;
        // What the layer's root is when the layer does not say, whatever the umask.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::file(directory))?;
        let unpacked = unpack::unpack(blob, directory, self.limits(), Ownership::possible())
            .map_err(failed)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(failed(UnpackError::WrongDiffId {
                expected: layer.diff_id,
                actual: unpacked.diff_id,
            }));
        }
        unpack::sync(directory).map_err(StoreError::file(directory))?;
        tracing::debug!(
            layer = %layer.digest,
            entries = unpacked.entries,
            bytes = unpacked.bytes,
            "layer unpacked"
        );
        match temporary.keep(&place) {
            // Another process was faster.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            result => {
                result.map_err(StoreError::file(&place))?;
                sync_parent(&place)
            }
        }
    }

    fn empty_layer(&self) -> Result<PathBuf, StoreError> {
        let path = self.path("layers/empty");
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::file(&path)(error))
            }
            _ => Ok(path),
        }
    }
}
