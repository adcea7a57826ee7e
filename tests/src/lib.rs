//! Drives the real `wharf` binary over real sockets.
//!
//! Everything here is what a user has: processes, signals, ports, HTTP, files. Nothing waits by
//! sleeping a fixed time: a test waits for what it wants to see, until a deadline.

#![forbid(unsafe_code)]

mod agent;
mod backend;
mod binary;
mod chance;
mod disk;
mod distribution;
pub mod history;
mod http;
mod namespace;
mod ports;
mod process;
pub mod promises;
mod requirement;
mod stop;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use agent::Agent;
pub use backend::Backend;
pub use binary::{as_consul, wharf};
pub use chance::{Chance, chaos_duration, chaos_seed};
pub use disk::{FreezableDisk, SmallDisk};
pub use distribution::Distribution;
pub use http::{Http, Reply};
pub use namespace::{Network, in_network};
pub use ports::{Ports, free_port};
pub use process::{Ended, Process, run, run_with_input};
pub use requirement::missing;
pub use stop::StopOnDrop;

/// How long anything that should happen soon may take on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, looking again and again. Says whether it did within `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    eventually_some(limit, || condition().then_some(())).is_some()
}

/// Waits until `attempt` gives a value.
pub fn eventually_some<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        // The pause between two looks, not a guess at how long something takes.
        thread::sleep(Duration::from_millis(20));
    }
}
