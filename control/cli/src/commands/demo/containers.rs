//! The fleet as jobs of the platform: containers with networks of their own and sidecars.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::processes::Process;
use crate::{
    failure::Failure,
    http::{Client, Request},
};

/// What runs: also a job file to look at.
const WEB: &str = include_str!("web.hcl");
const CLIENT: &str = include_str!("client.hcl");
/// Where the client's sidecar takes requests for `web`, in the client's network.
const UPSTREAM_PORT: u16 = 9090;
/// How long the node may take to be known.
const NODE_KNOWN: Duration = Duration::from_secs(10);
/// How long a job may take to run, or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The jobs `web` and `client`.
#[derive(Debug)]
pub(super) struct Containers {
    directory: PathBuf,
    http: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PlatformNode {
    #[serde(default)]
    drivers: BTreeMap<String, bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Alloc {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    client_status: String,
    #[serde(default)]
    address: String,
}

impl Containers {
    pub(super) fn new(directory: PathBuf, http: u16) -> Containers {
        Containers { directory, http }
    }

    /// Why this node cannot run jobs; `None` if it can.
    pub(super) async fn unavailable(client: &mut Client) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("containers need root".to_owned());
        }
        // The agent's node makes itself known soon after the agent serves.
        let deadline = Instant::now() + NODE_KNOWN;
        loop {
            let nodes = client.fetch_json::<Vec<PlatformNode>>(Request::get("/v1/platform/nodes"));
            match nodes.await {
                Err(error) => return Some(error.to_string()),
                Ok(nodes) if nodes.is_empty() && Instant::now() < deadline => {
                    sleep(Duration::from_millis(10)).await;
                }
                Ok(nodes) => {
                    let able = nodes
                        .iter()
                        .any(|node| node.drivers.get("exec") == Some(&true));
                    return (!able).then(|| {
                        "this node runs no containers; see `wharf node status`".to_owned()
                    });
                }
            }
        }
    }

    /// Runs both jobs; returns where the client's sidecar takes requests for `web`.
    pub(super) async fn start(&self, client: &mut Client) -> Result<SocketAddr, Failure> {
        for (name, text) in [("web", WEB), ("client", CLIENT)] {
            let file = self.directory.join(format!("{name}.hcl"));
            let failed =
                |error| Failure::new(format!("cannot write {}", file.display())).because(error);
            fs::write(&file, text).map_err(failed)?;
            let arguments = [
                "job".to_owned(),
                "run".to_owned(),
                format!("-http-addr=127.0.0.1:{}", self.http),
                file.display().to_string(),
            ];
            let mut run = Process::start(&self.directory, &format!("job-run-{name}"), &arguments)?;
            let ended = timeout(PATIENCE, run.ended()).await;
            if !matches!(ended, Ok(Ok(status)) if status.success()) {
                return Err(Failure::new(format!("the job {name:?} does not run"))
                    .because(run.last_words()));
            }
        }
        let allocs = allocs(client, "client").await?;
        let address = allocs
            .iter()
            .find_map(|alloc| alloc.address.parse::<IpAddr>().ok());
        let address =
            address.ok_or_else(|| Failure::new("the client has no address of its own"))?;
        Ok(SocketAddr::new(address, UPSTREAM_PORT))
    }

    pub(super) async fn scale(&self, client: &mut Client, count: usize) -> Result<(), Failure> {
        let request = Request::put("/v1/job/web/scale").json(&json!({ "Count": count }));
        let request = request.map_err(|error| error.while_("Error scaling the job"))?;
        let answer = client.send(request).await.and_then(|answer| answer.ok());
        answer
            .map(drop)
            .map_err(|error| error.while_("Error scaling the job"))
    }

    /// Kills the process of one instance from outside. Its parent sees it, and the rest is the platform's.
    pub(super) async fn kill_one(&self, client: &mut Client) -> Result<String, Failure> {
        let allocs = allocs(client, "web").await?;
        let mut running: Vec<&Alloc> = allocs
            .iter()
            .filter(|alloc| alloc.client_status == "running")
            .collect();
        running.sort_by(|a, b| a.name.cmp(&b.name));
        let Some(victim) = running.get(running.len() / 2) else {
            return Err(Failure::new("there is no instance to kill"));
        };
        let pid = server_of(&victim.id)
            .ok_or_else(|| Failure::new(format!("the process of {} is not found", victim.name)))?;
        kill_process(pid, Signal::KILL)
            .map_err(|error| Failure::new(format!("cannot kill {}", victim.name)).because(error))?;
        Ok(victim.name.clone())
    }

    /// Stops both jobs and waits until nothing of them runs.
    pub(super) async fn stop(&self, client: &mut Client) {
        for job in ["client", "web"] {
            // An agent that is gone has nothing to stop; one that is not says so in its log.
            let _ = client.send(Request::delete(format!("/v1/job/{job}"))).await;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut live = 0;
            for job in ["client", "web"] {
                live += match allocs(client, job).await {
                    Err(_) => return,
                    Ok(allocs) => allocs.iter().filter(|alloc| alloc.is_live()).count(),
                };
            }
            if live == 0 {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Alloc {
    fn is_live(&self) -> bool {
        matches!(&*self.client_status, "pending" | "running")
    }
}

async fn allocs(client: &mut Client, job: &str) -> Result<Vec<Alloc>, Failure> {
    let request = Request::get(format!("/v1/job/{job}/allocations"));
    let allocs = client.fetch_json(request).await;
    allocs.map_err(|error| error.while_("Error listing allocations"))
}

/// The server among the processes of an allocation: the one that was started as `demo serve` with the allocation's id
/// in its environment.
fn server_of(alloc: &str) -> Option<Pid> {
    let wanted = format!("WHARF_ALLOC_ID={alloc}");
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |id: i32, file: &str, word: &[u8]| {
        fs::read(format!("/proc/{id}/{file}"))
            .is_ok_and(|text| text.split(|byte| *byte == 0).any(|one| one == word))
    };
    ids.filter(|id| has(*id, "environ", wanted.as_bytes()))
        .filter(|id| has(*id, "cmdline", b"demo") && has(*id, "cmdline", b"serve"))
        .find_map(Pid::from_raw)
}
