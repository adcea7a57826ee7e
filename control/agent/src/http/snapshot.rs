//! `/v1/snapshot`: the whole state as an archive, out and in.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use wharf_registry::{snapshot::SnapshotError, snapshot::archive::ArchiveError};

use super::{
    HttpContext,
    blocking::{self, ReadOptions, check_datacenter},
    error::HttpError,
    request::Request,
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    snapshot::{MAX_ARCHIVE, Saved, SnapshotsError},
};

/// Size of one piece of the answer, and how many wait for a client that does not read.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// How long a client may send or take nothing: snapshots are one at a time, and others wait.
const STALLED: Duration = Duration::from_secs(30);

impl From<SnapshotsError> for HttpError {
    fn from(error: SnapshotsError) -> HttpError {
        let full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        let status = match error {
            SnapshotsError::Cluster(error) => return error.into(),
            SnapshotsError::Busy => StatusCode::TOO_MANY_REQUESTS,
            SnapshotsError::Disk { ref source, .. } if full(source) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            SnapshotsError::Write(SnapshotError::Io(ref source)) if full(source) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            SnapshotsError::Archive(ArchiveError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            // A damaged archive too: Consul's status for it.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        HttpError::new(status, error.to_string())
    }
}

/// `GET /v1/snapshot`: everything, secrets included, so it takes what a change of everything takes.
pub(super) async fn save(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let options = ReadOptions::parse(context, &request)?;
    context.cluster.barrier(options.consistency).await?;
    let saved = context.snapshots.save(&*context.cluster).await?;
    let index = saved.meta.index;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(send(saved, sender));
    let mut response = response::stream("application/x-gzip", receiver, context.shutdown.clone());
    blocking::read_headers(context, options.consistency, index, &mut response);
    Ok(response)
}

/// Sends an archive piece by piece, to its end or that of its reader.
async fn send(mut saved: Saved, pieces: mpsc::Sender<Bytes>) {
    loop {
        let read = spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = saved.archive.read(&mut piece);
            let piece = read.map(|read| {
                piece.truncate(read);
                Bytes::from(piece)
            });
            (saved, piece)
        });
        let piece = match read.await {
            Ok((back, Ok(piece))) => {
                saved = back;
                piece
            }
            // The archive is cut short then, which its reader sees.
            Ok((_, Err(error))) => {
                tracing::error!(%error, "a snapshot is not sent to its end");
                return;
            }
            Err(_) => return,
        };
        if piece.is_empty() {
            // Before its reader sees the end, and asks for the next.
            drop(saved);
            return;
        }
        if pieces.send_timeout(piece, STALLED).await.is_err() {
            return;
        }
    }
}

/// `PUT /v1/snapshot` with an archive.
pub(super) async fn restore(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    check_datacenter(context, &request)?;
    let mut arriving = context.snapshots.receive()?;
    let mut received = 0;
    {
        let body = request.body.clone();
        let mut body = body.lock().await;
        loop {
            let frame = match timeout(STALLED, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    let text = format!("the request broke off: {error}");
                    return Err(HttpError::bad_request(text));
                }
                Err(_) => {
                    return Err(HttpError::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "the snapshot does not go on",
                    ));
                }
            };
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            received += bytes.len() as u64;
            if received > MAX_ARCHIVE {
                return Err(HttpError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a snapshot has at most {MAX_ARCHIVE} bytes"),
                ));
            }
            let written = spawn_blocking(move || arriving.write(&bytes).map(|()| arriving)).await;
            let written = written.map_err(|error| HttpError::internal(error.to_string()))?;
            arriving = written.map_err(|source| {
                HttpError::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    format!("cannot keep the snapshot: {source}"),
                )
            })?;
        }
    }
    let meta = context
        .snapshots
        .restore(&*context.cluster, arriving)
        .await?;
    tracing::info!(id = %meta.id, index = meta.index, "a snapshot was restored");
    Ok(response::empty(StatusCode::OK))
}
