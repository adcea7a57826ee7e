//! Keeping what the API registered over a restart: which files are behind, and what they hold. The files
//! themselves are in [`super::store`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use wharf_registry::model::NodeService;

use super::{
    LocalState, Source,
    inner::EarlierReport,
    store::{self, FileKey, SavedService, SavedState, StoreError},
};
use crate::authz::Token;

impl LocalState {
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
}

fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
