//! What checks report: taken, limited, and brought to the catalog now or later.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use wharf_registry::model::{CheckStatus, Str};

use super::{Context, Inner};
use crate::local::{LocalError, output::cut_report, spec::CheckKind, store::FileKey};

impl Inner {
    /// Takes the result of a check. A result of an outdated `generation` is dropped, as one of a check
    /// that is gone.
    pub(in crate::local) fn report(
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
    pub(in crate::local) fn report_ttl(
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
    pub(in crate::local) fn expire_ttl(
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
}
