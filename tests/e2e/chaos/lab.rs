//! Servers with networks of their own, on one switch, and what can be done to them.

use std::{
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::process::Signal;
use wharf_tests::{Agent, Http, Ports, Process, missing, run};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The namespaces, with the switch in the test's own network.
pub(super) struct Lab {
    prefix: String,
    directory: tempfile::TempDir,
    ports: Ports,
    servers: Vec<Option<Process>>,
    paused: Vec<bool>,
}

fn ip(words: &[&str]) {
    run(Command::new("ip").args(words)).success();
}

fn address(number: usize) -> String {
    format!("10.99.0.{number}")
}

impl Lab {
    /// So many servers, none of which runs yet. To be called in a network of the test's own. `None`, and said so, where
    /// that needs more than there is.
    pub(super) fn new(count: usize) -> Option<Lab> {
        if Command::new("nft").arg("-v").output().is_err() {
            missing("nft (nftables)");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Lab {
            prefix: format!("wharf-lab-{}-{number}", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
            ports: Ports::choose(),
            servers: (0..count).map(|_| None).collect(),
            paused: vec![false; count],
        };
        ip(&["link", "add", "switch", "type", "bridge"]);
        ip(&["addr", "add", "10.99.0.254/24", "dev", "switch"]);
        ip(&["link", "set", "switch", "up"]);
        for number in 1..=count {
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

    pub(super) fn count(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn http(&self, number: usize) -> Http {
        Http {
            address: SocketAddr::new(address(number).parse().unwrap(), self.ports.http),
            timeout: PATIENCE,
        }
    }

    pub(super) fn is_running(&self, number: usize) -> bool {
        self.servers[number - 1].is_some() && !self.paused[number - 1]
    }

    /// Starts a server, or starts it again with what it has on disk.
    pub(super) fn start(&mut self, number: usize) {
        let own = address(number);
        let mut flags = vec![
            "-server".to_owned(),
            format!("-bootstrap-expect={}", self.count()),
            format!("-node=s{number}"),
            format!("-bind={own}"),
            "-client=0.0.0.0".to_owned(),
            "-log-level=warn".to_owned(),
            "-hcl=platform { enabled = false }".to_owned(),
            format!("-data-dir={}/s{number}", self.directory.path().display()),
        ];
        for other in 1..=self.count() {
            flags.push(format!("-retry-join={}", address(other)));
        }
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
        self.servers[number - 1] = Some(Process::start(&mut command));
        self.paused[number - 1] = false;
    }

    /// As a power failure does, but for what the kernel has in its caches.
    pub(super) fn kill(&mut self, number: usize) {
        if let Some(mut server) = self.servers[number - 1].take() {
            // `ip netns exec` has become the agent.
            server.stop(Signal::KILL);
        }
        self.paused[number - 1] = false;
    }

    pub(super) fn pause(&mut self, number: usize) {
        if let Some(server) = &self.servers[number - 1] {
            server.signal(Signal::STOP);
            self.paused[number - 1] = true;
        }
    }

    pub(super) fn resume(&mut self, number: usize) {
        if let Some(server) = &self.servers[number - 1] {
            server.signal(Signal::CONT);
        }
        self.paused[number - 1] = false;
    }

    /// A server hears nothing of another any more.
    pub(super) fn deafen(&self, number: usize, to: usize) {
        let rule = format!("add rule inet lab in ip saddr {} drop", address(to));
        self.nft(number, &rule);
    }

    /// Of what comes from other servers, so many packets in a hundred are lost.
    pub(super) fn lose(&self, number: usize, percent: u32) {
        for other in (1..=self.count()).filter(|other| *other != number) {
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

    /// The server that leads, as far as one that runs knows.
    pub(super) fn leader(&self) -> Option<usize> {
        let running = (1..=self.count()).filter(|number| self.is_running(*number));
        let mut leaders = running.filter_map(|number| {
            let reply = self
                .http(number)
                .request("GET", "/v1/status/leader", &[], b"");
            let text = reply.ok()?.text();
            let ip = text.trim().trim_matches('"').rsplit_once(':')?.0.to_owned();
            (1..=self.count()).find(|number| address(*number) == ip)
        });
        leaders.next()
    }

    /// What the servers printed.
    pub(super) fn output(&self) -> String {
        let running = self.servers.iter().enumerate();
        let texts = running.filter_map(|(at, server)| {
            let text = server.as_ref()?.text();
            Some(format!("--- s{}\n{text}\n", at + 1))
        });
        texts.collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for number in 1..=self.count() {
            self.resume(number);
            self.kill(number);
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(number)])
                .status();
        }
        let _ = Command::new("ip").args(["link", "del", "switch"]).status();
    }
}
