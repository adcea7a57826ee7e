//! Following the configuration, and the end.

use super::*;

/// Answers each request with the same text, slowly: one part at once, the rest when told.
async fn slow(gate: Arc<tokio::sync::Semaphore>) -> (Instance, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let instance = Instance::start(move |_, mut stream| {
        let (gate, counter) = (Arc::clone(&gate), Arc::clone(&counter));
        async move {
            while read_head(&mut stream).await.is_some() {
                counter.fetch_add(1, Relaxed);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npart")
                    .await;
                gate.acquire().await.expect("open").forget();
                let _ = stream.write_all(b"rest").await;
            }
        }
    })
    .await;
    (instance, requests)
}

#[tokio::test]
async fn an_instance_that_leaves_finishes_what_it_has_and_gets_no_more() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (leaving, requests) = slow(Arc::clone(&gate)).await;
    let (agent, _proxy, at) = serve(ProxyProtocol::Http, &[leaving.address]).await;
    let running = tokio::spawn(get(at));
    eventually("a request runs", async || {
        (requests.load(Relaxed) == 1).then_some(())
    })
    .await;

    let staying = Instance::answering(OK).await;
    agent.change(|s| s.clusters = vec![cluster("web", ProxyProtocol::Http, &[staying.address])]);
    eventually("the new one serves", async || {
        timeout(Duration::from_millis(200), get(at))
            .await
            .ok()
            .filter(|r| r.ends_with("ok"))
    })
    .await;
    let before = requests.load(Relaxed);
    for _ in 0..10 {
        assert!(get(at).await.ends_with("ok"));
    }
    assert_eq!(requests.load(Relaxed), before);
    gate.add_permits(100);
    assert!(running.await.expect("joined").ends_with("partrest"));
}

#[tokio::test]
async fn idle_connections_to_an_instance_that_left_are_closed() {
    let (sender, mut closed) = mpsc::channel(1);
    let leaving = Instance::start(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(OK.as_bytes()).await;
            if read_head(&mut stream).await.is_none() {
                let _ = sender.send(()).await;
            }
        }
    })
    .await;
    let (agent, _proxy, at) = serve(ProxyProtocol::Http, &[leaving.address]).await;
    assert_eq!(status(&get(at).await), "200");
    agent.change(|s| s.clusters[0].endpoints.clear());
    timeout(Duration::from_secs(1), closed.recv())
        .await
        .expect("at once, not when it was idle for long");
}

#[tokio::test]
async fn listeners_come_move_swap_and_go_while_connections_stay() {
    let (a, b) = (
        Instance::answering(OK).await,
        Instance::answering("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb").await,
    );
    let (agent, _proxy, at) = serve(ProxyProtocol::Http, &[a.address]).await;
    let mut open = TcpStream::connect(at).await.expect("connect");
    let ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    open.write_all(ask).await.expect("sent");
    assert!(read_until(&mut open, "ok").await.is_some());

    let other = free_address();
    agent.change(|s| {
        s.listeners
            .push(listener("b", other, ProxyProtocol::Http, "b"));
        s.clusters
            .push(cluster("b", ProxyProtocol::Http, &[b.address]));
    });
    let reaches = async |at, end: &str| {
        eventually(end, async || {
            let stream = TcpStream::connect(at).await.ok()?;
            Some(
                talk(
                    stream,
                    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                )
                .await,
            )
            .filter(|r| r.ends_with(end))
        })
        .await
    };
    reaches(other, "\r\n\r\nb").await;

    // Each takes the other's port.
    agent.change(|s| {
        s.listeners = vec![
            listener("web", other, ProxyProtocol::Http, "web"),
            listener("b", at, ProxyProtocol::Http, "b"),
        ];
    });
    reaches(at, "\r\n\r\nb").await;
    reaches(other, "\r\n\r\nok").await;
    open.write_all(ask)
        .await
        .expect("the connection moved with its listener");
    assert!(read_until(&mut open, "ok").await.is_some());

    // A removed listener lets its connections go in peace.
    agent.change(|s| s.listeners.retain(|l| l.name == "b"));
    eventually("the port is closed", async || {
        TcpStream::connect(other).await.is_err().then_some(())
    })
    .await;
    assert_eq!(talk(open, b"").await, "");
    reaches(at, "\r\n\r\nb").await;
}

#[tokio::test]
async fn the_last_configuration_serves_while_the_agent_is_away() {
    let instance = Instance::answering(OK).await;
    let (mut agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    agent.serving = None;
    proxy
        .eventually("/config_dump", |d| d.contains(r#""agent_connected":false"#))
        .await;
    assert_eq!(status(&get(at).await), "200");
    assert!(proxy.admin("/ready").await.contains("200 OK"));

    agent.change(|s| s.clusters[0].endpoints.clear());
    agent.resume().await;
    eventually("the news", async || {
        Some(get(at).await).filter(|r| status(r) == "503")
    })
    .await;
    proxy
        .eventually("/config_dump", |d| d.contains(r#""agent_connected":true"#))
        .await;
}

#[tokio::test]
async fn an_agent_that_refuses_a_serving_proxy_does_not_end_it() {
    let instance = Instance::answering(OK).await;
    let (mut agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    agent.serving = None;
    proxy
        .eventually("/config_dump", |d| d.contains(r#""agent_connected":false"#))
        .await;
    agent.refuses.store(true, Relaxed);
    agent.resume().await;
    // Long enough for some attempts, each of which is refused.
    for _ in 0..20 {
        assert_eq!(status(&get(at).await), "200");
        sleep(Duration::from_millis(20)).await;
    }
    agent.refuses.store(false, Relaxed);
    proxy
        .eventually("/config_dump", |d| d.contains(r#""agent_connected":true"#))
        .await;
}

#[tokio::test]
async fn a_taken_port_costs_its_own_listener_only() {
    let instance = Instance::answering(OK).await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let (at, blocked) = (free_address(), taken.local_addr().expect("bound"));
    let mut snapshot = one(at, ProxyProtocol::Http, &[instance.address]);
    snapshot
        .listeners
        .push(listener("blocked", blocked, ProxyProtocol::Http, "web"));
    let agent = Agent::start(snapshot).await;
    let proxy = Proxy::ready(&agent).await;
    assert_eq!(status(&get(at).await), "200");
    let dump = proxy.admin("/config_dump").await;
    assert!(dump.contains("Address already in use"), "{dump}");
    assert!(
        proxy
            .admin("/metrics")
            .await
            .contains("wharf_proxy_listeners_failed 1")
    );
    drop(taken);
    eventually("the port is free", async || {
        let stream = TcpStream::connect(blocked).await.ok()?;
        let answer = talk(
            stream,
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        (status(&answer) == "200").then_some(())
    })
    .await;
    assert!(
        proxy
            .admin("/metrics")
            .await
            .contains("wharf_proxy_listeners_failed 0")
    );
}

#[tokio::test]
async fn two_proxies_do_not_share_a_port() {
    let instance = Instance::answering(OK).await;
    let (agent, _first, _at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let second = Proxy::ready_with(
        ProxyOptions {
            workers: Some(2),
            ..options(agent.address)
        },
        Tuning::default(),
    )
    .await;
    let dump = second.admin("/config_dump").await;
    assert!(dump.contains("Address already in use"), "{dump}");
}

#[tokio::test]
async fn a_request_that_can_never_be_served_ends_the_proxy() {
    let agent = Agent::start(ProxySnapshot::default()).await;
    let target = Target::SidecarFor("bad".into());
    let proxy = Proxy::start(
        ProxyOptions {
            target,
            ..options(agent.address)
        },
        Tuning::default(),
    );
    let error = proxy.ended().await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        format!(
            "the agent at {} refuses this proxy: no proxy can be called that",
            agent.address
        )
    );
}

/// Somebody who waits for a proxy to be ready, and the address it is told.
fn waiting(name: &str) -> (tokio::net::UnixDatagram, String) {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("wharf-{name}-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = std::os::unix::net::UnixDatagram::bind_addr(&address).expect("a socket");
    socket.set_nonblocking(true).expect("possible");
    let socket = tokio::net::UnixDatagram::from_std(socket).expect("a socket");
    (socket, format!("@{name}"))
}

#[tokio::test]
async fn it_says_that_it_is_ready_when_it_listens() {
    let at = free_address();
    let instance = Instance::answering(OK).await;
    let (socket, notify) = waiting("ready");
    let mut agent = Agent::start(one(at, ProxyProtocol::Http, &[instance.address])).await;
    agent.serving = None;
    let _proxy = Proxy::start(
        ProxyOptions {
            notify: Some(notify),
            ..options(agent.address)
        },
        Tuning::default(),
    );
    let mut word = [0; 32];
    let early = timeout(Duration::from_millis(100), socket.recv(&mut word)).await;
    assert!(early.is_err(), "there is no configuration yet");
    agent.resume().await;
    let length = timeout(PATIENCE, socket.recv(&mut word)).await;
    let length = length.expect("soon").expect("a word");
    assert_eq!(&word[..length], b"READY=1\n");
    assert_eq!(status(&get(at).await), "200", "it listens at once");
}

#[tokio::test]
async fn who_is_waited_for_and_cannot_listen_ends_with_the_reason() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let at = taken.local_addr().expect("an address");
    let (_socket, notify) = waiting("taken");
    let agent = Agent::start(one(at, ProxyProtocol::Http, &[])).await;
    let proxy = Proxy::start(
        ProxyOptions {
            notify: Some(notify),
            ..options(agent.address)
        },
        Tuning::default(),
    );
    let error = proxy.ended().await.expect_err("refused").to_string();
    assert!(
        error.contains("web") && error.contains(&at.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn bad_options_are_told_at_once() {
    let agent = free_address();
    let run = async |options: ProxyOptions| {
        Proxy::start(options, Tuning::default())
            .ended()
            .await
            .expect_err("refused")
            .to_string()
    };
    let error = run(ProxyOptions {
        agent_grpc: "nowhere".into(),
        ..options(agent)
    })
    .await;
    assert_eq!(
        error,
        "the agent's gRPC address \"nowhere\" is neither host:port nor unix:///path"
    );
    let error = run(ProxyOptions {
        notify: Some("/nonexistent/notify".into()),
        ..options(agent)
    })
    .await;
    assert!(error.contains("NOTIFY_SOCKET"), "{error}");
    let error = run(ProxyOptions {
        token: Some("a\nb".into()),
        ..options(agent)
    })
    .await;
    assert!(error.contains("characters"), "{error}");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let error = run(ProxyOptions {
        admin: taken.local_addr().ok(),
        ..options(agent)
    })
    .await;
    assert!(
        error.contains("cannot listen on the admin address"),
        "{error}"
    );
}

#[tokio::test]
async fn a_drain_finishes_requests_closes_idle_connections_and_takes_no_new_ones() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (instance, requests) = slow(Arc::clone(&gate)).await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Http, &[instance.address])).await;
    let options = ProxyOptions {
        drain_timeout: PATIENCE,
        workers: Some(2),
        ..options(agent.address)
    };
    let proxy = Proxy::ready_with(options, Tuning::default()).await;

    let idle = TcpStream::connect(at).await.expect("connect");
    let mut running = TcpStream::connect(at).await.expect("connect");
    running
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    eventually("a request runs", async || {
        (requests.load(Relaxed) == 1).then_some(())
    })
    .await;

    proxy.stop.send(()).await.expect("it runs");
    proxy
        .eventually("/ready", |body| {
            body.contains("503") && body.contains("draining")
        })
        .await;
    assert_eq!(talk(idle, b"").await, "");
    eventually("the port is closed", async || {
        TcpStream::connect(at).await.is_err().then_some(())
    })
    .await;
    gate.add_permits(1);
    let response = talk(running, b"").await;
    assert!(response.ends_with("partrest"), "{response}");
    proxy.ended().await.expect("drained");
}

#[tokio::test]
async fn the_drain_ends_by_its_deadline() {
    let instance = Instance::start(|_, mut stream| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Tcp, &[instance.address])).await;
    let options = ProxyOptions {
        drain_timeout: Duration::from_millis(200),
        ..options(agent.address)
    };
    let proxy = Proxy::ready_with(options, Tuning::default()).await;
    let mut open = TcpStream::connect(at).await.expect("connect");
    open.write_all(b"x").await.expect("sent");
    eventually("it is connected", async || {
        (instance.connections() == 1).then_some(())
    })
    .await;
    proxy.stop.send(()).await.expect("it runs");
    assert_eq!(talk(open, b"").await, "");
    proxy.ended().await.expect("ended");
}

#[tokio::test]
async fn a_second_signal_cuts_the_drain_short() {
    let instance = Instance::start(|_, mut stream| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Tcp, &[instance.address])).await;
    let options = ProxyOptions {
        drain_timeout: Duration::from_secs(3600),
        ..options(agent.address)
    };
    let proxy = Proxy::ready_with(options, Tuning::default()).await;
    let open = TcpStream::connect(at).await.expect("connect");
    eventually("it is connected", async || {
        (instance.connections() == 1).then_some(())
    })
    .await;
    proxy.stop.send(()).await.expect("it runs");
    proxy.stop.send(()).await.expect("it drains");
    assert_eq!(talk(open, b"").await, "");
    proxy.ended().await.expect("ended");
}

#[tokio::test]
async fn the_admin_port_says_what_it_has() {
    let (agent, proxy, at) = serve(ProxyProtocol::Http, &[]).await;
    agent.change(|s| {
        s.clusters[0].endpoints.push(v1::Endpoint {
            address: "no good".into(),
            port: 1,
            ..v1::Endpoint::default()
        })
    });
    let dump = proxy
        .eventually("/config_dump", |d| d.contains("no good"))
        .await;
    assert!(dump.contains(&format!(r#""address":"{at}""#)), "{dump}");
    assert!(!dump.contains("secret"), "{dump}");
    assert!(
        proxy
            .admin("/metrics")
            .await
            .contains("wharf_proxy_config_rejected 1")
    );
    assert!(proxy.admin("/nothing").await.contains("404"));
    let stream = TcpStream::connect(proxy.admin).await.expect("connect");
    let post = talk(
        stream,
        b"POST /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status(&post), "405");
}
