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

mod convert;
mod inner;
mod output;
mod spec;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hasher},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::{
    sync::{Notify, watch as channel},
    time::Instant,
};
use wharf_registry::model::{CheckStatus, HealthCheck, Node, NodeService, Str};

pub(crate) use inner::Dirty;
use inner::{Context, EarlierReport, Inner, Status};
pub use spec::{
    CheckKind, CheckSpec, CheckTls, HttpCheck, NODE_MAINTENANCE, Registration, SERF_HEALTH,
    SERVER_SERVICE, SidecarRequest, Source, Thresholds, service_maintenance,
};
pub use store::StoreError;
use store::{FileKey, SavedService, SavedState, Store};
pub use watch::LocalKey;
use watch::LocalWatches;

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

    /// Replaces everything that configuration files have defined by `services` and `checks`. What is defined
    /// again keeps the status of its checks; what is not is deregistered. Call it once at the start even if there
    /// are none: it settles what was kept from before. All that can be done is done; the
    /// rest is returned, by id.
    pub async fn replace_config(
        &self,
        services: Vec<Registration>,
        checks: Vec<CheckSpec>,
    ) -> Vec<(Str, LocalError)> {
        let mut problems =
            self.change(|inner, context| replace_config(inner, services, checks, context));
        if let Err(error) = self.save().await {
            problems.push((Str::default(), error.into()));
        }
        problems
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

    // === maintenance ===

    /// Takes an instance out of service. An empty reason stands for a default one; an instance that is out
    /// of service already keeps its reason.
    pub async fn start_service_maintenance(
        &self,
        id: &str,
        reason: &str,
        token: Option<Token>,
    ) -> Result<(), LocalError> {
        let check = CheckSpec {
            id: service_maintenance(id),
            name: "Service Maintenance Mode".into(),
            service_id: id.into(),
            ..maintenance("service", reason, token)
        };
        self.start_maintenance(check)
            .await
            .map_err(|error| match error {
                LocalError::NoSuchService(id) => LocalError::UnknownService(id),
                other => other,
            })
    }

    pub async fn end_service_maintenance(&self, id: &str) -> Result<(), LocalError> {
        if self.service(id).is_none() {
            return Err(LocalError::UnknownService(id.into()));
        }
        self.end_maintenance(&service_maintenance(id)).await
    }

    /// Takes the whole node out of service.
    pub async fn start_node_maintenance(
        &self,
        reason: &str,
        token: Option<Token>,
    ) -> Result<(), LocalError> {
        let check = CheckSpec {
            id: NODE_MAINTENANCE.into(),
            name: "Node Maintenance Mode".into(),
            ..maintenance("node", reason, token)
        };
        self.start_maintenance(check).await
    }

    pub async fn end_node_maintenance(&self) -> Result<(), LocalError> {
        self.end_maintenance(NODE_MAINTENANCE).await
    }

    async fn start_maintenance(&self, check: CheckSpec) -> Result<(), LocalError> {
        self.change(|inner, context| match inner.checks.get(&check.id) {
            Some(_) => Ok(()),
            None => inner.register_check(check, Status::Stated, context),
        })?;
        Ok(self.save().await?)
    }

    async fn end_maintenance(&self, check: &str) -> Result<(), LocalError> {
        self.change(|inner, context| match inner.checks.get(check) {
            Some(_) => inner.deregister_check(&check.into(), context),
            None => Ok(()),
        })?;
        Ok(self.save().await?)
    }

    // === waiting ===

    /// Starts to watch an instance or its health. To miss nothing, watch first and read after.
    pub fn watch(&self, key: LocalKey) -> LocalWatch {
        let cell = self.shared.watches.subscribe(&key);
        LocalWatch {
            local: self.clone(),
            key,
            cell,
        }
    }

    /// Completes when anti-entropy has tried to write to the catalog what was changed before this call, or
    /// after `at_most`. Says which of the two; whether the attempt succeeded is not told: it is repeated
    /// until it does.
    pub async fn synced(&self, at_most: Duration) -> bool {
        let wanted = self.lock().revision;
        let mut synced = self.shared.synced.subscribe();
        let attempt = synced.wait_for(|&done| done >= wanted);
        tokio::time::timeout(at_most, attempt).await.is_ok()
    }

    // === disk ===

    /// Brings the files up to date.
    pub async fn save(&self) -> Result<(), StoreError> {
        let Some(store) = self.shared.store.clone() else {
            return Ok(());
        };
        let turn = self.shared.saving.clone().lock_owned().await;
        let batch = self.take_unsaved();
        if batch.is_empty() {
            return Ok(());
        }
        let local = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            // The turn ends with the write, even if nobody waits for it any more.
            let _turn = turn;
            let failed = store.write(batch);
            let mut first = None;
            for (key, error) in failed {
                local.lock().unsaved.insert(key);
                first.get_or_insert(error);
            }
            first.map_or(Ok(()), Err)
        });
        written.await.unwrap_or_else(|failure| {
            Err(StoreError {
                action: "write",
                path: self.shared.options.data_dir.clone().unwrap_or_default(),
                source: std::io::Error::other(failure),
            })
        })
    }

    /// The files that are behind, with what they are to hold.
    fn take_unsaved(&self) -> Vec<(FileKey, Option<Vec<u8>>)> {
        let now = Instant::now();
        let mut inner = self.lock();
        let unsaved = std::mem::take(&mut inner.unsaved);
        let content = |key: &FileKey| match key {
            FileKey::Service(id) => {
                let entry = inner.services.get(id)?;
                let saved = SavedService {
                    service: NodeService::clone(&entry.service),
                    token: entry.token.as_ref().map_or("", Token::secret).to_owned(),
                    registered_tags: entry.registered_tags.clone(),
                    sidecar_of: entry.sidecar_of.clone(),
                };
                (entry.source == Source::Api).then(|| store::encode(&saved))
            }
            FileKey::Check(id) => {
                let entry = inner.checks.get(id)?;
                (entry.spec.source == Source::Api).then(|| store::encode(&*entry.spec))
            }
            FileKey::State(id) => {
                let entry = inner.checks.get(id)?;
                let left = entry.ttl_deadline?.saturating_duration_since(now);
                Some(store::encode(&SavedState {
                    id: id.clone(),
                    status: entry.health.status,
                    output: entry.health.output.clone(),
                    expires: unix_millis().saturating_add(left.as_millis() as u64),
                }))
            }
        };
        let batch = unsaved.into_iter().map(|key| {
            let content = content(&key);
            (key, content)
        });
        batch.collect()
    }

    /// Takes over what the files of an earlier run say. Called once, before anything is registered. A file that
    /// cannot be read is named in the log.
    pub fn restore(&self) {
        let Some(store) = &self.shared.store else {
            return;
        };
        let saved = store.load();
        let unix_now = unix_millis();
        self.change(|inner, context| {
            for state in saved.states {
                let left = Duration::from_millis(state.expires.saturating_sub(unix_now));
                match context.now.checked_add(left) {
                    Some(deadline) if !left.is_zero() => {
                        let report = EarlierReport {
                            status: state.status,
                            output: state.output,
                            deadline,
                        };
                        inner.earlier_reports.insert(state.id, report);
                    }
                    _ => {
                        inner.unsaved.insert(FileKey::State(state.id));
                    }
                }
            }
            for saved in saved.services {
                inner.restore_service(saved, context);
            }
            inner.link_sidecars();
            for check in saved.checks {
                inner.restore_check(check, context);
            }
        });
    }

    // === for the runners and anti-entropy ===

    /// Completes when there are checks whose runners are behind; returns their ids.
    pub(crate) async fn restarted_checks(&self) -> BTreeSet<Str> {
        loop {
            let restarted = std::mem::take(&mut self.lock().restarted);
            if !restarted.is_empty() {
                return restarted;
            }
            self.shared.restarted.notified().await;
        }
    }

    /// A check as its runner needs it.
    pub(crate) fn runnable(&self, id: &str) -> Option<(Arc<CheckSpec>, u64)> {
        let inner = self.lock();
        let entry = inner.checks.get(id)?;
        Some((entry.spec.clone(), entry.generation))
    }

    /// The result of a run of a check. Dropped when the check is gone or was replaced meanwhile.
    pub(crate) fn report(&self, id: &Str, generation: u64, status: CheckStatus, output: &str) {
        self.change(|inner, context| {
            inner.report(id, Some(generation), status, output, context, random_up_to);
        });
    }

    /// Turns a TTL check critical if its time is over; else says when that will be. `None` also when it is
    /// gone or was replaced.
    pub(crate) fn expire_ttl(&self, id: &Str, generation: u64) -> Option<Instant> {
        self.change(|inner, context| inner.expire_ttl(id, generation, context))
    }

    /// How many bytes of a check's output are kept.
    pub(crate) fn output_limit(&self, spec: &CheckSpec) -> usize {
        self.shared.options.output_limit(spec)
    }

    /// The instances that have been critical for longer than one of their checks allows, with that check.
    pub(crate) fn overdue(&self) -> Vec<(Str, Str)> {
        let now = Instant::now();
        let inner = self.lock();
        let overdue = inner.checks.iter().filter(|(_, check)| {
            let after = check.spec.deregister_after;
            !after.is_zero()
                && !check.spec.service_id.is_empty()
                && check
                    .critical_since
                    .is_some_and(|since| now.saturating_duration_since(since) > after)
        });
        overdue
            .map(|(id, check)| (check.spec.service_id.clone(), id.clone()))
            .collect()
    }

    /// Completes when there is something to tell the catalog, now or later. May complete without.
    pub(crate) async fn dirtied(&self) {
        self.shared.dirty.notified().await;
    }

    /// When the next deferred output is due.
    pub(crate) fn next_deferred(&self) -> Option<Instant> {
        self.lock().next_deferred()
    }

    /// What the catalog is to be told now, and the revision that this reaches.
    pub(crate) fn take_dirty(&self) -> (Dirty, u64) {
        let mut inner = self.lock();
        let dirty = inner.take_dirty(Instant::now());
        (dirty, inner.revision)
    }

    /// Everything up to this revision was tried.
    pub(crate) fn mark_synced(&self, revision: u64) {
        self.shared.synced.send_if_modified(|synced| {
            let moved = *synced < revision;
            *synced = revision.max(*synced);
            moved
        });
    }

    /// The rows that anti-entropy compares with the catalog: all, or those that `only` names, with the
    /// instances that its checks belong to.
    pub(crate) fn rows(&self, only: Option<&Dirty>) -> Rows {
        let inner = self.lock();
        let mut rows = Rows::default();
        let Some(only) = only else {
            let services = inner.services.iter();
            rows.services = services
                .map(|(id, entry)| (id.clone(), entry.service.clone()))
                .collect();
            let checks = inner.checks.iter();
            rows.checks = checks
                .map(|(id, entry)| (id.clone(), entry.health.clone()))
                .collect();
            rows.deferred = inner.deferred.keys().cloned().collect();
            return rows;
        };
        let mut services: BTreeSet<&Str> = only.services.iter().collect();
        for id in &only.checks {
            if let Some(entry) = inner.checks.get(id) {
                services.insert(&entry.spec.service_id);
                rows.checks.insert(id.clone(), entry.health.clone());
                if inner.deferred.contains_key(id) {
                    rows.deferred.insert(id.clone());
                }
            }
        }
        for id in services {
            if let Some(entry) = inner.services.get(id) {
                rows.services.insert(id.clone(), entry.service.clone());
            }
        }
        rows
    }

    /// The catalog's tags take the place of ours, if those are still the ones that were compared.
    pub(crate) fn adopt_tags(&self, id: &Str, ours: &Arc<[Str]>, theirs: &Arc<[Str]>) {
        self.change(|inner, context| inner.adopt_tags(id, ours, theirs, context.watches));
    }
}

/// Rows as anti-entropy compares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) services: BTreeMap<Str, Arc<NodeService>>,
    pub(crate) checks: BTreeMap<Str, Arc<HealthCheck>>,
    /// Checks of which the catalog may show an older output for now.
    pub(crate) deferred: BTreeSet<Str>,
}

fn maintenance(what: &str, reason: &str, token: Option<Token>) -> CheckSpec {
    let notes = match reason {
        "" => format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."
        ),
        reason => reason.to_owned(),
    };
    CheckSpec {
        notes: notes.into(),
        kind: CheckKind::Maintenance,
        token,
        ..CheckSpec::default()
    }
}

fn replace_config(
    inner: &mut Inner,
    services: Vec<Registration>,
    checks: Vec<CheckSpec>,
    context: &Context<'_>,
) -> Vec<(Str, LocalError)> {
    let mut wanted_services: HashSet<Str> = HashSet::new();
    let mut wanted_checks: HashSet<Str> = checks.iter().map(|check| check.id.clone()).collect();
    for registration in &services {
        wanted_services.insert(registration.service.id.clone());
        wanted_services.extend(
            registration
                .sidecar
                .iter()
                .map(|sidecar| sidecar.id.clone()),
        );
        // Also of one that is going to be refused.
        wanted_checks.extend(registration.checks.iter().map(|check| check.id.clone()));
    }
    let gone: Vec<Str> = inner
        .services
        .iter()
        .filter(|(id, entry)| entry.source == Source::Config && !wanted_services.contains(*id))
        .map(|(id, _)| id.clone())
        .collect();
    for id in gone {
        // A sidecar goes with its parent, and may be gone already.
        let _ = inner.deregister_service(&id, context);
    }
    let mut problems = Vec::new();
    for mut registration in services {
        let id = registration.service.id.clone();
        registration.source = Source::Config;
        match inner.register_service(registration, context) {
            Ok(checks) => wanted_checks.extend(checks),
            Err(error) => problems.push((id, error)),
        }
    }
    inner.drop_orphans();
    for mut check in checks {
        let id = check.id.clone();
        check.source = Source::Config;
        if let Err(error) = inner.register_check(check, Status::Kept, context) {
            problems.push((id, error));
        }
    }
    let gone: Vec<Str> = inner
        .checks
        .iter()
        .filter(|(id, entry)| entry.spec.source == Source::Config && !wanted_checks.contains(*id))
        .map(|(id, _)| id.clone())
        .collect();
    for id in gone {
        let _ = inner.deregister_check(&id, context);
    }
    problems
}

/// An interest in one instance or its health.
#[derive(Debug)]
pub struct LocalWatch {
    local: LocalState,
    key: LocalKey,
    cell: channel::Receiver<()>,
}

impl LocalWatch {
    /// Completes when there was a change since the watch began, or since the last completion. Cancel safe.
    pub async fn changed(&mut self) {
        if self.cell.changed().await.is_err() {
            // The cell lives as long as its watchers; should it not, there is nothing to wait for.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.local.shared.watches.release(&self.key);
    }
}

/// A hash of what an answer says, for `?hash=` blocking. The same within one run of the agent.
pub fn content_hash(content: &impl Serialize) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(&serde_json::to_vec(content).unwrap_or_default());
    format!("{:016x}", hasher.finish())
}

/// A random part of a span: what happens on many nodes is not to happen at once.
pub(crate) fn random_up_to(span: Duration) -> Duration {
    span.mul_f64(rand::random::<f64>())
}

fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
