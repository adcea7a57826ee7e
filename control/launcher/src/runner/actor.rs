//! The actor of a runner.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use wharf_registry::model::{
    Str, StrMap,
    platform::{
        Alloc, AllocUpdate, ClientStatus, Driver, Task, TaskEvent, TaskGroup, TaskPhase, TaskState,
    },
};

use super::{
    Assignment,
    node::{Connected, Link, Node, PreparedImage, Shim},
    plan,
    record::{Ending, Places, Record},
    restart::Decision,
};
use crate::{
    services::{AllocServices, Sidecar},
    shim::{
        ClientError,
        protocol::{
            Event, EventKind, ExitRecord, LogSettings, Reply, Request, StartSidecar, State,
            TaskStatus,
        },
    },
};

/// How long a sidecar may take until it has its configuration and its ports.
const SIDECAR_READY: Duration = Duration::from_secs(60);

/// How long after its SIGKILL a task may take to be gone.
const GRACE: Duration = Duration::from_secs(15);

/// What is kept of a sidecar's output.
const SIDECAR_LOGS: (u32, u64) = (2, 1 << 20);

/// Why an allocation is taken down.
#[derive(Debug)]
enum Outcome {
    Stop(String),
    Failed(String),
}

pub(super) struct Actor {
    node: Arc<Node>,
    alloc: Arc<Alloc>,
    group: Arc<TaskGroup>,
    places: Places,
    record: Record,
    images: BTreeMap<Str, PreparedImage>,
    connected: Connected,
    shim: Option<Box<dyn Shim>>,
    events: Option<mpsc::Receiver<Event>>,
    sidecars: Vec<Sidecar>,
    sidecar_ready: bool,
    /// When tasks that ended are started again.
    due: BTreeMap<Str, Instant>,
}

impl Actor {
    pub(super) fn new(assignment: Assignment, node: Arc<Node>) -> Self {
        let Assignment { alloc, group } = assignment;
        let places = Places::new(&node.allocs, &node.run, &alloc.id);
        Self {
            node,
            alloc,
            group,
            places,
            record: Record::default(),
            images: BTreeMap::new(),
            connected: Connected::default(),
            shim: None,
            events: None,
            sidecars: Vec::new(),
            sidecar_ready: false,
            due: BTreeMap::new(),
        }
    }

    /// Runs until nothing of the allocation is left.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<String>) {
        match Record::load(&self.places.dir) {
            Ok(record) => self.record = record,
            Err(error) => {
                // What ran under it is found by its control group.
                self.end(Outcome::Failed(format!("its record is lost: {error}")))
                    .await;
                return;
            }
        }
        if self.record.done {
            self.report();
            return;
        }
        let outcome = match self.record.ending.clone() {
            Some(Ending { failed: true, why }) => Outcome::Failed(why),
            Some(Ending { failed: false, why }) => Outcome::Stop(why),
            None => {
                // A stop counts from wherever the allocation is: all steps can be cut off.
                tokio::select! {
                    biased;
                    why = stopped(&mut commands) => Outcome::Stop(why),
                    outcome = self.live() => outcome,
                }
            }
        };
        self.end(outcome).await;
    }

    async fn live(&mut self) -> Outcome {
        match self.up().await {
            Ok(()) => self.supervise().await,
            Err(why) => Outcome::Failed(why),
        }
    }

    // === Up ===

    async fn up(&mut self) -> Result<(), String> {
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
    fn wants(&self, name: &Str) -> bool {
        !self.due.contains_key(name)
    }

    async fn prepare_images(&mut self) -> Result<(), String> {
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

    async fn connect(&mut self, more: &[crate::network::PortMapping]) -> Result<(), String> {
        let node = self.node.clone();
        self.connected = node
            .networks
            .attach(&self.alloc, &self.group, more)
            .await
            .map_err(|why| format!("network: {why}"))?;
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
    async fn shim(&mut self) -> Result<(), String> {
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

    fn link(&mut self, (shim, events): Link) {
        self.shim = Some(shim);
        self.events = Some(events);
    }

    /// What the shim has forgotten to tell, because too much happened: its state is enough.
    async fn reconcile(&mut self) -> Result<(), String> {
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

    async fn state(&self) -> Result<State, ClientError> {
        match self.ask(Request::State).await? {
            Reply::State(state) => Ok(state),
            _ => Err(ClientError::Confused),
        }
    }

    async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        match &self.shim {
            Some(shim) => shim.ask(request).await,
            None => Err(ClientError::Gone),
        }
    }

    async fn proxies(&mut self) -> Result<(), String> {
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

    async fn sidecar(&mut self) -> Result<(), String> {
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
            let Some(events) = &mut self.events else {
                return Err("the shim is gone".into());
            };
            match tokio::time::timeout_at(until, events.recv()).await {
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

    async fn start(&mut self, name: &Str) -> Result<(), String> {
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
        self.step();
        self.ask(Request::StartTask(Box::new(start)))
            .await
            .map(drop)
            .map_err(|error| format!("task {name:?}: {error}"))
    }

    // === While it runs ===

    async fn supervise(&mut self) -> Outcome {
        loop {
            let due = self.due.iter().min_by_key(|(_, at)| **at);
            let (name, at) = match due {
                Some((name, at)) => (Some(name.clone()), *at),
                None => (None, Instant::now()),
            };
            let Some(events) = &mut self.events else {
                return Outcome::Failed("the shim is gone".into());
            };
            let next = tokio::select! {
                event = events.recv() => Some(event),
                () = sleep_until(at), if name.is_some() => None,
            };
            let result = match (next, name) {
                (Some(Some(event)), _) => match self.handle(event).await {
                    Some(outcome) => return outcome,
                    None => Ok(()),
                },
                (Some(None), _) => self.start_over().await,
                (None, Some(name)) => {
                    self.due.remove(&name);
                    self.start(&name).await
                }
                (None, None) => Ok(()),
            };
            if let Err(why) = result {
                return Outcome::Failed(why);
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Option<Outcome> {
        self.record.last_event = event.seq;
        let mut outcome = None;
        match event.kind {
            EventKind::TaskStarted { task, .. } => self.task_started(&task.into(), event.at).await,
            EventKind::TaskExited { task, exit } => outcome = self.task_exited(&task.into(), exit),
            EventKind::TaskOutOfMemory { task } => {
                let why = "the kernel killed a process of it for want of memory";
                self.event(&task.into(), "Out of Memory", why);
            }
            EventKind::TaskKilled { task } => {
                self.event(
                    &task.into(),
                    "Killed",
                    "it did not end in time and was killed",
                );
            }
            EventKind::LogLost { stream, bytes, why } => {
                if let Some((task, stream)) = stream.split_once('/') {
                    let text = format!("{bytes} bytes of {stream} were lost: {why}");
                    self.event(&task.into(), "Output Lost", text);
                }
            }
            EventKind::SidecarStarted { .. } => {}
            EventKind::SidecarReady => self.sidecar_ready = true,
            EventKind::SidecarExited { code, signal, .. } => {
                self.sidecar_ready = false;
                let how = ended(code, signal);
                tracing::warn!(alloc = &*self.alloc.id, "the sidecar {how}");
            }
            EventKind::SidecarFailed { why, .. } => {
                tracing::warn!(alloc = &*self.alloc.id, %why, "the sidecar does not start");
            }
        }
        self.step();
        outcome
    }

    async fn task_started(&mut self, name: &Str, at: u64) {
        let Some(state) = self.record.states.get_mut(name) else {
            return;
        };
        let again = state.restarts > 0;
        state.state = TaskPhase::Running;
        state.started_at = nanos(at);
        state.finished_at = 0;
        self.event(name, "Started", "the task was started");
        if again && !self.group.services.is_empty() {
            self.node.services.task_up(&self.alloc.id, name);
        }
        self.publish_if_up().await;
    }

    /// Registers the services once all tasks run.
    async fn publish_if_up(&mut self) {
        let up = self
            .record
            .states
            .values()
            .all(|state| state.state == TaskPhase::Running);
        if self.record.published || !up || self.group.services.is_empty() {
            return;
        }
        let node = self.node.clone();
        match node.services.publish(&self.alloc.id).await {
            Ok(()) => self.record.published = true,
            // It runs; it is only not found. Told to people where they look for it.
            Err(error) => {
                let names: Vec<Str> = self.record.states.keys().cloned().collect();
                for name in names {
                    self.event(&name, "Service Failure", error.to_string());
                }
            }
        }
    }

    fn task_exited(&mut self, name: &Str, exit: ExitRecord) -> Option<Outcome> {
        self.record.started.remove(name);
        let group = self.group.clone();
        let policy = &group.restart;
        let how = match &exit.failure {
            Some(failure) => failure.clone(),
            None => ended(exit.code, exit.signal),
        };
        let how = if exit.oom_killed {
            format!("{how}: out of memory")
        } else {
            how
        };
        let state = self.record.states.get_mut(name)?;
        state.state = TaskPhase::Dead;
        state.finished_at = nanos(exit.finished_at);
        state.exit_code = exit.code;
        state.signal = exit.signal.unwrap_or(0);
        state.oom_killed = exit.oom_killed;
        let kind = if exit.failure.is_some() {
            "Driver Failure"
        } else {
            "Terminated"
        };
        let details: StrMap = [
            ("exit_code", exit.code.map(|code| code.to_string())),
            ("signal", exit.signal.map(|signal| signal.to_string())),
            ("oom_killed", exit.oom_killed.then(|| "true".to_owned())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), value?.into())))
        .collect();
        self.push(name, kind, &how, details);
        if self.record.ending.is_some() {
            return None;
        }
        // Known here, before any check could notice.
        if !group.services.is_empty() {
            self.node.services.task_down(&self.alloc.id, name, &how);
        }
        let history = self.record.restarts.entry(name.clone()).or_default();
        match history.decide(policy, now_millis()) {
            Decision::After(wait) => {
                if let Some(state) = self.record.states.get_mut(name) {
                    state.restarts += 1;
                    state.state = TaskPhase::Pending;
                }
                self.event(
                    name,
                    "Restarting",
                    format!("the task is started again in {wait:?}"),
                );
                self.due.insert(name.clone(), Instant::now() + wait);
                None
            }
            Decision::Fail => {
                if let Some(state) = self.record.states.get_mut(name) {
                    state.failed = true;
                }
                let attempts = policy.attempts;
                let text = format!(
                    "not started again: {attempts} restarts within {}",
                    policy.interval
                );
                self.event(name, "Not Restarting", text);
                Some(Outcome::Failed(format!("task {name:?} {how}")))
            }
        }
    }

    /// The shim is gone, and with it the parent of everything: what is left is swept, and the tasks count as ended.
    async fn lost(&mut self) -> Result<(), String> {
        self.shim = None;
        self.events = None;
        self.sidecar_ready = false;
        let node = self.node.clone();
        node.shims
            .sweep(self.places.group.clone())
            .await
            .map_err(|why| format!("what the shim left cannot be swept: {why}"))?;
        let running: Vec<Str> = self.record.started.iter().cloned().collect();
        for name in running {
            // It may have ended, and the record of it been written, before the shim was gone.
            let file = self.places.task(&name).join("exit.json");
            let began = self
                .record
                .states
                .get(&name)
                .map_or(0, |state| state.started_at);
            let exit = crate::shim::recorded_exit(&file)
                .filter(|exit| nanos(exit.finished_at) >= began && began > 0)
                .unwrap_or_else(|| ExitRecord {
                    failure: Some("its shim was killed, and the task with it".into()),
                    finished_at: now_millis(),
                    ..ExitRecord::default()
                });
            if let Some(Outcome::Failed(why)) = self.task_exited(&name, exit) {
                return Err(why);
            }
        }
        Ok(())
    }

    async fn start_over(&mut self) -> Result<(), String> {
        tracing::warn!(alloc = &*self.alloc.id, "the shim of an allocation is gone");
        self.lost().await?;
        self.record.shim = false;
        self.step();
        self.shim().await?;
        self.sidecar().await
        // The tasks follow when their restart is due.
    }

    // === Down ===

    async fn end(&mut self, outcome: Outcome) {
        let ending = match outcome {
            Outcome::Stop(why) => Ending { failed: false, why },
            Outcome::Failed(why) => Ending { failed: true, why },
        };
        let planned = !ending.failed;
        self.record.ending = Some(ending);
        self.due.clear();
        self.step();
        if self.shim.is_none()
            && let Ok(Some(link)) = self
                .node
                .shims
                .connect(self.places.socket(), self.record.last_event)
                .await
        {
            self.link(link);
        }
        let node = self.node.clone();
        if !self.group.services.is_empty() {
            if let Err(error) = node.services.withdraw(&self.alloc.id).await {
                tracing::warn!(alloc = &*self.alloc.id, %error, "services are not withdrawn");
            }
            // Proxies and clients let go before the task does.
            let delay = self.group.shutdown_delay.to_std();
            if planned
                && self.record.published
                && !self.record.started.is_empty()
                && !delay.is_zero()
            {
                for name in self.record.started.clone() {
                    self.event(
                        &name,
                        "Waiting",
                        format!("out of service, signalled in {delay:?}"),
                    );
                }
                self.step();
                sleep(delay).await;
            }
        }
        self.stop_tasks().await;
        if let Some(shim) = &mut self.shim
            && let Err(error) = shim.shutdown().await
        {
            tracing::warn!(alloc = &*self.alloc.id, %error, "the shim does not end as asked");
        }
        self.shim = None;
        let clean = [
            node.shims.sweep(self.places.group.clone()).await,
            match self.group.services.is_empty() {
                true => Ok(()),
                false => node
                    .services
                    .remove(&self.alloc.id)
                    .await
                    .map_err(|e| e.to_string()),
            },
            node.networks.detach(&self.alloc.id).await,
        ];
        for why in clean.into_iter().filter_map(Result::err) {
            tracing::error!(alloc = &*self.alloc.id, %why, "something of an allocation is left");
        }
        node.images.release(&self.alloc.id, &self.group).await;
        self.places.clear();
        for state in self.record.states.values_mut() {
            state.state = TaskPhase::Dead;
        }
        self.record.done = true;
        self.step();
    }

    async fn stop_tasks(&mut self) {
        let group = self.group.clone();
        let mut longest = Duration::ZERO;
        let stopping: Vec<&Task> = group
            .tasks
            .iter()
            .filter(|task| self.record.started.contains(&task.name))
            .collect();
        for task in stopping {
            let patience = task.kill_timeout.to_std();
            let signal = plan::kill_signal(task, self.images.get(&task.name));
            self.event(
                &task.name,
                "Killing",
                format!("signal {signal}, killed after {patience:?}"),
            );
            longest = longest.max(patience);
            let stop = Request::Stop {
                task: task.name.to_string(),
                signal,
                timeout_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            };
            match self.ask(stop).await {
                // It has ended in the meantime, or there is nobody to ask: either way the sweep is thorough.
                Err(ClientError::Refused(_) | ClientError::Gone) | Ok(_) => {}
                Err(error) => {
                    tracing::warn!(alloc = &*self.alloc.id, %error, "a task is not stopped as asked");
                }
            }
        }
        self.step();
        let all = async {
            while !self.record.started.is_empty() {
                let Some(events) = &mut self.events else {
                    return;
                };
                let Some(event) = events.recv().await else {
                    return;
                };
                self.handle(event).await;
            }
        };
        let _ = timeout(longest + GRACE, all).await;
    }

    // === What is told ===

    fn event(&mut self, task: &Str, kind: &str, message: impl AsRef<str>) {
        self.push(task, kind, message.as_ref(), StrMap::new());
    }

    fn push(&mut self, task: &Str, kind: &str, message: &str, details: StrMap) {
        if let Some(state) = self.record.states.get_mut(task) {
            state.record(TaskEvent {
                time: nanos(now_millis()),
                kind: kind.into(),
                message: message.into(),
                details,
            });
        }
    }

    /// Writes down how far it is, and tells it.
    fn step(&mut self) {
        if let Err(error) = self.record.save(&self.places.dir) {
            // Without a directory there is nothing to come back to either.
            tracing::error!(alloc = &*self.alloc.id, %error, "runner.json cannot be written");
        }
        self.report();
    }

    fn report(&self) {
        let (client_status, client_description) = self.status();
        let address = self.connected.address.map(|address| address.to_string());
        self.node.reports.update(AllocUpdate {
            id: self.alloc.id.clone(),
            client_status,
            client_description,
            address: address.unwrap_or_default().into(),
            task_states: self.record.states.clone(),
        });
    }

    fn status(&self) -> (ClientStatus, Str) {
        match &self.record.ending {
            Some(Ending { failed, why }) if self.record.done => {
                let status = if *failed {
                    ClientStatus::Failed
                } else {
                    ClientStatus::Complete
                };
                return (status, why.as_str().into());
            }
            Some(Ending { why, .. }) => {
                return (self.lively(), format!("stopping: {why}").into());
            }
            None => {}
        }
        let text = match self.lively() {
            ClientStatus::Running => "its tasks run",
            _ => "it is being started",
        };
        (self.lively(), text.into())
    }

    /// Running once every task has been.
    fn lively(&self) -> ClientStatus {
        let started = |state: &TaskState| state.started_at != 0;
        let states = &self.record.states;
        if !states.is_empty() && states.values().all(started) {
            ClientStatus::Running
        } else {
            ClientStatus::Pending
        }
    }
}

/// The next wish to stop; for ever, if nobody can have one.
async fn stopped(commands: &mut mpsc::Receiver<String>) -> String {
    match commands.recv().await {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

fn ended(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

fn nanos(millis: u64) -> i64 {
    i64::try_from(millis)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000)
}

fn now_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
