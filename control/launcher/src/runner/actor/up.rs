//! The way up: every step finds out what of it has been done before.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use wharf_registry::model::{Str, platform::Driver};

use super::{Actor, Assignment, ClientError, Line, Link, Outcome, Reply, Request, State, plan};
use crate::{
    services::AllocServices,
    shim::protocol::{LogSettings, StartSidecar, TaskStatus},
};

/// How long a sidecar may take until it has its configuration and its ports.
const SIDECAR_READY: Duration = Duration::from_secs(60);

/// What is kept of a sidecar's output.
const SIDECAR_LOGS: (u32, u64) = (2, 1 << 20);

impl Actor {
    pub(super) async fn up(&mut self) -> Result<(), String> {
        let fresh = self.record.states.is_empty();
        let names: Vec<Str> = self
            .group
            .tasks
            .iter()
            .map(|task| task.name.clone())
            .collect();
        self.places
            .make(names.iter().cloned())
            .and_then(|()| {
                let assignment = Assignment {
                    alloc: self.alloc.clone(),
                    group: self.group.clone(),
                };
                assignment.save(&self.places.dir)
            })
            .map_err(|error| format!("{}: {error}", self.places.dir.display()))?;
        for name in &names {
            self.record.states.entry(name.clone()).or_default();
            if fresh {
                self.event(name, "Received", "the allocation was received by this node");
            }
        }
        self.step();
        self.prepare_images().await?;
        self.connect(&[]).await?;
        self.shim().await?;
        self.proxies().await?;
        self.sidecar().await?;
        for name in names {
            if !self.record.started.contains(&name) && self.wants(&name) {
                self.start(&name).await?;
            }
        }
        self.publish_if_up().await;
        self.step();
        Ok(())
    }

    /// Whether a task is to run at all: not one that an earlier agent was told of as ended.
    pub(super) fn wants(&self, name: &Str) -> bool {
        !self.due.contains_key(name)
    }

    pub(super) async fn prepare_images(&mut self) -> Result<(), String> {
        let group = self.group.clone();
        for task in group
            .tasks
            .iter()
            .filter(|task| task.driver == Driver::Container)
        {
            if !self.record.started.contains(&task.name) {
                self.event(
                    &task.name,
                    "Image",
                    format!("preparing image {}", task.image),
                );
            }
            let node = self.node.clone();
            match node.images.prepare(&self.alloc.id, task).await {
                Ok(image) => {
                    self.images.insert(task.name.clone(), image);
                }
                Err(why) => {
                    self.event(&task.name, "Image Failure", why.clone());
                    return Err(format!("image {}: {why}", task.image));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn connect(
        &mut self,
        more: &[crate::network::PortMapping],
    ) -> Result<(), String> {
        let node = self.node.clone();
        self.connected = node
            .networks
            .attach(&self.alloc, &self.group, more)
            .await
            .map_err(|why| format!("network: {why}"))?;
        let address = self.connected.address.map(|address| address.to_string());
        self.record.address = address.unwrap_or_default().into();
        let dir = self.places.dir.join("network");
        let texts = [
            ("resolv.conf", self.connected.resolv_conf.clone()),
            ("hosts", self.connected.hosts.clone()),
            ("hostname", Some(format!("{}\n", self.connected.hostname))),
        ];
        for (name, text) in texts {
            let Some(text) = text else { continue };
            let path = dir.join(name);
            // In place: containers that run have this very file mounted.
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
            // The directory is the owner's alone, but what is mounted out of it is for every user of the container.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(&path, mode)
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Finds the shim again, or starts one. What ran under one that is gone is swept.
    pub(super) async fn shim(&mut self) -> Result<(), String> {
        let node = self.node.clone();
        let (socket, group) = (self.places.socket(), self.places.group.clone());
        if self.record.shim {
            match node
                .shims
                .connect(socket.clone(), self.record.last_event)
                .await
            {
                Ok(Some(link)) => {
                    self.link(link);
                    return self.reconcile().await;
                }
                Ok(None) => self.lost().await?,
                Err(why) => return Err(format!("shim: {why}")),
            }
        } else {
            // What an agent left that died between the start and the note of it.
            node.shims
                .sweep(group.clone())
                .await
                .map_err(|why| format!("sweep: {why}"))?;
        }
        self.record.shim = true;
        self.record.last_event = 0;
        self.record.started.clear();
        self.step();
        let link = node
            .shims
            .spawn(socket, self.places.notify(), group)
            .await
            .map_err(|why| format!("shim: {why}"))?;
        self.link(link);
        Ok(())
    }

    pub(super) fn link(&mut self, link: Link) {
        self.line = Some(Line::new(link));
    }

    /// What the shim has forgotten to tell, because too much happened: its state is enough.
    pub(super) async fn reconcile(&mut self) -> Result<(), String> {
        let state = self
            .state()
            .await
            .map_err(|error| format!("shim: {error}"))?;
        self.sidecar_ready = state.sidecar.is_some_and(|sidecar| sidecar.ready);
        self.record
            .started
            .retain(|name| state.tasks.contains_key(&**name));
        for (name, task) in state.tasks {
            let name = Str::from(name);
            if task.status != TaskStatus::Dead {
                // Told to start before the note of it was written.
                self.record.started.insert(name);
            }
        }
        Ok(())
    }

    pub(super) async fn state(&mut self) -> Result<State, ClientError> {
        match self.ask(Request::State).await? {
            Reply::State(state) => Ok(state),
            _ => Err(ClientError::Confused),
        }
    }

    pub(super) async fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        match &mut self.line {
            Some(line) => line.ask(request).await,
            None => Err(ClientError::Gone),
        }
    }

    pub(super) async fn proxies(&mut self) -> Result<(), String> {
        if self.group.services.is_empty() {
            return Ok(());
        }
        let own = self.connected.netns.is_some();
        let services = AllocServices {
            alloc: self.alloc.id.clone(),
            job: self.alloc.job_name.clone(),
            group: self.group.clone(),
            address: self.connected.address.filter(|_| own),
            ports: self.alloc.ports.clone(),
        };
        let node = self.node.clone();
        self.sidecars = node
            .services
            .prepare(services)
            .await
            .map_err(|error| error.to_string())?;
        let mapped: Vec<_> = self
            .sidecars
            .iter()
            .filter_map(|sidecar| sidecar.mapping)
            .collect();
        if !mapped.is_empty() {
            self.connect(&mapped).await?;
        }
        Ok(())
    }

    pub(super) async fn sidecar(&mut self) -> Result<(), String> {
        let sidecar = match &self.sidecars[..] {
            [] => return Ok(()),
            [sidecar] => sidecar.clone(),
            more => {
                return Err(format!(
                    "group {:?} has {} services with a sidecar: more than one in a group is not built yet",
                    self.group.name,
                    more.len()
                ));
            }
        };
        let state = self
            .state()
            .await
            .map_err(|error| format!("shim: {error}"))?;
        if state.sidecar.is_none() {
            let start = StartSidecar {
                argv: self.node.sidecar_command(&sidecar),
                env: BTreeMap::new(),
                netns: self.connected.netns.clone(),
                logs: LogSettings {
                    dir: self.places.dir.join("sidecar").join("logs"),
                    max_files: SIDECAR_LOGS.0,
                    max_file_bytes: SIDECAR_LOGS.1,
                },
            };
            self.ask(Request::StartSidecar(Box::new(start)))
                .await
                .map_err(|error| format!("sidecar: {error}"))?;
        }
        let until = Instant::now() + SIDECAR_READY;
        while !self.sidecar_ready {
            let Some(line) = &mut self.line else {
                return Err("the shim is gone".into());
            };
            match tokio::time::timeout_at(until, line.next()).await {
                Ok(Some(event)) => {
                    if let Some(Outcome::Failed(why)) = self.handle(event).await {
                        return Err(why);
                    }
                }
                Ok(None) => return Err("the shim ended while its sidecar started".into()),
                Err(_) => {
                    return Err(format!(
                        "the sidecar of service {:?} was not ready within {SIDECAR_READY:?}: see its output in {}",
                        sidecar.service,
                        self.places.dir.join("sidecar").display()
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn start(&mut self, name: &Str) -> Result<(), String> {
        let group = self.group.clone();
        let Some(task) = group.task(name) else {
            return Ok(());
        };
        let start = plan::start_task(
            &self.node,
            &self.places,
            &self.alloc,
            &group,
            task,
            self.images.get(name),
            &self.connected,
        )
        .map_err(|why| format!("task {name:?}: {why}"))?;
        self.record.started.insert(name.clone());
        let signal = plan::kill_signal(task, self.images.get(name));
        self.record.signals.insert(name.clone(), signal);
        self.step();
        self.ask(Request::StartTask(Box::new(start)))
            .await
            .map(drop)
            .map_err(|error| format!("task {name:?}: {error}"))
    }
}
