//! The network for real: in namespaces of the test's own, so that this machine's network is neither seen nor touched.
#![allow(clippy::print_stderr)]

use std::{
    collections::{BTreeSet, HashSet},
    env,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use super::*;

const A: &str = "5c0f0a52-8d3c-4f6e-9a1f-0123456789ab";
const B: &str = "6d1f0a52-8d3c-4f6e-9a1f-0123456789ab";
const SOON: Duration = Duration::from_secs(5);

/// Runs a test as root in a network and a mount namespace of its own. `programs` are those it asks as oracles.
fn isolated(programs: &[&str], test: impl FnOnce(&Place) + Send) {
    let missing = programs
        .iter()
        .find(|program| Command::new(program).arg("--version").output().is_err());
    let lacks = match missing {
        _ if !rustix::process::geteuid().is_root() => Some("root".to_owned()),
        Some(program) => Some(format!("the program {program}")),
        None => None,
    };
    if let Some(lacks) = lacks {
        assert!(
            env::var_os("WHARF_REQUIRE_ALL").is_none(),
            "this test needs {lacks}, and WHARF_REQUIRE_ALL is set"
        );
        eprintln!("skipped: needs {lacks}");
        return;
    }
    thread::scope(|scope| {
        let body = scope.spawn(|| {
            namespace::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS).expect("namespaces");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).expect("private mounts");
            run("ip", "link set lo up");
            let place = Place {
                directory: tempfile::tempdir().expect("a directory"),
            };
            test(&place);
        });
        if let Err(panic) = body.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// The configuration of one of several agents of this machine.
    fn config(&self, agent: &str) -> NetworkConfig {
        let path = self.directory.path();
        NetworkConfig {
            bridge: None,
            subnet: None,
            state_dir: path.join(agent).join("state"),
            run_dir: path.join(agent).join("run"),
            claims_dir: path.join("claims"),
        }
    }

    fn network(&self) -> Network {
        Network::open(&self.config("one")).expect("a network")
    }

    /// What `ip link`, `nft list ruleset` and the file system show of networks.
    fn traces(&self) -> (String, String, BTreeSet<PathBuf>) {
        let netns = self.config("one").run_dir.join("netns");
        let pinned = fs::read_dir(netns).into_iter().flatten().flatten();
        (
            run("ip", "-o link"),
            run("nft", "list ruleset"),
            pinned.map(|entry| entry.path()).collect(),
        )
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Does something in the namespace that is pinned at `path`.
fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(path).expect("a namespace");
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entered");
            work()
        });
        inside.join().expect("no panic")
    })
}

/// Answers every connection to `port` inside with the address of its client, until `stop` is dropped.
fn serve(netns: &Path, port: u16) -> mpsc::Sender<()> {
    let listener = within(netns, || {
        TcpListener::bind(("0.0.0.0", port)).expect("a free port")
    });
    let (stop, stopped) = mpsc::channel();
    listener.set_nonblocking(true).expect("possible");
    thread::spawn(move || {
        while matches!(
            stopped.recv_timeout(Duration::from_millis(2)),
            Err(mpsc::RecvTimeoutError::Timeout)
        ) {
            if let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{}", peer.ip());
            }
        }
    });
    stop
}

/// Who a server says that its client is.
fn ask(address: impl Into<SocketAddr>) -> Result<IpAddr, io::Error> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(SOON))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(io::Error::other)
}

fn attach(network: &Network, alloc: &str, ports: &[(u16, u16)]) -> Attached {
    let ports: Vec<PortMapping> = ports
        .iter()
        .map(|&(host, to)| PortMapping { host, to })
        .collect();
    network
        .attach(alloc, Mode::Bridge, &ports)
        .expect("attached")
        .expect("on a bridge")
}

/// A machine beyond eth9: 10.9.0.2, which has no route to the allocations.
fn outside(place: &Place) -> PathBuf {
    let path = place.directory.path().join("outside");
    let made = namespace::create(&path).expect("a namespace");
    let mut socket = Socket::route().expect("a socket");
    run("ip", "link add name br9 type bridge");
    run("ip", "addr add 10.9.0.1/24 dev br9");
    run("ip", "link set br9 up");
    let bridge = link::find(&mut socket, "br9")
        .expect("asked")
        .expect("there")
        .index;
    let hardware = name::hardware(Ipv4Addr::new(10, 9, 0, 2));
    let veth = link::create_veth("eth9", bridge, "eth0", hardware, made.fd.as_fd());
    socket.request(&[veth]).expect("wired");
    within(&path, || {
        run("ip", "addr add 10.9.0.2/24 dev eth0");
        run("ip", "link set eth0 up");
    });
    path
}

#[test]
fn what_was_attached_and_detached_left_nothing() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let before = place.traces();
        let attached = attach(&network, A, &[(20080, 8080)]);
        attach(&network, B, &[]);
        assert_ne!(place.traces(), before);
        let inside = within(&attached.netns, || {
            run("ip", "-br addr") + &run("ip", "route")
        });
        assert!(
            inside.contains("172.26.64.2/24") && inside.contains("127.0.0.1/8"),
            "{inside}"
        );
        assert!(
            inside.contains("default via 172.26.64.1 dev eth0"),
            "{inside}"
        );
        let ruleset = run("nft", "list ruleset");
        assert!(ruleset.contains(&format!("comment \"{A}\"")), "{ruleset}");
        network.detach(A).expect("detached");
        let ruleset = run("nft", "list ruleset");
        assert!(
            !ruleset.contains(A) && ruleset.contains("masquerade"),
            "{ruleset}"
        );
        network.detach(B).expect("detached");
        network.detach(B).expect("again");
        assert_eq!(place.traces(), before);
        // The next one gets another address: the last that was released still rests.
        assert_eq!(attach(&network, A, &[]).address.to_string(), "172.26.64.4");
        network.detach(A).expect("detached");
        assert_eq!(place.traces(), before);
    });
}

#[test]
fn ports_lead_to_the_allocation_from_everywhere() {
    isolated(&["ip", "nft"], |place| {
        let outside = outside(place);
        let network = place.network();
        let (a, b) = (
            attach(&network, A, &[(20080, 8080)]),
            attach(&network, B, &[(20081, 8080)]),
        );
        let _a = serve(&a.netns, 8080);
        let _b = serve(&b.netns, 8080);
        let gateway = IpAddr::from(a.gateway);
        let host: IpAddr = [10, 9, 0, 1].into();
        assert_eq!(ask((a.address, 8080)).expect("directly"), gateway);
        assert_eq!(ask(([127, 0, 0, 1], 20080)).expect("by loopback"), gateway);
        assert_eq!(ask((host, 20080)).expect("by the machine's address"), host);
        let seen = within(&outside, || ask((host, 20080))).expect("from outside");
        assert_eq!(seen.to_string(), "10.9.0.2", "the client is seen as it is");
        let seen = within(&a.netns, || ask((b.address, 8080))).expect("a neighbour");
        assert_eq!(seen, IpAddr::from(a.address));
        let seen = within(&a.netns, || ask((host, 20081))).expect("a neighbour by its host port");
        assert_eq!(seen, gateway);
        let seen = within(&a.netns, || ask((host, 20080))).expect("itself by its host port");
        assert_eq!(seen, gateway);
        // Out into the world, as this machine.
        let _world = serve(&outside, 9000);
        let seen = within(&a.netns, || ask(([10, 9, 0, 2], 9000))).expect("the world");
        assert_eq!(seen, host);
        // Whoever knows the subnet does not get past the mapping.
        within(&outside, || {
            run("ip", "route add 172.26.64.0/24 via 10.9.0.1")
        });
        assert!(within(&outside, || ask((a.address, 8080))).is_err());
        // A port that is not for this machine is nobody's business here.
        assert_eq!(
            within(&outside, || ask((host, 20082)))
                .expect_err("refused")
                .kind(),
            io::ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn datagrams_are_mapped_too() {
    isolated(&["ip"], |place| {
        let network = place.network();
        let attached = attach(&network, A, &[(20053, 53)]);
        let server = within(&attached.netns, || {
            UdpSocket::bind("0.0.0.0:53").expect("a free port")
        });
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(SOON)).expect("possible");
        }
        client.send_to(b"ask", "127.0.0.1:20053").expect("sent");
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).expect("a question");
        assert_eq!(&buffer[..length], b"ask");
        server.send_to(b"answer", from).expect("sent");
        let (length, from) = client.recv_from(&mut buffer).expect("an answer");
        assert_eq!((&buffer[..length], from.port()), (&b"answer"[..], 20053));
    });
}

#[test]
fn loopback_services_of_the_machine_stay_its_own() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let attached = attach(&network, A, &[]);
        let secret = TcpListener::bind("127.0.0.1:7777").expect("a free port");
        secret.set_nonblocking(true).expect("possible");
        // An allocation that sends loopback addresses to its gateway: `route_localnet` alone would let them in.
        within(&attached.netns, || {
            run("ip", "addr del 127.0.0.1/8 dev lo");
            run("ip", "route add 127.0.0.1/32 via 172.26.64.1 dev eth0");
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("set");
        });
        let intrude = || drop(within(&attached.netns, || ask(([127, 0, 0, 1], 7777))));
        intrude();
        let nobody = secret.accept().expect_err("nobody");
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
        run("nft", "flush chain ip wharf_wharf0 guard");
        intrude();
        secret.accept().expect("without the guard it gets in");
    });
}

#[test]
fn a_restarted_agent_finds_what_it_attached() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let attached = attach(&network, A, &[(20080, 8080)]);
        let _server = serve(&attached.netns, 8080);
        let listener = within(&attached.netns, || {
            TcpListener::bind("0.0.0.0:81").expect("a free port")
        });
        let mut open = TcpStream::connect((attached.address, 81)).expect("connected");
        let (mut accepted, _) = listener.accept().expect("accepted");
        let before = place.traces();
        drop(network);
        let network = place.network();
        assert_eq!(place.traces(), before, "opening changes nothing");
        assert_eq!(attach(&network, A, &[(20080, 8080)]), attached);
        assert_eq!(place.traces(), before, "nor does attaching again");
        open.write_all(b"still").expect("open");
        let mut buffer = [0; 5];
        accepted.read_exact(&mut buffer).expect("open");
        ask(([127, 0, 0, 1], 20080)).expect("mapped");
        // Other ports for the same allocation.
        attach(&network, A, &[(20090, 8080)]);
        ask(([127, 0, 0, 1], 20090)).expect("mapped");
        ask(([127, 0, 0, 1], 20080)).expect_err("not mapped any more");
        // All rules of the machine are flushed, as a firewall does that is restarted.
        run("nft", "flush ruleset");
        attach(&network, A, &[(20091, 8080)]);
        ask(([127, 0, 0, 1], 20091)).expect("mapped");
        assert!(run("nft", "list ruleset").contains("masquerade"));
    });
}

#[test]
fn what_was_cut_off_in_the_middle_is_made_anew() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let before = place.traces();
        let attached = attach(&network, A, &[]);
        for damage in ["link del wv5c0f0a528d3c4", "link del wharf0"] {
            run("ip", damage);
            assert_eq!(attach(&network, A, &[]), attached, "{damage}");
            within(&attached.netns, || run("ip", "-br addr show eth0"));
        }
        namespace::remove(&attached.netns).expect("removed");
        assert_eq!(attach(&network, A, &[]), attached);
        network.detach(A).expect("detached");
        assert_eq!(place.traces(), before);
    });
}

#[test]
fn a_sweep_leaves_what_is_known() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let before = place.traces();
        attach(&network, A, &[(20080, 8080)]);
        let alone = place.traces();
        attach(&network, B, &[(20081, 8080)]);
        run("ip", "link add wvstray type veth peer name wvpeer");
        run("ip", "link set wvstray master wharf0");
        drop(network);
        let network = place.network();
        let known = HashSet::from([A.to_owned()]);
        assert_eq!(network.sweep(&known).expect("swept"), [B]);
        let (links, rules, pinned) = place.traces();
        assert!(
            !links.contains("wvstray") && !rules.contains(B),
            "{links}{rules}"
        );
        assert_eq!((rules, pinned), (alone.1, alone.2));
        assert_eq!(network.sweep(&HashSet::new()).expect("swept"), [A]);
        assert_eq!(place.traces(), before);
    });
}

#[test]
fn a_port_in_use_is_refused_and_leaves_nothing() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let before = place.traces();
        let _taken = TcpListener::bind("127.0.0.1:20080").expect("a free port");
        let _other = UdpSocket::bind("127.0.0.1:20081").expect("a free port");
        for (port, protocol) in [(20080, "TCP"), (20081, "UDP")] {
            let ports = [PortMapping { host: port, to: 80 }];
            let error = network
                .attach(A, Mode::Bridge, &ports)
                .expect_err("taken")
                .to_string();
            assert!(
                error.contains(&port.to_string()) && error.contains(protocol),
                "{error}"
            );
        }
        assert_eq!(place.traces(), before);
        attach(&network, A, &[(20082, 80)]);
        let ports = [PortMapping {
            host: 20082,
            to: 80,
        }];
        let error = network
            .attach(B, Mode::Bridge, &ports)
            .expect_err("taken")
            .to_string();
        assert!(error.contains(A), "{error}");
        assert_eq!(
            network.attach(B, Mode::Host, &[]).expect("nothing to do"),
            None
        );
    });
}

#[test]
fn agents_of_one_machine_stay_apart() {
    isolated(&["ip"], |place| {
        let one = place.network();
        let two = Network::open(&place.config("two")).expect("a network");
        assert_eq!((one.bridge(), two.bridge()), ("wharf0", "wharf1"));
        assert!(!one.subnet().overlaps(two.subnet()));
        let named = |agent: &str, bridge: Option<&str>, subnet: Option<&str>| {
            Network::open(&NetworkConfig {
                bridge: bridge.map(str::to_owned),
                subnet: subnet.map(|text| text.parse().expect(text)),
                ..place.config(agent)
            })
            .map(|network| network.subnet().to_string())
            .map_err(|error| error.to_string())
        };
        run("ip", "link add name br9 type bridge");
        run("ip", "addr add 10.9.0.1/16 dev br9");
        run("ip", "link set br9 up");
        let error = named("three", None, Some("10.9.64.0/24")).expect_err("overlaps");
        assert!(
            error.contains("10.9.0.0/16") && error.contains("br9"),
            "{error}"
        );
        let error = named("three", Some("wharf1"), None).expect_err("claimed");
        assert!(error.contains("wharf1"), "{error}");
        let error = named("three", Some("br9"), None).expect_err("there");
        assert!(error.contains("br9"), "{error}");
        assert!(
            named("three", None, Some("172.26.64.0/25")).is_err(),
            "another agent's"
        );
        assert!(
            named("three", None, Some("172.26.64.0/30")).is_err(),
            "too small"
        );
        assert!(named("three", Some("a name/with a slash"), None).is_err());
        assert_eq!(
            named("three", Some("mine"), Some("10.8.0.0/24")).expect("free"),
            "10.8.0.0/24"
        );
    });
}

#[test]
fn another_bridge_waits_until_no_allocation_is_on_the_one_of_before() {
    isolated(&["ip", "nft"], |place| {
        let other = NetworkConfig {
            bridge: Some("other".to_owned()),
            ..place.config("one")
        };
        let network = place.network();
        let attached = attach(&network, A, &[]);
        drop(network);
        let network = Network::open(&other).expect("a network");
        assert_eq!(network.bridge(), "wharf0");
        assert_eq!(attach(&network, A, &[]), attached);
        network.detach(A).expect("detached");
        drop(network);
        let network = Network::open(&other).expect("a network");
        assert_eq!(network.bridge(), "other");
    });
}

/// An agent that is away must find its bridge again, whatever agents in other networks of this machine took meanwhile.
#[test]
fn a_bridge_is_a_name_in_one_network_only() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let attached = attach(&network, A, &[]);
        drop(network);
        let other = place.directory.path().join("netns");
        namespace::create(&other).expect("a namespace");
        let two = || Network::open(&place.config("two"));
        let stranger = within(&other, two).expect("a network");
        assert_eq!(stranger.bridge(), "wharf0");
        let network = place.network();
        assert_eq!(network.bridge(), "wharf0");
        assert_eq!(attach(&network, A, &[]), attached);
        drop(network);
        // Who was moved with its state finds nothing of before.
        let moved = within(&other, || place.network());
        assert_eq!(moved.bridge(), "wharf1");
    });
}

#[test]
fn nft_reads_the_rules_as_they_were_meant() {
    let load = |with: &(dyn Fn() + Sync)| {
        let (send, listed) = mpsc::channel();
        isolated(&["nft"], move |_| {
            with();
            send.send(run("nft", "list ruleset")).expect("received");
        });
        listed.recv().ok()
    };
    let ours = load(&|| {
        let table = Table {
            bridge: "wharf0".to_owned(),
            subnet: "172.26.64.0/24".parse().expect("a subnet"),
        };
        let port = Mapping {
            host: 20080,
            to: 8080,
            address: [172, 26, 64, 2].into(),
            alloc: A.to_owned(),
        };
        let mut socket = Socket::netfilter().expect("a socket");
        for _ in 0..2 {
            table
                .load(&mut socket, std::slice::from_ref(&port))
                .expect("loaded");
        }
    });
    let theirs = load(&|| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/network/nft/like-nft.rules");
        run("nft", &format!("-f {}", file.display()));
    });
    assert_eq!(ours, theirs);
}

#[test]
fn an_attachment_takes_milliseconds() {
    isolated(&["ip", "nft"], |place| {
        let network = place.network();
        let before = place.traces();
        let id = |number: u16| format!("{number:08x}-8d3c-4f6e-9a1f-0123456789ab");
        let timed = |work: &mut dyn FnMut(u16)| {
            let mut times: Vec<Duration> = (0..50)
                .map(|number| {
                    let start = Instant::now();
                    work(number);
                    start.elapsed()
                })
                .collect();
            times.sort();
            (times[25], times[47])
        };
        let attach =
            timed(&mut |number| drop(attach(&network, &id(number), &[(22300 + number, 80)])));
        let detach = timed(&mut |number| network.detach(&id(number)).expect("detached"));
        eprintln!(
            "attach p50 {:?} p95 {:?}; detach p50 {:?} p95 {:?}",
            attach.0, attach.1, detach.0, detach.1
        );
        assert_eq!(place.traces(), before);
        assert!(attach.0 < Duration::from_millis(100), "{attach:?}");
    });
}
