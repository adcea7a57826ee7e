use serde::{Deserialize, Serialize};

use super::{UnixNanos, names};
use crate::model::{Str, StrMap, is_default};

/// How many events of a task are kept: the newest.
pub const MAX_TASK_EVENTS: usize = 20;

/// What became of a task, as its node reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskState {
    pub state: TaskPhase,
    /// It ended, and is not restarted, because of an error.
    pub failed: bool,
    pub restarts: u32,
    pub started_at: UnixNanos,
    pub finished_at: UnixNanos,
    /// Of the latest run that ended by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended the latest run; 0: none did.
    #[serde(skip_serializing_if = "is_default")]
    pub signal: i32,
    #[serde(rename = "OOMKilled", skip_serializing_if = "is_default")]
    pub oom_killed: bool,
    /// In the order of time.
    pub events: Vec<TaskEvent>,
}

impl TaskState {
    /// Adds an event, and forgets the oldest when there are too many.
    pub fn record(&mut self, event: TaskEvent) {
        self.events.push(event);
        let excess = self.events.len().saturating_sub(MAX_TASK_EVENTS);
        self.events.drain(..excess);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskPhase {
    #[default]
    Pending,
    Running,
    Dead,
}

names!(TaskPhase { Pending => "pending", Running => "running", Dead => "dead" });

/// Something that happened to a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskEvent {
    pub time: UnixNanos,
    /// One or two words for programs: `Received`, `Image`, `Started`, `Terminated`, `Restarting`,
    /// `Killing`, `Killed`.
    #[serde(rename = "Type")]
    pub kind: Str,
    /// One line for people.
    pub message: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub details: StrMap,
}
