//! What is measured: how each row is prepared, and how one round of it goes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{sync::mpsc, task::JoinSet};
use wharf_benches::spread::percentile;

use super::{
    agents::{Kind, Mode, Program, Server},
    client::{Connection, Failure, Request, Run, Until, closed_loops, write_request},
    dns,
};

const CONNECTIONS: usize = 64;
const DNS_SOCKETS: usize = 64;
const KEYS: u64 = 10_000;
const VALUE: usize = 48;
/// The catalog that registrations go to.
const NODES: u64 = 4_000;
const NAMES: u64 = 400;
/// The row `memory`.
const SERVICES: u64 = 20_000;
const SERVICES_PER_NODE: u64 = 10;
const WATCHERS: usize = 500;
/// How long a server may rest before its memory is read, and watchers have to be parked again.
const SETTLE: Duration = Duration::from_secs(5);
const PARK: Duration = Duration::from_millis(50);
/// Before what is counted, so that connections, caches and threads are there.
const WARM_UP: Duration = Duration::from_millis(500);

/// One piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    KvPut,
    KvGet,
    Register,
    Health,
    DnsFew,
    DnsMany,
    DnsEdns,
    Watch,
    MemoryIdle,
    Memory,
}

/// A figure of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
    pub(crate) digits: usize,
    /// How many times better than Consul it has to be.
    pub(crate) bar: Option<f64>,
}

impl Work {
    pub(crate) const ALL: [Work; 10] = [
        Work::KvPut,
        Work::KvGet,
        Work::Register,
        Work::Health,
        Work::DnsFew,
        Work::DnsMany,
        Work::DnsEdns,
        Work::Watch,
        Work::MemoryIdle,
        Work::Memory,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::KvPut => "kv-put",
            Work::KvGet => "kv-get",
            Work::Register => "register",
            Work::Health => "health",
            Work::DnsFew => "dns-5",
            Work::DnsMany => "dns-200",
            Work::DnsEdns => "dns-200-edns",
            Work::Watch => "watch",
            Work::MemoryIdle => "memory-idle",
            Work::Memory => "memory",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Work::KvPut => "KV put, durable, 48 B",
            Work::KvGet => "KV get, default consistency",
            Work::Register => "register node + service + check, durable",
            Work::Health => "/v1/health/service/X?passing, 200 instances",
            Work::DnsFew => "DNS A, 5 instances, 3 told",
            Work::DnsMany => "DNS A, 200 instances, 3 told",
            Work::DnsEdns => "DNS A, 200 instances, EDNS: 1,232 B told",
            Work::Watch => "a change reaches the last of 500 watchers",
            Work::MemoryIdle => "resident, idle dev agent",
            Work::Memory => "resident, 20,000 services + 10,000 keys",
        }
    }

    pub(crate) fn figures(self) -> Vec<Figure> {
        let more = |unit, bar| Figure {
            unit,
            more_is_better: true,
            digits: 0,
            bar: Some(bar),
        };
        let less = |unit, bar| Figure {
            unit,
            more_is_better: false,
            digits: 1,
            bar,
        };
        let rate = |bar| vec![more("/s", bar), more("/CPU s", bar)];
        match self {
            Work::KvPut => rate(4.0),
            Work::KvGet => rate(3.0),
            Work::Register => rate(8.0),
            Work::Health | Work::DnsMany | Work::DnsEdns => rate(30.0),
            Work::DnsFew => rate(4.0),
            Work::Watch => vec![
                less("ms p50", None),
                less("ms p99", Some(3.0)),
                less("CPU ms", None),
            ],
            Work::MemoryIdle => vec![less("MB", Some(2.0))],
            Work::Memory => vec![less("MB", Some(6.0))],
        }
    }

    /// Whether the row means anything for this program.
    pub(crate) fn applies_to(self, kind: Kind) -> bool {
        kind != Kind::Etcd || self == Work::KvPut
    }

    /// Whether it starts servers of its own, and more than once.
    pub(crate) fn starts_servers(self) -> bool {
        matches!(self, Work::MemoryIdle | Work::Memory)
    }

    /// Puts into a server what the row asks for.
    pub(crate) async fn prepare(self, server: &Server) -> Result<(), Failure> {
        let (service, instances) = match self {
            Work::KvGet => return count(server, KEYS, &putter(server.kind)).await,
            Work::Health | Work::DnsMany | Work::DnsEdns => ("many", 200),
            Work::DnsFew => ("few", 5),
            Work::Watch => ("watched", 10),
            Work::KvPut | Work::Register | Work::MemoryIdle | Work::Memory => return Ok(()),
        };
        let request: Request = Arc::new(move |n, out| instance(service, n).write("", out));
        count(server, instances, &request).await
    }

    /// One round: the values of the row's figures.
    pub(crate) async fn measure(
        self,
        server: &Server,
        time: Duration,
    ) -> Result<Vec<f64>, Failure> {
        match self {
            Work::KvPut => http(server, time, &putter(server.kind)).await,
            Work::KvGet => {
                let request: Request = Arc::new(|n, out| {
                    write_request(out, "GET", &format!("/v1/kv/{}", key(n)), b"");
                });
                http(server, time, &request).await
            }
            Work::Register => {
                let request: Request = Arc::new(|n, out| {
                    let node = n % NODES;
                    Registration {
                        node: format!("node-{node}"),
                        address: address(1, node),
                        service: format!("service-{}", node % NAMES),
                    }
                    .write(&format!("probe {n} is well"), out);
                });
                http(server, time, &request).await
            }
            Work::Health => {
                let request: Request = Arc::new(|_, out| {
                    write_request(out, "GET", "/v1/health/service/many?passing", b"");
                });
                http(server, time, &request).await
            }
            Work::DnsFew => dns(server, time, "few.service.consul", None).await,
            Work::DnsMany => dns(server, time, "many.service.consul", None).await,
            Work::DnsEdns => dns(server, time, "many.service.consul", Some(1232)).await,
            Work::Watch => watch(server, time).await,
            Work::MemoryIdle | Work::Memory => Ok(Vec::new()),
        }
    }

    /// One round of a row that starts its own server.
    pub(crate) async fn measure_fresh(self, program: &Program) -> Result<Vec<f64>, Failure> {
        let server = match self {
            Work::MemoryIdle => program.start(Mode::Dev).await?,
            _ => {
                let server = program.start(Mode::Durable).await?;
                let request: Request = Arc::new(|n, out| {
                    let node = n / SERVICES_PER_NODE;
                    Registration {
                        node: format!("node-{node}"),
                        address: address(2, node),
                        service: format!("app-{n}"),
                    }
                    .write("", out);
                });
                count(&server, SERVICES, &request).await?;
                count(&server, KEYS, &putter(server.kind)).await?;
                server
            }
        };
        tokio::time::sleep(SETTLE).await;
        Ok(vec![server.resident_mb()?])
    }
}

/// Numbers of requests, so that no round repeats what another wrote.
fn numbers() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1_000_000_000, Ordering::Relaxed)
}

async fn count(server: &Server, count: u64, request: &Request) -> Result<(), Failure> {
    closed_loops(server.http, CONNECTIONS, Until::Count(count), 0, request).await?;
    Ok(())
}

async fn http(server: &Server, time: Duration, request: &Request) -> Result<Vec<f64>, Failure> {
    let ask = |time| {
        let until = Until::Elapsed(time);
        closed_loops(server.http, CONNECTIONS, until, numbers(), request)
    };
    ask(WARM_UP).await?;
    let before = server.cpu()?;
    let run = ask(time).await?;
    Ok(rates(run, server.cpu()? - before))
}

async fn dns(
    server: &Server,
    time: Duration,
    name: &str,
    payload: Option<u16>,
) -> Result<Vec<f64>, Failure> {
    let ask = |time| dns::ask(server.dns, DNS_SOCKETS, time, name, payload);
    ask(WARM_UP).await?;
    let before = server.cpu()?;
    let run = ask(time).await?;
    Ok(rates(run, server.cpu()? - before))
}

fn rates(run: Run, cpu: Duration) -> Vec<f64> {
    let answers = run.answers as f64;
    vec![
        answers / run.elapsed.as_secs_f64(),
        answers / cpu.as_secs_f64(),
    ]
}

// === requests ===

fn key(n: u64) -> String {
    format!("bench/{:06}", n % KEYS)
}

fn putter(kind: Kind) -> Request {
    Arc::new(move |n, out| put(kind, n, out))
}

/// Writes a key with a new value.
pub(crate) fn put(kind: Kind, n: u64, out: &mut Vec<u8>) {
    let value = format!("{n:0VALUE$}");
    match kind {
        Kind::Wharf | Kind::Before | Kind::Consul => {
            let path = format!("/v1/kv/{}", key(n));
            write_request(out, "PUT", &path, value.as_bytes());
        }
        Kind::Etcd => {
            let (key, value) = (STANDARD.encode(key(n)), STANDARD.encode(value));
            let body = format!(r#"{{"key":"{key}","value":"{value}"}}"#);
            write_request(out, "POST", "/v3/kv/put", body.as_bytes());
        }
    }
}

/// A node with one instance and its check.
struct Registration {
    node: String,
    address: String,
    service: String,
}

fn instance(service: &str, n: u64) -> Registration {
    Registration {
        node: format!("{service}-{n}"),
        address: address(3, n),
        service: service.to_owned(),
    }
}

fn address(net: u64, n: u64) -> String {
    format!("10.{net}.{}.{}", n / 250, n % 250 + 1)
}

impl Registration {
    fn write(&self, output: &str, out: &mut Vec<u8>) {
        let Registration {
            node,
            address,
            service,
        } = self;
        let body = format!(
            r#"{{"Node":"{node}","Address":"{address}","Service":{{"ID":"{service}-1","Service":"{service}","Tags":["v1"],"Meta":{{"version":"1"}},"Port":8080}},"Check":{{"Node":"{node}","CheckID":"service:{service}-1","Name":"http","ServiceID":"{service}-1","Status":"passing","Output":"{output}"}}}}"#
        );
        write_request(out, "PUT", "/v1/catalog/register", body.as_bytes());
    }
}

// === watchers ===

/// Changes one instance again and again while [`WATCHERS`] wait for it. A time is that from before
/// the change is sent until the last watcher has read its answer.
async fn watch(server: &Server, time: Duration) -> Result<Vec<f64>, Failure> {
    // All of them may be ahead of the one who reads.
    let (arrived, mut arrivals) = mpsc::channel(WATCHERS);
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        watchers.spawn(wait(server.http, arrived.clone()));
    }
    drop(arrived);
    let mut change = Connection::open(server.http).await?;
    let mut request = Vec::new();
    let (mut number, mut times, mut cpu) = (numbers(), Vec::new(), Duration::ZERO);
    all(&mut arrivals, &mut watchers).await?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        tokio::time::sleep(PARK).await;
        number += 1;
        request.clear();
        instance("watched", 0).write(&format!("probe {number} is well"), &mut request);
        let (cpu_before, before) = (server.cpu()?, Instant::now());
        change.exchange(&request).await?;
        let last = all(&mut arrivals, &mut watchers).await?;
        times.push((last - before).as_secs_f64() * 1000.0);
        cpu += server.cpu()? - cpu_before;
    }
    Ok(vec![
        percentile(&times, 50.0),
        percentile(&times, 99.0),
        cpu.as_secs_f64() * 1000.0 / times.len() as f64,
    ])
}

/// Waits until each watcher has had one more answer; says when the last one had it.
async fn all(
    arrivals: &mut mpsc::Receiver<Instant>,
    watchers: &mut JoinSet<Result<(), Failure>>,
) -> Result<Instant, Failure> {
    let mut last = None;
    for _ in 0..WATCHERS {
        tokio::select! {
            biased;
            arrival = arrivals.recv() => last = last.max(arrival),
            Some(ended) = watchers.join_next() => ended??,
            () = tokio::time::sleep(Duration::from_secs(30)) => return Err("a watcher was not told".into()),
        }
    }
    last.ok_or_else(|| "all watchers are gone".into())
}

/// Follows the service; tells of each answer.
async fn wait(port: u16, arrived: mpsc::Sender<Instant>) -> Result<(), Failure> {
    let mut connection = Connection::open(port).await?;
    let (mut index, mut request) = (0, Vec::new());
    loop {
        request.clear();
        let path = format!("/v1/health/service/watched?passing&index={index}&wait=5m");
        write_request(&mut request, "GET", &path, b"");
        connection.exchange(&request).await?;
        let now = Instant::now();
        index = connection.index()?;
        if arrived.send(now).await.is_err() {
            return Ok(());
        }
    }
}
