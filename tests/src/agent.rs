//! A running agent.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{Ended, Http, Ports, Process, SOON, eventually, run, run_with_input, wharf};

/// How often other ports are tried when somebody else was faster.
const ATTEMPTS: usize = 5;

/// An agent, from its start until this is dropped.
#[derive(Debug)]
pub struct Agent {
    pub process: Process,
    pub ports: Ports,
    pub http: Http,
}

impl Agent {
    /// A development agent.
    pub fn dev() -> Agent {
        Agent::start(&["-dev"])
    }

    /// A single server that keeps its state in `directory`.
    pub fn durable(directory: &Path, ports: Ports) -> Agent {
        Agent::durable_with(directory, ports, &[])
    }

    /// The same with more flags.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn durable_with(directory: &Path, ports: Ports, more: &[&str]) -> Agent {
        let data = format!("-data-dir={}", directory.display());
        let mut flags = vec!["-server", "-bootstrap", "-bind=127.0.0.1", &data];
        flags.extend(more);
        let agent = Agent::on(ports, &flags);
        agent.unwrap_or_else(|text| panic!("the agent does not start:\n{text}"))
    }

    /// An agent with these flags, on ports that are free, once it has a leader.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(flags: &[&str]) -> Agent {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match Agent::on(Ports::choose(), flags) {
                Ok(agent) => return agent,
                Err(text) if text.contains("in use") => last = text,
                Err(text) => panic!("the agent does not start:\n{text}"),
            }
        }
        panic!("no ports for an agent:\n{last}");
    }

    /// The same on given ports. Returns what the agent printed when it ended instead.
    ///
    /// # Errors
    ///
    /// With the output of an agent that ended.
    pub fn on(ports: Ports, flags: &[&str]) -> Result<Agent, String> {
        Agent::of_command(ports, &mut Agent::command(ports, flags))
    }

    /// The same by a command that comes to an agent on these ports.
    ///
    /// # Errors
    ///
    /// With the output of an agent that ended.
    pub fn of_command(ports: Ports, command: &mut Command) -> Result<Agent, String> {
        let mut process = Process::start(command);
        let http = Http::local(ports.http);
        let started = Instant::now();
        let mut ended = false;
        let ready = eventually(SOON, || {
            ended = process.ended(Duration::ZERO).is_some();
            let leader = http.request("GET", "/v1/status/leader", &[], b"");
            ended || leader.is_ok_and(|reply| reply.body.len() > 2)
        });
        if ended {
            // The rest of the output comes with its end.
            let _ = process.line("\0", SOON);
            return Err(process.text());
        }
        assert!(
            ready,
            "no leader {:?} after the start:\n{}",
            started.elapsed(),
            process.text()
        );
        Ok(Agent {
            process,
            ports,
            http,
        })
    }

    /// The command line of an agent.
    pub fn command(ports: Ports, flags: &[&str]) -> Command {
        let mut command = wharf_command();
        command.arg("agent").args(flags).args(ports.flags());
        command
    }

    /// A `wharf` command that talks to this agent.
    pub fn cli(&self, words: &[&str]) -> Command {
        let mut command = wharf_command();
        command
            .args(words)
            .env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", self.ports.http));
        command
    }

    /// Runs such a command.
    pub fn run(&self, words: &[&str]) -> Ended {
        run(&mut self.cli(words))
    }

    /// Runs such a command with something to read.
    pub fn run_with_input(&self, words: &[&str], input: &[u8]) -> Ended {
        run_with_input(&mut self.cli(words), input)
    }

    /// Ends it without a word, as a power failure does.
    pub fn kill(mut self) -> Ports {
        self.process.stop(Signal::KILL);
        self.ports
    }

    /// A figure of `/v1/agent/metrics?format=prometheus` that has no labels.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.http.get("/v1/agent/metrics?format=prometheus").text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no figure {name} in:\n{text}"))
    }
}

/// `wharf` without what the environment of whoever runs the tests says about agents.
fn wharf_command() -> Command {
    let mut command = Command::new(wharf());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let own = text.starts_with("CONSUL_") || text.starts_with("WHARF_");
        if own {
            command.env_remove(&name);
        }
    }
    command
}
