//! What the runner of an allocation asks of whoever keeps the node's services: the agent.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wharf_registry::model::{
    Str,
    platform::{AllocPort, TaskGroup},
};

use crate::network::PortMapping;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An allocation as far as its services go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AllocServices {
    /// The allocation's id.
    pub alloc: Str,
    pub job: Str,
    pub group: Arc<TaskGroup>,
    /// Its own address; `None`: it has the node's network.
    pub address: Option<IpAddr>,
    pub ports: Vec<AllocPort>,
}

/// A sidecar to run beside the tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// The name of the service it speaks for.
    pub service: Str,
    /// The id it is registered with: `wharf connect proxy -proxy-id=ID`.
    pub id: Str,
    /// The port it listens on, in the network of the allocation.
    pub port: u16,
    /// What has to lead to it, where other nodes reach it by this one's address.
    pub mapping: Option<PortMapping>,
    /// Where it may serve its metrics; `None`: nowhere, as the network is not its own.
    pub admin: Option<SocketAddr>,
}

/// Why services are not registered.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error("no sidecar is known for the allocation {0}: it was not prepared")]
    Unknown(Str),
    #[error("service {service:?}: {reason}")]
    Service { service: Str, reason: String },
    #[error("what was registered for the allocation {alloc} cannot be kept: {source}")]
    Keep { alloc: Str, source: std::io::Error },
}

/// The services of this node's allocations, in the catalog and in its proxies.
///
/// In the order of an allocation's life: [`prepare`](Services::prepare), its sidecars start, its tasks start,
/// [`publish`](Services::publish), [`withdraw`](Services::withdraw), its tasks are stopped,
/// [`remove`](Services::remove). Each is idempotent. Between them [`task_down`](Services::task_down) and
/// [`task_up`](Services::task_up) as tasks end and start by themselves.
///
/// What was prepared and published is found registered again after a restart of the agent, with the status it had.
pub trait Services: fmt::Debug + Send + Sync + 'static {
    /// Registers the proxies of an allocation, so that their processes find their configuration. Its services are not
    /// found yet.
    fn prepare(
        &self,
        services: AllocServices,
    ) -> BoxFuture<'_, Result<Vec<Sidecar>, ServicesError>>;

    /// Registers the services: they are found as soon as their checks pass.
    fn publish<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>>;

    /// Takes the services out of the catalog; they are gone from there when this returns, unless the catalog cannot
    /// be written for some seconds. The sidecars stay registered, out of service, so that what the tasks still call
    /// works on.
    fn withdraw<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>>;

    /// Forgets the allocation, sidecars included.
    fn remove<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), ServicesError>>;

    /// A task has ended by itself: every service of the allocation is critical at once, without waiting for a check.
    fn task_down(&self, alloc: &str, task: &str, why: &str);

    /// It runs again. A service is passing when all tasks run and its own checks say so.
    fn task_up(&self, alloc: &str, task: &str);

    /// Forgets all allocations but these. Returns those that were forgotten.
    fn sweep<'a>(
        &'a self,
        known: &'a HashSet<String>,
    ) -> BoxFuture<'a, Result<Vec<Str>, ServicesError>>;
}

/// Where the tasks of a group reach its upstreams: `WHARF_UPSTREAM_ADDR_<service>`, `_IP_` and `_PORT_`. What cannot be
/// in the name of a variable is an underscore.
pub fn upstream_env(group: &TaskGroup) -> Vec<(String, String)> {
    let sidecars = group
        .services
        .iter()
        .filter_map(|service| service.sidecar());
    let upstreams = sidecars.flat_map(|sidecar| &sidecar.proxy.upstreams);
    upstreams
        .flat_map(|upstream| {
            let name: String = upstream
                .destination_name
                .chars()
                .map(|letter| {
                    if letter.is_ascii_alphanumeric() {
                        letter
                    } else {
                        '_'
                    }
                })
                .collect();
            let ip = match &*upstream.local_bind_address {
                "" => "127.0.0.1",
                address => address,
            };
            let port = upstream.local_bind_port;
            let address = match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            };
            [
                (format!("WHARF_UPSTREAM_ADDR_{name}"), address),
                (format!("WHARF_UPSTREAM_IP_{name}"), ip.to_owned()),
                (format!("WHARF_UPSTREAM_PORT_{name}"), port.to_string()),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_told_as_variables() {
        let group: TaskGroup = serde_json::from_value(serde_json::json!({
            "Name": "client",
            "Services": [{ "Name": "client", "Connect": { "SidecarService": { "Proxy": { "Upstreams": [
                { "DestinationName": "my-db", "LocalBindPort": 5432 },
                { "DestinationName": "web", "LocalBindPort": 8080, "LocalBindAddress": "::1" },
            ] } } } }],
        }))
        .expect("a group");
        let env = upstream_env(&group);
        let value = |name: &str| {
            env.iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(value("WHARF_UPSTREAM_ADDR_my_db"), Some("127.0.0.1:5432"));
        assert_eq!(value("WHARF_UPSTREAM_IP_my_db"), Some("127.0.0.1"));
        assert_eq!(value("WHARF_UPSTREAM_PORT_my_db"), Some("5432"));
        assert_eq!(value("WHARF_UPSTREAM_ADDR_web"), Some("[::1]:8080"));
        assert_eq!(env.len(), 6);
    }
}
