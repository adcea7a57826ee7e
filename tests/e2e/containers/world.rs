//! One allocation's shim for a test, and the proof that nothing of it is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use wharf_launcher::{
    container::{Limits, Rootfs, Spec, cgroup::Hierarchy},
    shim::{
        Client, Spawn, log_indexes,
        protocol::{Event, EventKind, ExitRecord, LogSettings, StartTask},
    },
};

/// How long anything may take on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

/// Programs of the root filesystem: all are the one busybox.
const APPLETS: [&str; 27] = [
    "sh", "true", "sleep", "grep", "cat", "ls", "wc", "touch", "id", "unshare", "mount", "mknod",
    "chroot", "hostname", "dmesg", "date", "ps", "kill", "echo", "head", "env", "ip", "nslookup",
    "wget", "httpd", "nc", "dd",
];

/// Runs a test's future to its end.
pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// SIGKILL to a process of the test's own.
pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) rootfs: PathBuf,
    pub(crate) client: Client,
    pub(crate) alloc: String,
    spawn: Spawn,
    events: mpsc::Receiver<Event>,
    history: Vec<EventKind>,
    /// How far the history has been waited through.
    looked: usize,
    mounts: BTreeSet<String>,
}

impl World {
    /// `None`, and said so, where containers cannot be made.
    pub(crate) async fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            wharf_tests::missing("root");
            return None;
        }
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find(|at| Path::new(at).exists())
        else {
            wharf_tests::missing("busybox (apt install busybox-static)");
            return None;
        };
        let hierarchy = match Hierarchy::detect() {
            Ok(hierarchy) => hierarchy,
            Err(error) => {
                wharf_tests::missing(&error.to_string());
                return None;
            }
        };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let alloc = format!("test-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let rootfs = rootfs(dir.path(), Path::new(busybox));
        let spawn = Spawn {
            program: wharf_tests::wharf().to_owned(),
            words: vec!["shim".into()],
            socket: dir.path().join("run/shim.sock"),
            notify: dir.path().join("run/notify.sock"),
            group: Path::new("wharf").join(&alloc),
        };
        assert!(!hierarchy.group(&spawn.group).exists());
        let mounts = mounts();
        let (client, events) = Client::spawn(&spawn).await.unwrap();
        Some(Self {
            dir,
            rootfs,
            client,
            alloc,
            spawn,
            events,
            history: Vec::new(),
            looked: 0,
            mounts,
        })
    }

    pub(crate) fn task(&self, name: &str, argv: &[&str]) -> StartTask {
        let dir = self.dir.path().join("tasks").join(name);
        fs::create_dir_all(&dir).unwrap();
        StartTask {
            task: name.to_owned(),
            spec: Spec {
                id: format!("{}-{name}", self.alloc),
                bundle: dir.join("bundle"),
                rootfs: Rootfs::Layers(vec![self.rootfs.clone()]),
                argv: argv.iter().map(|word| (*word).to_owned()).collect(),
                env: BTreeMap::new(),
                user: String::new(),
                cwd: "/".into(),
                hostname: "world-host".into(),
                netns: None,
                cgroup: self.spawn.group.join(name),
                limits: Limits {
                    cpu_millis: 500,
                    cpu_max_millis: None,
                    memory: 16 << 20,
                    memory_max: 32 << 20,
                    pids: 100,
                },
                binds: Vec::new(),
                read_only: true,
                masked: Vec::new(),
            },
            logs: LogSettings {
                dir: dir.join("logs"),
                max_files: 10,
                max_file_bytes: 1 << 20,
            },
            exit_file: dir.join("exit.json"),
        }
    }

    /// Starts a task and waits until it runs.
    pub(crate) async fn start(&mut self, start: StartTask) {
        let name = start.task.clone();
        self.client.start_task(start).await.unwrap();
        self.until(|kind| match kind {
            EventKind::TaskExited { task, exit } if *task == name => panic!("{exit:?}"),
            EventKind::TaskStarted { task, .. } => *task == name,
            _ => false,
        })
        .await;
    }

    /// Waits for an event that was not waited for before.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
        loop {
            while let Some(kind) = self.history.get(self.looked) {
                self.looked += 1;
                if wanted(kind) {
                    return kind.clone();
                }
            }
            let event = timeout(SOON, self.events.recv())
                .await
                .unwrap_or_else(|_| panic!("it did not come: {:?}", self.history))
                .expect("the shim is gone");
            self.history.push(event.kind);
        }
    }

    pub(crate) async fn exit(&mut self, name: &str) -> ExitRecord {
        match self
            .until(|kind| matches!(kind, EventKind::TaskExited { task, .. } if task == name))
            .await
        {
            EventKind::TaskExited { exit, .. } => exit,
            _ => unreachable!(),
        }
    }

    pub(crate) fn seen(&self, wanted: impl Fn(&EventKind) -> bool) -> bool {
        self.history.iter().any(wanted)
    }

    /// Waits until the shim is gone.
    pub(crate) async fn gone(&mut self) {
        let ended = async { while self.events.recv().await.is_some() {} };
        timeout(SOON, ended).await.unwrap();
    }

    pub(crate) async fn reconnect(&mut self, after: u64) {
        let (client, events) = Client::connect(&self.spawn.socket, after).await.unwrap();
        self.client = client;
        self.events = events;
    }

    pub(crate) async fn respawn(&mut self) {
        let (client, events) = Client::spawn(&self.spawn).await.unwrap();
        self.client = client;
        self.events = events;
    }

    pub(crate) fn log(&self, name: &str, stream: &str) -> String {
        let dir = self.dir.path().join("tasks").join(name).join("logs");
        log_indexes(&dir, stream)
            .into_iter()
            .map(|index| fs::read_to_string(dir.join(format!("{stream}.{index}"))).unwrap())
            .collect()
    }

    pub(crate) async fn wait_log(&self, name: &str, text: &str) {
        let written = async {
            while !self.log(name, "stdout").contains(text) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, written).await.unwrap();
    }

    /// Processes of the allocation other than the shim.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let hierarchy = Hierarchy::detect().unwrap();
        let shim = hierarchy.group(&self.spawn.group.join("@shim")).processes();
        let mut all = hierarchy.group(&self.spawn.group).processes();
        all.retain(|pid| !shim.contains(pid));
        all
    }

    /// What an agent does when it finds a shim dead.
    pub(crate) fn sweep(&self) {
        let group = Hierarchy::detect().unwrap().group(&self.spawn.group);
        group.kill_all().unwrap();
        assert!(group.processes().is_empty());
        group.remove().unwrap();
    }

    /// Ends the shim, and looks for what is left.
    pub(crate) async fn end(mut self) {
        let shim = self.client.state().await.unwrap().pid;
        self.client.shutdown().await.unwrap();
        let group = Hierarchy::detect().unwrap().group(&self.spawn.group);
        let ended = async {
            while !group.processes().is_empty() || Path::new(&format!("/proc/{shim}")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, ended).await.expect("processes are left");
        group.remove().unwrap();
        assert!(!group.exists());
        assert!(!self.spawn.socket.exists() && !self.spawn.notify.exists());
        let own = self.dir.path().display().to_string();
        let left: Vec<String> = mounts()
            .difference(&self.mounts)
            .filter(|at| at.starts_with(&own))
            .cloned()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for World {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        if let Ok(hierarchy) = Hierarchy::detect() {
            let group = hierarchy.group(&self.spawn.group);
            let _ = group.kill_all().and_then(|()| group.remove());
        }
    }
}

/// Mount points of this process's namespace.
fn mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .collect()
}

fn rootfs(dir: &Path, busybox: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    // No /proc, /dev, /sys or /tmp: their places are made.
    for directory in ["bin", "etc", "srv/web", "mnt"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let write = |path: &str, text: &str, mode: u32| {
        fs::write(root.join(path), text).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv/web:/bin/sh\n",
        0o644,
    );
    write(
        "etc/group",
        "root:x:0:\nweb:x:1000:\nlogs:x:50:web\n",
        0o644,
    );
    write("etc/secret", "secret", 0o600);
    write("etc/garbage", "\u{1}\u{2}", 0o755);
    for path in [dir.to_owned(), root.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    root
}
