//! The admin port: `/ready`, `/metrics`, `/config_dump`. Served by the control thread, so that a scrape never takes time
//! from a request.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    ProxyError,
    config::{Cluster, Endpoint, Listener, Rejection, Snapshot},
    control::Status,
    metrics::{self, Process},
};

/// Connections at a time; more wait in the queue.
const MAX_CONNECTIONS: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Scrapers connect again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The running admin port; it closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Admin {
    accepting: JoinHandle<()>,
}

impl Admin {
    pub(crate) fn start(address: SocketAddr, status: Arc<Status>) -> Result<Self, ProxyError> {
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            })
            .map_err(|source| ProxyError::Admin { address, source })?;
        Ok(Self {
            accepting: tokio::spawn(accept(listener, status)),
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, status: Arc<Status>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = Arc::clone(&status);
                connections.spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, serve(stream, status)).await;
                    drop(slot);
                });
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: TcpStream, status: Arc<Status>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &status);
        async { Ok::<_, Infallible>(response) }
    });
    // A scraper that misbehaves is its own problem.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let reply = |code, content_type: &'static str, body: String| {
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = code;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/ready" => match not_ready(status) {
            None => reply(StatusCode::OK, TEXT, "ready\n".into()),
            Some(why) => reply(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("not ready: {why}\n"),
            ),
        },
        "/metrics" => {
            let snapshot = status.snapshot.load();
            let text = metrics::render(&snapshot.traffic(), process(status, &snapshot));
            reply(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                text,
            )
        }
        "/config_dump" => reply(StatusCode::OK, "application/json", dump(status).to_string()),
        _ => reply(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /ready, /metrics and /config_dump\n".into(),
        ),
    }
}

fn not_ready(status: &Status) -> Option<&'static str> {
    if status.draining.load(Relaxed) {
        Some("draining")
    } else if !status.configured.load(Relaxed) {
        Some("no configuration from the agent yet")
    } else {
        None
    }
}

fn process(status: &Status, snapshot: &Snapshot) -> Process {
    Process {
        config_version: snapshot.version,
        config_rejected: snapshot.rejected.len(),
        listeners_failed: status
            .failed_listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len(),
        agent_connected: status.agent_connected.load(Relaxed),
        draining: status.draining.load(Relaxed),
        workers: status.workers,
    }
}

/// What the proxy serves with, and what it could not use.
fn dump(status: &Status) -> serde_json::Value {
    let snapshot = status.snapshot.load();
    let failed = status
        .failed_listeners
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let identity = &snapshot.identity;
    let listener = |listener: &Listener| {
        json!({
            "name": &*listener.name,
            "direction": listener.direction.label(),
            "address": listener.bind,
            "protocol": listener.protocol.label(),
            "cluster": &*listener.cluster.name,
            "connections": listener.state.connections.load(Relaxed),
            "error": failed.iter().find(|(name, ..)| *name == listener.name).map(|(_, _, error)| error),
        })
    };
    let rejected =
        |r: &Rejection| json!({ "kind": r.kind, "name": r.name, "reason": r.reason.to_string() });
    json!({
        "version": snapshot.version,
        "proxy_id": identity.proxy_id,
        "service": identity.service,
        "node": identity.node,
        "datacenter": identity.datacenter,
        "agent_connected": status.agent_connected.load(Relaxed),
        "draining": status.draining.load(Relaxed),
        "workers": status.workers,
        "listeners": snapshot.listeners.values().map(|l| listener(l)).collect::<Vec<_>>(),
        "clusters": snapshot.clusters.values().map(|c| cluster(c)).collect::<Vec<_>>(),
        "rejected": snapshot.rejected.iter().map(rejected).collect::<Vec<_>>(),
    })
}

fn cluster(cluster: &Cluster) -> serde_json::Value {
    let endpoint = |endpoint: &Endpoint| {
        json!({
            "address": endpoint.target.to_string(),
            "weight": endpoint.weight,
            "node": &*endpoint.node,
            "instance_id": &*endpoint.instance_id,
            "in_flight": endpoint.state.in_flight.load(Relaxed),
            "connect_failures": endpoint.state.failures(),
        })
    };
    json!({
        "name": &*cluster.name,
        "service": &*cluster.service,
        "protocol": cluster.protocol.label(),
        "load_balancing": cluster.policy.label(),
        "connections": cluster.state.connections.load(Relaxed),
        "endpoints": cluster.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}
