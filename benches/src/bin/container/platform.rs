//! The whole way: from a job that is sent to the agent until the command of each instance runs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::Failure;

/// Instances of a job: they come up side by side.
const INSTANCES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent that ends with this, and takes its allocations along.
struct Agent {
    process: Child,
    http: SocketAddr,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let id = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.process.wait();
    }
}

impl Agent {
    fn start(program: &Path, directory: &Path) -> Result<Agent, Failure> {
        let mut ports = Vec::new();
        for _ in 0..4 {
            ports.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        }
        let ports: Vec<u16> = ports
            .into_iter()
            .map(|listener| listener.local_addr().map(|address| address.port()))
            .collect::<Result<_, _>>()?;
        let data = format!("-data-dir={}", directory.join("data").display());
        let log = File::create(directory.join("agent.log"))?;
        let process = Command::new(program)
            .args(["agent", "-server", "-bootstrap", "-bind=127.0.0.1"])
            .args([&data, "-log-level=warn"])
            .arg(format!("-http-port={}", ports[0]))
            .arg(format!("-grpc-port={}", ports[1]))
            .arg(format!("-dns-port={}", ports[2]))
            .arg(format!("-server-port={}", ports[3]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let agent = Agent {
            process,
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0])),
        };
        agent.until("a node that runs containers", |agent| {
            let nodes = agent.ask("GET", "/v1/platform/nodes", None).ok()?;
            (nodes[0]["Drivers"]["exec"] == true).then_some(())
        })?;
        Ok(agent)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("{method} {path}: {answer}").into());
        }
        Ok(serde_json::from_str(text)?)
    }

    fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&Agent) -> Option<T>,
    ) -> Result<T, Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = look(self) {
                return Ok(seen);
            }
            if Instant::now() > end {
                return Err(format!("not within {PATIENCE:?}: {what}").into());
            }
            sleep(Duration::from_millis(5));
        }
    }
}

fn job(name: &str, sidecar: bool) -> Value {
    let mut group = json!({
        "Name": "app",
        "Count": INSTANCES,
        "Network": {"Ports": [{"Label": "http"}]},
        "Tasks": [{
            "Name": "app", "Driver": "exec", "Command": "/bin/sleep", "Args": ["1000"],
            "KillSignal": "SIGKILL", "Resources": {"CPU": 50, "MemoryMB": 32},
        }],
    });
    if sidecar {
        group["Services"] =
            json!([{"Name": name, "Port": "http", "Connect": {"SidecarService": {}}}]);
        group["ShutdownDelay"] = "0s".into();
    }
    json!({"Name": name, "Groups": [group]})
}

/// Runs jobs one after the other; gives the time of each allocation.
pub(crate) fn measure(
    program: &Path,
    directory: &Path,
    rounds: usize,
    figures: &mut BTreeMap<&'static str, Vec<Duration>>,
) -> Result<(), Failure> {
    let agent = Agent::start(program, directory)?;
    for round in 0..rounds {
        for (sidecar, what) in [
            (false, "6 job of 3: sent to running"),
            (true, "7 the same with sidecars"),
        ] {
            let name = format!("bench-{round}-{sidecar}");
            let began = SystemTime::now().duration_since(UNIX_EPOCH)?;
            agent.ask("PUT", "/v1/jobs", Some(&job(&name, sidecar)))?;
            let list = format!("/v1/job/{name}/allocations");
            let ids = agent.until("three running instances", |agent| {
                let rows = agent.ask("GET", &list, None).ok()?;
                let rows = rows.as_array()?;
                let running = |row: &&Value| row["ClientStatus"] == "running";
                let ids: Vec<String> = rows
                    .iter()
                    .filter(running)
                    .filter_map(|row| Some(row["ID"].as_str()?.to_owned()))
                    .collect();
                (ids.len() == INSTANCES).then_some(ids)
            })?;
            for id in ids {
                let alloc = agent.ask("GET", &format!("/v1/allocation/{id}"), None)?;
                let started = alloc["TaskStates"]["app"]["StartedAt"].as_u64();
                let started = Duration::from_nanos(started.ok_or("it never started")?);
                // The shim tells milliseconds.
                let time = started.saturating_sub(began) + Duration::from_micros(500);
                figures.entry(what).or_default().push(time);
            }
            agent.ask("DELETE", &format!("/v1/job/{name}?purge"), None)?;
            agent.until("nothing of the job", |agent| {
                let rows = agent.ask("GET", &list, None).ok()?;
                let live = rows.as_array()?.iter().filter(|row| {
                    row["ClientStatus"] == "running" || row["ClientStatus"] == "pending"
                });
                (live.count() == 0).then_some(())
            })?;
        }
    }
    Ok(())
}
