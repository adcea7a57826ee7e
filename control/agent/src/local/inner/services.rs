//! Instances: registered, restored, relabelled by the catalog, removed.

use std::{collections::HashSet, ops::RangeInclusive, sync::Arc};

use wharf_registry::model::{NodeService, Str};

use super::{Context, Inner, ServiceEntry, Status};
use crate::{
    authz::Token,
    local::{
        LocalError, SERVER_SERVICE,
        spec::{CheckSpec, Registration, Source},
        store::{FileKey, SavedService},
        watch::{LocalKey, LocalWatches},
    },
};

impl Inner {
    /// Returns the ids of the checks that came with it.
    pub(in crate::local) fn register_service(
        &mut self,
        registration: Registration,
        context: &Context<'_>,
    ) -> Result<Vec<Str>, LocalError> {
        let Registration {
            service,
            checks,
            sidecar,
            token,
            source,
            replace_existing_checks,
        } = registration;
        let id = service.id.clone();
        if context.options.server && &*id == SERVER_SERVICE {
            return Err(LocalError::Reserved(id));
        }
        // A check belongs to whoever registered its instance.
        let owned = |mut check: CheckSpec| {
            check.source = source;
            check
        };
        let sidecar = match sidecar {
            None => None,
            Some(request) => {
                let port = self.sidecar_port(&request.id, request.port, context)?;
                Some((request.build)(port))
            }
        };
        let sidecar_id = sidecar.as_ref().map(|sidecar| sidecar.service.id.clone());
        let outdated = self
            .services
            .get(&id)
            .and_then(|entry| entry.sidecar.clone())
            .filter(|old| Some(old) != sidecar_id.as_ref());
        if let Some(outdated) = outdated {
            self.remove_service(&outdated, context);
        }
        self.put_service(service, token, source, context);
        let mut registered: Vec<Str> = checks.iter().map(|check| check.id.clone()).collect();
        let checks = checks.into_iter().map(owned).collect();
        self.put_checks(&id, checks, replace_existing_checks, context);
        if let Some(sidecar) = sidecar {
            let sidecar_id = sidecar.service.id.clone();
            self.put_service(sidecar.service, sidecar.token, source, context);
            registered.extend(sidecar.checks.iter().map(|check| check.id.clone()));
            let checks = sidecar.checks.into_iter().map(owned).collect();
            self.put_checks(&sidecar_id, checks, replace_existing_checks, context);
            if let Some(entry) = self.services.get_mut(&sidecar_id) {
                entry.sidecar_of = Some(id.clone());
            }
            if let Some(entry) = self.services.get_mut(&id) {
                entry.sidecar = Some(sidecar_id);
            }
        }
        Ok(registered)
    }

    /// Puts back an instance from an earlier run.
    pub(in crate::local) fn restore_service(&mut self, saved: SavedService, context: &Context<'_>) {
        let id = saved.service.id.clone();
        let token = Token::new(&saved.token);
        self.put_service(saved.service, token, Source::Api, context);
        if let Some(entry) = self.services.get_mut(&id) {
            entry.registered_tags = saved.registered_tags;
            entry.sidecar_of = saved.sidecar_of;
        }
        self.unsaved.remove(&FileKey::Service(id));
    }

    /// After a restore: ties parents to their sidecars again.
    pub(in crate::local) fn link_sidecars(&mut self) {
        let pairs: Vec<(Str, Str)> = self
            .services
            .iter()
            .filter_map(|(id, entry)| Some((id.clone(), entry.sidecar_of.clone()?)))
            .collect();
        for (sidecar, parent) in pairs {
            if let Some(parent) = self.services.get_mut(&parent) {
                parent.sidecar = Some(sidecar);
            }
        }
    }

    pub(in crate::local) fn put_service(
        &mut self,
        mut service: NodeService,
        token: Option<Token>,
        source: Source,
        context: &Context<'_>,
    ) {
        let id = service.id.clone();
        let registered_tags = service.tags.clone();
        let parent = self
            .services
            .get(&id)
            .and_then(|old| old.sidecar_of.clone());
        if let Some(parent) = parent.and_then(|parent| self.services.get_mut(&parent)) {
            parent.sidecar = None;
        }
        let previous = self.services.get(&id);
        let retagged = previous.is_some_and(|old| old.registered_tags != registered_tags);
        if let Some(previous) = previous
            && service.enable_tag_override
            && !retagged
        {
            service.tags = previous.service.tags.clone();
        }
        let changed = previous.is_none_or(|old| !old.service.is_same(&service));
        let relabelled = previous.is_some_and(|old| {
            old.service.name != service.name || old.service.tags != service.tags
        });
        let checks = previous.map(|old| old.checks.clone()).unwrap_or_default();
        let sidecar = previous.and_then(|old| old.sidecar.clone());
        let entry = ServiceEntry {
            service: Arc::new(service),
            token,
            source,
            registered_tags,
            sidecar_of: None,
            sidecar,
            checks: checks.clone(),
        };
        if relabelled {
            for check in &checks {
                self.label_check(check, &entry.service);
            }
        }
        self.services.insert(id.clone(), entry);
        self.unsaved.insert(FileKey::Service(id.clone()));
        if retagged {
            self.dirty.retagged.insert(id.clone());
        }
        self.dirty.services.insert(id.clone());
        self.revision += 1;
        let orphans = self.orphans.extract_if(.., |check| check.service_id == id);
        let orphans: Vec<CheckSpec> = orphans.collect();
        for orphan in orphans {
            self.put_check(orphan, Status::Unknown, context);
        }
        if changed {
            context.watches.wake(&LocalKey::Service(id));
        }
    }

    /// Gives a check the name and tags of its instance, as the catalog does.
    fn label_check(&mut self, id: &Str, service: &NodeService) {
        if let Some(check) = self.checks.get_mut(id) {
            let health = Arc::make_mut(&mut check.health);
            health.service_name = service.name.clone();
            health.service_tags = service.tags.clone();
            self.dirty.checks.insert(id.clone());
        }
    }

    /// The catalog's tags take the place of those of an instance that allows it.
    pub(in crate::local) fn adopt_tags(
        &mut self,
        id: &Str,
        ours: &Arc<[Str]>,
        theirs: &Arc<[Str]>,
        watches: &LocalWatches,
    ) {
        let Some(entry) = self.services.get_mut(id) else {
            return;
        };
        if !entry.service.enable_tag_override || entry.service.tags != *ours {
            return;
        }
        Arc::make_mut(&mut entry.service).tags = theirs.clone();
        let (service, checks) = (entry.service.clone(), entry.checks.clone());
        for check in &checks {
            self.label_check(check, &service);
        }
        if !checks.is_empty() {
            self.revision += 1;
        }
        watches.wake(&LocalKey::Service(id.clone()));
    }

    /// Removes an instance with its checks and its sidecar.
    pub(in crate::local) fn deregister_service(
        &mut self,
        id: &Str,
        context: &Context<'_>,
    ) -> Result<(), LocalError> {
        let Some(entry) = self.services.get(id) else {
            return Err(LocalError::UnknownService(id.clone()));
        };
        if let Some(sidecar) = entry.sidecar.clone() {
            self.remove_service(&sidecar, context);
        }
        self.remove_service(id, context);
        Ok(())
    }

    fn remove_service(&mut self, id: &Str, context: &Context<'_>) {
        let Some(entry) = self.services.remove(id) else {
            return;
        };
        for check in &entry.checks {
            self.remove_check(check, context);
        }
        if let Some(parent) = entry.sidecar_of
            && let Some(parent) = self.services.get_mut(&parent)
        {
            parent.sidecar = None;
        }
        self.unsaved.insert(FileKey::Service(id.clone()));
        self.dirty.services.insert(id.clone());
        self.revision += 1;
        context.watches.wake(&LocalKey::Service(id.clone()));
        context.watches.wake(&LocalKey::Health(id.clone()));
    }

    /// The port for the sidecar `id`: the one it asks for, the one it has, or the lowest free one.
    fn sidecar_port(
        &self,
        id: &Str,
        wanted: u16,
        context: &Context<'_>,
    ) -> Result<u16, LocalError> {
        if wanted != 0 {
            return Ok(wanted);
        }
        let range: RangeInclusive<u16> = context.options.sidecar_ports.clone();
        if let Some(own) = self.services.get(id).map(|entry| entry.service.port)
            && range.contains(&own)
        {
            return Ok(own);
        }
        let taken: HashSet<u16> = self
            .services
            .values()
            .map(|entry| entry.service.port)
            .collect();
        range
            .clone()
            .find(|port| *port != 0 && !taken.contains(port))
            .ok_or_else(|| LocalError::NoSidecarPort {
                id: id.clone(),
                first: *range.start(),
                last: *range.end(),
            })
    }
}
