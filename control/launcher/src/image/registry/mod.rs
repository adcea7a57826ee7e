//! Images from registries (OCI distribution specification 1.1).
//!
//! A registry is a stranger too: manifests are bounded before they are read, blobs must have the size and the
//! digest that the manifest says, and a redirect or a token server gets no credentials that are not its own.
//! Plain HTTP is spoken to the hosts that are listed, and to no other.

mod auth;
mod client;
mod http;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};

use super::{
    Digest, Image, ImageName, Origin, Store, StoreError,
    document::{Descriptor, Document, DocumentError, Manifest, Platform},
};
use client::Client;

/// Layers of one image that are fetched at once.
const MAX_PARALLEL: usize = 3;
/// How often a request that failed for a passing reason is made.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt; it doubles with each.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// How long a body may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Why an image does not come from a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "{0} has no registry in its name (HOST/NAME), and there is none of that name on this node: build or import it"
    )]
    NotHere(ImageName),
    #[error("cannot reach the registry at {host}: {source}")]
    Unreachable { host: String, source: io::Error },
    #[error(
        "TLS with the registry at {host} fails: {source}; plain HTTP is spoken to hosts in platform.images.insecure_registries"
    )]
    Tls { host: String, source: io::Error },
    #[error("the registry at {host} does not answer within {} s", patience.as_secs())]
    Silent { host: String, patience: Duration },
    #[error("the connection to the registry at {host} broke off: {source}")]
    Broken { host: String, source: hyper::Error },
    #[error("the registry at {host} has no {what}")]
    NotFound { host: String, what: String },
    #[error("the registry at {host} does not let us have {what}: {why}")]
    Denied {
        host: String,
        what: String,
        why: String,
    },
    #[error("the registry at {host} answers {status} for {what}{}", told(.text))]
    Status {
        host: String,
        what: String,
        status: u16,
        text: String,
    },
    #[error("the registry at {host} sends us to {to}, which we do not follow: {why}")]
    Redirect {
        host: String,
        to: String,
        why: &'static str,
    },
    #[error("the answer of the registry at {host} is longer than {limit} bytes")]
    TooLong { host: String, limit: u64 },
    #[error("{what} from the registry at {host} has the digest {actual}, not {expected}")]
    WrongDigest {
        host: String,
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{what} from the registry at {host}: {source}")]
    Document {
        host: String,
        what: String,
        source: DocumentError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("fetching was given up: {0}")]
    Stopped(String),
}

fn told(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. }
            | RegistryError::Silent { .. }
            | RegistryError::Broken { .. } => true,
            RegistryError::Status { status, .. } => {
                matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
            }
            // Cut off: fewer bytes than there should be.
            RegistryError::Store(StoreError::WrongSize {
                expected, actual, ..
            }) => actual < expected,
            _ => false,
        }
    }
}

/// How far a pull is, in bytes.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Bytes of all layers; 0 while that is not known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes that are here.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Fetches images into a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registries {
    store: Store,
    client: Arc<Client>,
    /// Blobs that are being fetched: who else wants one waits for it.
    fetching: Arc<Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>>,
}

impl Registries {
    /// `insecure`: `host` or `host:port` of registries that are spoken to over plain HTTP.
    pub fn new(store: Store, insecure: Vec<String>) -> Registries {
        Registries {
            store,
            client: Arc::new(Client::new(insecure)),
            fetching: Arc::default(),
        }
    }

    /// The digest that a name stands for now: asked of the registry for one with a host, of the store for one
    /// without. A digest in the name is the answer.
    pub async fn resolve(&self, name: &ImageName) -> Result<Digest, RegistryError> {
        if let Some(digest) = name.digest {
            return Ok(digest);
        }
        let name = name.clone().with_default_tag();
        let Some(host) = &name.host else {
            return self
                .lookup(&name)
                .await?
                .ok_or(RegistryError::NotHere(name));
        };
        let fetched = retried(|| self.client.manifest(host, &name)).await?;
        Ok(fetched.digest)
    }

    /// Makes an image complete in the store, and returns it. With a tag the registry is asked what it stands
    /// for now; with a digest an image that is here is not asked for again.
    pub async fn pull(
        &self,
        name: &ImageName,
        progress: &Arc<Progress>,
    ) -> Result<Image, RegistryError> {
        if let Some(image) = self.here(name).await? {
            return Ok(image);
        }
        let name = name.clone().with_default_tag();
        let Some(host) = name.host.clone() else {
            return Err(RegistryError::NotHere(name));
        };
        // Nothing that was fetched is removed before the image refers to it.
        let store = self.store.clone();
        let hold = blocking(move || store.hold()).await?;

        let top = retried(|| self.client.manifest(&host, &name)).await?;
        self.keep(top.descriptor(), top.bytes.clone()).await?;
        let manifest = match top.document {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let what = format!("the index of {name}");
                let in_index = |source| RegistryError::Document {
                    host: host.clone(),
                    what: what.clone(),
                    source,
                };
                let chosen = index.select(Platform::own()).map_err(in_index)?;
                let own = name.at(chosen.digest);
                let fetched = retried(|| self.client.manifest(&host, &own)).await?;
                self.keep(fetched.descriptor(), fetched.bytes.clone())
                    .await?;
                match fetched.document {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        let nested = "an index within an index".to_owned();
                        return Err(in_index(DocumentError::MediaType(nested)));
                    }
                }
            }
        };
        self.fetch_all(&host, &name, &manifest, progress).await?;

        let (store, digest) = (self.store.clone(), top.digest);
        let image = blocking(move || {
            let image = store.complete(digest, Origin::Registry)?;
            store.tag(&name, digest)?;
            drop(hold);
            Ok(image)
        });
        image.await
    }

    /// An image that need not be asked for.
    async fn here(&self, name: &ImageName) -> Result<Option<Image>, RegistryError> {
        if name.host.is_some() && name.digest.is_none() {
            return Ok(None);
        }
        match self.lookup(name).await? {
            None => Ok(None),
            Some(digest) => {
                let store = self.store.clone();
                blocking(move || store.image(&digest)).await.map(Some)
            }
        }
    }

    async fn lookup(&self, name: &ImageName) -> Result<Option<Digest>, RegistryError> {
        let (store, name) = (self.store.clone(), name.clone());
        blocking(move || store.lookup(&name)).await
    }

    /// Configuration first, as it may say that the image is for another platform; then layers, several at
    /// once.
    async fn fetch_all(
        &self,
        host: &str,
        name: &ImageName,
        manifest: &Manifest,
        progress: &Arc<Progress>,
    ) -> Result<(), RegistryError> {
        let layers = &manifest.layers;
        let total: u64 = layers.iter().map(|layer| layer.size).sum();
        progress.total.store(total, Ordering::Relaxed);
        self.fetch(host, name, &manifest.config, None).await?;
        let store = self.store.clone();
        let config = manifest.config.digest;
        let config = blocking(move || store.config(&config)).await?;
        let what = format!("the configuration of {name}");
        config
            .check(manifest, Platform::own())
            .map_err(|source| RegistryError::Document {
                host: host.to_owned(),
                what,
                source,
            })?;

        let parallel = Arc::new(Semaphore::new(MAX_PARALLEL));
        // Dropping the set ends what is still on its way.
        let mut fetches = JoinSet::new();
        for layer in layers.clone() {
            let (own, host, name) = (self.clone(), host.to_owned(), name.clone());
            let (parallel, progress) = (parallel.clone(), progress.clone());
            fetches.spawn(async move {
                let Ok(_permit) = parallel.acquire_owned().await else {
                    return Ok(());
                };
                own.fetch(&host, &name, &layer, Some(&progress)).await
            });
        }
        while let Some(fetched) = fetches.join_next().await {
            fetched.map_err(|error| RegistryError::Stopped(error.to_string()))??;
        }
        Ok(())
    }

    /// Fetches a blob, unless it is here; once, however many ask.
    async fn fetch(
        &self,
        host: &str,
        name: &ImageName,
        blob: &Descriptor,
        progress: Option<&Arc<Progress>>,
    ) -> Result<(), RegistryError> {
        let alone = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|_, weak| weak.strong_count() > 0);
            match fetching.get(&blob.digest).and_then(Weak::upgrade) {
                Some(alone) => alone,
                None => {
                    let alone = Arc::new(AsyncMutex::new(()));
                    fetching.insert(blob.digest, Arc::downgrade(&alone));
                    alone
                }
            }
        };
        let _alone = alone.lock().await;
        if self.store.has_blob(blob) {
            if let Some(progress) = progress {
                progress.done.fetch_add(blob.size, Ordering::Relaxed);
            }
            return Ok(());
        }
        retried(|| self.fetch_once(host, name, blob, progress)).await
    }

    async fn fetch_once(
        &self,
        host: &str,
        name: &ImageName,
        blob: &Descriptor,
        progress: Option<&Arc<Progress>>,
    ) -> Result<(), RegistryError> {
        let (store, described) = (self.store.clone(), blob.clone());
        let mut writer = blocking(move || store.write_blob(&described)).await?;
        let mut answer = self.client.blob(host, name, &blob.digest).await?;

        // The file is written by a thread that may wait for the disk; the socket waits with it.
        let (sender, mut receiver) = mpsc::channel::<Bytes>(16);
        let written = spawn_blocking(move || {
            while let Some(bytes) = receiver.blocking_recv() {
                writer.write(&bytes)?;
            }
            Ok(writer)
        });
        let mut counted = 0;
        let received = async {
            loop {
                let frame = tokio::time::timeout(SILENCE, answer.body.frame());
                let frame = frame.await.map_err(|_| RegistryError::Silent {
                    host: host.to_owned(),
                    patience: SILENCE,
                })?;
                let Some(frame) = frame else {
                    return Ok(());
                };
                let frame = frame.map_err(|source| RegistryError::Broken {
                    host: host.to_owned(),
                    source,
                })?;
                let Ok(bytes) = frame.into_data() else {
                    continue;
                };
                counted += bytes.len() as u64;
                if let Some(progress) = progress {
                    progress
                        .done
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                if sender.send(bytes).await.is_err() {
                    // The writer has refused; it says why.
                    return Ok(());
                }
            }
        };
        let received = received.await;
        drop(sender);
        let writer = written
            .await
            .map_err(|error| RegistryError::Stopped(error.to_string()))
            .and_then(|writer| writer.map_err(RegistryError::Store));
        let finished = match (received, writer) {
            (Ok(()), Ok(writer)) => blocking(move || writer.finish()).await,
            // Dropping the writer leaves nothing.
            (Err(error), Ok(_)) | (_, Err(error)) => Err(error),
        };
        if finished.is_err()
            && let Some(progress) = progress
        {
            progress.done.fetch_sub(counted, Ordering::Relaxed);
        }
        finished.map_err(|error| match error {
            RegistryError::Store(StoreError::WrongDigest {
                expected, actual, ..
            }) => RegistryError::WrongDigest {
                host: host.to_owned(),
                what: format!("a blob of {name}"),
                expected,
                actual,
            },
            error => error,
        })
    }

    async fn keep(&self, described: Descriptor, bytes: Bytes) -> Result<(), RegistryError> {
        let store = self.store.clone();
        blocking(move || store.put_blob(&described, bytes.as_ref())).await
    }
}

/// Work on the store, on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, RegistryError> {
    match spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(RegistryError::Stopped(error.to_string())),
    }
}

/// Attempts again what failed for a passing reason.
async fn retried<T, F: Future<Output = Result<T, RegistryError>>>(
    attempt: impl Fn() -> F,
) -> Result<T, RegistryError> {
    let mut delay = FIRST_DELAY;
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(error) if error.is_passing() => {
                tracing::debug!(%error, ?delay, "a request to a registry is made again");
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
            result => return result,
        }
    }
    attempt().await
}

#[cfg(test)]
mod tests;
