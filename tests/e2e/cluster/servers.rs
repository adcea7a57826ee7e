//! Several servers on addresses of their own, with the same ports, as on several machines.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use wharf_tests::{Agent, Ended, Http, Ports, Process, SOON, eventually, eventually_some, run};

/// The directory and the ports of servers that run one after the other or together.
#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
    ports: Ports,
    flags: Vec<String>,
}

/// The agent at 127.0.0.`number`: a server, or a client of servers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) number: u8,
    name: String,
    pub(crate) process: Process,
    pub(crate) http: Http,
    ports: Ports,
}

impl Site {
    /// `flags` are common to all servers.
    pub(crate) fn new(flags: &[&str]) -> Site {
        Site {
            directory: tempfile::tempdir().unwrap(),
            ports: Ports::choose(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    pub(crate) fn data_dir(&self, number: u8) -> PathBuf {
        self.directory.path().join(format!("s{number}"))
    }

    pub(crate) fn server_address(&self, number: u8) -> String {
        format!("127.0.0.{number}:{}", self.ports.server)
    }

    pub(crate) fn server_port(&self) -> u16 {
        self.ports.server
    }

    /// The API of the agent at that place.
    pub(crate) fn http(&self, number: u8) -> Http {
        Http {
            address: SocketAddr::from(([127, 0, 0, number], self.ports.http)),
            timeout: Duration::from_secs(60),
        }
    }

    pub(crate) fn start(&self, number: u8, flags: &[&str]) -> Server {
        self.start_in(number, flags, |_| {})
    }

    /// In an environment of its own.
    pub(crate) fn start_in(
        &self,
        number: u8,
        flags: &[&str],
        environment: impl FnOnce(&mut std::process::Command),
    ) -> Server {
        let flags: Vec<&str> = ["-server"].iter().chain(flags).copied().collect();
        self.start_agent(number, format!("s{number}"), &flags, environment)
    }

    /// A client agent that is told of two of three servers.
    pub(crate) fn client(&self, number: u8, flags: &[&str]) -> Server {
        self.client_of(&[1, 2], number, flags)
    }

    /// A client agent that is told of these servers.
    pub(crate) fn client_of(&self, servers: &[u8], number: u8, flags: &[&str]) -> Server {
        let joins = servers.iter();
        let joins = joins.map(|server| format!("-retry-join={}", self.server_address(*server)));
        let joins: Vec<String> = joins.collect();
        let joins = joins.iter().map(String::as_str);
        let flags: Vec<&str> = joins.chain(flags.iter().copied()).collect();
        self.start_agent(number, format!("c{number}"), &flags, |_| {})
    }

    fn start_agent(
        &self,
        number: u8,
        name: String,
        flags: &[&str],
        environment: impl FnOnce(&mut std::process::Command),
    ) -> Server {
        let address = format!("127.0.0.{number}");
        let own = [
            format!("-node={name}"),
            format!("-bind={address}"),
            format!("-client={address}"),
            format!("-data-dir={}", self.data_dir(number).display()),
        ];
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let flags: Vec<String> = own
            .into_iter()
            .chain(self.flags.iter().cloned())
            .chain(flags)
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut command = Agent::command(self.ports, &flags);
        environment(&mut command);
        let process = Process::start(&mut command);
        let http = self.http(number);
        Server {
            number,
            name,
            process,
            http,
            ports: self.ports,
        }
    }

    /// Three that found a cluster together, and have a leader.
    pub(crate) fn three(&self) -> Vec<Server> {
        let servers: Vec<Server> = (1..=3).map(|number| self.expecting(number)).collect();
        for server in &servers {
            server.wait_for_peers(3);
        }
        servers
    }

    /// One of three; also how it is started again.
    pub(crate) fn expecting(&self, number: u8) -> Server {
        // Not everybody has to know everybody.
        let join = format!("-retry-join={}", self.server_address(1));
        let other = format!("-retry-join=127.0.0.{}", if number == 1 { 2 } else { 1 });
        self.start(number, &["-bootstrap-expect=3", &join, &other])
    }

    /// Five that found a cluster together, and have a leader.
    pub(crate) fn five(&self) -> Vec<Server> {
        let servers: Vec<Server> = (1..=5).map(|number| self.one_of_five(number)).collect();
        for server in &servers {
            server.wait_for_peers(5);
        }
        servers
    }

    /// One of five, which knows them all; also how it is started again.
    pub(crate) fn one_of_five(&self, number: u8) -> Server {
        let joins = (1..=5).map(|other| format!("-retry-join={}", self.server_address(other)));
        let joins: Vec<String> = joins.collect();
        let joins = joins.iter().map(String::as_str);
        let flags: Vec<&str> = joins.chain(["-bootstrap-expect=5"]).collect();
        self.start(number, &flags)
    }
}

impl Server {
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    /// The address of the leader as this server knows it; empty: none.
    pub(crate) fn leader(&self) -> String {
        let reply = self.http.request("GET", "/v1/status/leader", &[], b"");
        let text = reply.map(|reply| reply.text()).unwrap_or_default();
        text.trim().trim_matches('"').to_owned()
    }

    /// Waits until it knows a leader and so many voters.
    #[track_caller]
    pub(crate) fn wait_for_peers(&self, count: usize) {
        let there = eventually(SOON, || {
            !self.leader().is_empty()
                && self
                    .http
                    .request("GET", "/v1/status/peers", &[], b"")
                    .is_ok_and(|reply| {
                        reply.status == 200 && reply.json().as_array().map(Vec::len) == Some(count)
                    })
        });
        assert!(
            there,
            "{} has no {count} peers:\n{}",
            self.name(),
            self.process.text()
        );
    }

    /// Whether the server of this number has a vote, as this one's copy of the membership says. Under
    /// which id does not matter: the membership has one of its name.
    pub(crate) fn is_voter(&self, number: u8) -> bool {
        let path = "/v1/operator/raft/configuration?stale";
        let Ok(reply) = self.http.request("GET", path, &[], b"") else {
            return false;
        };
        if reply.status != 200 {
            return false;
        }
        let servers = reply.json()["Servers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let named: Vec<_> = servers
            .iter()
            .filter(|server| server["Node"] == format!("s{number}"))
            .collect();
        servers.len() == 3 && named.len() == 1 && named[0]["Voter"] == true
    }

    pub(crate) fn put(&self, key: &str, value: &[u8]) -> bool {
        let reply = self
            .http
            .request("PUT", &format!("/v1/kv/{key}"), &[], value);
        reply.is_ok_and(|reply| reply.status == 200)
    }

    pub(crate) fn keys(&self, prefix: &str, consistency: &str) -> Vec<String> {
        let path = format!("/v1/kv/{prefix}?keys&{consistency}");
        let reply = self.http.request("GET", &path, &[], b"");
        let Ok(reply) = reply else {
            return Vec::new();
        };
        if reply.status != 200 {
            return Vec::new();
        }
        let keys = reply.json();
        let keys = keys.as_array().cloned().unwrap_or_default();
        keys.iter()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .collect()
    }

    /// The status of `serfHealth` of a node, as this server's own copy of the catalog says it.
    pub(crate) fn health_of(&self, node: &str) -> String {
        let path = format!("/v1/health/node/{node}?stale");
        let Ok(reply) = self.http.request("GET", &path, &[], b"") else {
            return String::new();
        };
        let checks = reply.json();
        let check = checks
            .as_array()
            .and_then(|checks| checks.iter().find(|check| check["CheckID"] == "serfHealth"));
        check.map_or_else(String::new, |check| {
            check["Status"].as_str().unwrap_or_default().to_owned()
        })
    }

    /// How this agent shows a member; empty: it shows none of that name.
    pub(crate) fn state_of(&self, name: &str) -> &'static str {
        let members = self.http.get("/v1/agent/members").json();
        let members = members.as_array().cloned().unwrap_or_default();
        let mut states = members.iter().filter(|member| member["Name"] == name);
        let state = states.next().map(|member| member["Status"].as_u64());
        assert!(
            states.next().is_none(),
            "there are two of them: {members:?}"
        );
        match state {
            None => "",
            Some(Some(1)) => "alive",
            Some(Some(3)) => "left",
            Some(Some(4)) => "failed",
            Some(_) => panic!("{members:?}"),
        }
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let agent = Agent::command(self.ports, &[]);
        let mut command = std::process::Command::new(agent.get_program());
        command
            .args(words)
            .env("CONSUL_HTTP_ADDR", self.http.address.to_string());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ended {
        run(&mut self.command(words))
    }

    /// A command that goes on.
    pub(crate) fn start_command(&self, words: &[&str]) -> Process {
        Process::start(&mut self.command(words))
    }

    pub(crate) fn kill(mut self) {
        self.process.stop(Signal::KILL);
    }
}

/// The place of the leader among the servers, once all of them agree.
#[track_caller]
pub(crate) fn leader_of(servers: &[Server]) -> usize {
    let agreed = eventually_some(SOON, || {
        let first = servers.first()?.leader();
        let agreed = !first.is_empty() && servers.iter().all(|server| server.leader() == first);
        let place = servers
            .iter()
            .position(|server| first.starts_with(&format!("{}:", server.http.address.ip())))?;
        agreed.then_some(place)
    });
    agreed.unwrap_or_else(|| panic!("the servers do not agree on a leader"))
}

/// Writers on several servers, until it is stopped. They go on over every failure.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Write>>>,
    writers: Vec<thread::JoinHandle<()>>,
}

/// One that was acknowledged.
#[derive(Debug)]
struct Write {
    begun: Instant,
    acknowledged: Instant,
    key: String,
}

impl Load {
    pub(crate) fn on(servers: &[Server]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let writers = servers
            .iter()
            .flat_map(|server| [server, server])
            .enumerate();
        let writers = writers
            .map(|(writer, server)| {
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                let http = server.http;
                thread::spawn(move || {
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("load/{writer}/{number}");
                        number += 1;
                        let begun = Instant::now();
                        let reply = http.request("PUT", &format!("/v1/kv/{key}"), &[], b"value");
                        if reply.is_ok_and(|reply| reply.status == 200) {
                            acknowledged.lock().unwrap().push(Write {
                                begun,
                                acknowledged: Instant::now(),
                                key,
                            });
                        } else {
                            // A server that is gone refuses faster than anybody can count.
                            thread::sleep(Duration::from_millis(5));
                        }
                    }
                })
            })
            .collect();
        Load {
            stop,
            acknowledged,
            writers,
        }
    }

    /// Waits until so many writes were acknowledged after `since`, and says when the first one was.
    #[track_caller]
    pub(crate) fn wait_for_writes_after(&self, since: Instant, count: usize) -> Duration {
        let first = eventually_some(SOON, || {
            let writes = self.acknowledged.lock().unwrap();
            let times = writes.iter().map(|write| write.acknowledged);
            let after: Vec<_> = times.filter(|at| *at > since).collect();
            (after.len() >= count).then(|| after.iter().map(|at| *at - since).min())
        });
        first.flatten().expect("writes go on")
    }

    /// Waits until a write was acknowledged that was begun after `since`, and says how long after.
    #[track_caller]
    pub(crate) fn wait_for_write_begun_after(&self, since: Instant) -> Duration {
        let first = eventually_some(SOON, || {
            let writes = self.acknowledged.lock().unwrap();
            let after = writes.iter().filter(|write| write.begun > since);
            after.map(|write| write.acknowledged - since).min()
        });
        first.expect("writes go on")
    }

    /// The longest time without an acknowledgement after `since`.
    pub(crate) fn longest_gap_after(&self, since: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock().unwrap();
        let mut times: Vec<Instant> = acknowledged
            .iter()
            .map(|write| write.acknowledged)
            .filter(|at| *at > since)
            .collect();
        times.push(since);
        times.sort();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// Ends it, and returns every key that was acknowledged.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().unwrap();
        }
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        acknowledged.into_iter().map(|write| write.key).collect()
    }
}

/// Waits until each server has each key in its own copy.
#[track_caller]
pub(crate) fn assert_everywhere(servers: &[Server], prefix: &str, keys: &[String]) {
    for server in servers {
        let mut missing = Vec::new();
        let there = eventually(SOON, || {
            let found = server.keys(prefix, "stale");
            let found: std::collections::BTreeSet<_> = found.into_iter().collect();
            missing = keys.iter().filter(|key| !found.contains(*key)).collect();
            missing.is_empty()
        });
        assert!(
            there,
            "{} lacks {} of {} acknowledged writes, such as {:?}",
            server.name(),
            missing.len(),
            keys.len(),
            missing.first()
        );
    }
}
