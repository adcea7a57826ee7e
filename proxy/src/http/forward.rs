//! One request, from its head to the head of its response.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, UPGRADE},
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time::timeout_at;

use super::{
    body::{RequestBody, ResponseBody},
    connection::{Conn, Tunnel},
    headers,
    reply::{Answer, Client},
    upstream::{Failure, H1, H2, H2Request},
};
use crate::{
    config::{Cluster, ClusterState, Endpoint, Listener, Protocol},
    metrics::Shard,
    tcp::{Attempts, ConnectError, InFlight, Slot},
    tuning::MAX_H2_STREAMS,
    worker::Worker,
};

/// The accounting of one request: made with its head, dropped with the last byte of its response, or when the client
/// leaves.
#[derive(Debug)]
pub(crate) struct Ticket {
    conn: Arc<Conn>,
    began: Instant,
    status: u16,
    in_flight: Option<InFlight>,
    admitted: Option<Admitted>,
}

/// Counts a request against the cluster's limit while it exists.
#[derive(Debug)]
struct Admitted(Arc<ClusterState>);

/// A connection for one request.
#[derive(Debug)]
enum Lease {
    Http1(Box<H1>),
    Http2(H2Request),
}

/// A lease, and what is to be known about it.
#[derive(Debug)]
struct Acquired {
    lease: Lease,
    in_flight: InFlight,
    /// It served another request before: its end may be a race and not the instance's answer to this one.
    reused: bool,
}

/// The request while it may have to be sent again.
struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: RequestBody,
}

/// Answers one request. Never fails: what goes wrong is an answer.
pub(crate) async fn handle(
    conn: Arc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut ticket = Ticket::begin(conn);
    let http2 = request.version() == Version::HTTP_2;
    let client = if http2 && headers::is_grpc(request.headers()) {
        Client::Grpc
    } else if http2 {
        Client::Http2
    } else {
        Client::Http1
    };
    match forward(&mut ticket, request).await {
        Ok(Forwarded { head, body }) => {
            ticket.status(head.status);
            Ok(Response::from_parts(head, body.with(ticket)))
        }
        Err(answer) => Ok(answer.into_response(ticket, client)),
    }
}

/// A response without its ticket.
struct Forwarded {
    head: http::response::Parts,
    body: Arrived,
}

enum Arrived {
    Empty,
    Http1(Incoming, Box<H1>),
    Http2(Incoming, H2Request),
}

impl Arrived {
    fn with(self, ticket: Ticket) -> ResponseBody {
        match self {
            Self::Empty => ResponseBody::empty(ticket),
            Self::Http1(incoming, upstream) => ResponseBody::http1(incoming, upstream, ticket),
            Self::Http2(incoming, request) => ResponseBody::http2(incoming, request.stream, ticket),
        }
    }
}

async fn forward(ticket: &mut Ticket, mut request: Request<Incoming>) -> Result<Forwarded, Answer> {
    let upgrade = headers::prepare(&mut request)?;
    let on_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let limit = ticket.admit()?;
    let deadline = limit.map(|limit| ticket.began + limit);

    let (head, body) = request.into_parts();
    let mut outgoing = Outgoing {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body: RequestBody::new(body),
    };
    let mut attempts = Attempts::default();
    let mut replayed = false;
    loop {
        let Acquired {
            lease,
            in_flight,
            reused,
        } = acquire(&ticket.conn, &mut attempts).await?;
        let endpoint = Arc::clone(in_flight.endpoint());
        ticket.in_flight = Some(in_flight);

        let http2 = matches!(lease, Lease::Http2(_));
        // A connection that was used before may end just now, through nobody's fault: then the request is sent again,
        // if that is safe. To keep it for that costs a copy of its head.
        let keep = reused && !replayed && (http2 || headers::is_idempotent(&outgoing.method));
        let sending = outgoing.sending(keep, &lease, upgrade.as_ref())?;
        let exchange = lease.exchange(sending);
        let result = match deadline {
            None => exchange.await,
            Some(deadline) => match timeout_at(deadline.into(), exchange).await {
                Ok(result) => result,
                Err(_) => {
                    let service = &ticket.conn.cell.listener().cluster.service;
                    return Err(Answer::timeout(service, limit.unwrap_or_default()));
                }
            },
        };
        match result {
            Ok((response, lease)) => return accept(ticket, response, lease, on_upgrade).await,
            Err(Failure::NotSent(request)) => {
                // Any method: the instance has not seen it.
                outgoing.restore(*request);
                if !reused {
                    // It accepts connections and closes them: another one then.
                    attempts.closed(&endpoint);
                }
            }
            Err(Failure::NotBegun) if keep && outgoing.body.is_whole() => {
                replayed = true;
                ticket.shard().retries.fetch_add(1, Relaxed);
            }
            Err(Failure::Died(_))
                if keep && headers::is_idempotent(&outgoing.method) && outgoing.body.is_whole() =>
            {
                replayed = true;
                ticket.shard().retries.fetch_add(1, Relaxed);
            }
            Err(Failure::NotBegun) => return Err(Answer::refused()),
            Err(Failure::Died(error)) => return Err(Answer::upstream(Some(&error))),
        }
    }
}

/// Makes the instance's response the client's.
async fn accept(
    ticket: &mut Ticket,
    response: Response<Incoming>,
    lease: Lease,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Forwarded, Answer> {
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_11;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Lease::Http1(upstream)) = (on_upgrade, lease) else {
            return Err(Answer::upstream(None));
        };
        return switch(ticket, head, client, upstream).await;
    }
    headers::prepare_response(&mut head.headers);
    // hyper's own; nothing of this hop is for the next.
    head.extensions.clear();
    let body = match lease {
        Lease::Http1(upstream) if body.is_end_stream() => {
            drop(body);
            let mut upstream = Some(upstream);
            std::future::poll_fn(|cx| {
                if let Some(upstream) = upstream.take() {
                    upstream.release(&ticket.conn.worker, cx);
                }
                std::task::Poll::Ready(())
            })
            .await;
            Arrived::Empty
        }
        Lease::Http1(upstream) => Arrived::Http1(body, upstream),
        Lease::Http2(request) => Arrived::Http2(body, request),
    };
    Ok(Forwarded { head, body })
}

/// 101: leaves both ends to the connection's task, which joins them once hyper has sent the response.
async fn switch(
    ticket: &mut Ticket,
    mut head: http::response::Parts,
    client: OnUpgrade,
    upstream: Box<H1>,
) -> Result<Forwarded, Answer> {
    let protocol = head.headers.get(UPGRADE).cloned();
    let mut upstream = Some(upstream);
    let socket = std::future::poll_fn(|cx| {
        std::task::Poll::Ready(
            upstream
                .take()
                .and_then(|upstream| upstream.into_socket(cx)),
        )
    });
    let (Some((upstream, early, slot)), Some(in_flight), Some(protocol)) =
        (socket.await, ticket.in_flight.take(), protocol)
    else {
        return Err(Answer::upstream(None));
    };
    ticket.conn.leave_tunnel(Tunnel {
        client,
        upstream,
        early,
        slot,
        in_flight,
    });
    headers::prepare_response(&mut head.headers);
    head.headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(UPGRADE, protocol);
    head.extensions.clear();
    Ok(Forwarded {
        head,
        body: Arrived::Empty,
    })
}

/// A connection to an instance: from the pool, where most are, or new.
async fn acquire(conn: &Arc<Conn>, attempts: &mut Attempts) -> Result<Acquired, ConnectError> {
    {
        let listener = conn.cell.listener();
        let endpoint = attempts.next(&conn.worker, &listener.cluster)?;
        let http2 = speaks_http2(&listener.cluster);
        if let Some(lease) = pooled(&conn.worker, endpoint, http2) {
            return Ok(Acquired {
                lease,
                in_flight: InFlight::new(&endpoint.state),
                reused: true,
            });
        }
    }
    // Rare, and large: not part of every request's future.
    Box::pin(connect(conn, attempts)).await
}

fn speaks_http2(cluster: &Cluster) -> bool {
    matches!(cluster.protocol, Protocol::Http2 | Protocol::Grpc)
}

fn pooled(worker: &Worker, endpoint: &Endpoint, http2: bool) -> Option<Lease> {
    if http2 {
        worker
            .pool
            .share(endpoint.state.id, MAX_H2_STREAMS)
            .map(Lease::Http2)
    } else {
        worker.pool.take(endpoint.state.id).map(Lease::Http1)
    }
}

async fn connect(conn: &Arc<Conn>, attempts: &mut Attempts) -> Result<Acquired, ConnectError> {
    let worker = &conn.worker;
    let mut deadline = None;
    loop {
        // Anew for each attempt: the configuration may have changed meanwhile.
        let listener = conn.cell.listener();
        let cluster = &listener.cluster;
        let endpoint = attempts.next(worker, cluster)?;
        let in_flight = InFlight::new(&endpoint.state);
        let http2 = speaks_http2(cluster);
        let gate = http2.then(|| worker.pool.connecting(endpoint.state.id));
        let failures = endpoint.state.failures();
        let _connecting = match &gate {
            Some(gate) => Some(gate.lock().await),
            None => None,
        };
        // Someone else may have connected, or given a connection back, while this one waited.
        if let Some(lease) = pooled(worker, endpoint, http2) {
            if attempts.any_failed() {
                conn.shard().retries.fetch_add(1, Relaxed);
            }
            return Ok(Acquired {
                lease,
                in_flight,
                reused: true,
            });
        }
        if endpoint.state.failures() > failures {
            attempts.skip(&endpoint.state);
            continue;
        }
        // Made before the slot is asked for: one that is released in between is not missed.
        let released = cluster.state.released.notified();
        let Some(slot) = Slot::take(cluster) else {
            // More streams than usual on a connection are better than none.
            if let Some(share) = worker.pool.share(endpoint.state.id, u32::MAX) {
                return Ok(Acquired {
                    lease: Lease::Http2(share),
                    in_flight,
                    reused: true,
                });
            }
            let deadline =
                *deadline.get_or_insert_with(|| Instant::now() + cluster.connect_timeout);
            wait_for_slot(worker, cluster, released, deadline).await?;
            continue;
        };
        if attempts.any_failed() {
            conn.shard().retries.fetch_add(1, Relaxed);
        }
        let Some(stream) = attempts
            .connect(endpoint, cluster.connect_timeout, conn.shard())
            .await
        else {
            continue;
        };
        let state = Arc::clone(&endpoint.state);
        let lease = if http2 {
            H2::handshake(worker, stream, state, slot)
                .await
                .map(|c| Lease::Http2(worker.pool.add(c)))
        } else {
            H1::handshake(stream, state, slot).await.map(Lease::Http1)
        };
        match lease {
            Ok(lease) => {
                return Ok(Acquired {
                    lease,
                    in_flight,
                    reused: false,
                });
            }
            Err(_) => attempts.closed(&endpoint.state),
        }
    }
}

/// Waits until a connection of a cluster at its limit is free, in all as long as a connect may take.
async fn wait_for_slot(
    worker: &Worker,
    cluster: &Cluster,
    released: impl Future<Output = ()>,
    deadline: Instant,
) -> Result<(), ConnectError> {
    let overloaded = |limit: Option<u32>, what| ConnectError::Overloaded {
        service: cluster.service.clone(),
        limit: limit.unwrap_or(0),
        what,
    };
    let Some(_waiting) = cluster.state.wait(worker.id, cluster.limits.pending) else {
        return Err(overloaded(cluster.limits.pending, "waiting requests"));
    };
    // Idle connections of other workers are of no use here, but they count.
    for (id, nudge) in worker.nudges.iter().enumerate() {
        if id != worker.id {
            nudge.notify_one();
        }
    }
    timeout_at(deadline.into(), released)
        .await
        .map_err(|_| overloaded(cluster.limits.connections, "connections"))
}

impl Lease {
    async fn exchange(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Self), Failure> {
        let response = match &mut self {
            Self::Http1(connection) => connection.exchange(request).await?,
            Self::Http2(connection) => connection.exchange(request).await?,
        };
        Ok((response, self))
    }
}

impl Outgoing {
    /// The request to send; with `keep` a copy, so that it can be sent once more.
    fn sending(
        &mut self,
        keep: bool,
        lease: &Lease,
        upgrade: Option<&HeaderValue>,
    ) -> Result<Request<RequestBody>, Answer> {
        let mut request = if keep {
            let mut request = Request::new(self.body.keep());
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = self.uri.clone();
            *request.headers_mut() = self.headers.clone();
            request
        } else {
            let mut request = Request::new(std::mem::replace(&mut self.body, RequestBody::Empty));
            *request.method_mut() = std::mem::take(&mut self.method);
            *request.uri_mut() = std::mem::take(&mut self.uri);
            *request.headers_mut() = std::mem::take(&mut self.headers);
            request
        };
        match lease {
            Lease::Http1(_) => headers::for_http1(&mut request, upgrade)?,
            Lease::Http2(_) => headers::for_http2(&mut request)?,
        }
        Ok(request)
    }

    fn restore(&mut self, request: Request<RequestBody>) {
        let (head, body) = request.into_parts();
        *self = Self {
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body,
        };
    }
}

// === impl Ticket ===

impl Ticket {
    fn begin(conn: Arc<Conn>) -> Self {
        let began = conn.request_began();
        Self {
            conn,
            began,
            status: 0,
            in_flight: None,
            admitted: None,
        }
    }

    pub(crate) fn shard(&self) -> &Shard {
        self.conn.shard()
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.conn.worker
    }

    pub(crate) fn status(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    /// Checks the cluster's limit on requests in work; answers with its time limit.
    fn admit(&mut self) -> Result<Option<Duration>, ConnectError> {
        let listener: Arc<Listener> = self.conn.cell.listener();
        let cluster = &listener.cluster;
        if let Some(limit) = cluster.limits.concurrent {
            let admitted = Admitted::new(&cluster.state);
            if cluster.state.requests.load(Relaxed) > limit {
                let service = cluster.service.clone();
                return Err(ConnectError::Overloaded {
                    service,
                    limit,
                    what: "requests",
                });
            }
            self.admitted = Some(admitted);
        }
        Ok(cluster.request_timeout)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        self.conn
            .shard()
            .request(self.status, now.saturating_duration_since(self.began));
        self.conn.request_ended(now);
    }
}

impl Admitted {
    fn new(cluster: &Arc<ClusterState>) -> Self {
        cluster.requests.fetch_add(1, Relaxed);
        Self(Arc::clone(cluster))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}
