//! Clients that were written for Consul, unmodified: against an agent that is all there is, and through a client agent of
//! three servers.

use std::{net::SocketAddr, process::Command};

use wharf_tests::{Agent, Http, SOON, eventually, missing, run};

use crate::cluster::servers::Site;

/// What a script exits with when its client is not there.
const NOT_INSTALLED: i32 = 3;

/// Where an agent listens.
#[derive(Clone, Copy)]
struct Places {
    http: SocketAddr,
    dns: SocketAddr,
}

impl Places {
    fn of(http: Http, dns: u16) -> Places {
        Places {
            http: http.address,
            dns: SocketAddr::new(http.address.ip(), dns),
        }
    }
}

/// With one agent after the other.
fn each(test: impl Fn(Places)) {
    let agent = Agent::dev();
    test(Places::of(agent.http, agent.ports.dns));
    drop(agent);
    let site = Site::new(&["-hcl=platform { enabled = false }"]);
    let servers = site.three();
    let agent = site.client(21, &[]);
    let members = || agent.http.request("GET", "/v1/agent/members", &[], b"");
    let all = || {
        let known = members().is_ok_and(|reply| reply.json().as_array().map(Vec::len) == Some(4));
        known
            && ["s1", "s2", "s3", "c21"]
                .iter()
                .all(|node| servers[0].health_of(node) == "passing")
    };
    assert!(eventually(SOON, all), "{}", agent.process.text());
    test(Places::of(agent.http, agent.ports().dns));
}

/// Runs one of `conformance/`, with the addresses it asks for.
fn script(interpreter: &str, name: &str, client: &str, places: fn(Places) -> Vec<SocketAddr>) {
    if Command::new(interpreter).arg("--version").output().is_err() {
        missing(interpreter);
        return;
    }
    each(|agent| {
        let mut command = Command::new(interpreter);
        command
            .arg(format!("{}/conformance/{name}", env!("CARGO_MANIFEST_DIR")))
            .args(places(agent).iter().map(SocketAddr::to_string));
        if let Some(modules) = std::env::var_os("WHARF_NODE_MODULES") {
            command.env("NODE_PATH", modules);
        }
        let ended = run(&mut command);
        if ended.code == Some(NOT_INSTALLED) {
            missing(client);
            return;
        }
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    });
}

#[test]
fn py_consul() {
    script("python3", "py_consul.py", "py-consul", |agent| {
        vec![agent.http]
    });
}

#[test]
fn node_consul() {
    script(
        "node",
        "node_consul.js",
        "package consul for node (see WHARF_NODE_MODULES)",
        |agent| vec![agent.http],
    );
}

/// Servers found through DNS: SRV and A records.
#[test]
fn haproxy() {
    script("python3", "haproxy.py", "haproxy", |agent| {
        vec![agent.http, agent.dns]
    });
}

/// Consul's own client, built from `conformance/go_api` by whoever runs the tests.
#[test]
fn go_api() {
    let Some(program) = std::env::var_os("WHARF_GO_CLIENT") else {
        missing("program built from tests/conformance/go_api (see WHARF_GO_CLIENT)");
        return;
    };
    each(|agent| {
        let ended = run(Command::new(&program).arg(agent.http.to_string()));
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    });
}
