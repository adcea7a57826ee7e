//! What the runners of [`crate::checks`] follow, and the results they bring.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;
use wharf_registry::model::{CheckStatus, Str};

use super::{CheckSpec, LocalState, random_up_to};

impl LocalState {
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
}
