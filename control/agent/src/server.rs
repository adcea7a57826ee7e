//! The cluster as a server sees it: its own consensus.

use std::{fmt, time::Duration};

use wharf_registry::{
    Command, Outcome, Registry,
    consensus::{self, Consensus, ProposeError, ReadError},
};

use crate::cluster::{BoxFuture, Cluster, ClusterError, Consistency, Leader};

/// Reads and writes through the consensus that this process takes part in.
#[derive(Clone)]
pub struct Server {
    consensus: Consensus,
    registry: Registry,
    /// How long a request is held while there is no leader, before it fails (Consul's
    /// `rpc_hold_timeout`).
    hold: Duration,
    address: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// `address`: `host:port` of this server's own server port.
    pub fn new(consensus: Consensus, address: String, hold: Duration) -> Server {
        let registry = consensus.registry();
        Server {
            consensus,
            registry,
            hold,
            address,
        }
    }

    /// Does `attempt` again and again while there is no leader, until the hold time is over. While
    /// there is one, as nearly always, it costs no more than the attempt.
    async fn held<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = Result<T, ClusterError>>,
    {
        match attempt().await {
            Err(ClusterError::NoLeader) => {}
            result => return result,
        }
        let deadline = tokio::time::Instant::now() + self.hold;
        // A leader that came since the attempt is no change any more: hence another one comes first.
        let mut changes = self.consensus.leader_changes();
        loop {
            match attempt().await {
                Err(ClusterError::NoLeader) => {}
                result => return result,
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ClusterError::ShuttingDown),
                Err(_) => return Err(ClusterError::NoLeader),
            }
        }
    }
}

impl From<ProposeError> for ClusterError {
    fn from(error: ProposeError) -> ClusterError {
        match error {
            // Without forwarding, another server's leadership is none that helps.
            ProposeError::NoLeader | ProposeError::NotLeader { .. } => ClusterError::NoLeader,
            ProposeError::Overloaded => ClusterError::Overloaded,
            ProposeError::ShuttingDown => ClusterError::ShuttingDown,
            ProposeError::OutcomeUnknown => ClusterError::OutcomeUnknown(error.to_string()),
            ProposeError::TooLarge { .. } => ClusterError::TooLarge(error.to_string()),
        }
    }
}

impl From<ReadError> for ClusterError {
    fn from(error: ReadError) -> ClusterError {
        match error {
            ReadError::NoLeader | ReadError::NotLeader { .. } | ReadError::NoQuorum => {
                ClusterError::NoLeader
            }
            ReadError::ShuttingDown => ClusterError::ShuttingDown,
        }
    }
}

impl From<Consistency> for consensus::Consistency {
    fn from(consistency: Consistency) -> consensus::Consistency {
        match consistency {
            Consistency::Stale => consensus::Consistency::Stale,
            Consistency::Default => consensus::Consistency::Default,
            Consistency::Consistent => consensus::Consistency::Consistent,
        }
    }
}

impl Cluster for Server {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>> {
        Box::pin(async move {
            let command = &command;
            self.held(|| async move { Ok(self.consensus.propose(command).await?) })
                .await
        })
    }

    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(self.held(move || async move {
            Ok(self.consensus.read_barrier(consistency.into()).await?)
        }))
    }

    fn leader(&self) -> Option<Leader> {
        let leader = self.consensus.leader()?;
        Some(Leader {
            is_self: self.consensus.is_leader(),
            address: leader.address,
        })
    }

    fn peers(&self) -> Vec<String> {
        self.consensus.peers()
    }

    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        let mut changes = self.consensus.leader_changes();
        // What leads now is no change: without this the wait would end at once, every time.
        changes.mark_unchanged();
        Box::pin(async move {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn last_contact(&self) -> Duration {
        self.consensus.last_contact().unwrap_or_default()
    }

    fn stats(&self) -> Vec<(String, String)> {
        self.consensus.stats()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use wharf_registry::consensus::ConsensusConfig;

    use super::*;

    #[tokio::test]
    async fn a_leader_that_stays_is_no_change() {
        let address = "127.0.0.1:8300";
        let config = ConsensusConfig::single("s1", uuid::Uuid::from_u128(1), address);
        let consensus = Consensus::start(config).await.unwrap();
        let server = Server::new(consensus, address.to_owned(), Duration::from_secs(10));
        while server.leader().is_none() {
            server.leader_changed().await;
        }
        assert_eq!(server.leader_changed().now_or_never(), None);
    }
}
