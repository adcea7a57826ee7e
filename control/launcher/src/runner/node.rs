//! What the runners of a node share, and what they ask of others, so that tests can stand in for them.

use std::{
    collections::HashSet,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::mpsc;
use wharf_registry::model::platform::{Alloc, AllocUpdate, Task, TaskGroup};

use crate::{
    network::PortMapping,
    services::{BoxFuture, Services, Sidecar},
    shim::{
        Client, ClientError, Spawn,
        protocol::{Event, Reply, Request},
    },
};

/// What a container task gets of its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreparedImage {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub user: String,
    pub work_dir: String,
    pub stop_signal: String,
    /// Directories for overlayfs, the top one first.
    pub layers: Vec<PathBuf>,
}

/// Images of this node.
pub trait Images: fmt::Debug + Send + Sync {
    /// Has the image of a task unpacked, and keeps it for the allocation. Why it cannot, in words for its user.
    fn prepare<'a>(
        &'a self,
        alloc: &'a str,
        task: &'a Task,
    ) -> BoxFuture<'a, Result<PreparedImage, String>>;

    /// The allocation needs its images no more.
    fn release<'a>(&'a self, alloc: &'a str, group: &'a TaskGroup) -> BoxFuture<'a, ()>;

    /// Lets go of the images of all allocations but these.
    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>>;
}

/// An allocation's place in the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// Its namespace; `None`: it has the node's own network.
    pub netns: Option<PathBuf>,
    /// Where it is reached from this node.
    pub address: Option<IpAddr>,
    pub hostname: String,
    /// Texts for `/etc`; `None`: what the root filesystem has.
    pub resolv_conf: Option<String>,
    pub hosts: Option<String>,
}

/// Networks of this node.
pub trait Networks: fmt::Debug + Send + Sync {
    /// Connects an allocation; again with other ports changes the ports only.
    fn attach<'a>(
        &'a self,
        alloc: &'a Alloc,
        group: &'a TaskGroup,
        more: &'a [PortMapping],
    ) -> BoxFuture<'a, Result<Connected, String>>;

    fn detach<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// Disconnects all allocations but these.
    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>>;
}

/// A connection to a shim.
pub trait Shim: fmt::Debug + Send + Sync {
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<Reply, ClientError>>;
    /// Ends everything and the shim, and waits for it.
    fn shutdown(&mut self) -> BoxFuture<'_, Result<(), ClientError>>;
}

/// A shim and what it tells from now on. The channel ends when the shim does.
pub type Link = (Box<dyn Shim>, mpsc::Receiver<Event>);

/// How shims are started and found again.
pub trait Shims: fmt::Debug + Send + Sync {
    fn spawn(
        &self,
        socket: PathBuf,
        notify: PathBuf,
        group: PathBuf,
    ) -> BoxFuture<'_, Result<Link, String>>;
    /// `None`: none serves there.
    fn connect(&self, socket: PathBuf, after: u64) -> BoxFuture<'_, Result<Option<Link>, String>>;
    /// Kills whatever is in an allocation's control group, and removes the group.
    fn sweep(&self, group: PathBuf) -> BoxFuture<'_, Result<(), String>>;
}

/// Who hears what became of allocations. Does not block; of two updates of one allocation the later counts.
pub trait Reports: fmt::Debug + Send + Sync {
    fn update(&self, update: AllocUpdate);
}

/// What all runners of a node share.
#[derive(Debug)]
pub struct Node {
    /// `<state>/allocs`
    pub allocs: PathBuf,
    /// `<run>`
    pub run: PathBuf,
    /// The wharf binary.
    pub program: PathBuf,
    /// What tasks on the host's own root must not see: the state of wharf.
    pub masked: Vec<PathBuf>,
    pub images: Arc<dyn Images>,
    pub networks: Arc<dyn Networks>,
    pub shims: Arc<dyn Shims>,
    pub services: Arc<dyn Services>,
    pub reports: Arc<dyn Reports>,
}

impl Node {
    /// Takes away what is left of all allocations but these: networks, services, images that are held. Each of them
    /// remembers by itself what it did, so this finds what an agent left that died in the middle of something.
    pub async fn sweep(&self, known: &HashSet<String>) {
        let left = [
            ("networks", self.networks.sweep(known).await),
            (
                "services",
                match self.services.sweep(known).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                },
            ),
            ("images", self.images.sweep(known).await),
        ];
        for (of, result) in left {
            if let Err(why) = result {
                tracing::error!(%why, "{of} of allocations that nobody knows are left");
            }
        }
    }

    /// The command of a sidecar: it asks the agent over the agent's own socket.
    pub(super) fn sidecar_command(&self, sidecar: &Sidecar) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![
            path(&self.program),
            "connect".into(),
            "proxy".into(),
            format!("-proxy-id={}", sidecar.id),
            format!("-grpc-addr=unix://{}", path(&self.run.join("agent.sock"))),
            "-workers=1".into(),
        ];
        if let Some(admin) = sidecar.admin {
            argv.push(format!("-admin-bind={admin}"));
        }
        argv
    }
}

/// Shims as processes of this machine.
#[derive(Debug)]
pub struct HostShims {
    pub program: PathBuf,
    pub hierarchy: crate::container::cgroup::Hierarchy,
}

impl Shim for Client {
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<Reply, ClientError>> {
        Box::pin(self.ask(request))
    }

    fn shutdown(&mut self) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(self.shutdown())
    }
}

impl Shims for HostShims {
    fn spawn(
        &self,
        socket: PathBuf,
        notify: PathBuf,
        group: PathBuf,
    ) -> BoxFuture<'_, Result<Link, String>> {
        let spawn = Spawn {
            program: self.program.clone(),
            words: vec!["shim".into()],
            socket,
            notify,
            group,
        };
        Box::pin(async move {
            match Client::spawn(&spawn).await {
                Ok((client, events)) => Ok((Box::new(client) as Box<dyn Shim>, events)),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn connect(&self, socket: PathBuf, after: u64) -> BoxFuture<'_, Result<Option<Link>, String>> {
        Box::pin(async move {
            match Client::connect(&socket, after).await {
                Ok((client, events)) => Ok(Some((Box::new(client) as Box<dyn Shim>, events))),
                Err(ClientError::Connect { .. } | ClientError::Gone) => Ok(None),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn sweep(&self, group: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        let group = self.hierarchy.group(&group);
        Box::pin(async move {
            let swept =
                tokio::task::spawn_blocking(move || group.kill_all().and_then(|()| group.remove()));
            match swept.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
