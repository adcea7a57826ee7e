//! Containers by a real shim: what a task can do and cannot, what is kept of it, and that nothing is left.
//!
//! The root filesystem is a directory with a static busybox; root is needed.

mod bench;
mod world;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use wharf_launcher::{
    container::{Bind, Rootfs},
    shim::protocol::{EventKind, LogSettings, StartSidecar, TaskStatus},
};

use self::world::{World, run};

/// `sh -c` in a world of its own: what it wrote, and how it ended.
async fn output(
    script: &str,
    change: impl FnOnce(&mut wharf_launcher::container::Spec),
) -> Option<String> {
    let mut world = World::new().await?;
    let mut start = world.task("task", &["sh", "-c", script]);
    change(&mut start.spec);
    world.client.start_task(start).await.unwrap();
    let exit = world.exit("task").await;
    let text = world.log("task", "stdout") + &world.log("task", "stderr");
    assert_eq!(exit.failure, None, "{text}");
    world.end().await;
    Some(text)
}

#[test]
fn a_container_has_little_power() {
    run(async {
        let script = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; \
            unshare -m true; echo unshare=$?; mount -t tmpfs x /mnt; echo mount=$?; \
            mknod /tmp/n c 1 3; echo mknod=$?; chroot / true; echo chroot=$?; hostname other; echo hostname=$?; \
            dmesg >/dev/null; echo dmesg=$?; date -s 2020-01-01 >/dev/null";
        let Some(text) = output(script, |_| {}).await else {
            return;
        };
        // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(
                text.contains(&format!("{set}:\t00000000000005fb")),
                "{text}"
            );
        }
        for set in ["CapInh", "CapAmb"] {
            assert!(
                text.contains(&format!("{set}:\t0000000000000000")),
                "{text}"
            );
        }
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        assert!(text.contains("Seccomp:\t2"), "{text}");
        for what in ["unshare", "mount", "mknod", "chroot", "hostname", "dmesg"] {
            assert!(text.contains(&format!("{what}=1")), "{what}: {text}");
        }
        assert!(
            text.contains("can't set date: Operation not permitted"),
            "{text}"
        );
    });
}

#[test]
fn a_container_sees_only_itself() {
    run(async {
        let script = "echo pid=$$; ls /proc | grep -c '^[0-9]'; hostname; cat /proc/self/cgroup; \
            touch /x && echo root-writable; touch /tmp/x /run/x /dev/shm/x && echo tmp-writable; \
            echo 1 > /proc/sys/kernel/panic; cat /proc/kcore 2>/dev/null | wc -c; cat /proc/keys | wc -c; ls /sys/firmware | wc -l; \
            touch /sys/x; ls -1 /dev; echo --; cat /proc/mounts; ls -l /proc/1/fd 2>&1 | wc -l";
        let Some(text) = output(script, |_| {}).await else {
            return;
        };
        assert!(text.contains("pid=2\n"), "process 1 is the init: {text}");
        assert!(text.contains("\nworld-host\n"), "{text}");
        assert!(!text.contains("root-writable"), "{text}");
        assert!(text.contains("tmp-writable"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        let cgroups = text
            .lines()
            .filter(|line| line.contains(":memory:") || line.starts_with("0::"));
        for line in cgroups {
            assert!(line.ends_with(":/") || line.contains("/.."), "{line}");
        }
        for device in [
            "null", "zero", "full", "random", "urandom", "tty", "ptmx", "shm", "pts",
        ] {
            assert!(text.lines().any(|line| line == device), "{device}: {text}");
        }
        for device in ["vda", "sda", "mem", "kmsg"] {
            assert!(!text.lines().any(|line| line == device), "{device}: {text}");
        }
        assert!(
            text.contains("\n0\n0\n0\n"),
            "kcore, keys and firmware are empty: {text}"
        );
        let mounts = text.split("--\n").nth(1).unwrap();
        assert!(
            mounts.lines().next().unwrap().contains(" / overlay ro,"),
            "{mounts}"
        );
        assert!(!mounts.contains("/etc ext4"), "{mounts}");
    });
}

#[test]
fn a_writable_root_is_the_containers_own() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let mut start = world.task(
            "task",
            &["sh", "-c", "echo mine > /etc/mine && cat /etc/mine"],
        );
        start.spec.read_only = false;
        world.client.start_task(start).await.unwrap();
        world.exit("task").await;
        assert_eq!(world.log("task", "stdout"), "mine\n");
        assert!(
            !world.rootfs.join("etc/mine").exists(),
            "the layer is as it was"
        );
        world.end().await;
    });
}

#[test]
fn the_user_is_the_one_that_is_named() {
    run(async {
        let script =
            "id; grep CapEff /proc/self/status; echo home=$HOME; touch /etc/x; cat /etc/secret";
        let Some(text) = output(script, |spec| spec.user = "web".into()).await else {
            return;
        };
        assert!(
            text.contains("uid=1000(web) gid=1000(web) groups=50(logs),1000(web)")
                || text.contains("uid=1000(web) gid=1000(web) groups=1000(web),50(logs)")
                || text.contains("uid=1000(web) gid=1000(web) groups=50(logs)"),
            "{text}"
        );
        assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
        assert!(text.contains("home=/srv/web"), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
    });
}

#[test]
fn limits_are_the_kernels() {
    run(async {
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
            /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; \
            echo 1000000000 > /sys/fs/cgroup/memory/memory.limit_in_bytes; echo max > /sys/fs/cgroup/memory.max; \
            echo own=$?; i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done; echo over";
        let Some(text) = output(script, |spec| spec.limits.pids = 20).await else {
            return;
        };
        assert!(text.starts_with("33554432\n20\n"), "{text}");
        assert!(
            text.contains("own=1"),
            "a container cannot raise its own limits: {text}"
        );
        assert!(text.contains("can't fork"), "{text}");
    });
}

#[test]
fn want_of_memory_is_the_reason_that_is_given() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        // A shell variable that doubles until the limit.
        let script = "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done";
        let start = world.task("task", &["sh", "-c", script]);
        world.client.start_task(start).await.unwrap();
        let exit = world.exit("task").await;
        assert!(exit.oom_killed, "{exit:?}");
        assert_eq!((exit.code, exit.signal), (None, Some(9)));
        assert!(world.seen(|kind| matches!(kind, EventKind::TaskOutOfMemory { .. })));
        world.end().await;
    });
}

#[test]
fn codes_and_signals_are_told_apart_and_kept() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        for (script, code, signal) in [
            ("exit 0", Some(0), None),
            ("exit 7", Some(7), None),
            ("kill -SEGV $$", None, Some(11)),
            ("kill -KILL $$", None, Some(9)),
        ] {
            let start = world.task("task", &["sh", "-c", script]);
            let file = start.exit_file.clone();
            world.client.start_task(start).await.unwrap();
            let exit = world.exit("task").await;
            assert_eq!((exit.code, exit.signal), (code, signal), "{script}");
            assert!(!exit.oom_killed && exit.failure.is_none(), "{exit:?}");
            let kept: wharf_launcher::shim::protocol::ExitRecord =
                serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
            assert_eq!(kept, exit);
        }
        world.end().await;
    });
}

#[test]
fn a_command_that_cannot_run_says_why() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        for (argv, user, why) in [
            (
                &["nothing-by-that-name"][..],
                "",
                "is in none of the directories of PATH",
            ),
            (&["/nowhere/at/all"], "", "no such file"),
            (&["/etc"], "", "it is a directory"),
            (&["/etc/passwd"], "", "may not execute"),
            (&["/etc/garbage"], "", "no program for this machine"),
            (&["true"], "ghost", "no user \"ghost\""),
        ] {
            let mut start = world.task("task", argv);
            start.spec.user = user.into();
            world.client.start_task(start).await.unwrap();
            let exit = world.exit("task").await;
            let failure = exit.failure.unwrap_or_default();
            assert!(failure.contains(why), "{argv:?}: {failure:?}");
            assert_eq!((exit.code, exit.signal), (None, None));
        }
        // What is no container at all is refused at once.
        let mut start = world.task("task", &["true"]);
        start.spec.cwd = "relative".into();
        let error = world.client.start_task(start).await.unwrap_err();
        assert!(error.to_string().contains("working directory"), "{error}");
        world.end().await;
    });
}

#[test]
fn a_stop_is_a_signal_and_then_the_end() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        // No handler: as process 1 it would not even hear of it.
        let start = world.task("plain", &["sleep", "1000"]);
        world.start(start).await;
        world
            .client
            .stop("plain", 15, Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(world.exit("plain").await.signal, Some(15));
        let start = world.task(
            "deaf",
            &[
                "sh",
                "-c",
                "trap '' TERM; echo ready; while true; do sleep 1; done",
            ],
        );
        world.start(start).await;
        world.wait_log("deaf", "ready\n").await;
        let asked = Instant::now();
        world
            .client
            .stop("deaf", 15, Duration::from_millis(300))
            .await
            .unwrap();
        assert_eq!(world.exit("deaf").await.signal, Some(9));
        assert!(asked.elapsed() >= Duration::from_millis(300));
        assert!(world.seen(|kind| matches!(kind, EventKind::TaskKilled { .. })));
        world.end().await;
    });
}

#[test]
fn orphans_are_reaped_and_gone_with_the_command() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let script = "(sleep 0.1 &) ; (sh -c 'sleep 1000 & sleep 1000' &) ; \
            i=0; while ps -o stat | grep -q Z && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; \
            ps -o stat | grep -c Z; exec sleep 0.2";
        let start = world.task("task", &["sh", "-c", script]);
        world.client.start_task(start).await.unwrap();
        assert_eq!(world.exit("task").await.code, Some(0));
        assert_eq!(world.log("task", "stdout"), "0\n");
        assert!(world.processes().is_empty(), "{:?}", world.processes());
        world.end().await;
    });
}

#[test]
fn output_is_kept_within_bounds() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let script = "i=0; while [ $i -lt 3000 ]; do echo line-$i-0123456789; i=$((i+1)); done; echo err >&2";
        let mut start = world.task("task", &["sh", "-c", script]);
        start.logs.max_files = 3;
        start.logs.max_file_bytes = 4096;
        let dir = start.logs.dir.clone();
        world.client.start_task(start).await.unwrap();
        world.exit("task").await;
        let sizes: Vec<u64> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("stdout."))
            .map(|entry| entry.metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 4096), "{sizes:?}");
        let kept = world.log("task", "stdout");
        assert!(kept.ends_with("line-2999-0123456789\n"), "{kept:?}");
        assert!(kept.starts_with("line-"), "lines are whole");
        assert_eq!(world.log("task", "stderr"), "err\n");
        world.end().await;
    });
}

#[test]
fn the_hosts_own_root_is_read_only_and_without_its_secrets() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let script = "id -u; touch /usr/x /etc/x /var/x; wc -c < /etc/shadow; ls /root | wc -l; ls /run; \
            cat /etc/hosts; cat /run/tool; ls -d /usr/bin/env";
        let mut start = world.task("task", &["/bin/sh", "-c", script]);
        start.spec.rootfs = Rootfs::Host;
        let hosts = world.dir.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 my-own-hosts\n").unwrap();
        for target in ["/etc/hosts", "/run/tool"] {
            start.spec.binds.push(Bind {
                source: hosts.clone(),
                target: target.into(),
                read_only: true,
            });
        }
        world.client.start_task(start).await.unwrap();
        let exit = world.exit("task").await;
        let text = world.log("task", "stdout") + &world.log("task", "stderr");
        assert_eq!((exit.code, exit.failure), (Some(0), None), "{text}");
        assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
        assert!(
            text.starts_with("0\n0\n0\ntool\n127.0.0.1 my-own-hosts\n127.0.0.1 my-own-hosts\n"),
            "{text}"
        );
        assert!(text.contains("/usr/bin/env"), "{text}");
        world.end().await;
    });
}

#[test]
fn an_agent_that_is_gone_finds_everything_again() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let start = world.task("task", &["sh", "-c", "echo up; sleep 1000"]);
        world.start(start).await;
        let before = world.client.state().await.unwrap();
        world.reconnect(before.last_event).await;
        let after = world.client.state().await.unwrap();
        assert_eq!(before, after);
        assert_eq!(after.tasks["task"].status, TaskStatus::Running);
        // What happened meanwhile is told again to who asks from the beginning.
        world.reconnect(0).await;
        world
            .until(|kind| matches!(kind, EventKind::TaskStarted { .. }))
            .await;
        world.client.stop("task", 9, Duration::ZERO).await.unwrap();
        world.exit("task").await;
        world.end().await;
    });
}

#[test]
fn a_shim_that_is_killed_takes_its_tasks_along() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let start = world.task("task", &["sh", "-c", "sleep 1000 & sleep 1000"]);
        world.start(start).await;
        let shim = world.client.state().await.unwrap().pid;
        world::kill(shim);
        world.gone().await;
        assert!(world.client.state().await.is_err());
        world.sweep();
        world.respawn().await;
        let start = world.task("task", &["sh", "-c", "echo again"]);
        world.client.start_task(start).await.unwrap();
        assert_eq!(world.exit("task").await.code, Some(0));
        world.end().await;
    });
}

#[test]
fn a_sidecar_says_when_it_is_ready_and_comes_back_when_it_dies() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let program = "import os,socket,time\n\
            s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\n\
            print('up',flush=True)\n\
            s.sendto(b'STATUS=x\\nREADY=1\\n',os.environ['NOTIFY_SOCKET'])\n\
            time.sleep(1000)\n";
        if std::process::Command::new("python3")
            .arg("--version")
            .output()
            .is_err()
        {
            wharf_tests::missing("python3");
            world.end().await;
            return;
        }
        let dir = world.dir.path().join("sidecar");
        world
            .client
            .start_sidecar(StartSidecar {
                argv: vec![
                    "/usr/bin/env".into(),
                    "python3".into(),
                    "-c".into(),
                    program.into(),
                ],
                env: BTreeMap::from([(
                    "PATH".to_owned(),
                    "/usr/bin:/bin:/usr/local/bin".to_owned(),
                )]),
                netns: None,
                logs: LogSettings {
                    dir: dir.clone(),
                    max_files: 2,
                    max_file_bytes: 1 << 20,
                },
            })
            .await
            .unwrap();
        world
            .until(|kind| matches!(kind, EventKind::SidecarReady))
            .await;
        let first = world.client.state().await.unwrap().sidecar.unwrap();
        assert!(first.ready);
        world::kill(first.pid.unwrap());
        world
            .until(|kind| {
                matches!(
                    kind,
                    EventKind::SidecarExited {
                        signal: Some(9),
                        ..
                    }
                )
            })
            .await;
        world
            .until(|kind| matches!(kind, EventKind::SidecarReady))
            .await;
        let second = world.client.state().await.unwrap().sidecar.unwrap();
        assert_eq!(second.restarts, 1);
        assert_ne!(first.pid, second.pid);
        assert_eq!(
            fs::read_to_string(dir.join("sidecar.0")).unwrap(),
            "up\nup\n"
        );
        world.end().await;
    });
}
