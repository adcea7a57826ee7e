//! A way back for a cluster that has lost its majority for good: a file says who the servers are from now on.
//!
//! ```text
//! <data_dir>/raft/peers.json   [{"id": "<server id>", "address": "10.0.0.1:8300", "non_voter": false}, ...]
//! ```
//!
//! It is Consul's, and read once, at the start. Every server that is left gets the same one. From then on whatever the
//! log and the snapshot say of members up to their end is read as these ([`NewMembers`]). Nothing else is touched, and
//! no entry is made up: which of the survivors has most of what was agreed, and what of it counts, is found out by an
//! election and by replication, as always.
//!
//! The cluster gets another name, the same on each of them. A server that was given up and comes back after all would
//! be a majority together with another such one: it is refused as one of another cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{ClusterId, Misdirected, data_dir, identity::Identity};
use crate::{
    log::{Entry, LogId, LogState, LogStore, Membership, Payload, Server, ServerId},
    replica::Replica,
    snapshot::{SnapshotError, SnapshotMeta, SnapshotStore},
};

const FILE: &str = "peers.json";
/// What is left of it: who the members are, and up to where.
const MEMBERS: &str = "recovered.json";
/// No cluster has servers for more.
const MAX_FILE: u64 = 64 << 10;

/// Why the servers of the file did not become those of the cluster. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a list of servers, each with \"id\", \"address\" and, if it is to have no vote, \
         \"non_voter\": true: {reason}. Nothing was changed: repair the file, or remove it",
        path = path.display()
    )]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "{path} does not name this server, whose id is {own}. Nothing was changed: add it, or remove the file",
        path = path.display()
    )]
    NotOne { path: PathBuf, own: ServerId },
    #[error(
        "{path} is there, and this server has no data that a cluster could be recovered from: remove the file, and \
         let the server join another one",
        path = path.display()
    )]
    NoData { path: PathBuf },
    #[error(
        "{path}, which this server wrote when it was recovered, is unreadable: {reason}. Empty its data directory, and \
         let it join the others; if there are none, put the file back from a copy",
        path = path.display()
    )]
    Members { path: PathBuf, reason: String },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Cluster(#[from] Misdirected),
}

/// What a recovery came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Addresses of the servers with a vote.
    pub voters: Vec<String>,
    /// The last entry that this server has.
    pub index: u64,
}

/// Who the members are, whatever a part of the log says.
#[derive(Debug)]
pub(super) struct NewMembers {
    /// The last entry that was there when they became it. All later ones are of later leaders.
    up_to: LogId,
    membership: Membership,
}

#[derive(Debug, Serialize, Deserialize)]
struct MembersFile {
    term: u64,
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    leader: Uuid,
    index: u64,
    servers: Vec<Peer>,
}

impl NewMembers {
    /// Those of the last recovery of a server with this directory and log, if the log still has anything of before.
    pub(super) fn open(root: &Path, log: LogState) -> Result<Option<NewMembers>, RecoveryError> {
        let path = root.join(MEMBERS);
        let failed = |source| RecoveryError::Io {
            path: path.clone(),
            source,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let file: MembersFile =
            serde_json::from_slice(&text).map_err(|error| RecoveryError::Members {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        let up_to = LogId {
            term: file.term,
            leader: ServerId(file.leader),
            index: file.index,
        };
        if log.purged > Some(up_to) {
            fs::remove_file(&path).map_err(failed)?;
            return Ok(None);
        }
        Ok(Some(NewMembers {
            up_to,
            membership: membership(&file.servers),
        }))
    }

    /// Changes an entry that was read from the log into what it says since.
    pub(super) fn correct(&self, entry: &mut Entry) {
        if let Payload::Membership(said) = &mut entry.payload
            && entry.id <= self.up_to
        {
            said.clone_from(&self.membership);
        }
    }

    /// The same with what a snapshot says.
    pub(super) fn correct_snapshot(&self, meta: &mut SnapshotMeta) {
        if meta.membership_id <= Some(self.up_to) {
            meta.membership.clone_from(&self.membership);
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    id: Uuid,
    address: String,
    #[serde(default)]
    non_voter: bool,
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| D::Error::custom(format!("{text:?} is no id of a server: a UUID")))
}

fn text<S: Serializer>(uuid: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(uuid)
}

/// The file of a server with this data directory, if it has one.
fn read(path: &Path) -> Result<Option<Vec<Peer>>, RecoveryError> {
    let failed = |source| RecoveryError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let malformed = |reason: String| RecoveryError::Malformed {
        path: path.to_owned(),
        reason,
    };
    if text.len() as u64 > MAX_FILE {
        return Err(malformed("it is too long".to_owned()));
    }
    let peers: Vec<Peer> =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    check(&peers).map_err(malformed)?;
    Ok(Some(peers))
}

fn check(peers: &[Peer]) -> Result<(), String> {
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for Peer { id, address, .. } in peers {
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(format!("{address:?} is no host:port"));
        }
        if !ids.insert(id) {
            return Err(format!("server {id} is in it twice"));
        }
        if !addresses.insert(address) {
            return Err(format!("two servers have the address {address}"));
        }
    }
    match peers.iter().any(|peer| !peer.non_voter) {
        true => Ok(()),
        false => Err("no server of it has a vote".to_owned()),
    }
}

/// The name of a cluster with these members.
fn name(peers: &[Peer]) -> ClusterId {
    let lines = peers.iter().map(|peer| {
        let Peer {
            id,
            address,
            non_voter,
        } = peer;
        format!("{id} {address} {non_voter}\n")
    });
    let lines: BTreeSet<String> = lines.collect();
    let hash = Sha256::digest(String::from_iter(lines));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    ClusterId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// Does what the file says, if there is one. Blocks. Cut off on the way, it is done again at the next start.
/// The snapshots have to be read anew afterwards.
pub(super) fn recover(
    root: &Path,
    own: ServerId,
    log: &dyn LogStore,
    identity: &Identity,
    snapshots: &SnapshotStore,
) -> Result<Option<Recovered>, RecoveryError> {
    let path = root.join(FILE);
    let Some(peers) = read(&path)? else {
        return Ok(None);
    };
    if !peers.iter().any(|peer| peer.id == own.0) {
        return Err(RecoveryError::NotOne { path, own });
    }
    let failed = |source| RecoveryError::Io {
        path: path.clone(),
        source,
    };
    let state = log.state();
    let current = snapshots.current();
    let Some(last) = state
        .last
        .max(current.as_ref().and_then(|snapshot| snapshot.meta().last))
    else {
        return Err(RecoveryError::NoData { path });
    };

    let file = MembersFile {
        term: last.term,
        leader: last.leader.0,
        index: last.index,
        servers: peers,
    };
    let text = serde_json::to_vec(&file).map_err(|error| failed(error.into()))?;
    data_dir::replace(&root.join(MEMBERS), &text).map_err(failed)?;
    let peers = file.servers;
    // It may be sent to others as it is.
    if let Some(snapshot) = current {
        let mut replica = Replica::new();
        replica.restore(snapshot.reader()?, snapshot.meta().index())?;
        let meta = SnapshotMeta {
            membership: membership(&peers),
            ..snapshot.meta().clone()
        };
        snapshots.write(&meta, replica.freeze().records())?;
    }
    identity.rename(name(&peers))?;
    fs::remove_file(&path)
        .and_then(|()| data_dir::sync_parent(&path))
        .map_err(failed)?;
    let voters = peers.into_iter().filter(|peer| !peer.non_voter);
    Ok(Some(Recovered {
        voters: voters.map(|peer| peer.address).collect(),
        index: last.index,
    }))
}

/// It is the same on every server, whatever each knows of the others: their names are not in it, and they say them
/// when they come.
fn membership(peers: &[Peer]) -> Membership {
    let server = |peer: &Peer| Server {
        name: peer.address.clone(),
        address: peer.address.clone(),
    };
    let servers = peers.iter().map(|peer| (ServerId(peer.id), server(peer)));
    let servers: BTreeMap<ServerId, Server> = servers.collect();
    let voters = peers.iter().filter(|peer| !peer.non_voter);
    Membership {
        voters: vec![voters.map(|peer| ServerId(peer.id)).collect()],
        servers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("Nothing was changed"), "{error}");
        error
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let id = Uuid::from_u128(1);
        let peer = |address: &str| format!(r#"{{"id": "{id}", "address": "{address}"}}"#);
        for (text, reason) in [
            ("", "EOF"),
            (r#"["10.0.0.1:8300"]"#, "invalid type"),
            (r#"[{"id": "x", "address": "a:1"}]"#, "UUID"),
            (&format!("[{}]", peer("10.0.0.1")), "is no host:port"),
            (&format!("[{}]", peer(":8300")), "is no host:port"),
            (
                &format!("[{}, {}]", peer("a:1"), peer("b:1")),
                "in it twice",
            ),
            ("[]", "has a vote"),
            (
                &format!(r#"[{{"id": "{id}", "address": "a:1", "voter": true}}]"#),
                "unknown field",
            ),
            (&" ".repeat(70_000), "too long"),
        ] {
            let error = problem(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
        let none = tempfile::tempdir().unwrap();
        assert!(read(&none.path().join(FILE)).unwrap().is_none());
    }

    #[test]
    fn the_name_is_that_of_the_members_in_any_order() {
        let peer = |number: u128, non_voter| Peer {
            id: Uuid::from_u128(number),
            address: format!("10.0.0.{number}:8300"),
            non_voter,
        };
        let one = name(&[peer(1, false), peer(2, false)]);
        assert_eq!(one, name(&[peer(2, false), peer(1, false)]));
        assert_ne!(one, name(&[peer(1, false)]));
        assert_ne!(one, name(&[peer(1, false), peer(2, true)]));
    }
}
