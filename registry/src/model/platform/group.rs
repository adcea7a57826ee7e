use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;

use super::{JobService, Resources, SIDECAR_RESOURCES, Task, names};
use crate::model::{Str, is_default};

/// Tasks that run together: on one node, with one address, started and stopped as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskGroup {
    /// Unique in the job.
    pub name: Str,
    /// How many instances there are to be.
    pub count: u32,
    pub network: Network,
    pub restart: Restart,
    /// How long a planned stop waits between taking the services out of the catalog and the first
    /// signal, so that proxies and clients have let go.
    pub shutdown_delay: GoDuration,
    #[serde(alias = "Service", skip_serializing_if = "is_default")]
    pub services: Vec<JobService>,
    #[serde(alias = "Task")]
    pub tasks: Vec<Task>,
}

impl Default for TaskGroup {
    fn default() -> Self {
        TaskGroup {
            name: Str::default(),
            count: 1,
            network: Network::default(),
            restart: Restart::default(),
            shutdown_delay: GoDuration::from_secs(1),
            services: Vec::new(),
            tasks: Vec::new(),
        }
    }
}

impl TaskGroup {
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| &*task.name == name)
    }

    pub fn port(&self, label: &str) -> Option<&Port> {
        self.network.ports.iter().find(|port| &*port.label == label)
    }

    /// What one instance reserves: its tasks, and a sidecar for each service that has one.
    pub fn resources(&self) -> Resources {
        let sidecars = self
            .services
            .iter()
            .filter(|service| service.sidecar().is_some())
            .map(|_| SIDECAR_RESOURCES);
        let tasks = self.tasks.iter().map(|task| task.resources);
        tasks.chain(sidecars).fold(Resources::NONE, Resources::plus)
    }

    /// Whether an instance of `other` may go on as one of this group: all but the count is the same.
    pub fn is_same_instance(&self, other: &TaskGroup) -> bool {
        self.name == other.name
            && self.network == other.network
            && self.restart == other.restart
            && self.shutdown_delay == other.shutdown_delay
            && self.services == other.services
            && self.tasks == other.tasks
    }
}

/// The network that the tasks of an instance share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    pub mode: NetworkMode,
    #[serde(alias = "Port", skip_serializing_if = "is_default")]
    pub ports: Vec<Port>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A network namespace with an address on the node's bridge; ports are mapped.
    #[default]
    Bridge,
    /// The node's own network.
    Host,
}

names!(NetworkMode { Bridge => "bridge", Host => "host" });

/// A port by the name that services, checks and environment variables use for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Port {
    /// Unique in the group.
    pub label: Str,
    /// The port of the node; 0: one that the scheduler finds free.
    pub r#static: u16,
    /// The port that the task listens on in its own network; 0: the same as the node's.
    pub to: u16,
}

/// What the node does when a task ends by itself.
///
/// The first restart waits `Delay`, each further one within `Interval` twice as long, up to
/// `MaxDelay`. After `Attempts` restarts within `Interval` the mode decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Restart {
    pub attempts: u32,
    pub interval: GoDuration,
    pub delay: GoDuration,
    pub max_delay: GoDuration,
    pub mode: RestartMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestartMode {
    /// The instance has failed, and is replaced.
    #[default]
    Fail,
    /// The next restart waits until the interval is over.
    Delay,
}

names!(RestartMode { Fail => "fail", Delay => "delay" });

impl Default for Restart {
    /// Nomad's two attempts in half an hour; but it is a program that crashed, so the first restart
    /// comes at once.
    fn default() -> Self {
        Restart {
            attempts: 2,
            interval: GoDuration::from_secs(30 * 60),
            delay: GoDuration::from_millis(500),
            max_delay: GoDuration::from_secs(15),
            mode: RestartMode::Fail,
        }
    }
}

impl Restart {
    /// How long the restart that follows `earlier` ones of the same interval waits.
    pub fn delay_after(&self, earlier: u32) -> std::time::Duration {
        let doubled = self
            .delay
            .to_std()
            .saturating_mul(1u32.checked_shl(earlier).unwrap_or(u32::MAX));
        doubled.min(self.max_delay.to_std().max(self.delay.to_std()))
    }
}
