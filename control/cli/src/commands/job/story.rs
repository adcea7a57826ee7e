//! What happened to an allocation, in the order of time.

use wharf_registry::model::platform::{Alloc, ClientStatus, DesiredStatus};

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Event {
    pub(crate) time: i64,
    /// Of which task; empty: of the allocation.
    pub(crate) task: String,
    pub(crate) kind: String,
    pub(crate) message: String,
}

impl Event {
    /// Whether it is about the end of the allocation.
    pub(super) fn is_end(&self) -> bool {
        self.task.is_empty() && self.kind != "Placed"
    }
}

/// Everything that is known, oldest first. What happened at one time keeps its natural order.
pub(crate) fn story(alloc: &Alloc) -> Vec<Event> {
    let of_alloc = |time: i64, kind: &str, message: String| Event {
        time,
        task: String::new(),
        kind: kind.to_owned(),
        message,
    };
    let placed = match &*alloc.previous_alloc {
        "" => format!("on node {}", alloc.node),
        previous => format!("on node {}, after {}", alloc.node, super::short(previous)),
    };
    let mut events = vec![of_alloc(alloc.create_time, "Placed", placed)];
    for (task, state) in &alloc.task_states {
        events.extend(state.events.iter().map(|event| Event {
            time: event.time,
            task: task.to_string(),
            kind: event.kind.to_string(),
            message: event.message.to_string(),
        }));
    }
    if alloc.desired_status == DesiredStatus::Stop {
        let why = alloc.desired_description.to_string();
        events.push(of_alloc(alloc.stop_time, "Stopping", why));
    }
    if !alloc.is_live() {
        let kind = match alloc.client_status {
            ClientStatus::Failed => "Failed",
            ClientStatus::Lost => "Lost",
            _ => "Complete",
        };
        let why = alloc.client_description.to_string();
        events.push(of_alloc(alloc.end_time, kind, why));
    }
    events.sort_by_key(|event| event.time);
    events
}
