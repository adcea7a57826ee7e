//! Answers: bodies, JSON in Consul's two layouts, and the headers that every answer carries.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::HttpError;

/// A whole body, or one that is written as it comes.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Option<Bytes>),
    /// Ends when the sender does, or when the agent stops.
    Stream(
        mpsc::Receiver<Bytes>,
        Pin<Box<WaitForCancellationFutureOwned>>,
    ),
    /// Comes from a server. If that breaks off, so does this: half an answer must not look whole.
    PassedOn(mpsc::Receiver<Result<Bytes, String>>),
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct Broken(String);

pub(crate) type Response = http::Response<Body>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(receiver, stop) => {
                if stop.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                receiver
                    .poll_recv(context)
                    .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Body::PassedOn(receiver) => receiver
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(Broken))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Body::Stream(..) | Body::PassedOn(_) => SizeHint::default(),
        }
    }
}

/// JSON in one line, or indented by four with a newline at the end.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, pretty: bool) -> Result<Bytes, HttpError> {
    let mut buffer = Vec::with_capacity(512);
    let encoded = if pretty {
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut buffer, formatter);
        value.serialize(&mut serializer)
    } else {
        serde_json::to_writer(&mut buffer, value)
    };
    encoded.map_err(|error| HttpError::internal(format!("the answer does not encode: {error}")))?;
    if pretty {
        buffer.push(b'\n');
    }
    Ok(Bytes::from(buffer))
}

pub(crate) fn json_bytes(status: StatusCode, bytes: Bytes) -> Response {
    with_type(status, "application/json", bytes)
}

pub(crate) fn json<T: Serialize + ?Sized>(value: &T, pretty: bool) -> Result<Response, HttpError> {
    Ok(json_bytes(StatusCode::OK, encode(value, pretty)?))
}

pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = status;
    response
}

pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

pub(crate) fn with_type(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::Whole(Some(bytes)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A body that grows while it is read. A slow reader holds the sender back.
pub(crate) fn stream(
    kind: &'static str,
    receiver: mpsc::Receiver<Bytes>,
    shutdown: CancellationToken,
) -> Response {
    let stop = Box::pin(shutdown.cancelled_owned());
    let mut response = Response::new(Body::Stream(receiver, stop));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

impl From<HttpError> for Response {
    fn from(error: HttpError) -> Response {
        text(error.status, error.text)
    }
}

pub(crate) const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
pub(crate) const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
pub(crate) const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
pub(crate) const CONSISTENCY: HeaderName =
    HeaderName::from_static("x-consul-effective-consistency");
pub(crate) const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
pub(crate) const ACL_POLICY: HeaderName = HeaderName::from_static("x-consul-default-acl-policy");
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-consul-reason");
pub(crate) const QUERY_BACKEND: HeaderName = HeaderName::from_static("x-consul-query-backend");
pub(crate) const FILTERED: HeaderName =
    HeaderName::from_static("x-consul-results-filtered-by-acls");
