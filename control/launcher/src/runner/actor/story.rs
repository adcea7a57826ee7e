//! What is told of an allocation, and what is remembered of it.

use wharf_registry::model::{
    Str, StrMap,
    platform::{AllocUpdate, ClientStatus, TaskEvent, TaskState},
};

use super::{Actor, Ending, nanos, now_millis};

impl Actor {
    pub(super) fn event(&mut self, task: &Str, kind: &str, message: impl AsRef<str>) {
        self.push(task, kind, message.as_ref(), StrMap::new());
    }

    pub(super) fn push(&mut self, task: &Str, kind: &str, message: &str, details: StrMap) {
        if let Some(state) = self.record.states.get_mut(task) {
            state.record(TaskEvent {
                time: nanos(now_millis()),
                kind: kind.into(),
                message: message.into(),
                details,
            });
        }
    }

    /// Writes down how far it is, and tells it.
    pub(super) fn step(&mut self) {
        if let Err(error) = self.record.save(&self.places.dir) {
            // Without a directory there is nothing to come back to either.
            tracing::error!(alloc = &*self.alloc.id, %error, "runner.json cannot be written");
        }
        self.report();
    }

    pub(super) fn report(&self) {
        let (client_status, client_description) = self.status();
        self.node.reports.update(AllocUpdate {
            id: self.alloc.id.clone(),
            client_status,
            client_description,
            address: self.record.address.clone(),
            task_states: self.record.states.clone(),
        });
    }

    pub(super) fn status(&self) -> (ClientStatus, Str) {
        match &self.record.ending {
            Some(Ending { failed, why }) if self.record.done => {
                let status = if *failed {
                    ClientStatus::Failed
                } else {
                    ClientStatus::Complete
                };
                return (status, why.as_str().into());
            }
            Some(Ending { why, .. }) => {
                return (self.lively(), format!("stopping: {why}").into());
            }
            None => {}
        }
        let text = match self.lively() {
            ClientStatus::Running => "its tasks run",
            _ => "it is being started",
        };
        (self.lively(), text.into())
    }

    /// Running once every task has been.
    pub(super) fn lively(&self) -> ClientStatus {
        let started = |state: &TaskState| state.started_at != 0;
        let states = &self.record.states;
        if !states.is_empty() && states.values().all(started) {
            ClientStatus::Running
        } else {
            ClientStatus::Pending
        }
    }
}
