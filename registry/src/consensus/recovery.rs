//! A way back for a cluster that has lost its majority for good: a file says who the servers are from now on.
//!
//! ```text
//! <data_dir>/raft/peers.json   [{"id": "<server id>", "address": "10.0.0.1:8300", "non_voter": false}, ...]
//! ```
//!
//! It is Consul's, and read once, at the start. Every server that is left gets the same one. What this server has in its
//! log counts as agreed, all of it; the result becomes a snapshot with the new members, and the log begins after it.
//! So no entry is made up, and among several survivors the one that has most is elected as always.
//!
//! The cluster gets another name, the same on each of them. A server that was given up and comes back after all would
//! be a majority together with another such one: it is refused as one of another cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{ClusterId, Misdirected, identity::Identity};
use crate::{
    log::{LogStore, Membership, Payload, Server, ServerId},
    replica::{Committed, Replica, Unreadable},
    snapshot::{SnapshotError, SnapshotMeta, SnapshotStore},
};

const FILE: &str = "peers.json";
/// No cluster has servers for more.
const MAX_FILE: u64 = 64 << 10;
/// What is read from the log at once, in bytes.
const READ_BYTES: usize = 4 << 20;

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
    #[error("the log before a recovery cannot be applied: {0}")]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Cluster(#[from] Misdirected),
}

/// What a recovery came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Names of the servers with a vote.
    pub voters: Vec<String>,
    /// The last entry of the log that counts as agreed.
    pub index: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    #[serde(deserialize_with = "uuid")]
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

    let mut replica = Replica::new();
    let mut members = Membership::default();
    let mut next = 0;
    if let Some(snapshot) = &current {
        let index = snapshot.meta().index();
        members = snapshot.meta().membership.clone();
        replica.restore(snapshot.reader()?, index)?;
        next = index + 1;
    }
    while next <= last.index {
        let entries = log.read(next..last.index + 1, READ_BYTES).map_err(failed)?;
        let Some(end) = entries.last().map(|entry| entry.id.index) else {
            let gap = io::Error::other(format!("the log has no entry {next}"));
            return Err(failed(gap));
        };
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            let index = entry.id.index;
            let command = match entry.payload {
                Payload::Command(bytes) => Some(bytes),
                Payload::Blank => None,
                Payload::Membership(membership) => {
                    members = membership;
                    None
                }
            };
            committed.push(Committed { index, command });
        }
        replica.apply(&committed)?;
        next = end + 1;
    }

    let membership = membership(&peers, &members);
    let recovered = Recovered {
        voters: membership.voters[0]
            .iter()
            .filter_map(|id| membership.servers.get(id))
            .map(|server| server.name.clone())
            .collect(),
        index: last.index,
    };
    let meta = SnapshotMeta {
        last: Some(last),
        membership,
        membership_id: Some(last),
    };
    let view = replica.freeze();
    snapshots.write(&meta, view.records())?;
    log.purge(last).map_err(failed)?;
    identity.rename(name(&peers))?;
    fs::remove_file(&path).map_err(failed)?;
    fs::File::open(root)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    Ok(Some(recovered))
}

/// Names are those that are known: servers say theirs when they come.
fn membership(peers: &[Peer], known: &Membership) -> Membership {
    let server = |peer: &Peer| {
        let known = known.servers.get(&ServerId(peer.id));
        Server {
            name: known.map_or_else(|| peer.address.clone(), |known| known.name.clone()),
            address: peer.address.clone(),
        }
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
