//! Errors as gRPC clients see them: a status with details that a program can act on.
//!
//! Every status carries an `ErrorInfo` of domain `wharf` whose reason is stable (see
//! [google.rpc error model](https://google.aip.dev/193)); one about a field carries `BadRequest`,
//! and one that passes by itself carries `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};
use wharf_mesh::DescribeError;

use crate::authz::Denied;

const DOMAIN: &str = "wharf";

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details(reason))
}

/// Collects what is wrong with a request, field by field.
#[derive(Debug, Default)]
pub(super) struct Violations(Vec<FieldViolation>);

impl Violations {
    pub(super) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(FieldViolation::new(field, reason));
    }

    /// The status that tells all of them; `Ok` when there is none.
    pub(super) fn finish(self) -> Result<(), Status> {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        let message = match self.0.len() {
            1 => format!("{}: {}", first.field, first.description),
            n => format!(
                "{}: {} (and {} more)",
                first.field,
                first.description,
                n - 1
            ),
        };
        let mut details = details("INVALID_ARGUMENT");
        details.set_bad_request(self.0);
        Err(Status::with_error_details(
            Code::InvalidArgument,
            message,
            details,
        ))
    }
}

pub(super) fn denied(denied: &Denied) -> Status {
    match denied {
        Denied::UnknownToken => status(Code::Unauthenticated, "ACL_NOT_FOUND", denied.to_string()),
        Denied::Forbidden { .. } => status(
            Code::PermissionDenied,
            "PERMISSION_DENIED",
            denied.to_string(),
        ),
    }
}

pub(super) fn describe(error: DescribeError) -> Status {
    let message = error.to_string();
    match error {
        DescribeError::UnknownService(_) | DescribeError::UnknownProxy(_) => {
            status(Code::NotFound, "UNKNOWN_INSTANCE", message)
        }
        DescribeError::NoSidecar(_) => status(Code::NotFound, "NO_SIDECAR", message),
        DescribeError::SeveralSidecars { .. } => {
            status(Code::FailedPrecondition, "SEVERAL_SIDECARS", message)
        }
        DescribeError::NotASidecar { .. } => {
            status(Code::FailedPrecondition, "NOT_A_SIDECAR", message)
        }
        DescribeError::Invalid(invalid) => {
            let mut violations = Violations::default();
            for violation in invalid {
                violations.add(violation.field, violation.reason);
            }
            violations
                .finish()
                .err()
                .unwrap_or_else(|| Status::invalid_argument(message))
        }
    }
}

pub(super) fn shutting_down() -> Status {
    status(
        Code::Unavailable,
        "SHUTTING_DOWN",
        "the agent is shutting down",
    )
}

pub(super) fn slow_consumer(patience: Duration) -> Status {
    let message = format!(
        "nothing of the stream was read for {} s",
        patience.as_secs()
    );
    status(Code::ResourceExhausted, "SLOW_CONSUMER", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_its_field() {
        let mut violations = Violations::default();
        violations.add("instance.service", "must not be empty");
        violations.add("hold", "must not be negative");
        let status = violations.finish().unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "instance.service: must not be empty (and 1 more)"
        );
        let details = status.get_error_details();
        assert_eq!(
            details.bad_request().unwrap().field_violations[1].field,
            "hold"
        );
        assert_eq!(details.error_info().unwrap().domain, "wharf");
    }
}
