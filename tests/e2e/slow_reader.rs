//! A gRPC client that never reads what it asked for.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming, transport::Channel};
use wharf_proto::v1::{
    KeyValueTarget, WatchRequest, WatchResponse, registry_client::RegistryClient,
    watch_request::Target, watch_response::Event,
};
use wharf_tests::{Agent, SOON};

/// Keys, and the size of their values: together far more than a stream, a connection and its
/// sockets hold.
const KEYS: usize = 64;
const VALUE: usize = 256 << 10;
/// Clients that do not read. Each is one that keeps all of it in the agent, if anything did.
const SLOW: usize = 8;

async fn watch(agent: &Agent) -> Streaming<WatchResponse> {
    let url = format!("http://127.0.0.1:{}", agent.ports.grpc);
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let request = WatchRequest {
        target: Some(Target::KeyValue(KeyValueTarget {
            prefix: "bulk/".into(),
        })),
        resume_index: 0,
    };
    let mut client = RegistryClient::new(channel);
    client.watch(request).await.unwrap().into_inner()
}

/// Reads a snapshot to its end and says how many keys were in it.
async fn snapshot(stream: &mut Streaming<WatchResponse>) -> usize {
    let mut keys = 0;
    loop {
        let message = timeout(SOON, stream.message()).await.unwrap().unwrap();
        match message.unwrap().event {
            Some(Event::KeyUpserted(_)) => keys += 1,
            Some(Event::SnapshotComplete(_)) => return keys,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_never_reads_its_watch_costs_little_and_is_given_up() {
    let agent = Agent::start(&["-dev", "-log-level=warn"]);
    let value = vec![b'x'; VALUE];
    let write_all = || {
        for number in 0..KEYS {
            agent
                .http
                .put(&format!("/v1/kv/bulk/{number}"), &value)
                .ok();
        }
    };
    write_all();
    let before = agent.process.resident();

    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(watch(&agent).await);
    }
    let began = Instant::now();
    // Somebody who reads is served meanwhile, snapshot and changes.
    let mut reader = watch(&agent).await;
    assert_eq!(snapshot(&mut reader).await, KEYS);
    agent.http.put("/v1/kv/bulk/news", "news").ok();
    let heard = async {
        loop {
            let message = reader.message().await.unwrap().unwrap();
            if matches!(message.event, Some(Event::KeyUpserted(pair)) if pair.key == "bulk/news") {
                return;
            }
        }
    };
    timeout(SOON, heard).await.unwrap();
    // All values change, so that what the slow ones were to be told is state no more.
    write_all();
    write_all();

    // Three times the state is that of the registry; what eight clients would have is eight times
    // that. The patience of 30 s passes.
    let state = (KEYS * VALUE) as u64;
    let mut most = 0;
    while agent.metric("wharf_watchers") > 1.0 {
        most = most.max(agent.process.resident());
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "a client that does not read is never given up"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let grown = most.saturating_sub(before);
    println!(
        "{SLOW} slow clients: {grown} bytes at most, given up after {:?}",
        began.elapsed()
    );
    assert!(grown < 4 * state, "{grown} bytes beyond {before}");

    // Each finds out when it reads at last: what was on its way, then why there is no more.
    for stream in &mut slow {
        let end = async {
            let mut received = 0;
            loop {
                match stream.message().await {
                    Ok(Some(_)) => received += 1,
                    Ok(None) => panic!("a clean end, after {received} messages"),
                    Err(status) => return (received, status),
                }
            }
        };
        let (received, status) = timeout(SOON, end).await.unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(received < KEYS, "it got everything: {received} messages");
    }
    // And whoever reads still hears.
    agent.http.put("/v1/kv/bulk/last", "last").ok();
    let heard = async {
        loop {
            let message = reader.message().await.unwrap().unwrap();
            if matches!(message.event, Some(Event::KeyUpserted(pair)) if pair.key == "bulk/last") {
                return;
            }
        }
    };
    timeout(SOON, heard).await.unwrap();
}
