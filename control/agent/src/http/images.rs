//! Images of this node: wharf's own endpoints.

use std::{io, time::Duration};

use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use wharf_launcher::image::{Digest, ImageName, ImportError, Limits, RegistryError, StoreError};
use wharf_registry::pieces::from_channel;

use super::{
    HttpContext,
    error::HttpError,
    request::Request,
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    platform::images::ImagesError,
};

/// The longest body of a pull.
const MAX_PULL: usize = 16 << 10;
/// How long the rest of an archive that is refused is read.
const DRAIN: Duration = Duration::from_secs(5);
/// Pieces of an archive between the socket and the disk.
const PIECES: usize = 16;

impl From<ImagesError> for HttpError {
    fn from(error: ImagesError) -> HttpError {
        let status = match &error {
            ImagesError::Closed(_) => StatusCode::SERVICE_UNAVAILABLE,
            ImagesError::Busy | ImagesError::Store(StoreError::Busy) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ImagesError::Reference(_) => StatusCode::BAD_REQUEST,
            ImagesError::Store(StoreError::NoImage(_))
            | ImagesError::Registry(RegistryError::NotFound { .. } | RegistryError::NotHere(_)) => {
                StatusCode::NOT_FOUND
            }
            ImagesError::Store(StoreError::InUse { .. } | StoreError::AmbiguousImage { .. }) => {
                StatusCode::CONFLICT
            }
            ImagesError::Import(ImportError::Store(StoreError::DiskFull { .. }))
            | ImagesError::Store(StoreError::DiskFull { .. })
            | ImagesError::Registry(RegistryError::Store(StoreError::DiskFull { .. })) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            ImagesError::Import(ImportError::Store(StoreError::File { .. })) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ImagesError::Import(_) => StatusCode::BAD_REQUEST,
            ImagesError::Changed { .. } => StatusCode::CONFLICT,
            ImagesError::Registry(RegistryError::Store(_) | RegistryError::Stopped(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ImagesError::Registry(_) => StatusCode::BAD_GATEWAY,
            ImagesError::Store(_) | ImagesError::Stopped(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        HttpError::new(status, error.to_string())
    }
}

/// What a removal took away.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Removed {
    names: Vec<String>,
    images: Vec<Digest>,
    bytes: u64,
}

fn removed(
    context: &HttpContext,
    request: &Request,
    removed: &wharf_launcher::image::Removed,
) -> Result<Response, HttpError> {
    let shown = Removed {
        names: removed.names.iter().map(ToString::to_string).collect(),
        images: removed.images.clone(),
        bytes: removed.bytes,
    };
    response::json(&shown, context.pretty(request))
}

/// `GET /v1/images`
pub(super) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Read)?;
    let images = context.images.list().await?;
    response::json(&images, context.pretty(&request))
}

/// `GET /v1/image/:name`
pub(super) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Read)?;
    let target = request.name("Missing the name or digest of an image")?;
    let image = context.images.inspect(target.to_owned()).await?;
    response::json(&image, context.pretty(&request))
}

/// `DELETE /v1/image/:name`
pub(super) async fn delete(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let target = request.name("Missing the name or digest of an image")?;
    let gone = context.images.remove(target.to_owned()).await?;
    removed(context, &request, &gone)
}

/// `POST /v1/images/prune?keep=N`
pub(super) async fn prune(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let keep = match request.query.get("keep") {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| HttpError::bad_request("Invalid value for ?keep: expected a number"))?,
    };
    let gone = context.images.prune(keep).await?;
    removed(context, &request, &gone)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pull {
    image: String,
}

/// `POST /v1/images/pull` with `{"Image": "HOST/NAME:TAG"}`; answers when the image is here.
pub(super) async fn pull(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let pull: Pull = request.json(MAX_PULL).await?;
    let name = ImageName::parse(&pull.image).map_err(ImagesError::Reference)?;
    let image = context.images.pull(&name).await?;
    response::json(&image, context.pretty(&request))
}

/// `POST /v1/images/import?name=NAME`: the body is an archive, taken as it comes.
pub(super) async fn import(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    request.caller.check(Resource::Operator, Access::Write)?;
    let limit = Limits::default().layer;
    let too_large = || {
        HttpError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the archive is longer than {limit} bytes"),
        )
    };
    let announced = request.headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let name = match request.query.get("name") {
        None => None,
        Some(text) => Some(ImageName::parse(text).map_err(ImagesError::Reference)?),
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let body = request.body.clone();
    let receive = async move {
        let mut body = body.lock().await;
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let piece = match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(_)) => continue,
                Err(error) => Err(io::Error::other(format!("the request broke off: {error}"))),
            };
            if let Ok(bytes) = &piece {
                received += bytes.len() as u64;
                if received > limit {
                    return Err(too_large());
                }
            }
            let last = piece.is_err();
            if sender.send(piece).await.is_err() {
                // The importer has given up. A client that is still sending would not read why.
                let _ = tokio::time::timeout(DRAIN, async {
                    while let Some(Ok(_)) = body.frame().await {}
                })
                .await;
                break;
            }
            if last {
                break;
            }
        }
        Ok(())
    };
    let import = context.images.import(from_channel(receiver), name);
    let (received, imported) = tokio::join!(receive, import);
    received?;
    response::json(&imported?, context.pretty(&request))
}
