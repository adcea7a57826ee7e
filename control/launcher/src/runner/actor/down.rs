//! The way down, whatever the reason and however far up it came.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use wharf_registry::model::platform::{Task, TaskPhase};

use super::{Actor, ClientError, Ending, Outcome, Request, plan};

/// How long after its SIGKILL a task may take to be gone.
const GRACE: Duration = Duration::from_secs(15);

impl Actor {
    pub(super) async fn end(&mut self, outcome: Outcome) {
        let ending = match outcome {
            Outcome::Stop(why) => Ending { failed: false, why },
            Outcome::Failed(why) => Ending { failed: true, why },
        };
        let planned = !ending.failed;
        self.record.ending = Some(ending);
        self.due.clear();
        self.step();
        if self.line.is_none()
            && let Ok(Some(link)) = self
                .node
                .shims
                .connect(self.places.socket(), self.record.last_event)
                .await
        {
            self.link(link);
        }
        let node = self.node.clone();
        if !self.group.services.is_empty() {
            if let Err(error) = node.services.withdraw(&self.alloc.id).await {
                tracing::warn!(alloc = &*self.alloc.id, %error, "services are not withdrawn");
            }
            // Proxies and clients let go before the task does.
            let delay = self.group.shutdown_delay.to_std();
            if planned
                && self.record.published
                && !self.record.started.is_empty()
                && !delay.is_zero()
            {
                for name in self.record.started.clone() {
                    self.event(
                        &name,
                        "Waiting",
                        format!("out of service, signalled in {delay:?}"),
                    );
                }
                self.step();
                sleep(delay).await;
            }
        }
        self.stop_tasks().await;
        if let Some(line) = &mut self.line
            && let Err(error) = line.shutdown().await
        {
            tracing::warn!(alloc = &*self.alloc.id, %error, "the shim does not end as asked");
        }
        self.line = None;
        let clean = [
            node.shims.sweep(self.places.group.clone()).await,
            match self.group.services.is_empty() {
                true => Ok(()),
                false => node
                    .services
                    .remove(&self.alloc.id)
                    .await
                    .map_err(|e| e.to_string()),
            },
            node.networks.detach(&self.alloc.id).await,
        ];
        for why in clean.into_iter().filter_map(Result::err) {
            tracing::error!(alloc = &*self.alloc.id, %why, "something of an allocation is left");
        }
        node.images.release(&self.alloc.id, &self.group).await;
        self.places.clear();
        for state in self.record.states.values_mut() {
            state.state = TaskPhase::Dead;
        }
        self.record.done = true;
        self.step();
    }

    pub(super) async fn stop_tasks(&mut self) {
        let group = self.group.clone();
        let mut longest = Duration::ZERO;
        let stopping: Vec<&Task> = group
            .tasks
            .iter()
            .filter(|task| self.record.started.contains(&task.name))
            .collect();
        for task in stopping {
            let patience = task.kill_timeout.to_std();
            let signal = match self.record.signals.get(&task.name) {
                Some(signal) => *signal,
                None => plan::kill_signal(task, self.images.get(&task.name)),
            };
            self.event(
                &task.name,
                "Killing",
                format!("signal {signal}, killed after {patience:?}"),
            );
            longest = longest.max(patience);
            let stop = Request::Stop {
                task: task.name.to_string(),
                signal,
                timeout_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            };
            match self.ask(stop).await {
                // It has ended in the meantime, or there is nobody to ask: either way the sweep is thorough.
                Err(ClientError::Refused(_) | ClientError::Gone) | Ok(_) => {}
                Err(error) => {
                    tracing::warn!(alloc = &*self.alloc.id, %error, "a task is not stopped as asked");
                }
            }
        }
        self.step();
        let all = async {
            while !self.record.started.is_empty() {
                let Some(line) = &mut self.line else {
                    return;
                };
                let Some(event) = line.next().await else {
                    return;
                };
                self.handle(event).await;
            }
        };
        let _ = timeout(longest + GRACE, all).await;
    }
}
