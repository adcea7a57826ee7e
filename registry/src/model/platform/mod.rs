//! What the platform runs: jobs as users write them, allocations of them on nodes, and the nodes.
//!
//! A [`Job`] is a list of [`TaskGroup`]s. Each instance of a group is an [`Alloc`]: its tasks share a
//! node, an address and a network. The serde definitions serve the API, the log and the snapshots, as
//! the rest of the model does; job files are decoded to them too, which is why some keys have a
//! second, singular name.
//!
//! Points in time are [`UnixNanos`]; durations are Go's, as text.

mod alloc;
mod group;
mod job;
mod node;
mod resources;
mod service;
mod task;
mod task_state;
mod validate;

pub use alloc::{Alloc, AllocPort, AllocUpdate, ClientStatus, DesiredStatus, NodeScore, Placement};
pub use group::{Network, NetworkMode, Port, Restart, RestartMode, TaskGroup};
pub use job::{Job, JobType};
pub use node::{BRIDGE, DriverHealth, NO_BRIDGE, NodeStatus, PlatformNode, PortRange};
pub use resources::Resources;
pub use service::{
    JobCheck, JobCheckType, JobConnect, JobProxy, JobService, JobSidecar, PortRef,
    SIDECAR_RESOURCES,
};
pub use task::{Driver, Logs, Task};
pub use task_state::{MAX_TASK_EVENTS, TaskEvent, TaskPhase, TaskState};
pub use validate::{KILL_SIGNALS, MAX_COUNT, Problem, signal_number};

/// Nanoseconds since 1970, as Nomad's API gives times; 0: never.
pub type UnixNanos = i64;

/// The names of a small enum: `as_str` and `Display`.
macro_rules! names {
    ($type:ident { $($variant:ident => $name:literal),* $(,)? }) => {
        impl $type {
            pub fn as_str(self) -> &'static str {
                match self {
                    $($type::$variant => $name),*
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
use names;

#[cfg(test)]
mod tests;
