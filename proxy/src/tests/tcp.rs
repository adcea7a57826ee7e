//! Layer 4.

use super::*;

/// Sends back what it gets, then its end.
async fn echo() -> Instance {
    Instance::start(|_, mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn bytes_go_both_ways_and_a_half_close_leaves_the_other_half_open() {
    let instance = Instance::start(|_, mut stream| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        // The client's end has been seen; ours is still open.
        let _ = stream
            .write_all(format!("{} bytes, and the end", all.len()).as_bytes())
            .await;
    })
    .await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Tcp, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    client.write_all(b"hello").await.expect("sent");
    client.shutdown().await.expect("half closed");
    let mut answer = String::new();
    client
        .read_to_string(&mut answer)
        .await
        .expect("the answer");
    assert_eq!(answer, "5 bytes, and the end");
    let metrics = proxy
        .eventually("/metrics", |m| {
            m.contains(r#"connections_active{service="web",cluster="web"} 0"#)
        })
        .await;
    assert!(
        metrics.contains(r#"bytes_total{service="web",cluster="web",flow="received"} 5"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"bytes_total{service="web",cluster="web",flow="sent"} 20"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_instance_may_speak_and_end_first() {
    let instance = Instance::start(|_, mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let _ = stream.shutdown().await;
        let _ = read_until(&mut stream, "QUIT\r\n").await;
    })
    .await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Tcp, &[instance.address]).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    let mut banner = String::new();
    client
        .read_to_string(&mut banner)
        .await
        .expect("the banner and the end");
    assert_eq!(banner, "220 ready\r\n");
    client
        .write_all(b"QUIT\r\n")
        .await
        .expect("this half is open");
}

#[tokio::test]
async fn bulk_arrives_unchanged_through_slow_and_fast_readers() {
    let instance = echo().await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Tcp, &[instance.address]).await;
    let sent: Vec<u8> = (0..16 * 1024 * 1024_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let client = TcpStream::connect(at).await.expect("connect");
    let (mut read, mut write) = client.into_split();
    let sending = {
        let sent = sent.clone();
        tokio::spawn(async move {
            write.write_all(&sent).await.expect("sent");
            write.shutdown().await.expect("ended");
        })
    };
    let mut received = Vec::with_capacity(sent.len());
    // Small reads at first: the proxy has to hold what this side does not take.
    let mut piece = [0; 777];
    while received.len() < 1024 * 1024 {
        let n = read.read(&mut piece).await.expect("read");
        assert!(n > 0, "an early end");
        received.extend_from_slice(&piece[..n]);
    }
    read.read_to_end(&mut received).await.expect("the rest");
    sending.await.expect("joined");
    assert!(
        received == sent,
        "{} of {} bytes, or other ones",
        received.len(),
        sent.len()
    );
}

#[tokio::test]
async fn another_instance_is_tried_and_none_is_a_reset() {
    let instance = echo().await;
    let (agent, proxy, at) = serve(
        ProxyProtocol::Tcp,
        &[free_address(), instance.address, free_address()],
    )
    .await;
    for _ in 0..10 {
        let mut client = TcpStream::connect(at).await.expect("connect");
        client.write_all(b"ping\n").await.expect("sent");
        assert_eq!(
            read_until(&mut client, "ping\n").await.as_deref(),
            Some("ping\n")
        );
    }
    agent.change(|s| s.clusters[0].endpoints.clear());
    eventually("a reset", async || {
        // It may come before connect returns.
        let ended = match TcpStream::connect(at).await {
            Ok(mut client) => {
                let _ = client.write_all(b"ping\n").await;
                client.read(&mut [0]).await.err()
            }
            Err(error) => Some(error),
        };
        ended
            .filter(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
            .map(drop)
    })
    .await;
    proxy
        .eventually("/metrics", |m| {
            !m.contains(r#"reason="no_healthy_instance"} 0"#)
        })
        .await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed_and_a_slow_one_is_not() {
    let instance = echo().await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Tcp, &[instance.address])).await;
    let tuning = Tuning {
        tunnel_idle: Duration::from_millis(200),
        ..Tuning::default()
    };
    let _proxy = Proxy::ready_with(options(agent.address), tuning).await;
    let mut client = TcpStream::connect(at).await.expect("connect");
    for _ in 0..6 {
        client.write_all(b"x\n").await.expect("sent");
        assert!(read_until(&mut client, "x\n").await.is_some());
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(talk(client, b"").await, "");
}
