//! Steady requests, and who answered them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// Connections, each with a request every [`EVERY`]: 200 a second.
const CONNECTIONS: usize = 4;
const EVERY: Duration = Duration::from_millis(20);
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 4096;
/// Failures of which the reason is kept.
const MOST_REASONS: usize = 8;

/// One process of an instance, as its answers name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) name: String,
    pub(super) process: String,
}

/// What came back so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) answered: BTreeMap<Who, Seen>,
    pub(super) failed: Vec<(Instant, String)>,
    /// In microseconds.
    pub(super) latencies: Vec<u32>,
}

/// The answers of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl Tally {
    pub(super) fn requests(&self) -> u64 {
        let answered: u64 = self.answered.values().map(|seen| seen.requests).sum();
        answered + self.failed.len() as u64
    }

    /// A fraction of all answers took no longer than this.
    pub(super) fn latency(&self, fraction: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * fraction) as usize).min(sorted.len().saturating_sub(1));
        Duration::from_micros(sorted.get(index).copied().unwrap_or_default().into())
    }

    /// Why requests failed, each reason once.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .failed
            .iter()
            .map(|(_, reason)| reason.clone())
            .collect();
        reasons.sort();
        reasons.dedup();
        reasons.truncate(MOST_REASONS);
        reasons
    }
}

/// The running requests. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Load {
    tally: Arc<Mutex<Tally>>,
    tasks: Vec<AbortHandle>,
    _owner: JoinSet<()>,
}

impl Load {
    pub(super) fn start(target: SocketAddr) -> Load {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut owner = JoinSet::new();
        let tasks = (0..CONNECTIONS)
            .map(|_| owner.spawn(requests(target, Arc::clone(&tally))))
            .collect();
        Load {
            tally,
            tasks,
            _owner: owner,
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends no more; what was sent so far counts.
    pub(super) fn end(&self) -> Tally {
        for task in &self.tasks {
            task.abort();
        }
        self.tally().clone()
    }
}

async fn requests(target: SocketAddr, tally: Arc<Mutex<Tally>>) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        tick.tick().await;
        let start = Instant::now();
        let answered = timeout(PATIENCE, request(target, &mut connection)).await;
        let now = Instant::now();
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match answered.unwrap_or_else(|_| Err("no answer within 5 s".to_owned())) {
            Ok(who) => {
                let seen = tally.answered.entry(who).or_insert(Seen {
                    requests: 0,
                    first: now,
                    last: now,
                });
                seen.requests += 1;
                seen.last = now;
                let micros = now.saturating_duration_since(start).as_micros();
                tally
                    .latencies
                    .push(u32::try_from(micros).unwrap_or(u32::MAX));
            }
            Err(reason) => {
                tally.failed.push((now, reason));
                connection = None;
            }
        }
    }
}

/// An open connection, and the task that moves its bytes.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn request(target: SocketAddr, connection: &mut Option<Connection>) -> Result<Who, String> {
    if connection
        .as_ref()
        .is_none_or(|open| open.sender.is_closed())
    {
        *connection = Some(connect(target).await?);
    }
    let Some(open) = connection else {
        return Err("no connection".to_owned());
    };
    let request = Request::get("/")
        .header(header::HOST, "web")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    open.sender
        .ready()
        .await
        .map_err(|error| error.to_string())?;
    let response = open
        .sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if status != StatusCode::OK {
        return Err(format!("{status}: {}", text.trim()));
    }
    let mut words = text.split_ascii_whitespace().map(str::to_owned);
    match (words.next(), words.next()) {
        (Some(name), Some(process)) => Ok(Who { name, process }),
        _ => Err(format!("an answer that says nobody: {:?}", text.trim())),
    }
}

async fn connect(target: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|error| format!("cannot connect to the sidecar: {error}"))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection {
        sender,
        driver: driver.abort_handle(),
    })
}
