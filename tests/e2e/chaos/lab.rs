//! Servers and client agents with networks of their own, on one switch, and what can be done to them.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::Signal;
use wharf_tests::{Agent, Http, Ports, Process, SmallDisk, missing, run};

pub(super) const SERVERS: usize = 3;
pub(super) const AGENTS: usize = 2;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The disk of each server.
const DISK: &str = "200m";
/// What a full one has left: less than what a server keeps back, a twentieth.
const FULL: u64 = 5 << 20;

/// The numbers of the servers.
pub(super) fn servers() -> std::ops::RangeInclusive<usize> {
    1..=SERVERS
}

/// The numbers of the client agents, which come after the servers.
pub(super) fn agents() -> std::ops::RangeInclusive<usize> {
    SERVERS + 1..=SERVERS + AGENTS
}

pub(super) fn everybody() -> std::ops::RangeInclusive<usize> {
    1..=SERVERS + AGENTS
}

pub(super) fn is_server(number: usize) -> bool {
    number <= SERVERS
}

/// The node that is there.
pub(super) fn name(number: usize) -> String {
    let kind = if is_server(number) { "s" } else { "c" };
    format!("{kind}{number}")
}

/// The namespaces, with the switch in the test's own network.
pub(super) struct Lab {
    prefix: String,
    /// Gone before the directory that they are in.
    disks: Vec<SmallDisk>,
    directory: tempfile::TempDir,
    full: Vec<usize>,
    ports: Ports,
    processes: Vec<Option<Process>>,
    paused: Vec<bool>,
}

fn ip(words: &[&str]) {
    run(Command::new("ip").args(words)).success();
}

fn address(number: usize) -> String {
    format!("10.99.0.{number}")
}

impl Lab {
    /// Nobody runs yet. To be called in a network of the test's own. `None`, and said so, where that needs more than
    /// there is.
    pub(super) fn new() -> Option<Lab> {
        if Command::new("nft").arg("-v").output().is_err() {
            missing("nft (nftables)");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let disks =
            servers().map(|number| SmallDisk::mount(&directory.path().join(name(number)), DISK));
        let Some(disks) = disks.collect() else {
            missing("right to mount small file systems");
            return None;
        };
        let lab = Lab {
            prefix: format!("wharf-lab-{}-{number}", std::process::id()),
            disks,
            directory,
            full: Vec::new(),
            ports: Ports::choose(),
            processes: everybody().map(|_| None).collect(),
            paused: everybody().map(|_| false).collect(),
        };
        ip(&["link", "add", "switch", "type", "bridge"]);
        ip(&["addr", "add", "10.99.0.254/24", "dev", "switch"]);
        ip(&["link", "set", "switch", "up"]);
        for number in everybody() {
            let (namespace, port) = (lab.namespace(number), format!("port{number}"));
            ip(&["netns", "add", &namespace]);
            ip(&[
                "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ]);
            ip(&["link", "set", &port, "master", "switch", "up"]);
            lab.inside(number, &["ip", "link", "set", "lo", "up"]);
            lab.inside(number, &["ip", "link", "set", "eth0", "up"]);
            let address = format!("{}/24", address(number));
            lab.inside(number, &["ip", "addr", "add", &address, "dev", "eth0"]);
            lab.heal(number);
        }
        Some(lab)
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    fn command(&self, number: usize, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(number)])
            .args(words);
        command
    }

    fn inside(&self, number: usize, words: &[&str]) {
        run(&mut self.command(number, words)).success();
    }

    pub(super) fn http(&self, number: usize) -> Http {
        Http {
            address: SocketAddr::new(address(number).parse().unwrap(), self.ports.http),
            timeout: PATIENCE,
        }
    }

    pub(super) fn is_running(&self, number: usize) -> bool {
        self.processes[number - 1].is_some() && !self.paused[number - 1]
    }

    /// A server's is on its own disk.
    fn data_dir(&self, number: usize) -> PathBuf {
        self.directory.path().join(name(number)).join("state")
    }

    /// Starts somebody, or starts it again with what it has on disk.
    pub(super) fn start(&mut self, number: usize) {
        let own = address(number);
        let mut flags = vec![
            format!("-node={}", name(number)),
            format!("-bind={own}"),
            "-client=0.0.0.0".to_owned(),
            "-log-level=warn".to_owned(),
            "-hcl=platform { enabled = false } raft_snapshot_threshold = 1000".to_owned(),
            format!("-data-dir={}", self.data_dir(number).display()),
        ];
        if is_server(number) {
            flags.push("-server".to_owned());
            flags.push(format!("-bootstrap-expect={SERVERS}"));
        }
        flags.extend(servers().map(|server| format!("-retry-join={}", address(server))));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let agent = Agent::command(self.ports, &flags);
        let mut command = self.command(number, &[]);
        command.arg(agent.get_program()).args(agent.get_args());
        for (name, value) in agent.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.processes[number - 1] = Some(Process::start(&mut command));
        self.paused[number - 1] = false;
    }

    /// As a power failure does, but for what the kernel has in its caches.
    pub(super) fn kill(&mut self, number: usize) {
        self.end(number, Signal::KILL);
    }

    /// A planned end. A client agent takes its node out of the catalog.
    pub(super) fn terminate(&mut self, number: usize) {
        self.end(number, Signal::TERM);
    }

    fn end(&mut self, number: usize, signal: Signal) {
        if let Some(mut process) = self.processes[number - 1].take() {
            // `ip netns exec` has become the agent.
            process.stop(signal);
        }
        self.paused[number - 1] = false;
    }

    /// Kills a server, and takes everything that it had.
    pub(super) fn wipe(&mut self, number: usize) {
        self.kill(number);
        fs::remove_dir_all(self.data_dir(number)).unwrap();
    }

    pub(super) fn pause(&mut self, number: usize) {
        if let Some(process) = &self.processes[number - 1] {
            process.signal(Signal::STOP);
            self.paused[number - 1] = true;
        }
    }

    pub(super) fn resume(&mut self, number: usize) {
        if let Some(process) = &self.processes[number - 1] {
            process.signal(Signal::CONT);
        }
        self.paused[number - 1] = false;
    }

    /// Somebody hears nothing of another any more.
    pub(super) fn deafen(&self, number: usize, to: usize) {
        let rule = format!("add rule inet lab in ip saddr {} drop", address(to));
        self.nft(number, &rule);
    }

    /// Two do not hear each other any more.
    pub(super) fn part(&self, one: usize, other: usize) {
        self.deafen(one, other);
        self.deafen(other, one);
    }

    /// Of what comes from these others, so many packets in a hundred are lost.
    pub(super) fn lose(&self, number: usize, others: impl Iterator<Item = usize>, percent: u32) {
        for other in others.filter(|other| *other != number) {
            let from = address(other);
            let rule = format!(
                "add rule inet lab in ip saddr {from} numgen random mod 100 < {percent} drop"
            );
            self.nft(number, &rule);
        }
    }

    /// Everything reaches it again.
    pub(super) fn heal(&self, number: usize) {
        self.nft(
            number,
            "add table inet lab; delete table inet lab; add table inet lab; \
             add chain inet lab in { type filter hook input priority 0; }",
        );
    }

    fn nft(&self, number: usize, rules: &str) {
        self.inside(number, &["nft", rules]);
    }

    /// A server's disk has no room but for what is kept back.
    pub(super) fn fill(&mut self, number: usize) {
        self.disks[number - 1].fill(FULL);
        self.full.push(number);
    }

    pub(super) fn make_room(&mut self) {
        for number in self.full.drain(..) {
            self.disks[number - 1].clear();
        }
    }

    /// The server that leads, if those that run agree on one.
    pub(super) fn leader(&self) -> Option<usize> {
        let running = servers().filter(|number| self.is_running(*number));
        let named = running.map(|number| {
            let http = self.http(number);
            let reply = http.request("GET", "/v1/status/leader", &[], b"");
            let text = reply.ok()?.text();
            let ip = text.trim().trim_matches('"').rsplit_once(':')?.0.to_owned();
            servers().find(|number| address(*number) == ip)
        });
        let named: BTreeSet<Option<usize>> = named.collect();
        let mut named = named.into_iter();
        let first = named.next()?;
        first.filter(|_| named.next().is_none())
    }

    /// Whether the copy of the membership that `asked` has gives a vote to each of these servers.
    pub(super) fn has_voters(&self, asked: usize, voters: &[usize]) -> bool {
        let path = "/v1/operator/raft/configuration?stale";
        let Ok(reply) = self.http(asked).request("GET", path, &[], b"") else {
            return false;
        };
        if reply.status != 200 {
            return false;
        }
        let rows = reply.json()["Servers"].as_array().cloned();
        let rows = rows.unwrap_or_default();
        let votes = |number: &usize| {
            let own = rows.iter().filter(|row| row["Node"] == name(*number));
            let own: Vec<_> = own.collect();
            own.len() == 1 && own[0]["Voter"] == true
        };
        rows.len() == SERVERS && voters.iter().all(votes)
    }

    /// Whether all servers hold the same, seen at one place of the log.
    pub(super) fn agrees(&self) -> bool {
        let state = |number| {
            let path = "/v1/operator/raft/hash";
            let reply = self.http(number).request("GET", path, &[], b"").ok()?;
            (reply.status == 200).then(|| reply.json())
        };
        let states: Option<Vec<_>> = servers().map(state).collect();
        states.is_some_and(|states| {
            let of = |at: usize| (&states[at]["Index"], &states[at]["Hash"]);
            (1..SERVERS).all(|at| of(at) == of(0))
        })
    }

    /// What they printed.
    pub(super) fn output(&self) -> String {
        let texts = everybody().filter_map(|number| {
            let text = self.processes[number - 1].as_ref()?.text();
            Some(format!("--- {}\n{text}\n", name(number)))
        });
        texts.collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for number in everybody() {
            self.resume(number);
            self.kill(number);
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(number)])
                .status();
        }
        let _ = Command::new("ip").args(["link", "del", "switch"]).status();
    }
}
