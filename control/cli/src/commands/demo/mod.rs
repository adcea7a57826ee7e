//! `demo`: a service, its names and its mesh in front of your eyes.

mod containers;
mod fleet;
mod load;
mod names;
mod plain;
mod processes;
mod report;
mod serve;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, Command};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};
use wharf_config::duration::GoDuration;

use self::{
    fleet::Fleet,
    load::{Load, Seen},
    names::Answers,
    processes::{Process, free_port},
    report::{Event, milliseconds},
};
use crate::{
    endpoint::Endpoint,
    failure::Failure,
    flags::{Given, value},
    http::{Client, Request},
    shell::Shell,
};

/// How long the demo shows each state.
const PAUSE: Duration = Duration::from_secs(2);
/// How long DNS and the sidecar may take to follow.
const FOLLOW: Duration = Duration::from_secs(15);
/// How long an instance must have been silent to count as gone.
const SILENCE: Duration = Duration::from_millis(300);
/// How long the agent may take to start.
const AGENT_START: Duration = Duration::from_secs(15);
/// What Ctrl-C means, by convention.
const INTERRUPTED: u8 = 130;

pub(super) fn command() -> Command {
    Command::new("demo")
        .about("See it work: a service that is killed and scaled under load, in half a minute")
        .long_about(
            "Starts a cluster of one on free ports, runs three instances of a service and a client with its\n\
             sidecar, and sends 200 requests a second through it while it kills an instance, scales to five\n\
             and down to two. Ends with a table: what failed, who answered, how long DNS and the sidecar took\n\
             to follow. Everything it started is gone at the end, also after Ctrl-C.",
        )
        .after_help("  $ wharf demo")
        .arg(value(
            "pause",
            "duration",
            "How long each state is shown (default 2s)",
        ))
        .subcommand(serve::command())
}

pub(super) async fn serve(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    serve::run(matches, shell).await
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let pause = match matches.text("pause") {
        None => PAUSE,
        Some(text) => text
            .parse::<GoDuration>()
            .map(GoDuration::to_std)
            .map_err(|error| {
                Failure::new(format!("invalid value {text:?} for flag -pause"))
                    .because(error)
                    .hint("-pause=2s")
            })?,
    };
    let failed = |error| Failure::new("cannot wait for Ctrl-C").because(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let directory = Directory::create()?;
    let mut demo = Demo {
        fleet: None,
        agent: None,
        pause,
    };
    let told = tokio::select! {
        told = demo.tell(&directory.0, shell) => told,
        _ = interrupt.recv() => Err(Failure::new("interrupted; cleaning up").code(INTERRUPTED)),
        _ = terminate.recv() => Err(Failure::new("told to end; cleaning up").code(INTERRUPTED)),
    };
    // A second Ctrl-C cuts the cleaning short: then everything is killed.
    tokio::select! {
        () = demo.end() => {}
        _ = interrupt.recv() => {}
    }
    told
}

/// A directory for logs that goes with the demo.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Directory, Failure> {
        let name = format!("wharf-demo-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                Failure::new(format!("cannot create {}", path.display())).because(error)
            })?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Logs that stay behind in a temporary directory are no reason to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Demo {
    /// With the agent's HTTP port.
    fleet: Option<(Fleet, u16)>,
    agent: Option<Process>,
    pause: Duration,
}

/// Who watches the service.
struct Watch<'a> {
    names: &'a Answers,
    load: &'a Load,
}

impl Demo {
    async fn tell(&mut self, directory: &Path, shell: &mut Shell<'_>) -> Result<(), Failure> {
        let ports = self.start_agent(directory).await?;
        say(
            shell,
            format_args!(
                "Agent: HTTP 127.0.0.1:{}, DNS 127.0.0.1:{}",
                ports.http, ports.dns
            ),
        )?;
        let mut client = client(ports.http);
        let (fleet, lacking) = Fleet::choose(directory, &mut client, ports.http).await?;
        match lacking {
            None => say(shell, "As containers, each with a network of its own")?,
            Some(reason) => say(
                shell,
                format_args!(
                    "As plain processes, which nothing isolates, started and watched by the demo: {reason}"
                ),
            )?,
        }
        let (fleet, _) = self.fleet.insert((fleet, ports.http));
        // Its protocol lets the sidecar balance and repeat single requests.
        let defaults = json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "http" });
        let request = Request::put("/v1/config").json(&defaults);
        let request = request.map_err(|error| error.while_("Error writing service-defaults"))?;
        let answer = client.send(request).await.and_then(|answer| answer.ok());
        answer.map_err(|error| error.while_("Error writing service-defaults"))?;

        let names = Answers::default();
        let dns = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.dns));
        let _asking = AbortOnDrop(names::follow(dns, "web.service.consul.", names.clone()));
        let start = Instant::now();
        let local = fleet.start(&mut client, ports.grpc).await?;
        let load = Load::start(local);
        let watch = Watch {
            names: &names,
            load: &load,
        };
        let mut events = Vec::new();
        events.push(watch.follow("3 instances".to_owned(), start, 3).await?);
        show(shell, &events)?;
        say(
            shell,
            format_args!("  $ dig web.service.consul  ->  {}", list(&names.latest())),
        )?;
        say(
            shell,
            format_args!("200 requests a second through the sidecar of a client, at {local}"),
        )?;
        sleep(self.pause).await;

        let start = Instant::now();
        let victim = fleet.kill_one(&mut client).await?;
        events.push(watch.lose(&victim, start, 2).await?);
        show(shell, &events)?;
        fleet.restart_killed(&mut client).await?;
        events.push(watch.follow(format!("{victim} again"), start, 3).await?);
        show(shell, &events)?;
        sleep(self.pause).await;
        for count in [5, 2] {
            let start = Instant::now();
            fleet.scale(&mut client, count).await?;
            events.push(
                watch
                    .follow(format!("scale to {count}"), start, count)
                    .await?,
            );
            show(shell, &events)?;
            sleep(self.pause).await;
        }
        let tally = load.end();
        say(shell, "")?;
        shell.text(&report::tables(&events, &tally))?;
        let excused: usize = events
            .iter()
            .filter(|event| event.what.starts_with("kill"))
            .map(|event| event.failed)
            .sum();
        match tally.failed.len().saturating_sub(excused) {
            0 => Ok(()),
            count => Err(Failure::new(format!(
                "{count} requests failed that should not have"
            ))),
        }
    }

    async fn start_agent(&mut self, directory: &Path) -> Result<Ports, Failure> {
        let mut last = String::new();
        // A port that was free may be taken before the agent has it.
        for _ in 0..3 {
            let ports = Ports::choose()?;
            let mut agent = Process::start(directory, "agent", &ports.arguments())?;
            let mut client = client(ports.http);
            let deadline = Instant::now() + AGENT_START;
            while !agent.has_ended() && Instant::now() < deadline {
                let leader = client
                    .fetch_json::<String>(Request::get("/v1/status/leader"))
                    .await;
                if leader.is_ok_and(|leader| !leader.is_empty()) {
                    self.agent = Some(agent);
                    return Ok(ports);
                }
                sleep(Duration::from_millis(10)).await;
            }
            last = agent.last_words();
            if !last.contains("in use") && !last.contains("another process has it") {
                break;
            }
        }
        Err(Failure::new("the agent does not start").because(last))
    }

    async fn end(&mut self) {
        if let Some((fleet, http)) = &mut self.fleet {
            fleet.stop(&mut client(*http)).await;
        }
        if let Some(agent) = &mut self.agent {
            agent.stop().await;
        }
    }
}

impl Watch<'_> {
    /// Waits until DNS and the sidecar know exactly `count` instances.
    async fn follow(&self, what: String, start: Instant, count: usize) -> Result<Event, Failure> {
        self.until(
            what,
            start,
            || {
                self.names
                    .became(start, |addresses| addresses.len() == count)
            },
            || settled(self.load, start, count),
        )
        .await
    }

    /// Waits until an instance that was killed is in no answer any more. It may be back at once.
    async fn lose(&self, victim: &str, start: Instant, count: usize) -> Result<Event, Failure> {
        self.until(
            format!("kill -9 {victim}"),
            start,
            || self.names.once(start, |addresses| addresses.len() <= count),
            || silent(self.load, victim, start),
        )
        .await
    }

    async fn until(
        &self,
        what: String,
        start: Instant,
        dns: impl Fn() -> Option<Duration>,
        sidecar: impl Fn() -> Option<Duration>,
    ) -> Result<Event, Failure> {
        let deadline = Instant::now() + FOLLOW;
        let failures = || {
            let tally = self.load.tally();
            tally.failed.iter().filter(|(at, _)| *at >= start).count()
        };
        loop {
            if let (Some(dns), Some(sidecar)) = (dns(), sidecar()) {
                return Ok(Event {
                    what,
                    dns: Some(dns),
                    sidecar: Some(sidecar),
                    failed: failures(),
                });
            }
            if Instant::now() >= deadline {
                let reasons = self.load.tally().reasons().join("; ");
                return Err(Failure::new(format!(
                    "{what}: DNS or the sidecar have not followed after {} s",
                    FOLLOW.as_secs()
                ))
                .because(format!(
                    "DNS says {}; requests that failed: {} {reasons}",
                    list(&self.names.latest()),
                    failures()
                )));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What the last event was.
fn show(shell: &mut Shell<'_>, events: &[Event]) -> Result<(), Failure> {
    let Some(event) = events.last() else {
        return Ok(());
    };
    let time = |time: Option<Duration>| time.map_or_else(|| "never".to_owned(), milliseconds);
    let (dns, sidecar) = (time(event.dns), time(event.sidecar));
    say(
        shell,
        format_args!(
            "{}: DNS followed after {dns}, the sidecar after {sidecar}, {} requests failed",
            event.what, event.failed
        ),
    )
}

/// When the process of this instance that served before `start` gave its last answer.
fn silent(load: &Load, instance: &str, start: Instant) -> Option<Duration> {
    let now = Instant::now();
    let tally = load.tally();
    let before = tally
        .answered
        .iter()
        .filter(|(who, seen)| who.name == instance && seen.first < start);
    let last = before.map(|(_, seen)| seen.last).max()?;
    let silence = now.saturating_duration_since(last.max(start));
    (silence >= SILENCE).then(|| last.saturating_duration_since(start))
}

/// How long after `start` the sidecar had settled on `count` processes: the first answer of each that is new, the last
/// answer of each that is gone. `None` while it has not.
fn settled(load: &Load, start: Instant, count: usize) -> Option<Duration> {
    let now = Instant::now();
    let tally = load.tally();
    let (alive, gone): (Vec<Seen>, Vec<Seen>) = tally
        .answered
        .values()
        .copied()
        .partition(|seen| now.saturating_duration_since(seen.last) < SILENCE);
    if alive.len() != count {
        return None;
    }
    let firsts = alive.iter().map(|seen| seen.first);
    let lasts = gone.iter().map(|seen| seen.last);
    let last = firsts.chain(lasts).max()?;
    Some(last.saturating_duration_since(start))
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The ports of the demo's agent.
#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    grpc: u16,
    dns: u16,
    server: u16,
}

impl Ports {
    fn choose() -> Result<Ports, Failure> {
        Ok(Ports {
            http: free_port()?,
            grpc: free_port()?,
            dns: free_port()?,
            server: free_port()?,
        })
    }

    fn arguments(self) -> Vec<String> {
        vec![
            "agent".to_owned(),
            "-dev".to_owned(),
            "-node=demo".to_owned(),
            format!("-http-port={}", self.http),
            format!("-grpc-port={}", self.grpc),
            "-grpc-tls-port=-1".to_owned(),
            format!("-dns-port={}", self.dns),
            format!("-server-port={}", self.server),
        ]
    }
}

fn client(port: u16) -> Client {
    Client::new(Endpoint::local(port))
}

fn list(addresses: &BTreeSet<Ipv4Addr>) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    match texts.is_empty() {
        true => "nothing".to_owned(),
        false => texts.join(" "),
    }
}

/// A line that is seen at once.
fn say(shell: &mut Shell<'_>, text: impl std::fmt::Display) -> Result<(), Failure> {
    shell.line(text)?;
    Ok(io::Write::flush(shell.out)?)
}
