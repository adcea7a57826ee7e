//! HTTP/1.1 on both sides.

use super::*;

#[tokio::test]
async fn requests_of_many_connections_share_one_to_the_instance() {
    let instance = Instance::answering(OK).await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    for _ in 0..5 {
        let response = get(at).await;
        assert_eq!(status(&response), "200", "{response}");
        assert!(response.ends_with("\r\n\r\nok"), "{response}");
    }
    assert_eq!(instance.connections(), 1);
    let metrics = proxy.admin("/metrics").await;
    let labels = r#"service="web",cluster="web""#;
    for line in [
        format!(r#"wharf_proxy_outbound_requests_total{{{labels},class="2xx"}} 5"#),
        format!(r#"wharf_proxy_outbound_connections_total{{{labels}}} 5"#),
        format!(r#"wharf_proxy_outbound_request_duration_seconds_count{{{labels}}} 5"#),
    ] {
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_connection_carries_requests_one_after_the_other() {
    let instance = Instance::answering(OK).await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    for i in 0..3 {
        // The second comes in two pieces, the third right behind it.
        match i {
            0 => {
                client
                    .write_all(b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\n")
                    .await
            }
            1 => {
                client.write_all(b"GET /1 HTT").await.expect("sent");
                client
                    .write_all(b"P/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
                    .await
            }
            _ => Ok(()),
        }
        .expect("sent");
        let head = read_head(&mut client).await.expect("a response");
        assert_eq!(status(&head), "200");
        assert_eq!(read_until(&mut client, "ok").await.as_deref(), Some("ok"));
    }
}

#[tokio::test]
async fn the_request_arrives_whole_and_without_what_was_for_this_hop() {
    let (sender, mut seen) = mpsc::channel(1);
    let instance = Instance::start(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            let head = read_head(&mut stream).await.expect("a head");
            let body = read_until(&mut stream, "0\r\n\r\n").await.expect("a body");
            sender.send((head, body)).await.expect("the test waits");
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let request = "POST http://real.host/path?q=1 HTTP/1.1\r\nHost: other\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\
                   X-End: 2\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=1\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n";
    let response = talk(
        TcpStream::connect(at).await.expect("connect"),
        request.as_bytes(),
    )
    .await;
    assert_eq!(status(&response), "200", "{response}");
    let (head, body) = seen.recv().await.expect("a request");
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "POST /path?q=1 HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["host: real.host", "transfer-encoding: chunked", "x-end: 2"]
    );
    assert_eq!(
        body.replace("3\r\nabc\r\n2\r\nde\r\n", "5\r\nabcde\r\n"),
        "5\r\nabcde\r\n0\r\n\r\n"
    );
}

#[tokio::test]
async fn trailers_of_a_chunked_response_are_kept() {
    let instance = Instance::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n",
    )
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, close\r\n\r\n";
    let response = talk(TcpStream::connect(at).await.expect("connect"), request).await;
    assert!(
        response.ends_with("2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n"),
        "{response}"
    );
}

#[tokio::test]
async fn head_keeps_the_length_and_has_no_body() {
    let instance = Instance::answering("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    for _ in 0..2 {
        let request = b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let response = talk(TcpStream::connect(at).await.expect("connect"), request).await;
        assert!(response.contains("content-length: 1234\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn a_response_without_a_body_gives_the_connection_back() {
    for (head, wanted) in [
        ("204 No Content\r\n", "204"),
        ("304 Not Modified\r\nContent-Length: 7\r\n", "304"),
    ] {
        let response: &'static str = format!("HTTP/1.1 {head}\r\n").leak();
        let instance = Instance::answering(response).await;
        let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
        for _ in 0..3 {
            assert_eq!(status(&get(at).await), wanted);
        }
        assert_eq!(instance.connections(), 1, "{head}");
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_passed_on() {
    let instance = Instance::start(|_, mut stream| async move {
        if read_head(&mut stream).await.is_some() {
            let _ = stream
                .write_all(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end")
                .await;
        }
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    for _ in 0..2 {
        // The client's connection outlives the instance's.
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("sent");
        let head = read_head(&mut client).await.expect("head");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert!(
            read_until(&mut client, "0\r\n\r\n")
                .await
                .expect("body")
                .contains("until the end")
        );
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_passed_off_as_whole() {
    let received = Arc::new(tokio::sync::Notify::new());
    let inner = Arc::clone(&received);
    let instance = Instance::start(move |_, mut stream| {
        let received = Arc::clone(&inner);
        async move {
            if read_head(&mut stream).await.is_some() {
                let _ = stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                    )
                    .await;
                received.notified().await;
            }
        }
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    assert!(read_until(&mut client, "hello\r\n").await.is_some());
    received.notify_one();
    assert_eq!(talk(client, b"").await, "", "no last chunk");
}

#[tokio::test]
async fn expect_continue_is_answered_once_the_instance_wants_the_body() {
    let instance = Instance::start(|_, mut stream| async move {
        let head = read_head(&mut stream).await.expect("head");
        assert!(!head.to_lowercase().contains("expect"), "{head}");
        read_until(&mut stream, "body!").await.expect("body");
        let _ = stream.write_all(OK.as_bytes()).await;
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    client
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        )
        .await
        .expect("sent");
    assert_eq!(
        read_head(&mut client).await.as_deref(),
        Some("HTTP/1.1 100 Continue\r\n\r\n")
    );
    client.write_all(b"body!").await.expect("sent");
    assert_eq!(status(&read_head(&mut client).await.expect("head")), "200");
}

#[tokio::test]
async fn informational_responses_do_not_end_the_exchange() {
    let instance = Instance::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    for _ in 0..2 {
        assert_eq!(status(&get(at).await), "200");
    }
}

#[tokio::test]
async fn connect_is_refused_with_a_reason() {
    let instance = Instance::answering(OK).await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let request = b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nConnection: close\r\n\r\n";
    let response = talk(TcpStream::connect(at).await.expect("connect"), request).await;
    assert_eq!(status(&response), "405", "{response}");
    assert!(
        response.contains("allow: GET") && response.contains("leads to one service"),
        "{response}"
    );
    assert_eq!(instance.connections(), 0);
}

#[tokio::test]
async fn websockets_become_a_tunnel() {
    let instance = Instance::start(|_, mut stream| async move {
        let head = read_head(&mut stream).await.expect("head").to_lowercase();
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: 1\r\n\r\nearly";
        let _ = stream.write_all(switch).await;
        // The tunnel is closed from the client's side only.
        while let Some(line) = read_until(&mut stream, "\n").await {
            let _ = stream.write_all(line.to_uppercase().as_bytes()).await;
        }
        let _ = stream.write_all(b"bye").await;
    })
    .await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    // What follows the head belongs to the new protocol, and waits for the 101.
    let request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nfirst\n";
    client.write_all(request).await.expect("sent");
    let head = read_head(&mut client).await.expect("head");
    assert_eq!(status(&head), "101");
    assert!(
        head.contains("x-key: 1") && head.contains("upgrade: websocket"),
        "{head}"
    );
    assert_eq!(
        read_until(&mut client, "earlyFIRST\n").await.as_deref(),
        Some("earlyFIRST\n")
    );
    client.write_all(b"second\n").await.expect("sent");
    assert_eq!(
        read_until(&mut client, "SECOND\n").await.as_deref(),
        Some("SECOND\n")
    );
    client.shutdown().await.expect("half closed");
    assert_eq!(read_until(&mut client, "bye").await.as_deref(), Some("bye"));
    assert_eq!(read_until(&mut client, "\n").await, None);
    proxy
        .eventually("/metrics", |m| {
            m.contains(r#"connections_active{service="web",cluster="web"} 0"#)
        })
        .await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_exchange() {
    let instance = Instance::answering(OK).await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    let request =
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for _ in 0..2 {
        client.write_all(request).await.expect("sent");
        assert_eq!(status(&read_head(&mut client).await.expect("head")), "200");
        assert_eq!(read_until(&mut client, "ok").await.as_deref(), Some("ok"));
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn a_switch_nobody_asked_for_is_an_error() {
    let instance = Instance::answering(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    )
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    assert_eq!(status(&get(at).await), "502");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let (sender, mut events) = mpsc::channel(4);
    let instance = Instance::start(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            read_head(&mut stream).await.expect("head");
            sender.send("request").await.expect("the test waits");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            sender.send("gone").await.expect("the test waits");
        }
    })
    .await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(events.recv().await, Some("request"));
    drop(client);
    assert_eq!(
        timeout(PATIENCE, events.recv()).await.expect("cancelled"),
        Some("gone")
    );
    proxy
        .eventually("/metrics", |m| m.contains(r#"class="canceled"} 1"#))
        .await;
}

#[tokio::test]
async fn silence_before_the_first_byte_and_within_a_head_is_cut() {
    let instance = Instance::answering(OK).await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Http, &[instance.address])).await;
    let tuning = Tuning {
        header_timeout: Duration::from_millis(150),
        ..Tuning::default()
    };
    let _proxy = Proxy::ready_with(options(agent.address), tuning).await;
    for sent in [
        "",
        "GET / HT",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "PRI * HTTP/2.0",
    ] {
        let answer = talk(
            TcpStream::connect(at).await.expect("connect"),
            sent.as_bytes(),
        )
        .await;
        assert_eq!(answer, "", "{sent:?}");
    }
    // Between requests there is more time than within a head.
    let mut client = TcpStream::connect(at).await.expect("connect");
    for _ in 0..2 {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("sent");
        read_until(&mut client, "ok").await.expect("an answer");
        sleep(Duration::from_millis(300)).await;
    }
}
