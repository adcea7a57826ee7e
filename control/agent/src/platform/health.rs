//! Whether an allocation does its work, as the catalog knows it: there is one truth about health.

use wharf_registry::{
    View,
    model::{
        CheckStatus, Str,
        platform::{Alloc, ClientStatus, JobService, TaskPhase},
    },
};

/// The id under which the service of an allocation is registered on its node.
pub fn service_id(alloc: &str, group: &str, service: &JobService) -> Str {
    format!("_wharf-{alloc}-{group}-{}-{}", service.name, service.port).into()
}

/// Whether the tasks of an allocation run now, and each of its services is in the catalog with all checks passing.
pub fn is_healthy(view: &View, alloc: &Alloc) -> bool {
    let mut tasks = alloc.task_states.values();
    if alloc.client_status != ClientStatus::Running
        || !tasks.all(|task| task.state == TaskPhase::Running)
    {
        return false;
    }
    let job = view.job_version(&alloc.job_name, alloc.job_version);
    let Some(group) = job.and_then(|job| job.group(&alloc.group)) else {
        return false;
    };
    if group.services.is_empty() {
        return true;
    }
    let Some(node) = view.node(&alloc.node) else {
        return false;
    };
    group.services.iter().all(|service| {
        let id = service_id(&alloc.id, &alloc.group, service);
        node.services.contains_key(&id)
            && node
                .checks_of(&id)
                .all(|check| check.status == CheckStatus::Passing)
    })
}
