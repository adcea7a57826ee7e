use proptest::prelude::*;

use super::*;

const T: fn(u64) -> Duration = Duration::from_millis;

fn web() -> String {
    "web".to_owned()
}

/// A machine with a clock, which insists that inputs are accepted.
struct Bench {
    machine: Machine,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self {
            machine: Machine::default(),
            now: Duration::ZERO,
        }
    }

    fn put(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(self.now, 1000, input).unwrap()
    }

    fn refused(&mut self, input: Input) -> Refusal {
        self.machine.handle(self.now, 1000, input).unwrap_err()
    }

    /// Lets time pass until the next deadline.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.machine.deadline().expect("nothing is awaited");
        self.put(Input::Tick)
    }

    fn started() -> Self {
        let mut bench = Self::new();
        bench.put(Input::StartTask { task: web() });
        bench.put(Input::Created {
            task: web(),
            pid: 5,
        });
        bench.put(Input::Running { task: web() });
        bench
    }

    fn status(&self) -> TaskStatus {
        self.machine.tasks()["web"].status
    }

    /// The group is empty: the exit that is announced, which must be on record before.
    fn exit(&mut self) -> ExitRecord {
        let actions = self.put(Input::Swept {
            task: web(),
            left: 0,
        });
        let [
            Action::Clean { .. },
            Action::Record { exit: recorded, .. },
            Action::Announce(EventKind::TaskExited { exit, .. }),
        ] = &actions[..]
        else {
            panic!("{actions:?}");
        };
        assert_eq!(recorded, exit);
        assert_eq!(self.status(), TaskStatus::Dead);
        exit.clone()
    }
}

fn stop(timeout: Duration) -> Input {
    Input::StopTask {
        task: web(),
        signal: 15,
        timeout,
    }
}

#[test]
fn a_task_begins_only_when_its_process_is_known() {
    let mut bench = Bench::new();
    let launch = bench.put(Input::StartTask { task: web() });
    assert_eq!(launch, [Action::Launch { task: web() }]);
    assert_eq!(
        bench.put(Input::Created {
            task: web(),
            pid: 5
        }),
        [Action::Begin { task: web() }]
    );
    assert_eq!(bench.status(), TaskStatus::Starting);
    let started = EventKind::TaskStarted {
        task: web(),
        pid: 5,
    };
    assert_eq!(
        bench.put(Input::Running { task: web() }),
        [Action::Announce(started)]
    );
    assert_eq!(bench.status(), TaskStatus::Running);
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn an_exit_is_the_commands_own_and_comes_after_the_sweep() {
    let mut bench = Bench::started();
    bench.put(Input::CommandEnded {
        task: web(),
        ended: Ended::Signal(11),
    });
    // The first process of the container says it in its own way.
    let actions = bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Code(139),
    });
    assert_eq!(actions, [Action::Sweep { task: web() }]);
    assert!(
        bench
            .put(Input::Swept {
                task: web(),
                left: 2
            })
            .is_empty()
    );
    assert_eq!(bench.wait(), [Action::Sweep { task: web() }]);
    let exit = bench.exit();
    assert_eq!((exit.code, exit.signal), (None, Some(11)));
    assert_eq!(exit.started_at, Some(1000));
    // And again, under the same name.
    assert_eq!(
        bench.put(Input::StartTask { task: web() }),
        [Action::Launch { task: web() }]
    );
}

#[test]
fn a_group_that_never_empties_does_not_hold_the_exit_for_ever() {
    let mut bench = Bench::started();
    bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Code(0),
    });
    for _ in 1..SWEEPS {
        assert!(
            bench
                .put(Input::Swept {
                    task: web(),
                    left: 1
                })
                .is_empty()
        );
        bench.wait();
    }
    assert!(
        !bench
            .put(Input::Swept {
                task: web(),
                left: 1
            })
            .is_empty()
    );
    assert_eq!(bench.status(), TaskStatus::Dead);
}

#[test]
fn a_stop_is_gentle_first_and_certain_after() {
    let mut bench = Bench::started();
    let signal = Action::Signal {
        task: web(),
        signal: 15,
    };
    assert_eq!(bench.put(stop(T(5000))), [signal]);
    assert_eq!(bench.status(), TaskStatus::Stopping);
    // Asking again does not ask the task again, and the earlier deadline holds.
    assert!(bench.put(stop(T(9000))).is_empty());
    assert_eq!(bench.machine.deadline(), Some(T(5000)));
    bench.put(stop(T(1000)));
    assert_eq!(bench.machine.deadline(), Some(T(1000)));
    assert_eq!(
        bench.wait(),
        [
            Action::Announce(EventKind::TaskKilled { task: web() }),
            Action::Sweep { task: web() }
        ]
    );
    // The answer to that sweep is not the end yet: the process is still to be reaped.
    assert!(
        bench
            .put(Input::Swept {
                task: web(),
                left: 1
            })
            .is_empty()
    );
    bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Signal(9),
    });
    assert_eq!(bench.exit().signal, Some(9));
    assert_eq!(bench.refused(stop(T(0))), Refusal::NotRunning(web()));
}

#[test]
fn a_stop_while_launching_never_lets_the_command_begin() {
    let mut bench = Bench::new();
    bench.put(Input::StartTask { task: web() });
    assert!(bench.put(stop(T(5000))).is_empty());
    assert_eq!(
        bench.put(Input::Created {
            task: web(),
            pid: 5
        }),
        [Action::Sweep { task: web() }]
    );
    bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Signal(9),
    });
    let exit = bench.exit();
    assert_eq!((exit.signal, exit.failure), (Some(9), None));
}

#[test]
fn a_launch_that_fails_says_why_in_the_words_from_inside() {
    let mut bench = Bench::new();
    bench.put(Input::StartTask { task: web() });
    bench.put(Input::CommandFailed {
        task: web(),
        message: "no such command".into(),
    });
    let actions = bench.put(Input::LaunchFailed {
        task: web(),
        message: "something deeper".into(),
    });
    assert_eq!(actions, [Action::Sweep { task: web() }]);
    let exit = bench.exit();
    assert_eq!(exit.failure.as_deref(), Some("no such command"));
    assert_eq!((exit.code, exit.signal), (None, None));
}

#[test]
fn a_command_that_fails_to_start_is_a_failure_and_no_exit_code() {
    let mut bench = Bench::new();
    bench.put(Input::StartTask { task: web() });
    bench.put(Input::Created {
        task: web(),
        pid: 5,
    });
    bench.put(Input::CommandFailed {
        task: web(),
        message: "no program".into(),
    });
    bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Code(255),
    });
    let exit = bench.exit();
    assert_eq!(
        (exit.code, exit.failure.as_deref()),
        (None, Some("no program"))
    );
}

#[test]
fn a_launcher_that_hangs_or_vanishes_is_given_up() {
    let mut bench = Bench::new();
    bench.put(Input::StartTask { task: web() });
    assert_eq!(
        bench.wait(),
        [Action::Abort { task: web() }, Action::Sweep { task: web() }]
    );
    assert!(bench.exit().failure.unwrap().contains("took longer"));

    let mut bench = Bench::new();
    bench.put(Input::StartTask { task: web() });
    bench.put(Input::LauncherGone { task: web() });
    assert!(bench.exit().failure.unwrap().contains("without a word"));
}

#[test]
fn memory_is_the_reason_only_of_a_bad_end() {
    for (ended, reason) in [(Ended::Signal(9), true), (Ended::Code(0), false)] {
        let mut bench = Bench::started();
        let event = Action::Announce(EventKind::TaskOutOfMemory { task: web() });
        assert_eq!(bench.put(Input::OutOfMemory { task: web() }), [event]);
        assert!(
            bench.put(Input::OutOfMemory { task: web() }).is_empty(),
            "said once"
        );
        bench.put(Input::Reaped { pid: 5, ended });
        assert_eq!(bench.exit().oom_killed, reason, "{ended:?}");
    }
}

#[test]
fn wrong_orders_change_nothing() {
    let mut bench = Bench::new();
    for input in [
        Input::Created {
            task: web(),
            pid: 5,
        },
        Input::Running { task: web() },
        Input::LauncherGone { task: web() },
        Input::Swept {
            task: web(),
            left: 0,
        },
        Input::OutOfMemory { task: web() },
        Input::Reaped {
            pid: 5,
            ended: Ended::Code(0),
        },
        Input::SidecarReady,
        Input::SidecarSpawned { pid: 6 },
        Input::Tick,
        Input::StopSidecar { timeout: T(1) },
    ] {
        assert!(bench.put(input.clone()).is_empty(), "{input:?}");
    }
    assert_eq!(bench.refused(stop(T(1))), Refusal::NoTask(web()));
    let mut bench = Bench::started();
    for input in [
        Input::Created {
            task: web(),
            pid: 6,
        },
        Input::Running { task: web() },
        Input::LauncherGone { task: web() },
        Input::LaunchFailed {
            task: web(),
            message: String::new(),
        },
        Input::Swept {
            task: web(),
            left: 0,
        },
    ] {
        assert!(bench.put(input.clone()).is_empty(), "{input:?}");
    }
    assert_eq!(bench.status(), TaskStatus::Running);
    assert_eq!(bench.machine.tasks()["web"].pid, Some(5));
    assert_eq!(
        bench.refused(Input::StartTask { task: web() }),
        Refusal::NotDead(web())
    );
    // A running command can no longer fail to start.
    bench.put(Input::CommandFailed {
        task: web(),
        message: "late".into(),
    });
    bench.put(Input::Reaped {
        pid: 5,
        ended: Ended::Code(3),
    });
    assert_eq!(bench.exit().code, Some(3));
}

#[test]
fn a_sidecar_is_started_again_ever_more_slowly_until_it_is_steady() {
    let mut bench = Bench::new();
    assert_eq!(bench.put(Input::StartSidecar), [Action::SpawnSidecar]);
    assert_eq!(bench.refused(Input::StartSidecar), Refusal::Sidecar);
    let mut pauses = Vec::new();
    for pid in 10..20 {
        bench.put(Input::SidecarSpawned { pid });
        bench.put(Input::Reaped {
            pid,
            ended: Ended::Code(1),
        });
        pauses.push((bench.machine.deadline().unwrap() - bench.now).as_millis());
        assert_eq!(bench.wait(), [Action::SpawnSidecar]);
    }
    assert_eq!(pauses[..4], [100, 200, 400, 800]);
    assert_eq!(pauses[9], 10_000);
    bench.put(Input::SidecarSpawned { pid: 30 });
    assert_eq!(
        bench.put(Input::SidecarReady),
        [Action::Announce(EventKind::SidecarReady)]
    );
    assert!(bench.put(Input::SidecarReady).is_empty());
    bench.now += STEADY;
    let actions = bench.put(Input::Reaped {
        pid: 30,
        ended: Ended::Signal(9),
    });
    let exited = EventKind::SidecarExited {
        code: None,
        signal: Some(9),
        restart_in_ms: Some(100),
    };
    assert_eq!(actions, [Action::SweepSidecar, Action::Announce(exited)]);
    assert!(!bench.machine.sidecar().unwrap().ready);
}

#[test]
fn a_sidecar_that_is_stopped_stays_stopped() {
    let mut bench = Bench::new();
    bench.put(Input::StartSidecar);
    bench.put(Input::SidecarSpawned { pid: 6 });
    assert_eq!(
        bench.put(Input::StopSidecar { timeout: T(100) }),
        [Action::SignalSidecar {
            signal: libc::SIGTERM
        }]
    );
    assert_eq!(bench.wait(), [Action::SweepSidecar]);
    bench.put(Input::Reaped {
        pid: 6,
        ended: Ended::Signal(9),
    });
    assert_eq!(bench.machine.sidecar(), None);
    assert_eq!(bench.machine.deadline(), None);
    // Between two lives there is nobody to signal.
    bench.put(Input::StartSidecar);
    bench.put(Input::SidecarFailed { why: "no".into() });
    assert!(bench.put(Input::StopSidecar { timeout: T(100) }).is_empty());
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn shutdown_ends_everything_and_then_the_shim() {
    let mut bench = Bench::started();
    bench.put(Input::StartSidecar);
    bench.put(Input::SidecarSpawned { pid: 6 });
    let actions = bench.put(Input::Shutdown);
    assert_eq!(
        actions,
        [Action::Sweep { task: web() }, Action::SweepSidecar]
    );
    assert_eq!(bench.refused(Input::StartSidecar), Refusal::ShuttingDown);
    assert_eq!(
        bench.refused(Input::StartTask { task: "b".into() }),
        Refusal::ShuttingDown
    );
    let ended = Ended::Signal(9);
    bench.put(Input::Reaped { pid: 6, ended });
    bench.put(Input::Reaped { pid: 5, ended });
    let actions = bench.put(Input::Swept {
        task: web(),
        left: 0,
    });
    assert_eq!(actions.last(), Some(&Action::Exit));
    assert_eq!(Bench::new().put(Input::Shutdown), [Action::Exit]);
}

fn any_input() -> impl Strategy<Value = Input> {
    let task = prop_oneof![Just(web()), Just("db".to_owned())];
    let ended = prop_oneof![(0..3i32).prop_map(Ended::Code), Just(Ended::Signal(9))];
    prop_oneof![
        task.clone().prop_map(|task| Input::StartTask { task }),
        (task.clone(), 0..3u64).prop_map(|(task, seconds)| Input::StopTask {
            task,
            signal: 15,
            timeout: Duration::from_secs(seconds)
        }),
        (task.clone(), 1..5u32).prop_map(|(task, pid)| Input::Created { task, pid }),
        task.clone().prop_map(|task| Input::Running { task }),
        task.clone().prop_map(|task| Input::LauncherGone { task }),
        task.clone().prop_map(|task| Input::LaunchFailed {
            task,
            message: "m".into()
        }),
        (1..9u32, ended).prop_map(|(pid, ended)| Input::Reaped { pid, ended }),
        (task.clone(), 0..2usize).prop_map(|(task, left)| Input::Swept { task, left }),
        task.prop_map(|task| Input::OutOfMemory { task }),
        Just(Input::StartSidecar),
        (5..9u32).prop_map(|pid| Input::SidecarSpawned { pid }),
        Just(Input::SidecarReady),
        Just(Input::StopSidecar {
            timeout: Duration::ZERO
        }),
        Just(Input::Tick),
    ]
}

proptest! {
    /// Whatever comes: a name is launched only when it is free, begins once, and its end is told once, after its record.
    #[test]
    fn each_launch_has_one_end(inputs in proptest::collection::vec((any_input(), 0..2000u64), 0..60)) {
        let mut machine = Machine::default();
        let mut now = Duration::ZERO;
        let mut open: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        for (input, pass) in inputs {
            now += Duration::from_millis(pass);
            for action in machine.handle(now, 0, input).unwrap_or_default() {
                match action {
                    Action::Launch { task } => {
                        prop_assert!(open.insert(task, (0, 0)).is_none());
                    }
                    Action::Begin { task } => {
                        let (begun, _) = open.get_mut(&task).unwrap();
                        *begun += 1;
                        prop_assert_eq!(*begun, 1);
                    }
                    Action::Record { task, .. } => open.get_mut(&task).unwrap().1 += 1,
                    Action::Announce(EventKind::TaskExited { task, .. }) => {
                        prop_assert_eq!(open.remove(&task).unwrap().1, 1);
                    }
                    Action::Exit => prop_assert!(false, "nobody asked for it"),
                    _ => {}
                }
            }
            if let Some(deadline) = machine.deadline() {
                prop_assert!(deadline <= now + LAUNCH);
            }
        }
    }
}
