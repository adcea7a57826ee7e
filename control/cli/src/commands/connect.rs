//! `connect proxy`: run the data plane beside a service instance.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::{ArgMatches, Command};
use serde::Deserialize;
use wharf_agent::telemetry::logs::{LogFormat, LogOutput, Logs, parse_level};
use wharf_config::duration::GoDuration;
use wharf_proxy::{ProxyOptions, Target, Upstream};

use super::{GroupHelp, client_command};
use crate::{
    endpoint::{Endpoint, Transport},
    failure::{Failure, chain},
    flags::{Given, repeated, switch, value},
    http::{Client, Request},
    shell::Shell,
};

const DEFAULT_GRPC_PORT: u16 = 8502;

pub(super) fn command() -> Command {
    Command::new("connect")
        .about("Run the mesh's proxy beside a service")
        .group_help("  $ wharf connect proxy -sidecar-for=web-1\n  $ wharf connect proxy -service=me -upstream=db:5432")
        .subcommand(proxy_command())
}

fn proxy_command() -> Command {
    client_command("proxy", "Run the proxy of a service: its traffic, in and out, goes through it")
        .args([
            value("sidecar-for", "id", "Be the registered sidecar of this service instance"),
            value("proxy-id", "id", "Be this registered proxy instance"),
            value("service", "name", "Be an unregistered proxy that calls in the name of this service"),
            repeated("upstream", "name:[ip:]port", "With -service: reach a service at a local port; may be repeated"),
            value("grpc-addr", "address", "The agent's gRPC address, host:port or unix:///path (default: as the agent at -http-addr says) [WHARF_GRPC_ADDR]"),
            value("admin-port", "port", "Serve /ready, /metrics and /config_dump on this port of 127.0.0.1")
                .value_parser(clap::value_parser!(u16)),
            value("admin-bind", "ip:port", "As -admin-port, on any address").value_parser(clap::value_parser!(SocketAddr)),
            value("workers", "count", "Data threads (default: one per core)")
                .value_parser(clap::value_parser!(u16).range(1..)),
            value("drain-timeout", "duration", "How long running requests may take to end after SIGTERM (default 30s)"),
            value("log-level", "level", "trace, debug, info, warn or err (default info)"),
            switch("log-json", "Log one JSON object a line"),
            value("listen", "address", "Not built yet: register the proxy with the service instead"),
            value("service-addr", "address", "Not built yet: register the proxy with the service instead"),
            switch("register", "Not built yet: register the proxy with the service instead"),
            value("register-id", "suffix", "Not built yet: register the proxy with the service instead"),
            value("pprof-addr", "address", "See -admin-port").hide(true),
        ])
        .long_about(
            "The proxy takes its configuration from the agent, follows every change, and goes on serving while\n\
             the agent is away. It stops on SIGTERM or SIGINT, after its requests have ended. Where\n\
             NOTIFY_SOCKET is set it says READY=1 there once it listens on every port of its first\n\
             configuration.",
        )
        .after_help(
            "  $ wharf connect proxy -sidecar-for=web-1 -admin-port=19000
  $ wharf connect proxy -service=shop -upstream=db:5432 -upstream=cache:127.0.0.2:6379",
        )
}

pub(super) fn proxy(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    for flag in ["listen", "service-addr", "register", "register-id"] {
        if matches.on(flag) || matches.text(flag).is_some() {
            return Err(Failure::new(format!("-{flag} is not built yet"))
                .because("only a proxy the agent knows accepts connections for a service")
                .hint("register the service with `connect { sidecar_service {} }`, then use -sidecar-for"));
        }
    }
    if matches.text("pprof-addr").is_some() {
        shell.note("-pprof-addr has no meaning here and is ignored; -admin-port serves metrics");
    }
    let target = target(matches)?;
    let admin = match (
        matches.get_one::<SocketAddr>("admin-bind"),
        matches.get_one::<u16>("admin-port"),
    ) {
        (Some(address), _) => Some(*address),
        (None, Some(port)) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))),
        (None, None) => None,
    };
    let drain_timeout = match matches.text("drain-timeout") {
        Some(text) => text
            .parse::<GoDuration>()
            .ok()
            .map(GoDuration::to_std)
            .ok_or_else(|| {
                Failure::new(format!("invalid value {text:?} for flag -drain-timeout"))
                    .hint("-drain-timeout=30s")
            })?,
        None => ProxyOptions::DEFAULT_DRAIN_TIMEOUT,
    };
    start_log(matches)?;
    let endpoint = Endpoint::from_flags(matches, shell.env)?;
    let token = endpoint.token.clone();
    let given = matches
        .text("grpc-addr")
        .map(str::to_owned)
        .or_else(|| (shell.env)("WHARF_GRPC_ADDR"))
        .or_else(|| (shell.env)("CONSUL_GRPC_ADDR"))
        .filter(|address| !address.is_empty());
    let agent_grpc = match given {
        Some(address) => grpc_address(&address),
        None => super::block_on(find_grpc(endpoint))?,
    };
    wharf_proxy::run(ProxyOptions {
        agent_grpc,
        token,
        target,
        admin,
        workers: matches
            .get_one::<u16>("workers")
            .map(|count| usize::from(*count)),
        drain_timeout,
        notify: (shell.env)("NOTIFY_SOCKET").filter(|address| !address.is_empty()),
    })
    .map_err(|error| Failure::new(format!("connect proxy: {}", chain(&error))))
}

/// The forms that Consul takes: `host:port`, `http://host:port`, `unix:///path`.
fn grpc_address(given: &str) -> String {
    match given
        .strip_prefix("unix:")
        .map(|path| path.trim_start_matches("//"))
    {
        Some(path) => format!("unix://{path}"),
        None => given.trim_start_matches("http://").to_owned(),
    }
}

/// Exactly one of the three ways to say whose proxy this is.
fn target(matches: &ArgMatches) -> Result<Target, Failure> {
    let upstreams = matches.texts("upstream");
    let target = match (
        matches.text("sidecar-for"),
        matches.text("proxy-id"),
        matches.text("service"),
    ) {
        (Some(id), None, None) => Target::SidecarFor(id.to_owned()),
        (None, Some(id), None) => Target::ProxyId(id.to_owned()),
        (None, None, Some(service)) if upstreams.is_empty() => {
            return Err(Failure::new(format!(
                "a proxy for {service:?} without -upstream would do nothing"
            ))
            .hint(format!(
                "wharf connect proxy -service={service} -upstream=db:5432"
            )));
        }
        (None, None, Some(service)) => {
            return Ok(Target::AdHoc {
                service: service.to_owned(),
                upstreams: upstreams
                    .into_iter()
                    .map(parse_upstream)
                    .collect::<Result<_, _>>()?,
            });
        }
        (None, None, None) => {
            return Err(
                Failure::new("one of -sidecar-for, -proxy-id or -service is needed")
                    .hint("wharf connect proxy -sidecar-for=<id of a service instance>"),
            );
        }
        _ => {
            return Err(Failure::new(
                "-sidecar-for, -proxy-id and -service exclude each other",
            ));
        }
    };
    if !upstreams.is_empty() {
        return Err(Failure::new("-upstream goes with -service only")
            .because("a registered proxy has its upstreams in its registration"));
    }
    Ok(target)
}

/// `name:port` or `name:ip:port`; an IPv6 address stands in brackets.
fn parse_upstream(text: &str) -> Result<Upstream, Failure> {
    let parsed = text.split_once(':').and_then(|(name, local)| {
        let local = match local.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => local.parse().ok()?,
        };
        (!name.is_empty() && local.port() != 0).then(|| Upstream {
            destination: name.to_owned(),
            local,
            datacenter: None,
        })
    });
    parsed.ok_or_else(|| {
        Failure::new(format!("invalid value {text:?} for flag -upstream"))
            .because("it is neither name:port nor name:ip:port")
            .hint("-upstream=db:5432")
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentSelf {
    debug_config: DebugConfig,
}

#[derive(Debug, Deserialize)]
struct DebugConfig {
    /// Not positive when the server is off.
    #[serde(rename = "GRPCPort")]
    grpc_port: i32,
}

/// The gRPC address beside the agent's HTTP address. A proxy may start before its agent, or without being
/// allowed to ask: then it is the usual port.
async fn find_grpc(endpoint: Endpoint) -> Result<String, Failure> {
    let host = match &endpoint.transport {
        Transport::Plain { host, .. } | Transport::Tls { host, .. } => host.clone(),
        Transport::Unix(_) => Ipv4Addr::LOCALHOST.to_string(),
    };
    let mut client = Client::new(endpoint);
    let agent: Option<AgentSelf> = client.fetch_json(Request::get("/v1/agent/self")).await.ok();
    let port = match agent.map(|agent| u16::try_from(agent.debug_config.grpc_port)) {
        None => DEFAULT_GRPC_PORT,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => {
            return Err(Failure::new(format!(
                "the gRPC server of the agent at {} is off",
                client.address()
            ))
            .because("a proxy takes its configuration from there")
            .hint("start the agent with -grpc-port=8502, or name another with -grpc-addr"));
        }
    };
    Ok(if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    })
}

/// The proxy logs on standard error, in the forms of the agent.
fn start_log(matches: &ArgMatches) -> Result<(), Failure> {
    let level = parse_level(matches.text("log-level").unwrap_or("info"))
        .map_err(|error| Failure::new(error.to_string()))?;
    let format = if matches.on("log-json") {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    Logs::install(level, format, LogOutput::Stderr);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        commands::block_on,
        stub::{Reply, Stub},
    };

    fn given(args: &[&str]) -> Result<Target, Failure> {
        let matches = proxy_command()
            .no_binary_name(true)
            .try_get_matches_from(args)
            .expect("well-formed flags");
        target(&matches)
    }

    #[test]
    fn upstreams_have_a_name_and_a_local_address() {
        let local = |text: &str| parse_upstream(text).expect(text).local.to_string();
        assert_eq!(local("db:5432"), "127.0.0.1:5432");
        assert_eq!(local("db:127.0.0.2:5432"), "127.0.0.2:5432");
        assert_eq!(local("db:[::1]:5432"), "[::1]:5432");
        for text in [
            "db",
            "db:",
            ":1",
            "db:0",
            "db:99999",
            "db:host:1",
            "db:127.0.0.1",
        ] {
            assert!(parse_upstream(text).is_err(), "{text}");
        }
    }

    #[test]
    fn grpc_addresses_come_in_the_forms_of_consul() {
        for (given, address) in [
            ("127.0.0.1:8502", "127.0.0.1:8502"),
            ("http://127.0.0.1:8502", "127.0.0.1:8502"),
            ("unix:///run/agent.sock", "unix:///run/agent.sock"),
            ("unix:/run/agent.sock", "unix:///run/agent.sock"),
        ] {
            assert_eq!(grpc_address(given), address);
        }
    }

    #[test]
    fn a_proxy_is_exactly_one_thing() {
        assert_eq!(
            given(&["--sidecar-for=a"]).expect("sidecar"),
            Target::SidecarFor("a".into())
        );
        assert_eq!(
            given(&["--proxy-id=p"]).expect("proxy"),
            Target::ProxyId("p".into())
        );
        assert!(given(&["--service=s", "--upstream=db:1"]).is_ok());
        for args in [
            &[][..],
            &["--service=s"],
            &["--sidecar-for=a", "--proxy-id=p"],
            &["--sidecar-for=a", "--upstream=db:1"],
        ] {
            assert!(given(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_agent_says_where_its_grpc_is() {
        let find = |address: &str| {
            let matches = proxy_command()
                .no_binary_name(true)
                .try_get_matches_from([format!("--http-addr={address}")]);
            let endpoint =
                Endpoint::from_flags(&matches.expect("flags"), &|_| None).expect("endpoint");
            block_on(find_grpc(endpoint))
        };
        for (answer, found) in [
            (
                r#"{"DebugConfig":{"GRPCPort":9502}}"#,
                Some("127.0.0.1:9502"),
            ),
            (r#"{"DebugConfig":{"GRPCPort":-1}}"#, None),
            ("{}", Some("127.0.0.1:8502")),
        ] {
            let stub = Stub::new(move |_| Reply::ok(answer));
            assert_eq!(
                find(&stub.address.to_string()).ok().as_deref(),
                found,
                "{answer}"
            );
        }
        assert_eq!(
            find("unix:///nonexistent").expect("the usual port"),
            "127.0.0.1:8502"
        );
    }
}
