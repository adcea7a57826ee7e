//! Which allocation has which address and ports: kept on disk with atomic renames, so that a restarted agent knows
//! what the kernel has.
//!
//! What it says is of one boot of the machine and of one network: interfaces, namespaces and rules do not outlive it,
//! and neither do the addresses. So nothing is synced: after a crash of the machine the file is void anyway.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{NetworkError, PortMapping, subnet::Subnet};

const VERSION: u32 = 1;

/// What is on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Book {
    version: u32,
    #[serde(flatten)]
    whereabouts: Whereabouts,
    pub(super) bridge: String,
    pub(super) subnet: Subnet,
    /// The address that was given out last.
    last: Option<Ipv4Addr>,
    allocs: BTreeMap<String, Entry>,
}

/// Where interfaces and rules are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Whereabouts {
    /// Another text for each boot of the machine.
    pub(super) boot: String,
    /// The inode of the network namespace. Wharf 0.1 did not write it, and had one machine-wide: 0 is anywhere.
    #[serde(default)]
    pub(super) netns: u64,
}

impl Whereabouts {
    fn is(&self, here: &Whereabouts) -> bool {
        self.boot == here.boot && (self.netns == here.netns || self.netns == 0)
    }
}

/// What one allocation has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    pub(super) address: Ipv4Addr,
    pub(super) ports: Vec<PortMapping>,
    /// It is wired: what is there need not be made again.
    pub(super) ready: bool,
}

impl Book {
    pub(super) fn new(here: &Whereabouts, bridge: String, subnet: Subnet) -> Book {
        Book {
            version: VERSION,
            whereabouts: here.clone(),
            bridge,
            subnet,
            last: None,
            allocs: BTreeMap::new(),
        }
    }

    pub(super) fn allocs(&self) -> &BTreeMap<String, Entry> {
        &self.allocs
    }

    pub(super) fn get(&self, alloc: &str) -> Option<&Entry> {
        self.allocs.get(alloc)
    }

    /// The address of an allocation: the one it has, or the next free one after that given out last, so that one
    /// that was released rests until all others had their turn.
    pub(super) fn assign(&mut self, alloc: &str) -> Result<Ipv4Addr, NetworkError> {
        if let Some(entry) = self.allocs.get(alloc) {
            return Ok(entry.address);
        }
        let taken: HashSet<Ipv4Addr> = self.allocs.values().map(|entry| entry.address).collect();
        // Neither the network's own address, nor the gateway's, nor that of everyone.
        let first = self.subnet.gateway().to_bits().saturating_add(1);
        let end = self.subnet.broadcast().to_bits();
        let after = self
            .last
            .map(|last| last.to_bits().saturating_add(1))
            .filter(|next| (first..end).contains(next))
            .unwrap_or(first);
        let address = (after..end)
            .chain(first..after)
            .map(Ipv4Addr::from)
            .find(|address| !taken.contains(address))
            .ok_or(NetworkError::Full {
                subnet: self.subnet,
                allocs: taken.len(),
            })?;
        self.last = Some(address);
        let entry = Entry {
            address,
            ports: Vec::new(),
            ready: false,
        };
        self.allocs.insert(alloc.to_owned(), entry);
        Ok(address)
    }

    /// The ports that an allocation has from now on. None may be another's.
    pub(super) fn map(&mut self, alloc: &str, ports: &[PortMapping]) -> Result<(), NetworkError> {
        for port in ports {
            let owner = self.allocs.iter().find(|(other, entry)| {
                *other != alloc && entry.ports.iter().any(|taken| taken.host == port.host)
            });
            if let Some((owner, _)) = owner {
                return Err(NetworkError::PortMapped {
                    port: port.host,
                    alloc: owner.clone(),
                });
            }
        }
        if let Some(entry) = self.allocs.get_mut(alloc) {
            entry.ports = ports.to_vec();
        }
        Ok(())
    }

    pub(super) fn set_ready(&mut self, alloc: &str) {
        if let Some(entry) = self.allocs.get_mut(alloc) {
            entry.ready = true;
        }
    }

    pub(super) fn release(&mut self, alloc: &str) -> Option<Entry> {
        self.allocs.remove(alloc)
    }
}

/// The file of a [`Book`].
#[derive(Clone, Debug)]
pub(super) struct File {
    path: PathBuf,
}

impl File {
    pub(super) fn new(directory: &Path) -> File {
        File {
            path: directory.join("network.json"),
        }
    }

    /// What was written here, since the machine was booted. `None` if nothing was.
    pub(super) fn load(&self, here: &Whereabouts) -> Result<Option<Book>, NetworkError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", source)),
        };
        match serde_json::from_slice::<Book>(&text) {
            Ok(book) if book.version != VERSION => Err(self.failed(
                "use",
                io::Error::other(format!(
                    "it is of version {}, this wharf writes {VERSION}",
                    book.version
                )),
            )),
            Ok(book) => Ok(Some(book)
                .filter(|book| book.whereabouts.is(here))
                .map(|book| Book {
                    whereabouts: here.clone(),
                    ..book
                })),
            // A rename is whole unless the machine went down, and then this is not its boot any more.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what was known of the network is unreadable: beginning anew");
                Ok(None)
            }
        }
    }

    pub(super) fn save(&self, book: &Book) -> Result<(), NetworkError> {
        let temporary = self.path.with_extension("json.new");
        let write = || {
            fs::write(&temporary, serde_json::to_vec(book)?)?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|source| self.failed("write", source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> NetworkError {
        NetworkError::File {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

/// Another text for each boot of the machine.
pub(super) fn boot() -> Result<String, NetworkError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| NetworkError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn here(boot: &str, netns: u64) -> Whereabouts {
        Whereabouts {
            boot: boot.to_owned(),
            netns,
        }
    }

    fn book(subnet: &str) -> Book {
        Book::new(
            &here("boot", 1),
            "wharf0".to_owned(),
            subnet.parse().expect(subnet),
        )
    }

    #[test]
    fn an_address_rests_after_its_release() {
        let mut book = book("172.26.64.0/29");
        let first = book.assign("a").expect("free");
        assert_eq!(first.to_string(), "172.26.64.2");
        assert_eq!(book.assign("a").expect("its own"), first);
        book.release("a");
        let next: Vec<String> = ["b", "c", "d", "e", "f"]
            .map(|alloc| book.assign(alloc).expect("free").to_string())
            .to_vec();
        assert_eq!(
            next,
            [
                "172.26.64.3",
                "172.26.64.4",
                "172.26.64.5",
                "172.26.64.6",
                "172.26.64.2"
            ]
        );
        let error = book.assign("g").expect_err("full").to_string();
        assert!(error.contains("172.26.64.0/29"), "{error}");
    }

    #[test]
    fn a_mapped_port_is_one_allocations() {
        let mut book = book("172.26.64.0/24");
        let ports = [PortMapping { host: 80, to: 8080 }];
        for alloc in ["a", "b"] {
            book.assign(alloc).expect("free");
        }
        book.map("a", &ports).expect("free");
        book.map("a", &ports).expect("its own");
        let error = book.map("b", &ports).expect_err("taken").to_string();
        assert!(error.contains("80") && error.contains("a"), "{error}");
        book.release("a");
        book.map("b", &ports).expect("free again");
    }

    #[test]
    fn the_file_is_of_one_boot_and_one_network() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::new(directory.path());
        let home = here("boot", 1);
        assert_eq!(file.load(&home).expect("none"), None);
        let mut written = book("172.26.64.0/24");
        written.assign("a").expect("free");
        file.save(&written).expect("written");
        assert_eq!(file.load(&home).expect("read"), Some(written));
        for elsewhere in [here("another", 1), here("boot", 2)] {
            assert_eq!(file.load(&elsewhere).expect("read"), None);
        }
        let before = r#"{"Version":1,"Boot":"boot","Bridge":"wharf0","Subnet":"172.26.64.0/24","Last":null,"Allocs":{}}"#;
        fs::write(directory.path().join("network.json"), before).expect("written");
        let read = file.load(&home).expect("read").expect("an older file");
        assert_eq!(read.whereabouts, home);
        fs::write(directory.path().join("network.json"), "{\"Version\":1").expect("written");
        assert_eq!(file.load(&home).expect("read"), None, "torn");
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(steps in prop::collection::vec((0u8..12, any::<bool>()), 0..200)) {
            let mut book = book("172.26.64.0/28");
            for (alloc, assign) in steps {
                let alloc = alloc.to_string();
                if assign {
                    // Thirteen addresses are enough for twelve.
                    let address = book.assign(&alloc).expect("free");
                    prop_assert!(book.subnet.contains(address));
                    prop_assert_ne!(address, book.subnet.gateway());
                    prop_assert_ne!(address, book.subnet.broadcast());
                } else {
                    book.release(&alloc);
                }
                let all: Vec<_> = book.allocs().values().map(|entry| entry.address).collect();
                let different: HashSet<_> = all.iter().collect();
                prop_assert_eq!(different.len(), all.len());
            }
        }
    }
}
