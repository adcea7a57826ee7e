//! The server over real sockets on loopback, and hostile messages.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use hickory_server::{
    net::xfer::Protocol,
    proto::{
        op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
        rr::{
            DNSClass, Name, RecordType,
            rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
        },
    },
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::{exchange::exchange, *};
use crate::{testing::Catalog, visibility::Everything};

/// Longer than anything here takes, and the end of a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    server: DnsServer,
    address: SocketAddr,
    catalog: Catalog,
}

async fn start_within(limits: ServerLimits) -> Running {
    let mut catalog = Catalog::default();
    catalog.instances("web", 5);
    catalog.instances("many", 200);
    // One port for both: TCP says which, UDP most often has it, too.
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = tcp.local_addr().unwrap();
    let server = DnsServer::start_within(
        limits,
        ZoneSettings::default(),
        Arc::new(catalog.registry()),
        Arc::new(Everything),
        vec![udp],
        vec![tcp],
    )
    .unwrap();
    Running {
        server,
        address,
        catalog,
    }
}

async fn start() -> Running {
    start_within(ServerLimits::default()).await
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, change: impl FnOnce(&mut Edns)) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    change(&mut edns);
    message.set_edns(edns);
    message
}

async fn ask_udp(address: SocketAddr, message: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(message).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer.truncate(length);
    buffer
}

async fn tell(stream: &mut TcpStream, message: &[u8]) {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    // A connection that was refused may be gone; what is heard, or not, shows.
    let _ = stream.write_all(&framed).await;
}

async fn hear(stream: &mut TcpStream) -> Vec<u8> {
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

/// Waits until the server closes the connection.
async fn closes(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap();
    assert!(rest.is_empty());
}

async fn answer_to(address: SocketAddr, message: &Message) -> Message {
    let bytes = ask_udp(address, &message.to_vec().unwrap()).await;
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(!reply.metadata.recursion_available && !reply.metadata.authentic_data);
    reply
}

#[tokio::test]
async fn both_transports_answer_and_repeat_id_and_question() {
    let running = start().await;
    let message = query("wEb.SERVICE.consul.", RecordType::A);
    let reply = answer_to(running.address, &message).await;
    assert_eq!(reply.answers.len(), 5);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
    assert!(reply.queries[0].name().eq_case(message.queries[0].name()));
    assert!(reply.answers[0].name.eq_case(message.queries[0].name()));
    assert!(reply.edns.is_none(), "nobody asked for EDNS");

    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for kind in [RecordType::A, RecordType::SRV] {
        tell(
            &mut stream,
            &query("web.service.consul.", kind).to_vec().unwrap(),
        )
        .await;
    }
    for kind in [RecordType::A, RecordType::SRV] {
        let reply = Message::from_vec(&hear(&mut stream).await).unwrap();
        assert_eq!(reply.queries[0].query_type(), kind, "in order");
        assert_eq!(reply.answers.len(), 5);
    }
    running.server.shutdown().await;
}

#[tokio::test]
async fn what_is_cut_over_udp_is_whole_over_tcp() {
    let running = start().await;
    for kind in [RecordType::A, RecordType::SRV] {
        let plain = query("many.service.consul.", kind).to_vec().unwrap();
        let reply = ask_udp(running.address, &plain).await;
        assert!(reply.len() <= 512);
        assert!(Message::from_vec(&reply).unwrap().metadata.truncation);

        let edns = with_edns(query("many.service.consul.", kind), |_| {});
        let edns = edns.to_vec().unwrap();
        let reply = ask_udp(running.address, &edns).await;
        assert!(reply.len() > 1000 && reply.len() <= 1232, "{}", reply.len());
        let reply = Message::from_vec(&reply).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(reply.edns.unwrap().max_payload(), 1232);

        let mut stream = TcpStream::connect(running.address).await.unwrap();
        tell(&mut stream, &plain).await;
        let reply = Message::from_vec(&hear(&mut stream).await).unwrap();
        assert_eq!(reply.answers.len(), 200);
        assert!(!reply.metadata.truncation);
    }
}

#[tokio::test]
async fn odd_requests_are_answered_by_rfc_8906() {
    let running = start().await;
    let web = || query("web.service.consul.", RecordType::A);

    let reply = answer_to(running.address, &with_edns(web(), |e| _ = e.set_version(1))).await;
    // 16 has two names, and hickory reads the other one, BADSIG.
    assert_eq!(u16::from(reply.metadata.response_code), 16, "BADVERS");
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert!(reply.answers.is_empty());

    let subnet = ClientSubnet::new([1, 2, 3, 0].into(), 24, 0);
    let asked = with_edns(web(), |edns| {
        edns.set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Subnet(subnet));
        edns.options_mut()
            .insert(EdnsOption::Unknown(100, vec![1, 2]));
    });
    let reply = answer_to(running.address, &asked).await;
    assert_eq!(reply.answers.len(), 5);
    let edns = reply.edns.unwrap();
    assert!(edns.flags().dnssec_ok, "DO is repeated");
    assert_eq!(
        edns.option(EdnsCode::Subnet),
        Some(&EdnsOption::Subnet(subnet))
    );
    assert!(edns.option(EdnsCode::Unknown(100)).is_none());

    // A client that says it takes less than anyone must take.
    let small = with_edns(query("many.service.consul.", RecordType::A), |_| {});
    let mut small = small.to_vec().unwrap();
    let at = small.len() - 8;
    small[at..at + 2].copy_from_slice(&[0, 1]);
    let reply = ask_udp(running.address, &small).await;
    assert!(reply.len() > 400 && reply.len() <= 512, "{}", reply.len());

    for (kind, code) in [
        (RecordType::AXFR, ResponseCode::NotImp),
        (RecordType::IXFR, ResponseCode::NotImp),
        (RecordType::HINFO, ResponseCode::NoError),
        (RecordType::Unknown(4711), ResponseCode::NoError),
    ] {
        let reply = answer_to(running.address, &query("web.service.consul.", kind)).await;
        assert_eq!(reply.metadata.response_code, code, "{kind}");
        assert!(reply.answers.is_empty());
    }

    let mut chaos = web();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let reply = answer_to(running.address, &chaos).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);

    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut other = web();
        other.metadata.op_code = op_code;
        let reply = answer_to(running.address, &other).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
        assert_eq!(reply.metadata.op_code, op_code);
    }

    // A response is not answered: the next thing heard is the answer to the next query.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(running.address).await.unwrap();
    let mut response = web();
    response.metadata.message_type = MessageType::Response;
    response.metadata.id = 1;
    socket.send(&response.to_vec().unwrap()).await.unwrap();
    socket.send(&web().to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 1024];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let heard = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(heard.metadata.id, web().metadata.id);
}

#[tokio::test]
async fn changes_of_catalog_and_settings_show_at_once() {
    let mut running = start().await;
    let message = query("late.service.consul.", RecordType::A);
    let reply = answer_to(running.address, &message).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    running.catalog.instances("late", 1);
    let reply = answer_to(running.address, &message).await;
    assert_eq!((reply.answers.len(), reply.answers[0].ttl), (1, 0));

    let settings = ZoneSettings {
        domain: "example.".into(),
        service_ttl: [("late".into(), Duration::from_secs(9))].into(),
        ..ZoneSettings::default()
    };
    running.server.reload(settings).unwrap();
    let reply = answer_to(running.address, &message).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let moved = query("late.service.example.", RecordType::A);
    let reply = answer_to(running.address, &moved).await;
    assert_eq!(reply.answers[0].ttl, 9);

    let bad = ZoneSettings {
        domain: "..".into(),
        ..ZoneSettings::default()
    };
    assert!(running.server.reload(bad).is_err());
    assert_eq!(answer_to(running.address, &moved).await.answers.len(), 1);
}

#[tokio::test]
async fn connections_are_bounded_and_idle_ones_end() {
    let running = start_within(ServerLimits {
        tcp_connections: 8,
        tcp_connections_per_client: 2,
        tcp_idle: Duration::from_millis(200),
    })
    .await;
    let web = query("web.service.consul.", RecordType::A)
        .to_vec()
        .unwrap();
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        tell(&mut stream, &web).await;
        hear(&mut stream).await;
        open.push(stream);
    }
    let mut third = TcpStream::connect(running.address).await.unwrap();
    closes(&mut third).await;
    // Half a query does not keep a connection open. (It may be closed already.)
    let _ = open[0].write_all(&[0]).await;
    for stream in &mut open {
        closes(stream).await;
    }
    // A client sees the end of a connection a moment before there is room for the next one.
    let again = async {
        loop {
            let mut next = TcpStream::connect(running.address).await.unwrap();
            tell(&mut next, &web).await;
            if next.read_u16().await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn a_query_that_is_too_long_ends_its_connection() {
    let running = start().await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(&[0xff, 0xff, 0, 0]).await.unwrap();
    closes(&mut stream).await;
}

#[tokio::test]
async fn shutdown_closes_everything() {
    let running = start().await;
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    let web = query("web.service.consul.", RecordType::A)
        .to_vec()
        .unwrap();
    tell(&mut idle, &web).await;
    hear(&mut idle).await;
    timeout(PATIENCE, running.server.shutdown()).await.unwrap();
    closes(&mut idle).await;
    UdpSocket::bind(running.address).await.unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_agrees() {
    if Command::new("dig").arg("-v").output().is_err() {
        println!("skipped: there is no dig");
        return;
    }
    let running = start().await;
    let port = running.address.port().to_string();
    let dig = async |arguments: &[&str]| {
        let arguments: Vec<String> = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=10"]
            .iter()
            .chain(arguments)
            .map(|argument| argument.to_string())
            .collect();
        let run = move || Command::new("dig").args(arguments).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            !text.contains("malformed") && !text.contains("Warning"),
            "{text}"
        );
        text
    };
    let short = dig(&["+short", "web.service.consul", "A"]).await;
    assert_eq!(short.lines().count(), 5, "{short}");
    let short = dig(&["+short", "_web._tcp.service.consul", "SRV"]).await;
    assert!(
        short.contains("1 1 8000 web-node-0.node.dc1.consul."),
        "{short}"
    );
    // dig asks again over TCP by itself.
    let short = dig(&["+short", "many.service.consul", "A"]).await;
    assert_eq!(
        short.lines().filter(|l| l.starts_with("10.")).count(),
        200,
        "{short}"
    );
    let cut = dig(&["+ignore", "+noedns", "many.service.consul", "A"]).await;
    assert!(cut.contains(" tc "), "{cut}");
    let long = dig(&["nothing.service.consul"]).await;
    assert!(
        long.contains("NXDOMAIN") && long.contains("SOA\tns.consul."),
        "{long}"
    );
    let long = dig(&["+edns=1", "+noednsneg", "web.service.consul"]).await;
    assert!(long.contains("BADVERS"), "{long}");
    let long = dig(&["+nsid", "+cookie", "+dnssec", "web.service.consul"]).await;
    assert!(
        long.contains("NOERROR") && long.contains("flags: do;"),
        "{long}"
    );
    let short = dig(&["+short", "-x", "10.1.0.1"]).await;
    assert!(short.ends_with("-node-0.node.dc1.consul.\n"), "{short}");
}

fn handler() -> Handler {
    let mut catalog = Catalog::default();
    catalog.instances("web", 40);
    let zone = Arc::new(ArcSwap::from_pointee(
        Zone::new(ZoneSettings::default()).unwrap(),
    ));
    Handler::new(zone, Arc::new(catalog.registry()), Arc::new(Everything))
}

/// Answers now or never: nothing in an answer waits.
fn answer_now(handler: &Handler, message: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
    let client = (Ipv4Addr::LOCALHOST, 5353).into();
    exchange(handler, message, client, protocol)
        .now_or_never()
        .expect("an answer never waits")
}

#[track_caller]
fn check_reply(message: &[u8], reply: &[u8]) {
    assert!(reply.len() <= 1232, "{}", reply.len());
    assert_eq!(reply[..2], message[..2], "the id");
    assert!(reply[2] & 0x80 != 0, "a response");
    let read = Message::from_vec(reply).expect("a reply parses");
    if read.edns.is_none() {
        assert!(reply.len() <= 512);
    }
}

#[test]
fn hostile_messages_get_a_small_answer_or_none() {
    let handler = handler();
    let good = query("web.service.consul.", RecordType::SRV)
        .to_vec()
        .unwrap();
    let header = &good[..12];
    let with_counts = |counts: [u8; 8], body: &[u8]| {
        let mut message = good[..4].to_vec();
        message.extend(counts);
        message.extend_from_slice(body);
        message
    };
    let body = &good[12..];
    let most = 0xff;
    let mut loops = header.to_vec();
    loops.extend([0xc0, 12, 0, 1, 0, 1]);
    // An additional record whose name points to itself.
    let mut later_loop = with_counts([0, 1, 0, 0, 0, 0, 0, 1], body);
    let at = later_loop.len() as u8;
    later_loop.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    // Two OPT records.
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let mut twice = with_counts([0, 1, 0, 0, 0, 0, 0, 2], body);
    twice.extend(opt);
    twice.extend(opt);
    // An OPT record that claims more data than there is.
    let mut short = with_counts([0, 1, 0, 0, 0, 0, 0, 1], body);
    short.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 255, 255]);
    for message in [
        with_counts([most; 8], body),
        with_counts([0, 1, most, most, most, most, most, most], body),
        with_counts([0, 0, 0, 0, 0, 0, 0, 0], &[]),
        loops,
        later_loop,
        twice,
        short,
    ] {
        let reply = answer_now(&handler, &message, Protocol::Udp).unwrap();
        check_reply(&message, &reply);
        assert_eq!(reply[3] & 0x0f, 1, "FORMERR: {message:?}");
        assert_eq!(reply.len(), 12);
    }
    for length in 0..good.len() {
        match answer_now(&handler, &good[..length], Protocol::Udp) {
            None => assert!(length < 12),
            Some(reply) => check_reply(&good[..length], &reply),
        }
    }
}

proptest! {
    #[test]
    fn no_message_breaks_the_server(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((0..80usize, any::<u8>()), 0..6),
        kind in prop::sample::select(&[RecordType::A, RecordType::SRV, RecordType::ANY][..]),
        edns in any::<bool>(),
    ) {
        let handler = handler();
        let mut good = query("web.service.consul.", kind);
        if edns {
            good = with_edns(good, |_| {});
        }
        let mut changed = good.to_vec().unwrap();
        for (at, byte) in flips {
            if let Some(old) = changed.get_mut(at) {
                *old = byte;
            }
        }
        for message in [&noise, &changed] {
            if let Some(reply) = answer_now(&handler, message, Protocol::Udp) {
                check_reply(message, &reply);
            }
            answer_now(&handler, message, Protocol::Tcp);
        }
    }
}
