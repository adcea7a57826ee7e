//! The fleet without containers: processes that the demo starts, registers, watches and restarts itself, as the
//! platform does with allocations.
//!
//! Each instance has a loopback address of its own, so that DNS shows them apart.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::processes::{Process, free_port};
use crate::{
    failure::Failure,
    http::{Client, Request, segment},
};

/// How long an instance stays after it was withdrawn, for those who still have its address.
const GRACE: Duration = Duration::from_millis(500);
/// How long an instance may take until it serves.
const START: Duration = Duration::from_secs(10);
/// The pause before a process that died is started again.
const BACKOFF: Duration = Duration::from_millis(500);

/// The instances of the service `web`.
#[derive(Debug)]
pub(super) struct Plain {
    directory: PathBuf,
    port: u16,
    /// By index. One that died is there, ended.
    instances: Vec<Process>,
    sidecar: Option<Process>,
}

impl Plain {
    pub(super) fn new(directory: PathBuf) -> Result<Plain, Failure> {
        Ok(Plain {
            directory,
            port: free_port()?,
            instances: Vec::new(),
            sidecar: None,
        })
    }

    /// Starts the client's sidecar; returns where it takes requests for `web`.
    pub(super) async fn start_sidecar(&mut self, grpc: u16) -> Result<SocketAddr, Failure> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let arguments = [
            "connect".to_owned(),
            "proxy".to_owned(),
            "-service=client".to_owned(),
            format!("-upstream=web:{local}"),
            format!("-grpc-addr=127.0.0.1:{grpc}"),
            "-drain-timeout=1s".to_owned(),
        ];
        let mut sidecar = Process::start(&self.directory, "client-sidecar", &arguments)?;
        let serving = until_it_listens(&mut sidecar, local).await;
        self.sidecar = Some(sidecar);
        serving.map(|()| local)
    }

    pub(super) async fn scale(&mut self, client: &mut Client, count: usize) -> Result<(), Failure> {
        while self.instances.len() < count {
            let index = self.instances.len();
            let instance = self.start(index).await?;
            self.instances.push(instance);
            self.register(client, index).await?;
        }
        let surplus = self.instances.split_off(count.min(self.instances.len()));
        for index in count..count + surplus.len() {
            deregister(client, index).await?;
        }
        if !surplus.is_empty() {
            sleep(GRACE).await;
        }
        for mut instance in surplus {
            instance.stop().await;
        }
        Ok(())
    }

    /// Kills an instance, as `kill -9` does, and does what the platform does then: takes it out of the catalog at once,
    /// since its parent knows, and starts it again.
    pub(super) async fn kill_one(&mut self, client: &mut Client) -> Result<String, Failure> {
        let index = self.instances.len() / 2;
        let Some(instance) = self.instances.get_mut(index) else {
            return Err(Failure::new("there is no instance to kill"));
        };
        let failed = |error| Failure::new(format!("cannot kill {}", name(index))).because(error);
        instance.kill().map_err(failed)?;
        instance.ended().await.map_err(failed)?;
        deregister(client, index).await?;
        Ok(name(index))
    }

    pub(super) async fn restart_killed(&mut self, client: &mut Client) -> Result<(), Failure> {
        for index in 0..self.instances.len() {
            if self.instances[index].has_ended() {
                sleep(BACKOFF).await;
                self.instances[index] = self.start(index).await?;
                self.register(client, index).await?;
            }
        }
        Ok(())
    }

    /// Ends everything.
    pub(super) async fn stop(&mut self) {
        let all = self.instances.iter_mut().chain(self.sidecar.as_mut());
        for process in all {
            process.stop().await;
        }
    }

    async fn start(&self, index: usize) -> Result<Process, Failure> {
        let address = address(index);
        let arguments = [
            "demo".to_owned(),
            "serve".to_owned(),
            format!("-address={address}"),
            format!("-port={}", self.port),
            format!("-name={}", name(index)),
        ];
        let mut process = Process::start(&self.directory, &name(index), &arguments)?;
        until_it_listens(&mut process, (address, self.port).into()).await?;
        Ok(process)
    }

    async fn register(&self, client: &mut Client, index: usize) -> Result<(), Failure> {
        let address = address(index);
        let service = json!({
            "ID": name(index),
            "Name": "web",
            "Address": address,
            "Port": self.port,
            "Check": {
                "HTTP": format!("http://{address}:{}/healthz", self.port),
                "Interval": "1s",
                "Status": "passing",
            },
        });
        let request = Request::put("/v1/agent/service/register").json(&service);
        let request = request.map_err(|error| error.while_("Error registering an instance"))?;
        let answer = client.send(request).await.and_then(|answer| answer.ok());
        answer
            .map(drop)
            .map_err(|error| error.while_("Error registering an instance"))
    }
}

async fn deregister(client: &mut Client, index: usize) -> Result<(), Failure> {
    let id = name(index);
    let request = Request::put(format!("/v1/agent/service/deregister/{}", segment(&id)));
    let answer = client.send(request).await.and_then(|answer| answer.ok());
    answer
        .map(drop)
        .map_err(|error| error.while_("Error deregistering an instance"))
}

fn name(index: usize) -> String {
    format!("web-{index}")
}

fn address(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 77, 0, last)
}

async fn until_it_listens(process: &mut Process, at: SocketAddr) -> Result<(), Failure> {
    let deadline = Instant::now() + START;
    loop {
        if tokio::net::TcpStream::connect(at).await.is_ok() {
            return Ok(());
        }
        if process.has_ended() || Instant::now() >= deadline {
            return Err(
                Failure::new(format!("nothing serves on {at}")).because(process.last_words())
            );
        }
        sleep(Duration::from_millis(2)).await;
    }
}
