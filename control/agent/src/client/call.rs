//! Requests of the HTTP API, passed on to a server.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderName, Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wharf_proto::server::v1 as proto;

use super::{Client, Link};
use crate::{
    cluster::ClusterError,
    http::{RequestBody, Response, ResponseBody},
    servers::{agents::wire, is_connect_error},
};

/// A body up to this size is read whole before it is passed on: so it can be sent again, if it did not arrive.
const KEPT: usize = 1 << 20;
/// Pieces of a body on their way, and their size.
const AHEAD: usize = 4;
const PIECE: usize = 1 << 20;

/// Between this agent and its client, or added to every answer here.
const OWN_HEADERS: &[HeaderName] = &[
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::ACCEPT_ENCODING,
    header::HOST,
    header::EXPECT,
    header::UPGRADE,
    header::TE,
];

/// What is sent of a body.
enum Sent {
    Whole(Bytes),
    /// It is read while it is sent, and can be sent once.
    Streamed(RequestBody, Vec<Bytes>),
}

/// Why there is no answer.
enum Failure {
    /// The request has not arrived.
    NotSent(String),
    /// It may have been done.
    Unknown(String),
    Error(ClusterError),
}

impl Client {
    /// A server's answer to a request that this agent has let through.
    pub(crate) async fn call(
        &self,
        parts: Parts,
        body: RequestBody,
    ) -> Result<Response, ClusterError> {
        self.shared.rates.pass_on()?;
        let deadline = Instant::now() + self.shared.hold;
        let safe = matches!(parts.method, Method::GET | Method::HEAD);
        let mut sent = read_ahead(body).await?;
        loop {
            let link = self.link(deadline).await?;
            let once = matches!(sent, Sent::Streamed(..));
            let failure = match pass_on(&link, &parts, &mut sent).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let (text, again) = match failure {
                Failure::Error(error) => return Err(error),
                Failure::NotSent(text) => (text, !once),
                Failure::Unknown(text) => (text, safe),
            };
            if !again {
                return Err(ClusterError::OutcomeUnknown(format!(
                    "the outcome of the request is unknown: it may or may not have taken place ({text}); see whether it has \
                     before it is tried again"
                )));
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::NoServers);
            }
            tracing::debug!(reason = text, "a request goes to another server");
            // Its connection is about to be given up.
            let mut now = self.shared.link.subscribe();
            let other =
                now.wait_for(|now| now.as_ref().is_some_and(|now| now.session != link.session));
            let _ = tokio::time::timeout_at(deadline, other).await;
        }
    }
}

/// Reads a body of a usual size; of a larger one, its beginning.
async fn read_ahead(body: RequestBody) -> Result<Sent, ClusterError> {
    let mut pieces = Vec::new();
    let mut length = 0;
    let mut reading = body.lock().await;
    while length <= KEPT {
        match reading.frame().await {
            None => {
                let whole = match <[Bytes; 1]>::try_from(pieces) {
                    Ok([only]) => only,
                    Err(pieces) => pieces.concat().into(),
                };
                return Ok(Sent::Whole(whole));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    length += data.len();
                    pieces.push(data);
                }
            }
            Some(Err(error)) => {
                let text = format!("the request body broke off: {error}");
                return Err(ClusterError::Operation(text));
            }
        }
    }
    drop(reading);
    Ok(Sent::Streamed(body, pieces))
}

async fn pass_on(link: &Link, parts: &Parts, sent: &mut Sent) -> Result<Response, Failure> {
    let mut headers = parts.headers.clone();
    for name in OWN_HEADERS {
        headers.remove(name);
    }
    let head = proto::CallHead {
        method: parts.method.to_string(),
        uri: parts
            .uri
            .path_and_query()
            .map_or_else(|| "/".to_owned(), ToString::to_string),
        headers: wire::write_headers(&headers),
    };
    let (pieces, outgoing) = mpsc::channel(AHEAD);
    let first = proto::CallPart {
        head: Some(head),
        data: Bytes::new(),
    };
    // There is room for it.
    let _ = pieces.try_send(first);
    let sending = send_body(&pieces, sent);
    let mut calls = Client::calls(link);
    let call = calls.call(ReceiverStream::new(outgoing));
    let answering = async {
        let answers = call.await.map_err(failure)?.into_inner();
        answer(answers).await
    };
    tokio::pin!(answering);
    let sent = tokio::select! {
        answer = &mut answering => return answer,
        sent = sending => sent,
    };
    // The channel is open until here: the server does not take half of a body for the whole.
    sent.map_err(|error| {
        Failure::Error(ClusterError::Operation(format!(
            "the request body broke off: {error}"
        )))
    })?;
    drop(pieces);
    answering.await
}

/// Sends a body piece by piece. Completes with an error when the client does not go on with it.
async fn send_body(pieces: &mpsc::Sender<proto::CallPart>, sent: &mut Sent) -> Result<(), String> {
    let part = |data| proto::CallPart { head: None, data };
    match sent {
        Sent::Whole(bytes) => {
            let mut bytes = bytes.clone();
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE));
                if pieces.send(part(piece)).await.is_err() {
                    break;
                }
            }
        }
        Sent::Streamed(body, read) => {
            for piece in read.drain(..) {
                if pieces.send(part(piece)).await.is_err() {
                    return Ok(());
                }
            }
            let mut body = body.lock().await;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| error.to_string())?;
                if let Ok(data) = frame.into_data()
                    && pieces.send(part(data)).await.is_err()
                {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn failure(status: Status) -> Failure {
    let text = status.message().to_owned();
    if is_connect_error(&status) {
        Failure::NotSent(text)
    } else {
        Failure::Unknown(text)
    }
}

fn malformed(what: &str) -> Failure {
    Failure::Unknown(format!("the server's answer is malformed: {what}"))
}

async fn answer(mut answers: Streaming<proto::CallReply>) -> Result<Response, Failure> {
    let first = answers.message().await.map_err(failure)?;
    let first = first.ok_or_else(|| malformed("it is empty"))?;
    let head = first.head.ok_or_else(|| malformed("it has no head"))?;
    let status = u16::try_from(head.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| malformed("it has no status"))?;
    let headers =
        wire::read_headers(head.headers).map_err(|error| malformed(&error.to_string()))?;
    let body = if head.whole {
        let mut bytes = vec![first.data];
        while let Some(more) = answers.message().await.map_err(failure)? {
            bytes.push(more.data);
        }
        let bytes = match <[Bytes; 1]>::try_from(bytes) {
            Ok([only]) => only,
            Err(bytes) => bytes.concat().into(),
        };
        ResponseBody::Whole((!bytes.is_empty()).then_some(bytes))
    } else {
        let (pieces, receiver) = mpsc::channel(AHEAD);
        // Ends with the answer, or with its client.
        tokio::spawn(async move {
            if !first.data.is_empty() && pieces.send(Ok(first.data)).await.is_err() {
                return;
            }
            while let Some(piece) = answers.next().await {
                let piece = piece.map(|piece| piece.data);
                let piece = piece.map_err(|status| status.message().to_owned());
                let broken = piece.is_err();
                if pieces.send(piece).await.is_err() || broken {
                    return;
                }
            }
        });
        ResponseBody::PassedOn(receiver)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
