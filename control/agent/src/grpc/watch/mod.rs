//! `Registry.Watch`: a snapshot, then what changes, each message with the index to resume from.
//!
//! What a watch remembers is one frozen state: the one it has told. A change is the difference from
//! there to the newest state, so a client that reads slowly gets fewer and larger differences, never
//! a queue, and the cost of its slowness is that one state and a batch on its way.

mod kv;
mod service;

use std::{sync::Arc, time::Duration};

use tonic::Status;
use wharf_proto::v1::{
    Progress, SnapshotComplete, WatchRequest, WatchResponse, watch_request::Target,
    watch_response::Event,
};
use wharf_registry::{Registry, View, watch::WatchKey};

use super::{
    feed::Feed,
    status::{self, Violations},
};
use crate::authz::{Access, Caller, Resource};

pub(super) use self::{kv::KeyValues, service::Instances};

/// Messages of one batch, and bytes of values in it.
const BATCH_MESSAGES: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// See [`Told::events`].
const LAPS: u32 = 10;

/// Bounds of what a request may name, in bytes; tags of a service filter.
const MAX_NAME: usize = 4096;
const MAX_TAGS: usize = 64;

type Events<'a> = Box<dyn Iterator<Item = Event> + Send + 'a>;

/// What is watched.
pub(super) trait Subject: Send + Sync + 'static {
    /// As much of a view as this is about.
    type Seen: Send + Sync;

    fn key(&self) -> WatchKey;

    /// A state in which there is nothing.
    fn nothing(&self) -> Self::Seen;

    fn see(&self, view: &Arc<View>) -> Self::Seen;

    /// What leads from the one state to the other.
    fn changes<'a>(&'a self, old: &'a Self::Seen, new: &'a Self::Seen) -> Events<'a>;

    /// What leads from the state at `index` to that of the view; `None` when it is not known.
    fn changes_since<'a>(&'a self, view: &'a View, index: u64) -> Option<Events<'a>>;
}

/// A validated request.
#[derive(Debug)]
pub(super) enum Watched {
    Instances(Instances),
    KeyValues(KeyValues),
}

/// Checks a request: what it names, and whether the caller may see it.
pub(super) fn parse(request: WatchRequest, caller: &Caller) -> Result<Watched, Status> {
    let mut violations = Violations::default();
    let watched = match request.target {
        Some(Target::Service(target)) => {
            if target.name.is_empty() {
                violations.add("service.name", "must not be empty");
            }
            let lengths = target.tags.iter().map(String::len);
            if lengths
                .chain([target.name.len()])
                .any(|length| length > MAX_NAME)
                || target.tags.len() > MAX_TAGS
            {
                let reason = format!("at most {MAX_TAGS} tags, each text at most {MAX_NAME} bytes");
                violations.add("service", reason);
            }
            violations.finish()?;
            super::auth::check(caller, Resource::Service(&target.name), Access::Read)?;
            Watched::Instances(Instances {
                name: target.name,
                tags: target.tags,
                passing_only: target.passing_only,
                caller: caller.clone(),
            })
        }
        Some(Target::KeyValue(target)) => {
            if target.prefix.len() > MAX_NAME {
                violations.add("key_value.prefix", format!("at most {MAX_NAME} bytes"));
            }
            violations.finish()?;
            super::auth::check(caller, Resource::KeyPrefix(&target.prefix), Access::List)?;
            Watched::KeyValues(KeyValues {
                prefix: target.prefix,
                caller: caller.clone(),
            })
        }
        None => {
            violations.add("target", "one of service and key_value must be set");
            return violations
                .finish()
                .map(|()| unreachable!("there is a violation"));
        }
    };
    Ok(watched)
}

/// Tells a subject's state and changes until the client has enough.
pub(super) async fn follow<S: Subject>(
    subject: S,
    registry: Registry,
    resume_index: u64,
    progress: Duration,
    feed: Feed<WatchResponse>,
) -> Result<(), Status> {
    let mut watcher = registry.watch(subject.key());
    let view = registry.view();
    let mut told = Told { index: 0, feed };
    let mut seen;
    if resume_index == 0 {
        let nothing = subject.nothing();
        seen = subject.see(&view);
        // Within a snapshot there is nothing to resume from but the beginning.
        told.events(0, subject.changes(&nothing, &seen)).await?;
        told.event(view.applied(), Event::SnapshotComplete(SnapshotComplete {}))
            .await?;
    } else {
        // An index from the future is one of another history, and so is one from before a restore.
        let known = (view.restored()..=view.applied()).contains(&resume_index);
        let changes = known
            .then(|| subject.changes_since(&view, resume_index))
            .flatten();
        let Some(changes) = changes else {
            return Err(status::compacted(resume_index));
        };
        told.index = resume_index;
        told.events(view.applied(), changes).await?;
        told.event(view.applied(), Event::Progress(Progress {}))
            .await?;
        seen = subject.see(&view);
    }
    drop(view);
    loop {
        let quiet = tokio::time::timeout(progress, watcher.changed())
            .await
            .is_err();
        let view = registry.view();
        let now = subject.see(&view);
        let mut changes = subject.changes(&seen, &now).peekable();
        if changes.peek().is_some() {
            told.events(view.applied(), Box::new(changes)).await?;
        } else {
            drop(changes);
            if quiet {
                told.event(view.applied(), Event::Progress(Progress {}))
                    .await?;
            }
        }
        seen = now;
    }
}

/// How far a client was told.
#[derive(Debug)]
struct Told {
    index: u64,
    feed: Feed<WatchResponse>,
}

impl Told {
    async fn event(&mut self, index: u64, event: Event) -> Result<(), Status> {
        self.index = index;
        let event = Some(event);
        self.feed.send(vec![WatchResponse { index, event }]).await
    }

    /// Tells what leads to the state at `index`, within [`LAPS`] times the patience for a batch: a
    /// client that reads a little now and then must not hold two states for ever.
    async fn events(&mut self, index: u64, events: Events<'_>) -> Result<(), Status> {
        let within = self.feed.patience() * LAPS;
        let told = tokio::time::timeout(within, self.batches(index, events)).await;
        told.unwrap_or_else(|_| Err(status::slow_consumer(within)))
    }

    /// Only the last message bears the index: whoever got fewer has to resume from where all of
    /// them began.
    async fn batches(&mut self, index: u64, events: Events<'_>) -> Result<(), Status> {
        let mut events = events.peekable();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(event) = events.next() {
            bytes += match &event {
                Event::KeyUpserted(entry) => entry.value.len(),
                _ => 0,
            };
            let last = events.peek().is_none();
            batch.push(WatchResponse {
                index: if last { index } else { self.index },
                event: Some(event),
            });
            if last || batch.len() >= BATCH_MESSAGES || bytes >= BATCH_BYTES {
                self.feed.send(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.index = index;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
