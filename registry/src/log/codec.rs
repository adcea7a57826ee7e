//! The bytes of log types, on disk and on the wire.
//!
//! Integers are big-endian. A payload and a membership begin with a version byte; log ids and votes
//! are fixed in size and change only with the version of the data directory. Everything read is
//! bounded by what is there: a length never makes us reserve memory that the input does not fill.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::{LogId, Membership, Payload, Server, ServerId, Vote};

const PAYLOAD_VERSION: u8 = 1;
const MEMBERSHIP_VERSION: u8 = 1;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The encoded size of a [`LogId`].
pub const LOG_ID_LEN: usize = 8 + 16 + 8;
/// The encoded size of a [`Vote`].
pub const VOTE_LEN: usize = 8 + 16 + 1;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{0}: the bytes end early")]
    Short(&'static str),
    #[error("{what}: version {version} is newer than this binary")]
    Version { what: &'static str, version: u8 },
    #[error("{what}: unknown kind {kind}")]
    Kind { what: &'static str, kind: u8 },
    #[error("{0}: not UTF-8")]
    Utf8(&'static str),
    #[error("{what}: {extra} bytes too many")]
    Trailing { what: &'static str, extra: usize },
}

pub fn put_log_id(buffer: &mut impl BufMut, id: LogId) {
    buffer.put_u64(id.term);
    buffer.put_slice(id.leader.0.as_bytes());
    buffer.put_u64(id.index);
}

pub fn get_log_id(buffer: &mut impl Buf) -> Result<LogId, CodecError> {
    need(buffer, LOG_ID_LEN, "log id")?;
    Ok(LogId {
        term: buffer.get_u64(),
        leader: get_server_id(buffer),
        index: buffer.get_u64(),
    })
}

/// One byte that says whether an id follows.
pub fn put_optional_log_id(buffer: &mut impl BufMut, id: Option<LogId>) {
    buffer.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(buffer, id);
    }
}

pub fn get_optional_log_id(buffer: &mut impl Buf) -> Result<Option<LogId>, CodecError> {
    match get_u8(buffer, "log id")? {
        0 => Ok(None),
        1 => get_log_id(buffer).map(Some),
        kind => Err(CodecError::Kind {
            what: "log id",
            kind,
        }),
    }
}

pub fn put_vote(buffer: &mut impl BufMut, vote: Vote) {
    buffer.put_u64(vote.term);
    buffer.put_slice(vote.candidate.0.as_bytes());
    buffer.put_u8(u8::from(vote.granted));
}

pub fn get_vote(buffer: &mut impl Buf) -> Result<Vote, CodecError> {
    need(buffer, VOTE_LEN, "vote")?;
    Ok(Vote {
        term: buffer.get_u64(),
        candidate: get_server_id(buffer),
        granted: match buffer.get_u8() {
            0 => false,
            1 => true,
            kind => return Err(CodecError::Kind { what: "vote", kind }),
        },
    })
}

pub fn encode_payload(payload: &Payload) -> Bytes {
    let (head, rest) = payload_parts(payload);
    let mut buffer = BytesMut::with_capacity(head.len() + rest.len());
    buffer.put_slice(&head);
    buffer.put_slice(&rest);
    buffer.freeze()
}

/// The same in two parts, one after the other. A command's second part shares its memory.
pub fn payload_parts(payload: &Payload) -> ([u8; 2], Bytes) {
    let (kind, rest) = match payload {
        Payload::Blank => (BLANK, Bytes::new()),
        Payload::Command(command) => (COMMAND, command.clone()),
        Payload::Membership(membership) => {
            let mut buffer = BytesMut::new();
            put_membership(&mut buffer, membership);
            (MEMBERSHIP, buffer.freeze())
        }
    };
    ([PAYLOAD_VERSION, kind], rest)
}

/// A command shares the memory of `bytes`.
pub fn decode_payload(mut bytes: Bytes) -> Result<Payload, CodecError> {
    match get_u8(&mut bytes, "payload")? {
        PAYLOAD_VERSION => {}
        version => {
            return Err(CodecError::Version {
                what: "payload",
                version,
            });
        }
    }
    let payload = match get_u8(&mut bytes, "payload")? {
        BLANK => Payload::Blank,
        COMMAND => return Ok(Payload::Command(bytes)),
        MEMBERSHIP => Payload::Membership(get_membership(&mut bytes)?),
        kind => {
            return Err(CodecError::Kind {
                what: "payload",
                kind,
            });
        }
    };
    match bytes.remaining() {
        0 => Ok(payload),
        extra => Err(CodecError::Trailing {
            what: "payload",
            extra,
        }),
    }
}

pub fn put_membership(buffer: &mut impl BufMut, membership: &Membership) {
    buffer.put_u8(MEMBERSHIP_VERSION);
    put_len(buffer, membership.servers.len());
    for (id, server) in &membership.servers {
        buffer.put_slice(id.0.as_bytes());
        put_str(buffer, &server.name);
        put_str(buffer, &server.address);
    }
    put_len(buffer, membership.voters.len());
    for set in &membership.voters {
        put_len(buffer, set.len());
        for id in set {
            buffer.put_slice(id.0.as_bytes());
        }
    }
}

pub fn get_membership(buffer: &mut impl Buf) -> Result<Membership, CodecError> {
    const WHAT: &str = "membership";
    match get_u8(buffer, WHAT)? {
        MEMBERSHIP_VERSION => {}
        version => {
            return Err(CodecError::Version {
                what: WHAT,
                version,
            });
        }
    }
    let mut servers = BTreeMap::new();
    for _ in 0..get_u32(buffer, WHAT)? {
        need(buffer, 16, WHAT)?;
        let id = get_server_id(buffer);
        let server = Server {
            name: get_string(buffer, WHAT)?,
            address: get_string(buffer, WHAT)?,
        };
        servers.insert(id, server);
    }
    let mut voters = Vec::new();
    for _ in 0..get_u32(buffer, WHAT)? {
        let mut set = BTreeSet::new();
        for _ in 0..get_u32(buffer, WHAT)? {
            need(buffer, 16, WHAT)?;
            set.insert(get_server_id(buffer));
        }
        voters.push(set);
    }
    Ok(Membership { voters, servers })
}

fn put_len(buffer: &mut impl BufMut, len: usize) {
    // A membership has a handful of servers with short names.
    buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

fn put_str(buffer: &mut impl BufMut, text: &str) {
    put_len(buffer, text.len());
    buffer.put_slice(text.as_bytes());
}

/// The caller has checked that 16 bytes are there.
fn get_server_id(buffer: &mut impl Buf) -> ServerId {
    ServerId(Uuid::from_u128(buffer.get_u128()))
}

fn get_string(buffer: &mut impl Buf, what: &'static str) -> Result<String, CodecError> {
    let len = get_u32(buffer, what)? as usize;
    need(buffer, len, what)?;
    String::from_utf8(buffer.copy_to_bytes(len).to_vec()).map_err(|_| CodecError::Utf8(what))
}

fn get_u8(buffer: &mut impl Buf, what: &'static str) -> Result<u8, CodecError> {
    need(buffer, 1, what)?;
    Ok(buffer.get_u8())
}

fn get_u32(buffer: &mut impl Buf, what: &'static str) -> Result<u32, CodecError> {
    need(buffer, 4, what)?;
    Ok(buffer.get_u32())
}

fn need(buffer: &impl Buf, len: usize, what: &'static str) -> Result<(), CodecError> {
    if buffer.remaining() < len {
        return Err(CodecError::Short(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server_id() -> impl Strategy<Value = ServerId> {
        any::<u128>().prop_map(|id| ServerId(Uuid::from_u128(id)))
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let servers = prop::collection::btree_map(
            server_id(),
            ("[a-z0-9-]{0,20}", "[0-9.:]{0,20}")
                .prop_map(|(name, address)| Server { name, address }),
            0..6,
        );
        let voters = prop::collection::vec(prop::collection::btree_set(server_id(), 0..6), 0..3);
        (servers, voters).prop_map(|(servers, voters)| Membership { voters, servers })
    }

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![
            Just(Payload::Blank),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(|b| Payload::Command(b.into())),
            membership().prop_map(Payload::Membership),
        ]
    }

    proptest! {
        #[test]
        fn payloads_come_back(payload in payload()) {
            prop_assert_eq!(decode_payload(encode_payload(&payload)), Ok(payload));
        }

        #[test]
        fn ids_and_votes_come_back(
            term: u64, server in server_id(), index: u64, granted: bool, none: bool
        ) {
            let id = LogId { term, leader: server, index };
            let vote = Vote { term, candidate: server, granted };
            let optional = (!none).then_some(id);
            let mut buffer = BytesMut::new();
            put_log_id(&mut buffer, id);
            put_optional_log_id(&mut buffer, optional);
            put_vote(&mut buffer, vote);
            prop_assert_eq!(get_log_id(&mut buffer), Ok(id));
            prop_assert_eq!(get_optional_log_id(&mut buffer), Ok(optional));
            prop_assert_eq!(get_vote(&mut buffer), Ok(vote));
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode_payload(bytes.clone().into());
            let _ = get_membership(&mut Bytes::from(bytes));
        }

        #[test]
        fn cut_memberships_are_refused(membership in membership(), cut in 1usize..40) {
            let whole = encode_payload(&Payload::Membership(membership));
            let cut = whole.slice(..whole.len().saturating_sub(cut));
            prop_assert!(decode_payload(cut).is_err());
        }
    }

    #[test]
    fn a_newer_payload_is_named() {
        let newer = CodecError::Version {
            what: "payload",
            version: 2,
        };
        assert_eq!(decode_payload(Bytes::from_static(&[2, 0])), Err(newer));
    }

    /// The bytes of version 1, written down: a log of today must open tomorrow.
    #[test]
    fn the_encoding_is_stable() {
        let id = ServerId(Uuid::from_u128(7));
        let server = Server {
            name: "a".into(),
            address: "b:1".into(),
        };
        let membership = Membership {
            voters: vec![BTreeSet::from([id])],
            servers: BTreeMap::from([(id, server)]),
        };
        let mut expected = vec![1, 2, 1];
        expected.extend([0, 0, 0, 1]);
        expected.extend(7u128.to_be_bytes());
        expected.extend([0, 0, 0, 1, b'a', 0, 0, 0, 3, b'b', b':', b'1']);
        expected.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        expected.extend(7u128.to_be_bytes());
        assert_eq!(encode_payload(&Payload::Membership(membership)), expected);
        assert_eq!(encode_payload(&Payload::Blank), [1, 0][..]);
        let command = Payload::Command(Bytes::from_static(b"xy"));
        assert_eq!(encode_payload(&command), [1, 1, b'x', b'y'][..]);
    }
}
