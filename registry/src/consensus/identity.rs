//! Which cluster this server belongs to.
//!
//! A server without a log belongs to nobody. It takes the name of the first cluster that a server
//! speaks to it in, or that it promises to be founded into, and keeps it: on disk, before it answers.
//! From then on messages of every other cluster are refused, so that two clusters that meet, because an
//! address was written down wrong, do not become one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{ClusterId, DataDirError, Envelope, data_dir};
use crate::log::ServerId;

/// Why a message was not even looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    #[error(
        "this server belongs to cluster {ours}, and the message is of cluster {theirs}: \
         a server is in one cluster; to move it, empty its data directory"
    )]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("this is server {own}, and the message is for {meant}, which had this address before")]
    OtherServer { own: ServerId, meant: ServerId },
    #[error("the sender claims to be this very server")]
    OwnId,
    #[error("the name of the cluster cannot be kept: {0}")]
    Disk(String),
}

#[derive(Debug)]
pub(super) struct Identity {
    own: ServerId,
    file: Option<PathBuf>,
    cluster: Mutex<Option<ClusterId>>,
}

impl Identity {
    pub(super) fn in_memory(own: ServerId) -> Identity {
        Identity {
            own,
            file: None,
            cluster: Mutex::new(None),
        }
    }

    /// Reads the name from `root`. A log without a name is of a server that founded its cluster: all
    /// others write the name first.
    pub(super) fn open(
        own: ServerId,
        root: &Path,
        has_log: bool,
    ) -> Result<Identity, DataDirError> {
        let path = root.join("CLUSTER");
        let cluster = match fs::read_to_string(&path) {
            Ok(text) => {
                let malformed = |_| DataDirError::Malformed { path: path.clone() };
                Some(ClusterId(text.trim().parse().map_err(malformed)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                has_log.then_some(ClusterId(own.0))
            }
            Err(source) => return Err(DataDirError::Io { path, source }),
        };
        Ok(Identity {
            own,
            file: Some(path),
            cluster: Mutex::new(cluster),
        })
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        *self.lock()
    }

    /// Whether anybody of a cluster may have spoken to this server.
    pub(super) fn has_met(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the message is for this server and of its cluster, which it adopts if it has none.
    /// Blocks for a moment when it does.
    pub(super) fn check(&self, envelope: &Envelope) -> Result<(), Misdirected> {
        if envelope.to != self.own {
            return Err(Misdirected::OtherServer {
                own: self.own,
                meant: envelope.to,
            });
        }
        if envelope.from == self.own {
            return Err(Misdirected::OwnId);
        }
        self.adopt(envelope.cluster)
    }

    /// Belongs to `cluster` from now on, if it does not belong to another.
    pub(super) fn adopt(&self, theirs: ClusterId) -> Result<(), Misdirected> {
        let mut cluster = self.lock();
        match *cluster {
            Some(ours) if ours == theirs => Ok(()),
            Some(ours) => Err(Misdirected::OtherCluster { ours, theirs }),
            None => {
                self.write(theirs)
                    .map_err(|error| Misdirected::Disk(error.to_string()))?;
                *cluster = Some(theirs);
                Ok(())
            }
        }
    }

    /// Belongs to nobody again. Only for a server without a log, whose founder is gone.
    pub(super) fn forget(&self) -> io::Result<()> {
        let mut cluster = self.lock();
        if let Some(file) = &self.file {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => data_dir::sync_parent(file)?,
            }
        }
        *cluster = None;
        Ok(())
    }

    /// Takes another name, whatever it had.
    pub(super) fn rename(&self, name: ClusterId) -> Result<(), Misdirected> {
        let mut cluster = self.lock();
        self.write(name)
            .map_err(|error| Misdirected::Disk(error.to_string()))?;
        *cluster = Some(name);
        Ok(())
    }

    fn write(&self, cluster: ClusterId) -> io::Result<()> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        data_dir::replace(path, format!("{cluster}\n").as_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, Option<ClusterId>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn server(id: u128) -> ServerId {
        ServerId(Uuid::from_u128(id))
    }

    fn cluster(id: u128) -> ClusterId {
        ClusterId(Uuid::from_u128(id))
    }

    fn envelope(cluster_id: u128, from: u128, to: u128) -> Envelope {
        Envelope {
            cluster: cluster(cluster_id),
            from: server(from),
            to: server(to),
        }
    }

    #[test]
    fn the_first_cluster_is_kept_over_a_restart_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(server(1), dir.path(), false).unwrap();
        assert_eq!(identity.cluster(), None);
        identity.check(&envelope(7, 2, 1)).unwrap();
        let other = Misdirected::OtherCluster {
            ours: cluster(7),
            theirs: cluster(8),
        };
        assert_eq!(identity.check(&envelope(8, 2, 1)), Err(other.clone()));

        let identity = Identity::open(server(1), dir.path(), false).unwrap();
        assert_eq!(identity.check(&envelope(8, 2, 1)), Err(other));
        identity.check(&envelope(7, 3, 1)).unwrap();
        identity.forget().unwrap();
        let identity = Identity::open(server(1), dir.path(), false).unwrap();
        identity.check(&envelope(8, 2, 1)).unwrap();
    }

    #[test]
    fn a_message_for_another_server_is_refused_and_teaches_nothing() {
        let identity = Identity::in_memory(server(1));
        assert_eq!(
            identity.check(&envelope(7, 2, 3)),
            Err(Misdirected::OtherServer {
                own: server(1),
                meant: server(3)
            })
        );
        assert_eq!(identity.check(&envelope(7, 1, 1)), Err(Misdirected::OwnId));
        assert_eq!(identity.cluster(), None);
    }

    #[test]
    fn a_log_without_a_name_is_of_its_founder() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(server(5), dir.path(), true).unwrap();
        assert_eq!(identity.cluster(), Some(cluster(5)));
    }
}
