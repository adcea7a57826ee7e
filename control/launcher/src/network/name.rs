//! Names and hardware addresses, derived: what finds something again after a restart needs no memory.

use std::net::Ipv4Addr;

use super::NetworkError;

/// The longest name of an interface (`IFNAMSIZ` without its zero).
const LONGEST: usize = 15;
/// The names of our interfaces begin with this.
pub(super) const PORT_PREFIX: &str = "wv";
/// The interface of an allocation, as it sees it.
pub(super) const INSIDE: &str = "eth0";

/// The port of the bridge that leads to an allocation: of its id, a UUID, as many digits as fit.
pub(super) fn port(alloc: &str) -> Result<String, NetworkError> {
    let digits: String = alloc.chars().filter(|letter| *letter != '-').collect();
    let uuid = digits.len() == 32 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
    if !uuid {
        return Err(NetworkError::AllocId(alloc.to_owned()));
    }
    Ok(format!(
        "{PORT_PREFIX}{}",
        &digits[..LONGEST - PORT_PREFIX.len()]
    ))
}

/// Whether the kernel takes this as the name of an interface.
pub(super) fn is_interface(name: &str) -> bool {
    (1..=LONGEST).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !matches!(name, "." | "..")
}

/// The hardware address of whoever has this address: locally administered, and the same whenever the address is used
/// again, so that no neighbour remembers a wrong one.
pub(super) fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x57, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_after_its_allocation_and_fits() {
        let name = port("5c0f0a52-8d3c-4f6e-9a1f-0123456789ab").expect("a UUID");
        assert_eq!(name, "wv5c0f0a528d3c4");
        assert!(is_interface(&name));
        for bad in ["", "x", "../../etc", "5c0f0a52-8d3c-4f6e-9a1f-0123456789ag"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_interfaces_are_short_and_plain() {
        assert!(is_interface("wharf0"));
        for bad in ["", "..", "a/b", "a b", "sixteen-letters-"] {
            assert!(!is_interface(bad), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_and_of_one_host() {
        let [first, ..] = hardware(Ipv4Addr::new(172, 26, 64, 2));
        assert_eq!(first & 0b11, 0b10, "locally administered, no group");
    }
}
