//! `/v1/snapshot`: the whole state as an archive, out and in.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{sync::mpsc, task::spawn_blocking};
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
    snapshot::{MAX_ARCHIVE, SnapshotsError},
};

/// Size of one piece of the answer, and how many wait for a client that does not read.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;

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
    let mut archive = saved.archive;
    // Ends with its client, whose going closes the channel.
    spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            match archive.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => piece.truncate(read),
                // The archive is cut short then, which its reader sees.
                Err(error) => {
                    tracing::error!(%error, "a snapshot is not sent to its end");
                    return;
                }
            }
            if sender.blocking_send(Bytes::from(piece)).is_err() {
                return;
            }
        }
    });
    let mut response = response::stream("application/x-gzip", receiver, context.shutdown.clone());
    blocking::read_headers(context, &options, index, &mut response);
    Ok(response)
}

/// `PUT /v1/snapshot` with an archive.
pub(super) async fn restore(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    check_datacenter(context, &request)?;
    let mut archive = context.snapshots.file()?;
    let full = |source: std::io::Error| {
        HttpError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("cannot keep the snapshot: {source}"),
        )
    };
    let mut received = 0;
    {
        let body = request.body.clone();
        let mut body = body.lock().await;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                HttpError::bad_request(format!("the request broke off: {error}"))
            })?;
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
            let written = spawn_blocking(move || archive.write_all(&bytes).map(|()| archive)).await;
            let written = written.map_err(|error| HttpError::internal(error.to_string()))?;
            archive = written.map_err(full)?;
        }
    }
    archive.seek(SeekFrom::Start(0)).map_err(full)?;
    let meta = context
        .snapshots
        .restore(&*context.cluster, archive)
        .await?;
    tracing::info!(id = %meta.id, index = meta.index, "a snapshot was restored");
    Ok(response::empty(StatusCode::OK))
}
