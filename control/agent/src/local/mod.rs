//! The agent's own services and checks: for this node, the authority that the catalog follows.
//!
//! [`LocalState`] is a cheap handle. Everything that changes it comes through here:
//!
//! * [`LocalState::register_service`], [`LocalState::deregister_service`], [`LocalState::register_check`],
//!   [`LocalState::deregister_check`] for the API; they return when the change is on disk (unless the agent
//!   keeps everything in memory). [`LocalState::replace_config`] for the set that configuration files define.
//! * [`LocalState::report_ttl`] for what services report about themselves, [`LocalState::set_status`] for
//!   whoever else knows the state of an instance (leases).
//! * [`LocalState::start_service_maintenance`] and its three siblings.
//! * the runners of [`crate::checks`], which follow the registered checks and report their results.
//!
//! Readers get shared, immutable rows: [`LocalState::services`], [`LocalState::service`],
//! [`LocalState::checks`], [`LocalState::check`], [`LocalState::service_checks`]; and can wait for the next change of one
//! instance or its health with [`LocalState::watch`]. [`content_hash`] makes the hash of hash-based blocking.
//!
//! [`crate::anti_entropy`] writes every change to the catalog. [`LocalState::synced`] completes when it has
//! tried with all changes made so far: an API handler awaits it before it answers, so that what it
//! registered can be found.

mod configured;
mod convert;
mod inner;
mod maintenance;
mod output;
mod runners;
mod saving;
mod spec;
mod store;
mod syncing;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch as channel},
    time::Instant,
};
use wharf_registry::model::{CheckStatus, HealthCheck, Node, NodeService, Str};

pub(crate) use inner::Dirty;
use inner::{Context, Inner, Status};
pub use spec::{
    CheckKind, CheckSpec, CheckTls, HttpCheck, NODE_MAINTENANCE, Registration, SERF_HEALTH,
    SERVER_SERVICE, SidecarRequest, Source, Thresholds, serf_health, service_maintenance,
};
use store::Store;
pub use store::StoreError;
pub(crate) use store::replace_file;
pub(crate) use syncing::Rows;
use watch::LocalWatches;
pub use watch::{LocalKey, LocalWatch, content_hash};

use crate::authz::Token;

/// How the agent keeps its services and checks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where registrations are kept over restarts. `None`: in memory only.
    pub data_dir: Option<PathBuf>,
    /// Whether this agent is a server: then the service `consul` is its own.
    pub server: bool,
    /// The most output of a check that is kept, in bytes.
    pub check_output_max_size: usize,
    /// Keep only the status of checks.
    pub discard_check_output: bool,
    /// How long the catalog may show an outdated output.
    pub check_update_interval: Duration,
    /// Where sidecars listen that name no port.
    pub sidecar_ports: RangeInclusive<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            data_dir: None,
            server: false,
            check_output_max_size: 4096,
            discard_check_output: false,
            check_update_interval: Duration::from_secs(300),
            sidecar_ports: 21000..=21255,
        }
    }
}

impl Options {
    fn output_limit(&self, spec: &CheckSpec) -> usize {
        match spec.output_max_size {
            0 => self.check_output_max_size,
            own => own.min(self.check_output_max_size),
        }
    }
}

/// Why a change was refused. The texts are Consul's where clients know them.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(
        "Unknown service ID \"{0}\". Ensure that the service ID is passed, not the service name."
    )]
    UnknownService(Str),
    #[error("Unknown check ID \"{0}\". Ensure that the check ID is passed, not the check name.")]
    UnknownCheck(Str),
    /// The service that a check is to be registered for.
    #[error("ServiceID \"{0}\" does not exist")]
    NoSuchService(Str),
    #[error("CheckID \"{0}\" does not have associated TTL")]
    NotTtl(Str),
    #[error("the ID \"{0}\" is reserved for what the cluster says of its nodes")]
    Reserved(Str),
    #[error("no port is free for \"{id}\": all of {first}-{last} are taken by other services")]
    NoSidecarPort { id: Str, first: u16, last: u16 },
    /// The change was made, but a restart would undo it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The services and checks of this node. Clones are handles to the same state.
#[derive(Clone, Debug)]
pub struct LocalState {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    node: ArcSwap<Node>,
    inner: Mutex<Inner>,
    watches: LocalWatches,
    /// There is something to tell the catalog.
    dirty: Notify,
    /// There are checks whose runners are behind.
    restarted: Notify,
    /// The last revision that anti-entropy has tried to write.
    synced: channel::Sender<u64>,
    store: Option<Arc<Store>>,
    /// Held while files are written: they are written in the order of the changes.
    saving: Arc<tokio::sync::Mutex<()>>,
}

impl LocalState {
    /// The state of an agent that starts, empty. [`LocalState::restore`] and [`LocalState::replace_config`] come
    /// next, then anti-entropy: what is not there when it begins is taken out of the catalog.
    pub fn open(options: Options, node: Node) -> Result<LocalState, StoreError> {
        let store = match &options.data_dir {
            Some(directory) => Some(Arc::new(Store::open(directory)?)),
            None => None,
        };
        Ok(LocalState {
            shared: Arc::new(Shared {
                options,
                node: ArcSwap::from_pointee(node),
                inner: Mutex::default(),
                watches: LocalWatches::default(),
                dirty: Notify::new(),
                restarted: Notify::new(),
                synced: channel::Sender::new(0),
                store,
                saving: Arc::default(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in the middle of a change is a bug; half of a registration is still better than an agent
        // that answers nothing any more.
        self.shared
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the tables and wakes whoever has to follow.
    fn change<T>(&self, change: impl FnOnce(&mut Inner, &Context<'_>) -> T) -> T {
        let context = Context {
            node: self.shared.node.load().name.clone(),
            options: &self.shared.options,
            watches: &self.shared.watches,
            now: Instant::now(),
        };
        let mut inner = self.lock();
        let result = change(&mut inner, &context);
        let catalog = !inner.dirty.is_empty() || !inner.deferred.is_empty();
        let runners = !inner.restarted.is_empty();
        if self.shared.store.is_none() {
            inner.unsaved.clear();
        }
        drop(inner);
        if catalog {
            self.shared.dirty.notify_one();
        }
        if runners {
            self.shared.restarted.notify_one();
        }
        result
    }

    // === the node ===

    /// This node, as the catalog is to show it.
    pub fn node(&self) -> Arc<Node> {
        self.shared.node.load_full()
    }

    /// Changes what the catalog shows of this node, such as its metadata. The name stays as it is.
    pub fn set_node(&self, mut node: Node) {
        node.name = self.node().name.clone();
        self.shared.node.store(Arc::new(node));
        self.change(|inner, _| {
            inner.dirty.node = true;
            inner.revision += 1;
        });
    }

    // === services ===

    /// Registers an instance, or replaces the one with its id. Checks that were registered before keep
    /// their status.
    pub async fn register_service(&self, registration: Registration) -> Result<(), LocalError> {
        self.change(|inner, context| inner.register_service(registration, context).map(drop))?;
        Ok(self.save().await?)
    }

    /// Removes an instance, its checks and its sidecar.
    pub async fn deregister_service(&self, id: &str) -> Result<(), LocalError> {
        self.change(|inner, context| inner.deregister_service(&id.into(), context))?;
        Ok(self.save().await?)
    }

    /// All instances by id.
    pub fn services(&self) -> BTreeMap<Str, Arc<NodeService>> {
        let inner = self.lock();
        let all = inner.services.iter();
        all.map(|(id, entry)| (id.clone(), entry.service.clone()))
            .collect()
    }

    pub fn service(&self, id: &str) -> Option<Arc<NodeService>> {
        let inner = self.lock();
        inner.services.get(id).map(|entry| entry.service.clone())
    }

    /// The token that an instance was registered with.
    pub fn service_token(&self, id: &str) -> Option<Token> {
        self.lock().services.get(id)?.token.clone()
    }

    /// The instance that was registered as the sidecar of this one.
    pub fn sidecar_of(&self, id: &str) -> Option<Arc<NodeService>> {
        let inner = self.lock();
        let sidecar = inner.services.get(id)?.sidecar.as_ref()?;
        inner
            .services
            .get(sidecar)
            .map(|entry| entry.service.clone())
    }

    // === checks ===

    /// Registers a check, or replaces the one with its id.
    pub async fn register_check(&self, spec: CheckSpec) -> Result<(), LocalError> {
        self.change(|inner, context| inner.register_check(spec, Status::Stated, context))?;
        Ok(self.save().await?)
    }

    pub async fn deregister_check(&self, id: &str) -> Result<(), LocalError> {
        self.change(|inner, context| inner.deregister_check(&id.into(), context))?;
        Ok(self.save().await?)
    }

    /// What a service reports about itself to a TTL check.
    pub async fn report_ttl(
        &self,
        id: &str,
        status: CheckStatus,
        output: &str,
    ) -> Result<(), LocalError> {
        self.change(|inner, context| {
            inner.report_ttl(&id.into(), status, output, context, random_up_to)
        })?;
        Ok(self.save().await?)
    }

    /// The status of a check that nothing on this agent runs, such as that of a lease.
    pub fn set_status(
        &self,
        id: &str,
        status: CheckStatus,
        output: &str,
    ) -> Result<(), LocalError> {
        self.change(|inner, context| {
            if !inner.checks.contains_key(id) {
                return Err(LocalError::UnknownCheck(id.into()));
            }
            inner.report(&id.into(), None, status, output, context, random_up_to);
            Ok(())
        })
    }

    /// Turns all checks of an instance critical at once: whoever runs it knows that it is gone. What a check finds
    /// that was under way does not count; each begins anew.
    pub fn fail_service(&self, id: &str, why: &str) {
        self.change(|inner, context| inner.fail_service(&id.into(), why, context));
    }

    /// The ports of sidecars that name none.
    pub fn sidecar_ports(&self) -> RangeInclusive<u16> {
        self.shared.options.sidecar_ports.clone()
    }

    /// All checks by id.
    pub fn checks(&self) -> BTreeMap<Str, Arc<HealthCheck>> {
        let inner = self.lock();
        let all = inner.checks.iter();
        all.map(|(id, entry)| (id.clone(), entry.health.clone()))
            .collect()
    }

    pub fn check(&self, id: &str) -> Option<Arc<HealthCheck>> {
        let inner = self.lock();
        inner.checks.get(id).map(|entry| entry.health.clone())
    }

    /// How a check is defined.
    pub fn check_spec(&self, id: &str) -> Option<Arc<CheckSpec>> {
        let inner = self.lock();
        inner.checks.get(id).map(|entry| entry.spec.clone())
    }

    /// The checks of an instance, without those of the node; `None` if there is no such instance.
    pub fn service_checks(&self, id: &str) -> Option<Vec<Arc<HealthCheck>>> {
        let inner = self.lock();
        let entry = inner.services.get(id)?;
        let own = entry.checks.iter().filter_map(|id| inner.checks.get(id));
        Some(own.map(|check| check.health.clone()).collect())
    }

    /// The checks that speak for the whole node.
    pub fn node_checks(&self) -> Vec<Arc<HealthCheck>> {
        let inner = self.lock();
        let all = inner.checks.values();
        let own = all.filter(|check| check.spec.service_id.is_empty());
        own.map(|check| check.health.clone()).collect()
    }
}

/// A random part of a span: what happens on many nodes is not to happen at once.
pub(crate) fn random_up_to(span: Duration) -> Duration {
    span.mul_f64(rand::random::<f64>())
}
