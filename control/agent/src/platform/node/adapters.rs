//! The real images, networks and shims, as runners ask for them.

use std::{collections::HashSet, fs, path::PathBuf, sync::Arc};

use wharf_launcher::{
    container::cgroup::Hierarchy,
    image::{Digest, Reference},
    network::{Mode, Network, PortMapping, text},
    runner::{
        Connected, HostShims, Images as ImagesSeam, Link, Networks, Node, PreparedImage, Reports,
        Shims,
    },
    services::{BoxFuture, Services},
};
use wharf_registry::model::platform::{Alloc, NetworkMode, PlatformNode, Task, TaskGroup};

use super::facts;
use crate::platform::images::{Images, ImagesError};

/// What the node's loop is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) address: std::net::IpAddr,
    /// `<state>`, of which nothing is shown to tasks.
    pub(crate) state: PathBuf,
    pub(crate) allocs: PathBuf,
    pub(crate) run: PathBuf,
    /// Why allocations have no network of their own, if they have none.
    pub(crate) network: Result<Network, String>,
    pub(crate) images: Images,
    pub(crate) services: Arc<dyn Services>,
    /// The domain of names in DNS: `consul`.
    pub(crate) domain: String,
    /// At the end everything is stopped.
    pub(crate) temporary: bool,
}

impl Parts {
    pub(super) fn assemble(self, reports: Arc<dyn Reports>) -> (PlatformNode, Node) {
        let bridge = self.network.as_ref().err().cloned();
        let facts = facts::node(&self.id, &self.name, &self.address.to_string(), bridge);
        // The file that runs, even if another has taken its place since.
        let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let shims: Arc<dyn Shims> = match Hierarchy::detect() {
            Ok(hierarchy) => Arc::new(HostShims {
                program: program.clone(),
                hierarchy,
            }),
            Err(error) => Arc::new(NoShims(error.to_string())),
        };
        let node = Node {
            allocs: self.allocs,
            run: self.run,
            program,
            masked: vec![self.state],
            images: Arc::new(NodeImages(self.images)),
            networks: Arc::new(NodeNetworks {
                network: self.network,
                domain: self.domain,
                address: self.address,
            }),
            shims,
            services: self.services,
            reports,
        };
        (facts, node)
    }
}

/// Runs what blocks where that is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug)]
struct NodeImages(Images);

impl NodeImages {
    async fn fetch(&self, alloc: &str, task: &Task) -> Result<PreparedImage, String> {
        let said = |error: ImagesError| error.to_string();
        let store = self.0.store().map_err(said)?.clone();
        let reference = Reference::parse(&task.image).map_err(|error| error.to_string())?;
        let digest: Digest = task
            .image_digest
            .parse()
            .map_err(|error| format!("the job does not say which {} it is: {error}", task.image))?;
        self.0.have(&reference, digest).await.map_err(said)?;
        let (user, pinned) = (Self::user(alloc, task), store.clone());
        blocking(move || pinned.pin(&user, digest).map_err(|error| error.to_string())).await?;
        let prepared =
            blocking(move || store.prepare(&digest).map_err(|error| error.to_string())).await?;
        Ok(PreparedImage {
            entrypoint: prepared.config.entrypoint,
            cmd: prepared.config.cmd,
            env: prepared.config.env,
            user: prepared.config.user,
            work_dir: prepared.config.working_dir,
            stop_signal: prepared.config.stop_signal,
            layers: prepared.layers,
        })
    }
}

impl ImagesSeam for NodeImages {
    fn prepare<'a>(
        &'a self,
        alloc: &'a str,
        task: &'a Task,
    ) -> BoxFuture<'a, Result<PreparedImage, String>> {
        Box::pin(self.fetch(alloc, task))
    }

    fn release<'a>(&'a self, alloc: &'a str, tasks: &'a TaskGroup) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Ok(store) = self.0.store() else { return };
            let store = store.clone();
            let users: Vec<String> = tasks
                .tasks
                .iter()
                .map(|task| Self::user(alloc, task))
                .collect();
            let released = blocking(move || {
                users
                    .iter()
                    .try_for_each(|user| store.unpin(user))
                    .map_err(|error| error.to_string())
            });
            if let Err(why) = released.await {
                tracing::warn!(alloc, %why, "images are still held for an allocation that has ended");
            }
        })
    }

    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            // Without a store there is nothing to let go of.
            let Ok(store) = self.0.store() else {
                return Ok(());
            };
            let (store, known) = (store.clone(), known.clone());
            blocking(move || {
                let pins = store.pins().map_err(|error| error.to_string())?;
                let stale = pins.keys().filter(|user| {
                    user.split_once('/')
                        .is_some_and(|(alloc, _)| !known.contains(alloc))
                });
                for user in stale {
                    store.unpin(user).map_err(|error| error.to_string())?;
                }
                Ok(())
            })
            .await
        })
    }
}

impl NodeImages {
    /// Who pinned an image: a task of an allocation.
    fn user(alloc: &str, task: &Task) -> String {
        format!("{alloc}/{}", task.name)
    }
}

#[derive(Debug)]
struct NodeNetworks {
    network: Result<Network, String>,
    domain: String,
    address: std::net::IpAddr,
}

impl Networks for NodeNetworks {
    fn attach<'a>(
        &'a self,
        alloc: &'a Alloc,
        group: &'a TaskGroup,
        more: &'a [PortMapping],
    ) -> BoxFuture<'a, Result<Connected, String>> {
        Box::pin(async move {
            let hostname = text::hostname(&alloc.name);
            if group.network.mode == NetworkMode::Host {
                return Ok(Connected {
                    netns: None,
                    address: Some(self.address),
                    hostname,
                    resolv_conf: None,
                    hosts: None,
                });
            }
            let network = self.network.clone()?;
            let ports: Vec<PortMapping> = alloc
                .ports
                .iter()
                .map(|port| PortMapping {
                    host: port.value,
                    to: if port.to == 0 { port.value } else { port.to },
                })
                .chain(more.iter().copied())
                .collect();
            let id = alloc.id.clone();
            let attached = blocking(move || {
                network
                    .attach(&id, Mode::Bridge, &ports)
                    .map_err(|error| error.to_string())
            })
            .await?
            .ok_or("the network has no place for it")?;
            let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            Ok(Connected {
                netns: Some(attached.netns),
                address: Some(attached.address.into()),
                resolv_conf: Some(text::resolv_conf(
                    Some(attached.gateway),
                    &host,
                    &self.domain,
                )),
                hosts: Some(text::hosts(&hostname, attached.address)),
                hostname,
            })
        })
    }

    fn detach<'a>(&'a self, alloc: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let Ok(network) = &self.network else {
                return Ok(());
            };
            let (network, alloc) = (network.clone(), alloc.to_owned());
            blocking(move || network.detach(&alloc).map_err(|error| error.to_string())).await
        })
    }

    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let Ok(network) = &self.network else {
                return Ok(());
            };
            let (network, known) = (network.clone(), known.clone());
            let swept = blocking(move || network.sweep(&known).map_err(|error| error.to_string()));
            for alloc in swept.await? {
                tracing::info!(
                    alloc,
                    "the network of an allocation that nobody knows is gone"
                );
            }
            Ok(())
        })
    }
}

/// Where there are no control groups.
#[derive(Debug)]
struct NoShims(String);

impl Shims for NoShims {
    fn spawn(&self, _: PathBuf, _: PathBuf, _: PathBuf) -> BoxFuture<'_, Result<Link, String>> {
        Box::pin(async { Err(self.0.clone()) })
    }

    fn connect(&self, _: PathBuf, _: u64) -> BoxFuture<'_, Result<Option<Link>, String>> {
        Box::pin(async { Ok(None) })
    }

    fn sweep(&self, _: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}
