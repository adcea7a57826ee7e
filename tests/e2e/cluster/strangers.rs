//! Who reaches the server port and means no good.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Instant,
};

use wharf_tests::SOON;

use super::servers::Site;

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// HTTP/2 as far as it takes to begin requests.
struct Connection(TcpStream);

impl Connection {
    fn open(address: &str) -> Connection {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let mut connection = Connection(stream);
        connection.frame(SETTINGS, 0, 0, &[]);
        connection
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        // A server that has had enough of it closes the connection.
        let _ = self.0.write_all(&[&head, body].concat());
    }

    /// Begins a request without an envelope, and brings a part of its message.
    fn begin(&mut self, stream: u32, method: &str, length: u32, sent: usize) {
        let path = format!("/wharf.server.v1.Servers/{method}");
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", &path),
            (":authority", "server"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ] {
            // A literal, not to be remembered, with a new name.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, stream, &block);
        let head = length.to_be_bytes();
        let message = [&[0], &head[..], &vec![0; sent]].concat();
        self.frame(DATA, 0, stream, &message);
    }

    /// Reads until all of these were answered, or the connection is closed.
    #[track_caller]
    fn answered(&mut self, streams: impl IntoIterator<Item = u32>) {
        let mut missing: BTreeSet<u32> = streams.into_iter().collect();
        let began = Instant::now();
        while !missing.is_empty() {
            assert!(began.elapsed() < SOON, "no answer to {missing:?}");
            let mut head = [0; 9];
            match self.0.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if is_closed(&error) => return,
                Err(error) => panic!("no answer to {missing:?}: {error}"),
            }
            let [l0, l1, l2, kind, flags, stream @ ..] = head;
            let mut body = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
            match self.0.read_exact(&mut body) {
                Err(error) if is_closed(&error) => return,
                read => read.unwrap(),
            }
            match kind {
                HEADERS | RST_STREAM => {
                    missing.remove(&u32::from_be_bytes(stream));
                }
                SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
                _ => {}
            }
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// A message that is announced and does not come costs the server neither memory nor a place for long.
#[test]
fn what_a_stranger_begins_and_does_not_end_is_turned_away() {
    let site = Site::new(&[]);
    let server = site.start(1, &["-bootstrap"]);
    server.wait_for_peers(1);
    let mut stranger = Connection::open(&site.server_address(1));
    // Far too long for who says nothing of itself.
    let long = 19 << 20;
    for n in 0..8 {
        stranger.begin(2 * n + 1, "Hello", long, 16_000);
    }
    stranger.answered((0..8).map(|n| 2 * n + 1));
    // In no envelope.
    let mut stranger = Connection::open(&site.server_address(1));
    stranger.begin(101, "Propose", long, 16_000);
    stranger.begin(103, "Append", long, 16_000);
    stranger.answered([101, 103]);
    // Many at once, and then too late.
    let mut stranger = Connection::open(&site.server_address(1));
    for n in 0..40 {
        stranger.begin(2 * n + 201, "Hello", 100, 99);
    }
    stranger.answered((0..40).map(|n| 2 * n + 201));
    assert!(server.put("a", b"value"));
}
