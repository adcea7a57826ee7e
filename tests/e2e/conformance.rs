//! Clients that were written for Consul, unmodified.

use std::process::Command;

use wharf_tests::{Agent, Ports, missing, run};

/// What a script exits with when its client is not there.
const NOT_INSTALLED: i32 = 3;

/// Runs one of `conformance/` against an agent, with the ports it asks for.
fn script(interpreter: &str, name: &str, client: &str, ports: fn(Ports) -> Vec<u16>) {
    let agent = Agent::dev();
    if Command::new(interpreter).arg("--version").output().is_err() {
        missing(interpreter);
        return;
    }
    let mut command = Command::new(interpreter);
    command
        .arg(format!("{}/conformance/{name}", env!("CARGO_MANIFEST_DIR")))
        .args(ports(agent.ports).iter().map(u16::to_string));
    if let Some(modules) = std::env::var_os("WHARF_NODE_MODULES") {
        command.env("NODE_PATH", modules);
    }
    let ended = run(&mut command);
    if ended.code == Some(NOT_INSTALLED) {
        missing(client);
        return;
    }
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
}

#[test]
fn py_consul() {
    script("python3", "py_consul.py", "py-consul", |ports| {
        vec![ports.http]
    });
}

#[test]
fn node_consul() {
    script(
        "node",
        "node_consul.js",
        "package consul for node (see WHARF_NODE_MODULES)",
        |ports| vec![ports.http],
    );
}

/// Servers found through DNS: SRV and A records.
#[test]
fn haproxy() {
    script("python3", "haproxy.py", "haproxy", |ports| {
        vec![ports.http, ports.dns]
    });
}

/// Consul's own client, built from `conformance/go_api` by whoever runs the tests.
#[test]
fn go_api() {
    let Some(program) = std::env::var_os("WHARF_GO_CLIENT") else {
        missing("program built from tests/conformance/go_api (see WHARF_GO_CLIENT)");
        return;
    };
    let agent = Agent::dev();
    let ended = run(Command::new(program).arg(format!("127.0.0.1:{}", agent.ports.http)));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
}
