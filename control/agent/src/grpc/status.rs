//! Errors as gRPC clients see them: a status with details that a program can act on.
//!
//! Every status carries an `ErrorInfo` of domain `wharf` whose reason is stable (see
//! [google.rpc error model](https://google.aip.dev/193)); one about a field carries `BadRequest`,
//! and one that passes by itself carries `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};
use wharf_mesh::DescribeError;

use crate::rates::RateExceeded;
use crate::{authz::Denied, cluster::ClusterError, local::LocalError};

const DOMAIN: &str = "wharf";

/// When to try again while the cluster has no leader: an election takes about a second.
const RETRY: Duration = Duration::from_secs(1);

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details(reason))
}

fn retry(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let mut details = details(reason);
    details.set_retry_info(Some(RETRY));
    Status::with_error_details(code, message, details)
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

/// One field that is wrong.
pub(super) fn violation(field: &str, reason: &str) -> Status {
    let mut violations = Violations::default();
    violations.add(field, reason);
    violations
        .finish()
        .err()
        .unwrap_or_else(|| Status::invalid_argument(reason))
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

pub(super) fn cluster(error: &ClusterError) -> Status {
    let message = error.to_string();
    match error {
        ClusterError::NoLeader | ClusterError::NoServers => {
            retry(Code::Unavailable, "NO_LEADER", message)
        }
        ClusterError::Behind(_) => retry(Code::Unavailable, "BEHIND", message),
        ClusterError::Overloaded => retry(Code::ResourceExhausted, "OVERLOADED", message),
        ClusterError::TooManyCalls(_) => retry(Code::ResourceExhausted, "RATE_LIMITED", message),
        ClusterError::DiskFull(_) => retry(Code::ResourceExhausted, "DISK_FULL", message),
        ClusterError::OutcomeUnknown(_) => status(Code::Unknown, "OUTCOME_UNKNOWN", message),
        ClusterError::ShuttingDown => shutting_down(),
        ClusterError::Operation(_) => status(Code::FailedPrecondition, "REFUSED", message),
        ClusterError::TooLarge(_) => status(Code::InvalidArgument, "TOO_LARGE", message),
        ClusterError::Refused(_) => status(Code::InvalidArgument, "REFUSED", message),
    }
}

pub(super) fn rate_exceeded(error: RateExceeded) -> Status {
    retry(Code::ResourceExhausted, "RATE_LIMITED", error.to_string())
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

pub(super) fn local(error: &LocalError) -> Status {
    let message = error.to_string();
    match error {
        LocalError::UnknownService(_)
        | LocalError::UnknownCheck(_)
        | LocalError::NoSuchService(_)
        | LocalError::NotTtl(_) => status(Code::NotFound, "UNKNOWN_INSTANCE", message),
        LocalError::Reserved(_) => status(Code::FailedPrecondition, "RESERVED", message),
        LocalError::NoSidecarPort { .. } => status(Code::ResourceExhausted, "NO_PORT", message),
        LocalError::Store(_) => status(Code::Internal, "NOT_STORED", message),
    }
}

pub(super) fn taken_over(id: &str) -> Status {
    let message = format!("another stream holds the lease of {id:?} now");
    status(Code::Aborted, "LEASE_TAKEN_OVER", message)
}

pub(super) fn deregistered(id: &str) -> Status {
    let message = format!("the instance {id:?} was deregistered, or registered without a lease");
    status(Code::NotFound, "DEREGISTERED", message)
}

pub(super) fn shutting_down() -> Status {
    status(
        Code::Unavailable,
        "SHUTTING_DOWN",
        "the agent is shutting down",
    )
}

pub(super) fn slow_consumer(within: Duration) -> Status {
    let message = format!("the stream was not read within {} s", within.as_secs());
    status(Code::ResourceExhausted, "SLOW_CONSUMER", message)
}

pub(super) fn compacted(resume_index: u64) -> Status {
    let message = format!(
        "what changed since index {resume_index} is no longer known: watch again without resume_index"
    );
    status(Code::OutOfRange, "COMPACTED", message)
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

    #[test]
    fn a_client_is_told_when_to_try_again() {
        let status = cluster(&ClusterError::NoLeader);
        assert_eq!(status.code(), Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NO_LEADER");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(RETRY));
    }
}
