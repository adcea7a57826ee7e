//! From a task of a job to what a shim is asked to start.

use std::{collections::BTreeMap, path::PathBuf};

use wharf_registry::model::platform::{Alloc, Driver, Task, TaskGroup, signal_number};

use super::{
    environment::{EXE, expand, variables},
    node::{Connected, Node, PreparedImage},
    record::Places,
};
use crate::{
    container::{Bind, Limits, Rootfs, Spec},
    shim::protocol::{LogSettings, StartTask},
};

/// Processes and threads of one task.
const PIDS: u32 = 4096;

/// Who runs programs of the host that do not say as whom: nobody, by number, so that it needs no entry.
const NOBODY: &str = "65534:65534";

const MIB: u64 = 1 << 20;

/// A task that cannot be started as it is written.
pub(super) type Unfit = String;

/// What to ask for `task` of `alloc`.
pub(super) fn start_task(
    node: &Node,
    places: &Places,
    alloc: &Alloc,
    group: &TaskGroup,
    task: &Task,
    image: Option<&PreparedImage>,
    connected: &Connected,
) -> Result<StartTask, Unfit> {
    let known = variables(
        alloc,
        group,
        &task.name,
        connected.address,
        connected.netns.is_some(),
    );
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for entry in image.into_iter().flat_map(|image| &image.env) {
        if let Some((name, value)) = entry.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(known.clone());
    for (name, value) in &task.env {
        env.insert(name.to_string(), expand(value, &known));
    }
    let mut argv: Vec<String> = match (&*task.command, image) {
        ("", Some(image)) => image.entrypoint.clone(),
        ("", None) => return Err("the task has no command".into()),
        (command, _) => vec![expand(command, &known)],
    };
    let args: Vec<String> = task.args.iter().map(|arg| expand(arg, &known)).collect();
    match image {
        // As elsewhere: arguments of the job take the place of the image's.
        Some(image) if task.command.is_empty() && args.is_empty() => argv.extend(image.cmd.clone()),
        _ => argv.extend(args),
    }
    if argv.is_empty() {
        return Err("neither the task nor its image names a command".into());
    }
    let mut binds = Vec::new();
    for (text, file) in [
        (connected.resolv_conf.is_some(), "resolv.conf"),
        (connected.hosts.is_some(), "hosts"),
        (true, "hostname"),
    ] {
        if text {
            binds.push(Bind {
                source: places.dir.join("network").join(file),
                target: PathBuf::from("/etc").join(file),
                read_only: true,
            });
        }
    }
    if argv.iter().any(|word| word.contains(EXE)) || env.values().any(|value| value.contains(EXE)) {
        binds.push(Bind {
            source: node.program.clone(),
            target: EXE.into(),
            read_only: true,
        });
    }
    let user = match (&*task.user, image) {
        ("", Some(image)) => image.user.clone(),
        ("", None) => NOBODY.to_owned(),
        (user, _) => user.to_owned(),
    };
    let work_dir = match (&*task.work_dir, image) {
        ("", Some(image)) if !image.work_dir.is_empty() => image.work_dir.clone(),
        ("", _) => "/".to_owned(),
        (dir, _) => dir.to_owned(),
    };
    let (rootfs, masked) = match (task.driver, image) {
        (Driver::Exec, _) => (Rootfs::Host, node.masked.clone()),
        (Driver::Container, Some(image)) => (Rootfs::Layers(image.layers.clone()), Vec::new()),
        (Driver::Container, None) => return Err("the task has no image".into()),
    };
    let dir = places.task(&task.name);
    let resources = &task.resources;
    Ok(StartTask {
        task: task.name.to_string(),
        spec: Spec {
            id: format!(
                "{}-{}",
                places.run.file_name().unwrap_or_default().display(),
                task.name
            ),
            bundle: dir.join("bundle"),
            rootfs,
            argv,
            env,
            user,
            cwd: work_dir.into(),
            hostname: connected.hostname.clone(),
            netns: connected.netns.clone(),
            cgroup: places.group.join(&*task.name),
            limits: Limits {
                cpu_millis: u32::try_from(resources.cpu).unwrap_or(u32::MAX),
                cpu_max_millis: None,
                memory: resources.memory_mb.saturating_mul(MIB),
                memory_max: resources.memory_limit_mb().saturating_mul(MIB),
                pids: PIDS,
            },
            binds,
            read_only: task.readonly_rootfs,
            masked,
        },
        logs: LogSettings {
            dir: dir.join("logs"),
            max_files: task.logs.max_files,
            max_file_bytes: task.logs.max_file_size_mb.saturating_mul(MIB),
        },
        exit_file: dir.join("exit.json"),
    })
}

/// The signal that asks a task to end.
pub(super) fn kill_signal(task: &Task, image: Option<&PreparedImage>) -> i32 {
    let named = match (&*task.kill_signal, image) {
        ("", Some(image)) => image.stop_signal.clone(),
        (name, _) => name.to_owned(),
    };
    signal(&named).unwrap_or(libc::SIGTERM)
}

/// A signal as jobs and images name it: by name, or by number.
fn signal(name: &str) -> Option<i32> {
    match name.trim().parse() {
        Ok(number) => (1..=64).contains(&number).then_some(number),
        // What systemd in a container is asked with.
        Err(_) if name == "SIGRTMIN+3" => Some(libc::SIGRTMIN() + 3),
        Err(_) => signal_number(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("SIGTERM"), Some(15));
        assert_eq!(signal("quit"), Some(3));
        assert_eq!(signal("9"), Some(9));
        assert_eq!(signal("SIGRTMIN+3"), Some(37));
        for none in ["", "SIG", "0", "99", "-1", "NOPE"] {
            assert_eq!(signal(none), None, "{none}");
        }
    }
}
