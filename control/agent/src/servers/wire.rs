//! The messages between servers as protobuf, and back. What comes from the wire is checked for its shape
//! here; what it says is judged by [`wharf_registry::consensus`].

use std::time::Duration;

use bytes::Bytes;
use tonic::{
    Status,
    metadata::{MetadataMap, MetadataValue},
};
use uuid::Uuid;
use wharf_proto::server::v1 as proto;
use wharf_registry::{
    consensus::{
        Append, AppendReply, ClusterId, DiskState, Election, Envelope, HandOver, HeartbeatReply,
        Leader, Member, VoteReply, VoteRequest,
    },
    log::{Entry, LogId, Server, ServerId, Vote, codec},
};

const CLUSTER: &str = "wharf-cluster";
const FROM: &str = "wharf-from";
const TO: &str = "wharf-to";

/// The longest name or address that is taken from another server.
const MAX_TEXT: usize = 512;

/// Bytes that are no message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(crate) struct Malformed(pub(super) &'static str);

impl From<Malformed> for Status {
    fn from(error: Malformed) -> Status {
        Status::invalid_argument(error.to_string())
    }
}

type Read<T> = Result<T, Malformed>;

// === envelope ===

pub(super) fn write_envelope(metadata: &mut MetadataMap, envelope: &Envelope) {
    let ids = [
        (CLUSTER, envelope.cluster.0),
        (FROM, envelope.from.0),
        (TO, envelope.to.0),
    ];
    for (key, id) in ids {
        // A UUID is ASCII.
        if let Ok(value) = id.to_string().parse() {
            metadata.insert(key, value);
        }
    }
}

pub(super) const NO_ENVELOPE: Malformed = Malformed("no envelope: cluster, sender and receiver");

/// Whether a request has what looks like an envelope among its headers.
pub(super) fn is_enveloped(headers: &http::HeaderMap) -> bool {
    let keys = [CLUSTER, FROM, TO];
    keys.iter().all(|key| headers.contains_key(*key))
}

pub(super) fn read_envelope(metadata: &MetadataMap) -> Read<Envelope> {
    let id = |key| {
        let text = metadata.get(key).and_then(|value| value.to_str().ok());
        let id = text.and_then(|text| Uuid::try_parse(text).ok());
        id.ok_or(NO_ENVELOPE)
    };
    Ok(Envelope {
        cluster: ClusterId(id(CLUSTER)?),
        from: ServerId(id(FROM)?),
        to: ServerId(id(TO)?),
    })
}

// === ids and servers ===

pub(crate) fn write_id(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn read_id(bytes: &[u8]) -> Read<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| Malformed("an id that is no UUID"))
}

/// Empty bytes are no id.
pub(crate) fn read_optional_id(bytes: &[u8]) -> Read<Option<Uuid>> {
    match bytes {
        [] => Ok(None),
        bytes => read_id(bytes).map(Some),
    }
}

pub(super) fn write_server(id: ServerId, server: &Server) -> proto::Server {
    proto::Server {
        id: write_id(id.0),
        name: server.name.clone(),
        address: server.address.clone(),
    }
}

pub(crate) fn read_server(server: Option<proto::Server>) -> Read<(ServerId, Server)> {
    let proto::Server { id, name, address } = server.ok_or(Malformed("no server"))?;
    let text = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT;
    if !text(&name) || !text(&address) {
        return Err(Malformed(
            "a server without a name or address, or a long one",
        ));
    }
    Ok((ServerId(read_id(&id)?), Server { name, address }))
}

pub(super) fn write_leader(leader: Leader) -> proto::Server {
    proto::Server {
        id: write_id(leader.id.0),
        name: leader.name,
        address: leader.address,
    }
}

pub(crate) fn read_leader(leader: Option<proto::Server>) -> Read<Leader> {
    let (id, Server { name, address }) = read_server(leader)?;
    Ok(Leader { id, name, address })
}

pub(super) fn write_member(member: Member) -> proto::Member {
    proto::Member {
        server: Some(proto::Server {
            id: write_id(member.id.0),
            name: member.name,
            address: member.address,
        }),
        voter: member.voter,
        leader: member.leader,
        replicated: member.replicated,
        heard_ms: member
            .heard
            .map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)),
        disk: write_disk(member.disk).into(),
        healthy: member.healthy,
        stable_ms: member
            .stable_for
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

pub(crate) fn read_member(member: proto::Member) -> Read<Member> {
    let disk = read_disk(member.disk());
    let (id, Server { name, address }) = read_server(member.server)?;
    Ok(Member {
        id,
        name,
        address,
        voter: member.voter,
        leader: member.leader,
        replicated: member.replicated,
        heard: member.heard_ms.map(Duration::from_millis),
        disk,
        healthy: member.healthy,
        stable_for: member.stable_ms.map(Duration::from_millis),
    })
}

// === refusals ===

/// Tells a refusal from others with the same code.
const REASON: &str = "wharf-reason";
const DISK_FULL: &str = "disk-full";

pub(super) fn disk_full(message: String) -> Status {
    let mut status = Status::resource_exhausted(message);
    let reason = MetadataValue::from_static(DISK_FULL);
    status.metadata_mut().insert(REASON, reason);
    status
}

pub(super) fn is_disk_full(status: &Status) -> bool {
    let reason = status.metadata().get(REASON);
    reason.is_some_and(|reason| reason == DISK_FULL)
}

// === the log ===

fn write_log_id(id: LogId) -> proto::LogId {
    proto::LogId {
        term: id.term,
        leader: write_id(id.leader.0),
        index: id.index,
    }
}

fn read_log_id(id: &proto::LogId) -> Read<LogId> {
    Ok(LogId {
        term: id.term,
        leader: ServerId(read_id(&id.leader)?),
        index: id.index,
    })
}

fn read_optional_log_id(id: Option<proto::LogId>) -> Read<Option<LogId>> {
    id.as_ref().map(read_log_id).transpose()
}

pub(super) fn write_vote(vote: Vote) -> proto::Ballot {
    proto::Ballot {
        term: vote.term,
        candidate: write_id(vote.candidate.0),
        granted: vote.granted,
    }
}

pub(super) fn read_vote(vote: Option<proto::Ballot>) -> Read<Vote> {
    let vote = vote.ok_or(Malformed("no vote"))?;
    Ok(Vote {
        term: vote.term,
        candidate: ServerId(read_id(&vote.candidate)?),
        granted: vote.granted,
    })
}

pub(super) fn write_vote_request(request: VoteRequest) -> proto::VoteRequest {
    let election = match request.election {
        Election::Probe => proto::Election::Probe,
        Election::Campaign => proto::Election::Campaign,
        Election::HandOver => proto::Election::HandOver,
    };
    proto::VoteRequest {
        vote: Some(write_vote(request.vote)),
        last: request.last.map(write_log_id),
        election: election.into(),
    }
}

pub(super) fn read_vote_request(request: proto::VoteRequest) -> Read<VoteRequest> {
    let election = match request.election() {
        proto::Election::Probe => Election::Probe,
        proto::Election::Campaign => Election::Campaign,
        proto::Election::HandOver => Election::HandOver,
        proto::Election::Unspecified => return Err(Malformed("no kind of election")),
    };
    Ok(VoteRequest {
        vote: read_vote(request.vote)?,
        last: read_optional_log_id(request.last)?,
        election,
    })
}

pub(super) fn write_vote_reply(reply: VoteReply) -> proto::VoteReply {
    proto::VoteReply {
        vote: Some(write_vote(reply.vote)),
        granted: reply.granted,
        last: reply.last.map(write_log_id),
    }
}

pub(super) fn read_vote_reply(reply: proto::VoteReply) -> Read<VoteReply> {
    Ok(VoteReply {
        vote: read_vote(reply.vote)?,
        granted: reply.granted,
        last: read_optional_log_id(reply.last)?,
    })
}

pub(super) fn write_append(request: Append) -> proto::AppendRequest {
    let entries = request.entries.into_iter().map(|entry| proto::Entry {
        id: Some(write_log_id(entry.id)),
        payload: codec::encode_payload(&entry.payload),
    });
    proto::AppendRequest {
        vote: Some(write_vote(request.vote)),
        previous: request.previous.map(write_log_id),
        committed: request.committed.map(write_log_id),
        entries: entries.collect(),
    }
}

pub(super) fn read_append(request: proto::AppendRequest) -> Read<Append> {
    let entries = request.entries.into_iter().map(|entry| {
        Ok(Entry {
            id: read_log_id(&entry.id.ok_or(Malformed("an entry without an id"))?)?,
            payload: codec::decode_payload(entry.payload)
                .map_err(|_| Malformed("an entry that is not readable"))?,
        })
    });
    Ok(Append {
        vote: read_vote(request.vote)?,
        previous: read_optional_log_id(request.previous)?,
        committed: read_optional_log_id(request.committed)?,
        entries: entries.collect::<Read<_>>()?,
    })
}

pub(super) fn write_append_reply(reply: AppendReply) -> proto::AppendReply {
    use proto::append_reply::Outcome;
    let outcome = match reply {
        AppendReply::Accepted => Outcome::Accepted(proto::Accepted {}),
        AppendReply::Conflict => Outcome::Conflict(proto::Conflict {}),
        AppendReply::HigherVote(vote) => Outcome::HigherVote(write_vote(vote)),
    };
    proto::AppendReply {
        outcome: Some(outcome),
        disk: proto::DiskState::Unspecified.into(),
    }
}

pub(super) fn write_heartbeat_reply(reply: HeartbeatReply) -> proto::AppendReply {
    proto::AppendReply {
        disk: write_disk(reply.disk).into(),
        ..write_append_reply(reply.append)
    }
}

pub(super) fn read_heartbeat_reply(reply: proto::AppendReply) -> Read<HeartbeatReply> {
    let disk = read_disk(reply.disk());
    read_append_reply(reply).map(|append| HeartbeatReply { append, disk })
}

fn write_disk(disk: DiskState) -> proto::DiskState {
    match disk {
        DiskState::Unknown => proto::DiskState::Unspecified,
        DiskState::Fine => proto::DiskState::Fine,
        DiskState::Slow => proto::DiskState::Slow,
        DiskState::Full => proto::DiskState::Full,
    }
}

fn read_disk(disk: proto::DiskState) -> DiskState {
    match disk {
        proto::DiskState::Unspecified => DiskState::Unknown,
        proto::DiskState::Fine => DiskState::Fine,
        proto::DiskState::Slow => DiskState::Slow,
        proto::DiskState::Full => DiskState::Full,
    }
}

pub(super) fn read_append_reply(reply: proto::AppendReply) -> Read<AppendReply> {
    use proto::append_reply::Outcome;
    match reply.outcome {
        Some(Outcome::Accepted(_)) => Ok(AppendReply::Accepted),
        Some(Outcome::Conflict(_)) => Ok(AppendReply::Conflict),
        Some(Outcome::HigherVote(vote)) => read_vote(Some(vote)).map(AppendReply::HigherVote),
        None => Err(Malformed("an empty answer")),
    }
}

pub(super) fn write_hand_over(request: HandOver) -> proto::HandOverRequest {
    proto::HandOverRequest {
        vote: Some(write_vote(request.vote)),
        to: write_id(request.to.0),
        last: request.last.map(write_log_id),
    }
}

pub(super) fn read_hand_over(request: proto::HandOverRequest) -> Read<HandOver> {
    Ok(HandOver {
        vote: read_vote(request.vote)?,
        to: ServerId(read_id(&request.to)?),
        last: read_optional_log_id(request.last)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use wharf_registry::log::Payload;

    use super::*;

    fn id() -> impl Strategy<Value = ServerId> {
        any::<u128>().prop_map(|id| ServerId(Uuid::from_u128(id)))
    }

    fn log_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), id(), any::<u64>()).prop_map(|(term, leader, index)| LogId {
            term,
            leader,
            index,
        })
    }

    fn vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), id(), any::<bool>()).prop_map(|(term, candidate, granted)| Vote {
            term,
            candidate,
            granted,
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop::option::of(prop::collection::vec(any::<u8>(), 0..20));
        (log_id(), payload).prop_map(|(id, command)| Entry {
            id,
            payload: command.map_or(Payload::Blank, |bytes| Payload::Command(bytes.into())),
        })
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(
            vote in vote(),
            last in prop::option::of(log_id()),
            entries in prop::collection::vec(entry(), 0..4),
            granted: bool,
        ) {
            let append = Append { vote, previous: last, committed: last, entries };
            let bytes = write_append(append.clone()).encode_to_vec();
            let read = proto::AppendRequest::decode(&bytes[..]).unwrap();
            prop_assert_eq!(read_append(read), Ok(append));
            for election in [Election::Probe, Election::Campaign, Election::HandOver] {
                let request = VoteRequest { vote, last, election };
                prop_assert_eq!(read_vote_request(write_vote_request(request.clone())), Ok(request));
            }
            let reply = VoteReply { vote, granted, last };
            prop_assert_eq!(read_vote_reply(write_vote_reply(reply.clone())), Ok(reply));
            for reply in [
                AppendReply::Accepted,
                AppendReply::Conflict,
                AppendReply::HigherVote(vote),
            ] {
                prop_assert_eq!(read_append_reply(write_append_reply(reply)), Ok(reply));
            }
            let hand_over = HandOver { vote, to: vote.candidate, last };
            prop_assert_eq!(read_hand_over(write_hand_over(hand_over)), Ok(hand_over));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(request) = proto::AppendRequest::decode(&bytes[..]) {
                let _ = read_append(request);
            }
            if let Ok(member) = proto::Member::decode(&bytes[..]) {
                let _ = read_member(member);
            }
            let _ = read_id(&bytes);
        }
    }

    #[test]
    fn an_envelope_is_complete_or_refused() {
        let envelope = Envelope {
            cluster: ClusterId(Uuid::from_u128(1)),
            from: ServerId(Uuid::from_u128(2)),
            to: ServerId(Uuid::from_u128(3)),
        };
        let mut metadata = MetadataMap::new();
        assert!(read_envelope(&metadata).is_err());
        write_envelope(&mut metadata, &envelope);
        assert_eq!(read_envelope(&metadata), Ok(envelope));
        metadata.insert(TO, "nobody".parse().unwrap());
        assert!(read_envelope(&metadata).is_err());
    }

    #[test]
    fn a_server_has_a_name_and_an_address() {
        let server = Server {
            name: "s".into(),
            address: "10.0.0.1:8300".into(),
        };
        let id = ServerId(Uuid::from_u128(2));
        let good = write_server(id, &server);
        assert_eq!(read_server(Some(good.clone())), Ok((id, server)));
        let long = proto::Server {
            name: "n".repeat(MAX_TEXT + 1),
            ..good.clone()
        };
        let nowhere = proto::Server {
            address: String::new(),
            ..good
        };
        for bad in [None, Some(long), Some(nowhere)] {
            assert!(read_server(bad).is_err());
        }
    }
}
