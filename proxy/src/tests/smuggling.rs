//! Requests on which two parsers could disagree. Each is refused, or reaches the instance as exactly one message whose
//! framing the proxy made itself.

use super::*;

/// What an instance with its own simple framing sees of a connection: the heads, each with its body by length.
async fn record(mut stream: TcpStream, sender: mpsc::Sender<String>) {
    while let Some(mut message) = read_head(&mut stream).await {
        let lower = message.to_lowercase();
        let length = lower
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .map(|l| l.parse::<usize>());
        if let Some(length) = length {
            let mut body = vec![0; length.expect("a plain number")];
            stream.read_exact(&mut body).await.expect("the body");
            message += &String::from_utf8_lossy(&body);
        } else if lower.contains("transfer-encoding: chunked") {
            message += &read_until(&mut stream, "0\r\n\r\n")
                .await
                .expect("the body");
        }
        sender.send(message).await.expect("the test waits");
        let _ = stream.write_all(OK.as_bytes()).await;
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused_or_made_plain() {
    let (sender, mut seen) = mpsc::channel(16);
    let instance = Instance::start(move |_, stream| record(stream, sender.clone())).await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;

    /// What must not become a request of its own.
    const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused: &[(&str, String)] = &[
        (
            "a signed length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello".into(),
        ),
        (
            "a hexadecimal length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello".into(),
        ),
        (
            "a negative length",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nhello".into(),
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"
                .into(),
        ),
        (
            "a list of lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!".into(),
        ),
        (
            "a huge length",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}0\r\n\r\n",
                u64::MAX
            ),
        ),
        (
            "a folded header",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n".into(),
        ),
        (
            "a folded coding",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "space before the colon",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "an unknown coding",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "chunked not last",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "a second coding",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "the coding twice",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "a coding in HTTP/1.0",
            format!(
                "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into()),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(),
        ),
        (
            "a space in the target",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "a bare CR in a value",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n".into(),
        ),
        (
            "a zero byte in a value",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\0\r\n\r\n".into(),
        ),
        (
            "a line without a colon",
            "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n".into(),
        ),
        (
            "an HTTP/2 preface cut short",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".into(),
        ),
        (
            "an unknown version",
            "GET / HTTP/3.0\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "credentials in the target",
            "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        ),
        (
            "101 headers",
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "X: 1\r\n".repeat(100)
            ),
        ),
        (
            "a head of over 64 KiB",
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "x".repeat(70_000)
            ),
        ),
    ];
    for (what, request) in refused {
        let answer = talk(
            TcpStream::connect(at).await.expect("connect"),
            request.as_bytes(),
        )
        .await;
        assert!(
            answer.is_empty() || ["400", "431", "501"].contains(&status(&answer)),
            "{what}: {answer}"
        );
        assert_eq!(seen.try_recv().ok(), None, "{what} reached the instance");
        assert_eq!(
            answer
                .lines()
                .filter(|l| l.starts_with("HTTP/1.1 "))
                .count(),
            usize::from(!answer.is_empty()),
            "{what}: one answer: {answer}"
        );
    }

    let plain: &[(&str, String, &str)] = &[
        (
            "a length beside a coding: the coding counts, and the connection ends",
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            "",
        ),
        (
            "a coding beside a length",
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            "",
        ),
        ("bare line feeds", "GET / HTTP/1.1\nHost: a\nConnection: close\n\n".into(), ""),
        (
            "a length named in Connection",
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, content-length\r\nContent-Length: 5\r\n\r\nhello".into(),
            "hello",
        ),
        (
            "the same length twice",
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(),
            "hello",
        ),
    ];
    for (what, request, body) in plain {
        let answer = talk(
            TcpStream::connect(at).await.expect("connect"),
            request.as_bytes(),
        )
        .await;
        assert_eq!(status(&answer), "200", "{what}: {answer}");
        assert_eq!(
            answer
                .lines()
                .filter(|l| l.starts_with("HTTP/1.1 "))
                .count(),
            1,
            "{what}: {answer}"
        );
        let message = seen.recv().await.expect("a message");
        let lower = message.to_lowercase();
        let framings =
            lower.matches("content-length:").count() + lower.matches("transfer-encoding:").count();
        assert!(framings <= 1, "{what}: {message}");
        assert!(
            !message.contains("/admin") && message.replace('\r', "").matches('\n').count() >= 2,
            "{what}: {message}"
        );
        assert!(message.contains(body), "{what}: {message}");
        assert_eq!(
            message.matches('\n').count(),
            message.matches("\r\n").count(),
            "{what}: bare LF in {message:?}"
        );
        assert_eq!(seen.try_recv().ok(), None, "{what}: a second request");
    }
}

#[tokio::test]
async fn a_bad_chunk_ends_the_connection_and_the_message() {
    for chunk in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let (sender, mut seen) = mpsc::channel(4);
        let instance = Instance::start(move |_, mut stream| {
            let sender = sender.clone();
            async move {
                let mut read = Vec::new();
                let _ = stream.read_to_end(&mut read).await;
                let _ = sender
                    .send(String::from_utf8_lossy(&read).into_owned())
                    .await;
            }
        })
        .await;
        let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = talk(
            TcpStream::connect(at).await.expect("connect"),
            request.as_bytes(),
        )
        .await;
        assert!(
            answer.is_empty() || ["400", "502"].contains(&status(&answer)),
            "{chunk:?}: {answer}"
        );
        // The instance either saw nothing or a message that never ended.
        if instance.connections() > 0 {
            let message = seen.recv().await.expect("it ends");
            assert!(
                !message.contains("0\r\n\r\n") && !message.contains("/admin"),
                "{chunk:?}: {message}"
            );
        }
    }
}

#[tokio::test]
async fn an_instance_cannot_smuggle_a_response() {
    for (response, wanted) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "502",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", "502"),
        (
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\nContent-Length: 2\r\n\r\nok",
            "502",
        ),
        ("nonsense\r\n\r\n", "502"),
        // The length is not to be believed beside the coding: what follows the last chunk is nobody's response.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 EVIL\r\n\r\n",
            "200",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 EVIL\r\nContent-Length: 0\r\n\r\n",
            "200",
        ),
    ] {
        let instance = Instance::answering(response).await;
        let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
        for _ in 0..2 {
            let answer = get(at).await;
            assert_eq!(status(&answer), wanted, "{response:?}: {answer}");
            assert!(!answer.contains("EVIL"), "{response:?}: {answer}");
        }
    }
}
