//! What the agent wants, as its messages told it, before anything is checked.

use std::collections::BTreeMap;

use wharf_proto::v1::{self, proxy_configuration_response::Update};

use super::Identity;

/// The sum of a snapshot and the deltas after it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    pub(crate) version: u64,
    pub(crate) identity: Identity,
    pub(crate) listeners: BTreeMap<String, v1::Listener>,
    pub(crate) clusters: BTreeMap<String, v1::Cluster>,
}

/// A message that does not continue what came before. The stream has to be opened again.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum OutOfStep {
    #[error("the agent sent a delta before a snapshot")]
    NoSnapshot,
    #[error("the agent sent a delta to version {got} after version {have}")]
    Gap { have: u64, got: u64 },
    #[error("the agent sent a response without an update")]
    Empty,
}

impl Desired {
    /// Applies the next response of a stream; `first` is true for the first one.
    pub(crate) fn apply(
        &mut self,
        response: v1::ProxyConfigurationResponse,
        first: bool,
    ) -> Result<(), OutOfStep> {
        match response.update.ok_or(OutOfStep::Empty)? {
            Update::Snapshot(snapshot) => {
                self.identity = Identity {
                    proxy_id: snapshot.proxy_id,
                    service: snapshot.service,
                    node: snapshot.node,
                    datacenter: snapshot.datacenter,
                };
                self.listeners = snapshot
                    .listeners
                    .into_iter()
                    .map(|l| (l.name.clone(), l))
                    .collect();
                self.clusters = snapshot
                    .clusters
                    .into_iter()
                    .map(|c| (c.name.clone(), c))
                    .collect();
            }
            Update::Delta(_) if first => return Err(OutOfStep::NoSnapshot),
            Update::Delta(delta) => {
                if response.version != self.version.wrapping_add(1) {
                    return Err(OutOfStep::Gap {
                        have: self.version,
                        got: response.version,
                    });
                }
                // Removals first: a name in both is a replacement.
                for name in &delta.removed_listeners {
                    self.listeners.remove(name);
                }
                for name in &delta.removed_clusters {
                    self.clusters.remove(name);
                }
                self.listeners
                    .extend(delta.listeners.into_iter().map(|l| (l.name.clone(), l)));
                self.clusters
                    .extend(delta.clusters.into_iter().map(|c| (c.name.clone(), c)));
            }
        }
        self.version = response.version;
        Ok(())
    }
}
