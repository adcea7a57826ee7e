//! HTTP checks, and what a redirect leads to.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, COOKIE, HOST, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use wharf_registry::model::CheckStatus;

use super::{
    Finding,
    connect::{self, ConnectError, bare_host},
};
use crate::local::HttpCheck;

/// As many as Go's client follows, and so Consul.
const MAX_REDIRECTS: usize = 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpFailure {
    #[error("invalid URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
    #[error("unsupported protocol scheme {0:?}")]
    Scheme(String),
    #[error("no host in the URL")]
    NoHost,
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Exchange(#[from] hyper::Error),
    #[error("a redirect to {0:?}, which is no URL")]
    Redirect(String),
    #[error("stopped after {MAX_REDIRECTS} redirects")]
    TooManyRedirects,
}

/// Sends the request and judges the answer: 2xx passes, 429 warns. At most `limit` bytes of the body
/// are read.
pub(super) async fn probe(check: &HttpCheck, limit: usize) -> Finding {
    let method = match &*check.method {
        "" => "GET",
        given => given,
    };
    // As Go tells it: `Get "http://…": dial tcp …`.
    let failed = |error: HttpFailure| {
        let verb = method.get(..1).unwrap_or_default().to_ascii_uppercase();
        let rest = method.get(1..).unwrap_or_default().to_ascii_lowercase();
        Finding::critical(format!("{verb}{rest} {:?}: {error}", &*check.url))
    };
    let fetched = match fetch(check, method, limit).await {
        Ok(fetched) => fetched,
        Err(error) => return failed(error),
    };
    let (status, body) = fetched;
    let judged = match status {
        status if status.is_success() => CheckStatus::Passing,
        StatusCode::TOO_MANY_REQUESTS => CheckStatus::Warning,
        _ => CheckStatus::Critical,
    };
    let body = String::from_utf8_lossy(&body);
    Finding {
        status: judged,
        output: format!("HTTP {method} {}: {status} Output: {body}", check.url),
    }
}

/// The status and at most `limit` bytes of the body of what the redirects lead to.
pub(crate) async fn fetch(
    check: &HttpCheck,
    method: &str,
    limit: usize,
) -> Result<(StatusCode, Vec<u8>), HttpFailure> {
    let mut uri: Uri = check.url.parse()?;
    let mut method = Method::from_bytes(method.as_bytes()).map_err(http::Error::from)?;
    let mut headers = headers(check)?;
    let mut body = Bytes::copy_from_slice(check.body.as_bytes());
    for _ in 0..=MAX_REDIRECTS {
        let response = send(check, &uri, &method, &headers, body.clone());
        let Exchange { response, driver } = response.await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).cloned();
        let redirect = match status.as_u16() {
            301..=303 | 307 | 308 if !check.disable_redirects => location,
            _ => None,
        };
        let Some(location) = redirect else {
            let body = read(response.into_body(), driver, limit).await?;
            return Ok((status, body));
        };
        let next = follow(&uri, &location).ok_or_else(|| {
            HttpFailure::Redirect(String::from_utf8_lossy(location.as_bytes()).into())
        })?;
        // RFC 9110 §15.4: a form is not sent again, and secrets stay with the host they are for.
        if (301..=303).contains(&status.as_u16()) && method != Method::HEAD {
            method = Method::GET;
            body = Bytes::new();
        }
        if next.host() != uri.host() {
            for secret in [AUTHORIZATION, COOKIE, HOST] {
                headers.remove(secret);
            }
        }
        uri = next;
    }
    Err(HttpFailure::TooManyRedirects)
}

fn headers(check: &HttpCheck) -> Result<HeaderMap, HttpFailure> {
    let mut headers = HeaderMap::new();
    for (name, values) in &check.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(http::Error::from)?;
        for value in values {
            let value = HeaderValue::from_str(value).map_err(http::Error::from)?;
            headers.append(&name, value);
        }
    }
    let mut default = |name: HeaderName, value| {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    };
    default(USER_AGENT, "Consul Health Check");
    default(ACCEPT, "text/plain, text/*, */*");
    default(CONNECTION, "close");
    Ok(headers)
}

/// An answer whose body is still on its way.
struct Exchange<D> {
    response: Response<Incoming>,
    /// Moves the bytes of the connection.
    driver: D,
}

async fn send(
    check: &HttpCheck,
    uri: &Uri,
    method: &Method,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Exchange<impl Future<Output = hyper::Result<()>> + Unpin + use<>>, HttpFailure> {
    let (tls, default_port) = match uri.scheme_str() {
        Some("http") => (None, 80),
        Some("https") => (Some(&check.tls), 443),
        other => return Err(HttpFailure::Scheme(other.unwrap_or_default().to_owned())),
    };
    let host = uri.host().filter(|host| !host.is_empty());
    let host = bare_host(host.ok_or(HttpFailure::NoHost)?);
    let port = uri.port_u16().unwrap_or(default_port);
    let stream = connect::stream(host, port, tls, &[b"http/1.1"]).await?;

    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method.clone();
    *request.uri_mut() = path.parse()?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = authority.rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(http::Error::from)?;
        request.headers_mut().insert(HOST, host);
    }
    let (mut sender, mut driver) = http1::handshake(TokioIo::new(stream)).await?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    let response = tokio::select! {
        biased;
        response = &mut response => response?,
        ended = &mut driver => {
            ended?;
            response.await?
        }
    };
    Ok(Exchange { response, driver })
}

/// The first `limit` bytes of a body.
async fn read(
    mut body: Incoming,
    mut driver: impl Future<Output = hyper::Result<()>> + Unpin,
    limit: usize,
) -> Result<Vec<u8>, HttpFailure> {
    let mut content = Vec::new();
    let mut driven = false;
    while content.len() < limit {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            // What is left of the body is buffered; how the connection ended shows in it.
            _ = &mut driver, if !driven => {
                driven = true;
                continue;
            }
        };
        let Some(frame) = frame else { break };
        if let Some(data) = frame?.data_ref() {
            content.extend_from_slice(&data[..data.len().min(limit - content.len())]);
        }
    }
    Ok(content)
}

/// Where a `Location` leads from `base` (RFC 3986 §5.2, without the removal of dots, which servers do).
fn follow(base: &Uri, location: &HeaderValue) -> Option<Uri> {
    let location = location.to_str().ok()?;
    let location = location.split('#').next()?;
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let absolute = location.contains("://");
    let text = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(head, _)| head);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let base: Uri = "http://a:81/b/c?d".parse().unwrap();
        let to = |location| {
            follow(&base, &HeaderValue::from_static(location)).map(|uri| uri.to_string())
        };
        assert_eq!(to("https://x/y").unwrap(), "https://x/y");
        assert_eq!(to("//x/y").unwrap(), "http://x/y");
        assert_eq!(to("/y#z").unwrap(), "http://a:81/y");
        assert_eq!(to("?y").unwrap(), "http://a:81/b/c?y");
        assert_eq!(to("y").unwrap(), "http://a:81/b/y");
        assert_eq!(to("http://[").as_deref(), None);
    }
}
