//! Message bodies on their way through.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::{
    forward::Ticket,
    upstream::{H1, Stream},
};
use crate::tuning::MAX_REPLAY;

/// A request's body, as sent to the instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Once(Incoming),
    Replay(Replay),
}

/// A body that can be sent twice: what was sent is kept, up to [`MAX_REPLAY`] bytes. A longer one is sent all the same,
/// but only once.
#[derive(Debug)]
pub(crate) struct Replay {
    shared: Arc<Mutex<Shared>>,
    /// How many of the kept frames this sending has given out.
    position: usize,
}

#[derive(Debug)]
struct Shared {
    incoming: Incoming,
    kept: Vec<Bytes>,
    len: usize,
    /// The start is lost, or trailers were seen: no second sending.
    spent: bool,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            Self::Empty
        } else {
            Self::Once(incoming)
        }
    }

    /// Another sending of this body, which must not have begun.
    pub(crate) fn keep(&mut self) -> Self {
        match std::mem::replace(self, Self::Empty) {
            Self::Empty => Self::Empty,
            Self::Once(incoming) => {
                let shared = Shared {
                    incoming,
                    kept: Vec::new(),
                    len: 0,
                    spent: false,
                };
                let replay = |shared| {
                    Self::Replay(Replay {
                        shared,
                        position: 0,
                    })
                };
                let shared = Arc::new(Mutex::new(shared));
                *self = replay(Arc::clone(&shared));
                replay(shared)
            }
            Self::Replay(Replay { shared, position }) => {
                let again = Self::Replay(Replay {
                    shared: Arc::clone(&shared),
                    position: 0,
                });
                *self = Self::Replay(Replay { shared, position });
                again
            }
        }
    }

    /// Whether a sending from the start is still possible.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Empty | Self::Once(_) => true,
            Self::Replay(replay) => !replay.lock().spent,
        }
    }
}

impl Replay {
    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut guard = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &mut *guard;
        if let Some(data) = shared.kept.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let polled = Pin::new(&mut shared.incoming).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match frame.data_ref() {
                Some(data) if !shared.spent && shared.len + data.len() <= MAX_REPLAY => {
                    shared.len += data.len();
                    shared.kept.push(data.clone());
                    self.position += 1;
                }
                _ => {
                    shared.spent = true;
                    shared.kept = Vec::new();
                    self.position = 0;
                }
            }
        }
        polled
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Replay(replay) => replay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(incoming) => incoming.is_end_stream(),
            Self::Replay(replay) => {
                let shared = replay.lock();
                replay.position >= shared.kept.len() && shared.incoming.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(incoming) => incoming.size_hint(),
            Self::Replay(replay) => {
                let shared = replay.lock();
                let kept: usize = shared.kept[replay.position.min(shared.kept.len())..]
                    .iter()
                    .map(Bytes::len)
                    .sum();
                match shared.incoming.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(rest + kept as u64),
                    None => SizeHint::new(),
                }
            }
        }
    }
}

/// A response's body, as sent to the client. It holds the ticket of its request, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    ticket: Ticket,
}

#[derive(Debug)]
enum Source {
    Empty,
    /// From the proxy itself.
    Text(Option<Bytes>),
    /// Polls the instance's connection itself, and gives it back to the pool with the last byte.
    Http1 {
        incoming: Incoming,
        upstream: Option<Box<H1>>,
    },
    Http2 {
        incoming: Incoming,
        _stream: Stream,
    },
}

impl ResponseBody {
    pub(crate) fn text(text: String, ticket: Ticket) -> Self {
        let source = if text.is_empty() {
            Source::Empty
        } else {
            Source::Text(Some(text.into()))
        };
        Self { source, ticket }
    }

    pub(crate) fn empty(ticket: Ticket) -> Self {
        Self {
            source: Source::Empty,
            ticket,
        }
    }

    pub(crate) fn http1(incoming: Incoming, upstream: Box<H1>, ticket: Ticket) -> Self {
        Self {
            source: Source::Http1 {
                incoming,
                upstream: Some(upstream),
            },
            ticket,
        }
    }

    pub(crate) fn http2(incoming: Incoming, stream: Stream, ticket: Ticket) -> Self {
        Self {
            source: Source::Http2 {
                incoming,
                _stream: stream,
            },
            ticket,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { source, ticket } = self.get_mut();
        match source {
            Source::Empty => Poll::Ready(None),
            Source::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Http2 { incoming, .. } => Pin::new(incoming).poll_frame(cx),
            Source::Http1 { incoming, upstream } => {
                let mut polled = Pin::new(&mut *incoming).poll_frame(cx);
                if polled.is_pending() {
                    let Some(connection) = upstream else {
                        return Poll::Pending;
                    };
                    // What the connection reads now wakes nobody: look again.
                    let closed = connection.poll(cx).is_ready();
                    polled = Pin::new(&mut *incoming).poll_frame(cx);
                    if closed {
                        *upstream = None;
                    }
                }
                let last = match &polled {
                    Poll::Pending => false,
                    Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || incoming.is_end_stream(),
                    Poll::Ready(None) => true,
                    Poll::Ready(Some(Err(_))) => {
                        *upstream = None;
                        false
                    }
                };
                if last && let Some(connection) = upstream.take() {
                    connection.release(ticket.worker(), cx);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(text) => text.is_none(),
            Source::Http1 { incoming, .. } | Source::Http2 { incoming, .. } => {
                incoming.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Source::Http1 { incoming, .. } | Source::Http2 { incoming, .. } => incoming.size_hint(),
        }
    }
}
