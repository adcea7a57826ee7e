//! Query names, read by Consul's rules.
//!
//! From the right: the domain, then an optional datacenter (`dc1` or `dc1.dc`), then the kind
//! (`service`, `node`, `addr`, ...), and left of it what is looked for. The rightmost label that can
//! be a kind is the kind, so a service may be called `node`. Without a kind, a label that starts
//! with `_` ends an RFC 2782 name: `_web._tcp.consul`.
//!
//! Everything is compared without case; what a client wrote is kept by the caller for the reply.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_server::proto::rr::Name;

use crate::settings::{Domain, Zone};

/// A name in the form it is read in: lower case, dotted, without the last dot.
///
/// `None` for a name with a label that holds a dot or is not UTF-8: nothing in the registry can be
/// meant by it, and joined with dots it would read as another name.
pub(crate) fn folded(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok()?;
        if label.contains('.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(label);
    }
    if text.is_ascii() {
        text.make_ascii_lowercase();
        Some(text)
    } else {
        Some(text.to_lowercase())
    }
}

/// What a name asks for. All parts are folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The zone itself.
    Apex,
    /// `ns.<domain>`, the primary that the SOA record names.
    NameServer,
    Service {
        service: &'a str,
        /// May hold dots.
        tag: Option<&'a str>,
        datacenter: Option<&'a str>,
    },
    Node {
        /// May hold dots.
        node: &'a str,
        datacenter: Option<&'a str>,
    },
    /// `0a000001.addr.<domain>`: the address says itself. Any datacenter will do, as in Consul.
    Address(IpAddr),
    /// A whole address below `in-addr.arpa` or `ip6.arpa`.
    Reverse(IpAddr),
    /// Mesh endpoints, gateways, virtual addresses and prepared queries are read and found empty:
    /// what they would name is not built yet.
    NotBuilt,
    /// A name that only has names below it, such as `service.consul`: it exists, without data
    /// (RFC 8020).
    Empty,
    /// No such name in the zone.
    Nothing,
    /// Not ours to answer.
    Foreign,
}

/// Reads a folded name. The domain is the one that the name is in, for names in the zone.
pub(crate) fn parse<'a, 'z>(zone: &'z Zone, text: &'a str) -> (Subject<'a>, Option<&'z Domain>) {
    for domain in &zone.domains {
        if let Some(rest) = text.strip_suffix(domain.text.as_str()) {
            if rest.is_empty() {
                return (Subject::Apex, Some(domain));
            }
            if let Some(rest) = rest.strip_suffix('.') {
                return (parse_below(zone, rest), Some(domain));
            }
        }
    }
    (parse_arpa(text), None)
}

fn parse_below<'a>(zone: &Zone, rest: &'a str) -> Subject<'a> {
    if rest == "ns" {
        return Subject::NameServer;
    }
    // `end` is where the labels that are still to be read end.
    let mut end = rest.len();
    loop {
        let start = rest[..end].rfind('.').map_or(0, |dot| dot + 1);
        let label = &rest[start..end];
        let suffix = rest[end..].strip_prefix('.').unwrap_or_default();
        let before = rest[..start].strip_suffix('.').unwrap_or_default();
        match label {
            "service" | "node" | "addr" | "connect" | "ingress" | "virtual" | "query" => {
                return match datacenter(suffix) {
                    Err(NoDatacenter) => Subject::Nothing,
                    Ok(dc) if before.is_empty() => {
                        if is_local(zone, dc) {
                            Subject::Empty
                        } else {
                            Subject::Nothing
                        }
                    }
                    Ok(datacenter) => of_kind(label, before, datacenter),
                };
            }
            _ if label.starts_with('_') => {
                return match datacenter(suffix) {
                    Err(NoDatacenter) => Subject::Nothing,
                    Ok(datacenter) => service(&rest[..end], datacenter),
                };
            }
            _ if start == 0 => {
                // No kind: the name of a datacenter, or nothing.
                let is_datacenter = matches!(datacenter(rest), Ok(dc) if is_local(zone, dc));
                return if is_datacenter || rest == "dc" {
                    Subject::Empty
                } else {
                    Subject::Nothing
                };
            }
            _ => end = start - 1,
        }
    }
}

/// More labels than a datacenter has, or of another sort.
struct NoDatacenter;

fn datacenter(suffix: &str) -> Result<Option<&str>, NoDatacenter> {
    let suffix = suffix.strip_suffix(".dc").unwrap_or(suffix);
    match suffix {
        "" => Ok(None),
        label if !label.contains('.') => Ok(Some(label)),
        _ => Err(NoDatacenter),
    }
}

/// Whether a datacenter is the one that is served.
pub(crate) fn is_local(zone: &Zone, datacenter: Option<&str>) -> bool {
    datacenter.is_none_or(|asked| asked == zone.datacenter)
}

fn of_kind<'a>(kind: &str, parts: &'a str, datacenter: Option<&'a str>) -> Subject<'a> {
    match kind {
        "service" => service(parts, datacenter),
        "node" => Subject::Node {
            node: parts,
            datacenter,
        },
        "addr" => match hexadecimal(parts) {
            Some(address) => Subject::Address(address),
            None => Subject::Nothing,
        },
        _ => Subject::NotBuilt,
    }
}

fn service<'a>(parts: &'a str, datacenter: Option<&'a str>) -> Subject<'a> {
    let (before, last) = match parts.rsplit_once('.') {
        Some((before, last)) => (Some(before), last),
        None => (None, parts),
    };
    // RFC 2782: `_service._protocol`, where any protocol but tcp is a tag.
    if let (Some(name), Some(protocol)) = (
        before.and_then(|before| before.strip_prefix('_')),
        last.strip_prefix('_'),
    ) && !name.contains('.')
    {
        return Subject::Service {
            service: name,
            tag: (protocol != "tcp").then_some(protocol),
            datacenter,
        };
    }
    if before.is_none() && last.starts_with('_') {
        // `_tcp.service.consul`: only has names below it.
        return Subject::Empty;
    }
    Subject::Service {
        service: last,
        tag: before,
        datacenter,
    }
}

fn hexadecimal(label: &str) -> Option<IpAddr> {
    if !label.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match label.len() {
        8 => u32::from_str_radix(label, 16)
            .ok()
            .map(|bits| Ipv4Addr::from(bits).into()),
        32 => u128::from_str_radix(label, 16)
            .ok()
            .map(|bits| Ipv6Addr::from(bits).into()),
        _ => None,
    }
}

/// Reads a reverse name (RFC 1035, section 3.5; RFC 3596, section 2.5).
fn parse_arpa(text: &str) -> Subject<'_> {
    if let Some(rest) = text.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = rest.split('.');
        for octet in octets.iter_mut().rev() {
            match labels.next().map(decimal) {
                Some(Some(value)) => *octet = value,
                // A part of an address only has names below it.
                Some(None) | None => return Subject::Foreign,
            }
        }
        return match labels.next() {
            None => Subject::Reverse(Ipv4Addr::from(octets).into()),
            Some(_) => Subject::Foreign,
        };
    }
    if let Some(rest) = text.strip_suffix(".ip6.arpa") {
        let mut bits: u128 = 0;
        let mut count = 0;
        for label in rest.split('.') {
            let (&[digit], true) = (label.as_bytes(), count < 32) else {
                return Subject::Foreign;
            };
            let Some(nibble) = char::from(digit).to_digit(16) else {
                return Subject::Foreign;
            };
            bits |= u128::from(nibble) << (4 * count);
            count += 1;
        }
        if count == 32 {
            return Subject::Reverse(Ipv6Addr::from(bits).into());
        }
    }
    Subject::Foreign
}

fn decimal(label: &str) -> Option<u8> {
    let plain =
        label.bytes().all(|b| b.is_ascii_digit()) && (label.len() == 1 || !label.starts_with('0'));
    if plain { label.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ZoneSettings;

    fn zone() -> Zone {
        Zone::new(ZoneSettings {
            alt_domain: Some("svc.example.com".into()),
            ..ZoneSettings::default()
        })
        .unwrap()
    }

    fn read(name: &str) -> String {
        let zone = zone();
        let name = Name::from_ascii(name).unwrap();
        let Some(text) = folded(&name) else {
            return "unreadable".into();
        };
        match parse(&zone, &text).0 {
            Subject::Service {
                service,
                tag,
                datacenter,
            } => format!("service {service} {tag:?} {datacenter:?}"),
            Subject::Node { node, datacenter } => format!("node {node} {datacenter:?}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_are_read_as_consul_reads_them() {
        for (name, expected) in [
            ("web.service.consul.", "service web None None"),
            ("WEB.Service.CONSUL.", "service web None None"),
            ("web.service.svc.example.com.", "service web None None"),
            ("v1.web.service.consul.", "service web Some(\"v1\") None"),
            ("a.b.web.service.consul.", "service web Some(\"a.b\") None"),
            ("web.service.dc1.consul.", "service web None Some(\"dc1\")"),
            (
                "web.service.dc1.dc.consul.",
                "service web None Some(\"dc1\")",
            ),
            ("web.service.dc2.consul.", "service web None Some(\"dc2\")"),
            ("web.service.x.dc1.consul.", "Nothing"),
            ("_web._tcp.service.consul.", "service web None None"),
            ("_web._tcp.consul.", "service web None None"),
            (
                "_web._v1.dc1.consul.",
                "service web Some(\"v1\") Some(\"dc1\")",
            ),
            (
                "_web._udp.service.consul.",
                "service web Some(\"udp\") None",
            ),
            (
                "_x._web._tcp.service.consul.",
                "service _tcp Some(\"_x._web\") None",
            ),
            ("node.service.consul.", "service node None None"),
            ("service.node.consul.", "node service None"),
            ("n1.node.consul.", "node n1 None"),
            (
                "n1.example.com.node.dc1.consul.",
                "node n1.example.com Some(\"dc1\")",
            ),
            ("0a000001.addr.consul.", "Address(10.0.0.1)"),
            ("0A0000ff.addr.dc9.consul.", "Address(10.0.0.255)"),
            (
                "fd000000000000000000000000000005.addr.dc1.consul.",
                "Address(fd00::5)",
            ),
            ("zz000001.addr.consul.", "Nothing"),
            ("0a0001.addr.consul.", "Nothing"),
            ("x.0a000001.addr.consul.", "Nothing"),
            ("consul.", "Apex"),
            ("svc.example.com.", "Apex"),
            ("ns.consul.", "NameServer"),
            ("service.consul.", "Empty"),
            ("service.dc1.consul.", "Empty"),
            ("service.dc2.consul.", "Nothing"),
            ("dc1.consul.", "Empty"),
            ("dc2.consul.", "Nothing"),
            ("_tcp.service.consul.", "Empty"),
            ("foo.consul.", "Nothing"),
            ("foo.bar.consul.", "Nothing"),
            ("web.connect.consul.", "NotBuilt"),
            ("web.ingress.consul.", "NotBuilt"),
            ("web.virtual.consul.", "NotBuilt"),
            ("a.b.query.dc1.consul.", "NotBuilt"),
            ("1.0.0.10.in-addr.arpa.", "Reverse(10.0.0.1)"),
            ("0.0.10.in-addr.arpa.", "Foreign"),
            ("9.1.0.0.10.in-addr.arpa.", "Foreign"),
            ("01.0.0.10.in-addr.arpa.", "Foreign"),
            ("256.0.0.10.in-addr.arpa.", "Foreign"),
            ("example.com.", "Foreign"),
            ("notconsul.", "Foreign"),
            ("xconsul.", "Foreign"),
            (".", "Foreign"),
            ("a\\.b.service.consul.", "unreadable"),
        ] {
            assert_eq!(read(name), expected, "{name}");
        }
    }

    #[test]
    fn a_sign_is_no_digit() {
        assert_eq!(hexadecimal("+a000001"), None);
        assert_eq!(decimal("+1"), None);
    }

    #[test]
    fn reverse_names_of_ipv6_are_read() {
        let text = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(
            parse_arpa(text),
            Subject::Reverse("fd00::5".parse().unwrap())
        );
        assert_eq!(parse_arpa(&text[2..]), Subject::Foreign);
        assert_eq!(parse_arpa(&format!("0.{text}")), Subject::Foreign);
    }
}
