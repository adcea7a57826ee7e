//! The life of one allocation on its node.
//!
//! A runner is an actor: it owns what belongs to its allocation, takes commands from a bounded queue, and tells what
//! became of it through [`Reports`]. Up, in this order: directories, images, network, shim, proxies registered, sidecar
//! ready, tasks started, services registered. Down: services withdrawn, a pause for proxies, tasks asked and then
//! killed, and everything before that in reverse. Each step is idempotent and remembered (`runner.json`), so a
//! runner in a new agent goes on where the one before it was, and touches nothing that runs.

mod actor;
mod environment;
mod node;
mod plan;
mod record;
mod restart;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use tokio::{sync::mpsc, task::JoinHandle};
use wharf_registry::model::platform::{Alloc, TaskGroup};

pub use node::{
    Connected, HostShims, Images, Link, Networks, Node, PreparedImage, Reports, Shim, Shims,
};

use self::actor::Actor;

/// Commands that wait for a runner; more say nothing new.
const COMMANDS: usize = 4;

/// An allocation and the group of its job's version that it is an instance of.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub alloc: Arc<Alloc>,
    pub group: Arc<TaskGroup>,
}

/// A runner's handle. Dropping it abandons the allocation: what runs goes on, for the next agent to find.
#[derive(Debug)]
pub struct AllocRunner {
    commands: mpsc::Sender<String>,
    actor: JoinHandle<()>,
}

impl Assignment {
    /// What was assigned, as an earlier agent wrote it down.
    pub fn load(allocs: &Path, id: &str) -> Option<Self> {
        let text = std::fs::read(allocs.join(id).join("alloc.json")).ok()?;
        let (alloc, group): (Alloc, TaskGroup) = serde_json::from_slice(&text).ok()?;
        Some(Self {
            alloc: Arc::new(alloc),
            group: Arc::new(group),
        })
    }

    fn save(&self, directory: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(&(&*self.alloc, &*self.group))?;
        record::write(&directory.join("alloc.json"), &text)
    }

    /// Whether something of the allocation may still be there.
    pub fn is_unfinished(allocs: &Path, id: &str) -> bool {
        let directory = allocs.join(id);
        // A record that cannot be read says nothing of what runs.
        directory.join("alloc.json").exists()
            && record::Record::load(&directory).is_ok_and(|record| !record.done)
    }
}

impl AllocRunner {
    /// Starts the allocation, or goes on with it. `ended` is called when nothing of it is left.
    pub fn start(
        assignment: Assignment,
        node: Arc<Node>,
        ended: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS);
        let actor = tokio::spawn(async move {
            Actor::new(assignment, node).run(received).await;
            ended();
        });
        Self { commands, actor }
    }

    /// Takes the allocation down as planned; why is for people. Asked once or more.
    pub fn stop(&self, why: &str) {
        // A full queue holds the same wish already; a runner that is gone has fulfilled it.
        let _ = self.commands.try_send(why.to_owned());
    }

    /// Whether nothing of the allocation is left.
    pub fn is_finished(&self) -> bool {
        self.actor.is_finished()
    }

    /// Waits until nothing of the allocation is left.
    pub async fn finished(&mut self) {
        // A panic has been reported as such, and what runs will be found by the next agent.
        let _ = (&mut self.actor).await;
    }
}

impl Drop for AllocRunner {
    fn drop(&mut self) {
        self.actor.abort();
    }
}

/// Where the output of a task is.
pub fn log_dir(allocs: &Path, alloc: &str, task: &str) -> std::path::PathBuf {
    allocs.join(alloc).join("tasks").join(task).join("logs")
}
