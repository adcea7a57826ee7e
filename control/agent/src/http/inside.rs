//! The API asked from inside the agent, as its clients ask it: same paths, same tokens, same refusals.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, Either, Empty};
use serde::de::DeserializeOwned;

use super::{
    HttpContext,
    request::{self, ChannelBody},
    response::{self, Broken, Response},
    router::Router,
};

/// The API of an agent.
#[derive(Debug)]
pub(crate) struct Inside {
    context: Arc<HttpContext>,
    router: Router,
}

/// The API of a server, for requests that came to client agents and were looked at there.
#[derive(Debug)]
pub(crate) struct Forwarded(Inside);

impl Forwarded {
    pub(crate) fn new(context: Arc<HttpContext>) -> Forwarded {
        Forwarded(Inside::new(context))
    }

    /// Answers as the agent's own clients are answered, but for what the agent itself adds to every answer.
    pub(crate) async fn answer(&self, request: http::Request<ChannelBody>) -> Response {
        let request = request.map(|body| request::Body::Right(Either::Right(body)));
        self.0.router.forwarded(&self.0.context, request).await
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct InsideAnswer {
    pub(crate) status: StatusCode,
    pub(crate) index: Option<u64>,
    pub(crate) hash: Option<String>,
    pub(crate) body: Bytes,
}

/// Why there is no answer, or none that is of use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsideError {
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error("{status}: {text}")]
    Refused { status: StatusCode, text: String },
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the answer is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Inside {
    pub(crate) fn new(context: Arc<HttpContext>) -> Inside {
        Inside {
            context,
            router: Router::new(),
        }
    }

    /// `GET` of a path with its query.
    pub(crate) async fn get(
        &self,
        path: &str,
        token: Option<&str>,
    ) -> Result<InsideAnswer, InsideError> {
        let mut request = http::Request::get(path);
        if let Some(token) = token {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(request::Body::Right(Either::Left(Empty::new())))?;
        let response = self.router.serve(&self.context, request, None).await;
        let (parts, body) = response.into_parts();
        let header = |name: &HeaderName| parts.headers.get(name).and_then(text);
        let answer = InsideAnswer {
            status: parts.status,
            index: header(&response::INDEX).and_then(|index| index.parse().ok()),
            hash: header(&response::CONTENT_HASH).map(str::to_owned),
            body: body.collect().await?.to_bytes(),
        };
        Ok(answer)
    }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

impl InsideAnswer {
    /// The JSON of a success.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, InsideError> {
        if !self.status.is_success() {
            return Err(InsideError::Refused {
                status: self.status,
                text: String::from_utf8_lossy(&self.body).into_owned(),
            });
        }
        Ok(serde_json::from_slice(&self.body)?)
    }
}
