use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};
use tokio_stream::wrappers::TcpListenerStream;
use wharf_registry::{
    Command,
    command::Register,
    model::{HealthCheck, Node, NodeService},
};

use super::*;
use crate::{
    cluster::testing::Solo,
    local::{HttpCheck, LocalKey, Options, Registration, Thresholds},
};

// === what is checked, on loopback ===

/// Answers each connection with the next of `answers`; tells the requests.
async fn http_server(answers: Vec<String>) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::channel(answers.len().max(1));
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            tell.send(request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, told)
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

fn http_check(url: String) -> HttpCheck {
    HttpCheck {
        url: url.into(),
        ..HttpCheck::default()
    }
}

#[tokio::test]
async fn the_http_status_is_the_verdict() {
    let verdicts = [
        ("200 OK", CheckStatus::Passing),
        ("204 No Content", CheckStatus::Passing),
        ("429 Too Many Requests", CheckStatus::Warning),
        ("404 Not Found", CheckStatus::Critical),
        ("503 Service Unavailable", CheckStatus::Critical),
    ];
    for (status, verdict) in verdicts {
        let body = if status.starts_with("204") {
            ""
        } else {
            "hello"
        };
        let (address, mut requests) = http_server(vec![answer(status, body)]).await;
        let url = format!("http://{address}/health?full");
        let finding = http::probe(&http_check(url.clone()), 4096).await;
        assert_eq!(finding.status, verdict);
        assert_eq!(
            finding.output,
            format!("HTTP GET {url}: {status} Output: {body}")
        );
        let request = requests.recv().await.unwrap().to_ascii_lowercase();
        assert!(request.starts_with("get /health?full http/1.1\r\n"));
        assert!(request.contains("user-agent: consul health check\r\n"));
        assert!(request.contains("connection: close\r\n"));
        assert!(request.contains(&format!("host: {address}\r\n")));
    }
}

#[tokio::test]
async fn a_request_is_sent_as_it_was_defined() {
    let (address, mut requests) = http_server(vec![answer("200 OK", "")]).await;
    let check = HttpCheck {
        method: "POST".into(),
        headers: BTreeMap::from([
            ("Host".into(), vec!["web.test".into()]),
            ("X-Two".into(), vec!["1".into(), "2".into()]),
            ("User-Agent".into(), vec!["me".into()]),
        ]),
        body: "ping".into(),
        ..http_check(format!("http://{address}"))
    };
    assert_eq!(http::probe(&check, 4096).await.status, CheckStatus::Passing);
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("post / http/1.1\r\n"), "{request}");
    for header in [
        "host: web.test",
        "x-two: 1",
        "x-two: 2",
        "user-agent: me",
        "content-length: 4",
    ] {
        assert!(
            request.contains(&format!("{header}\r\n")),
            "{header} in {request}"
        );
    }
    assert!(!request.contains("consul health check"));
}

#[tokio::test]
async fn a_body_without_end_is_read_to_the_limit() {
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(10_000));
    let (address, _requests) = http_server(vec![endless]).await;
    let finding = http::probe(&http_check(format!("http://{address}/")), 100).await;
    assert!(
        finding
            .output
            .ends_with(&format!("Output: {}", "x".repeat(100)))
    );
    assert_eq!(finding.status, CheckStatus::Passing);
}

#[tokio::test]
async fn redirects_are_followed_unless_they_are_disabled() {
    let moved =
        |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let both = vec![moved("/new"), answer("200 OK", "")];
    let (address, mut requests) = http_server(both.clone()).await;
    let url = format!("http://{address}/old");
    assert_eq!(
        http::probe(&http_check(url), 64).await.status,
        CheckStatus::Passing
    );
    requests.recv().await.unwrap();
    assert!(requests.recv().await.unwrap().starts_with("GET /new "));

    let (address, _requests) = http_server(both).await;
    let stays = HttpCheck {
        disable_redirects: true,
        ..http_check(format!("http://{address}/old"))
    };
    assert_eq!(http::probe(&stays, 64).await.status, CheckStatus::Critical);

    let (address, _requests) = http_server(vec![moved("/again"); 11]).await;
    let finding = http::probe(&http_check(format!("http://{address}/")), 64).await;
    assert!(
        finding.output.ends_with("stopped after 10 redirects"),
        "{}",
        finding.output
    );
}

#[tokio::test]
async fn what_cannot_be_asked_is_critical() {
    let address = nobody().await;
    for url in [
        format!("http://{address}/"),
        "ftp://x/".into(),
        "http://".into(),
        "nonsense url".into(),
    ] {
        let finding = http::probe(&http_check(url.clone()), 64).await;
        assert_eq!(finding.status, CheckStatus::Critical, "{url}");
        assert!(
            finding.output.starts_with(&format!("Get {url:?}: ")),
            "{}",
            finding.output
        );
    }
    let (address, _requests) = http_server(vec!["SSH-2.0-OpenSSH\r\n".into()]).await;
    let finding = http::probe(&http_check(format!("http://{address}/")), 64).await;
    assert_eq!(finding.status, CheckStatus::Critical);
}

#[tokio::test]
async fn https_is_verified_unless_told_otherwise() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer("200 OK", "").as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    let mut check = http_check(format!("https://127.0.0.1:{port}/"));
    let finding = http::probe(&check, 64).await;
    assert_eq!(finding.status, CheckStatus::Critical);
    assert!(finding.output.contains("certificate"), "{}", finding.output);
    check.tls.skip_verify = true;
    let finding = http::probe(&check, 64).await;
    assert_eq!(finding.status, CheckStatus::Passing, "{}", finding.output);
    let trusting = check.tls;
    let finding = tcp(&format!("localhost:{port}"), Some(&trusting)).await;
    assert_eq!(finding.status, CheckStatus::Passing, "{}", finding.output);
}

#[tokio::test]
async fn tcp_connects_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // By name both families are tried; only one of them listens.
    let by_name = format!("localhost:{}", address.port());
    let finding = tcp(&by_name, None).await;
    assert_eq!(
        finding,
        Finding::passing(format!("TCP connect {by_name}: Success"))
    );
    let address = nobody().await;
    let finding = tcp(&address.to_string(), None).await;
    assert_eq!(finding.status, CheckStatus::Critical);
    assert!(
        finding
            .output
            .ends_with(&format!("dial tcp {address}: connect: connection refused")),
        "{}",
        finding.output
    );
    assert_eq!(
        tcp("no-port", None).await.output,
        "address no-port: missing port in address"
    );
}

#[tokio::test]
async fn udp_is_down_only_if_it_refuses() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let soon = Duration::from_millis(50);
    assert_eq!(udp(&address, soon).await.status, CheckStatus::Passing);
    drop(silent);
    let finding = udp(&address, Duration::from_secs(5)).await;
    assert_eq!(finding.status, CheckStatus::Critical, "{}", finding.output);
}

#[tokio::test]
async fn grpc_health_and_http2_pings_are_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("up", tonic_health::ServingStatus::Serving)
        .await;
    reporter
        .set_service_status("down", tonic_health::ServingStatus::NotServing)
        .await;
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let ask = async |name| h2::grpc(&address, name, None).await;
    assert_eq!(
        ask("").await,
        Finding::passing(format!("gRPC check {address}: success"))
    );
    assert_eq!(
        ask("up").await,
        Finding::passing(format!("gRPC check {address}/up: success"))
    );
    let down = ask("down").await;
    assert_eq!(down.status, CheckStatus::Critical);
    assert!(
        down.output.ends_with("serving status: NOT_SERVING"),
        "{}",
        down.output
    );
    let unknown = ask("nobody").await;
    assert_eq!(unknown.status, CheckStatus::Critical);
    assert!(
        unknown.output.contains("gRPC status 5"),
        "{}",
        unknown.output
    );
    let pinged = h2::ping(&address, None).await;
    assert_eq!(
        pinged,
        Finding::passing("HTTP2 ping was successful".to_owned())
    );
    server.abort();

    let address = nobody().await.to_string();
    assert_eq!(
        h2::grpc(&address, "", None).await.status,
        CheckStatus::Critical
    );
    assert_eq!(h2::ping(&address, None).await.status, CheckStatus::Critical);
    let (address, _requests) = http_server(vec![answer("400 Bad Request", "")]).await;
    let not_http2 = h2::grpc(&address.to_string(), "", None).await;
    assert_eq!(not_http2.status, CheckStatus::Critical);
}

// === programs ===

async fn run(script: &str, time: Duration, limit: usize) -> Finding {
    script::probe(&["sh".into(), "-c".into(), script.into()], time, limit).await
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_exit_code_is_the_verdict() {
    let ran = run("echo out; echo err >&2; exit 0", LONG, 4096).await;
    assert_eq!(ran.status, CheckStatus::Passing);
    assert!(ran.output.contains("out\n") && ran.output.contains("err\n"));
    assert_eq!(run("exit 1", LONG, 10).await.status, CheckStatus::Warning);
    assert_eq!(run("exit 2", LONG, 10).await.status, CheckStatus::Critical);
    assert_eq!(
        run("kill -9 $$", LONG, 10).await.status,
        CheckStatus::Critical
    );
    let missing = script::probe(&["/no/such/program".into()], LONG, 10).await;
    assert_eq!(missing.status, CheckStatus::Critical);
    assert!(missing.output.starts_with("cannot run /no/such/program: "));
}

#[tokio::test]
async fn only_the_end_of_an_output_is_kept() {
    let ran = run("printf '%1000s' ''; printf abcdefghij", LONG, 10).await;
    assert_eq!(ran.output, "Captured 10 of 1010 bytes\n...\nabcdefghij");
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_with_its_children() {
    let ran = run(
        "sleep 1000 & echo $!; wait",
        Duration::from_millis(300),
        100,
    )
    .await;
    assert_eq!(ran.status, CheckStatus::Critical);
    let (title, child) = ran
        .output
        .split_once("\n\n")
        .expect("what was written is told");
    assert_eq!(title, "Timed out (300ms) running check");
    let child: u32 = child.trim().parse().unwrap();
    // Killed, but perhaps not yet collected by init: then its command line is empty.
    let gone = async {
        while std::fs::read(format!("/proc/{child}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, gone).await.expect("the child is gone");
}

// === the runner ===

struct Agent {
    local: LocalState,
    solo: Arc<Solo>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(scripts: ScriptPolicy) -> Agent {
        let node = Node {
            name: "n1".into(),
            address: "127.0.0.1".into(),
            ..Node::default()
        };
        let local = LocalState::open(Options::default(), node).unwrap();
        let solo = Arc::new(Solo::new());
        let runner = CheckRunner::new(local.clone(), solo.clone(), scripts);
        let stop = CancellationToken::new();
        let task = tokio::spawn(runner.run(stop.clone()));
        Agent {
            local,
            solo,
            stop,
            task,
        }
    }

    async fn register(&self, id: &str, kind: CheckKind) {
        let spec = CheckSpec {
            id: id.into(),
            name: id.into(),
            kind,
            ..CheckSpec::default()
        };
        self.local.register_check(spec).await.unwrap();
    }

    fn status(&self, id: &str) -> (CheckStatus, String) {
        let check = self.local.check(id).unwrap();
        (check.status, check.output.to_string())
    }

    /// Waits until a check of the node says this.
    async fn until(&self, id: &str, status: CheckStatus) {
        self.until_in("", id, status).await;
    }

    async fn until_in(&self, service: &str, id: &str, status: CheckStatus) {
        let mut health = self.local.watch(LocalKey::Health(service.into()));
        let reached = async {
            while self.status(id).0 != status {
                health.changed().await;
            }
        };
        let found = timeout(LONG * 4, reached).await;
        assert!(found.is_ok(), "{id} is {:?}", self.status(id));
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn silence_turns_a_ttl_check_critical_and_a_report_brings_it_back() {
    let agent = Agent::start(ScriptPolicy::default());
    agent
        .register("ttl", CheckKind::Ttl(Duration::from_secs(10)))
        .await;
    let passing = CheckStatus::Passing;
    for _ in 0..3 {
        agent
            .local
            .report_ttl("ttl", passing, "well")
            .await
            .unwrap();
        sleep(Duration::from_secs(9)).await;
        assert_eq!(agent.status("ttl"), (passing, "well".into()));
    }
    sleep(Duration::from_secs(2)).await;
    let expired = "TTL expired (last output before timeout follows): well";
    assert_eq!(agent.status("ttl"), (CheckStatus::Critical, expired.into()));
    agent.local.report_ttl("ttl", passing, "").await.unwrap();
    sleep(Duration::from_secs(9)).await;
    assert_eq!(agent.status("ttl").0, passing);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        agent.status("ttl"),
        (CheckStatus::Critical, "TTL expired".into())
    );
    agent.end().await;
}

#[tokio::test]
async fn a_check_runs_until_it_is_deregistered() {
    let agent = Agent::start(ScriptPolicy::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Str = listener.local_addr().unwrap().to_string().into();
    agent
        .register("tcp", CheckKind::Tcp { address, tls: None })
        .await;
    agent.until("tcp", CheckStatus::Passing).await;
    drop(listener);
    agent.until("tcp", CheckStatus::Critical).await;
    agent.local.deregister_check("tcp").await.unwrap();
    assert!(agent.local.check("tcp").is_none());
    agent.end().await;
}

#[tokio::test]
async fn scripts_run_only_where_they_are_allowed() {
    let args = || CheckKind::Script {
        args: ["true".into()].into(),
    };
    let refusing = Agent::start(ScriptPolicy {
        from_files: true,
        from_api: false,
    });
    refusing.register("script", args()).await;
    let mut health = refusing.local.watch(LocalKey::Health("".into()));
    while refusing.status("script").1.is_empty() {
        health.changed().await;
    }
    let (status, output) = refusing.status("script");
    assert_eq!(status, CheckStatus::Critical);
    assert!(
        output.starts_with("Scripts are disabled on this agent"),
        "{output}"
    );
    drop(health);
    refusing.end().await;

    let allowing = Agent::start(ScriptPolicy {
        from_files: false,
        from_api: true,
    });
    allowing.register("script", args()).await;
    allowing.until("script", CheckStatus::Passing).await;
    allowing.end().await;
}

fn web(deregister_after: u64) -> Registration {
    Registration {
        service: NodeService {
            id: "web-1".into(),
            name: "web".into(),
            ..NodeService::default()
        },
        checks: vec![CheckSpec {
            id: "web-ttl".into(),
            name: "web-ttl".into(),
            service_id: "web-1".into(),
            kind: CheckKind::Ttl(Duration::from_secs(3600)),
            deregister_after: Duration::from_secs(deregister_after),
            thresholds: Thresholds::default(),
            ..CheckSpec::default()
        }],
        ..Registration::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_alias_says_what_its_target_says() {
    let agent = Agent::start(ScriptPolicy::default());
    let alias = |node: &str| CheckKind::Alias {
        node: node.into(),
        service: "web-1".into(),
    };
    agent.register("alias", alias("")).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(agent.status("alias").1, "Service web-1 could not be found");
    agent.local.register_service(web(0)).await.unwrap();
    agent
        .local
        .report_ttl("web-ttl", CheckStatus::Passing, "")
        .await
        .unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        agent.status("alias"),
        (CheckStatus::Passing, "All checks passing.".into())
    );
    agent
        .local
        .report_ttl("web-ttl", CheckStatus::Warning, "hm")
        .await
        .unwrap();
    sleep(Duration::from_millis(1)).await;
    let failing = "Aliased check \"web-ttl\" failing: hm";
    assert_eq!(
        agent.status("alias"),
        (CheckStatus::Warning, failing.into())
    );

    agent.register("far", alias("n2")).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        agent.status("far").1,
        "Service web-1 could not be found on node n2"
    );
    let register = Register {
        node: Node {
            name: "n2".into(),
            address: "10.0.0.2".into(),
            ..Node::default()
        },
        service: Some(web(0).service),
        checks: vec![HealthCheck {
            id: "c".into(),
            name: "c".into(),
            service_id: "web-1".into(),
            status: CheckStatus::Passing,
            ..HealthCheck::default()
        }],
        ..Register::default()
    };
    let cluster: &dyn Cluster = &*agent.solo;
    cluster
        .write(Command::Register(Box::new(register)))
        .await
        .unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        agent.status("far"),
        (CheckStatus::Passing, "All checks passing.".into())
    );
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stays_critical_is_deregistered() {
    let agent = Agent::start(ScriptPolicy::default());
    agent.local.register_service(web(60)).await.unwrap();
    agent
        .local
        .report_ttl("web-ttl", CheckStatus::Passing, "")
        .await
        .unwrap();
    sleep(Duration::from_secs(300)).await;
    agent
        .local
        .report_ttl("web-ttl", CheckStatus::Critical, "")
        .await
        .unwrap();
    sleep(Duration::from_secs(59)).await;
    assert!(agent.local.service("web-1").is_some());
    sleep(Duration::from_secs(32)).await;
    assert!(agent.local.service("web-1").is_none());
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_checks_start_spread_over_their_interval() {
    let agent = Agent::start(ScriptPolicy::default());
    for index in 0..50 {
        let address: Str = "not an address".into();
        let spec = CheckSpec {
            id: format!("c{index}").into(),
            name: "c".into(),
            kind: CheckKind::Tcp { address, tls: None },
            interval: Duration::from_secs(100),
            ..CheckSpec::default()
        };
        agent.local.register_check(spec).await.unwrap();
    }
    let ran = || {
        let checks = agent.local.checks().into_values();
        checks.filter(|check| !check.output.is_empty()).count()
    };
    sleep(Duration::from_secs(50)).await;
    let half = ran();
    assert!(
        (5..=45).contains(&half),
        "{half} of 50 after half the interval"
    );
    sleep(Duration::from_secs(51)).await;
    assert_eq!(ran(), 50);
    agent.end().await;
}
