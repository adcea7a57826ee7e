//! Interfaces, addresses and routes: what is asked of the kernel's routing family (rtnetlink(7)).
//!
//! Constants are those of `linux/rtnetlink.h`, `linux/if_link.h` and `linux/if_addr.h`.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::{
    netlink::{Fields, Message, NetlinkError, Socket, attributes, flag, u32_of},
    subnet::Subnet,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// The index of the loopback interface in every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// The bridge it is a port of; 0 if of none.
    pub(super) master: u32,
}

/// An `ifinfomsg`.
fn interface(family: u8, index: u32, up: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        bytes[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    bytes
}

// === requests ===

/// A bridge, up. Its hardware address is given: otherwise it would be that of a port, and change with the ports.
pub(super) fn create_bridge(name: &str, hardware: [u8; 6]) -> Message {
    Message::new(
        format!("create the bridge {name}"),
        RTM_NEWLINK,
        flag::CREATE | flag::EXCL,
        &interface(AF_UNSPEC, 0, true),
        |fields| {
            fields.text(IFLA_IFNAME, name);
            fields.bytes(IFLA_ADDRESS, &hardware);
            fields.nested(IFLA_LINKINFO, |kind| kind.text(IFLA_INFO_KIND, "bridge"));
        },
    )
}

/// Two interfaces with a wire between them: `name` here, up, as a port of `bridge`; `inside` in another network
/// namespace, still down.
pub(super) fn create_veth(
    name: &str,
    bridge: u32,
    inside: &str,
    hardware: [u8; 6],
    namespace: BorrowedFd<'_>,
) -> Message {
    let namespace = namespace.as_raw_fd().cast_unsigned();
    let peer = |peer: &mut Fields| {
        // It cannot come up before it is wired.
        peer.raw(&interface(AF_UNSPEC, 0, false));
        peer.text(IFLA_IFNAME, inside);
        peer.bytes(IFLA_ADDRESS, &hardware);
        peer.u32(IFLA_NET_NS_FD, namespace);
    };
    Message::new(
        format!("create the interface {name}"),
        RTM_NEWLINK,
        flag::CREATE | flag::EXCL,
        &interface(AF_UNSPEC, 0, true),
        |fields| {
            fields.text(IFLA_IFNAME, name);
            fields.u32(IFLA_MASTER, bridge);
            fields.nested(IFLA_LINKINFO, |kind| {
                kind.text(IFLA_INFO_KIND, "veth");
                kind.nested(IFLA_INFO_DATA, |data| data.nested(VETH_INFO_PEER, peer));
            });
        },
    )
}

/// Lets a port of a bridge send a frame back where it came from: an allocation that calls itself by its host port.
pub(super) fn hairpin(name: &str, index: u32) -> Message {
    Message::new(
        format!("switch {name} to hairpin mode"),
        RTM_SETLINK,
        0,
        &interface(AF_BRIDGE, index, false),
        |fields| fields.nested(IFLA_PROTINFO, |port| port.bytes(IFLA_BRPORT_MODE, &[1])),
    )
}

pub(super) fn bring_up(name: &str, index: u32) -> Message {
    Message::new(
        format!("bring {name} up"),
        RTM_NEWLINK,
        0,
        &interface(AF_UNSPEC, index, true),
        |_| {},
    )
}

pub(super) fn delete(name: &str) -> Message {
    Message::new(
        format!("remove the interface {name}"),
        RTM_DELLINK,
        0,
        &interface(AF_UNSPEC, 0, false),
        |fields| fields.text(IFLA_IFNAME, name),
    )
}

/// Gives an interface its address. What it has already stays as it is.
pub(super) fn address(name: &str, index: u32, address: Ipv4Addr, subnet: Subnet) -> Message {
    let mut head = [AF_INET, subnet.prefix(), 0, 0, 0, 0, 0, 0];
    head[4..].copy_from_slice(&index.to_ne_bytes());
    Message::new(
        format!("give {name} the address {address}"),
        RTM_NEWADDR,
        flag::CREATE,
        &head,
        |fields| {
            fields.bytes(IFA_LOCAL, &address.octets());
            fields.bytes(IFA_ADDRESS, &address.octets());
            fields.bytes(IFA_BROADCAST, &subnet.broadcast().octets());
        },
    )
}

pub(super) fn default_route(gateway: Ipv4Addr, index: u32) -> Message {
    let head = [
        AF_INET,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Message::new(
        format!("set the default route to {gateway}"),
        RTM_NEWROUTE,
        flag::CREATE,
        &head,
        |fields| {
            fields.bytes(RTA_GATEWAY, &gateway.octets());
            fields.u32(RTA_OIF, index);
        },
    )
}

// === questions ===

/// The interface of this name, if there is one.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let question = Message::new(
        format!("look for the interface {name}"),
        RTM_GETLINK,
        0,
        &interface(AF_UNSPEC, 0, false),
        |fields| fields.text(IFLA_IFNAME, name),
    );
    let mut found = None;
    match socket.ask(&question, |payload| found = found.take().or(link(payload))) {
        Ok(()) => Ok(found),
        Err(error) if is_missing(&error.source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every interface.
pub(super) fn all(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let question = Message::new(
        "list the interfaces",
        RTM_GETLINK,
        flag::DUMP,
        &interface(AF_UNSPEC, 0, false),
        |_| {},
    );
    let mut links = Vec::new();
    socket.ask(&question, |payload| links.extend(link(payload)))?;
    Ok(links)
}

fn link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_of(payload.get(4..8)?)?,
        up: u32_of(payload.get(8..12)?)? & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(text).into_owned();
            }
            IFLA_MASTER => link.master = u32_of(value)?,
            _ => {}
        }
    }
    Some(link)
}

/// A route of IPv4 to something narrower than everything, and the name of its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Subnet,
    pub(super) interface: String,
}

/// The routes of every table but the default ones.
pub(super) fn routes(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let question = Message::new(
        "list the routes",
        RTM_GETROUTE,
        flag::DUMP,
        &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        |_| {},
    );
    let mut found = Vec::new();
    socket.ask(&question, |payload| found.extend(route(payload)))?;
    let names: BTreeMap<u32, String> = all(socket)?
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect();
    let named = |(to, index)| Route {
        to,
        interface: names
            .get(&index)
            .cloned()
            .unwrap_or_else(|| "no interface".to_owned()),
    };
    Ok(found.into_iter().map(named).collect())
}

fn route(payload: &[u8]) -> Option<(Subnet, u32)> {
    let prefix = *payload.get(1)?;
    let (mut to, mut index) = (None, 0);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            RTA_DST => to = Some(<[u8; 4]>::try_from(value).ok()?),
            RTA_OIF => index = u32_of(value)?,
            _ => {}
        }
    }
    // Without a destination it is a default route.
    Some((Subnet::new(to?.into(), prefix)?, index))
}

/// Whether an error says that the thing is not there.
pub(super) fn is_missing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NODEV, Errno::NOENT]
        .iter()
        .any(|missing| error.raw_os_error() == Some(missing.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(1, &mut bytes);
        bytes
    }

    #[test]
    fn a_bridge_is_described_whole() {
        let bytes = encoded(&create_bridge("wharf0", [2, 0, 172, 26, 64, 1]));
        let fields: Vec<_> = attributes(&bytes[32..]).collect();
        assert_eq!(fields[0], (IFLA_IFNAME, &b"wharf0\0"[..]));
        assert_eq!(fields[1], (IFLA_ADDRESS, &[2, 0, 172, 26, 64, 1][..]));
        let kind: Vec<_> = attributes(fields[2].1).collect();
        assert_eq!(kind, [(IFLA_INFO_KIND, &b"bridge\0"[..])]);
        assert_eq!(u32_of(&bytes[24..]), Some(IFF_UP));
    }

    #[test]
    fn links_and_routes_are_read_and_bad_ones_passed_over() {
        let mut payload = interface(AF_UNSPEC, 7, true).to_vec();
        let mut fields = Fields::default();
        fields.text(IFLA_IFNAME, "wv0");
        fields.u32(IFLA_MASTER, 3);
        let message = Message::new("", 0, 0, &[], |inside| {
            inside.text(IFLA_IFNAME, "wv0");
            inside.u32(IFLA_MASTER, 3);
        });
        payload.extend_from_slice(&encoded(&message)[16..]);
        let read = link(&payload).expect("a link");
        assert_eq!((read.index, &*read.name, read.master), (7, "wv0", 3));
        assert!(read.up);
        for end in 0..16 {
            assert_eq!(link(&payload[..end]), None);
        }
        assert_eq!(route(&[2, 24, 0]), None);
        let default = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        assert_eq!(route(&default), None, "a default route is no obstacle");
    }
}
