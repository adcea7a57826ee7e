//! Health checks that the agent runs, and what they do to health and DNS.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use serde_json::{Value, json};
use wharf_tests::{Agent, Backend, SOON, eventually, missing, run};

/// What `dig +short` answers, line by line; `None` without `dig`.
pub(crate) fn dig(agent: &Agent, words: &[&str]) -> Option<Vec<String>> {
    let port = agent.ports.dns.to_string();
    let mut command = Command::new("dig");
    command
        .args(["@127.0.0.1", "-p", &port, "+time=5", "+tries=1"])
        .args(words);
    if Command::new("dig").arg("-v").output().is_err() {
        missing("dig");
        return None;
    }
    Some(
        run(&mut command)
            .success()
            .lines()
            .map(str::to_owned)
            .collect(),
    )
}

fn register(agent: &Agent, body: &Value) {
    agent
        .http
        .put("/v1/agent/service/register", body.to_string())
        .ok();
}

fn passing(agent: &Agent, service: &str) -> usize {
    let rows = agent
        .http
        .get(&format!("/v1/health/service/{service}?passing"))
        .json();
    rows.as_array().map_or(0, Vec::len)
}

#[test]
fn an_instance_whose_server_dies_leaves_health_and_dns() {
    let agent = Agent::dev();
    let mut backends: Vec<_> = ["one", "two", "three"].map(Backend::start).into();
    for (number, backend) in backends.iter().enumerate() {
        register(
            &agent,
            &json!({
                "ID": format!("web-{number}"), "Name": "web", "Port": backend.port(),
                "Address": format!("127.0.0.{}", number + 1),
                "Check": {
                    "HTTP": format!("http://127.0.0.1:{}/", backend.port()),
                    "Interval": "200ms", "Timeout": "2s",
                },
            }),
        );
    }
    assert!(eventually(SOON, || passing(&agent, "web") == 3));
    let addresses = |agent: &Agent| {
        let mut lines = dig(agent, &["+short", "web.service.consul", "A"])?;
        lines.sort();
        Some(lines)
    };
    if let Some(lines) = addresses(&agent) {
        assert_eq!(lines, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let srv = dig(&agent, &["web.service.consul", "SRV"])
            .unwrap()
            .join("\n");
        assert!(srv.contains(&format!(" {} ", backends[0].port())), "{srv}");
        assert!(srv.contains("ADDITIONAL SECTION"), "{srv}");
    }

    // The process dies: its port refuses connections.
    drop(backends.remove(1));
    assert!(eventually(SOON, || passing(&agent, "web") == 2));
    let state = agent.http.get("/v1/health/state/critical").json();
    assert_eq!(state[0]["ServiceID"], "web-1");
    assert_ne!(state[0]["Output"], "");
    if let Some(lines) = addresses(&agent) {
        assert_eq!(lines, ["127.0.0.1", "127.0.0.3"]);
    }

    // It says that it is ill; and that it is well again.
    backends[1].answer("503 Service Unavailable");
    assert!(eventually(SOON, || passing(&agent, "web") == 1));
    backends[1].answer("200 OK");
    assert!(eventually(SOON, || passing(&agent, "web") == 2));
}

#[test]
fn names_in_dns_follow_the_catalog() {
    let agent = Agent::start(&["-dev", "-node=alpha"]);
    register(
        &agent,
        &json!({
            "Name": "web", "Port": 80, "Address": "10.0.0.7", "Tags": ["blue"],
        }),
    );
    for (name, answer) in [
        ("web.service.consul", "10.0.0.7"),
        ("WEB.service.consul", "10.0.0.7"),
        ("blue.web.service.consul", "10.0.0.7"),
        ("web.service.dc1.consul", "10.0.0.7"),
        ("alpha.node.consul", "127.0.0.1"),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let Some(lines) = dig(&agent, &["+short", transport, name, "A"]) else {
                return;
            };
            assert_eq!(lines, [answer], "{name} {transport}");
        }
    }
    let full = |words: &[&str]| dig(&agent, words).unwrap_or_default().join("\n");
    assert!(full(&["red.web.service.consul"]).contains("NXDOMAIN"));
    assert!(full(&["nobody.service.consul"]).contains("SOA"));
    let rfc2782 = full(&["+short", "_web._blue.service.consul", "SRV"]);
    assert!(rfc2782.starts_with("1 1 80 "), "{rfc2782}");
    agent.http.put("/v1/agent/service/deregister/web", "").ok();
    assert!(full(&["web.service.consul"]).contains("NXDOMAIN"));
}

#[test]
fn a_time_to_live_that_passes_is_critical() {
    let agent = Agent::dev();
    register(
        &agent,
        &json!({"Name": "batch", "Check": {"TTL": "500ms", "Status": "passing"}}),
    );
    assert!(eventually(SOON, || passing(&agent, "batch") == 0));
    let check = agent.http.get("/v1/health/checks/batch").json()[0].clone();
    assert_eq!(check["Status"], "critical");
    agent
        .http
        .put("/v1/agent/check/pass/service:batch", "")
        .ok();
    assert!(eventually(SOON, || passing(&agent, "batch") == 1));
    assert!(eventually(SOON, || passing(&agent, "batch") == 0));
}

#[test]
fn tcp_and_alias_checks_follow_what_they_look_at() {
    let agent = Agent::dev();
    let backend = Backend::start("db");
    register(
        &agent,
        &json!({
            "Name": "db", "Port": backend.port(),
            "Check": {"TCP": format!("127.0.0.1:{}", backend.port()), "Interval": "200ms"},
        }),
    );
    register(
        &agent,
        &json!({"Name": "shadow", "Check": {"AliasService": "db"}}),
    );
    assert!(eventually(SOON, || passing(&agent, "db") == 1
        && passing(&agent, "shadow") == 1));
    drop(backend);
    assert!(eventually(SOON, || passing(&agent, "db") == 0
        && passing(&agent, "shadow") == 0));
}

#[test]
fn scripts_run_only_when_that_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("check.sh");
    fs::write(&script, "#!/bin/sh\necho all is well\nexit 0\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let body = json!({
        "Name": "scripted",
        "Check": {"Args": [script], "Interval": "200ms", "Timeout": "5s"},
    })
    .to_string();
    let agent = Agent::dev();
    let refused = agent.http.put("/v1/agent/service/register", &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(
        refused.text().to_lowercase().contains("script"),
        "{}",
        refused.text()
    );

    let agent = Agent::start(&["-dev", "-enable-script-checks"]);
    agent.http.put("/v1/agent/service/register", &body).ok();
    assert!(eventually(SOON, || passing(&agent, "scripted") == 1));
    let check = agent.http.get("/v1/agent/checks").json()["service:scripted"].clone();
    assert!(check["Output"].as_str().unwrap().contains("all is well"));
    fs::write(&script, "#!/bin/sh\nexit 2\n").unwrap();
    assert!(eventually(SOON, || passing(&agent, "scripted") == 0));
}
