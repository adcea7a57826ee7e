//! The tables behind [`super::LocalState`] and what a change of them entails. No IO, no clock, no
//! waiting: `now` is passed in, and what is to be written elsewhere is noted in sets.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wharf_registry::model::{CheckStatus, HealthCheck, NodeService, Str};

use super::{
    LocalError, Options,
    output::cut_report,
    spec::{CheckKind, CheckSpec, Registration, Source},
    store::{FileKey, SavedService},
    watch::{LocalKey, LocalWatches},
};
use crate::authz::Token;

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) services: BTreeMap<Str, ServiceEntry>,
    pub(super) checks: BTreeMap<Str, CheckEntry>,
    /// What the catalog has not been told.
    pub(super) dirty: Dirty,
    /// Moves with every addition to `dirty`.
    pub(super) revision: u64,
    /// Checks of which only the output changed, and when the catalog is told.
    pub(super) deferred: BTreeMap<Str, Instant>,
    /// Files that are behind.
    pub(super) unsaved: BTreeSet<FileKey>,
    /// Checks that came, went or changed since their runners were last looked at.
    pub(super) restarted: BTreeSet<Str>,
    /// Reports from before the agent was restarted, until the checks they belong to are registered.
    pub(super) earlier_reports: BTreeMap<Str, EarlierReport>,
    /// Checks from before the agent was restarted of instances that files define: they wait for those.
    pub(super) orphans: Vec<CheckSpec>,
    last_generation: u64,
}

/// What a TTL check was told before the agent was restarted.
#[derive(Debug)]
pub(super) struct EarlierReport {
    pub(super) status: CheckStatus,
    pub(super) output: Str,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) service: Arc<NodeService>,
    pub(super) token: Option<Token>,
    pub(super) source: Source,
    /// The tags as registered; with `EnableTagOverride` the catalog's may have replaced them.
    pub(super) registered_tags: Arc<[Str]>,
    /// The instance this one was registered as a sidecar of.
    pub(super) sidecar_of: Option<Str>,
    pub(super) sidecar: Option<Str>,
    pub(super) checks: BTreeSet<Str>,
}

#[derive(Debug)]
pub(super) struct CheckEntry {
    pub(super) spec: Arc<CheckSpec>,
    /// Another one for each spec: a result of an earlier one is not taken.
    pub(super) generation: u64,
    pub(super) health: Arc<HealthCheck>,
    pub(super) critical_since: Option<Instant>,
    pub(super) ttl_deadline: Option<Instant>,
}

/// Rows that may differ between here and the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    pub(crate) node: bool,
    pub(crate) services: BTreeSet<Str>,
    pub(crate) checks: BTreeSet<Str>,
    /// Instances of which the registrant changed the tags: those go to the catalog even under
    /// `EnableTagOverride`.
    pub(crate) retagged: BTreeSet<Str>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        !self.node && self.services.is_empty() && self.checks.is_empty()
    }

    pub(crate) fn merge(&mut self, other: Dirty) {
        self.node |= other.node;
        self.services.extend(other.services);
        self.checks.extend(other.checks);
        self.retagged.extend(other.retagged);
    }
}

/// What surrounds a change.
pub(super) struct Context<'a> {
    pub(super) node: Str,
    pub(super) options: &'a Options,
    pub(super) watches: &'a LocalWatches,
    pub(super) now: Instant,
}

/// What holds when a check is registered again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// What the check said before holds.
    Kept,
    /// A status in the registration wins over what the check said before.
    Stated,
    /// What it said before a restart is not known to hold: critical, so as to send nobody to an instance that
    /// may be gone.
    Unknown,
}

impl Inner {
    // === services ===

    /// Returns the ids of the checks that came with it.
    pub(super) fn register_service(
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
        if context.options.server && &*id == super::SERVER_SERVICE {
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
    pub(super) fn restore_service(&mut self, saved: SavedService, context: &Context<'_>) {
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
    pub(super) fn link_sidecars(&mut self) {
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

    pub(super) fn put_service(
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

    /// Puts back a check from an earlier run.
    pub(super) fn restore_check(&mut self, check: CheckSpec, context: &Context<'_>) {
        if check.service_id.is_empty() || self.services.contains_key(&check.service_id) {
            self.put_check(check, Status::Unknown, context);
        } else {
            self.orphans.push(check);
        }
    }

    /// Forgets the checks whose instances are not there any more.
    pub(super) fn drop_orphans(&mut self) {
        for orphan in self.orphans.drain(..) {
            self.unsaved.insert(FileKey::Check(orphan.id));
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
    pub(super) fn adopt_tags(
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
    pub(super) fn deregister_service(
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

    // === checks ===

    fn put_checks(
        &mut self,
        service: &Str,
        checks: Vec<CheckSpec>,
        replace: bool,
        context: &Context<'_>,
    ) {
        if replace {
            let kept: HashSet<&Str> = checks.iter().map(|check| &check.id).collect();
            let outdated: Vec<Str> = self.services.get(service).map_or_else(Vec::new, |entry| {
                let own = entry.checks.iter().filter(|id| !kept.contains(id));
                own.cloned().collect()
            });
            for id in outdated {
                let maintenance = self
                    .checks
                    .get(&id)
                    .is_some_and(|check| check.spec.kind == CheckKind::Maintenance);
                if !maintenance {
                    self.remove_check(&id, context);
                }
            }
        }
        for check in checks {
            self.put_check(check, Status::Kept, context);
        }
    }

    pub(super) fn register_check(
        &mut self,
        spec: CheckSpec,
        status: Status,
        context: &Context<'_>,
    ) -> Result<(), LocalError> {
        if *spec.id == *super::SERF_HEALTH {
            return Err(LocalError::Reserved(spec.id));
        }
        if !spec.service_id.is_empty() && !self.services.contains_key(&spec.service_id) {
            return Err(LocalError::NoSuchService(spec.service_id));
        }
        self.put_check(spec, status, context);
        Ok(())
    }

    fn put_check(&mut self, spec: CheckSpec, status: Status, context: &Context<'_>) {
        let id = spec.id.clone();
        let mut health = spec.health_check(&context.node);
        let previous = self.checks.remove(&id);
        if status == Status::Unknown {
            health.status = CheckStatus::Critical;
        }
        let mut critical_since = None;
        if let Some(previous) = &previous {
            if previous.spec.service_id != spec.service_id {
                self.detach_check(&id, &previous.spec.service_id);
                self.health_changed(&previous.spec.service_id, context);
            }
            if spec.status.is_none() || status == Status::Kept {
                health.status = previous.health.status;
                health.output = previous.health.output.clone();
                critical_since = previous.critical_since;
            }
        }
        if let Some(entry) = self.services.get_mut(&spec.service_id) {
            entry.checks.insert(id.clone());
            health.service_name = entry.service.name.clone();
            health.service_tags = entry.service.tags.clone();
        }
        let earlier = match (&previous, &spec.kind) {
            (None, CheckKind::Ttl(_)) => self.earlier_reports.remove(&id),
            _ => None,
        }
        .filter(|earlier| earlier.deadline > context.now);
        if let Some(earlier) = &earlier {
            health.status = earlier.status;
            health.output = earlier.output.clone();
        }
        if health.status == CheckStatus::Critical {
            critical_since = critical_since.or(Some(context.now));
        } else {
            critical_since = None;
        }
        let service_id = spec.service_id.clone();
        let (generation, ttl_deadline) = match &previous {
            Some(previous) if *previous.spec == spec => {
                (previous.generation, previous.ttl_deadline)
            }
            _ => {
                self.last_generation += 1;
                self.restarted.insert(id.clone());
                let deadline = match spec.kind {
                    CheckKind::Ttl(ttl) => {
                        Some(earlier.map_or(context.now + ttl, |earlier| earlier.deadline))
                    }
                    _ => None,
                };
                (self.last_generation, deadline)
            }
        };
        let entry = CheckEntry {
            spec: Arc::new(spec),
            generation,
            health: Arc::new(health),
            critical_since,
            ttl_deadline,
        };
        self.checks.insert(id.clone(), entry);
        self.unsaved.insert(FileKey::Check(id.clone()));
        self.mark_check(&id);
        self.health_changed(&service_id, context);
    }

    pub(super) fn deregister_check(
        &mut self,
        id: &Str,
        context: &Context<'_>,
    ) -> Result<(), LocalError> {
        if !self.checks.contains_key(id) {
            return Err(LocalError::UnknownCheck(id.clone()));
        }
        self.remove_check(id, context);
        Ok(())
    }

    fn remove_check(&mut self, id: &Str, context: &Context<'_>) {
        let Some(entry) = self.checks.remove(id) else {
            return;
        };
        self.detach_check(id, &entry.spec.service_id);
        self.unsaved.insert(FileKey::Check(id.clone()));
        if matches!(entry.spec.kind, CheckKind::Ttl(_)) {
            self.unsaved.insert(FileKey::State(id.clone()));
        }
        self.restarted.insert(id.clone());
        self.mark_check(id);
        self.health_changed(&entry.spec.service_id, context);
    }

    fn detach_check(&mut self, id: &Str, service: &Str) {
        if let Some(entry) = self.services.get_mut(service) {
            entry.checks.remove(id);
        }
    }

    fn health_changed(&self, service: &Str, context: &Context<'_>) {
        context.watches.wake(&LocalKey::Health(service.clone()));
    }

    /// The catalog is to be told of this check at once.
    fn mark_check(&mut self, id: &Str) {
        self.deferred.remove(id);
        self.dirty.checks.insert(id.clone());
        self.revision += 1;
    }

    // === results ===

    /// Takes the result of a check. A result of an outdated `generation` is dropped, as one of a check
    /// that is gone.
    pub(super) fn report(
        &mut self,
        id: &Str,
        generation: Option<u64>,
        status: CheckStatus,
        output: &str,
        context: &Context<'_>,
        stagger: impl FnOnce(Duration) -> Duration,
    ) {
        let Some(entry) = self.checks.get_mut(id) else {
            return;
        };
        if generation.is_some_and(|generation| generation != entry.generation) {
            return;
        }
        let limit = context.options.output_limit(&entry.spec);
        let output: Str = if context.options.discard_check_output {
            Str::default()
        } else {
            cut_report(output, limit).into()
        };
        let status_changed = entry.health.status != status;
        if !status_changed && entry.health.output == output {
            return;
        }
        let health = Arc::make_mut(&mut entry.health);
        health.status = status;
        health.output = output;
        let service = health.service_id.clone();
        entry.critical_since = match status {
            CheckStatus::Critical => entry.critical_since.or(Some(context.now)),
            _ => None,
        };
        let interval = context.options.check_update_interval;
        if status_changed || interval.is_zero() {
            self.mark_check(id);
        } else if !self.dirty.checks.contains(id) {
            self.deferred
                .entry(id.clone())
                .or_insert_with(|| context.now + interval / 2 + stagger(interval));
        }
        self.health_changed(&service, context);
    }

    /// Takes what a service reports about itself to a TTL check.
    pub(super) fn report_ttl(
        &mut self,
        id: &Str,
        status: CheckStatus,
        output: &str,
        context: &Context<'_>,
        stagger: impl FnOnce(Duration) -> Duration,
    ) -> Result<(), LocalError> {
        let Some(entry) = self.checks.get_mut(id) else {
            return Err(LocalError::UnknownCheck(id.clone()));
        };
        let CheckKind::Ttl(ttl) = entry.spec.kind else {
            return Err(LocalError::NotTtl(id.clone()));
        };
        let lapsed = entry.ttl_deadline.is_none_or(|at| at <= context.now);
        entry.ttl_deadline = Some(context.now + ttl);
        if lapsed {
            // Nobody waits for the deadline any more.
            self.restarted.insert(id.clone());
        }
        self.unsaved.insert(FileKey::State(id.clone()));
        self.report(id, None, status, output, context, stagger);
        Ok(())
    }

    /// Turns a TTL check critical if its time is over, and says how long it has otherwise.
    pub(super) fn expire_ttl(
        &mut self,
        id: &Str,
        generation: u64,
        context: &Context<'_>,
    ) -> Option<Instant> {
        let entry = self.checks.get(id)?;
        let deadline = entry
            .ttl_deadline
            .filter(|_| entry.generation == generation)?;
        if deadline > context.now {
            return Some(deadline);
        }
        let output = match &*entry.health.output {
            "" => "TTL expired".to_owned(),
            last => format!("TTL expired (last output before timeout follows): {last}"),
        };
        let critical = CheckStatus::Critical;
        // Output and status change together: there is nothing to put off.
        self.report(id, Some(generation), critical, &output, context, |span| {
            span
        });
        None
    }

    /// The next time an output is due at the catalog.
    pub(super) fn next_deferred(&self) -> Option<Instant> {
        self.deferred.values().min().copied()
    }

    /// What the catalog is to be told now.
    pub(super) fn take_dirty(&mut self, now: Instant) -> Dirty {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.deferred.retain(|id, at| {
            let waits = *at > now;
            if !waits {
                dirty.checks.insert(id.clone());
            }
            waits
        });
        dirty
    }
}
