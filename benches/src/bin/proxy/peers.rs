//! The proxies, each set up as its manual advises for this work: one thread, no logs, connections to the backend reused.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use wharf_benches::process::{self, Process};

use super::{CLIENT_CORE, PROXY_CORE};

/// Where one proxy listens, and where it forwards to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) tcp: u16,
    pub(crate) http_backend: u16,
    pub(crate) tcp_backend: u16,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) ports: Ports,
    process: Process,
    /// What it needs beside it.
    _companion: Option<Process>,
}

impl Peer {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn ready(self) -> Result<Self, Box<dyn Error>> {
        process::listening(self.ports.http).map_err(|error| format!("{}: {error}", self.name))?;
        process::listening(self.ports.tcp).map_err(|error| format!("{}: {error}", self.name))?;
        Ok(self)
    }
}

pub(crate) fn wharf(ports: Ports) -> Result<Peer, Box<dyn Error>> {
    let agent = process::free_port()?.to_string();
    let numbers =
        [ports.http, ports.tcp, ports.http_backend, ports.tcp_backend].map(|port| port.to_string());
    let mut args = vec!["as-agent", &agent];
    args.extend(numbers.iter().map(String::as_str));
    let companion = process::own(CLIENT_CORE, &args)?;
    let process = process::own(PROXY_CORE, &["as-proxy", &format!("127.0.0.1:{agent}")])?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Peer {
        name: "wharf",
        version,
        ports,
        process,
        _companion: Some(companion),
    }
    .ready()
}

pub(crate) fn haproxy(ports: Ports) -> Result<Peer, Box<dyn Error>> {
    let program = find("haproxy", &["/usr/sbin/haproxy"])?;
    let Ports {
        http,
        tcp,
        http_backend,
        tcp_backend,
    } = ports;
    let config = file(
        "haproxy.cfg",
        &format!(
            "global\n  nbthread 1\n  maxconn 8000\n\
             defaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen http\n  mode http\n  bind 127.0.0.1:{http}\n  http-reuse always\n  server s 127.0.0.1:{http_backend}\n\
             listen tcp\n  mode tcp\n  bind 127.0.0.1:{tcp}\n  server s 127.0.0.1:{tcp_backend}\n"
        ),
    )?;
    // -db: no background process.
    let process = process::pinned(PROXY_CORE, &program, &["-db", "-f", &config])?;
    let version = process::first_line(Path::new(&program), &["-v"])
        .split(' ')
        .nth(2)
        .unwrap_or_default()
        .to_owned();
    Peer {
        name: "haproxy",
        version,
        ports,
        process,
        _companion: None,
    }
    .ready()
}

pub(crate) fn envoy(ports: Ports) -> Result<Peer, Box<dyn Error>> {
    let program = find("envoy", &[])?;
    let Ports {
        http,
        tcp,
        http_backend,
        tcp_backend,
    } = ports;
    let address =
        |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let cluster = |name: &str, port: u16| {
        format!(
            "  - name: {name}\n    type: STATIC\n    connect_timeout: 5s\n    lb_policy: LEAST_REQUEST\n\
             \x20   circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]}}\n\
             \x20   load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}\n",
            address(port)
        )
    };
    let config = format!(
        "static_resources:\n  listeners:\n\
         \x20 - address: {}\n    filter_chains:\n    - filters:\n      - name: hcm\n        typed_config:\n\
         \x20         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20         stat_prefix: http\n          generate_request_id: false\n          codec_type: HTTP1\n\
         \x20         http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true, dynamic_stats: false}}}}]\n\
         \x20         route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: http}}}}]}}]}}\n\
         \x20 - address: {}\n    filter_chains:\n    - filters:\n      - name: tcp\n        typed_config:\n\
         \x20         '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n\
         \x20         stat_prefix: tcp\n          cluster: tcp\n\
         \x20 clusters:\n{}{}",
        address(http),
        address(tcp),
        cluster("http", http_backend),
        cluster("tcp", tcp_backend),
    );
    let config = file("envoy.yaml", &config)?;
    let args = [
        "-c",
        &config,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "off",
    ];
    let process = process::pinned(PROXY_CORE, &program, &args)?;
    let version = process::first_line(Path::new(&program), &["--version"]);
    let version = version.rsplit("version: ").next().unwrap_or_default();
    let version = version.split('/').nth(1).unwrap_or_default().to_owned();
    Peer {
        name: "envoy",
        version,
        ports,
        process,
        _companion: None,
    }
    .ready()
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("wharf-bench-{}", std::process::id()))
}

fn file(name: &str, text: &str) -> Result<String, Box<dyn Error>> {
    fs::create_dir_all(folder())?;
    let path = folder().join(name);
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Once they run, no peer reads its configuration again.
pub(crate) fn remove_files() {
    let _ = fs::remove_dir_all(folder());
}

/// The program itself: a Python package's script of that name starts the binary it brings.
fn find(name: &str, also_at: &[&str]) -> Result<String, Box<dyn Error>> {
    let script = "import importlib.util as u, os, sys; s = u.find_spec(sys.argv[1]); \
                  print(os.path.join(s.submodule_search_locations[0], '_bin', sys.argv[1]) if s else '')";
    let packaged = Command::new("python3")
        .args(["-c", script, name])
        .stderr(Stdio::null())
        .output();
    let packaged = packaged
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    let packaged = [PathBuf::from(packaged)];
    let also = packaged.iter().map(PathBuf::as_path);
    let also: Vec<&Path> = also.chain(also_at.iter().map(Path::new)).collect();
    process::find(name, &also)
        .map(|program| program.to_string_lossy().into_owned())
        .ok_or_else(|| format!("{name} is not installed").into())
}
