//! What this node says of itself to the scheduler.

use std::{collections::BTreeMap, fs, thread};

use wharf_launcher::container::{Missing, missing};
use wharf_registry::model::{
    Str, StrMap,
    platform::{BRIDGE, Driver, DriverHealth, NO_BRIDGE, PlatformNode, Resources},
};

/// Memory that stays for the system and for wharf itself, in mebibytes.
const KEPT_MB: u64 = 128;

/// The node as it is now. `bridge` is why allocations cannot have networks of their own, if they cannot.
pub(super) fn node(id: &str, name: &str, address: &str, bridge: Option<String>) -> PlatformNode {
    let Missing { container, exec } = missing();
    let drivers = BTreeMap::from([
        (Driver::Container, health(container)),
        (Driver::Exec, health(exec)),
    ]);
    let mut node = bare(id, name, address);
    node.drivers = drivers;
    match bridge {
        None => node.attributes.insert(BRIDGE.into(), "available".into()),
        Some(why) => node.attributes.insert(NO_BRIDGE.into(), why.into()),
    };
    node
}

/// A node that runs nothing, and why.
pub(super) fn idle(id: &str, name: &str, address: &str, why: &str) -> PlatformNode {
    let mut node = bare(id, name, address);
    let drivers = [Driver::Container, Driver::Exec];
    node.drivers = drivers
        .map(|driver| (driver, health(Some(why.to_owned()))))
        .into();
    node
}

fn bare(id: &str, name: &str, address: &str) -> PlatformNode {
    PlatformNode {
        id: id.into(),
        name: name.into(),
        address: address.into(),
        attributes: attributes(),
        resources: Resources {
            cpu: cores() * 1000,
            memory_mb: memory_mb().saturating_sub(KEPT_MB),
            memory_max_mb: 0,
        },
        ..PlatformNode::default()
    }
}

fn health(missing: Option<String>) -> DriverHealth {
    DriverHealth {
        healthy: missing.is_none(),
        reason: missing.unwrap_or_default().into(),
    }
}

fn cores() -> u64 {
    thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

fn memory_mb() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
        / 1024
}

fn attributes() -> StrMap {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cgroups = wharf_launcher::container::cgroup::Hierarchy::detect();
    [
        ("kernel.name", "linux".to_owned()),
        ("kernel.version", read("/proc/sys/kernel/osrelease")),
        ("cpu.arch", std::env::consts::ARCH.to_owned()),
        ("cpu.numcores", cores().to_string()),
        ("memory.totalmb", memory_mb().to_string()),
        (
            "cgroup.version",
            cgroups
                .map_or("none", |hierarchy| hierarchy.version())
                .to_owned(),
        ),
        ("wharf.version", env!("CARGO_PKG_VERSION").to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (Str::from(name), Str::from(value)))
    .collect()
}
