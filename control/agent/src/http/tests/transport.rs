//! What goes over a connection, whichever endpoint it is for.

use std::io::Read as _;

use super::*;

/// A connection that stays open, as clients with a pool keep it.
struct Kept(TcpStream, Vec<u8>);

impl Kept {
    async fn open(api: &Api) -> Kept {
        Kept(TcpStream::connect(api.address).await.unwrap(), Vec::new())
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer on the connection: its head and its body.
    async fn reply(&mut self) -> (String, Vec<u8>) {
        loop {
            if let Some(end) = self.1.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.1[..end].to_vec()).unwrap();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "))
                    .map_or(0, |length| length.parse().unwrap());
                if self.1.len() >= end + 4 + length {
                    let rest = self.1.split_off(end + 4 + length);
                    let body = self.1.split_off(end + 4);
                    self.1 = rest;
                    return (head, body);
                }
            }
            let read = self.0.read_buf(&mut self.1).await.unwrap();
            assert_ne!(read, 0, "the server closed the connection");
        }
    }
}

#[tokio::test]
async fn headers_are_written_as_go_writes_them() {
    let api = Api::start().await;
    let reply = api.get("/v1/catalog/nodes").await;
    for name in [
        "X-Consul-Index: ",
        "X-Consul-Knownleader: true",
        "Content-Type: ",
    ] {
        assert!(reply.head.contains(name), "{name} in {}", reply.head);
    }
}

#[tokio::test]
async fn a_body_that_is_not_read_does_not_spoil_the_connection() {
    let api = Api::start().await;
    let mut kept = Kept::open(&api).await;
    // The body comes after its head, when the answer may be there already.
    for path in [
        "/v1/agent/check/pass/none",
        "/v1/nothing",
        "/v1/status/leader",
    ] {
        kept.send(format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        ))
        .await;
        tokio::task::yield_now().await;
        kept.send(vec![b' '; 60_000]).await;
        let (head, _) = kept.reply().await;
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
        assert!(!head.contains("Connection: close"), "{head}");
    }
    kept.send("GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(kept.reply().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_connection_that_ends_with_an_answer_says_so() {
    let api = Api::start().await;
    for path in ["/v1/kv/large", "/v1/nothing"] {
        let mut kept = Kept::open(&api).await;
        let length = 524_289;
        kept.send(format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        ))
        .await;
        let (head, _) = kept.reply().await;
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
        assert!(head.contains("\r\nConnection: close"), "{head}");
    }
}

#[tokio::test]
async fn long_answers_are_compressed_for_who_takes_it() {
    let api = Api::start().await;
    let value = "0123456789abcdef".repeat(20_000);
    assert_eq!(api.put("/v1/kv/long", &value).await.body, "true");
    assert_eq!(api.put("/v1/kv/short", "short").await.body, "true");
    let mut kept = Kept::open(&api).await;
    let mut get = async |path: &str, accept: &str| {
        kept.send(format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n"
        ))
        .await;
        let (head, body) = kept.reply().await;
        assert!(head.contains("\r\nVary: Accept-Encoding"), "{head}");
        (head, body)
    };
    let (head, body) = get("/v1/kv/long?raw", "gzip, deflate").await;
    assert!(head.contains("\r\nContent-Encoding: gzip"), "{head}");
    assert!(head.contains("\r\nX-Consul-Index: "), "{head}");
    assert!(body.len() < value.len() / 10);
    let mut back = String::new();
    flate2::read::GzDecoder::new(&body[..])
        .read_to_string(&mut back)
        .unwrap();
    assert_eq!(back, value);
    for (path, accept) in [
        ("/v1/kv/long?raw", "identity"),
        ("/v1/kv/long?raw", "gzip;q=0"),
        ("/v1/kv/short?raw", "gzip"),
    ] {
        let (head, body) = get(path, accept).await;
        assert!(!head.contains("Content-Encoding"), "{head}");
        let plain = if path.contains("long") {
            &value
        } else {
            "short"
        };
        assert_eq!(body, plain.as_bytes());
    }
}

#[tokio::test]
async fn a_filter_that_names_no_field_is_refused() {
    let api = Api::start().await;
    api.register("n1", "web", "passing").await;
    for (path, selector) in [
        ("/v1/health/service/web", "Service.Name"),
        ("/v1/health/checks/web", "Service.Port"),
        ("/v1/health/state/any", "State"),
        ("/v1/health/node/n1", "Checks.Status"),
        ("/v1/catalog/nodes", "node"),
        ("/v1/catalog/services", "Service"),
        ("/v1/catalog/service/web", "Service.Port"),
        ("/v1/catalog/node/n1", "ServiceName"),
        ("/v1/agent/services", "Name"),
        ("/v1/agent/checks", "ID"),
        ("/v1/agent/members", "Node"),
    ] {
        let reply = api.get(&format!("{path}?filter={selector}==x")).await;
        let text = format!(
            "Failed to create boolean expression evaluator: Selector {selector:?} is not valid"
        );
        assert_eq!((reply.status, reply.body), (400, text), "{path}");
    }
}
