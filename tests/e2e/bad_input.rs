//! What nobody should send, and everybody does: clear errors, bounded costs.

use std::{io::Write as _, net::TcpStream, time::Duration};

use serde_json::json;
use wharf_tests::{Agent, SOON, eventually};

#[test]
fn a_value_that_is_too_large_is_413() {
    let agent = Agent::dev();
    let most = vec![b'x'; 512 << 10];
    agent.http.put("/v1/kv/most", &most).ok();
    assert_eq!(agent.http.get("/v1/kv/most?raw").body.len(), most.len());
    let reply = agent
        .http
        .put("/v1/kv/more", [most.as_slice(), b"x"].concat());
    assert_eq!(reply.status, 413, "{}", reply.text());
    assert!(
        reply.text().contains("max size: 524288 bytes"),
        "{}",
        reply.text()
    );
    assert_eq!(agent.http.get("/v1/kv/more").status, 404);
    // A length that is a lie is not believed, and does not make the agent reserve memory.
    let mut stream = TcpStream::connect(agent.http.address).unwrap();
    let head = "PUT /v1/kv/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    agent.http.get("/v1/kv/most").ok();
    assert_eq!(agent.http.get("/v1/kv/x").status, 404);
}

#[test]
fn bodies_that_are_not_what_they_should_be_are_400() {
    let agent = Agent::dev();
    for (path, body, part) in [
        ("/v1/agent/service/register", "{", ""),
        ("/v1/agent/service/register", "[]", ""),
        ("/v1/agent/service/register", "{\"Name\": 7}", ""),
        ("/v1/agent/service/register", "{}", "Missing service name"),
        (
            "/v1/agent/service/register",
            "{\"Name\": \"a\", \"Port\": \"many\"}",
            "",
        ),
        (
            "/v1/agent/service/register",
            "{\"Name\": \"a\", \"Address\": \"0.0.0.0\"}",
            "Invalid service address",
        ),
        (
            "/v1/agent/service/register",
            "{\"Name\": \"a\", \"Check\": {\"HTTP\": \"http://127.0.0.1/\"}}",
            "Interval",
        ),
        (
            "/v1/agent/service/register",
            "{\"Name\": \"a\", \"Check\": {\"HTTP\": \"http://127.0.0.1/\", \"Interval\": \"0s\"}}",
            "Interval",
        ),
        (
            "/v1/agent/service/register",
            "{\"Name\": \"a\", \"Check\": {\"TTL\": \"soon\"}}",
            "duration",
        ),
        ("/v1/agent/check/register", "{\"Name\": \"a\"}", ""),
        (
            "/v1/agent/check/register",
            "{\"Name\": \"a\", \"Telepathy\": \"yes\", \"Interval\": \"1s\"}",
            "",
        ),
        ("/v1/agent/check/register", "{", ""),
        ("/v1/catalog/register", "{", ""),
        ("/v1/config", "{\"Kind\": \"nothing\"}", ""),
        ("/v1/config", "{", ""),
    ] {
        let reply = agent.http.put(path, body);
        assert_eq!(reply.status, 400, "{path} {body}: {}", reply.text());
        assert!(
            !reply.body.is_empty() && reply.text().contains(part),
            "{body}: {}",
            reply.text()
        );
    }
    let reply = agent.http.put("/v1/catalog/register", "{}");
    assert!(
        reply.status >= 400 && reply.text().contains("Must provide node"),
        "{}",
        reply.text()
    );
    // Nothing of it was taken.
    let services = agent.http.get("/v1/agent/services").json();
    assert_eq!(services, json!({}));
}

#[test]
fn deep_and_long_bodies_cost_little() {
    let agent = Agent::dev();
    let deep = format!("{{\"Name\": {}", "[".repeat(200_000));
    assert_eq!(
        agent.http.put("/v1/agent/service/register", deep).status,
        400
    );
    let long = format!("{{\"Name\": \"{}\"}}", "x".repeat(600 << 10));
    assert_eq!(
        agent.http.put("/v1/agent/service/register", long).status,
        413
    );
    let expression = format!("/v1/catalog/nodes?filter={}", "(".repeat(20_000));
    let reply = agent.http.get(&expression);
    assert!((400..=500).contains(&reply.status), "{}", reply.status);
    agent.http.get("/v1/status/leader").ok();
}

#[test]
fn names_that_dns_cannot_say_are_taken_with_a_warning() {
    let agent = Agent::dev();
    let body = json!({"Name": "under_score and space", "Port": 1});
    agent
        .http
        .put("/v1/agent/service/register", body.to_string())
        .ok();
    assert!(agent.process.line("under_score and space", SOON).is_some());
}

#[test]
fn bytes_that_are_no_http_do_not_matter() {
    let agent = Agent::dev();
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        &[0xff; 4096],
    ] {
        for port in [agent.ports.http, agent.ports.grpc, agent.ports.dns] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // It may be closed while we write.
            let _ = stream.write_all(garbage);
        }
    }
    let header = "x".repeat(1 << 20);
    let reply = agent
        .http
        .request("GET", "/v1/status/leader", &[("X-Long", &header)], b"");
    assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status >= 400));
    agent.http.get("/v1/status/leader").ok();
}

#[test]
fn rates_are_enforced_counted_and_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("limits.hcl");
    let limits = |mode: &str| {
        let text = format!(
            "limits {{ request_limits {{ mode = \"{mode}\" read_rate = 1 write_rate = 0.5 }} }}"
        );
        std::fs::write(&file, text).unwrap();
    };
    limits("enforcing");
    let flag = format!("-config-file={}", file.display());
    let agent = Agent::start(&["-dev", &flag]);
    let put = || agent.http.put("/v1/kv/a", "b");
    let statuses: Vec<u16> = (0..20).map(|_| put().status).collect();
    let served = statuses.iter().filter(|status| **status == 200).count();
    // Ten seconds' worth at once, and what comes meanwhile.
    assert!((5..8).contains(&served), "{statuses:?}");
    let refused = (0..20).map(|_| put()).find(|reply| reply.status == 429);
    let text = refused.expect("it goes on").text();
    assert_eq!(
        text.trim(),
        "rate limit exceeded, try again later or against a different server"
    );
    let reads: Vec<u16> = (0..40).map(|_| agent.http.get("/v1/kv/a").status).collect();
    assert!(reads[..10].iter().all(|status| *status == 200), "{reads:?}");
    assert!(reads.contains(&429), "{reads:?}");
    // What an operator needs.
    for path in [
        "/v1/agent/self",
        "/v1/status/leader",
        "/v1/operator/raft/configuration",
    ] {
        assert_eq!(agent.http.get(path).status, 200, "{path}");
    }
    assert!(
        agent
            .process
            .line("beyond limits.request_limits", SOON)
            .is_some()
    );
    let metrics = agent.http.get("/v1/agent/metrics?format=prometheus").text();
    let counted = "wharf_requests_over_limit_total{operation=\"write\",outcome=\"refused\"}";
    assert!(metrics.contains(counted), "{metrics}");

    limits("permissive");
    agent.run(&["reload"]).success();
    assert!((0..40).all(|_| put().status == 200));
    limits("strict");
    let refused = agent.run(&["reload"]).failure();
    assert!(refused.contains("limits.hcl:1:"), "{refused}");
}

#[test]
fn an_agent_out_of_file_descriptors_goes_on_when_there_are_some() {
    let ports = wharf_tests::Ports::choose();
    let agent = Agent::command(ports, &["-dev"]);
    let mut limited = std::process::Command::new("prlimit");
    limited
        .arg("--nofile=96:96")
        .arg(agent.get_program())
        .args(agent.get_args());
    let mut agent = Agent::of_command(ports, &mut limited).unwrap();
    agent.http.put("/v1/kv/a", "b").ok();
    let idle: Vec<_> = (0..150)
        .filter_map(|_| {
            TcpStream::connect_timeout(&agent.http.address, Duration::from_secs(1)).ok()
        })
        .collect();
    assert!(idle.len() > 96);
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", agent.process.id()));
        files.map_or(0, Iterator::count)
    };
    assert!(eventually(SOON, || open() >= 96), "{} are open", open());
    assert!(agent.process.ended(Duration::from_secs(1)).is_none());
    drop(idle);
    assert!(eventually(SOON, || {
        let reply = agent.http.request("GET", "/v1/kv/a?raw", &[], b"");
        reply.is_ok_and(|reply| reply.status == 200)
    }));
    agent.http.put("/v1/kv/a", "c").ok();
}
