//! Clients that were written for Consul, unmodified.

use std::process::Command;

use wharf_tests::{Agent, missing, run};

/// What a script exits with when its client is not there.
const NOT_INSTALLED: i32 = 3;

fn script(interpreter: &str, name: &str, client: &str) {
    let agent = Agent::dev();
    if Command::new(interpreter).arg("--version").output().is_err() {
        missing(interpreter);
        return;
    }
    let mut command = Command::new(interpreter);
    command
        .arg(format!("{}/conformance/{name}", env!("CARGO_MANIFEST_DIR")))
        .arg(agent.ports.http.to_string());
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
    script("python3", "py_consul.py", "py-consul");
}

#[test]
fn node_consul() {
    script(
        "node",
        "node_consul.js",
        "package consul for node (see WHARF_NODE_MODULES)",
    );
}
