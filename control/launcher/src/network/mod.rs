//! The network of allocations: a bridge for each agent, and for each allocation a network namespace, a pair of
//! interfaces, an address, and the ports of the machine that lead to it.
//!
//! ```text
//!   world -- eth0 [ nftables: masquerade, port 20080 -> 172.26.64.2:8080 ] wharf0 172.26.64.1/24
//!                                                                           |-- wv5c0f... == eth0 172.26.64.2  (namespace)
//!                                                                           `-- wv91ab... == eth0 172.26.64.3  (namespace)
//! ```
//!
//! All of it is the kernel's: it works on while the agent is away. What the agent has to remember, who has which
//! address and port, is written ([`ipam`]) before the kernel is told, so that whatever exists is known; an attachment
//! that was cut off in the middle is made anew. Everything blocks, for some milliseconds: call it where that is
//! allowed. It works in the network namespace of the calling thread.

mod claim;
mod ipam;
mod link;
mod name;
mod namespace;
mod netlink;
mod nft;
mod port;
mod subnet;
#[cfg(test)]
mod tests;
pub mod text;

use std::{
    collections::HashSet,
    fs, io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::{
    claim::Claim,
    ipam::Book,
    link::Route,
    netlink::Socket,
    nft::{Mapping, Table},
};
pub use self::{
    namespace::NamespaceError,
    netlink::NetlinkError,
    port::PortMapping,
    subnet::{Subnet, SubnetError},
};

/// How many bridges one machine may have.
const BRIDGES: u8 = 64;
/// Subnets are given out in order from here, a /24 for each bridge: 172.26.64.0/18.
const FIRST_SUBNET: [u8; 4] = [172, 26, 64, 0];

/// Where allocations are connected.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The name of the bridge. `None`: the first of wharf0, wharf1 ... that is free.
    pub bridge: Option<String>,
    /// The addresses of allocations. `None`: the first /24 of 172.26.64.0/18 that is free.
    pub subnet: Option<Subnet>,
    /// Keeps `network.json`.
    pub state_dir: PathBuf,
    /// Namespaces are pinned under `netns/` in it.
    pub run_dir: PathBuf,
    /// Where the agents of this machine say which bridges they have: in one directory for each network namespace, as
    /// a bridge is a name in one of them only.
    pub claims_dir: PathBuf,
}

impl NetworkConfig {
    /// The usual place for the claims of the agents of a machine.
    pub const CLAIMS_DIR: &'static str = "/run/wharf/bridges";
}

/// How a group of tasks is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A namespace of its own on the bridge.
    #[default]
    Bridge,
    /// The machine's own network.
    Host,
}

/// An allocation that is connected to the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where its namespace is pinned.
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    /// The node, as the allocation sees it. Wharf's DNS answers there.
    pub gateway: Ipv4Addr,
}

/// Why an allocation is not connected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{0:?} cannot be the name of a bridge: at most 15 letters, digits, '-', '_' and '.'")]
    BridgeName(String),
    #[error("the subnet {0} has no room for allocations: its prefix must be between 8 and 29")]
    SubnetSize(Subnet),
    #[error(
        "the subnet {subnet} overlaps the route to {route} by {interface}: choose another with `platform {{ network {{ subnet = ... }} }}`"
    )]
    Overlap {
        subnet: Subnet,
        route: Subnet,
        interface: String,
    },
    #[error("the subnet {0} is that of another wharf agent on this machine")]
    SubnetClaimed(Subnet),
    #[error(
        "the bridge {0} belongs to another wharf agent or program: choose another name with `platform {{ network {{ bridge = ... }} }}`"
    )]
    BridgeTaken(String),
    #[error(
        "no bridge is free: wharf0 to wharf63 are taken, or their subnets in 172.26.64.0/18 overlap other routes"
    )]
    NoBridge,
    #[error("all addresses of {subnet} are taken, by {allocs} allocations")]
    Full { subnet: Subnet, allocs: usize },
    #[error("the allocation id {0:?} is no UUID")]
    AllocId(String),
    #[error(
        "port {port} cannot be mapped: a process of this machine has it ({protocol}: {source}); see `ss -lntup`"
    )]
    PortTaken {
        port: u16,
        protocol: &'static str,
        source: io::Error,
    },
    #[error("port {port} leads to the allocation {alloc} already")]
    PortMapped { port: u16, alloc: String },
    #[error("ports cannot be mapped: {0}")]
    NoPorts(String),
    #[error("cannot {what} {path}: {source}")]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// The bridge of this agent. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    netns_dir: PathBuf,
    file: ipam::File,
    table: Table,
    state: Mutex<State>,
    /// The bridge is ours until this goes.
    _claim: Claim,
}

#[derive(Debug)]
struct State {
    book: Book,
    rules: Rules,
}

/// What this process knows of the rules in the kernel.
#[derive(Clone, Debug)]
enum Rules {
    Unloaded,
    /// They say what the book says.
    Loaded,
    /// This kernel cannot: why.
    Unavailable(String),
}

impl Network {
    /// Chooses and claims the bridge and its subnet, or finds those of before again, to which it keeps for as long as
    /// allocations are on them, whatever is wanted. Nothing is changed in the kernel: the bridge appears with the first
    /// allocation and goes with the last.
    pub fn open(config: &NetworkConfig) -> Result<Network, NetworkError> {
        if let Some(bridge) = config
            .bridge
            .as_deref()
            .filter(|bridge| !name::is_interface(bridge))
        {
            return Err(NetworkError::BridgeName(bridge.to_owned()));
        }
        if let Some(subnet) = config
            .subnet
            .filter(|subnet| !(8..=29).contains(&subnet.prefix()))
        {
            return Err(NetworkError::SubnetSize(subnet));
        }
        let place = claim::Place::find(&config.claims_dir)?;
        let netns_dir = config.run_dir.join("netns");
        for directory in [&config.state_dir, &netns_dir] {
            fs::create_dir_all(directory).map_err(|source| NetworkError::File {
                what: "create the directory",
                path: directory.clone(),
                source,
            })?;
        }
        let file = ipam::File::new(&config.state_dir);
        let here = ipam::Whereabouts {
            boot: ipam::boot()?,
            netns: place.netns(),
        };
        let known = file.load(&here)?;
        let (book, claim) = match known {
            Some(book) if !book.allocs().is_empty() || is_wanted(&book, config) => {
                if !is_wanted(&book, config) {
                    tracing::warn!(
                        bridge = book.bridge, subnet = %book.subnet, allocs = book.allocs().len(),
                        "allocations are on the bridge of before: another one, or another subnet, is taken when the agent starts without them"
                    );
                }
                let claim = place
                    .claim_again(&book.bridge, book.subnet)?
                    .ok_or_else(|| NetworkError::BridgeTaken(book.bridge.clone()))?;
                (book, claim)
            }
            _ => choose(config, &place, &here)?,
        };
        file.save(&book)?;
        let mut rules = Rules::Unloaded;
        if let Err(reason) = probe() {
            tracing::warn!(%reason, "allocations get no mapped ports, and reach nothing beyond this machine");
            rules = Rules::Unavailable(reason);
        }
        Ok(Network {
            shared: Arc::new(Shared {
                netns_dir,
                file,
                table: Table {
                    bridge: book.bridge.clone(),
                    subnet: book.subnet,
                },
                state: Mutex::new(State { book, rules }),
                _claim: claim,
            }),
        })
    }

    /// The name of the bridge.
    pub fn bridge(&self) -> &str {
        &self.shared.table.bridge
    }

    /// The addresses of allocations.
    pub fn subnet(&self) -> Subnet {
        self.shared.table.subnet
    }

    /// The address of the node on the bridge, while there is one.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet().gateway()
    }

    /// Why ports cannot be mapped on this machine, if they cannot.
    pub fn ports_unavailable(&self) -> Option<String> {
        match &self.lock().rules {
            Rules::Unavailable(reason) => Some(reason.clone()),
            Rules::Unloaded | Rules::Loaded => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic left half done is what `attach` and `detach` are made for.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects an allocation and maps exactly these ports to it. `None` in host mode, where there is nothing to do.
    /// What is connected already stays as it is, also over restarts of the agent, but for its ports.
    pub fn attach(
        &self,
        alloc: &str,
        mode: Mode,
        ports: &[PortMapping],
    ) -> Result<Option<Attached>, NetworkError> {
        let link = name::port(alloc)?;
        if mode == Mode::Host {
            return Ok(None);
        }
        let mut state = self.lock();
        if let (Rules::Unavailable(reason), false) = (&state.rules, ports.is_empty()) {
            return Err(NetworkError::NoPorts(reason.clone()));
        }
        let before = state.book.get(alloc).cloned();
        let had = before.as_ref().map_or(&[][..], |entry| &entry.ports);
        for port in ports {
            let known = had.iter().any(|known| known.host == port.host);
            if !known {
                port::check_free(port.host)?;
            }
        }
        let mut book = state.book.clone();
        let address = book.assign(alloc)?;
        book.map(alloc, ports)?;
        self.write(&mut state, book)?;
        let remap = before.as_ref().is_none_or(|entry| entry.ports != ports);
        let ready = before.as_ref().is_some_and(|entry| entry.ready);
        match self.connect(&mut state, alloc, &link, address, ready, remap) {
            Ok(()) => Ok(Some(Attached {
                netns: self.netns(alloc),
                address,
                gateway: self.gateway(),
            })),
            Err(error) => {
                drop(state);
                if !ready && let Err(leftover) = self.detach(alloc) {
                    tracing::warn!(alloc, error = %leftover, "a network that could not be attached is not all gone");
                }
                Err(error)
            }
        }
    }

    fn netns(&self, alloc: &str) -> PathBuf {
        self.shared.netns_dir.join(alloc)
    }

    fn write(&self, state: &mut State, book: Book) -> Result<(), NetworkError> {
        if book != state.book {
            self.shared.file.save(&book)?;
            state.book = book;
        }
        Ok(())
    }

    fn connect(
        &self,
        state: &mut State,
        alloc: &str,
        link: &str,
        address: Ipv4Addr,
        ready: bool,
        remap: bool,
    ) -> Result<(), NetworkError> {
        let mut socket = Socket::route().map_err(NetworkError::Socket)?;
        let bridge = self.bridge_up(&mut socket)?;
        self.map(state, alloc, remap)?;
        let netns = self.netns(alloc);
        let intact = ready
            && namespace::is_pinned(&netns)
            && link::find(&mut socket, link)?.is_some_and(|port| port.master == bridge && port.up);
        if intact {
            return Ok(());
        }
        cut(&mut socket, link, &netns)?;
        self.wire(&mut socket, bridge, link, &netns, address)?;
        let mut book = state.book.clone();
        book.set_ready(alloc);
        self.write(state, book)
    }

    /// The bridge with its address, up; made if it is not there. Returns its index.
    fn bridge_up(&self, socket: &mut Socket) -> Result<u32, NetworkError> {
        let (name, gateway) = (self.bridge(), self.gateway());
        let found = match link::find(socket, name)? {
            Some(found) => found,
            None => {
                socket.request(&[link::create_bridge(name, name::hardware(gateway))])?;
                link::find(socket, name)?
                    .ok_or_else(|| NetworkError::BridgeTaken(name.to_owned()))?
            }
        };
        let given = socket.request(&[
            link::bring_up(name, found.index),
            link::address(name, found.index, gateway, self.subnet()),
        ]);
        match given {
            Err(error) if !is_there(&error.source) => return Err(error.into()),
            _ => {}
        }
        sysctl("net/ipv4/ip_forward", "1")?;
        // Connections from this machine's loopback to a mapped port come to the bridge with a loopback address.
        sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        Ok(found.index)
    }

    fn wire(
        &self,
        socket: &mut Socket,
        bridge: u32,
        link: &str,
        netns: &Path,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let mut inside = namespace::create(netns)?;
        let hardware = name::hardware(address);
        socket.request(&[link::create_veth(
            link,
            bridge,
            name::INSIDE,
            hardware,
            inside.fd.as_fd(),
        )])?;
        if let Some(port) = link::find(socket, link)? {
            socket.request(&[link::hairpin(link, port.index)])?;
        }
        let eth0 = link::find(&mut inside.socket, name::INSIDE)?.map_or(0, |found| found.index);
        inside.socket.request(&[
            link::bring_up(name::INSIDE, eth0),
            link::address(name::INSIDE, eth0, address, self.subnet()),
            link::default_route(self.gateway(), eth0),
        ])?;
        Ok(())
    }

    /// Brings the rules in step with the book, of which the ports of one allocation may have changed.
    fn map(&self, state: &mut State, alloc: &str, changed: bool) -> Result<(), NetworkError> {
        if matches!(state.rules, Rules::Unavailable(_)) {
            return Ok(());
        }
        let mut socket = Socket::netfilter().map_err(NetworkError::Socket)?;
        let table = &self.shared.table;
        let all = mappings(&state.book);
        let loaded = matches!(state.rules, Rules::Loaded);
        if loaded && !changed {
            return Ok(());
        }
        let added = loaded.then(|| {
            let own: Vec<Mapping> = all
                .iter()
                .filter(|port| port.alloc == alloc)
                .cloned()
                .collect();
            table.remove(&mut socket, alloc)?;
            table.add(&mut socket, &own)
        });
        let result = match added {
            Some(Ok(())) => Ok(()),
            // Whoever flushed all rules of the machine flushed ours.
            Some(Err(error)) if link::is_missing(&error.source) => table.load(&mut socket, &all),
            Some(Err(error)) => Err(error),
            None => table.load(&mut socket, &all),
        };
        match result {
            Ok(()) => {
                state.rules = Rules::Loaded;
                Ok(())
            }
            Err(error) if !loaded && link::is_missing(&error.source) => {
                let reason = format!(
                    "this kernel's nf_tables lacks an expression that the rules need (nat, masq, fib, ct): {error}"
                );
                tracing::warn!(%reason, "allocations get no mapped ports");
                state.rules = Rules::Unavailable(reason.clone());
                match all.iter().any(|port| port.alloc == alloc) {
                    true => Err(NetworkError::NoPorts(reason)),
                    false => Ok(()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Disconnects an allocation: its ports lead nowhere, its interface and its namespace go, its address is free,
    /// though not the next to be given out. With the last one the bridge goes, and every rule. What is not connected
    /// needs nothing.
    pub fn detach(&self, alloc: &str) -> Result<(), NetworkError> {
        let link = name::port(alloc)?;
        self.forget(alloc)?;
        // Removing an interface waits some 30 ms in the kernel: other allocations need not. If the agent ends meanwhile,
        // what is left is swept.
        let mut socket = Socket::route().map_err(NetworkError::Socket)?;
        cut(&mut socket, &link, &self.netns(alloc))?;
        self.clear_if_unused(&mut socket)
    }

    /// Its ports lead nowhere, and its address is free.
    fn forget(&self, alloc: &str) -> Result<(), NetworkError> {
        let mut state = self.lock();
        let mut book = state.book.clone();
        let had = book.release(alloc);
        let has_rules = had.is_none_or(|entry| !entry.ports.is_empty());
        if has_rules && !matches!(state.rules, Rules::Unavailable(_)) {
            let mut netfilter = Socket::netfilter().map_err(NetworkError::Socket)?;
            self.shared.table.remove(&mut netfilter, alloc)?;
        }
        self.write(&mut state, book)
    }

    /// Without allocations there is neither a bridge nor a rule.
    fn clear_if_unused(&self, socket: &mut Socket) -> Result<(), NetworkError> {
        let mut state = self.lock();
        if !state.book.allocs().is_empty() {
            return Ok(());
        }
        if !matches!(state.rules, Rules::Unavailable(_)) {
            let mut netfilter = Socket::netfilter().map_err(NetworkError::Socket)?;
            self.shared.table.unload(&mut netfilter)?;
            state.rules = Rules::Unloaded;
        }
        remove_link(socket, self.bridge())
    }

    /// Disconnects everything on the bridge that is not among `known`. Returns the ids of what it disconnected.
    pub fn sweep(&self, known: &HashSet<String>) -> Result<Vec<String>, NetworkError> {
        let kept: HashSet<String> = known
            .iter()
            .filter_map(|alloc| name::port(alloc).ok())
            .collect();
        let booked: Vec<String> = self.lock().book.allocs().keys().cloned().collect();
        // Also what is pinned and is in no book.
        let entries = fs::read_dir(&self.shared.netns_dir)
            .into_iter()
            .flatten()
            .flatten();
        let pinned = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut gone: Vec<String> = booked
            .into_iter()
            .chain(pinned)
            .filter(|alloc| !known.contains(alloc) && name::port(alloc).is_ok())
            .collect();
        gone.sort();
        gone.dedup();
        for alloc in &gone {
            self.detach(alloc)?;
        }
        let mut socket = Socket::route().map_err(NetworkError::Socket)?;
        if let Some(bridge) = link::find(&mut socket, self.bridge())? {
            let ports = link::all(&mut socket)?.into_iter();
            let ports = ports.filter(|link| link.master == bridge.index);
            for stray in ports.filter(|link| {
                link.name.starts_with(name::PORT_PREFIX) && !kept.contains(&link.name)
            }) {
                remove_link(&mut socket, &stray.name)?;
            }
        }
        Ok(gone)
    }
}

/// Takes away the wire and the namespace of an allocation, whatever of them is there.
fn cut(socket: &mut Socket, link: &str, netns: &Path) -> Result<(), NetworkError> {
    remove_link(socket, link)?;
    namespace::remove(netns).map_err(|source| NetworkError::File {
        what: "unpin the network namespace",
        path: netns.to_owned(),
        source,
    })
}

fn remove_link(socket: &mut Socket, name: &str) -> Result<(), NetworkError> {
    match socket.request(&[link::delete(name)]) {
        Err(error) if !link::is_missing(&error.source) => Err(error.into()),
        _ => Ok(()),
    }
}

fn mappings(book: &Book) -> Vec<Mapping> {
    let of = |(alloc, entry): (&String, &ipam::Entry)| {
        let (alloc, address) = (alloc.clone(), entry.address);
        let each = move |port: &PortMapping| Mapping {
            host: port.host,
            to: port.to,
            address,
            alloc: alloc.clone(),
        };
        entry.ports.iter().map(each).collect::<Vec<_>>()
    };
    book.allocs().iter().flat_map(of).collect()
}

fn is_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

/// Sets a kernel parameter of this network namespace, if it says something else.
fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    let set = || match fs::read_to_string(&path)?.trim() == value {
        true => Ok(()),
        false => fs::write(&path, value),
    };
    set().map_err(|source| NetworkError::File {
        what: "set the kernel parameter",
        path: path.clone(),
        source,
    })
}

/// Whether the kernel has nf_tables; if not, a sentence that says so.
fn probe() -> Result<(), String> {
    let missing = |reason: &dyn std::fmt::Display| {
        format!(
            "this kernel has no nf_tables, which mapped ports need (CONFIG_NF_TABLES, CONFIG_NFT_NAT): {reason}"
        )
    };
    let mut socket = Socket::netfilter().map_err(|error| missing(&error))?;
    nft::probe(&mut socket).map_err(|error| missing(&error))
}

fn is_wanted(book: &Book, config: &NetworkConfig) -> bool {
    config
        .bridge
        .as_ref()
        .is_none_or(|bridge| *bridge == book.bridge)
        && config.subnet.is_none_or(|subnet| subnet == book.subnet)
}

/// A bridge and a subnet that nobody has.
fn choose(
    config: &NetworkConfig,
    place: &claim::Place,
    here: &ipam::Whereabouts,
) -> Result<(Book, Claim), NetworkError> {
    let mut socket = Socket::route().map_err(NetworkError::Socket)?;
    let routes = link::routes(&mut socket)?;
    let _choosing = place.choosing()?;
    let claimed = place.subnets()?;
    let subnet = match config.subnet {
        Some(subnet) => check_subnet(subnet, &routes, &claimed).map(|()| subnet)?,
        None => (0..BRIDGES)
            .filter_map(|number| {
                let [a, b, c, d] = FIRST_SUBNET;
                Subnet::new(Ipv4Addr::new(a, b, c + number, d), 24)
            })
            .find(|subnet| check_subnet(*subnet, &routes, &claimed).is_ok())
            .ok_or(NetworkError::NoBridge)?,
    };
    let candidates: Vec<String> = match &config.bridge {
        Some(bridge) => vec![bridge.clone()],
        None => (0..BRIDGES)
            .map(|number| format!("wharf{number}"))
            .collect(),
    };
    for bridge in candidates {
        if link::find(&mut socket, &bridge)?.is_some() {
            continue;
        }
        if let Some(claim) = place.claim(&bridge, subnet)? {
            return Ok((Book::new(here, bridge, subnet), claim));
        }
    }
    Err(match &config.bridge {
        Some(bridge) => NetworkError::BridgeTaken(bridge.clone()),
        None => NetworkError::NoBridge,
    })
}

/// Refuses a subnet by which this machine reaches something else.
fn check_subnet(subnet: Subnet, routes: &[Route], claimed: &[Subnet]) -> Result<(), NetworkError> {
    if let Some(route) = routes.iter().find(|route| route.to.overlaps(subnet)) {
        return Err(NetworkError::Overlap {
            subnet,
            route: route.to,
            interface: route.interface.clone(),
        });
    }
    match claimed.iter().any(|other| other.overlaps(subnet)) {
        true => Err(NetworkError::SubnetClaimed(subnet)),
        false => Ok(()),
    }
}
