//! Failures of requests: a status and a plain text, as Consul gives them.

use http::StatusCode;
use wharf_registry::command::{PlatformRefusal, Refusal};

use crate::{authz::Denied, cluster::ClusterError};

/// What a failed request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {text}")]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl HttpError {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> HttpError {
        HttpError {
            status,
            text: text.into(),
        }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> HttpError {
        HttpError::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn not_found(text: impl Into<String>) -> HttpError {
        HttpError::new(StatusCode::NOT_FOUND, text)
    }

    pub(crate) fn internal(text: impl Into<String>) -> HttpError {
        HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// Something that Consul has and wharf does not have yet.
    pub(crate) fn not_built(what: &str) -> HttpError {
        HttpError::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not built yet in wharf"),
        )
    }

    pub(crate) fn too_large(size: &str, limit: usize) -> HttpError {
        HttpError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "Request body({size} bytes) too large, max size: {limit} bytes. See the `limits` section of the agent configuration."
            ),
        )
    }
}

impl From<ClusterError> for HttpError {
    fn from(error: ClusterError) -> HttpError {
        let status = match &error {
            ClusterError::Overloaded | ClusterError::TooManyCalls(_) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ClusterError::DiskFull(_) => StatusCode::INSUFFICIENT_STORAGE,
            ClusterError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ClusterError::Operation(_) => StatusCode::BAD_REQUEST,
            ClusterError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ClusterError::Refused(Refusal::Platform(refusal)) => platform_status(refusal),
            ClusterError::NoLeader
            | ClusterError::Behind(_)
            | ClusterError::NoServers
            | ClusterError::OutcomeUnknown(_)
            | ClusterError::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        HttpError::new(status, error.to_string())
    }
}

fn platform_status(refusal: &PlatformRefusal) -> StatusCode {
    match refusal {
        PlatformRefusal::UnknownJob(_)
        | PlatformRefusal::UnknownAlloc(_)
        | PlatformRefusal::UnknownNode(_) => StatusCode::NOT_FOUND,
        PlatformRefusal::JobExists { .. }
        | PlatformRefusal::JobChanged { .. }
        | PlatformRefusal::JobNotThere { .. }
        | PlatformRefusal::JobStopped(_)
        | PlatformRefusal::AllocEnded { .. } => StatusCode::CONFLICT,
        PlatformRefusal::JobNameMissing
        | PlatformRefusal::UnknownGroup { .. }
        | PlatformRefusal::WhichGroup { .. }
        | PlatformRefusal::CountTooHigh { .. }
        | PlatformRefusal::NodeNameMissing => StatusCode::BAD_REQUEST,
    }
}

impl From<Denied> for HttpError {
    fn from(denied: Denied) -> HttpError {
        HttpError::new(StatusCode::FORBIDDEN, denied.to_string())
    }
}
