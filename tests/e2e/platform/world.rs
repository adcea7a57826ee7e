//! An agent that runs jobs, in a network of its own, and the proof that nothing of them stays.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wharf_tests::{Agent, Ports, eventually, eventually_some, in_network, missing, run};

/// How long containers may take on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The agent, and what was there before any allocation.
pub(crate) struct World {
    pub(crate) agent: Agent,
    before: Links,
    /// All allocations that were ever seen.
    seen: BTreeSet<String>,
    directory: tempfile::TempDir,
    data: PathBuf,
}

/// Interfaces and tables of rules.
#[derive(Debug, PartialEq, Eq)]
struct Links(String, String);

impl Links {
    fn now() -> Links {
        let links = run(Command::new("ip").args(["-brief", "link"])).success();
        let tables = run(Command::new("nft").args(["list", "tables"])).success();
        Links(links, tables)
    }
}

/// Runs a test against an agent that keeps its state, where this machine can run containers.
pub(crate) fn world(test: impl FnOnce(&mut World) + Send) {
    prepared_world(None, || Some(((), Vec::new())), |world, ()| test(world));
}

/// The same with a data directory that is prepared.
pub(crate) fn world_in(data: PathBuf, test: impl FnOnce(&mut World) + Send) {
    prepared_world(
        Some(data),
        || Some(((), Vec::new())),
        |world, ()| test(world),
    );
}

/// The same with something that is in the network before the agent, and flags that tell the agent of it. Without it
/// nothing is done.
pub(crate) fn world_with<T>(
    prepare: impl FnOnce() -> Option<(T, Vec<String>)> + Send,
    test: impl FnOnce(&mut World, T) + Send,
) {
    prepared_world(None, prepare, test);
}

fn prepared_world<T>(
    data: Option<PathBuf>,
    prepare: impl FnOnce() -> Option<(T, Vec<String>)> + Send,
    test: impl FnOnce(&mut World, T) + Send,
) {
    if Command::new("nft").arg("-v").output().is_err() {
        missing("nft (nftables)");
        return;
    }
    in_network(|| {
        let directory = tempfile::tempdir().unwrap();
        let before = Links::now();
        let Some((prepared, flags)) = prepare() else {
            return;
        };
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let data = data.unwrap_or_else(|| directory.path().join("data"));
        let agent = Agent::durable_with(&data, Ports::choose(), &flags);
        let mut world = World {
            agent,
            before,
            seen: BTreeSet::new(),
            directory,
            data,
        };
        let drivers = eventually_some(PATIENCE, || {
            let nodes = world.agent.http.get("/v1/platform/nodes").json();
            nodes.get(0).map(|node| node["Drivers"].clone())
        });
        let drivers = drivers.expect("the node registers itself");
        if drivers["exec"] != true || drivers["container"] != true {
            let status = world.agent.run(&["node", "status", "-self"]).out;
            missing(&format!("containers:\n{drivers} {status}"));
            return;
        }
        test(&mut world, prepared);
    });
}

impl Drop for World {
    /// A test that failed in the middle must not leave containers.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let jobs = self.agent.http.request("GET", "/v1/jobs", &[], b"");
            let jobs = jobs
                .ok()
                .and_then(|reply| serde_json::from_slice(&reply.body).ok());
            for job in jobs
                .as_ref()
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let name = job["Name"].as_str().unwrap_or_default();
                self.agent.run(&["job", "stop", "-timeout=20s", name]);
            }
            for (pid, _) in processes(&self.seen) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        self.agent.process.signal(Signal::TERM);
        let _ = self.agent.process.ended(PATIENCE);
    }
}

/// One allocation.
#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) json: Value,
}

impl World {
    /// A file of the test's own.
    pub(crate) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.data.join("platform")
    }

    /// Runs a job from a file that has this text; it has to come to run.
    #[track_caller]
    pub(crate) fn job(&self, text: &str) -> String {
        let path = self.file("job.hcl", text);
        self.agent.run(&["job", "run", &path]).success()
    }

    /// What is live of a job, by name.
    pub(crate) fn live(&mut self, job: &str) -> Vec<Alloc> {
        let path = format!("/v1/job/{job}/allocations");
        let rows = self.agent.http.get(&path).json();
        let mut live = Vec::new();
        for row in rows.as_array().expect("a list") {
            let id = row["ID"].as_str().unwrap().to_owned();
            self.seen.insert(id.clone());
            let status = row["ClientStatus"].as_str().unwrap();
            if status == "pending" || status == "running" {
                live.push(self.alloc(&id));
            }
        }
        live.sort_by(|a, b| a.name.cmp(&b.name));
        live
    }

    pub(crate) fn alloc(&self, id: &str) -> Alloc {
        let json = self.agent.http.get(&format!("/v1/allocation/{id}")).json();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let port = json["Ports"][0]["To"].as_u64().filter(|port| *port != 0);
        let port = port.or(json["Ports"][0]["Value"].as_u64()).unwrap_or(0);
        Alloc {
            id: text("ID"),
            name: text("Name"),
            address: text("Address"),
            port: u16::try_from(port).unwrap(),
            json,
        }
    }

    /// Waits until an allocation is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Alloc {
        let mut last = None;
        let seen = eventually_some(PATIENCE, || {
            let alloc = self.alloc(id);
            let is = wanted(&alloc.json);
            last = Some(alloc.clone());
            is.then_some(alloc)
        });
        seen.unwrap_or_else(|| panic!("never {what}: {:#}", last.expect("looked at").json))
    }

    /// How many instances of a service pass.
    pub(crate) fn passing(&self, service: &str) -> usize {
        let path = format!("/v1/health/service/{service}?passing");
        let rows = self.agent.http.get(&path).json();
        rows.as_array().map_or(0, Vec::len)
    }

    /// Waits until so many pass, and DNS says so.
    #[track_caller]
    pub(crate) fn until_passing(&self, service: &str, count: usize) {
        let name = format!("{service}.service.consul");
        let mut last = (0, 0);
        let reached = eventually(PATIENCE, || {
            let dns = crate::checks::dig(&self.agent, &["+short", &name]);
            last = (
                self.passing(service),
                dns.map_or(count, |lines| lines.len()),
            );
            last == (count, count)
        });
        assert!(reached, "{count} of {service}: health and DNS say {last:?}");
    }

    /// Stops a job, and then looks everywhere for what it left.
    #[track_caller]
    pub(crate) fn stop_and_look(&mut self, job: &str) {
        self.live(job);
        self.agent.run(&["job", "stop", job]).success();
        self.look();
    }

    /// Nothing of any allocation that was seen is left: no interface, rule, mount, process, control group or
    /// namespace.
    #[track_caller]
    pub(crate) fn look(&self) {
        assert_eq!(Links::now(), self.before);
        let ids = &self.seen;
        assert!(!ids.is_empty(), "something ran");
        let is_of_one = |text: &str| ids.iter().any(|id| text.contains(id.as_str()));
        let state = self.state();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts
            .lines()
            .filter(|line| is_of_one(line) || line.contains(state.to_str().unwrap()))
            // A small disk that the test itself mounted.
            .filter(|line| !line.contains(" wharf-test "))
            .collect();
        assert_eq!(left, Vec::<&str>::new());
        assert_eq!(processes(ids), Vec::<(Pid, String)>::new());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for id in ids {
                let group = hierarchy.path().join("wharf").join(id);
                assert!(!group.exists(), "{}", group.display());
            }
        }
        let run = fs::read_dir("/run/wharf").unwrap().flatten();
        for directory in run {
            for id in ids {
                let pinned = directory.path().join("netns").join(id);
                let sockets = directory.path().join(&id[..8]);
                assert!(!pinned.exists() && !sockets.exists());
            }
        }
    }

    /// The processes of a task: all in the allocation's control group but the shim, its own helpers and the sidecar.
    pub(crate) fn task(&self, alloc: &Alloc) -> Vec<Pid> {
        processes(&BTreeSet::from([alloc.id.clone()]))
            .into_iter()
            .filter(|(_, command)| {
                !command.contains(" shim ") && !command.contains("connect proxy")
            })
            .map(|(pid, _)| pid)
            .collect()
    }

    /// The shim of an allocation: the eldest of its processes.
    pub(crate) fn shim(&self, alloc: &Alloc) -> Pid {
        let all = processes(&BTreeSet::from([alloc.id.clone()]));
        let shims = all.iter().filter(|(_, command)| command.contains(" shim "));
        let shim = shims
            .map(|(pid, _)| *pid)
            .min_by_key(|pid| pid.as_raw_nonzero());
        shim.expect("it has a shim")
    }
}

/// Processes in the control groups of these allocations.
pub(crate) fn processes(ids: &BTreeSet<String>) -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        ids.iter().find(|id| groups.contains(id.as_str()))?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // One that has ended and is not reaped has no command.
        (!command.is_empty()).then_some((Pid::from_raw(pid)?, command))
    })
    .collect()
}

/// SIGKILL, which nobody can be ready for.
pub(crate) fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// Whether a process is there.
pub(crate) fn is_alive(pid: Pid) -> bool {
    Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()
}
