//! Checks: registered, restored, attached to their instances, removed.

use std::{collections::HashSet, sync::Arc};

use wharf_registry::model::{CheckStatus, Str};

use super::{CheckEntry, Context, Inner, Status};
use crate::local::{
    LocalError, SERF_HEALTH,
    spec::{CheckKind, CheckSpec},
    store::FileKey,
    watch::LocalKey,
};

impl Inner {
    pub(super) fn put_checks(
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

    pub(in crate::local) fn register_check(
        &mut self,
        spec: CheckSpec,
        status: Status,
        context: &Context<'_>,
    ) -> Result<(), LocalError> {
        if *spec.id == *SERF_HEALTH {
            return Err(LocalError::Reserved(spec.id));
        }
        if !spec.service_id.is_empty() && !self.services.contains_key(&spec.service_id) {
            return Err(LocalError::NoSuchService(spec.service_id));
        }
        self.put_check(spec, status, context);
        Ok(())
    }

    pub(super) fn put_check(&mut self, spec: CheckSpec, status: Status, context: &Context<'_>) {
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

    /// Turns every check of an instance critical, whatever it is about to say, and lets those that are run begin
    /// anew.
    pub(in crate::local) fn fail_service(
        &mut self,
        service: &Str,
        output: &str,
        context: &Context<'_>,
    ) {
        let checks = self.services.get(service).map(|entry| entry.checks.clone());
        for id in checks.unwrap_or_default() {
            if let Some(check) = self.checks.get_mut(&id) {
                self.last_generation += 1;
                check.generation = self.last_generation;
                self.restarted.insert(id.clone());
            }
            self.report(&id, None, CheckStatus::Critical, output, context, |span| {
                span
            });
        }
    }

    pub(in crate::local) fn deregister_check(
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

    pub(super) fn remove_check(&mut self, id: &Str, context: &Context<'_>) {
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

    pub(super) fn health_changed(&self, service: &Str, context: &Context<'_>) {
        context.watches.wake(&LocalKey::Health(service.clone()));
    }

    /// The catalog is to be told of this check at once.
    pub(super) fn mark_check(&mut self, id: &Str) {
        self.deferred.remove(id);
        self.dirty.checks.insert(id.clone());
        self.revision += 1;
    }

    /// Puts back a check from an earlier run.
    pub(in crate::local) fn restore_check(&mut self, check: CheckSpec, context: &Context<'_>) {
        if check.service_id.is_empty() || self.services.contains_key(&check.service_id) {
            self.put_check(check, Status::Unknown, context);
        } else {
            self.orphans.push(check);
        }
    }

    /// Forgets the checks whose instances are not there any more.
    pub(in crate::local) fn drop_orphans(&mut self) {
        for orphan in self.orphans.drain(..) {
            self.unsaved.insert(FileKey::Check(orphan.id));
        }
    }
}
