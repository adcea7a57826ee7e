//! The services and checks that configuration files define, put into force as one set.

use std::collections::HashSet;

use wharf_registry::model::Str;

use super::{
    CheckSpec, LocalError, LocalState, Registration, Source,
    inner::{Context, Inner, Status},
};

impl LocalState {
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
