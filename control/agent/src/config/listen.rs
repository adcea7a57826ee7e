//! Where the agent listens and what it tells others its address is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use super::Listen;
use super::address::{self, Host, Interfaces};
use super::file::FileConfig;
use super::problems::Problems;
use super::runtime::{Listeners, TlsConfig};

pub(super) fn ip_key(
    p: &mut Problems<'_>,
    key: &str,
    text: &str,
    interfaces: &Interfaces,
) -> IpAddr {
    address::one_ip(text, interfaces).unwrap_or_else(|error| {
        p.at(key, format!("{key}: {error}"));
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    })
}

/// The address to tell others when all are listened on.
pub(super) fn detect_advertised(
    interfaces: &Interfaces,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) -> IpAddr {
    match interfaces.advertised() {
        (Some(ip), 0 | 1) => ip,
        (Some(ip), _) => {
            p.at(
                "bind_addr",
                "Multiple private IPv4 addresses found. Please configure one with 'bind' and/or 'advertise'.",
            );
            ip
        }
        (None, _) => {
            warnings.push(
                "no IPv4 address besides loopback: advertising 127.0.0.1, which no other machine can reach".to_owned(),
            );
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        }
    }
}

/// A port as given: `None` is off (-1), 0 any free one.
fn port(p: &mut Problems<'_>, name: &str, given: i64) -> Option<u16> {
    if given == -1 {
        return None;
    }
    u16::try_from(given)
        .map_err(|_| {
            let key = format!("ports.{name}");
            p.at(
                &key,
                format!("{key}: {given} is not a port: 1 to 65535, -1 for off, 0 for any free one"),
            );
        })
        .ok()
}

pub(super) fn port_range(
    p: &mut Problems<'_>,
    name: &str,
    min: i64,
    max: i64,
) -> RangeInclusive<u16> {
    let (min_name, max_name) = (format!("{name}_min_port"), format!("{name}_max_port"));
    let (low, high) = (
        port(p, &min_name, min).unwrap_or_default(),
        port(p, &max_name, max).unwrap_or_default(),
    );
    if low > high {
        p.at(
            &format!("ports.{min_name}"),
            format!("{min_name} must be less than {max_name}. To disable, set both to zero."),
        );
        return 0..=0;
    }
    low..=high
}

pub(super) fn listeners(
    file: &FileConfig,
    tls: &TlsConfig,
    bind_addr: IpAddr,
    interfaces: &Interfaces,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) -> Listeners {
    let client = p.or_default("client_addr", address::hosts(&file.client_addr, interfaces));
    let hosts = |p: &mut Problems<'_>, name: &str, own: &Option<String>| match own {
        Some(text) => p.or_default(
            &format!("addresses.{name}"),
            address::hosts(text, interfaces),
        ),
        None => client.clone(),
    };
    let ports = &file.ports;
    let listens = |port: Option<u16>, hosts: Vec<Host>| -> Vec<Listen> {
        port.map_or_else(Vec::new, |port| {
            hosts.into_iter().map(|host| host.with_port(port)).collect()
        })
    };

    let dns_hosts = hosts(p, "dns", &file.addresses.dns);
    if dns_hosts.iter().any(|host| matches!(host, Host::Unix(_))) {
        p.at("addresses.dns", "DNS address cannot be a unix socket");
    }
    let dns = listens(port(p, "dns", ports.dns), dns_hosts);
    let dns = dns.into_iter().filter_map(|listen| match listen {
        Listen::Tcp(address) => Some(address),
        Listen::Unix(_) => None,
    });
    let http_hosts = hosts(p, "http", &file.addresses.http);
    let https_hosts = hosts(p, "https", &file.addresses.https);
    let grpc_hosts = hosts(p, "grpc", &file.addresses.grpc);
    let grpc_tls_hosts = hosts(p, "grpc_tls", &file.addresses.grpc_tls);
    let mut listen = Listeners {
        server: port(p, "server", ports.server)
            .filter(|_| file.server)
            .map(|port| SocketAddr::new(bind_addr, port)),
        http: listens(port(p, "http", ports.http), http_hosts),
        https: listens(port(p, "https", ports.https), https_hosts),
        dns: dns.collect(),
        grpc: listens(port(p, "grpc", ports.grpc), grpc_hosts),
        grpc_tls: Vec::new(),
    };
    if !listen.https.is_empty() && !tls.https.can_serve() {
        p.at(
            "ports.https",
            "ports.https needs a certificate: set tls.https.cert_file and tls.https.key_file",
        );
    }
    // On by default on servers, but only where there is a certificate to serve.
    let grpc_tls = port(
        p,
        "grpc_tls",
        ports
            .grpc_tls
            .unwrap_or(if file.server { 8503 } else { -1 }),
    );
    if tls.grpc.can_serve() {
        listen.grpc_tls = listens(grpc_tls, grpc_tls_hosts);
    } else if ports.grpc_tls.is_some() && grpc_tls.is_some() {
        warnings.push(
            "ports.grpc_tls is not served: it needs a certificate (tls.grpc.cert_file, tls.grpc.key_file)".to_owned(),
        );
    }
    check_clashes(&listen, p);
    listen
}

/// Two servers of one agent cannot have the same address and port.
fn check_clashes(listen: &Listeners, p: &mut Problems<'_>) {
    let server = listen.server.map(Listen::Tcp);
    let dns: Vec<Listen> = listen.dns.iter().copied().map(Listen::Tcp).collect();
    let named = [
        ("dns", &dns[..]),
        ("http", &listen.http),
        ("https", &listen.https),
        ("grpc", &listen.grpc),
        ("grpc_tls", &listen.grpc_tls),
        ("server", server.as_slice()),
    ];
    let all: Vec<(&str, &Listen)> = named
        .iter()
        .flat_map(|(name, list)| list.iter().map(move |one| (*name, one)))
        .collect();
    for (index, (name, one)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..index].iter().find(|(_, earlier)| clash(earlier, one)) {
            // Of the two, the one that was written down.
            let key = |name: &str| p.document.at(["ports", name]);
            let place = key(name).or_else(|| key(other));
            p.at_node(
                place,
                format!("{name} address {one} already configured for {other}"),
            );
        }
    }
}

fn clash(a: &Listen, b: &Listen) -> bool {
    match (a, b) {
        (Listen::Tcp(a), Listen::Tcp(b)) => {
            let same_ip = a.ip() == b.ip()
                || a.is_ipv4() == b.is_ipv4()
                    && (a.ip().is_unspecified() || b.ip().is_unspecified());
            a.port() == b.port() && a.port() != 0 && same_ip
        }
        (Listen::Unix(a), Listen::Unix(b)) => a == b,
        _ => false,
    }
}
