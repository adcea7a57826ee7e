mod convergence;
mod placement;
mod reconciliation;

use std::sync::Arc;

use wharf_registry::model::{
    Str,
    platform::{Alloc, Driver, DriverHealth, Job, PlatformNode, Port, Resources, Task, TaskGroup},
};

fn node(id: &str, cpu: u64, memory_mb: u64) -> Arc<PlatformNode> {
    let healthy = DriverHealth {
        healthy: true,
        reason: "".into(),
    };
    Arc::new(PlatformNode {
        id: id.into(),
        name: id.into(),
        resources: Resources {
            cpu,
            memory_mb,
            memory_max_mb: 0,
        },
        drivers: [(Driver::Exec, healthy)].into(),
        ..PlatformNode::default()
    })
}

/// A group of one exec task.
fn group(name: &str, count: u32, cpu: u64, memory_mb: u64) -> TaskGroup {
    TaskGroup {
        name: name.into(),
        count,
        tasks: vec![Task {
            name: "task".into(),
            driver: Driver::Exec,
            command: "/bin/true".into(),
            resources: Resources {
                cpu,
                memory_mb,
                memory_max_mb: 0,
            },
            ..Task::default()
        }],
        ..TaskGroup::default()
    }
}

fn with_port(mut group: TaskGroup, label: &str, fixed: u16, to: u16) -> TaskGroup {
    group.network.ports.push(Port {
        label: label.into(),
        r#static: fixed,
        to,
    });
    group
}

fn job(name: &str, groups: Vec<TaskGroup>) -> Job {
    Job {
        id: name.into(),
        name: name.into(),
        groups: groups.into_iter().map(Arc::new).collect(),
        ..Job::default()
    }
}

/// A live allocation of web's group web.
fn alloc(id: &str, index: u32, node: &str) -> Alloc {
    Alloc {
        id: id.into(),
        name: Alloc::name_of("web", "web", index),
        job_name: "web".into(),
        group: "web".into(),
        index,
        node_id: node.into(),
        node: node.into(),
        ..Alloc::default()
    }
}

fn text(name: &str) -> Str {
    name.into()
}
