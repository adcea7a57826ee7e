//! The life of the tasks and the sidecar of one allocation, without doing anything: what happened goes in, what is
//! to be done comes out. Inputs in an order that cannot be are ignored or refused, never half applied.
//!
//! ```text
//! Launching --created--> Begun --running--> Running --reaped--> Sweeping --swept--> Dead
//!     |                    |                                       ^
//!     +------- failed, aborted, reaped -----------------------------
//! ```
//!
//! A task is dead only when its control group is empty, and nobody hears of it before its exit is on disk.

use std::{collections::BTreeMap, time::Duration};

use super::protocol::{EventKind, ExitRecord, SidecarState, TaskState, TaskStatus};

/// How long setting up a container may take.
const LAUNCH: Duration = Duration::from_secs(60);

/// Pause between looks at a control group that should become empty, and how often.
const SWEEP_PAUSE: Duration = Duration::from_millis(10);
const SWEEPS: u32 = 1000;

/// Pause before a sidecar is started again: from the first to the last, twice as long each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A sidecar that ran for this long starts with the shortest pause again.
const STEADY: Duration = Duration::from_secs(30);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    StartTask {
        task: String,
    },
    StopTask {
        task: String,
        signal: i32,
        timeout: Duration,
    },
    SignalTask {
        task: String,
        signal: i32,
    },
    StartSidecar,
    StopSidecar {
        timeout: Duration,
    },
    Shutdown,
    /// The container of a task is set up; its first process waits.
    Created {
        task: String,
        pid: u32,
    },
    /// The command has become the program.
    Running {
        task: String,
    },
    /// The command cannot be run.
    CommandFailed {
        task: String,
        message: String,
    },
    /// The container cannot be made.
    LaunchFailed {
        task: String,
        message: String,
    },
    /// What the command ended with, from inside; the first process follows it.
    CommandEnded {
        task: String,
        ended: Ended,
    },
    /// The launcher is gone and will say no more.
    LauncherGone {
        task: String,
    },
    /// A child of the shim has ended.
    Reaped {
        pid: u32,
        ended: Ended,
    },
    OutOfMemory {
        task: String,
    },
    /// The task's control group: how many processes are in it.
    Swept {
        task: String,
        left: usize,
    },
    SidecarSpawned {
        pid: u32,
    },
    SidecarFailed {
        why: String,
    },
    SidecarReady,
    /// A deadline that [`Machine::deadline`] named has come.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Launch {
        task: String,
    },
    /// Kills the launcher.
    Abort {
        task: String,
    },
    Begin {
        task: String,
    },
    Signal {
        task: String,
        signal: i32,
    },
    /// Kills everything in the control group; answered by [`Input::Swept`].
    Sweep {
        task: String,
    },
    /// Reads what is left of the output, removes the control group and what the container left on disk.
    Clean {
        task: String,
    },
    /// Puts the record on disk. [`Action::Announce`] of it follows.
    Record {
        task: String,
        exit: ExitRecord,
    },
    Announce(EventKind),
    SpawnSidecar,
    SignalSidecar {
        signal: i32,
    },
    SweepSidecar,
    /// Nothing is left.
    Exit,
}

/// Why a request is not possible now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("task {0:?} is not dead")]
    NotDead(String),
    #[error("there is no task {0:?}")]
    NoTask(String),
    #[error("task {0:?} does not run")]
    NotRunning(String),
    #[error("there is a sidecar already")]
    Sidecar,
    #[error("the shim is shutting down")]
    ShuttingDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Launching,
    Begun,
    Running,
    Sweeping { tries: u32 },
    Dead,
}

#[derive(Debug)]
struct Task {
    phase: Phase,
    pid: Option<u32>,
    started_at: Option<u64>,
    /// What has to be done at what time: give up a launch, kill, sweep again.
    deadline: Option<Duration>,
    stopping: bool,
    ended: Option<Ended>,
    failure: Option<String>,
    oom: bool,
    exit: Option<ExitRecord>,
}

impl Task {
    fn new(now: Duration) -> Self {
        Self {
            phase: Phase::Launching,
            pid: None,
            started_at: None,
            deadline: Some(now + LAUNCH),
            stopping: false,
            ended: None,
            failure: None,
            oom: false,
            exit: None,
        }
    }

    fn sweep(&mut self) {
        self.phase = Phase::Sweeping { tries: 0 };
        self.deadline = None;
    }
}

#[derive(Debug)]
struct Sidecar {
    pid: Option<u32>,
    ready: bool,
    restarts: u32,
    spawned: Duration,
    pause: Duration,
    /// Start again, or kill when stopping.
    deadline: Option<Duration>,
    stopping: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    tasks: BTreeMap<String, Task>,
    sidecar: Option<Sidecar>,
    shutting_down: bool,
}

impl Machine {
    /// Takes what happened at `now` (since the shim began) and `wall` (milliseconds since 1970).
    pub(crate) fn handle(
        &mut self,
        now: Duration,
        wall: u64,
        input: Input,
    ) -> Result<Vec<Action>, Refusal> {
        let mut actions = Vec::new();
        match input {
            Input::StartTask { task } => self.start(now, task, &mut actions)?,
            Input::StopTask {
                task,
                signal,
                timeout,
            } => self.stop(now, &task, signal, timeout, &mut actions)?,
            Input::SignalTask { task, signal } => {
                let known = self.tasks.get(&task).ok_or(Refusal::NoTask(task.clone()))?;
                if known.phase != Phase::Running {
                    return Err(Refusal::NotRunning(task));
                }
                actions.push(Action::Signal { task, signal });
            }
            Input::StartSidecar => {
                if self.shutting_down {
                    return Err(Refusal::ShuttingDown);
                }
                if self.sidecar.is_some() {
                    return Err(Refusal::Sidecar);
                }
                self.sidecar = Some(Sidecar {
                    pid: None,
                    ready: false,
                    restarts: 0,
                    spawned: now,
                    pause: BACKOFF.0,
                    deadline: None,
                    stopping: false,
                });
                actions.push(Action::SpawnSidecar);
            }
            Input::StopSidecar { timeout } => self.stop_sidecar(now, timeout, &mut actions),
            Input::Shutdown => {
                self.shutting_down = true;
                let names: Vec<String> = self.tasks.keys().cloned().collect();
                for task in names {
                    // A task that is dead refuses, which is as good.
                    let _ = self.stop(now, &task, 0, Duration::ZERO, &mut actions);
                }
                self.stop_sidecar(now, Duration::ZERO, &mut actions);
            }
            Input::Created { task, pid } => self.created(&task, pid, &mut actions),
            Input::Running { task } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && known.phase == Phase::Begun
                    && known.failure.is_none()
                    && let Some(pid) = known.pid
                {
                    known.phase = Phase::Running;
                    known.started_at = Some(wall);
                    if !known.stopping {
                        known.deadline = None;
                    }
                    actions.push(Action::Announce(EventKind::TaskStarted { task, pid }));
                }
            }
            Input::CommandFailed { task, message } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && matches!(known.phase, Phase::Launching | Phase::Begun)
                {
                    known.failure.get_or_insert(message);
                }
            }
            Input::LaunchFailed { task, message } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && known.phase == Phase::Launching
                {
                    known.failure.get_or_insert(message);
                    known.sweep();
                    actions.push(Action::Sweep { task });
                }
            }
            Input::LauncherGone { task } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && known.phase == Phase::Launching
                {
                    let why = "the launcher of the container ended without a word";
                    known.failure.get_or_insert(why.into());
                    known.sweep();
                    actions.push(Action::Sweep { task });
                }
            }
            Input::CommandEnded { task, ended } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && known.phase == Phase::Running
                {
                    known.ended = Some(ended);
                }
            }
            Input::Reaped { pid, ended } => self.reaped(now, pid, ended, &mut actions),
            Input::OutOfMemory { task } => {
                if let Some(known) = self.tasks.get_mut(&task)
                    && known.phase != Phase::Dead
                {
                    if !known.oom {
                        let task = task.clone();
                        actions.push(Action::Announce(EventKind::TaskOutOfMemory { task }));
                    }
                    known.oom = true;
                }
            }
            Input::Swept { task, left } => self.swept(now, wall, task, left, &mut actions),
            Input::SidecarSpawned { pid } => {
                if let Some(sidecar) = &mut self.sidecar {
                    sidecar.pid = Some(pid);
                    sidecar.spawned = now;
                    actions.push(Action::Announce(EventKind::SidecarStarted { pid }));
                    if sidecar.stopping {
                        actions.push(Action::SweepSidecar);
                    }
                }
            }
            Input::SidecarFailed { why } => {
                if let Some(sidecar) = &mut self.sidecar
                    && !sidecar.stopping
                {
                    let pause = sidecar.again(now);
                    actions.push(Action::Announce(EventKind::SidecarFailed {
                        why,
                        restart_in_ms: pause.as_millis() as u64,
                    }));
                }
            }
            Input::SidecarReady => {
                if let Some(sidecar) = &mut self.sidecar
                    && sidecar.pid.is_some()
                    && !sidecar.ready
                {
                    sidecar.ready = true;
                    actions.push(Action::Announce(EventKind::SidecarReady));
                }
            }
            Input::Tick => self.tick(now, &mut actions),
        }
        let left = self.sidecar.is_some() || self.tasks.values().any(|t| t.phase != Phase::Dead);
        if self.shutting_down && !left {
            actions.push(Action::Exit);
        }
        Ok(actions)
    }

    /// When [`Input::Tick`] is due next.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let tasks = self.tasks.values().filter_map(|task| task.deadline);
        let sidecar = self.sidecar.as_ref().and_then(|sidecar| sidecar.deadline);
        tasks.chain(sidecar).min()
    }

    pub(crate) fn tasks(&self) -> BTreeMap<String, TaskState> {
        let state = |task: &Task| TaskState {
            status: match task.phase {
                Phase::Dead => TaskStatus::Dead,
                _ if task.stopping => TaskStatus::Stopping,
                Phase::Launching | Phase::Begun => TaskStatus::Starting,
                Phase::Running => TaskStatus::Running,
                Phase::Sweeping { .. } => TaskStatus::Stopping,
            },
            pid: task.pid,
            started_at: task.started_at,
            exit: task.exit.clone(),
        };
        self.tasks
            .iter()
            .map(|(name, task)| (name.clone(), state(task)))
            .collect()
    }

    pub(crate) fn sidecar(&self) -> Option<SidecarState> {
        self.sidecar.as_ref().map(|sidecar| SidecarState {
            pid: sidecar.pid,
            ready: sidecar.ready,
            restarts: sidecar.restarts,
        })
    }

    /// Whether a child that ends may belong to a launch whose outcome is not known yet.
    pub(crate) fn launching(&self) -> bool {
        self.tasks
            .values()
            .any(|task| task.phase == Phase::Launching)
    }

    fn start(
        &mut self,
        now: Duration,
        task: String,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        if self
            .tasks
            .get(&task)
            .is_some_and(|known| known.phase != Phase::Dead)
        {
            return Err(Refusal::NotDead(task));
        }
        self.tasks.insert(task.clone(), Task::new(now));
        actions.push(Action::Launch { task });
        Ok(())
    }

    fn stop(
        &mut self,
        now: Duration,
        name: &str,
        signal: i32,
        timeout: Duration,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let task = self
            .tasks
            .get_mut(name)
            .ok_or_else(|| Refusal::NoTask(name.to_owned()))?;
        match task.phase {
            Phase::Dead => return Err(Refusal::NotRunning(name.to_owned())),
            Phase::Sweeping { .. } => {}
            // It has not begun: nothing to be gentle with. The launch is awaited.
            Phase::Launching => task.stopping = true,
            Phase::Begun | Phase::Running => {
                let first = !task.stopping;
                task.stopping = true;
                let due = now + timeout;
                task.deadline = Some(match task.deadline {
                    Some(earlier) if !first && earlier < due => earlier,
                    _ => due,
                });
                if timeout.is_zero() {
                    actions.push(Action::Sweep {
                        task: name.to_owned(),
                    });
                } else if first {
                    actions.push(Action::Signal {
                        task: name.to_owned(),
                        signal,
                    });
                }
            }
        }
        Ok(())
    }

    fn created(&mut self, name: &str, pid: u32, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.phase != Phase::Launching {
            return;
        }
        task.pid = Some(pid);
        let name = name.to_owned();
        if task.stopping {
            task.phase = Phase::Begun;
            task.deadline = None;
            actions.push(Action::Sweep { task: name });
        } else {
            task.phase = Phase::Begun;
            actions.push(Action::Begin { task: name });
        }
    }

    fn reaped(&mut self, now: Duration, pid: u32, ended: Ended, actions: &mut Vec<Action>) {
        if let Some((name, task)) = self.tasks.iter_mut().find(|(_, task)| {
            task.pid == Some(pid) && matches!(task.phase, Phase::Begun | Phase::Running)
        }) {
            if task.phase == Phase::Begun && !task.stopping {
                let why = match ended {
                    Ended::Code(code) => {
                        format!("the container ended with {code} before its command ran")
                    }
                    Ended::Signal(signal) => {
                        format!(
                            "the container was killed by signal {signal} before its command ran"
                        )
                    }
                };
                task.failure.get_or_insert(why);
            }
            // What the command itself ended with is known better from inside.
            task.ended.get_or_insert(ended);
            task.sweep();
            actions.push(Action::Sweep { task: name.clone() });
            return;
        }
        if let Some(sidecar) = &mut self.sidecar
            && sidecar.pid == Some(pid)
        {
            let (code, signal) = parts(ended);
            // What it started goes with it.
            actions.push(Action::SweepSidecar);
            let restart_in_ms = if sidecar.stopping {
                None
            } else {
                Some(sidecar.again(now).as_millis() as u64)
            };
            actions.push(Action::Announce(EventKind::SidecarExited {
                code,
                signal,
                restart_in_ms,
            }));
            if sidecar.stopping {
                self.sidecar = None;
            }
        }
    }

    fn swept(
        &mut self,
        now: Duration,
        wall: u64,
        name: String,
        left: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get_mut(&name) else {
            return;
        };
        let Phase::Sweeping { tries } = &mut task.phase else {
            return;
        };
        *tries += 1;
        if left > 0 && *tries < SWEEPS {
            task.deadline = Some(now + SWEEP_PAUSE);
            return;
        }
        task.phase = Phase::Dead;
        task.deadline = None;
        let (code, signal) = task.ended.map_or((None, None), parts);
        let failure = task.failure.take();
        let ran = failure.is_none();
        let exit = ExitRecord {
            code: code.filter(|_| ran),
            signal: signal.filter(|_| ran),
            // A child that was killed some time ago is no reason for a good end.
            oom_killed: task.oom && code != Some(0),
            failure,
            started_at: task.started_at,
            finished_at: wall,
        };
        task.exit = Some(exit.clone());
        actions.extend([
            Action::Clean { task: name.clone() },
            Action::Record {
                task: name.clone(),
                exit: exit.clone(),
            },
            Action::Announce(EventKind::TaskExited { task: name, exit }),
        ]);
    }

    fn stop_sidecar(&mut self, now: Duration, timeout: Duration, actions: &mut Vec<Action>) {
        let Some(sidecar) = &mut self.sidecar else {
            return;
        };
        if sidecar.pid.is_none() {
            // Between two lives.
            self.sidecar = None;
            return;
        }
        if timeout.is_zero() {
            actions.push(Action::SweepSidecar);
        } else if !sidecar.stopping {
            actions.push(Action::SignalSidecar {
                signal: libc::SIGTERM,
            });
        }
        let due = now + timeout;
        sidecar.deadline = Some(match sidecar.deadline {
            Some(earlier) if sidecar.stopping && earlier < due => earlier,
            _ => due,
        });
        sidecar.stopping = true;
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (name, task) in &mut self.tasks {
            if task.deadline.is_none_or(|due| due > now) {
                continue;
            }
            task.deadline = None;
            let name = name.clone();
            match task.phase {
                Phase::Launching => {
                    let why = format!("setting up the container took longer than {LAUNCH:?}");
                    task.failure.get_or_insert(why);
                    task.sweep();
                    actions.push(Action::Abort { task: name.clone() });
                    actions.push(Action::Sweep { task: name });
                }
                Phase::Begun | Phase::Running => {
                    if task.stopping {
                        let task = name.clone();
                        actions.push(Action::Announce(EventKind::TaskKilled { task }));
                    } else {
                        let why = format!("the command did not start within {LAUNCH:?}");
                        task.failure.get_or_insert(why);
                    }
                    actions.push(Action::Sweep { task: name });
                }
                Phase::Sweeping { .. } => actions.push(Action::Sweep { task: name }),
                Phase::Dead => {}
            }
        }
        if let Some(sidecar) = &mut self.sidecar
            && sidecar.deadline.is_some_and(|due| due <= now)
        {
            sidecar.deadline = None;
            if sidecar.stopping {
                actions.push(Action::SweepSidecar);
            } else if sidecar.pid.is_none() {
                sidecar.restarts += 1;
                actions.push(Action::SpawnSidecar);
            }
        }
    }
}

impl Sidecar {
    /// It has ended, or did not start: it is started again after the pause that is returned.
    fn again(&mut self, now: Duration) -> Duration {
        if self.pid.is_some() && now.saturating_sub(self.spawned) >= STEADY {
            self.pause = BACKOFF.0;
        }
        self.pid = None;
        self.ready = false;
        let pause = self.pause;
        self.pause = (pause * 2).min(BACKOFF.1);
        self.deadline = Some(now + pause);
        pause
    }
}

fn parts(ended: Ended) -> (Option<i32>, Option<i32>) {
    match ended {
        Ended::Code(code) => (Some(code), None),
        Ended::Signal(signal) => (None, Some(signal)),
    }
}

#[cfg(test)]
mod tests;
