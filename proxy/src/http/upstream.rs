//! Connections to instances.

use std::{
    error::Error as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{body::RequestBody, connection::Exec, io::Gathering};
use crate::{
    config::EndpointState,
    tcp::Slot,
    tuning::{H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, MAX_H2_HEADER_LIST, MAX_HEAD},
    worker::Worker,
};

const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a request got no response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not a byte of it was sent: here it is again.
    NotSent(Box<Request<RequestBody>>),
    /// The instance said that it did not begin with it (HTTP/2).
    NotBegun,
    /// It may have been worked on.
    Died(hyper::Error),
}

/// An HTTP/1.1 connection to an instance. It moves only while someone polls it: the request that uses it, then the body
/// of its response. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct H1 {
    send: http1::SendRequest<RequestBody>,
    /// `None` once it has ended.
    connection: Option<http1::Connection<TokioIo<Gathering>, RequestBody>>,
    pub(crate) endpoint: Arc<EndpointState>,
    pub(crate) slot: Slot,
    /// When it was last given back to the pool.
    pub(crate) idle_since: Instant,
}

impl H1 {
    pub(crate) async fn handshake(
        stream: TcpStream,
        endpoint: Arc<EndpointState>,
        slot: Slot,
    ) -> hyper::Result<Box<Self>> {
        let (send, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(Gathering(stream)))
            .await?;
        Ok(Box::new(Self {
            send,
            connection: Some(connection),
            endpoint,
            slot,
            idle_since: Instant::now(),
        }))
    }

    /// Sends a request and waits for the head of its response. A connection that the instance closed while it was idle
    /// is noticed here, before anything is sent.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        let Self {
            send, connection, ..
        } = self;
        let mut response = pin!(send.try_send_request(request));
        std::future::poll_fn(|cx| {
            let ended = connection
                .as_mut()
                .is_none_or(|c| c.poll_without_shutdown(cx).is_ready());
            match response.as_mut().poll(cx) {
                Poll::Pending if ended => {
                    // What it had queued comes back when it goes.
                    *connection = None;
                    response.as_mut().poll(cx)
                }
                polled => polled,
            }
        })
        .await
        .map_err(|mut error| match error.take_message() {
            Some(request) => Failure::NotSent(Box::new(request)),
            None => Failure::Died(error.into_error()),
        })
    }

    /// Moves the connection on. Ready when it has ended.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.connection {
            Some(connection) => connection.poll_without_shutdown(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// After the last byte of a response: back to the pool when both directions are finished, closed otherwise.
    pub(crate) fn release(mut self: Box<Self>, worker: &Worker, cx: &mut Context<'_>) {
        if self.poll(cx).is_pending() && self.send.is_ready() {
            self.idle_since = Instant::now();
            worker.pool.put(self, worker.id);
        }
    }

    /// Whether an idle connection is still open, as far as the kernel has told.
    pub(crate) fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.poll(&mut cx).is_pending() && self.send.is_ready()
    }

    /// The socket, and what was read behind the head, after a 101.
    pub(crate) fn into_socket(
        mut self: Box<Self>,
        cx: &mut Context<'_>,
    ) -> Option<(TcpStream, Bytes, Slot)> {
        // Ready now: hyper ends its part with the 101.
        let _ = self.poll(cx);
        let parts = self.connection.take()?.into_parts();
        Some((parts.io.into_inner().0, parts.read_buf, self.slot))
    }
}

/// An HTTP/2 connection to an instance, shared by up to
/// [`MAX_H2_STREAMS`](crate::tuning::MAX_H2_STREAMS) requests at a time. It is driven by a task on the worker, which
/// ends when the last handle and the last stream are gone.
#[derive(Debug)]
pub(crate) struct H2 {
    send: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicU32>,
    pub(crate) endpoint: Arc<EndpointState>,
    pub(crate) idle_since: Instant,
}

/// One request's share of an [`H2`], counted while it exists.
#[derive(Debug)]
pub(crate) struct Stream(Arc<AtomicU32>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A handle for one request.
#[derive(Debug)]
pub(crate) struct H2Request {
    send: http2::SendRequest<RequestBody>,
    pub(crate) stream: Stream,
}

impl H2 {
    pub(crate) async fn handshake(
        worker: &Arc<Worker>,
        stream: TcpStream,
        endpoint: Arc<EndpointState>,
        slot: Slot,
    ) -> hyper::Result<Self> {
        let (send, connection) = http2::Builder::new(Exec(Arc::clone(worker)))
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(MAX_H2_HEADER_LIST)
            .keep_alive_interval(H2_PING_EVERY)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .handshake(TokioIo::new(Gathering(stream)))
            .await?;
        worker.drivers.spawn(async move {
            // Its requests hear of its errors.
            let _ = connection.await;
            drop(slot);
        });
        Ok(Self {
            send,
            streams: Arc::default(),
            endpoint,
            idle_since: Instant::now(),
        })
    }

    pub(crate) fn streams(&self) -> u32 {
        self.streams.load(Relaxed)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.send.is_closed()
    }

    pub(crate) fn request(&self) -> H2Request {
        self.streams.fetch_add(1, Relaxed);
        H2Request {
            send: self.send.clone(),
            stream: Stream(Arc::clone(&self.streams)),
        }
    }
}

impl H2Request {
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        self.send
            .try_send_request(request)
            .await
            .map_err(|mut error| match error.take_message() {
                Some(request) => Failure::NotSent(Box::new(request)),
                None => {
                    let error = error.into_error();
                    if not_begun(&error) {
                        Failure::NotBegun
                    } else {
                        Failure::Died(error)
                    }
                }
            })
    }
}

/// RFC 9113 §8.7: a stream refused, or above the last one that a GOAWAY names, was not processed.
fn not_begun(error: &hyper::Error) -> bool {
    let Some(error) = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>())
    else {
        return false;
    };
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => true,
        Some(h2::Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
        _ => false,
    }
}
