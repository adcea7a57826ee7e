//! Addresses in configuration: plain ones, Unix sockets, and the common templates of go-sockaddr.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The network interfaces of this machine, as far as templates ask for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// (name of the interface, address), in the system's order.
    pub addresses: Vec<(String, IpAddr)>,
    /// The interface that the default route leaves by.
    pub default_route: Option<String>,
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is not an IP address")]
    NotAnIp(String),
    #[error("one address is needed, not {0}")]
    Count(usize),
    #[error("a Unix socket is not possible here")]
    Unix,
    #[error(
        "template {0:?} is not understood: GetPrivateIP, GetPublicIP and GetInterfaceIP \"name\" are"
    )]
    Template(String),
    #[error("no address for template {0:?}")]
    NoAddress(String),
}

impl Listen {
    /// The port; `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }
}

/// As Consul writes it: `tcp://127.0.0.1:8500`, `unix:///run/wharf.sock`.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address without its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Ip(IpAddr),
    Unix(PathBuf),
}

impl Host {
    pub(super) fn with_port(self, port: u16) -> Listen {
        match self {
            Self::Ip(ip) => Listen::Tcp((ip, port).into()),
            Self::Unix(path) => Listen::Unix(path),
        }
    }
}

/// The addresses in a text, separated by spaces. A repeated one counts once.
pub(super) fn hosts(text: &str, interfaces: &Interfaces) -> Result<Vec<Host>, AddressError> {
    let text = expand(text, interfaces)?;
    let mut hosts = Vec::new();
    for word in text.split_whitespace() {
        let host = match word.strip_prefix("unix://") {
            Some(path) => Host::Unix(PathBuf::from(path)),
            None => Host::Ip(ip(word)?),
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// The one IP address in a text.
pub(super) fn one_ip(text: &str, interfaces: &Interfaces) -> Result<IpAddr, AddressError> {
    match &hosts(text, interfaces)?[..] {
        [Host::Ip(ip)] => Ok(*ip),
        [Host::Unix(_)] => Err(AddressError::Unix),
        several => Err(AddressError::Count(several.len())),
    }
}

/// An IP address, IPv6 with or without brackets.
fn ip(word: &str) -> Result<IpAddr, AddressError> {
    let bare = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'))
        .unwrap_or(word);
    bare.parse()
        .map_err(|_| AddressError::NotAnIp(word.to_owned()))
}

/// Replaces `{{ ... }}` by the addresses it stands for.
fn expand(text: &str, interfaces: &Interfaces) -> Result<String, AddressError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (template, after) = after
            .split_once("}}")
            .ok_or_else(|| AddressError::Template(text.to_owned()))?;
        let addresses = template_addresses(template.trim(), interfaces)?;
        if addresses.is_empty() {
            return Err(AddressError::NoAddress(template.trim().to_owned()));
        }
        out.push_str(before);
        out.push_str(
            &addresses
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        );
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn template_addresses(
    template: &str,
    interfaces: &Interfaces,
) -> Result<Vec<IpAddr>, AddressError> {
    let unknown = || AddressError::Template(template.to_owned());
    let (function, argument) = template
        .split_once(char::is_whitespace)
        .unwrap_or((template, ""));
    let v4 = |wanted: fn(&Ipv4Addr) -> bool| -> Vec<IpAddr> {
        let mut found = interfaces.preferred(wanted);
        found.truncate(1);
        found
    };
    match (function, argument.trim()) {
        ("GetPrivateIP", "") => Ok(v4(Ipv4Addr::is_private)),
        ("GetPublicIP", "") => Ok(v4(is_public)),
        ("GetInterfaceIP", name) => {
            let name = name
                .strip_prefix('"')
                .and_then(|name| name.strip_suffix('"'))
                .ok_or_else(unknown)?;
            let of_interface = interfaces
                .addresses
                .iter()
                .filter(|(interface, _)| interface == name);
            // IPv4 first, as go-sockaddr sorts.
            Ok(of_interface
                .map(|(_, ip)| *ip)
                .min_by_key(IpAddr::is_ipv6)
                .into_iter()
                .collect())
        }
        _ => Err(unknown()),
    }
}

fn is_public(ip: &Ipv4Addr) -> bool {
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_multicast())
}

impl Interfaces {
    /// The IPv4 addresses that fit, those of the default route's interface first.
    fn preferred(&self, fits: fn(&Ipv4Addr) -> bool) -> Vec<IpAddr> {
        let mut found: Vec<(bool, IpAddr)> = self
            .addresses
            .iter()
            .filter(|(_, ip)| matches!(ip, IpAddr::V4(ip) if fits(ip)))
            .map(|(name, ip)| (Some(name) != self.default_route.as_ref(), *ip))
            .collect();
        found.sort_by_key(|(elsewhere, _)| *elsewhere);
        found.into_iter().map(|(_, ip)| ip).collect()
    }

    /// The address to advertise when all addresses are listened on: a private one, of the default route's
    /// interface if there is a choice. The number of equally good ones tells whether it was a guess.
    pub(super) fn advertised(&self) -> (Option<IpAddr>, usize) {
        let private = self.preferred(Ipv4Addr::is_private);
        let first = private.first().copied();
        let on_default_route = |ip: &IpAddr| {
            self.addresses
                .iter()
                .any(|(name, own)| own == ip && Some(name) == self.default_route.as_ref())
        };
        let equal = match first {
            Some(ip) if on_default_route(&ip) => {
                private.iter().filter(|ip| on_default_route(ip)).count()
            }
            _ => private.len(),
        };
        (
            first.or_else(|| self.preferred(is_public).first().copied()),
            equal,
        )
    }

    /// Reads the interfaces from the system.
    pub(super) fn detect() -> Self {
        let addresses = if_addrs::get_if_addrs().unwrap_or_default();
        let default_route = std::fs::read_to_string("/proc/net/route")
            .ok()
            .and_then(|routes| default_route(&routes));
        Self {
            addresses: addresses
                .into_iter()
                .map(|interface| (interface.name.clone(), interface.ip()))
                .collect(),
            default_route,
        }
    }
}

/// The interface of the route to 0.0.0.0/0 in the format of Linux's /proc/net/route.
fn default_route(routes: &str) -> Option<String> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, fields.next()?);
        let mask = fields.nth(5)?;
        (destination == "00000000" && mask == "00000000").then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Interfaces {
        let address = |name: &str, ip: &str| (name.to_owned(), ip.parse().unwrap());
        Interfaces {
            addresses: vec![
                address("lo", "127.0.0.1"),
                address("docker0", "172.17.0.1"),
                address("eth0", "fe80::1"),
                address("eth0", "10.0.0.5"),
                address("eth1", "203.0.113.9"),
            ],
            default_route: Some("eth0".to_owned()),
        }
    }

    fn show(text: &str) -> Result<Vec<String>, String> {
        let hosts = hosts(text, &interfaces()).map_err(|error| error.to_string())?;
        Ok(hosts
            .into_iter()
            .map(|host| host.with_port(1).to_string())
            .collect())
    }

    #[test]
    fn plain_addresses() {
        assert_eq!(
            show("127.0.0.1  ::1 127.0.0.1").unwrap(),
            ["tcp://127.0.0.1:1", "tcp://[::1]:1"]
        );
        assert_eq!(show("[::]").unwrap(), ["tcp://[::]:1"]);
        assert_eq!(show("unix:///run/w.sock").unwrap(), ["unix:///run/w.sock"]);
        assert_eq!(
            show("localhost").unwrap_err(),
            "\"localhost\" is not an IP address"
        );
        assert_eq!(
            one_ip("1.1.1.1 2.2.2.2", &interfaces()),
            Err(AddressError::Count(2))
        );
        assert_eq!(one_ip("", &interfaces()), Err(AddressError::Count(0)));
    }

    #[test]
    fn templates() {
        assert_eq!(show("{{ GetPrivateIP }}").unwrap(), ["tcp://10.0.0.5:1"]);
        assert_eq!(
            show("{{GetPublicIP}} 127.0.0.1").unwrap(),
            ["tcp://203.0.113.9:1", "tcp://127.0.0.1:1"]
        );
        assert_eq!(
            show("{{ GetInterfaceIP \"eth0\" }}").unwrap(),
            ["tcp://10.0.0.5:1"]
        );
        assert_eq!(
            show("{{ GetInterfaceIP \"eth9\" }}").unwrap_err(),
            "no address for template \"GetInterfaceIP \\\"eth9\\\"\""
        );
        let error = show("{{ GetAllInterfaces | attr \"address\" }}").unwrap_err();
        assert!(error.contains("is not understood: GetPrivateIP"), "{error}");
        assert!(show("{{ GetPrivateIP").is_err());
    }

    #[test]
    fn the_advertised_address_is_on_the_default_route() {
        assert_eq!(
            interfaces().advertised(),
            (Some("10.0.0.5".parse().unwrap()), 1)
        );
        let no_route = Interfaces {
            default_route: None,
            ..interfaces()
        };
        assert_eq!(no_route.advertised().1, 2);
        assert_eq!(Interfaces::default().advertised(), (None, 0));
    }

    #[test]
    fn the_default_route_is_read_from_proc() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                      eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_route(routes).as_deref(), Some("eth0"));
        assert_eq!(default_route(""), None);
    }
}
