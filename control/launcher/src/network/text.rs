//! What an allocation finds in `/etc`: resolv.conf, hosts, hostname.

use std::net::{IpAddr, Ipv4Addr};

/// Resolvers look at no more (resolv.conf(5)).
const MOST_NAMESERVERS: usize = 3;

/// `/etc/resolv.conf` of an allocation on a bridge: wharf's DNS at the gateway first, which refuses names that are not
/// its own so that a resolver goes on; then what the machine itself asks, unless it is on its loopback, where an
/// allocation cannot reach it. `host` is the machine's own file. A bare name is looked for among the services.
pub fn resolv_conf(gateway: Option<Ipv4Addr>, host: &str, domain: &str) -> String {
    let of = |keyword: &'static str| {
        host.lines().filter_map(move |line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some(keyword)).then_some(words)
        })
    };
    let theirs = of("nameserver")
        .filter_map(|mut words| words.next()?.parse::<IpAddr>().ok())
        .filter(|server| !server.is_loopback() && !server.is_unspecified());
    let mut servers: Vec<IpAddr> = gateway.map(IpAddr::V4).into_iter().chain(theirs).collect();
    servers.truncate(MOST_NAMESERVERS);
    // The last of their search lines counts.
    let searched = of("search").next_back().into_iter().flatten();
    let mut text = String::from("# Written by wharf.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text.push_str(&format!("search service.{}", domain.trim_matches('.')));
    for domain in searched {
        text.push(' ');
        text.push_str(domain);
    }
    text.push_str("\noptions timeout:1 attempts:2\n");
    text
}

/// `/etc/hosts` of an allocation that has this name and address.
pub fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {hostname}\n")
}

/// `/etc/hostname`, and what the kernel is told: the name of the allocation as far as it is a host name, at most 63
/// bytes (RFC 1123 §2.1).
pub fn hostname(alloc_name: &str) -> String {
    let plain: String = alloc_name
        .chars()
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' => letter,
            'A'..='Z' => letter.to_ascii_lowercase(),
            _ => '-',
        })
        .collect();
    let mut name = String::new();
    for part in plain.split('-').filter(|part| !part.is_empty()) {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
    }
    name.truncate(63);
    let name = name.trim_end_matches('-');
    match name.is_empty() {
        true => "allocation".to_owned(),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_asked_first_and_loopback_never() {
        let host = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nnameserver 10.0.0.3\n\
                    nameserver 10.0.0.4\nnameserver nonsense\nsearch old\nsearch corp.example lab\noptions edns0\n";
        let text = resolv_conf(Some(Ipv4Addr::new(172, 26, 64, 1)), host, "consul.");
        assert_eq!(
            text,
            "# Written by wharf.\nnameserver 172.26.64.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n\
             search service.consul corp.example lab\noptions timeout:1 attempts:2\n"
        );
        let without = resolv_conf(None, "", "consul");
        assert!(!without.contains("nameserver"), "{without}");
    }

    #[test]
    fn host_names_are_host_names() {
        assert_eq!(hostname("web.web[0]"), "web-web-0");
        assert_eq!(hostname("Über_Job.g[12]"), "ber-job-g-12");
        assert_eq!(hostname("[]"), "allocation");
        assert_eq!(hostname(&"a.".repeat(100)).len(), 63);
    }

    #[test]
    fn hosts_has_the_allocation_itself() {
        let text = hosts("web-0", Ipv4Addr::new(172, 26, 64, 2));
        assert!(text.ends_with("172.26.64.2 web-0\n"), "{text}");
    }
}
