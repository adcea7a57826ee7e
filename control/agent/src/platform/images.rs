//! The images of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
    sync::Arc,
    time::UNIX_EPOCH,
};

use serde::Serialize;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
};
use wharf_launcher::image::{
    Digest, ImageName, ImportError, Listed, Reference, ReferenceError, Registries, RegistryError,
    Removed, Select, Store, StoreError, document::RunConfig,
};

/// Imports and pulls that are under way at once.
const MAX_ADDING: usize = 4;

/// The store of this node and the registries it fetches from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    opened: Result<Opened, String>,
    adding: Semaphore,
}

#[derive(Debug)]
struct Opened {
    store: Store,
    registries: Registries,
}

/// Why something with images does not work.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("this agent keeps no images: {0}")]
    Closed(String),
    #[error("{MAX_ADDING} images are being added already; try again")]
    Busy,
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(
        "{files} is now {there}; the job was registered with {wanted}: register it again, or bring that image back with `wharf image import`"
    )]
    Changed {
        files: String,
        wanted: Digest,
        there: Digest,
    },
    #[error("the work ended early: {0}")]
    Stopped(String),
}

/// An image as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Shown {
    /// What a job pins.
    pub digest: Digest,
    /// The manifest for this platform; another than `digest` if that is of an index.
    pub manifest: Digest,
    pub names: Vec<String>,
    /// Bytes of its layers, as transferred.
    pub size: u64,
    pub layers: Vec<Digest>,
    pub origin: wharf_launcher::image::Origin,
    /// Nanoseconds since 1970.
    pub added: u64,
    pub last_used: u64,
    /// Who runs it: IDs of allocations.
    pub used_by: Vec<String>,
    /// How it starts; only of one that was asked for by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<RunConfig>,
}

impl Images {
    /// Opens the store in a directory. Where that fails, everything here says why; the agent goes on.
    pub fn open(directory: &Path, insecure_registries: Vec<String>) -> Images {
        let opened = Store::open(directory).map(|store| Opened {
            registries: Registries::new(store.clone(), insecure_registries),
            store,
        });
        Images::of(opened.map_err(|error| {
            tracing::warn!(%error, "this agent keeps no images");
            error.to_string()
        }))
    }

    /// Images of an agent that has no place for them.
    pub fn closed(why: &str) -> Images {
        Images::of(Err(why.to_owned()))
    }

    fn of(opened: Result<Opened, String>) -> Images {
        let adding = Semaphore::new(MAX_ADDING);
        Images {
            inner: Arc::new(Inner { opened, adding }),
        }
    }

    fn opened(&self) -> Result<&Opened, ImagesError> {
        let opened = self.inner.opened.as_ref();
        opened.map_err(|why| ImagesError::Closed(why.clone()))
    }

    /// The store, for who runs its images.
    pub fn store(&self) -> Result<&Store, ImagesError> {
        Ok(&self.opened()?.store)
    }

    fn begin(&self) -> Result<SemaphorePermit<'_>, ImagesError> {
        self.inner
            .adding
            .try_acquire()
            .map_err(|_| ImagesError::Busy)
    }

    /// The digest that a name stands for now ([`Registries::resolve`]).
    pub async fn resolve(&self, name: &ImageName) -> Result<Digest, ImagesError> {
        Ok(self.opened()?.registries.resolve(name).await?)
    }

    /// Takes over an image from files of this machine ([`Store::import_reference`]), and says which it is.
    pub async fn import_files(&self, reference: Reference) -> Result<Digest, ImagesError> {
        let store = self.store()?.clone();
        let _adding = self.begin()?;
        self.blocking(move || {
            let imported = store.import_reference(&reference, None)?;
            match &imported[..] {
                [one] => Ok(one.image.digest),
                [] => Err(ImportError::NoImage.into()),
                many => {
                    let names = many.iter().flat_map(|one| &one.names);
                    let there = names.map(ToString::to_string).collect();
                    Err(ImportError::Several { there }.into())
                }
            }
        })
        .await
    }

    /// Has an image here that was chosen when its job was registered, wherever it was then.
    pub async fn have(&self, reference: &Reference, digest: Digest) -> Result<(), ImagesError> {
        let store = self.store()?.clone();
        if self
            .blocking(move || Ok(store.image(&digest).is_ok()))
            .await?
        {
            return Ok(());
        }
        match reference {
            Reference::Named(name) => self.pull(&name.at(digest)).await.map(drop),
            files => {
                let there = self.import_files(files.clone()).await?;
                match there == digest {
                    true => Ok(()),
                    false => Err(ImagesError::Changed {
                        files: files.to_string(),
                        wanted: digest,
                        there,
                    }),
                }
            }
        }
    }

    /// Makes an image complete on this node ([`Registries::pull`]).
    pub async fn pull(&self, name: &ImageName) -> Result<Shown, ImagesError> {
        let opened = self.opened()?;
        let _adding = self.begin()?;
        let image = opened.registries.pull(name, &Arc::default()).await?;
        self.inspect(image.digest.to_string()).await
    }

    /// Imports an archive as it comes.
    pub async fn import(
        &self,
        archive: impl Read + Send + 'static,
        name: Option<ImageName>,
    ) -> Result<Vec<Shown>, ImagesError> {
        let store = self.store()?.clone();
        let _adding = self.begin()?;
        self.blocking(move || {
            let select = Select { tag: None, name };
            let imported = store.import(archive, &select)?;
            let digests: BTreeSet<Digest> = imported.iter().map(|one| one.image.digest).collect();
            let mut shown = list(&store)?;
            shown.retain(|one| digests.contains(&one.digest));
            Ok(shown)
        })
        .await
    }

    /// All images, the one used last first.
    pub async fn list(&self) -> Result<Vec<Shown>, ImagesError> {
        let store = self.store()?.clone();
        self.blocking(move || list(&store)).await
    }

    /// One image, by name, digest or the beginning of its digest.
    pub async fn inspect(&self, target: String) -> Result<Shown, ImagesError> {
        let store = self.store()?.clone();
        self.blocking(move || {
            let image = store.find(&target)?;
            let config = store.config(&image.config)?.config;
            let shown = list(&store)?
                .into_iter()
                .find(|shown| shown.digest == image.digest);
            // Removed at this moment.
            let mut shown = shown.ok_or(StoreError::NoImage(target))?;
            shown.config = Some(config);
            Ok(shown)
        })
        .await
    }

    /// Removes a name or an image ([`Store::remove`]).
    pub async fn remove(&self, target: String) -> Result<Removed, ImagesError> {
        let store = self.store()?.clone();
        self.blocking(move || Ok(store.remove(&target, &BTreeSet::new())?))
            .await
    }

    /// Removes what is not in use, but for the last `keep` ([`Store::prune`]).
    pub async fn prune(&self, keep: usize) -> Result<Removed, ImagesError> {
        let store = self.store()?.clone();
        self.blocking(move || Ok(store.prune(&BTreeSet::new(), keep)?))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ImagesError> + Send + 'static,
    ) -> Result<T, ImagesError> {
        match spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(ImagesError::Stopped(error.to_string())),
        }
    }
}

fn list(store: &Store) -> Result<Vec<Shown>, ImagesError> {
    let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for (user, digest) in store.pins()? {
        users.entry(digest).or_default().push(user);
    }
    let shown = |listed: Listed| {
        let size = listed.image.size();
        let image = listed.image;
        let last_used = listed.last_used.duration_since(UNIX_EPOCH);
        Shown {
            digest: image.digest,
            manifest: image.manifest,
            names: listed.names.iter().map(ToString::to_string).collect(),
            size,
            layers: image.layers.iter().map(|layer| layer.digest).collect(),
            origin: image.origin,
            added: image.added.saturating_mul(1_000_000_000),
            last_used: u64::try_from(last_used.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX),
            used_by: users.get(&image.digest).cloned().unwrap_or_default(),
            config: None,
        }
    };
    Ok(store.list()?.into_iter().map(shown).collect())
}
