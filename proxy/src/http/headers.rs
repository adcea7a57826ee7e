//! What a request and a response must look like before they go on: pure, and strict where two parsers could differ.
//!
//! Framing is hyper's on both sides: nothing here copies a length or a transfer coding through.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
    uri::{Authority, PathAndQuery, Scheme},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    #[error("CONNECT is not served here: this port leads to one service")]
    Connect,
    #[error("an HTTP/1.1 request needs exactly one Host header")]
    Host,
    #[error("the request target is not valid")]
    Target,
    #[error("the only transfer coding understood is chunked")]
    TransferCoding,
    #[error("the only expectation understood is 100-continue")]
    Expectation,
}

impl Bad {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Host | Self::Target => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
        }
    }
}

/// Checks a request as it came, and brings it into one form for all: target in origin form, the authority in `Host`,
/// version 1.1, nothing that was meant for this hop only. The answer is the protocol the client wants to change to.
pub(crate) fn prepare<B>(request: &mut Request<B>) -> Result<Option<HeaderValue>, Bad> {
    if request.method() == Method::CONNECT {
        return Err(Bad::Connect);
    }
    let version = request.version();
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        return Err(Bad::Host);
    }
    // RFC 9112 §6.1: a coding that is not understood is answered with 501. Not to be passed on: only the framing is
    // undone here, not what else was named.
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Bad::TransferCoding);
    }
    if let Some(expectation) = request.headers().get(EXPECT) {
        if !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Bad::Expectation);
        }
        // hyper answers it when the instance's connection asks for the body.
        request.headers_mut().remove(EXPECT);
    }
    let upgrade = if version == Version::HTTP_11 {
        wanted_upgrade(request.headers())
    } else {
        None
    };
    to_origin_form(request, hosts)?;
    strip(request.headers_mut());
    *request.version_mut() = Version::HTTP_11;
    Ok(upgrade)
}

/// RFC 9110 §7.8: `Upgrade` counts only with `Connection: upgrade`. `h2c` does not go through: it would hand the
/// instance a connection whose requests this proxy does not see.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(UPGRADE)?;
    let asked = tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = tokens(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case("h2c"));
    (asked && !h2c).then(|| upgrade.clone())
}

/// RFC 9112 §3.2.2: the authority of an absolute target replaces `Host`; RFC 9113 §8.3.1 the same for `:authority`.
fn to_origin_form<B>(request: &mut Request<B>, hosts: usize) -> Result<(), Bad> {
    let uri = request.uri();
    if let Some(authority) = uri.authority() {
        // Credentials in an authority are deprecated and not for the instance's eyes.
        if authority.as_str().contains('@') {
            return Err(Bad::Target);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Bad::Target)?;
        let whole = request.method() == Method::OPTIONS
            && matches!(
                uri.path_and_query().map(PathAndQuery::as_str),
                None | Some("")
            );
        let path = match uri.path_and_query() {
            _ if whole => PathAndQuery::from_static("*"),
            Some(path) if !path.as_str().is_empty() => path.clone(),
            _ => PathAndQuery::from_static("/"),
        };
        *request.uri_mut() = Uri::from(path);
        request.headers_mut().insert(HOST, host);
    } else {
        // Neither origin form nor `*`.
        if uri.scheme().is_some() || !(uri.path().starts_with('/') || uri.path() == "*") {
            return Err(Bad::Target);
        }
        if hosts == 0 {
            // HTTP/1.0 without a host, sent on as 1.1: RFC 9112 §3.2 wants an empty one.
            request
                .headers_mut()
                .insert(HOST, HeaderValue::from_static(""));
        }
    }
    Ok(())
}

/// Removes what RFC 9110 §7.6.1 keeps to one hop. `TE: trailers` stays: both sides carry trailers.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // A client must not make the proxy drop what the message needs.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if headers.contains_key(TE) {
        let trailers = tokens(headers, TE).any(|token| token.eq_ignore_ascii_case("trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, TRAILERS);
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Brings a response into a form that can be sent on. A length beside a transfer coding is not to be believed (RFC 9112
/// §6.3) and must not reach the client once the coding is gone.
pub(crate) fn prepare_response(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip(headers);
}

/// For an HTTP/1.1 instance. The inverse of [`for_http2`], and nothing when the request is as [`prepare`] left it.
pub(crate) fn for_http1<B>(
    request: &mut Request<B>,
    upgrade: Option<&HeaderValue>,
) -> Result<(), Bad> {
    if request.uri().authority().is_some() {
        to_origin_form(request, 1)?;
        *request.version_mut() = Version::HTTP_11;
    }
    let headers = request.headers_mut();
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if headers.contains_key(TE) {
        // RFC 9110 §10.1.4.
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    Ok(())
}

/// For an HTTP/2 instance: the authority moves from `Host` into the target.
pub(crate) fn for_http2<B>(request: &mut Request<B>) -> Result<(), Bad> {
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(UPGRADE);
    *request.version_mut() = Version::HTTP_2;
    let Some(host) = request.headers_mut().remove(HOST) else {
        return Ok(());
    };
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    // An empty Host has no place in an HTTP/2 target.
    let host = if host.is_empty() {
        "localhost"
    } else {
        host.to_str().map_err(|_| Bad::Host)?
    };
    parts.authority = Some(Authority::try_from(host).map_err(|_| Bad::Host)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Bad::Target)?;
    Ok(())
}

/// RFC 9110 §9.2.2: sending it twice does what sending it once does.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The members of a comma-separated list header.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a valid request")
    }

    #[test]
    fn hop_by_hop_headers_stay_on_their_hop() {
        let mut r = request(
            "/x",
            &[
                ("host", "a"),
                ("connection", "close, X-Secret, host, content-length"),
                ("x-secret", "1"),
                ("content-length", "0"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic eA=="),
                ("transfer-encoding", "chunked"),
                ("te", "gzip, trailers"),
                ("upgrade", "websocket"),
                ("x-kept", "1"),
            ],
        );
        assert_eq!(
            prepare(&mut r),
            Ok(None),
            "Connection does not name upgrade"
        );
        let mut left: Vec<_> = r
            .headers()
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().expect("text")))
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["content-length: 0", "host: a", "te: trailers", "x-kept: 1"]
        );
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_is_not_h2c() {
        let upgrade = |connection, upgrade| {
            prepare(&mut request(
                "/",
                &[
                    ("host", "a"),
                    ("connection", connection),
                    ("upgrade", upgrade),
                ],
            ))
        };
        assert_eq!(
            upgrade("Upgrade", "websocket"),
            Ok(Some(HeaderValue::from_static("websocket")))
        );
        assert_eq!(
            upgrade("keep-alive, upgrade", "tls"),
            Ok(Some(HeaderValue::from_static("tls")))
        );
        assert_eq!(upgrade("close", "websocket"), Ok(None));
        assert_eq!(upgrade("upgrade", "H2C"), Ok(None));
    }

    #[test]
    fn the_authority_of_the_target_wins() {
        let mut r = request("http://real:81/p?q", &[("host", "other")]);
        prepare(&mut r).expect("valid");
        assert_eq!(
            (r.uri().to_string().as_str(), &r.headers()["host"]),
            ("/p?q", &HeaderValue::from_static("real:81"))
        );
        assert_eq!(
            prepare(&mut request("http://user:pw@real/", &[("host", "a")])),
            Err(Bad::Target)
        );
        assert_eq!(
            prepare(&mut request("authority.only", &[("host", "a")])),
            Ok(None)
        );
    }

    #[test]
    fn a_request_has_one_host() {
        assert_eq!(prepare(&mut request("/", &[])), Err(Bad::Host));
        assert_eq!(
            prepare(&mut request("/", &[("host", "a"), ("host", "a")])),
            Err(Bad::Host)
        );
        let mut old = request("/", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(prepare(&mut old), Ok(None));
        assert_eq!(old.headers()["host"], "");
        assert_eq!(old.version(), Version::HTTP_11);
    }

    #[test]
    fn only_chunked_is_a_transfer_coding() {
        let coding = |values: &[&str]| {
            let mut headers = vec![("host", "a")];
            headers.extend(values.iter().map(|v| ("transfer-encoding", *v)));
            prepare(&mut request("/", &headers))
        };
        assert_eq!(coding(&["Chunked"]), Ok(None));
        assert_eq!(coding(&["gzip, chunked"]), Err(Bad::TransferCoding));
        assert_eq!(coding(&["chunked", "chunked"]), Err(Bad::TransferCoding));
        assert_eq!(coding(&["identity"]), Err(Bad::TransferCoding));
    }

    #[test]
    fn a_request_survives_the_way_to_http2_and_back() {
        let mut r = request("/p?q", &[("host", "web:80"), ("te", "trailers")]);
        prepare(&mut r).expect("valid");
        for_http2(&mut r).expect("valid");
        assert_eq!(r.uri(), "http://web:80/p?q");
        assert_eq!(
            (r.headers().get("host"), r.version()),
            (None, Version::HTTP_2)
        );
        for_http1(&mut r, None).expect("valid");
        assert_eq!(
            (r.uri(), &r.headers()["host"]),
            (
                &Uri::from_static("/p?q"),
                &HeaderValue::from_static("web:80")
            )
        );
        assert_eq!(r.headers()["connection"], "te");
    }

    #[test]
    fn a_length_beside_a_coding_does_not_reach_the_client() {
        let mut headers = HeaderMap::new();
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        headers.insert("content-length", HeaderValue::from_static("3"));
        prepare_response(&mut headers);
        assert!(headers.is_empty());
    }
}
