//! HTTP/2 on either side, and gRPC.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// An HTTP/2 instance: answers with the request's head as text, its body, and trailers.
async fn http2_instance() -> Instance {
    Instance::start(|_, stream| async move {
        let service = service_fn(|request: http::Request<Incoming>| async move {
            let (head, body) = request.into_parts();
            if head.uri.path() == "/stall" {
                std::future::pending::<()>().await;
            }
            let body = body.collect().await?;
            let sent = body.trailers().cloned();
            let text = format!(
                "{} {} {:?} {}",
                head.method,
                head.uri,
                head.headers,
                sent.map_or(0, |t| t.len())
            );
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [
                Frame::data(Bytes::from(text)),
                Frame::data(body.to_bytes()),
                Frame::trailers(trailers),
            ];
            let body = StreamBody::new(futures_util::stream::iter(
                frames.map(Ok::<_, std::convert::Infallible>),
            ));
            Ok::<_, hyper::Error>(http::Response::new(body))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

async fn client(at: SocketAddr) -> (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>) {
    let stream = TcpStream::connect(at).await.expect("connect");
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("handshake");
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    (send, AbortOnDropHandle::new(driver))
}

fn request(method: Method, path: &str) -> http::request::Builder {
    http::Request::builder()
        .method(method)
        .uri(format!("http://web{path}"))
}

#[tokio::test]
async fn http2_clients_reach_http1_instances() {
    let instance = Instance::answering(OK).await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http, &[instance.address]).await;
    let (mut send, _driver) = client(at).await;
    for _ in 0..3 {
        let response = send
            .send_request(
                request(Method::GET, "/x")
                    .body(Full::default())
                    .expect("valid"),
            )
            .await
            .expect("a response");
        assert_eq!(
            (response.status(), response.version()),
            (http::StatusCode::OK, Version::HTTP_2)
        );
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes(),
            "ok"
        );
    }
    assert_eq!(instance.connections(), 1);
    // And HTTP/1.1 ones on the same port.
    assert_eq!(status(&get(at).await), "200");
}

#[tokio::test]
async fn grpc_goes_through_with_its_trailers() {
    let instance = http2_instance().await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Grpc, &[instance.address]).await;
    let (mut send, _driver) = client(at).await;
    for _ in 0..3 {
        let call = request(Method::POST, "/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from("message"))
            .expect("valid");
        let response = send.send_request(call).await.expect("a response");
        let body = response.into_body().collect().await.expect("a body");
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
        let text = String::from_utf8(body.to_bytes().to_vec()).expect("text");
        assert!(
            text.starts_with("POST http://web/pkg.Service/Method"),
            "{text}"
        );
        assert!(
            text.contains(r#""te": "trailers""#) && text.ends_with("message"),
            "{text}"
        );
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn http1_clients_reach_http2_instances() {
    let instance = http2_instance().await;
    let (_agent, _proxy, at) = serve(ProxyProtocol::Http2, &[instance.address]).await;
    for _ in 0..2 {
        let response = get(at).await;
        assert_eq!(status(&response), "200", "{response}");
        assert!(response.contains("GET http://web/ {}"), "{response}");
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn a_burst_shares_a_connection_and_a_reset_reaches_the_instance() {
    let instance = http2_instance().await;
    let (_agent, proxy, at) = serve(ProxyProtocol::Http2, &[instance.address]).await;
    let (mut send, _driver) = client(at).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            send.send_request(
                request(Method::GET, "/x")
                    .body(Full::default())
                    .expect("valid"),
            )
        })
        .collect();
    for call in calls {
        let response = call.await.expect("a response");
        response.into_body().collect().await.expect("a body");
    }
    assert_eq!(instance.connections(), 1);

    let stalled = send.send_request(
        request(Method::GET, "/stall")
            .body(Full::default())
            .expect("valid"),
    );
    let stalled = tokio::spawn(stalled);
    proxy
        .eventually("/config_dump", |d| d.contains(r#""in_flight":1"#))
        .await;
    stalled.abort();
    proxy
        .eventually("/config_dump", |d| d.contains(r#""in_flight":0"#))
        .await;
}

#[tokio::test]
async fn grpc_clients_are_told_in_grpc() {
    let (_agent, proxy, at) = serve(ProxyProtocol::Grpc, &[]).await;
    let (mut send, _driver) = client(at).await;
    let call = request(Method::POST, "/pkg.Service/Method")
        .header("content-type", "application/grpc+proto")
        .body(Full::default())
        .expect("valid");
    let response = send.send_request(call).await.expect("a response");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(
        response.headers()["grpc-message"],
        "no healthy instance of \"web\""
    );
    drop(response);
    // What is not gRPC gets HTTP's own status.
    assert_eq!(status(&get(at).await), "503");
    proxy
        .eventually("/metrics", |m| {
            m.contains(r#"requests_total{service="web",cluster="web",class="5xx"} 2"#)
        })
        .await;
}

#[tokio::test]
async fn a_restarted_instance_is_connected_again() {
    let instance = http2_instance().await;
    let (agent, _proxy, at) = serve(ProxyProtocol::Http2, &[instance.address]).await;
    assert_eq!(status(&get(at).await), "200");
    let address = instance.address;
    drop(instance);
    eventually("it is gone", async || {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    let next = http2_instance().await;
    agent.change(|s| s.clusters[0].endpoints.push(endpoint(next.address)));
    eventually("the new one serves", async || {
        Some(get(at).await).filter(|r| status(r) == "200")
    })
    .await;
    for _ in 0..10 {
        assert_eq!(status(&get(at).await), "200");
    }
}

#[tokio::test]
async fn a_drain_tells_http2_clients_to_go_and_finishes_their_streams() {
    let (sender, mut seen) = mpsc::channel(1);
    let gate = Arc::new(tokio::sync::Notify::new());
    let inner = Arc::clone(&gate);
    let instance = Instance::start(move |_, mut stream| {
        let (sender, gate) = (sender.clone(), Arc::clone(&inner));
        async move {
            read_head(&mut stream).await;
            sender.send(()).await.expect("the test waits");
            gate.notified().await;
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let at = free_address();
    let agent = Agent::start(one(at, ProxyProtocol::Http, &[instance.address])).await;
    let proxy = Proxy::ready_with(
        ProxyOptions {
            drain_timeout: PATIENCE,
            ..options(agent.address)
        },
        Tuning::default(),
    )
    .await;
    let (mut send, driver) = client(at).await;
    let running = tokio::spawn(
        send.send_request(
            request(Method::GET, "/")
                .body(Full::default())
                .expect("valid"),
        ),
    );
    seen.recv().await.expect("it arrived");
    proxy.stop.send(()).await.expect("it runs");
    proxy
        .eventually("/ready", |body| body.contains("draining"))
        .await;
    gate.notify_one();
    let response = running.await.expect("joined").expect("a response");
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        "ok"
    );
    timeout(PATIENCE, driver)
        .await
        .expect("the connection ends")
        .expect("joined");
    proxy.ended().await.expect("drained");
}
