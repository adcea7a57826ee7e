//! Version 1: a file per limit and per controller, a freezer to kill safely, an eventfd for want of memory.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

use super::{CgroupError, OomWatch, write};
use crate::container::Limits;

/// Period of the processor quota, in microseconds: the kernel's default.
pub(super) const PERIOD: u64 = 100_000;

/// What a container may do with devices: open the harmless ones, and make nodes, which then nobody can open.
const DEVICES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// `cpu.shares`: 1024 for each core, at least 2.
fn shares(millis: u32) -> u64 {
    (u64::from(millis) * 1024 / 1000).max(2)
}

/// The files to write for `limits`, in order.
pub(super) fn settings(controller: &str, limits: &Limits) -> Vec<(&'static str, String)> {
    match controller {
        "cpu" => {
            let mut files = vec![("cpu.shares", shares(limits.cpu_millis).to_string())];
            if let Some(max) = limits.cpu_max_millis {
                files.push(("cpu.cfs_period_us", PERIOD.to_string()));
                let quota = (u64::from(max) * PERIOD / 1000).max(1000);
                files.push(("cpu.cfs_quota_us", quota.to_string()));
            }
            files
        }
        "memory" => vec![
            ("memory.limit_in_bytes", limits.memory_max.to_string()),
            // With swap the limit is on the sum: no more than without means none.
            ("memory.memsw.limit_in_bytes", limits.memory_max.to_string()),
            ("memory.soft_limit_in_bytes", limits.memory.to_string()),
        ],
        "pids" => vec![("pids.max", limits.pids.to_string())],
        "devices" => std::iter::once(("devices.deny", "a".to_owned()))
            .chain(
                DEVICES
                    .iter()
                    .map(|rule| ("devices.allow", (*rule).to_owned())),
            )
            .collect(),
        _ => Vec::new(),
    }
}

/// Writes one of [`settings`]. A kernel without swap accounting lacks its file; swappiness then keeps the
/// container's pages in memory.
pub(super) fn set(group: &Path, file: &str, text: &str) -> Result<(), CgroupError> {
    let path = group.join(file);
    if file.starts_with("memory.memsw") && !path.exists() {
        return write(&group.join("memory.swappiness"), "0");
    }
    write(&path, text)
}

/// Stops everybody in the group, runs `kill`, and lets them go to their deaths. While they are stopped none can
/// fork a process that `kill` does not see.
pub(super) fn kill_frozen(group: &Path, kill: &dyn Fn()) {
    let state = group.join("freezer.state");
    let _ = fs::write(&state, "FROZEN");
    // A process in an uninterruptible call freezes late, and may not: then it is killed as it is.
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until
        && fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FREEZING")
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill();
    let _ = fs::write(&state, "THAWED");
}

/// `oom_kill` of `memory.oom_control`.
pub(super) fn oom_kills(text: &str) -> u64 {
    super::v2::counter(text, "oom_kill")
}

pub(super) fn watch_oom(group: &Path) -> Result<OomWatch, CgroupError> {
    let path = group.join("memory.oom_control");
    let at = |source: io::Error| CgroupError::Io {
        path: path.clone(),
        source,
    };
    let control = fs::File::open(&path).map_err(at)?;
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let event = rustix::event::eventfd(0, flags).map_err(|error| at(error.into()))?;
    let wish = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    write(&group.join("cgroup.event_control"), &wish)?;
    Ok(OomWatch::Counter(event))
}
