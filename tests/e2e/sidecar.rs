//! `wharf connect proxy` between a client and instances that come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;
use wharf_tests::{Agent, Backend, Http, Process, SOON, eventually, free_port};

/// A proxy of nobody in particular, with one upstream.
struct Sidecar {
    process: Process,
    upstream: Http,
    admin: Http,
}

impl Sidecar {
    fn start(agent: &Agent, destination: &str) -> Sidecar {
        let (port, admin) = (free_port(), free_port());
        let upstream = format!("-upstream={destination}:{port}");
        let process = Process::start(&mut agent.cli(&[
            "connect",
            "proxy",
            "-service=me",
            &upstream,
            &format!("-grpc-addr=127.0.0.1:{}", agent.ports.grpc),
            &format!("-admin-port={admin}"),
        ]));
        let sidecar = Sidecar {
            process,
            upstream: Http::local(port),
            admin: Http::local(admin),
        };
        assert!(
            eventually(SOON, || sidecar.ready() == Some(200)),
            "{}",
            sidecar.process.text()
        );
        sidecar
    }

    fn ready(&self) -> Option<u16> {
        self.admin
            .request("GET", "/ready", &[], b"")
            .ok()
            .map(|reply| reply.status)
    }

    /// The body of a success through the proxy.
    fn call(&self) -> Result<String, String> {
        match self.upstream.request("GET", "/", &[], b"") {
            Ok(reply) if reply.status == 200 => Ok(reply.text()),
            Ok(reply) => Err(format!("{}: {}", reply.status, reply.text())),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn register(agent: &Agent, id: &str, backend: &Backend) {
    let body = json!({
        "ID": id, "Name": "web", "Port": backend.port(), "Address": "127.0.0.1",
        "Check": {
            "HTTP": format!("http://127.0.0.1:{}/", backend.port()),
            "Interval": "300ms", "Timeout": "2s", "Status": "passing",
        },
    });
    agent
        .http
        .put("/v1/agent/service/register", body.to_string())
        .ok();
}

fn speaks_http(agent: &Agent) {
    let body = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"});
    agent.http.put("/v1/config", body.to_string()).ok();
}

fn requests_survive_the_death_of_an_instance(agent: &Agent) {
    let mut backends: Vec<_> = ["one", "two", "three"].map(Backend::start).into();
    for backend in &backends {
        register(agent, &format!("web-{}", backend.port()), backend);
    }
    let sidecar = Arc::new(Sidecar::start(agent, "web"));
    assert!(eventually(SOON, || {
        let _ = sidecar.call();
        backends.iter().all(|backend| backend.requests() > 5)
    }));

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let client = {
        let (sidecar, stop, done) = (sidecar.clone(), stop.clone(), done.clone());
        thread::spawn(move || {
            let mut failures = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                failures.extend(sidecar.call().err());
                done.fetch_add(1, Ordering::SeqCst);
            }
            failures
        })
    };
    let more = |count: u64| {
        let goal = done.load(Ordering::SeqCst) + count;
        eventually(SOON, || done.load(Ordering::SeqCst) >= goal)
    };
    assert!(more(50));
    // The request that is with the instance at this moment dies with it: that one is not retried,
    // it may have had an effect. Everything after it meets a closed port, which is.
    drop(backends.remove(0));
    assert!(more(100));
    let critical = || agent.http.get("/v1/health/state/critical").json();
    assert!(eventually(SOON, || critical()
        .as_array()
        .is_some_and(|rows| rows.len() == 1)));
    assert!(more(100));
    stop.store(true, Ordering::SeqCst);
    let failures = client.join().unwrap();
    assert!(failures.len() <= 1, "{failures:?}");
}

#[test]
fn http_requests_survive_the_death_of_an_instance() {
    let agent = Agent::dev();
    speaks_http(&agent);
    requests_survive_the_death_of_an_instance(&agent);
}

#[test]
fn tcp_connections_survive_the_death_of_an_instance() {
    let agent = Agent::dev();
    requests_survive_the_death_of_an_instance(&agent);
}

#[test]
fn an_upstream_that_does_not_exist_yet_is_served_when_it_does() {
    let agent = Agent::dev();
    speaks_http(&agent);
    let sidecar = Sidecar::start(&agent, "web");
    let mut reply = None;
    // The listener is there at once, and says why it has nothing.
    assert!(eventually(SOON, || {
        reply = sidecar.upstream.request("GET", "/", &[], b"").ok();
        reply.is_some()
    }));
    let reply = reply.unwrap();
    assert_eq!(reply.status, 503);
    assert!(
        reply.text().contains("web"),
        "no reason in: {}",
        reply.text()
    );
    let backend = Backend::start("here");
    register(&agent, "web", &backend);
    assert!(eventually(SOON, || sidecar.call().as_deref() == Ok("here")));
}

#[test]
fn it_goes_on_without_its_agent_and_finds_it_again() {
    let agent = Agent::dev();
    speaks_http(&agent);
    let backend = Backend::start("still here");
    register(&agent, "web", &backend);
    let sidecar = Sidecar::start(&agent, "web");
    assert!(eventually(SOON, || sidecar.call().is_ok()));
    let ports = agent.kill();
    for _ in 0..50 {
        assert_eq!(sidecar.call().as_deref(), Ok("still here"));
    }
    // An agent that has forgotten everything must be told again; the proxy then follows it.
    let agent = Agent::on(ports, &["-dev"]).unwrap();
    speaks_http(&agent);
    let other = Backend::start("another");
    register(&agent, "web", &other);
    assert!(eventually(2 * SOON, || sidecar.call().as_deref() == Ok("another")));
}

#[test]
fn it_says_that_it_is_ready_and_what_it_does() {
    let agent = Agent::dev();
    speaks_http(&agent);
    let backend = Backend::start("x");
    register(&agent, "web", &backend);
    let sidecar = Sidecar::start(&agent, "web");
    assert!(eventually(SOON, || sidecar.call().is_ok()));
    let metrics = sidecar.admin.get("/metrics").ok().text();
    assert!(
        metrics.contains("# TYPE") && metrics.contains("web"),
        "{metrics}"
    );
}

#[test]
fn sigterm_drains_it() {
    let agent = Agent::dev();
    let backend = Backend::start("x");
    register(&agent, "web", &backend);
    let mut sidecar = Sidecar::start(&agent, "web");
    assert!(eventually(SOON, || sidecar.call().is_ok()));
    // With nothing running there is nothing to wait for.
    sidecar.process.signal(Signal::TERM);
    let status = sidecar.process.ended(Duration::from_secs(5));
    assert!(
        status.is_some_and(|status| status.success()),
        "{}",
        sidecar.process.text()
    );
    assert!(sidecar.call().is_err());
}

#[test]
fn a_port_that_is_taken_is_told_and_tried_again() {
    let agent = Agent::dev();
    speaks_http(&agent);
    let backend = Backend::start("x");
    register(&agent, "web", &backend);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let sidecar = Process::start(&mut agent.cli(&[
        "connect",
        "proxy",
        "-service=me",
        &format!("-upstream=web:{port}"),
        &format!("-grpc-addr=127.0.0.1:{}", agent.ports.grpc),
    ]));
    assert!(
        sidecar.line(&port.to_string(), SOON).is_some(),
        "{}",
        sidecar.text()
    );
    drop(taken);
    let upstream = Http::local(port);
    assert!(eventually(2 * SOON, || {
        let reply = upstream.request("GET", "/", &[], b"");
        reply.is_ok_and(|reply| reply.status == 200)
    }));
}

#[test]
fn a_sidecar_follows_over_a_unix_socket_and_says_when_it_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("grpc.sock");
    let config = directory.path().join("grpc.hcl");
    let text = format!("addresses {{ grpc = \"unix://{}\" }}", socket.display());
    std::fs::write(&config, text).expect("written");
    let agent = Agent::start(&["-dev", &format!("-config-file={}", config.display())]);
    let backend = Backend::start("one");
    register(&agent, "web-1", &backend);
    speaks_http(&agent);

    let notify = directory.path().join("notify.sock");
    let waiting = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
    waiting.set_read_timeout(Some(SOON)).expect("possible");
    let port = free_port();
    let grpc = format!("-grpc-addr=unix://{}", socket.display());
    let upstream = format!("-upstream=web:{port}");
    let arguments = ["connect", "proxy", "-service=me", &upstream, &grpc];
    let process = Process::start(agent.cli(&arguments).env("NOTIFY_SOCKET", &notify));
    let mut word = [0; 64];
    let length = waiting
        .recv(&mut word)
        .unwrap_or_else(|error| panic!("{error}: {}", process.text()));
    assert_eq!(&word[..length], b"READY=1\n");
    let reply = Http::local(port)
        .request("GET", "/", &[], b"")
        .expect("it listens already");
    assert_eq!(reply.status, 200, "{}", reply.text());

    // The port is taken now: whoever waits for the second one learns why it ends.
    let mut second = Process::start(agent.cli(&arguments).env("NOTIFY_SOCKET", &notify));
    let status = second.ended(SOON).expect("it ends");
    assert!(!status.success());
    let text = second.text();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
}
