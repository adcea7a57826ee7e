//! A request as an endpoint sees it.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Either, Empty};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::sync::{Mutex, MutexGuard, mpsc};
use wharf_config::Mode;

use super::error::HttpError;
use crate::authz::{Caller, Token};

/// The query of a URL: names with values, in order, decoded as forms are (`+` is a space).
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Query {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| match pair.split_once('=') {
                    Some((name, value)) => (decode(name), decode(value)),
                    None => (decode(pair), String::new()),
                })
                .collect(),
        )
    }

    /// Whether the name is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(own, _)| own == name)
    }

    /// The first value; an empty one counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self
            .0
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Every value of a name that may be repeated.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A request whose path was matched and whose caller is known. The body is read on demand.
#[derive(Debug)]
pub(crate) struct Request {
    /// What follows the endpoint's prefix, decoded.
    pub(crate) rest: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) caller: Caller,
    pub(crate) body: RequestBody,
}

/// The most that is read of a body its endpoint left, and for how long. A client that is still writing when the
/// connection is closed sees that, and not the answer: so several times the largest value, as it is the usual one to be
/// refused. (Go's server reads 256 KiB, and lingers for half a second.)
const LEFTOVER: u64 = 4 << 20;
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// The body of a request. What its endpoint did not read is seen to afterwards.
#[derive(Clone, Debug)]
pub(crate) struct RequestBody(Arc<Mutex<Body>>);

impl RequestBody {
    pub(super) fn new(body: Body) -> RequestBody {
        RequestBody(Arc::new(Mutex::new(body)))
    }

    /// The body itself, for an endpoint that takes it piece by piece.
    pub(crate) async fn lock(&self) -> MutexGuard<'_, Body> {
        self.0.lock().await
    }

    /// Reads what is left of the body. Says whether its end was reached: if not, the connection
    /// cannot serve another request, and the client has to be told.
    pub(super) async fn drain(self) -> bool {
        let mut body = self.0.lock().await;
        if body.is_end_stream() {
            return true;
        }
        let drain = async {
            let mut read = 0;
            while read + body.size_hint().lower() <= LEFTOVER {
                match body.frame().await {
                    None => return true,
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Some(Err(_)) => return false,
                }
            }
            false
        };
        tokio::time::timeout(LEFTOVER_TIMEOUT, drain)
            .await
            .unwrap_or(false)
    }
}

/// What a client sends. What the agent asks of itself has no body, and what another agent passes on comes in pieces.
pub(crate) type Body = Either<Incoming, Either<Empty<Bytes>, ChannelBody>>;

/// A body that comes through a channel, piece by piece; an error is why it does not go on.
#[derive(Debug)]
pub(crate) struct ChannelBody(mpsc::Receiver<Result<Bytes, String>>);

impl ChannelBody {
    pub(crate) fn new(pieces: mpsc::Receiver<Result<Bytes, String>>) -> ChannelBody {
        ChannelBody(pieces)
    }
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        let piece = self.0.poll_recv(context);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// The token of a request: `?token=`, then `X-Consul-Token`, then `Authorization: Bearer`.
pub(super) fn token(query: &Query, parts: &Parts) -> Option<Token> {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let bearer = header("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let text = query
        .get("token")
        .or_else(|| header("x-consul-token"))
        .or(bearer)?;
    Token::new(text)
}

impl Request {
    /// The name that the path ends with, or `missing` as the error text.
    pub(crate) fn name(&self, missing: &str) -> Result<&str, HttpError> {
        if self.rest.is_empty() {
            Err(HttpError::bad_request(missing))
        } else {
            Ok(&self.rest)
        }
    }

    /// The whole body, refused as soon as it exceeds `limit` bytes.
    pub(crate) async fn body(&mut self, limit: usize) -> Result<Bytes, HttpError> {
        let announced = self
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok());
        if let Some(length) = announced
            && length > limit as u64
        {
            return Err(HttpError::too_large(&length.to_string(), limit));
        }
        let mut collected = BytesMut::new();
        let mut body = self.body.0.lock().await;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                HttpError::bad_request(format!("the request body broke off: {error}"))
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if collected.len() + data.len() > limit {
                return Err(HttpError::too_large(&format!("over {limit}"), limit));
            }
            // A body that comes in one piece, as most do, is not copied.
            if collected.is_empty() && announced == Some(data.len() as u64) {
                return Ok(data);
            }
            collected.extend_from_slice(&data);
        }
        Ok(collected.freeze())
    }

    /// The body as JSON, field names without case, unknown ones passed over.
    pub(crate) async fn json<T: serde::de::DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<T, HttpError> {
        let body = self.body(limit).await?;
        wharf_config::decode_json_bytes(&body, Mode::Lenient).map_err(|error| {
            HttpError::new(
                StatusCode::BAD_REQUEST,
                format!("Request decode failed: {error}"),
            )
        })
    }

    /// A boolean parameter that may stand alone.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, HttpError> {
        if !self.query.has(name) {
            return Ok(false);
        }
        match self.query.get(name) {
            None => Ok(true),
            Some(text) => go_bool(text)
                .ok_or_else(|| HttpError::bad_request(format!("Invalid value for ?{name}"))),
        }
    }
}

/// What Go's `strconv.ParseBool` takes.
pub(crate) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Why a path is not served as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PathProblem {
    /// Not UTF-8, or with characters that cannot be printed.
    Unprintable,
    /// The same path without empty and dot segments: the client is sent there.
    Unclean(String),
}

/// Decodes a path and insists on its clean form, as Go's `ServeMux` does.
pub(super) fn decode_path(raw: &str) -> Result<String, PathProblem> {
    let Ok(path) = percent_decode_str(raw).decode_utf8() else {
        return Err(PathProblem::Unprintable);
    };
    if path.chars().any(char::is_control) {
        return Err(PathProblem::Unprintable);
    }
    let dirty = raw.contains("//") || raw.split('/').any(|segment| matches!(segment, "." | ".."));
    if !dirty {
        return Ok(path.into_owned());
    }
    let mut clean: Vec<&str> = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            segment => clean.push(segment),
        }
    }
    let slash = if raw.ends_with('/') && !clean.is_empty() {
        "/"
    } else {
        ""
    };
    Err(PathProblem::Unclean(format!("/{}{slash}", clean.join("/"))))
}

/// The address that limits of a client count under: a v4-mapped v6 address is its v4 one.
pub(super) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_forms() {
        let query = Query::parse("recurse&tag=a&tag=b%2Fc&q=x+y&empty=&=z");
        assert!(query.has("recurse") && query.has("empty") && !query.has("none"));
        assert_eq!(query.get("recurse"), None);
        assert_eq!(query.get("q"), Some("x y"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b/c"]);
    }

    #[test]
    fn paths_are_cleaned_like_gos() {
        assert_eq!(decode_path("/v1/kv/a%20b"), Ok("/v1/kv/a b".into()));
        let unclean = |to: &str| Err(PathProblem::Unclean(to.into()));
        assert_eq!(decode_path("/v1/kv//foo"), unclean("/v1/kv/foo"));
        assert_eq!(
            decode_path("/v1/kv/../agent/self"),
            unclean("/v1/agent/self")
        );
        assert_eq!(decode_path("//"), unclean("/"));
        assert_eq!(decode_path("/v1/kv/a//"), unclean("/v1/kv/a/"));
        assert_eq!(decode_path("/v1/kv/%00"), Err(PathProblem::Unprintable));
        assert_eq!(decode_path("/v1/kv/%ff"), Err(PathProblem::Unprintable));
    }
}
