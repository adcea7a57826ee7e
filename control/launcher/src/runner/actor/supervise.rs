//! While it runs: what the shim tells, restarts, and the death of the shim.

use tokio::time::{Instant, sleep_until};
use wharf_registry::model::{Str, StrMap, platform::TaskPhase};

use super::{Actor, Decision, Event, Outcome, nanos, now_millis};
use crate::shim::protocol::{EventKind, ExitRecord};

impl Actor {
    pub(super) async fn supervise(&mut self) -> Outcome {
        loop {
            let due = self.due.iter().min_by_key(|(_, at)| **at);
            let (name, at) = match due {
                Some((name, at)) => (Some(name.clone()), *at),
                None => (None, Instant::now()),
            };
            let Some(line) = &mut self.line else {
                return Outcome::Failed("the shim is gone".into());
            };
            let next = tokio::select! {
                event = line.next() => Some(event),
                () = sleep_until(at), if name.is_some() => None,
            };
            let result = match (next, name) {
                (Some(Some(event)), _) => match self.handle(event).await {
                    Some(outcome) => return outcome,
                    None => Ok(()),
                },
                (Some(None), _) => self.start_over().await,
                (None, Some(name)) => {
                    self.due.remove(&name);
                    self.start(&name).await
                }
                (None, None) => Ok(()),
            };
            if let Err(why) = result {
                return Outcome::Failed(why);
            }
        }
    }

    pub(super) async fn handle(&mut self, event: Event) -> Option<Outcome> {
        self.record.last_event = event.seq;
        let mut outcome = None;
        match event.kind {
            EventKind::TaskStarted { task, .. } => self.task_started(&task.into(), event.at).await,
            EventKind::TaskExited { task, exit } => outcome = self.task_exited(&task.into(), exit),
            EventKind::TaskOutOfMemory { task } => {
                let why = "the kernel killed a process of it for want of memory";
                self.event(&task.into(), "Out of Memory", why);
            }
            EventKind::TaskKilled { task } => {
                self.event(
                    &task.into(),
                    "Killed",
                    "it did not end in time and was killed",
                );
            }
            EventKind::LogLost { stream, bytes, why } => {
                if let Some((task, stream)) = stream.split_once('/') {
                    let text = format!("{bytes} bytes of {stream} were lost: {why}");
                    self.event(&task.into(), "Output Lost", text);
                }
            }
            EventKind::SidecarStarted { .. } => {}
            EventKind::SidecarReady => self.sidecar_ready = true,
            EventKind::SidecarExited { code, signal, .. } => {
                self.sidecar_ready = false;
                let how = ended(code, signal);
                tracing::warn!(alloc = &*self.alloc.id, "the sidecar {how}");
            }
            EventKind::SidecarFailed { why, .. } => {
                tracing::warn!(alloc = &*self.alloc.id, %why, "the sidecar does not start");
            }
        }
        self.step();
        outcome
    }

    pub(super) async fn task_started(&mut self, name: &Str, at: u64) {
        let Some(state) = self.record.states.get_mut(name) else {
            return;
        };
        let again = state.restarts > 0;
        state.state = TaskPhase::Running;
        state.started_at = nanos(at);
        state.finished_at = 0;
        self.event(name, "Started", "the task was started");
        if again && !self.group.services.is_empty() {
            self.node.services.task_up(&self.alloc.id, name);
        }
        self.publish_if_up().await;
    }

    /// Registers the services once all tasks run.
    pub(super) async fn publish_if_up(&mut self) {
        let up = self
            .record
            .states
            .values()
            .all(|state| state.state == TaskPhase::Running);
        if self.record.published || !up || self.group.services.is_empty() {
            return;
        }
        let node = self.node.clone();
        match node.services.publish(&self.alloc.id).await {
            Ok(()) => self.record.published = true,
            // It runs; it is only not found. Told to people where they look for it.
            Err(error) => {
                let names: Vec<Str> = self.record.states.keys().cloned().collect();
                for name in names {
                    self.event(&name, "Service Failure", error.to_string());
                }
            }
        }
    }

    pub(super) fn task_exited(&mut self, name: &Str, exit: ExitRecord) -> Option<Outcome> {
        self.record.started.remove(name);
        let group = self.group.clone();
        let policy = &group.restart;
        let how = match &exit.failure {
            Some(failure) => failure.clone(),
            None => ended(exit.code, exit.signal),
        };
        let how = if exit.oom_killed {
            format!("{how}: out of memory")
        } else {
            how
        };
        let state = self.record.states.get_mut(name)?;
        state.state = TaskPhase::Dead;
        state.finished_at = nanos(exit.finished_at);
        state.exit_code = exit.code;
        state.signal = exit.signal.unwrap_or(0);
        state.oom_killed = exit.oom_killed;
        let kind = if exit.failure.is_some() {
            "Driver Failure"
        } else {
            "Terminated"
        };
        let details: StrMap = [
            ("exit_code", exit.code.map(|code| code.to_string())),
            ("signal", exit.signal.map(|signal| signal.to_string())),
            ("oom_killed", exit.oom_killed.then(|| "true".to_owned())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), value?.into())))
        .collect();
        self.push(name, kind, &how, details);
        if self.record.ending.is_some() {
            return None;
        }
        // Known here, before any check could notice.
        if !group.services.is_empty() {
            self.node.services.task_down(&self.alloc.id, name, &how);
        }
        let history = self.record.restarts.entry(name.clone()).or_default();
        match history.decide(policy, now_millis()) {
            Decision::After(wait) => {
                if let Some(state) = self.record.states.get_mut(name) {
                    state.restarts += 1;
                    state.state = TaskPhase::Pending;
                }
                self.event(
                    name,
                    "Restarting",
                    format!("the task is started again in {wait:?}"),
                );
                self.due.insert(name.clone(), Instant::now() + wait);
                None
            }
            Decision::Fail => {
                if let Some(state) = self.record.states.get_mut(name) {
                    state.failed = true;
                }
                let attempts = policy.attempts;
                let text = format!(
                    "not started again: {attempts} restarts within {}",
                    policy.interval
                );
                self.event(name, "Not Restarting", text);
                Some(Outcome::Failed(format!("task {name:?} {how}")))
            }
        }
    }

    /// The shim is gone, and with it the parent of everything: what is left is swept, and the tasks count as ended.
    pub(super) async fn lost(&mut self) -> Result<(), String> {
        self.line = None;
        self.sidecar_ready = false;
        let node = self.node.clone();
        node.shims
            .sweep(self.places.group.clone())
            .await
            .map_err(|why| format!("what the shim left cannot be swept: {why}"))?;
        let running: Vec<Str> = self.record.started.iter().cloned().collect();
        for name in running {
            // It may have ended, and the record of it been written, before the shim was gone.
            let file = self.places.task(&name).join("exit.json");
            let began = self
                .record
                .states
                .get(&name)
                .map_or(0, |state| state.started_at);
            let exit = crate::shim::recorded_exit(&file)
                .filter(|exit| nanos(exit.finished_at) >= began && began > 0)
                .unwrap_or_else(|| ExitRecord {
                    failure: Some("its shim was killed, and the task with it".into()),
                    finished_at: now_millis(),
                    ..ExitRecord::default()
                });
            if let Some(Outcome::Failed(why)) = self.task_exited(&name, exit) {
                return Err(why);
            }
        }
        Ok(())
    }

    pub(super) async fn start_over(&mut self) -> Result<(), String> {
        tracing::warn!(alloc = &*self.alloc.id, "the shim of an allocation is gone");
        self.lost().await?;
        self.record.shim = false;
        self.step();
        self.shim().await?;
        self.sidecar().await
        // The tasks follow when their restart is due.
    }
}

fn ended(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
