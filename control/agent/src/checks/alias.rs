//! Checks that say what other checks say.

use std::sync::Arc;

use wharf_registry::{
    model::{CheckStatus, HealthCheck, Str},
    watch::WatchKey,
};

use super::Finding;
use crate::{
    cluster::Cluster,
    local::{LocalKey, LocalState},
};

/// What is followed.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) node: Str,
    pub(super) service: Str,
}

/// Follows the checks of an instance or node for ever, and tells every finding.
pub(super) async fn follow(
    local: &LocalState,
    cluster: &dyn Cluster,
    own_id: &str,
    target: &Target,
    mut found: impl FnMut(Finding),
) {
    let here = target.node.is_empty() || target.node.eq_ignore_ascii_case(&local.node().name);
    if here {
        let mut service = local.watch(LocalKey::Service(target.service.clone()));
        let mut health = local.watch(LocalKey::Health(target.service.clone()));
        loop {
            found(of_local(local, own_id, target));
            tokio::select! {
                () = service.changed() => {}
                () = health.changed() => {}
            }
        }
    }
    let registry = cluster.registry();
    let mut watcher = registry.watch(WatchKey::node(&target.node));
    // What is not there yet is heard of when it comes.
    let _ = cluster.have(&[WatchKey::node(&target.node)]).await;
    loop {
        let view = registry.view();
        let entry = view.node(&target.node);
        let there = entry.is_some_and(|entry| {
            target.service.is_empty() || entry.services.contains_key(&target.service)
        });
        let checks = entry.into_iter().flat_map(|entry| entry.checks.values());
        let followed = checks.filter(|check| check.service_id == target.service);
        found(judge(target, there, followed.cloned()));
        watcher.changed().await;
    }
}

fn of_local(local: &LocalState, own_id: &str, target: &Target) -> Finding {
    let checks = match &*target.service {
        "" => Some(local.node_checks()),
        service => local.service_checks(service),
    };
    let there = checks.is_some();
    // An alias of what it belongs to would follow itself.
    let others = checks.unwrap_or_default().into_iter();
    judge(target, there, others.filter(|check| *check.id != *own_id))
}

/// The worst of the checks.
fn judge(target: &Target, there: bool, checks: impl Iterator<Item = Arc<HealthCheck>>) -> Finding {
    if !there {
        let what = match &*target.service {
            "" => format!("Node {} could not be found", target.node),
            service if target.node.is_empty() => format!("Service {service} could not be found"),
            service => format!(
                "Service {service} could not be found on node {}",
                target.node
            ),
        };
        return Finding::critical(what);
    }
    let worst = checks.max_by_key(|check| check.status);
    match worst {
        None => Finding::passing("No checks found.".to_owned()),
        Some(check) if check.status == CheckStatus::Passing => {
            Finding::passing("All checks passing.".to_owned())
        }
        Some(check) => Finding {
            status: check.status,
            output: format!("Aliased check {:?} failing: {}", check.name, check.output),
        },
    }
}
