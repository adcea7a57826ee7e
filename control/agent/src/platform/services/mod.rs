//! The services of this node's allocations, in the agent's local state and so in the catalog.
//!
//! What an allocation has registered is kept beside it, in `<allocs>/<id>/services.json`, not with the registrations
//! of the API: it ends with the allocation. A restarted agent [adopts](NodeServices::adopt) it before anti-entropy
//! begins, with the status that the catalog shows, so that nobody sees a change.

mod derive;
mod keep;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use wharf_launcher::services::{AllocServices, BoxFuture, Services, ServicesError, Sidecar};
use wharf_registry::{
    model::{CheckStatus, Str},
    watch::WatchKey,
};

use self::{
    derive::{Derived, Place, derive},
    keep::{Kept, Record},
};
use crate::{
    cluster::{Cluster, Consistency},
    local::{LocalState, Registration, Source},
};

/// How long a call waits for the catalog.
const CATALOG_WITHIN: Duration = Duration::from_secs(5);

/// The services of the allocations of this node.
#[derive(Debug)]
pub struct NodeServices {
    local: LocalState,
    cluster: Arc<dyn Cluster>,
    kept: Kept,
    allocs: Mutex<BTreeMap<Str, Record>>,
}

impl NodeServices {
    /// `allocs` is the directory that has one for each allocation.
    pub fn new(local: LocalState, cluster: Arc<dyn Cluster>, allocs: PathBuf) -> NodeServices {
        NodeServices {
            local,
            cluster,
            kept: Kept::new(allocs),
            allocs: Mutex::default(),
        }
    }

    /// Registers again what an earlier run of the agent had registered. Call it before anti-entropy begins: what is not
    /// there then is taken out of the catalog. Who is to stay is said by [`Services::sweep`].
    pub async fn adopt(&self) {
        let records = self.kept.load();
        if records.is_empty() {
            return;
        }
        // The status of before is the catalog's. Without a leader it is what this agent has of it.
        let own = [WatchKey::node(&self.local.node().name)];
        let fresh = async {
            self.cluster.have(&own).await?;
            self.cluster.barrier(Consistency::Default).await
        };
        if !matches!(
            tokio::time::timeout(CATALOG_WITHIN, fresh).await,
            Ok(Ok(()))
        ) {
            tracing::warn!(
                "no leader: the services of allocations begin with the status they had when last seen here"
            );
        }
        for record in records {
            let alloc = record.services.alloc.clone();
            let derived = self.derive(&record);
            self.lock().insert(alloc.clone(), record.clone());
            match derived {
                Ok(derived) => self.adopt_one(&record, derived).await,
                Err(error) => {
                    tracing::error!(alloc = &*alloc, %error, "services are not registered again")
                }
            }
        }
    }

    async fn adopt_one(&self, record: &Record, derived: Vec<Derived>) {
        let registry = self.cluster.registry().view();
        let node = registry.node(&self.local.node().name).cloned();
        let before = |id: &str| node.as_ref()?.checks.get(id).cloned();
        for one in derived {
            let parts = [
                one.sidecar.map(|sidecar| sidecar.registration),
                record.published.then_some(one.registration),
            ];
            for mut registration in parts.into_iter().flatten() {
                let mut outputs = Vec::new();
                for check in &mut registration.checks {
                    if let Some(before) = before(&check.id) {
                        check.status = Some(before.status);
                        outputs.push(before);
                    }
                }
                let id = registration.service.id.clone();
                if let Err(error) = self.local.register_service(registration).await {
                    tracing::error!(service = &*id, %error, "a service is not registered again");
                }
                for before in outputs {
                    // It was registered just now.
                    let _ = self
                        .local
                        .set_status(&before.id, before.status, &before.output);
                }
            }
        }
        if record.withdrawn {
            self.out_of_service(record).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Str, Record>> {
        self.allocs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Place {
        Place::of(&self.local.node())
    }

    fn derive(&self, record: &Record) -> Result<Vec<Derived>, ServicesError> {
        derive(&record.services, &self.place(), &record.sidecar_ports)
    }

    /// Changes what is known of an allocation, here and on disk.
    fn change(
        &self,
        alloc: &str,
        change: impl FnOnce(&mut Record),
    ) -> Result<Record, ServicesError> {
        let mut allocs = self.lock();
        let record = allocs
            .get_mut(alloc)
            .ok_or_else(|| ServicesError::Unknown(alloc.into()))?;
        let before = record.clone();
        change(record);
        let record = record.clone();
        if record != before {
            self.kept.save(&record)?;
        }
        Ok(record)
    }

    async fn register(&self, registration: Registration) -> Result<(), ServicesError> {
        let service = registration.service.name.clone();
        self.local
            .register_service(Registration {
                source: Source::Platform,
                replace_existing_checks: true,
                ..registration
            })
            .await
            .map_err(|error| ServicesError::Service {
                service,
                reason: error.to_string(),
            })
    }

    /// The proxies of an allocation get no new connections.
    async fn out_of_service(&self, record: &Record) {
        for (_, id) in derive::ids(&record.services) {
            let sidecar = derive::sidecar_id(&id);
            if self.local.service(&sidecar).is_some()
                && let Err(error) = self
                    .local
                    .start_service_maintenance(&sidecar, "the allocation is being stopped", None)
                    .await
            {
                tracing::warn!(service = &*sidecar, %error, "a sidecar is not taken out of service");
            }
        }
    }

    async fn deregister(&self, id: &str) {
        if self.local.service(id).is_some()
            && let Err(error) = self.local.deregister_service(id).await
        {
            tracing::warn!(service = id, %error, "a service is not deregistered");
        }
    }

    /// Waits until the catalog has been told. It follows in any case, if not in time.
    async fn told(&self, alloc: &str) {
        if !self.local.synced(CATALOG_WITHIN).await {
            tracing::warn!(
                alloc,
                "the catalog is not told of an allocation in time; it will be"
            );
        }
    }

    /// The ports for the sidecars of an allocation that name none: those it has, or the lowest that are free. In a
    /// network of their own only the ports of the same allocation count.
    fn sidecar_ports(&self, services: &AllocServices) -> Result<BTreeMap<Str, u16>, ServicesError> {
        let mut ports = self
            .lock()
            .get(&services.alloc)
            .map(|record| record.sidecar_ports.clone())
            .unwrap_or_default();
        let mut taken: HashSet<u16> = ports.values().copied().collect();
        taken.extend(services.ports.iter().flat_map(|port| [port.to, port.value]));
        if services.address.is_none() || !self.place().is_loopback() {
            taken.extend(self.local.services().values().map(|service| service.port));
            let allocs = self.lock();
            let others = allocs
                .values()
                .filter(|record| record.services.alloc != services.alloc);
            taken.extend(others.flat_map(|record| record.sidecar_ports.values().copied()));
        }
        for service in derive::unported_sidecars(services) {
            if ports.contains_key(&service.name) {
                continue;
            }
            let range = self.local.sidecar_ports();
            let port = range
                .clone()
                .find(|port| *port != 0 && !taken.contains(port));
            let port = port.ok_or_else(|| ServicesError::Service {
                service: service.name.clone(),
                reason: format!(
                    "no port is free for its sidecar: all of {}-{} are taken",
                    range.start(),
                    range.end()
                ),
            })?;
            taken.insert(port);
            ports.insert(service.name.clone(), port);
        }
        Ok(ports)
    }
}

impl Services for NodeServices {
    fn prepare(
        &self,
        services: AllocServices,
    ) -> BoxFuture<'_, Result<Vec<Sidecar>, ServicesError>> {
        Box::pin(async move {
            let alloc = services.alloc.clone();
            let sidecar_ports = self.sidecar_ports(&services)?;
            let derived = derive(&services, &self.place(), &sidecar_ports)?;
            self.lock()
                .entry(alloc.clone())
                .or_insert_with(|| Record::new(services.clone()));
            self.change(&alloc, |record| {
                record.services = services;
                record.sidecar_ports = sidecar_ports;
            })?;
            let mut sidecars = Vec::new();
            for sidecar in derived.into_iter().filter_map(|one| one.sidecar) {
                self.register(sidecar.registration).await?;
                sidecars.push(sidecar.run);
            }
            if !sidecars.is_empty() {
                self.told(&alloc).await;
            }
            Ok(sidecars)
        })
    }

    fn publish<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        Box::pin(async move {
            let record = self.change(alloc, |record| {
                record.published = true;
                record.withdrawn = false;
            })?;
            for mut one in self.derive(&record)? {
                if let Some(why) = record.why_down() {
                    for check in &mut one.registration.checks {
                        check.status = Some(CheckStatus::Critical);
                    }
                    let id = one.registration.service.id.clone();
                    self.register(one.registration).await?;
                    self.local.fail_service(&id, &why);
                } else {
                    self.register(one.registration).await?;
                }
            }
            self.told(alloc).await;
            Ok(())
        })
    }

    fn withdraw<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        Box::pin(async move {
            let changed = self.change(alloc, |record| {
                record.published = false;
                record.withdrawn = true;
            });
            let record = match changed {
                // Nothing was ever registered.
                Err(ServicesError::Unknown(_)) => return Ok(()),
                other => other?,
            };
            for (_, id) in derive::ids(&record.services) {
                self.deregister(&id).await;
            }
            self.out_of_service(&record).await;
            self.told(alloc).await;
            Ok(())
        })
    }

    fn remove<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        Box::pin(async move {
            let record = self.lock().remove(alloc);
            if let Some(record) = record {
                for (_, id) in derive::ids(&record.services) {
                    self.deregister(&id).await;
                    self.deregister(&derive::sidecar_id(&id)).await;
                }
            }
            self.kept.remove(alloc)
        })
    }

    fn task_down(&self, alloc: &str, task: &str, why: &str) {
        let why = format!("task {task:?}: {why}");
        let changed = self.change(alloc, |record| {
            record.down.insert(task.into(), why.clone());
        });
        match changed {
            Ok(record) => {
                for (_, id) in derive::ids(&record.services) {
                    self.local.fail_service(&id, &why);
                }
            }
            Err(error) => {
                tracing::warn!(alloc, task, %error, "a task that ended is not told to the catalog")
            }
        }
    }

    fn task_up(&self, alloc: &str, task: &str) {
        let changed = self.change(alloc, |record| {
            record.down.remove(task);
        });
        match changed {
            Ok(record) if record.down.is_empty() => {
                for (_, id) in derive::ids(&record.services) {
                    // The service is registered later, or not at all any more.
                    let check = derive::tasks_check_id(&id);
                    let _ =
                        self.local
                            .set_status(&check, CheckStatus::Passing, derive::ALL_RUNNING);
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(alloc, task, %error, "a task that started is not told to the catalog")
            }
        }
    }

    fn sweep<'a>(
        &'a self,
        known: &'a HashSet<String>,
    ) -> BoxFuture<'a, Result<Vec<Str>, ServicesError>> {
        Box::pin(async move {
            let gone: Vec<Str> = self
                .lock()
                .keys()
                .filter(|alloc| !known.contains(&***alloc))
                .cloned()
                .collect();
            for alloc in &gone {
                self.remove(alloc).await?;
            }
            Ok(gone)
        })
    }
}
