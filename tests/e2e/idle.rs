//! Connections that are there and do nothing.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use wharf_tests::{Agent, Http, SOON, eventually};

/// As many as there may be, if that is fewer.
const CONNECTIONS: usize = 20_000;
/// Files that an agent has open besides, and this process for other tests.
const OTHER_FILES: usize = 1_000;
/// That begin at the same time.
const BEGINNING: usize = 100;
/// The client's half of HTTP/2's beginning (RFC 9113 §3.4), with settings that are as they are.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// Lets this process, and what it starts from now on, have so many files open, or as many as it may. Returns how many that
/// are.
fn allow_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raise = |current: u64, maximum: u64| {
        let (current, maximum) = (Some(current), Some(maximum));
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok()
    };
    let (Some(current), Some(maximum)) = (limit.current, limit.maximum) else {
        return wanted;
    };
    match () {
        () if current >= wanted => current,
        // Beyond the maximum it takes a right that root may not have.
        () if raise(wanted, maximum.max(wanted)) => wanted,
        () if raise(maximum, maximum) => maximum,
        () => current,
    }
}

/// A loopback address of the client of this number.
fn client(number: usize) -> Ipv4Addr {
    let number = u16::try_from(number + 2).unwrap();
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 0, high, low)
}

/// A connection from there that says `greeting`, and is answered something. `None`: it is not.
async fn connect(from: Ipv4Addr, to: u16, greeting: &'static [u8]) -> Option<(TcpStream, Vec<u8>)> {
    let greeted = async {
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind(SocketAddr::from((from, 0))).ok()?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
        let mut stream = socket.connect(to).await.ok()?;
        stream.write_all(greeting).await.ok()?;
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.ok()?;
        answer.truncate(read);
        (read > 0).then_some((stream, answer))
    };
    tokio::time::timeout(SOON, greeted).await.ok()?
}

/// So many of them, from as many addresses as it takes.
async fn connect_all(
    count: usize,
    to: u16,
    per_client: usize,
    greeting: &'static [u8],
) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    let mut beginning = JoinSet::new();
    for number in 0..count {
        if beginning.len() >= BEGINNING
            && let Some(Ok(Some((stream, _)))) = beginning.join_next().await
        {
            streams.push(stream);
        }
        beginning.spawn(connect(client(number / per_client), to, greeting));
    }
    while let Some(ended) = beginning.join_next().await {
        if let Ok(Some((stream, _))) = ended {
            streams.push(stream);
        }
    }
    streams
}

/// Files that an agent opens and closes by itself, beside its connections: no more than so many at once.
const PASSING: usize = 10;

/// Files that a process has open.
fn open_files(agent: &Agent) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", agent.process.id()));
    files.map_or(0, Iterator::count)
}

/// Another client is answered, and how fast.
async fn ask(http: Http) -> Duration {
    let asked = Instant::now();
    let leader = tokio::task::spawn_blocking(move || http.get("/v1/status/leader").ok());
    leader.await.unwrap();
    asked.elapsed()
}

/// Idle connections to one port cost little (`each`, in bytes), hinder nobody, and are all given back.
async fn idle(
    agent: &Agent,
    count: usize,
    port: u16,
    per_client: usize,
    greeting: &'static [u8],
    each: u64,
) {
    let (files, memory) = (open_files(agent), agent.process.resident());
    let started = Instant::now();
    let streams = connect_all(count, port, per_client, greeting).await;
    let took = started.elapsed();
    assert_eq!(streams.len(), count);
    assert!(open_files(agent) + PASSING >= files + count);
    let grown = agent.process.resident().saturating_sub(memory) / count as u64;
    let answered = ask(agent.http).await;
    println!(
        "{count} connections in {took:?}: {grown} bytes each; another is answered in {answered:?}"
    );
    assert!(grown < each, "{grown} bytes each");
    assert!(answered < Duration::from_secs(5), "{answered:?}");
    drop(streams);
    let given_back = || open_files(agent) <= files + PASSING;
    assert!(
        eventually(SOON, given_back),
        "{} files are open",
        open_files(agent)
    );
    ask(agent.http).await;
}

const GET: &[u8] = b"GET /v1/status/leader HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn twenty_thousand_idle_connections_are_nobodys_trouble() {
    // The agent inherits it.
    let files = allow_open_files((CONNECTIONS + OTHER_FILES) as u64);
    let count = usize::try_from(files).unwrap().saturating_sub(OTHER_FILES);
    let count = count.min(CONNECTIONS);
    if count < CONNECTIONS / 2 {
        wharf_tests::missing("limit of open files that allows 10,000 connections");
        return;
    }
    let limits = "-hcl=limits { http_max_conns_per_client = 150 }";
    let agent = Agent::start(&["-dev", "-log-level=warn", limits]);
    idle(&agent, count, agent.ports.http, 150, GET, 24 << 10).await;
    idle(&agent, count, agent.ports.grpc, 2_000, PREFACE, 32 << 10).await;
}

#[tokio::test]
async fn one_address_gets_no_more_than_its_share() {
    const SHARE: usize = 50;
    let limits = "-hcl=limits { http_max_conns_per_client = 50 }";
    let agent = Agent::start(&["-dev", limits]);
    let mut idle = Vec::new();
    for _ in 0..SHARE {
        let (stream, answer) = connect(client(0), agent.ports.http, GET).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        idle.push(stream);
    }
    let (_, answer) = connect(client(0), agent.ports.http, GET).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 429"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let (_, answer) = connect(client(1), agent.ports.http, GET).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // Heard again when there is room.
    idle.truncate(SHARE - 1);
    let mut status = Vec::new();
    let until = Instant::now() + SOON;
    while !status.starts_with(b"HTTP/1.1 200") && Instant::now() < until {
        let answered = connect(client(0), agent.ports.http, GET).await;
        status = answered.map(|(_, answer)| answer).unwrap_or_default();
    }
    assert!(
        status.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&status)
    );
}
