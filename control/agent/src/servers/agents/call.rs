//! Requests of the HTTP API that came to a client agent, answered here.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};
use wharf_proto::server::v1 as proto;

use super::wire::{self, Malformed};
use crate::http::{ChannelBody, Forwarded, HttpContext};

/// How long the head of a request may take to come, and a piece of its body.
const PART_WITHIN: Duration = Duration::from_secs(60);
/// Pieces of a body on their way, and the size of one of an answer.
const AHEAD: usize = 4;
const PIECE: usize = 1 << 20;

/// The API of this server.
#[derive(Debug)]
pub(in super::super) struct Api {
    forwarded: Forwarded,
}

impl Api {
    pub(in super::super) fn new(context: Arc<HttpContext>) -> Api {
        Api {
            forwarded: Forwarded::new(context),
        }
    }

    pub(super) async fn call(
        &self,
        mut parts: Streaming<proto::CallPart>,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<proto::CallReply, Status>> + Send>>, Status> {
        let first = timeout(PART_WITHIN, parts.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
        let first = first.ok_or(Status::invalid_argument("no request"))?;
        let head = first.head.ok_or(Malformed("a request without a head"))?;
        let (data, body) = mpsc::channel(AHEAD);
        let mut request = http::Request::builder()
            .method(head.method.as_str())
            .uri(head.uri)
            .body(ChannelBody::new(body))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        *request.headers_mut() = wire::read_headers(head.headers)?;
        let feeding = async move {
            let mut piece = first.data;
            loop {
                if !piece.is_empty() && data.send(Ok(piece)).await.is_err() {
                    // The answer does not depend on the rest.
                    return;
                }
                piece = match timeout(PART_WITHIN, parts.message()).await {
                    Ok(Ok(Some(part))) => part.data,
                    Ok(Ok(None)) => return,
                    Ok(Err(_)) | Err(_) => {
                        let broken = "the body does not go on".to_owned();
                        let _ = data.send(Err(broken)).await;
                        return;
                    }
                };
            }
        };
        // The body comes as long as the answer is made; what is left of it then is of no use.
        let answering = self.forwarded.answer(request);
        tokio::pin!(answering);
        let response = tokio::select! {
            response = &mut answering => response,
            () = feeding => answering.await,
        };
        let (head, mut body) = response.into_parts();
        let mut head = proto::CallReplyHead {
            status: head.status.as_u16().into(),
            headers: wire::write_headers(&head.headers),
            whole: false,
        };
        let whole = http_body::Body::size_hint(&body).exact().is_some();
        if whole {
            let bytes = body.collect().await.map_err(broken)?.to_bytes();
            head.whole = true;
            return Ok(Box::pin(stream::iter(pieces(Some(head), bytes))));
        }
        let first = proto::CallReply {
            head: Some(head),
            data: Bytes::new(),
        };
        let rest = stream::poll_fn(move |cx| {
            use http_body::Body as _;
            Pin::new(&mut body).poll_frame(cx)
        });
        let rest = rest.flat_map(|frame| {
            stream::iter(match frame {
                Ok(frame) => pieces(None, frame.into_data().unwrap_or_default()),
                Err(error) => vec![Err(broken(error))],
            })
        });
        Ok(Box::pin(stream::iter([Ok(first)]).chain(rest)))
    }
}

fn broken(error: impl std::error::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// Messages of a size that goes through.
fn pieces(
    mut head: Option<proto::CallReplyHead>,
    mut bytes: Bytes,
) -> Vec<Result<proto::CallReply, Status>> {
    let mut pieces = Vec::new();
    loop {
        let data = bytes.split_to(bytes.len().min(PIECE));
        let head = head.take();
        if head.is_none() && data.is_empty() {
            return pieces;
        }
        pieces.push(Ok(proto::CallReply { head, data }));
    }
}
