//! What is held of messages that have not come whole.
//!
//! Whoever reaches the server port can begin a message and not end it, before anybody asks who it is. So a request
//! is refused unread where that can be told from its head, and what is on its way is bounded: each message by what
//! its method needs and by time, and all of them together by their bytes ([`Pending`]). What has come whole is the
//! business of who it is for.

mod pending;

use std::{
    convert::Infallible,
    future, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};

use self::pending::Ticket;
use super::{MAX_MESSAGE, wire};
use crate::grpc::{ConnectionCount, Counted};

pub(super) use self::pending::Pending;

/// The longest message that brings no entries, commands or bodies.
const SMALL: usize = 64 << 10;
/// The longest part of a snapshot; servers send a quarter of it.
const MAX_PART: usize = 1 << 20;
/// Requests of one connection at once from senders that do not say who they are.
const STRANGERS: usize = 16;
/// How long a message may be on its way, and how many of its bytes have to come in each second after that.
const WITHIN: Duration = Duration::from_secs(10);
const SLOWEST: u64 = 16 << 10;
/// The head of a message: a byte of flags, four of length.
const HEAD: usize = 5;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Anybody,
    Agent,
    /// In an envelope.
    Server,
}

/// What the requests of a method may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    sender: Sender,
    message: usize,
    /// Any number of messages, with pauses between them.
    stream: bool,
}

impl Bounds {
    fn of(path: &str) -> Bounds {
        let (sender, message, stream) = match path {
            "/wharf.server.v1.Servers/Hello" | "/wharf.server.v1.Servers/Promise" => {
                (Sender::Anybody, SMALL, false)
            }
            "/wharf.server.v1.Servers/Append" => (Sender::Server, MAX_MESSAGE, true),
            "/wharf.server.v1.Servers/Snapshot" => (Sender::Server, MAX_PART, true),
            // A command; all agents of a server.
            "/wharf.server.v1.Servers/Propose" | "/wharf.server.v1.Servers/Report" => {
                (Sender::Server, MAX_MESSAGE, false)
            }
            "/wharf.server.v1.Agents/Session" | "/wharf.server.v1.Agents/Call" => {
                (Sender::Agent, MAX_MESSAGE, true)
            }
            "/wharf.server.v1.Agents/Watch" | "/wharf.server.v1.Agents/Reverse" => {
                (Sender::Agent, SMALL, false)
            }
            _ => (Sender::Server, SMALL, false),
        };
        Bounds {
            sender,
            message,
            stream,
        }
    }
}

/// A service whose requests are bounded while they arrive.
#[derive(Clone, Debug)]
pub(super) struct Intake<S> {
    service: S,
    pending: Arc<Pending>,
}

impl<S> Intake<S> {
    pub(super) fn new(service: S, pending: &Arc<Pending>) -> Intake<S> {
        Intake {
            service,
            pending: pending.clone(),
        }
    }
}

impl<S: NamedService> NamedService for Intake<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Intake<S>
where
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bounds = Bounds::of(request.uri().path());
        let stranger = match admit(&request, bounds.sender) {
            Ok(stranger) => stranger,
            Err(status) => return Box::pin(future::ready(Ok(status.into_http()))),
        };
        let pending = self.pending.clone();
        let request = request.map(|body| Body::new(Incoming::new(body, bounds, pending, stranger)));
        self.service.call(request)
    }
}

/// Whether anything is to be read of a request.
fn admit(request: &http::Request<Body>, sender: Sender) -> Result<Option<Counted>, Status> {
    match sender {
        Sender::Agent => Ok(None),
        Sender::Server if wire::is_enveloped(request.headers()) => Ok(None),
        Sender::Server => {
            count_refusal("envelope");
            Err(wire::NO_ENVELOPE.into())
        }
        Sender::Anybody => {
            let Some(requests) = request.extensions().get::<ConnectionCount>() else {
                return Ok(None);
            };
            let counted = requests.count(STRANGERS);
            counted.map(Some).ok_or_else(|| {
                count_refusal("strangers");
                Status::resource_exhausted("too many requests at once on this connection")
            })
        }
    }
}

fn count_refusal(reason: &'static str) {
    metrics::counter!("wharf_server_messages_refused_total", "reason" => reason).increment(1);
}

/// Where the messages of a body begin and end.
#[derive(Debug, Default)]
struct Boundaries {
    head: [u8; HEAD],
    /// Bytes of the head that have come; 0: no message is on its way.
    have: usize,
    /// The length that the head says, and what of it has not come.
    length: usize,
    rest: usize,
    whole: u64,
}

impl Boundaries {
    fn pass(&mut self, mut data: &[u8], bounds: &Bounds) -> Result<(), Status> {
        while !data.is_empty() {
            if self.have == 0 {
                (self.length, self.rest) = (0, 0);
            }
            if self.have < HEAD {
                let count = (HEAD - self.have).min(data.len());
                let (head, body) = data.split_at(count);
                self.head[self.have..self.have + count].copy_from_slice(head);
                self.have += count;
                data = body;
                if self.have < HEAD {
                    break;
                }
                let [_, length @ ..] = self.head;
                self.begin(u32::from_be_bytes(length) as usize, bounds)?;
            }
            let count = self.rest.min(data.len());
            self.rest -= count;
            data = &data[count..];
            if self.rest == 0 {
                self.have = 0;
                self.whole += 1;
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: usize, bounds: &Bounds) -> Result<(), Status> {
        if length > bounds.message {
            count_refusal("size");
            return Err(Status::out_of_range(format!(
                "a message of {length} bytes, where {} are the most",
                bounds.message
            )));
        }
        if !bounds.stream && self.whole > 0 {
            return Err(Status::invalid_argument(
                "more than one message in a request",
            ));
        }
        self.length = length;
        self.rest = length;
        Ok(())
    }

    /// The bytes that are held until more comes. A request of one message is read to its end before it is served.
    fn held(&self, bounds: &Bounds) -> Option<usize> {
        match self.have {
            0 if bounds.stream => None,
            0 => Some(mem::size_of_val(&self.head) + self.length),
            have => Some(have + self.length - self.rest),
        }
    }
}

/// A body on its way here.
struct Incoming {
    inner: Body,
    bounds: Bounds,
    boundaries: Boundaries,
    /// Since when something has been on its way.
    began: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    pending: Arc<Pending>,
    ticket: Option<Ticket>,
    _stranger: Option<Counted>,
}

impl Incoming {
    fn new(
        inner: Body,
        bounds: Bounds,
        pending: Arc<Pending>,
        stranger: Option<Counted>,
    ) -> Incoming {
        Incoming {
            inner,
            bounds,
            boundaries: Boundaries::default(),
            began: (!bounds.stream).then(Instant::now),
            timer: None,
            pending,
            ticket: None,
            _stranger: stranger,
        }
    }

    fn passes(&mut self, data: &[u8], cx: &Context<'_>) -> Result<(), Status> {
        let before = self.boundaries.whole;
        self.boundaries.pass(data, &self.bounds)?;
        let is_another = self.bounds.stream && self.boundaries.whole != before;
        if is_another || self.inner.is_end_stream() {
            self.nothing_is_held();
        }
        if self.inner.is_end_stream() {
            return Ok(());
        }
        match self.boundaries.held(&self.bounds) {
            None => {
                self.nothing_is_held();
                Ok(())
            }
            Some(_) => {
                self.began.get_or_insert_with(Instant::now);
                self.holds(cx)
            }
        }
    }

    fn nothing_is_held(&mut self) {
        self.ticket = None;
        self.began = None;
        self.timer = None;
    }

    fn holds(&mut self, cx: &Context<'_>) -> Result<(), Status> {
        let bytes = self.boundaries.held(&self.bounds).unwrap_or(0);
        let pending = &self.pending;
        let ticket = self.ticket.get_or_insert_with(|| pending.begin());
        if ticket.holds(bytes, cx.waker()) {
            return Ok(());
        }
        count_refusal("memory");
        Err(Status::resource_exhausted(
            "too much is on its way to this server at once: try again later",
        ))
    }

    /// Nothing came just now.
    fn waits(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        let Some(began) = self.began else {
            return Ok(());
        };
        self.holds(cx)?;
        let length = self.boundaries.length as u64;
        let deadline = began + WITHIN + Duration::from_secs(length / SLOWEST);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        count_refusal("time");
        Err(Status::aborted(
            "the message did not come to its end in time",
        ))
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.passes(data, cx)?;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                this.waits(cx)?;
                Poll::Pending
            }
            ended => {
                this.nothing_is_held();
                ended
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
