//! The servers that are compared, each started as its manual advises for one durable server.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use wharf_benches::process::{self, Process};

use super::{
    SERVER_CORE,
    client::{Connection, Failure, write_request},
};

/// How many ports one server gets.
const PORTS: u16 = 10;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Wharf,
    /// Another binary of ours, to compare two commits.
    Before,
    Consul,
    Etcd,
}

/// A program that can be started, and where its servers go.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    pub(crate) version: String,
    program: PathBuf,
    base: u16,
    folder: PathBuf,
}

/// A running server. It ends, and its files go, when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) http: u16,
    pub(crate) dns: u16,
    process: Process,
    folder: PathBuf,
}

/// What it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything, on disk.
    Durable,
    /// Nothing: `agent -dev`.
    Dev,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Wharf => "wharf",
            Kind::Before => "before",
            Kind::Consul => "consul",
            Kind::Etcd => "etcd",
        }
    }

    /// What to do when it is not there.
    pub(crate) fn how_to_get(self) -> &'static str {
        match self {
            Kind::Wharf | Kind::Before => "cargo build --profile dist -p wharf",
            Kind::Consul => {
                "Consul 1.8.7, the last under MPL-2.0 that Debian has, is in bullseye: fetch the package with apt or from \
                 a mirror, unpack it with `dpkg-deb -x consul_1.8.7*.deb /opt/consul187`, or name another with --consul"
            }
            Kind::Etcd => "apt-get install etcd-server, or name one with --etcd",
        }
    }
}

impl Program {
    /// `None` when the program is not on this machine.
    pub(crate) fn find(
        kind: Kind,
        given: Option<&Path>,
        base: u16,
        folder: &Path,
    ) -> Result<Option<Program>, Box<dyn Error>> {
        let found = match (given, kind) {
            (Some(given), _) => process::find("", &[given]),
            (None, Kind::Wharf) => Some(build()?),
            (None, Kind::Before) => None,
            (None, Kind::Consul) => {
                process::find("consul", &[Path::new("/opt/consul187/usr/bin/consul")])
            }
            (None, Kind::Etcd) => process::find("etcd", &[]),
        };
        let Some(program) = found else {
            return match given {
                Some(given) => Err(format!("{} is not a file", given.display()).into()),
                None => Ok(None),
            };
        };
        let (args, at): (&[&str], u16) = match kind {
            Kind::Wharf => (&["version"], 0),
            Kind::Before | Kind::Consul => (&["version"], PORTS),
            Kind::Etcd => (&["--version"], 2 * PORTS),
        };
        Ok(Some(Program {
            kind,
            version: process::first_line(&program, args),
            program,
            base: base + at,
            folder: folder.join(kind.name()),
        }))
    }

    /// Starts a server with nothing in it, and returns once it takes writes.
    pub(crate) async fn start(&self, mode: Mode) -> Result<Server, Failure> {
        let name = self.kind.name();
        let folder = self.folder.clone();
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let args = match self.kind {
            Kind::Wharf | Kind::Before | Kind::Consul => self.agent(mode, &folder)?,
            Kind::Etcd => self.etcd(&folder),
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let log = fs::File::create(folder.join("log"))?;
        let program = self.program.to_string_lossy();
        let process = process::pinned_logging(SERVER_CORE, &program, &args, log);
        let mut server = Server {
            kind: self.kind,
            http: self.base,
            dns: self.base + 1,
            process: process.map_err(|error| error.to_string())?,
            folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match server.write_once().await {
                Ok(()) => return Ok(server),
                Err(error) if server.process.ended() || Instant::now() > deadline => {
                    let log = fs::read_to_string(server.folder.join("log")).unwrap_or_default();
                    return Err(format!("{name} does not start: {error}\n{log}").into());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Consul's arguments, which are wharf's as well. Only the ports of gossip are Consul's own.
    fn agent(&self, mode: Mode, folder: &Path) -> Result<Vec<String>, Failure> {
        let port = |at: u16| self.base + at;
        let mut ports = serde_json::json!({
            "http": port(0), "dns": port(1), "server": port(2), "grpc": port(3),
        });
        if self.kind == Kind::Consul {
            ports["serf_lan"] = port(4).into();
            ports["serf_wan"] = port(5).into();
        }
        let config = serde_json::json!({
            "node_name": "bench",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": ports,
            "log_level": "warn",
            "disable_update_check": true,
            "performance": {"raft_multiplier": 1},
            // Consul's default, and not ours: without EDNS both tell three addresses.
            "dns_config": {"udp_answer_limit": 3},
            "limits": {"http_max_conns_per_client": 4_000},
        });
        let file = folder.join("agent.json");
        fs::write(&file, config.to_string())?;
        let mut args = vec!["agent".to_owned()];
        match mode {
            Mode::Dev => args.push("-dev".into()),
            Mode::Durable => {
                let data = folder.join("data").to_string_lossy().into_owned();
                args.extend(["-server", "-bootstrap", "-data-dir", &data].map(str::to_owned));
            }
        }
        args.push(format!("-config-file={}", file.display()));
        Ok(args)
    }

    fn etcd(&self, folder: &Path) -> Vec<String> {
        let url = |at: u16| format!("http://127.0.0.1:{}", self.base + at);
        vec![
            format!("--data-dir={}", folder.join("data").display()),
            format!("--listen-client-urls={}", url(0)),
            format!("--advertise-client-urls={}", url(0)),
            format!("--listen-peer-urls={}", url(2)),
            format!("--initial-advertise-peer-urls={}", url(2)),
            format!("--initial-cluster=default={}", url(2)),
            "--logger=zap".into(),
            "--log-level=error".into(),
        ]
    }
}

impl Server {
    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        process::cpu(self.process.pid()).map_err(|error| error.to_string().into())
    }

    pub(crate) fn resident_mb(&self) -> Result<f64, Failure> {
        process::resident_mb(self.process.pid()).map_err(|error| error.to_string().into())
    }

    async fn write_once(&self) -> Result<(), Failure> {
        let mut request = Vec::new();
        super::rows::put(self.kind, 0, &mut request);
        Connection::open(self.http)
            .await?
            .exchange(&request)
            .await?;
        if self.kind != Kind::Etcd {
            // A leader, and reads from it.
            request.clear();
            write_request(&mut request, "GET", "/v1/catalog/nodes?consistent", b"");
            Connection::open(self.http)
                .await?
                .exchange(&request)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.end();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The binary of this source tree, in the profile that this program was built in.
fn build() -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let profile = own.parent().ok_or("this program is nowhere")?;
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => {
            return Err(
                "this program is not in a target directory: name a binary with --wharf".into(),
            );
        }
    };
    let status = std::process::Command::new("cargo")
        .args([
            "build",
            "--locked",
            "--quiet",
            "-p",
            "wharf",
            "--profile",
            name,
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()?;
    if !status.success() {
        return Err("wharf does not build".into());
    }
    Ok(profile.join("wharf"))
}
