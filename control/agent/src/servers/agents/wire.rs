//! What is said in a session as protobuf, and back.

use bytes::Bytes;
use wharf_proto::server::v1::{self as proto, failure::Kind, session_reply, topic};
use wharf_registry::{Outcome, consensus::Consensus, log::Server, mirror::Topic, model::fold_name};

pub(crate) use super::super::wire::{Malformed, read_id, read_optional_id, read_server, write_id};
use super::super::wire::{write_leader, write_server};
use crate::cluster::ClusterError;

/// The longest name of anything that is followed, in bytes.
const MAX_NAME: usize = 4096;

/// Who the servers are, for their agents. A leader that does not hear this server, or whom it cannot follow, is none to
/// them.
pub(super) fn write_servers(consensus: &Consensus, is_heard: bool) -> proto::ServerList {
    let members = consensus.members().into_iter();
    let servers = members.map(|member| {
        let server = Server {
            name: member.name,
            address: member.address,
        };
        write_server(member.id, &server)
    });
    proto::ServerList {
        servers: servers.collect(),
        leader: consensus
            .leader()
            .filter(|_| is_heard && consensus.can_follow())
            .map(write_leader),
    }
}

pub(crate) fn write_topic(topic: &Topic) -> proto::Topic {
    let topic = match topic {
        Topic::Node(name) => topic::Topic::Node(name.to_string()),
        Topic::Service(name) => topic::Topic::Service(name.to_string()),
        Topic::Config => topic::Topic::Config(true),
        Topic::PlatformNode(id) => topic::Topic::PlatformNode(id.to_string()),
    };
    proto::Topic { topic: Some(topic) }
}

pub(super) fn read_topic(topic: proto::Topic) -> Result<Topic, Malformed> {
    let name = |text: String| match text.len() {
        0..=MAX_NAME => Ok(text),
        _ => Err(Malformed("a long name")),
    };
    Ok(match topic.topic {
        Some(topic::Topic::Node(text)) => Topic::Node(fold_name(&name(text)?)),
        Some(topic::Topic::Service(text)) => Topic::Service(fold_name(&name(text)?)),
        Some(topic::Topic::Config(_)) => Topic::Config,
        Some(topic::Topic::PlatformNode(id)) => Topic::PlatformNode(name(id)?.into()),
        None => return Err(Malformed("an unknown topic")),
    })
}

pub(super) fn write_reply(
    number: u64,
    result: Result<Outcome, ClusterError>,
) -> proto::SessionReply {
    let result = match result {
        Ok(outcome) => session_reply::Result::Outcome(outcome.encode()),
        Err(ClusterError::Refused(refusal)) => {
            session_reply::Result::Outcome(Outcome::Refused(refusal).encode())
        }
        Err(error) => {
            let (kind, text) = match error {
                ClusterError::NoLeader => (Kind::NoLeader, String::new()),
                ClusterError::Overloaded => (Kind::Overloaded, String::new()),
                // It goes to another server, which may do it.
                ClusterError::ShuttingDown | ClusterError::Behind(_) => {
                    (Kind::NoLeader, String::new())
                }
                ClusterError::DiskFull(text) => (Kind::DiskFull, text),
                ClusterError::TooLarge(text) => (Kind::TooLarge, text),
                ClusterError::OutcomeUnknown(text) => (Kind::OutcomeUnknown, text),
                error => (Kind::Refused, error.to_string()),
            };
            session_reply::Result::Failure(proto::Failure {
                kind: kind.into(),
                text,
            })
        }
    };
    proto::SessionReply {
        number,
        result: Some(result),
    }
}

pub(crate) fn read_reply(reply: proto::SessionReply) -> Result<Outcome, ClusterError> {
    let unreadable = |what: &str| {
        ClusterError::OutcomeUnknown(format!(
            "the change has taken place, and its outcome is not readable here: {what}"
        ))
    };
    match reply.result {
        Some(session_reply::Result::Outcome(bytes)) => {
            Outcome::decode(&bytes).map_err(|error| unreadable(&error.to_string()))
        }
        Some(session_reply::Result::Failure(failure)) => Err(match failure.kind() {
            Kind::NoLeader => ClusterError::NoLeader,
            Kind::Overloaded => ClusterError::Overloaded,
            Kind::DiskFull => ClusterError::DiskFull(failure.text),
            Kind::TooLarge => ClusterError::TooLarge(failure.text),
            Kind::OutcomeUnknown => ClusterError::OutcomeUnknown(failure.text),
            Kind::Refused | Kind::Unspecified => ClusterError::Operation(failure.text),
        }),
        None => Err(unreadable("there is none")),
    }
}

/// Headers of a request or an answer of the API on their way.
pub(crate) fn write_headers(headers: &http::HeaderMap) -> Vec<proto::Header> {
    let headers = headers.iter().map(|(name, value)| proto::Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    });
    headers.collect()
}

pub(crate) fn read_headers(headers: Vec<proto::Header>) -> Result<http::HeaderMap, Malformed> {
    let mut map = http::HeaderMap::with_capacity(headers.len());
    for header in headers {
        let name = http::HeaderName::from_bytes(header.name.as_bytes());
        let value = http::HeaderValue::from_maybe_shared(header.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Malformed("a header that is none"));
        };
        map.append(name, value);
    }
    Ok(map)
}
