//! Three servers, on 127.0.0.1 to 3.

use std::{fs, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wharf_benches::process::{self, Process};

use super::Failure;

pub(crate) struct Servers {
    running: Vec<Option<Process>>,
    http: u16,
    server: u16,
}

/// Processor time of each server so far.
pub(crate) struct Spent(Vec<Duration>);

impl Servers {
    pub(crate) fn start(program: &str, directory: &Path) -> Result<Servers, Failure> {
        let port = || process::free_port().map_err(|error| error.to_string());
        let (http, server) = (port()?, port()?);
        let mut running = Vec::new();
        for number in 1..=3 {
            let address = format!("127.0.0.{number}");
            let config = serde_json::json!({
                "node_name": format!("server-{number}"),
                "server": true,
                "bootstrap_expect": 3,
                "bind_addr": address,
                "client_addr": address,
                "data_dir": directory.join(format!("{number}")),
                "retry_join": ["127.0.0.1", "127.0.0.2"],
                "ports": {"http": http, "dns": -1, "grpc": -1, "server": server},
                "log_level": "error",
                "platform": {"enabled": false},
                "limits": {"rpc_max_conns_per_client": 50_000},
            });
            let file = directory.join(format!("{number}.json"));
            fs::write(&file, config.to_string())?;
            let file = format!("-config-file={}", file.display());
            let started = process::pinned("0-1", program, &["agent", &file]);
            running.push(Some(started.map_err(|error| error.to_string())?));
        }
        Ok(Servers {
            running,
            http,
            server,
        })
    }

    /// `host:port` of the server ports.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let numbers = 1..=self.running.len();
        numbers
            .map(|number| format!("127.0.0.{number}:{}", self.server))
            .collect()
    }

    /// The place of the leader, if somebody knows one.
    pub(crate) async fn leader(&self) -> Option<usize> {
        let text = self.get("/v1/status/leader").await.ok()?;
        let address: String = serde_json::from_slice(&text).ok()?;
        self.addresses().iter().position(|other| *other == address)
    }

    pub(crate) fn kill(&mut self, at: usize) -> String {
        self.running[at] = None;
        format!("server-{}", at + 1)
    }

    /// How many there are in a list of the API.
    async fn count(&self, path: &str) -> Result<usize, Failure> {
        let list: Vec<serde_json::Value> = serde_json::from_slice(&self.get(path).await?)?;
        Ok(list.len())
    }

    /// How many agents are taken for dead.
    pub(crate) async fn dead(&self) -> Result<usize, Failure> {
        let filter = "CheckID==serfHealth%20and%20Node%20matches%20%22agent-%22";
        self.count(&format!("/v1/health/state/critical?stale&filter={filter}"))
            .await
    }

    /// How many checks are passing, of agents and servers.
    pub(crate) async fn passing(&self) -> Result<usize, Failure> {
        self.count("/v1/health/state/passing?stale").await
    }

    /// Of the first server that answers.
    async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        let mut failure = Failure::from("no server runs");
        for (at, _) in self
            .running
            .iter()
            .enumerate()
            .filter(|(_, running)| running.is_some())
        {
            match self.get_from(at, path).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn get_from(&self, at: usize, path: &str) -> Result<Bytes, Failure> {
        let address = format!("127.0.0.{}:{}", at + 1, self.http);
        let stream = TokioIo::new(TcpStream::connect(&address).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let request = hyper::Request::get(path)
            .header("host", &address)
            .body(Empty::<Bytes>::new())?;
        let asking = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await?.to_bytes();
            match status.is_success() {
                true => Ok(bytes),
                false => Err(Failure::from(format!(
                    "{path}: {status} {}",
                    String::from_utf8_lossy(&bytes)
                ))),
            }
        };
        tokio::select! {
            answer = asking => answer,
            ended = connection => Err(format!("{path}: the connection ended: {ended:?}").into()),
        }
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.running.iter().flatten().map(Process::pid)
    }

    pub(crate) fn sizes(&self) -> Result<String, Failure> {
        let sizes: Result<Vec<String>, _> = self
            .pids()
            .map(|pid| process::resident_mb(pid).map(|size| format!("{size:.0} MB")))
            .collect();
        Ok(sizes.map_err(|error| error.to_string())?.join(", "))
    }

    pub(crate) fn cpu(&self) -> Result<Spent, Failure> {
        let spent: Result<Vec<Duration>, _> = self.pids().map(process::cpu).collect();
        Ok(Spent(spent.map_err(|error| error.to_string())?))
    }

    /// How much of a processor each used since.
    pub(crate) fn busy(&self, before: &Spent, within: Duration) -> Result<String, Failure> {
        let shares = self.cpu()?.0;
        let shares = shares.iter().zip(&before.0).map(|(now, before)| {
            let share = (*now - *before).as_secs_f64() / within.as_secs_f64();
            format!("{:.1} % of a processor", share * 100.0)
        });
        Ok(shares.collect::<Vec<_>>().join(", "))
    }
}
