//! Start, stop, reload; and a start that cannot be.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use wharf_tests::{Agent, Ports, SOON, eventually, run};

#[test]
fn the_banner_says_where_everything_listens_and_what_to_try() {
    let agent = Agent::dev();
    let text = agent.process.text();
    let Ports {
        http, grpc, dns, ..
    } = agent.ports;
    for part in [
        format!("http://127.0.0.1:{http}"),
        format!("127.0.0.1:{grpc}"),
        format!("127.0.0.1:{dns} (UDP and TCP)"),
        format!("curl http://127.0.0.1:{http}/v1/kv/"),
        format!("dig @127.0.0.1 -p {dns}"),
    ] {
        assert!(text.contains(&part), "{part} is not in the banner:\n{text}");
    }
}

#[test]
fn a_leader_answers_two_seconds_after_the_start() {
    let started = Instant::now();
    let agent = Agent::dev();
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    let leader = agent.http.get("/v1/status/leader").json();
    assert_eq!(leader, format!("127.0.0.1:{}", agent.ports.server));
    assert_eq!(agent.http.get("/v1/status/peers").json()[0], leader);
}

#[test]
fn signals_end_it_promptly_with_queries_parked_and_connections_silent() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut agent = Agent::dev();
        let http = agent.http;
        let connect = || TcpStream::connect(("127.0.0.1", agent.ports.http)).unwrap();
        let _silent: Vec<_> = (0..20).map(|_| connect()).collect();
        let parked: Vec<_> = (0..20)
            .map(|number| {
                let path = format!("/v1/kv/nothing/{number}?index=1000000&wait=5m");
                thread::spawn(move || http.request("GET", &path, &[], b""))
            })
            .collect();
        assert!(eventually(SOON, || agent.metric("wharf_watchers") >= 20.0));
        let told = Instant::now();
        let status = agent.process.stop(signal);
        let elapsed = told.elapsed();
        assert!(status.success(), "{status:?}");
        assert!(elapsed < Duration::from_secs(3), "{signal:?}: {elapsed:?}");
        for query in parked {
            // Whether with an answer or an error, the client is not left waiting.
            let _ = query.join();
        }
    }
}

#[test]
fn a_taken_port_is_one_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let ports = Ports::choose();
    let taken = TcpListener::bind(("127.0.0.1", ports.dns)).unwrap();
    let data_flag = format!("-data-dir={}", data.display());
    let flags = [
        "-server",
        "-bootstrap",
        "-bind=127.0.0.1",
        data_flag.as_str(),
    ];
    let ended = run(&mut Agent::command(ports, &flags));
    let error = ended.failure();
    assert!(error.contains(&ports.dns.to_string()), "{error}");
    assert!(error.contains("DNS"), "{error}");
    assert!(error.to_lowercase().contains("in use"), "{error}");
    assert_eq!(error.matches("in use").count(), 1, "{error}");
    // Nothing is left: no directory, and no port that an agent could not take now.
    assert!(!data.exists(), "the failed start left {}", data.display());
    drop(taken);
    Agent::on(ports, &flags).unwrap();
}

#[test]
fn a_wrong_flag_is_told_with_the_nearest_name() {
    let error = run(&mut Agent::command(
        Ports::choose(),
        &["-dev", "-datacentre=x"],
    ))
    .failure();
    assert!(error.contains("datacentre"), "{error}");
    assert!(error.contains("-datacenter"), "{error}");
    let error = run(&mut Agent::command(
        Ports::choose(),
        &["-dev", "-log-level=loud"],
    ))
    .failure();
    assert!(error.contains("loud"), "{error}");
}

#[test]
fn a_server_without_a_data_directory_is_told_what_to_try() {
    let ended = run(&mut Agent::command(Ports::choose(), &["-server"]));
    let error = ended.failure();
    for part in ["data_dir cannot be empty", "-data-dir=DIR", "-dev"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.hcl");
    let flag = format!("-config-file={}", path.display());
    for (text, parts) in [
        (
            "log_level = \"info\"\nservises {\n}\n",
            ["agent.hcl:2", "services"],
        ),
        ("datacenter = \n", ["agent.hcl", "1"]),
        ("ports {\n  https = \"many\"\n}\n", ["agent.hcl:2", "https"]),
    ] {
        fs::write(&path, text).unwrap();
        let error = run(&mut Agent::command(Ports::choose(), &["-dev", &flag])).failure();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
    let error = run(&mut Agent::command(
        Ports::choose(),
        &["-dev", "-config-file=/nowhere/x.hcl"],
    ));
    assert!(error.failure().contains("/nowhere/x.hcl"));
}

#[test]
fn a_reload_reads_services_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("services.hcl");
    let services = |names: &[&str]| {
        let blocks = names
            .iter()
            .map(|name| format!("service {{\n  name = \"{name}\"\n  port = 80\n}}\n"));
        fs::write(&path, blocks.collect::<String>()).unwrap();
    };
    services(&["first"]);
    let agent = Agent::start(&[
        "-dev",
        &format!("-config-dir={}", directory.path().display()),
    ]);
    let known = |name: &str| {
        agent
            .http
            .get("/v1/catalog/services")
            .json()
            .get(name)
            .is_some()
    };
    assert!(eventually(SOON, || known("first")));

    services(&["second"]);
    agent.process.signal(Signal::HUP);
    assert!(eventually(SOON, || known("second") && !known("first")));

    services(&["second", "third"]);
    agent.run(&["reload"]).success();
    assert!(eventually(SOON, || known("third")));

    services(&["fourth"]);
    agent.http.put("/v1/agent/reload", "").ok();
    assert!(eventually(SOON, || known("fourth") && !known("third")));

    // What cannot be read changes nothing, and is said.
    fs::write(&path, "service {\n  nome = \"fifth\"\n}\n").unwrap();
    let reply = agent.http.put("/v1/agent/reload", "");
    assert_eq!(reply.status, 500, "{}", reply.text());
    assert!(reply.text().contains("services.hcl:2"), "{}", reply.text());
    assert!(known("fourth"));
}

#[test]
fn flags_of_consul_without_a_meaning_here_are_accepted_and_said() {
    let agent = Agent::start(&["-dev", "-serf-lan-port=4321", "-raft-protocol=3"]);
    assert!(
        agent.process.text().contains("serf"),
        "{}",
        agent.process.text()
    );
}

#[test]
fn flags_do_what_they_say() {
    let agent = Agent::start(&["-dev", "-node=alpha", "-datacenter=east", "-log-json"]);
    let own = agent.http.get("/v1/agent/self").json();
    assert_eq!(own["Config"]["NodeName"], "alpha");
    assert_eq!(own["Config"]["Datacenter"], "east");
    assert_eq!(own["Config"]["Server"], true);
    let ports = serde_json::json!({"Plaintext": agent.ports.grpc, "TLS": -1});
    assert_eq!(own["xDS"]["Ports"], ports);
    assert_eq!(own["xDS"]["Port"], agent.ports.grpc);
    let tags = &agent.http.get("/v1/agent/members").json()[0]["Tags"];
    assert_eq!(tags["grpc_port"], agent.ports.grpc.to_string());
    assert_eq!(tags["port"], agent.ports.server.to_string());
    assert_eq!(agent.http.get("/v1/catalog/datacenters").json()[0], "east");
    let line = agent.process.line("{", SOON).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(line.is_object());
}

#[test]
fn leave_ends_it() {
    let mut agent = Agent::dev();
    agent.run(&["leave"]).success();
    assert!(
        agent
            .process
            .ended(SOON)
            .is_some_and(|status| status.success())
    );
}
