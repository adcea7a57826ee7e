//! The registry beside Consul (and etcd): `cargo run --profile dist -p wharf-benches --bin registry -- --help`.
//!
//! Each server has one core to itself, the client the other one. Every round visits every server, in
//! an order that turns with the round, so that what changes on the machine meanwhile hits all alike;
//! ratios are taken within a round. All are asked by the same client, with the same requests, and
//! started with the same settings: one durable server, warnings only in the log.

mod agents;
mod client;
mod dns;
mod rows;

use std::{
    error::Error,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use agents::{Kind, Mode, Program, Server};
use client::Failure;
use rows::{Figure, Work};
use wharf_benches::{
    process,
    spread::{Spread, median},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The core of the servers, and the core of the client.
const SERVER_CORE: &str = "0";
const CLIENT_CORE: &str = "1";

const HELP: &str = "\
Measures wharf's registry beside Consul 1.8.7 and etcd, on loopback.

Usage: registry [OPTIONS]

  --rounds N      how many times each row visits each server [5]
  --seconds S     how long one visit takes [4]
  --only ROW      one row only; may be repeated
  --wharf PATH    the binary to measure [built from this source, in the profile of this program]
  --consul PATH   [/opt/consul187/usr/bin/consul, or PATH]
  --etcd PATH     [PATH]
  --before PATH   another binary of wharf, in place of the peers: what a change is worth
  --ports BASE    the first of the 30 ports that are used [21600]
  --dir PATH      where data directories are made: a disk, not a tmpfs [the directory for temporary files]

A peer that is not there is left out, and said so. Needs taskset and two cores.

Rows:
";

#[derive(Debug)]
struct Options {
    rounds: usize,
    time: Duration,
    only: Vec<Work>,
    wharf: Option<PathBuf>,
    consul: Option<PathBuf>,
    etcd: Option<PathBuf>,
    before: Option<PathBuf>,
    ports: u16,
    dir: PathBuf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A server's log may be part of it: as it is, not in quotes.
            let _ = writeln!(std::io::stderr(), "registry: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        print!("{HELP}");
        for work in Work::ALL {
            println!("  {:12} {}", work.name(), work.title());
        }
        return Ok(());
    };
    let folder = options
        .dir
        .join(format!("wharf-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    // Building wharf may take all cores; measuring takes one.
    let programs = programs(&options, &folder);
    let result = programs.and_then(|programs| {
        process::pin_self(CLIENT_CORE)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            // Servers end with the future that owns them.
            tokio::select! {
                compared = compare(&options, &programs, &folder) => {
                    compared.map_err(|error| -> Box<dyn Error> { error })
                }
                _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            }
        })
    });
    let _ = fs::remove_dir_all(&folder);
    result
}

impl Options {
    /// `None`: help is asked for.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options = Options {
            rounds: 5,
            time: Duration::from_secs(4),
            only: Vec::new(),
            wharf: None,
            consul: None,
            etcd: None,
            before: None,
            ports: 21_600,
            dir: std::env::temp_dir(),
        };
        while let Some(flag) = args.next() {
            if matches!(flag.as_str(), "--help" | "-h") {
                return Ok(None);
            }
            let value = args.next().ok_or(format!("{flag} needs a value"))?;
            let bad = |what: &str| format!("{flag} {value}: {what}; see --help");
            match flag.as_str() {
                "--rounds" => {
                    options.rounds = match value.parse() {
                        Ok(rounds @ 1..) => rounds,
                        _ => return Err(bad("not a number of rounds")),
                    }
                }
                "--seconds" => {
                    options.time = match value.parse() {
                        Ok(seconds @ 1..) => Duration::from_secs(seconds),
                        _ => return Err(bad("not a number of seconds")),
                    }
                }
                "--only" => {
                    let work = Work::ALL.into_iter().find(|work| work.name() == value);
                    options.only.push(work.ok_or_else(|| bad("no such row"))?);
                }
                "--wharf" => options.wharf = Some(value.into()),
                "--consul" => options.consul = Some(value.into()),
                "--etcd" => options.etcd = Some(value.into()),
                "--before" => options.before = Some(value.into()),
                "--ports" => {
                    options.ports = match value.parse() {
                        Ok(port @ 1..=65_000) => port,
                        _ => return Err(bad("not a port with 30 above it")),
                    }
                }
                "--dir" => options.dir = value.into(),
                _ => return Err(bad("no such option")),
            }
        }
        Ok(Some(options))
    }

    fn works(&self) -> impl Iterator<Item = Work> {
        let all = Work::ALL.into_iter();
        all.filter(|work| self.only.is_empty() || self.only.contains(work))
    }
}

/// Ours first; without it there is nothing to measure.
fn programs(options: &Options, folder: &Path) -> Result<Vec<Program>, Box<dyn Error>> {
    let mut programs = Vec::new();
    let wharf = (Kind::Wharf, &options.wharf);
    let all = match &options.before {
        Some(_) => vec![wharf, (Kind::Before, &options.before)],
        None => vec![
            wharf,
            (Kind::Consul, &options.consul),
            (Kind::Etcd, &options.etcd),
        ],
    };
    for (kind, given) in all {
        match Program::find(kind, given.as_deref(), options.ports, folder)? {
            Some(program) => programs.push(program),
            None if options.works().all(|work| !work.applies_to(kind)) => {}
            None => println!("no peer {}: {}", kind.name(), kind.how_to_get()),
        }
    }
    Ok(programs)
}

async fn compare(options: &Options, programs: &[Program], folder: &Path) -> Result<(), Failure> {
    println!("load average before: {}", process::load_average());
    println!("write + fdatasync of 4 kB: {:.0} us", sync_time(folder)?);
    for program in programs {
        println!("{:8} {}", program.kind.name(), program.version);
    }
    let mut table = Table::default();
    let mut servers = Vec::new();
    if options.works().any(|work| !work.starts_servers()) {
        for program in programs {
            servers.push(program.start(Mode::Durable).await?);
        }
    }
    for work in options.works().filter(|work| !work.starts_servers()) {
        let servers: Vec<&Server> = servers
            .iter()
            .filter(|server| work.applies_to(server.kind))
            .collect();
        for server in &servers {
            work.prepare(server).await?;
        }
        let mut samples = vec![Vec::new(); servers.len()];
        for round in 0..options.rounds {
            for turn in 0..servers.len() {
                let i = (round + turn) % servers.len();
                samples[i].push(work.measure(servers[i], options.time).await?);
                dot()?;
            }
        }
        table.add(work, servers.iter().map(|server| server.kind), &samples);
    }
    drop(servers);
    for work in options.works().filter(|work| work.starts_servers()) {
        let programs: Vec<&Program> = programs
            .iter()
            .filter(|program| work.applies_to(program.kind))
            .collect();
        let mut samples = vec![Vec::new(); programs.len()];
        for round in 0..options.rounds {
            for turn in 0..programs.len() {
                let i = (round + turn) % programs.len();
                samples[i].push(work.measure_fresh(programs[i]).await?);
                dot()?;
            }
        }
        table.add(work, programs.iter().map(|program| program.kind), &samples);
    }
    println!("\nload average after: {}\n", process::load_average());
    println!(
        "{} rounds of {} s; median (least to most); a ratio above 1 is in favour of wharf\n",
        options.rounds,
        options.time.as_secs()
    );
    table.print();
    Ok(())
}

fn dot() -> std::io::Result<()> {
    print!(".");
    std::io::stdout().flush()
}

/// What the disk takes for a durable write, in microseconds: the median of many.
fn sync_time(folder: &Path) -> Result<f64, Failure> {
    let path = folder.join("sync");
    let mut file = fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let before = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    Ok(median(&times))
}

/// What was measured, as Markdown.
#[derive(Debug, Default)]
struct Table(Vec<[String; 6]>);

impl Table {
    /// `samples`: for each server, for each round, a value for each figure of the row.
    fn add(&mut self, work: Work, kinds: impl Iterator<Item = Kind>, samples: &[Vec<Vec<f64>>]) {
        let kinds: Vec<Kind> = kinds.collect();
        for (at, figure) in work.figures().iter().enumerate() {
            let of = |server: usize| -> Vec<f64> {
                samples[server].iter().map(|round| round[at]).collect()
            };
            let Some(peers) = kinds.get(1..).filter(|peers| !peers.is_empty()) else {
                let ours = figure.shown(&of(0));
                self.line(
                    work,
                    figure,
                    [ours, "no peer".into(), String::new(), String::new()],
                );
                continue;
            };
            for (i, peer) in peers.iter().enumerate() {
                let (ours, theirs) = (of(0), of(i + 1));
                let ratios: Vec<f64> = ours
                    .iter()
                    .zip(&theirs)
                    .map(|(ours, theirs)| match figure.more_is_better {
                        true => ours / theirs,
                        false => theirs / ours,
                    })
                    .collect();
                let Spread { min, median, max } = Spread::of(&ratios);
                let bar = figure.bar.filter(|_| *peer != Kind::Before);
                let bar = bar.map_or(String::new(), |bar| {
                    let kept = if median >= bar { "kept" } else { "missed" };
                    format!("{bar}x: {kept}")
                });
                self.line(
                    work,
                    figure,
                    [
                        figure.shown(&ours),
                        format!("{} {}", peer.name(), figure.shown(&theirs)),
                        format!("{median:.2}x ({min:.2} to {max:.2})"),
                        bar,
                    ],
                );
            }
        }
    }

    fn line(&mut self, work: Work, figure: &Figure, rest: [String; 4]) {
        let [ours, theirs, ratio, bar] = rest;
        self.0.push([
            work.title().to_owned(),
            figure.unit.to_owned(),
            ours,
            theirs,
            ratio,
            bar,
        ]);
    }

    fn print(&self) {
        println!("| work | figure | wharf | peer | ratio | bar |");
        println!("|---|---|---|---|---|---|");
        for line in &self.0 {
            println!("| {} |", line.join(" | "));
        }
    }
}

impl Figure {
    fn shown(&self, values: &[f64]) -> String {
        let Spread { min, median, max } = Spread::of(values);
        let digits = self.digits;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}
