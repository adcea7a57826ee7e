//! IPv4 subnets.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A range of IPv4 addresses, such as 172.26.64.0/24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("{0:?} is no subnet such as 172.26.64.0/24")]
    Form(String),
    #[error("{0:?} has bits behind its prefix: the subnet is {1}")]
    Bits(String, Subnet),
}

impl Subnet {
    /// The addresses by which a machine speaks with itself.
    pub(super) const LOOPBACK: Subnet = Subnet {
        network: Ipv4Addr::new(127, 0, 0, 0),
        prefix: 8,
    };

    /// The subnet that an address is in. `None` for a prefix above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Subnet> {
        (prefix <= 32).then(|| Subnet {
            network: (address.to_bits() & mask(prefix)).into(),
            prefix,
        })
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its first address, which names it.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Its last address.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network.to_bits() | !mask(self.prefix)).into()
    }

    /// The first address that a host may have: the node's own.
    pub fn gateway(self) -> Ipv4Addr {
        (self.network.to_bits() | 1).into()
    }

    pub(super) fn mask(self) -> [u8; 4] {
        mask(self.prefix).to_be_bytes()
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let form = || SubnetError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        let subnet = Subnet::new(address, prefix).ok_or_else(form)?;
        match subnet.network == address {
            true => Ok(subnet),
            false => Err(SubnetError::Bits(text.to_owned(), subnet)),
        }
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subnet, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect(text)
    }

    #[test]
    fn a_subnet_knows_its_ends() {
        let net = subnet("172.26.64.0/24");
        assert_eq!(net.gateway().to_string(), "172.26.64.1");
        assert_eq!(net.broadcast().to_string(), "172.26.64.255");
        assert!(net.contains("172.26.64.9".parse().expect("ip")));
        assert!(!net.contains("172.26.65.9".parse().expect("ip")));
        assert!(subnet("0.0.0.0/0").contains("1.2.3.4".parse().expect("ip")));
    }

    #[test]
    fn overlap_is_mutual() {
        for (a, b, overlap) in [
            ("172.26.0.0/16", "172.26.64.0/24", true),
            ("172.26.64.0/24", "172.26.64.0/24", true),
            ("172.26.64.0/24", "172.26.65.0/24", false),
            ("172.26.64.7/32", "172.26.64.0/24", true),
        ] {
            assert_eq!(subnet(a).overlaps(subnet(b)), overlap, "{a} {b}");
            assert_eq!(subnet(b).overlaps(subnet(a)), overlap, "{b} {a}");
        }
    }

    #[test]
    fn what_is_no_subnet_says_so() {
        for text in ["", "172.26.64.0", "172.26.64.0/33", "x/24", "::/0"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        let error = "172.26.64.7/24".parse::<Subnet>().expect_err("bits");
        assert!(error.to_string().ends_with("172.26.64.0/24"), "{error}");
    }
}
