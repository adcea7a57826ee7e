//! The cluster as a server sees it: its own consensus, and the leader where that is another server.
//!
//! A write that this server does not take is proposed at the leader; a read that must be fresh asks the
//! leader how far the log has to be applied. Both then wait until this server has applied as much, so that
//! whoever was answered finds it in the view of this server.

mod leader;

use std::{collections::BTreeSet, fmt, time::Duration};

use bytes::Bytes;
use wharf_registry::{
    Command, Outcome, Registry,
    consensus::{
        self, Consensus, Leader as RaftLeader, Member, MembershipError, ProposeError, ReadError,
    },
    log::ServerId,
};

use crate::{
    cluster::{BoxFuture, Cluster, ClusterError, Consistency, Leader, Operator},
    servers::{CallError, Peers},
};

/// How soon a request that is held looks again whether there is a leader, beside every change of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a write that was acknowledged by the leader is waited for here.
const APPLIED_WITHIN: Duration = Duration::from_secs(5);

/// Reads and writes through the consensus that this process takes part in.
#[derive(Clone)]
pub struct Server {
    consensus: Consensus,
    registry: Registry,
    /// The way to the other servers, if there may be any.
    peers: Option<Peers>,
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
    pub(crate) fn new(
        consensus: Consensus,
        peers: Option<Peers>,
        address: String,
        hold: Duration,
    ) -> Server {
        let registry = consensus.registry();
        Server {
            consensus,
            registry,
            peers,
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
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Err(ClusterError::NoLeader);
            }
            // Whom this server takes for the leader may have been deposed, and may know it first.
            let look_again = deadline.min(now + LOOK_AGAIN);
            if let Ok(Err(_)) = tokio::time::timeout_at(look_again, changes.changed()).await {
                return Err(ClusterError::ShuttingDown);
            }
        }
    }

    async fn propose_here(&self, command: Bytes) -> Result<Outcome, ProposeError> {
        let proposed = self.consensus.propose_encoded(command).await;
        proposed.map(|(_, outcome)| outcome)
    }

    async fn propose_once(&self, command: Bytes) -> Result<Outcome, ClusterError> {
        match self.propose_here(command.clone()).await {
            Err(ProposeError::NotLeader { leader }) => self.propose_at(&leader, command).await,
            proposed => Ok(proposed?),
        }
    }

    async fn barrier_once(&self, consistency: Consistency) -> Result<(), ClusterError> {
        match self.consensus.read_barrier(consistency.into()).await {
            Ok(()) => Ok(()),
            Err(ReadError::NotLeader { leader }) => self.barrier_of(&leader, consistency).await,
            Err(error) => Err(error.into()),
        }
    }
}

impl From<ProposeError> for ClusterError {
    fn from(error: ProposeError) -> ClusterError {
        match error {
            // Where nothing can be forwarded, another server's leadership is none that helps.
            ProposeError::NoLeader | ProposeError::NotLeader { .. } => ClusterError::NoLeader,
            ProposeError::Overloaded => ClusterError::Overloaded,
            ProposeError::DiskFull(_) => ClusterError::DiskFull(error.to_string()),
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
            let command = command.encode();
            if self.consensus.is_leader() {
                match self.propose_here(command.clone()).await {
                    // Not any more.
                    Err(ProposeError::NoLeader | ProposeError::NotLeader { .. }) => {}
                    proposed => return Ok(proposed?),
                }
            }
            // Everybody who wants something while there is no leader would fill the memory.
            let _place = self.consensus.admit_waiting(command.len())?;
            self.held(|| self.propose_once(command.clone())).await
        })
    }

    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
        Box::pin(self.held(move || self.barrier_once(consistency)))
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

    fn last_contact(&self) -> Option<Duration> {
        self.consensus.last_contact()
    }

    fn stats(&self) -> Vec<(String, String)> {
        self.consensus.stats()
    }

    fn term(&self) -> u64 {
        self.consensus.term()
    }

    fn servers(&self) -> Vec<Member> {
        self.consensus.members()
    }

    fn out_of_reach(&self) -> BTreeSet<String> {
        let introductions = self.peers.as_ref().and_then(Peers::introductions);
        introductions
            .filter(|_| self.consensus.leader().is_none())
            .map(|introductions| introductions.silent())
            .unwrap_or_default()
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use wharf_registry::{
        command::KvCommand,
        consensus::{ConsensusConfig, Limits},
        model::KvEntry,
    };

    use super::*;

    const HOLD: Duration = Duration::from_secs(7);

    fn set(value: String) -> Command {
        Command::Kv(KvCommand::Set {
            entry: KvEntry {
                key: "key".into(),
                value: value.into(),
                ..KvEntry::default()
            },
        })
    }

    /// What waits for a leader is bounded, in number and in bytes; what is beyond is refused at once.
    #[tokio::test(start_paused = true)]
    async fn without_a_leader_no_more_is_held_than_may_be_in_flight() {
        let address = "127.0.0.1:8300";
        for (number, size) in [(100, 10), (20, 10_000)] {
            let config = ConsensusConfig {
                bootstrap: false,
                limits: Limits {
                    proposals_in_flight: 50,
                    bytes_in_flight: 115_000,
                    ..Limits::default()
                },
                ..ConsensusConfig::single("s1", uuid::Uuid::from_u128(1), address)
            };
            let consensus = Consensus::start(config).await.unwrap();
            let server = Server::new(consensus, None, address.to_owned(), HOLD);
            let asked = tokio::time::Instant::now();
            let writes = (0..number).map(|_| async {
                let outcome = server.propose(set("v".repeat(size))).await;
                (outcome, asked.elapsed())
            });
            let (mut held, mut refused) = (0, 0);
            for (outcome, after) in futures_util::future::join_all(writes).await {
                match outcome {
                    Err(ClusterError::NoLeader) if after >= HOLD => held += 1,
                    Err(ClusterError::Overloaded) if after < HOLD => refused += 1,
                    other => panic!("{other:?} after {after:?}"),
                }
            }
            assert_eq!(held, number / 2, "{refused} were refused");
        }
    }

    #[tokio::test]
    async fn a_leader_that_stays_is_no_change() {
        let address = "127.0.0.1:8300";
        let config = ConsensusConfig::single("s1", uuid::Uuid::from_u128(1), address);
        let consensus = Consensus::start(config).await.unwrap();
        let server = Server::new(consensus, None, address.to_owned(), Duration::from_secs(10));
        while server.leader().is_none() {
            server.leader_changed().await;
        }
        assert_eq!(server.leader_changed().now_or_never(), None);
    }
}
