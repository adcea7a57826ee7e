//! What a person sees first: who the agent is, where it listens, and what to try.

use std::{fmt::Write as _, io::Write as _};

use crate::{
    config::RuntimeConfig,
    context::{CONSUL_VERSION, NodeInfo, VERSION},
};

/// Prints the banner. A closed standard output does not keep the agent from running.
pub(crate) fn print(config: &RuntimeConfig, node: &NodeInfo, listening: &[(&'static str, String)]) {
    let text = text(config, node, listening);
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn text(config: &RuntimeConfig, node: &NodeInfo, listening: &[(&'static str, String)]) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:>14}: {value}");
    };
    line(
        "Version",
        &format!("wharf {VERSION}, answering the API of Consul {CONSUL_VERSION}"),
    );
    line("Node name", &format!("{} ({})", node.name, node.id));
    line("Datacenter", &node.datacenter);
    let data = match &config.data_dir {
        Some(directory) => directory.display().to_string(),
        None => "in memory: everything is gone when the agent ends".to_owned(),
    };
    line("Data", &data);
    for (what, address) in listening {
        line(what, address);
    }
    let find = |what: &str| {
        listening
            .iter()
            .find(|(own, _)| *own == what)
            .map(|(_, address)| address.as_str())
    };
    let mut tries = Vec::new();
    if let Some(http) = find("HTTP").filter(|http| http.starts_with("http://")) {
        tries.push(format!("curl -X PUT -d hello {http}/v1/kv/greeting"));
        tries.push(format!("curl {http}/v1/kv/greeting?raw"));
    }
    if let Some((ip, port)) = find("DNS").and_then(|dns| dns.split(' ').next()?.rsplit_once(':')) {
        let ip = ip.trim_matches(['[', ']']);
        let domain = config.domain.trim_end_matches('.');
        tries.push(format!("dig @{ip} -p {port} consul.service.{domain}"));
    }
    tries.push("wharf members".to_owned());
    let mut banner = format!("==> wharf agent is running\n{text}\n    Try:\n");
    for command in tries {
        let _ = writeln!(banner, "      {command}");
    }
    banner.push_str("\n==> The log follows; Ctrl-C ends the agent:\n");
    banner
}
