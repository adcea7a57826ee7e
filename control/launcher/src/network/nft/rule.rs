//! What the rules of a bridge say.
//!
//! ```text
//! table ip wharf_wharf0 {
//!   chain ports       each mapped port, TCP and UDP, by DNAT
//!   chain guard       nothing of a bridge may reach what this machine serves on loopback only
//!   chain prerouting  what others send to this machine -> ports
//!   chain output      what this machine sends to itself, by loopback or not -> ports
//!   chain postrouting allocations speak to the world as this machine; loopback comes to them as the gateway; and an
//!                     allocation that calls a mapped port meets the gateway, so that the answers come back through it
//!   chain forward     out, answers, mapped ports; nobody routes past the mapping
//! }
//! ```
//!
//! An `accept` in one table does not overrule a `drop` in another: a machine whose own firewall drops what it forwards
//! has to let the bridge through there.

use super::{
    Mapping, PORTS, Table,
    encode::{Compare, Connection, Header, Hook, Meta, Rule},
};
use crate::network::subnet::Subnet;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `RTN_LOCAL`: an address of this machine.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`
const DNATED: u32 = 0x20;
/// `established | related`, as bits of the state.
const KNOWN: u32 = 0x06;

const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// The chains that packets enter by themselves, in order.
pub(super) const CHAINS: [(&str, Hook); 5] = [
    (
        "guard",
        Hook {
            kind: "filter",
            number: Hook::PREROUTING,
            priority: -300,
        },
    ),
    (
        "prerouting",
        Hook {
            kind: "nat",
            number: Hook::PREROUTING,
            priority: -100,
        },
    ),
    (
        "output",
        Hook {
            kind: "nat",
            number: Hook::OUTPUT,
            priority: -100,
        },
    ),
    (
        "postrouting",
        Hook {
            kind: "nat",
            number: Hook::POSTROUTING,
            priority: 100,
        },
    ),
    (
        "forward",
        Hook {
            kind: "filter",
            number: Hook::FORWARD,
            priority: 0,
        },
    ),
];

/// The rules that do not depend on allocations, with their chains.
pub(super) fn fixed(table: &Table) -> Vec<(&'static str, Rule)> {
    let bridge = &*table.bridge;
    let rule = Rule::default;
    vec![
        (
            "guard",
            rule()
                .enters(bridge)
                .network(DESTINATION, loopback())
                .drop(),
        ),
        ("prerouting", rule().for_this_machine().jump(PORTS)),
        ("output", rule().for_this_machine().jump(PORTS)),
        (
            "postrouting",
            rule()
                .network(SOURCE, table.subnet)
                .leaves(Compare::Unequal, bridge)
                .masquerade(),
        ),
        (
            "postrouting",
            rule()
                .network(SOURCE, loopback())
                .leaves(Compare::Equal, bridge)
                .masquerade(),
        ),
        (
            "postrouting",
            rule()
                .network(SOURCE, table.subnet)
                .leaves(Compare::Equal, bridge)
                .with_any(Connection::Status, DNATED)
                .masquerade(),
        ),
        ("forward", rule().enters(bridge).accept()),
        (
            "forward",
            rule()
                .leaves(Compare::Equal, bridge)
                .with_any(Connection::State, KNOWN)
                .accept(),
        ),
        (
            "forward",
            rule()
                .leaves(Compare::Equal, bridge)
                .with_any(Connection::Status, DNATED)
                .accept(),
        ),
        ("forward", rule().leaves(Compare::Equal, bridge).drop()),
    ]
}

/// The rules of a mapped port.
pub(super) fn mapped(mapping: &Mapping) -> [Rule; 2] {
    [TCP, UDP].map(|protocol| {
        Rule::default()
            .meta(Meta::Protocol)
            .compare(Compare::Equal, &[protocol])
            .payload(Header::Transport, 2, 2)
            .compare(Compare::Equal, &mapping.host.to_be_bytes())
            .destination(mapping.address, mapping.to)
            .comment(&mapping.alloc)
    })
}

fn loopback() -> Subnet {
    Subnet::LOOPBACK
}

impl Rule {
    fn enters(self, interface: &str) -> Rule {
        self.meta(Meta::InputInterface)
            .compare(Compare::Equal, &name(interface))
    }

    fn leaves(self, how: Compare, interface: &str) -> Rule {
        self.meta(Meta::OutputInterface)
            .compare(how, &name(interface))
    }

    fn for_this_machine(self) -> Rule {
        self.destination_type()
            .compare(Compare::Equal, &LOCAL.to_ne_bytes())
    }

    /// The address at this offset of the header is in a subnet. Whole bytes are compared as they are, as `nft` does.
    fn network(self, offset: u32, subnet: Subnet) -> Rule {
        let network = subnet.network().octets();
        let prefix = usize::from(subnet.prefix());
        if prefix > 0 && prefix.is_multiple_of(8) {
            let length = prefix / 8;
            self.payload(Header::Network, offset, u32::from(subnet.prefix()) / 8)
                .compare(Compare::Equal, &network[..length])
        } else {
            self.payload(Header::Network, offset, 4)
                .mask(subnet.mask())
                .compare(Compare::Equal, &network)
        }
    }

    fn with_any(self, key: Connection, bits: u32) -> Rule {
        self.connection(key)
            .mask(bits.to_ne_bytes())
            .compare(Compare::Unequal, &[0; 4])
    }
}

/// The name of an interface as the kernel compares it: with all its 16 bytes.
fn name(interface: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = interface.len().min(15);
    bytes[..length].copy_from_slice(&interface.as_bytes()[..length]);
    bytes
}
