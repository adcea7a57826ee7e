//! What the proxy answers itself.
//!
//! A person gets a line of text, a program the `Proxy-Status` header (RFC 9209), a gRPC client its status.

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE},
};

use super::{body::ResponseBody, forward::Ticket, headers::Bad};
use crate::{metrics::Refusal, tcp::ConnectError};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Longer texts are cut: they hold names from the configuration.
const MAX_DETAILS: usize = 256;

/// What the one who asked understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Http1,
    Http2,
    Grpc,
}

/// An answer of the proxy.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    why: Refusal,
    /// A proxy error type of RFC 9209 §2.3.
    error: &'static str,
    text: String,
    /// The request was not understood: what follows on its connection is not to be trusted either.
    close: bool,
}

impl From<Bad> for Answer {
    fn from(bad: Bad) -> Self {
        Self {
            status: bad.status(),
            why: Refusal::BadRequest,
            error: "http_request_error",
            text: bad.to_string(),
            close: true,
        }
    }
}

impl From<ConnectError> for Answer {
    fn from(error: ConnectError) -> Self {
        let (why, kind) = match &error {
            ConnectError::NoInstance { .. } => (Refusal::NoInstance, "destination_unavailable"),
            ConnectError::AllFailed { last, .. } => (
                Refusal::ConnectFailed,
                match last.kind() {
                    std::io::ErrorKind::ConnectionRefused => "connection_refused",
                    std::io::ErrorKind::TimedOut => "connection_timeout",
                    _ => "destination_ip_unroutable",
                },
            ),
            ConnectError::Overloaded { .. } => (Refusal::Overloaded, "connection_limit_reached"),
        };
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            why,
            error: kind,
            text: error.to_string(),
            close: false,
        }
    }
}

impl Answer {
    /// The instance did not answer in time.
    pub(crate) fn timeout(service: &str, limit: std::time::Duration) -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            why: Refusal::Timeout,
            error: "http_response_timeout",
            text: format!("no response from an instance of {service:?} within {limit:?}"),
            close: false,
        }
    }

    /// The instance did not begin with it, and it could not be kept to be sent again.
    pub(crate) fn refused() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            why: Refusal::UpstreamFailed,
            error: "connection_limit_reached",
            text: "the instance refused the request before it began with it".to_owned(),
            close: false,
        }
    }

    /// The instance ended the connection, or answered with something that is not HTTP.
    pub(crate) fn upstream(error: Option<&hyper::Error>) -> Self {
        let (error, text) = match error {
            Some(error) if error.is_parse() => (
                "http_protocol_error",
                format!("the instance's answer is not valid HTTP: {error}"),
            ),
            Some(error) => (
                "connection_terminated",
                format!("the instance ended the connection before it answered: {error}"),
            ),
            None => (
                "http_upgrade_failed",
                "the instance changed the protocol without being asked".to_owned(),
            ),
        };
        Self {
            status: StatusCode::BAD_GATEWAY,
            why: Refusal::UpstreamFailed,
            error,
            text,
            close: false,
        }
    }

    /// Counts the refusal and makes the response. gRPC clients get HTTP 200 with the status in gRPC's own headers.
    pub(crate) fn into_response(
        self,
        mut ticket: Ticket,
        client: Client,
    ) -> Response<ResponseBody> {
        ticket.shard().refuse(self.why);
        // The metrics tell the truth also where gRPC hides it.
        ticket.status(self.status);
        let details: String = self
            .text
            .chars()
            .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
            .take(MAX_DETAILS)
            .collect();
        let proxy_status = format!(
            "wharf; error={}; details=\"{}\"",
            self.error,
            details.replace('\\', "\\\\").replace('"', "\\\"")
        );
        let value =
            |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("wharf"));
        if client == Client::Grpc {
            // https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Trailers-Only"; codes from statuscodes.md.
            let code = match self.why {
                Refusal::Timeout => 4,
                Refusal::Overloaded => 8,
                Refusal::BadRequest => 13,
                Refusal::NoInstance | Refusal::ConnectFailed | Refusal::UpstreamFailed => 14,
            };
            let mut response = Response::new(ResponseBody::empty(ticket));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(code));
            headers.insert(GRPC_MESSAGE, value(details.replace('%', "%25")));
            headers.insert(PROXY_STATUS, value(proxy_status));
            return response;
        }
        let mut response = Response::new(ResponseBody::text(self.text + "\n", ticket));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(PROXY_STATUS, value(proxy_status));
        if self.close && client == Client::Http1 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(
                ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"),
            );
        }
        response
    }
}
