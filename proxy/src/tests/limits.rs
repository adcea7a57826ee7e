//! Retries, refusals and limits.

use super::*;

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

async fn post(at: SocketAddr) -> String {
    talk(TcpStream::connect(at).await.expect("connect"), POST).await
}

#[tokio::test]
async fn an_instance_that_refuses_connections_is_never_seen_by_the_client() {
    let instance = Instance::answering(OK).await;
    let dead = [free_address(), free_address(), free_address()];
    let (_agent, proxy, at) = serve(
        ProxyProtocol::Http,
        &[dead[0], dead[1], instance.address, dead[2]],
    )
    .await;
    for _ in 0..20 {
        assert_eq!(status(&post(at).await), "200");
    }
    let metrics = proxy.admin("/metrics").await;
    assert!(
        !metrics.contains(r#"connect_failures_total{service="web",cluster="web"} 0"#),
        "{metrics}"
    );
    assert!(
        !metrics.contains(r#"retries_total{service="web",cluster="web"} 0"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_refusal_says_why() {
    let (agent, _proxy, at) = serve(ProxyProtocol::Http, &[]).await;
    let response = get(at).await;
    assert_eq!(status(&response), "503");
    assert!(
        response.ends_with("\r\n\r\nno healthy instance of \"web\"\n"),
        "{response}"
    );
    let header = r#"proxy-status: wharf; error=destination_unavailable; details="no healthy instance of \"web\"""#;
    assert!(response.contains(header), "{response}");

    agent.change(|s| s.clusters = vec![cluster("web", ProxyProtocol::Http, &[free_address()])]);
    let response = eventually("the instance is known", async || {
        Some(get(at).await).filter(|r| !r.contains("no healthy"))
    })
    .await;
    assert_eq!(status(&response), "503");
    assert!(
        response.contains(
            "no instance of \"web\" accepts connections (1 tried; last: Connection refused"
        ),
        "{response}"
    );
    assert!(response.contains("error=connection_refused"), "{response}");
}

#[tokio::test]
async fn a_connection_that_died_in_the_pool_costs_nothing() {
    // Each connection serves one request, says it would serve more, and closes.
    let instance = Instance::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(OK.as_bytes()).await;
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    for _ in 0..10 {
        assert_eq!(
            status(&post(at).await),
            "200",
            "any method: nothing was sent"
        );
    }
}

/// Instances whose connections serve one request and then close when they get a second one.
async fn second_request_dies() -> (Instance, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let instance = Instance::start(move |_, mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            if read_head(&mut stream).await.is_some() {
                counter.fetch_add(1, Relaxed);
                let _ = stream.write_all(OK.as_bytes()).await;
            }
            if read_head(&mut stream).await.is_some() {
                counter.fetch_add(1, Relaxed);
            }
        }
    })
    .await;
    (instance, requests)
}

#[tokio::test]
async fn a_request_that_died_on_a_used_connection_is_sent_again_when_that_is_safe() {
    let (instance, requests) = second_request_dies().await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    assert_eq!(status(&get(at).await), "200");
    assert_eq!(status(&get(at).await), "200", "it was sent again");
    assert_eq!(requests.load(Relaxed), 3);
    let put = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(
        status(&talk(TcpStream::connect(at).await.expect("connect"), put).await),
        "200"
    );
    assert_eq!(requests.load(Relaxed), 5);
    proxy
        .eventually("/metrics", |m| {
            m.contains(r#"retries_total{service="web",cluster="web"} 2"#)
        })
        .await;

    let response = post(at).await;
    assert_eq!(status(&response), "502", "a POST may have been worked on");
    assert!(
        response.contains("ended the connection before it answered"),
        "{response}"
    );
    assert_eq!(requests.load(Relaxed), 6, "it was sent once");
}

#[tokio::test]
async fn a_body_is_sent_again_while_it_is_small() {
    let (sender, mut bodies) = mpsc::channel(8);
    let instance = Instance::start(move |n, mut stream| {
        let sender = sender.clone();
        async move {
            for turn in 0.. {
                let Some(head) = read_head(&mut stream).await else {
                    return;
                };
                let length = head
                    .to_lowercase()
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                if stream.read_exact(&mut body).await.is_err() {
                    return;
                }
                sender.send((n, body.len())).await.expect("the test waits");
                if turn > 0 && n == 0 {
                    return;
                }
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        }
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    assert_eq!(status(&get(at).await), "200");
    let put = |len: usize| async move {
        let head = format!(
            "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
        );
        let request = [head.into_bytes(), vec![b'x'; len]].concat();
        talk(TcpStream::connect(at).await.expect("connect"), &request).await
    };
    assert_eq!(status(&put(60_000).await), "200");
    drop(instance);
    let mut seen = Vec::new();
    while let Ok(body) = bodies.try_recv() {
        seen.push(body);
    }
    assert_eq!(seen, [(0, 0), (0, 60_000), (1, 60_000)]);
}

#[tokio::test]
async fn a_large_body_is_sent_once() {
    let (instance, _) = second_request_dies().await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    assert_eq!(status(&get(at).await), "200");
    let head = b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n"
        .to_vec();
    let request = [head, vec![b'x'; 200_000]].concat();
    let response = talk(TcpStream::connect(at).await.expect("connect"), &request).await;
    // Either it died before 64 KiB were on their way, and was sent again, or it could not be.
    assert!(["502", "200"].contains(&status(&response)), "{response}");
}

#[tokio::test]
async fn an_instance_that_is_too_slow_is_given_up() {
    let instance = Instance::start(|_, mut stream| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let at = free_address();
    let mut snapshot = one(at, ProxyProtocol::Http, &[instance.address]);
    snapshot.clusters[0].request_timeout_ms = 100;
    let agent = Agent::start(snapshot).await;
    let _proxy = Proxy::ready(&agent).await;
    let response = get(at).await;
    assert_eq!(status(&response), "504");
    assert!(
        response.contains("no response from an instance of \"web\" within 100ms"),
        "{response}"
    );
}

/// An instance that answers each request when the test says so.
async fn gated() -> (Instance, Arc<tokio::sync::Semaphore>, Arc<AtomicUsize>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let requests = Arc::new(AtomicUsize::new(0));
    let (inner, counter) = (Arc::clone(&gate), Arc::clone(&requests));
    let instance = Instance::start(move |_, mut stream| {
        let (gate, counter) = (Arc::clone(&inner), Arc::clone(&counter));
        async move {
            while read_head(&mut stream).await.is_some() {
                counter.fetch_add(1, Relaxed);
                gate.acquire().await.expect("open").forget();
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        }
    })
    .await;
    (instance, gate, requests)
}

async fn limited(
    instance: &Instance,
    change: impl FnOnce(&mut v1::Cluster),
) -> (Agent, Proxy, SocketAddr) {
    let at = free_address();
    let mut snapshot = one(at, ProxyProtocol::Http, &[instance.address]);
    change(&mut snapshot.clusters[0]);
    let agent = Agent::start(snapshot).await;
    // Two workers: a limit holds over all of them.
    let proxy = Proxy::ready_with(
        ProxyOptions {
            workers: Some(2),
            ..options(agent.address)
        },
        Tuning::default(),
    )
    .await;
    (agent, proxy, at)
}

#[tokio::test]
async fn requests_in_work_are_limited() {
    let (instance, gate, requests) = gated().await;
    let (_agent, _proxy, at) = limited(&instance, |c| c.max_concurrent_requests = 2).await;
    let (a, b) = (tokio::spawn(get(at)), tokio::spawn(get(at)));
    eventually("two are in work", async || {
        (requests.load(Relaxed) == 2).then_some(())
    })
    .await;
    let refused = get(at).await;
    assert_eq!(status(&refused), "503");
    assert!(
        refused.contains("\"web\" is at its limit of 2 requests"),
        "{refused}"
    );
    gate.add_permits(3);
    assert_eq!(status(&a.await.expect("joined")), "200");
    assert_eq!(status(&b.await.expect("joined")), "200");
    let freed = eventually("their places are free", async || {
        Some(get(at).await).filter(|r| status(r) == "200")
    })
    .await;
    assert_eq!(status(&freed), "200");
}

#[tokio::test]
async fn connections_are_limited_and_few_may_wait() {
    let (instance, gate, requests) = gated().await;
    let (_agent, proxy, at) = limited(&instance, |c| {
        c.max_connections = 1;
        c.max_pending_requests = 1;
    })
    .await;
    let first = tokio::spawn(get(at));
    eventually("one is in work", async || {
        (requests.load(Relaxed) == 1).then_some(())
    })
    .await;
    let second = tokio::spawn(get(at));
    // The second waits: a third finds its place taken. Until it waits, the third would be the one to wait.
    let metrics = proxy
        .eventually("/metrics", |m| {
            m.contains(r#"connections_active{service="web",cluster="web"} 2"#)
        })
        .await;
    assert!(metrics.contains("requests_total"));
    let refused = eventually("one too many", async || {
        timeout(Duration::from_millis(200), get(at))
            .await
            .ok()
            .filter(|r| status(r) == "503")
    })
    .await;
    assert!(
        refused.contains("at its limit of 1 waiting requests"),
        "{refused}"
    );
    gate.add_permits(100);
    assert_eq!(status(&first.await.expect("joined")), "200");
    assert_eq!(status(&second.await.expect("joined")), "200");
    // Whatever worker they land on, requests share the one connection that is allowed.
    for _ in 0..10 {
        assert_eq!(status(&get(at).await), "200");
    }
}

#[tokio::test]
async fn a_listener_closes_connections_beyond_its_limit() {
    let instance = Instance::answering(OK).await;
    let at = free_address();
    let mut snapshot = one(at, ProxyProtocol::Http, &[instance.address]);
    snapshot.listeners[0].max_connections = 1;
    let agent = Agent::start(snapshot).await;
    let proxy = Proxy::ready(&agent).await;
    let first = TcpStream::connect(at).await.expect("connect");
    proxy
        .eventually("/metrics", |m| {
            m.contains(r#"connections_active{service="web",cluster="web"} 1"#)
        })
        .await;
    assert_eq!(get(at).await, "");
    drop(first);
    eventually("the place is free", async || {
        Some(get(at).await).filter(|r| status(r) == "200")
    })
    .await;
}
