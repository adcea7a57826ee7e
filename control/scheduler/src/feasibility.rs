//! Whether a node can take an instance, and what it lacks if not.

use std::{collections::BTreeMap, fmt};

use wharf_registry::model::{
    Str,
    platform::{Driver, NO_BRIDGE, NetworkMode, NodeStatus},
};

use crate::{Ask, Candidate};

/// Something that a node can lack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// The node is down.
    Down,
    /// An operator keeps new instances off it.
    Ineligible,
    NoDriver(Driver),
    DriverUnhealthy(Driver, Str),
    /// Instances cannot have networks of their own there, and why.
    NoBridge(Str),
    Cpu,
    Memory,
    /// A static port is taken, or the node's own.
    Port(u16),
    /// None of the dynamic ports is free.
    DynamicPorts,
}

/// How many nodes lack something, and how near the best of them comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    pub nodes: u32,
    /// The most that one of them has free: thousandths of a core, or MiB.
    pub most: u64,
}

/// Why there is no node for an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nowhere {
    pub nodes: u32,
    /// What it needs: thousandths of a core, and MiB.
    pub cpu: u64,
    pub memory_mb: u64,
    pub lacking: BTreeMap<Dimension, Lack>,
}

impl Nowhere {
    /// Whether a node lacks exactly this.
    pub fn lacks(&self, dimension: &Dimension) -> bool {
        self.lacking.contains_key(dimension)
    }

    pub(crate) fn note(&mut self, candidate: &Candidate, lacks: Vec<Dimension>) {
        for dimension in lacks {
            let most = match dimension {
                Dimension::Cpu => candidate.free_cpu(),
                Dimension::Memory => candidate.free_memory_mb(),
                _ => 0,
            };
            let lack = self.lacking.entry(dimension).or_default();
            lack.nodes += 1;
            lack.most = lack.most.max(most);
        }
    }
}

impl fmt::Display for Nowhere {
    /// One line: `no node has room for it: cpu: 2 nodes have less than 500 MHz...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("there is no node");
        }
        write!(f, "none of {}", nodes(self.nodes))?;
        f.write_str(" can take it")?;
        for (at, (dimension, lack)) in self.lacking.iter().enumerate() {
            f.write_str(if at == 0 { ": " } else { "; " })?;
            let (on, most) = (nodes(lack.nodes), lack.most);
            match dimension {
                Dimension::Down => write!(f, "{on} down")?,
                Dimension::Ineligible => write!(f, "{on} not eligible")?,
                Dimension::NoDriver(driver) => write!(f, "{on} without the driver {driver}")?,
                Dimension::DriverUnhealthy(driver, reason) => {
                    write!(f, "driver {driver} unhealthy on {on} ({reason})")?;
                }
                Dimension::NoBridge(reason) => {
                    write!(f, "no network for instances on {on} ({reason})")?;
                }
                Dimension::Cpu => {
                    let needed = self.cpu;
                    write!(
                        f,
                        "cpu exhausted on {on}: it needs {needed}m, {most}m free at most"
                    )?;
                }
                Dimension::Memory => {
                    let needed = self.memory_mb;
                    write!(
                        f,
                        "memory exhausted on {on}: it needs {needed} MiB, {most} MiB free at most"
                    )?;
                }
                Dimension::Port(port) => write!(f, "port {port} taken on {on}")?,
                Dimension::DynamicPorts => write!(f, "no dynamic port free on {on}")?,
            }
        }
        Ok(())
    }
}

fn nodes(count: u32) -> String {
    match count {
        1 => "1 node".to_owned(),
        many => format!("{many} nodes"),
    }
}

/// Everything that the node lacks for the instance; empty: it can take it.
pub(crate) fn lacks(ask: &Ask<'_>, candidate: &Candidate) -> Vec<Dimension> {
    let Some(node) = candidate.node() else {
        return vec![Dimension::Down];
    };
    // What is down or closed has nothing to offer: how full it is does not matter.
    if node.status == NodeStatus::Down {
        return vec![Dimension::Down];
    }
    if !node.eligible {
        return vec![Dimension::Ineligible];
    }
    let mut lacks = Vec::new();
    let drivers: std::collections::BTreeSet<Driver> =
        ask.group.tasks.iter().map(|task| task.driver).collect();
    for driver in drivers {
        match node.drivers.get(&driver) {
            None => lacks.push(Dimension::NoDriver(driver)),
            Some(health) if !health.healthy => {
                lacks.push(Dimension::DriverUnhealthy(driver, health.reason.clone()));
            }
            Some(_) => {}
        }
    }
    if ask.group.network.mode == NetworkMode::Bridge
        && let Some(reason) = node.attributes.get(NO_BRIDGE)
    {
        lacks.push(Dimension::NoBridge(reason.clone()));
    }
    if ask.resources.cpu > candidate.free_cpu() {
        lacks.push(Dimension::Cpu);
    }
    if ask.resources.memory_mb > candidate.free_memory_mb() {
        lacks.push(Dimension::Memory);
    }
    for port in &ask.group.network.ports {
        if port.r#static != 0 && candidate.is_port_taken(port.r#static) {
            lacks.push(Dimension::Port(port.r#static));
        }
    }
    lacks
}
