//! What can be asked of the state machine, and what it answers.
//!
//! A command is decided before it is proposed: it carries every value it needs, times included, so
//! that each replica comes to the same result. On the wire and in the log it is one version byte
//! followed by a MessagePack map; fields can be added with a default, variants can be added at will.

mod platform;
mod restore;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::model::{
    AutopilotConfig, ConfigEntry, ConfigEntryKind, HealthCheck, KvEntry, Node, NodeService, Str,
    platform::UnixNanos,
};

pub use platform::{
    PlacementRefusal, Plan, PlanOutcome, PlanStop, PlatformCommand, PlatformRefusal,
};
pub use restore::{MAX_RESTORE_PART, RestoreCommand, RestoreRefusal};

/// The version of the encoding that [`Command::encode`] writes.
const ENCODING: u8 = 1;

/// One change to the replicated state. Applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Register(Box<Register>),
    Deregister(Deregister),
    Kv(KvCommand),
    Config(ConfigCommand),
    Platform(PlatformCommand),
    Autopilot(AutopilotCommand),
    Restore(RestoreCommand),
}

/// Puts a node, an instance on it and checks into the catalog. What is there and says the same is
/// left alone, and keeps its indexes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Register {
    pub node: Node,
    /// An existing node keeps what it says; a missing one is still created.
    #[serde(default)]
    pub skip_node_update: bool,
    #[serde(default)]
    pub service: Option<NodeService>,
    #[serde(default)]
    pub checks: Vec<HealthCheck>,
}

/// Takes a node, an instance or a check out of the catalog. Removing what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deregister {
    pub node: Str,
    pub target: DeregisterTarget,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeregisterTarget {
    /// The node with everything on it.
    Node,
    /// The same, unless this check of the node is gone or was changed after `index`: whoever looked there, and found the
    /// node dead, may be late.
    NodeAt { check: Str, index: u64 },
    /// The same of a member of the cluster, which is remembered as one that left.
    Member(Departure),
    /// What is remembered of a member that left, if that was at this time.
    LeftMember { time: Option<UnixNanos> },
    /// The instance with this id, and its checks.
    Service(Str),
    /// The check with this id.
    Check(Str),
}

/// How a member left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// The instance with this id is remembered with the node.
    pub service: Str,
    pub time: UnixNanos,
    /// Whoever looked there, and found it gone, may be late.
    pub unless: Option<Changed>,
}

/// This check of the node is gone, or was changed after `index`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    pub check: Str,
    pub index: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum KvCommand {
    Set {
        entry: KvEntry,
    },
    /// Sets if the entry was last modified at `index`; 0: only if there is none.
    CompareAndSet {
        entry: KvEntry,
        index: u64,
    },
    Delete {
        key: Str,
    },
    /// Deletes if the entry was last modified at `index`. A missing key is a success.
    CompareAndDelete {
        key: Str,
        index: u64,
    },
    DeleteTree {
        prefix: Str,
    },
    /// Forgets deletions up to this index; watchers that are older start over.
    ReapTombstones {
        up_to: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ConfigCommand {
    Upsert {
        entry: ConfigEntry,
    },
    CompareAndUpsert {
        entry: ConfigEntry,
        index: u64,
    },
    Delete {
        kind: ConfigEntryKind,
        name: Str,
    },
    CompareAndDelete {
        kind: ConfigEntryKind,
        name: Str,
        index: u64,
    },
}

/// Settings of the autopilot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AutopilotCommand {
    Set {
        config: AutopilotConfig,
    },
    /// Sets if they were last modified at `index`; 0: only if there are none.
    CompareAndSet {
        config: AutopilotConfig,
        index: u64,
    },
}

/// What a command came to, on every replica alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done. Also the outcome of an entry without a command.
    Done,
    /// The answer of a check-and-set: whether it took place.
    Applied(bool),
    /// What became of a plan of the scheduler.
    Planned(PlanOutcome),
    /// Refused, and nothing changed.
    Refused(Refusal),
}

/// Why the state machine refused a command. The texts are Consul's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("Must provide node")]
    NodeNameMissing,
    #[error("Must provide address if SkipNodeUpdate is not set")]
    AddressMissing,
    #[error("Must provide service name with ID")]
    ServiceNameMissing,
    #[error("Must provide check ID or name")]
    CheckIdMissing,
    #[error(
        "Node name {name} is reserved by node {holder_id} with name {holder_name} ({holder_address})"
    )]
    NodeNameReserved {
        name: Str,
        holder_id: Str,
        holder_name: Str,
        holder_address: Str,
    },
    #[error("Unknown service ID '{0}' for check ID '{1}'")]
    UnknownService(Str, Str),
    #[error("Check {check} is for node '{other}', but the registration is for node '{node}'")]
    WrongNode { check: Str, other: Str, node: Str },
    #[error("Must provide key name")]
    KeyMissing,
    #[error(transparent)]
    Platform(#[from] PlatformRefusal),
    #[error(transparent)]
    Restore(#[from] RestoreRefusal),
}

/// A command that cannot be read: written by a newer wharf, or damaged.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("empty command")]
    Empty,
    #[error("command encoding {0} is newer than this binary's {ENCODING}")]
    Version(u8),
    #[error("a command that this wharf cannot read, of a newer one or damaged: {0}")]
    Body(#[from] rmp_serde::decode::Error),
}

impl Command {
    /// The bytes that are replicated.
    ///
    /// # Panics
    /// Never: the model has no value that MessagePack cannot hold, and memory is the only limit.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(256).writer();
        buffer.get_mut().put_u8(ENCODING);
        self.serialize(&mut rmp_serde::Serializer::new(&mut buffer).with_struct_map())
            .expect("the model always encodes");
        buffer.into_inner().freeze()
    }

    /// Whether an encoded command puts another state in the place of the whole one, which takes long. Only looks at how
    /// it begins.
    pub(crate) fn replaces_state(bytes: &[u8]) -> bool {
        // A map of one entry, whose value is one: {"Restore": {"Finish": ...}}.
        bytes
            .strip_prefix(&[ENCODING])
            .is_some_and(|body| body.starts_with(b"\x81\xa7Restore\x81\xa6Finish"))
    }

    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        match bytes.split_first() {
            None => Err(DecodeError::Empty),
            Some((&ENCODING, body)) => Ok(rmp_serde::from_slice(body)?),
            Some((&version, _)) => Err(DecodeError::Version(version)),
        }
    }
}

impl Outcome {
    /// The bytes in which a leader tells another server what its command came to.
    ///
    /// # Panics
    /// Never, for the reasons of [`Command::encode`].
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::new().writer();
        self.serialize(&mut rmp_serde::Serializer::new(&mut buffer).with_struct_map())
            .expect("an outcome always encodes");
        buffer.into_inner().freeze()
    }

    /// Fails for an outcome that a newer wharf knows and this one does not.
    pub fn decode(bytes: &[u8]) -> Result<Outcome, DecodeError> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_restore_replaces_the_state() {
        let id = Str::from("r1");
        let part = RestoreCommand::Part {
            id: id.clone(),
            at: 0,
            bytes: Bytes::new(),
            time: Default::default(),
        };
        let finish = RestoreCommand::Finish { id, parts: 1 };
        for (command, replaces) in [(part, false), (finish, true)] {
            let encoded = Command::Restore(command).encode();
            assert_eq!(Command::replaces_state(&encoded), replaces);
        }
        assert!(!Command::replaces_state(b""));
    }

    #[test]
    fn outcomes_survive_the_way_between_servers() {
        let left_out = PlacementRefusal::PortTaken {
            node: "n1".into(),
            port: 80,
            holder: "a1".into(),
        };
        let outcomes = [
            Outcome::Done,
            Outcome::Applied(false),
            Outcome::Planned(PlanOutcome {
                placed: 3,
                left_out: vec![("a2".into(), left_out)],
            }),
            Outcome::Refused(Refusal::UnknownService("s".into(), "c".into())),
            Outcome::Refused(PlatformRefusal::JobStopped("web".into()).into()),
        ];
        for outcome in outcomes {
            assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
        }
        assert!(Outcome::decode(b"\xc1").is_err());
    }

    #[test]
    fn commands_survive_the_log() {
        let commands = [
            Command::Register(Box::new(Register {
                node: Node {
                    name: "n1".into(),
                    address: "10.0.0.1".into(),
                    ..Node::default()
                },
                service: Some(NodeService {
                    id: "web-1".into(),
                    name: "web".into(),
                    tags: ["a".into(), "b".into()].into(),
                    port: 80,
                    ..NodeService::default()
                }),
                ..Register::default()
            })),
            Command::Kv(KvCommand::Set {
                entry: KvEntry {
                    key: "a/b".into(),
                    value: Bytes::from_static(b"\x00\xff"),
                    flags: u64::MAX,
                    ..KvEntry::default()
                },
            }),
            Command::Kv(KvCommand::DeleteTree {
                prefix: "a/".into(),
            }),
            Command::Deregister(Deregister {
                node: "n1".into(),
                target: DeregisterTarget::Service("web-1".into()),
            }),
        ];
        for command in commands {
            assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        }
    }

    #[test]
    fn a_newer_encoding_is_named() {
        assert!(matches!(
            Command::decode(&[2, 0x80]),
            Err(DecodeError::Version(2))
        ));
        assert!(matches!(Command::decode(&[]), Err(DecodeError::Empty)));
        assert!(matches!(
            Command::decode(&[1, 0xc1]),
            Err(DecodeError::Body(_))
        ));
    }
}
