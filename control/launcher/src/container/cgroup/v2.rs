//! Version 2: one tree, controllers switched on from the top, processes only in its leaves.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use super::{CgroupError, V2_CONTROLLERS, create_dir, v1::PERIOD, write};
use crate::container::Limits;

/// `cpu.weight` for shares of version 1, by the kernel's documented mapping of [2, 262144] to [1, 10000].
fn weight(millis: u32) -> u64 {
    let shares = (u64::from(millis) * 1024 / 1000).clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

/// The files to write for `limits`, in order.
pub(super) fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = vec![
        ("memory.max", limits.memory_max.to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("memory.low", limits.memory.to_string()),
        ("pids.max", limits.pids.to_string()),
        ("cpu.weight", weight(limits.cpu_millis).to_string()),
    ];
    if let Some(max) = limits.cpu_max_millis {
        let quota = (u64::from(max) * PERIOD / 1000).max(1000);
        files.push(("cpu.max", format!("{quota} {PERIOD}")));
    }
    files
}

/// Writes one of [`settings`]. A kernel without swap has no file for it, and no swap to forbid.
pub(super) fn set(group: &Path, file: &str, text: &str) -> Result<(), CgroupError> {
    let path = group.join(file);
    match write(&path, text) {
        Err(CgroupError::Io { source, .. })
            if file == "memory.swap.max"
                && matches!(
                    source.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                )
                && !path.exists() =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Makes the parents of `path` and switches the controllers on in each, from the root down.
pub(super) fn prepare_parents(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let wish = V2_CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    let mut at = PathBuf::from(root);
    let mut components = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .peekable();
    while let Some(component) = components.next() {
        write(&at.join("cgroup.subtree_control"), &wish)?;
        at.push(component);
        if components.peek().is_some() {
            create_dir(&at)?;
        }
    }
    Ok(())
}

/// For kernels without `cgroup.kill` (before 5.14): freeze, kill, thaw.
pub(super) fn kill_frozen(group: &Path, kill: &dyn Fn()) {
    let _ = fs::write(group.join("cgroup.freeze"), "1");
    let frozen = || {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        counter(&events, "frozen") == 1
    };
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until && !frozen() {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill();
    let _ = fs::write(group.join("cgroup.freeze"), "0");
}

/// `oom_kill` of `memory.events`.
pub(super) fn oom_kills(text: &str) -> u64 {
    counter(text, "oom_kill")
}

/// The number after `key` in lines of `key number`.
pub(super) fn counter(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or(0)
}
