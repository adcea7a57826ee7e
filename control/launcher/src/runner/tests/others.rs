//! Everybody a runner talks to, played.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use wharf_registry::model::{
    Str,
    platform::{AllocUpdate, ClientStatus, Task},
};

use super::super::*;
use crate::{
    network::PortMapping,
    services::{AllocServices, BoxFuture, Services, ServicesError, Sidecar},
    shim::{
        ClientError,
        protocol::{
            Event, EventKind, ExitRecord, Reply, Request, SidecarState, State, TaskState,
            TaskStatus,
        },
    },
};

/// Everybody a runner talks to. Remembers who was asked what, in order.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) asked: Mutex<Vec<String>>,
    pub(super) updates: Mutex<Vec<AllocUpdate>>,
    pub(super) shim: Mutex<FakeShim>,
    pub(super) image_failure: Mutex<Option<String>>,
}

/// The shim's side: what it has, and where it tells.
#[derive(Debug, Default)]
pub(super) struct FakeShim {
    pub(super) alive: bool,
    pub(super) seq: u64,
    pub(super) events: Option<mpsc::Sender<Event>>,
    pub(super) replayed: Option<watch::Receiver<bool>>,
    pub(super) state: State,
    pub(super) history: Vec<Event>,
    /// Tasks end at once with this.
    pub(super) deaf: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Fake(pub(super) Arc<Others>);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    pub(super) fn note(&self, what: impl Into<String>) {
        lock(&self.0.asked).push(what.into());
    }

    pub(super) fn asked(&self) -> Vec<String> {
        lock(&self.0.asked).clone()
    }

    pub(super) fn tell(&self, kind: EventKind) {
        let mut shim = lock(&self.0.shim);
        shim.seq += 1;
        let event = Event {
            seq: shim.seq,
            at: 1_000 + shim.seq,
            kind,
        };
        shim.state.last_event = shim.seq;
        shim.history.push(event.clone());
        if let Some(events) = &shim.events {
            let _ = events.try_send(event);
        }
    }

    pub(super) fn exit(&self, task: &str, exit: ExitRecord) {
        if let Some(state) = lock(&self.0.shim).state.tasks.get_mut(task) {
            state.status = TaskStatus::Dead;
        }
        self.tell(EventKind::TaskExited {
            task: task.into(),
            exit,
        });
    }

    /// SIGKILL to the shim.
    pub(super) fn kill_shim(&self) {
        let mut shim = lock(&self.0.shim);
        *shim = FakeShim {
            alive: false,
            ..FakeShim::default()
        };
    }

    pub(super) fn link(&self, after: u64) -> Link {
        let (sender, receiver) = mpsc::channel(64);
        let mut shim = lock(&self.0.shim);
        let missed = shim.history.iter().filter(|event| event.seq > after);
        let missed: Vec<Event> = missed.cloned().collect();
        // As on the real line: what was missed comes first, and answers after it.
        let (told, replayed) = watch::channel(false);
        let replay = sender.clone();
        tokio::spawn(async move {
            for event in missed {
                if replay.send(event).await.is_err() {
                    break;
                }
            }
            told.send_replace(true);
        });
        shim.replayed = Some(replayed);
        shim.events = Some(sender);
        (Box::new(self.clone()), receiver)
    }

    pub(super) fn last(&self) -> Option<AllocUpdate> {
        lock(&self.0.updates).last().cloned()
    }

    /// Waits until a report is as wanted.
    pub(super) async fn until(&self, wanted: impl Fn(&AllocUpdate) -> bool) -> AllocUpdate {
        let seen = async {
            loop {
                if let Some(update) = self.last().filter(|update| wanted(update)) {
                    return update;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(120), seen)
            .await
            .expect("it was not reported")
    }

    pub(super) async fn running(&self) {
        self.until(|update| update.client_status == ClientStatus::Running)
            .await;
    }
}

impl Shim for Fake {
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<Reply, ClientError>> {
        Box::pin(async move {
            let replayed = {
                let shim = lock(&self.0.shim);
                if !shim.alive {
                    return Err(ClientError::Gone);
                }
                shim.replayed.clone()
            };
            if let Some(mut replayed) = replayed
                && timeout(Duration::from_secs(10), replayed.wait_for(|told| *told))
                    .await
                    .is_err()
            {
                return Err(ClientError::Timeout);
            }
            match request {
                Request::State => return Ok(Reply::State(lock(&self.0.shim).state.clone())),
                Request::StartTask(start) => {
                    self.note(format!("start {}", start.task));
                    let state = TaskState {
                        status: TaskStatus::Running,
                        pid: Some(1),
                        started_at: Some(1),
                        exit: None,
                    };
                    lock(&self.0.shim)
                        .state
                        .tasks
                        .insert(start.task.clone(), state);
                    self.tell(EventKind::TaskStarted {
                        task: start.task,
                        pid: 1,
                    });
                }
                Request::StartSidecar(start) => {
                    self.note(format!("sidecar {}", start.argv[3]));
                    lock(&self.0.shim).state.sidecar = Some(SidecarState {
                        pid: Some(2),
                        ready: true,
                        restarts: 0,
                    });
                    self.tell(EventKind::SidecarReady);
                }
                Request::Stop { task, signal, .. } => {
                    self.note(format!("stop {task} {signal}"));
                    if !lock(&self.0.shim).deaf {
                        self.exit(
                            &task,
                            ExitRecord {
                                signal: Some(signal),
                                ..ExitRecord::default()
                            },
                        );
                    }
                }
                other => panic!("{other:?}"),
            }
            Ok(Reply::Done)
        })
    }

    fn shutdown(&mut self) -> BoxFuture<'_, Result<(), ClientError>> {
        self.note("shutdown");
        self.kill_shim();
        Box::pin(async { Ok(()) })
    }
}

impl Shims for Fake {
    fn spawn(&self, _: PathBuf, _: PathBuf, group: PathBuf) -> BoxFuture<'_, Result<Link, String>> {
        self.note(format!("spawn {}", group.display()));
        lock(&self.0.shim).alive = true;
        let link = self.link(0);
        Box::pin(async { Ok(link) })
    }

    fn connect(&self, _: PathBuf, after: u64) -> BoxFuture<'_, Result<Option<Link>, String>> {
        let alive = lock(&self.0.shim).alive;
        self.note(format!("connect {alive}"));
        let link = alive.then(|| self.link(after));
        Box::pin(async { Ok(link) })
    }

    fn sweep(&self, _: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        self.note("sweep");
        Box::pin(async { Ok(()) })
    }
}

impl Images for Fake {
    fn prepare<'a>(
        &'a self,
        _: &'a str,
        task: &'a Task,
    ) -> BoxFuture<'a, Result<PreparedImage, String>> {
        self.note(format!("image {}", task.image));
        let failure = lock(&self.0.image_failure).clone();
        Box::pin(async move {
            match failure {
                Some(why) => Err(why),
                None => Ok(PreparedImage {
                    entrypoint: vec!["/server".into()],
                    stop_signal: "SIGQUIT".into(),
                    layers: vec!["/layer".into()],
                    ..PreparedImage::default()
                }),
            }
        })
    }

    fn release<'a>(&'a self, _: &'a str, _: &'a TaskGroup) -> BoxFuture<'a, ()> {
        self.note("release");
        Box::pin(async {})
    }

    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>> {
        self.note(format!("sweep images but {known:?}"));
        Box::pin(async { Ok(()) })
    }
}

impl Networks for Fake {
    fn attach<'a>(
        &'a self,
        _: &'a Alloc,
        _: &'a TaskGroup,
        more: &'a [PortMapping],
    ) -> BoxFuture<'a, Result<Connected, String>> {
        self.note(format!("attach +{}", more.len()));
        Box::pin(async {
            Ok(Connected {
                netns: Some("/run/netns/a".into()),
                address: Some("172.26.64.2".parse().unwrap()),
                hostname: "web-0".into(),
                resolv_conf: Some("nameserver 172.26.64.1\n".into()),
                hosts: None,
            })
        })
    }

    fn detach<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.note("detach");
        Box::pin(async { Ok(()) })
    }

    fn sweep<'a>(&'a self, known: &'a HashSet<String>) -> BoxFuture<'a, Result<(), String>> {
        self.note(format!("sweep networks but {known:?}"));
        Box::pin(async { Err("one is in use".into()) })
    }
}

impl Services for Fake {
    fn prepare(
        &self,
        services: AllocServices,
    ) -> BoxFuture<'_, Result<Vec<Sidecar>, ServicesError>> {
        self.note("prepare");
        let sidecars = services
            .group
            .services
            .iter()
            .filter(|service| service.sidecar().is_some())
            .map(|service| Sidecar {
                service: service.name.clone(),
                id: "proxy-id".into(),
                port: 21_000,
                mapping: None,
                admin: None,
            })
            .collect();
        Box::pin(async move { Ok(sidecars) })
    }

    fn publish<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        self.note("publish");
        Box::pin(async { Ok(()) })
    }

    fn withdraw<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        self.note("withdraw");
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ServicesError>> {
        self.note("remove");
        Box::pin(async { Ok(()) })
    }

    fn task_down(&self, _: &str, task: &str, why: &str) {
        self.note(format!("down {task}: {why}"));
    }

    fn task_up(&self, _: &str, task: &str) {
        self.note(format!("up {task}"));
    }

    fn sweep<'a>(
        &'a self,
        known: &'a HashSet<String>,
    ) -> BoxFuture<'a, Result<Vec<Str>, ServicesError>> {
        self.note(format!("sweep services but {known:?}"));
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Reports for Fake {
    fn update(&self, update: AllocUpdate) {
        lock(&self.0.updates).push(update);
    }
}
