//! The replicated registry as an agent reaches it.
//!
//! A server proposes to its own consensus; a client agent has a session with one. Everything above this
//! seam is the same for both.

use std::{collections::BTreeSet, fmt, future::Future, pin::Pin};

use wharf_registry::{
    Command, Outcome, Registry, command::Refusal, consensus::Member, log::ServerId, watch::WatchKey,
};

use crate::{client::Client, rates::TooManyCalls};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How fresh an answer must be (Consul's consistency modes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever this agent has.
    Stale,
    /// What the leader has, as long as its lease holds.
    #[default]
    Default,
    /// What a quorum agrees the leader has, everything committed before the read included.
    Consistent,
}

/// Why the cluster did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    #[error("No cluster leader")]
    NoLeader,
    #[error("too many writes in flight: try again later")]
    Overloaded,
    /// More than this agent may ask of servers.
    #[error(transparent)]
    TooManyCalls(#[from] TooManyCalls),
    #[error("{0}")]
    DiskFull(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    OutcomeUnknown(String),
    /// This server has not got what the leader has, and does not get it now.
    #[error("this server is behind the leader, as {0}: ask another server, or with ?stale")]
    Behind(&'static str),
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// A client agent has no connection to any server. As Consul says it.
    #[error("No known Consul servers")]
    NoServers,
    /// A change of the servers that was not made.
    #[error("{0}")]
    Operation(String),
    #[error(transparent)]
    Refused(Refusal),
}

/// The leader of the cluster, as far as this agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// `host:port` of the leader's server port.
    pub address: String,
    /// Whether it is this agent.
    pub is_self: bool,
}

/// Reads and writes of the replicated state.
pub trait Cluster: fmt::Debug + Send + Sync + 'static {
    /// The state as this agent sees it. Call [`Cluster::barrier`] first unless a stale view will do.
    fn registry(&self) -> &Registry;

    /// Proposes a command and waits until it is applied here.
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>>;

    /// Completes when a view loaded from now on is as fresh as asked.
    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>>;

    fn leader(&self) -> Option<Leader>;

    /// `host:port` of the server port of every voter.
    fn peers(&self) -> Vec<String>;

    /// The term of the consensus that this agent is in.
    fn term(&self) -> u64;

    /// Completes when the leader may have changed. Cancel safe.
    fn leader_changed(&self) -> BoxFuture<'_, ()>;

    /// How long ago the leader was heard of; zero on the leader itself, `None` if it never was.
    fn last_contact(&self) -> Option<std::time::Duration>;

    /// Completes when views loaded from now on have what these keys are about, and have it for as long as the keys
    /// are watched, or this is asked again now and then. A server has everything.
    fn have<'a>(&'a self, _keys: &'a [WatchKey]) -> BoxFuture<'a, Result<(), ClusterError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// How many nodes the catalog has.
    fn node_count(&self) -> usize {
        self.registry().view().nodes().len()
    }

    /// The way to the servers, on an agent that is none itself.
    fn client(&self) -> Option<&Client> {
        None
    }

    /// Figures of the consensus, as `consul info` shows them under `raft`.
    fn stats(&self) -> Vec<(String, String)>;

    /// The servers as this agent knows them.
    fn servers(&self) -> Vec<Member> {
        Vec::new()
    }

    /// While nobody leads, who would say it: the addresses of the servers that do not answer this agent.
    fn out_of_reach(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// What an operator may do to the servers; `None` where there are none to speak of.
    fn operator(&self) -> Option<&dyn Operator> {
        None
    }
}

/// The servers of a cluster, as an operator sees and changes them. All of it is asked of the leader.
pub trait Operator: Send + Sync {
    /// The servers as the leader knows them, and the index of the log at which it does.
    fn configuration(&self) -> BoxFuture<'_, Result<(Vec<Member>, u64), ClusterError>>;

    /// Takes a server out of the cluster.
    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Hands the leadership to a server, or to the best one. Returns its name.
    fn transfer_leadership(
        &self,
        to: Option<ServerId>,
    ) -> BoxFuture<'_, Result<String, ClusterError>>;

    /// Looks for servers at this place too from now on, if there is one. The only thing that is asked of this
    /// server, and not of the leader.
    fn join<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        let _ = place;
        let error = "this agent finds servers by its configuration (retry_join)";
        Box::pin(async move { Err(ClusterError::Operation(error.to_owned())) })
    }
}

impl dyn Cluster {
    /// Proposes a command that the state machine can only do or refuse.
    pub async fn write(&self, command: Command) -> Result<(), ClusterError> {
        self.write_if(command).await.map(|_| ())
    }

    /// Proposes a check-and-set and says whether it took place.
    pub async fn write_if(&self, command: Command) -> Result<bool, ClusterError> {
        match self.propose(command).await? {
            Outcome::Done | Outcome::Planned(_) => Ok(true),
            Outcome::Applied(applied) => Ok(applied),
            Outcome::Refused(refusal) => Err(ClusterError::Refused(refusal)),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A cluster of one, without a log, for tests of what lies above.

    use std::sync::Mutex;

    use wharf_registry::{
        Committed, Replica,
        command::Register,
        model::{CheckStatus, HealthCheck, Node},
    };

    use super::*;
    use crate::local::SERF_HEALTH;

    /// Puts the agent of a node into the catalog, as alive.
    pub(crate) async fn agent_is_there(cluster: &dyn Cluster, node: &str, id: &str) {
        let register = Register {
            node: Node {
                name: node.into(),
                id: id.into(),
                address: "10.0.0.1".into(),
                ..Node::default()
            },
            checks: vec![HealthCheck {
                node: node.into(),
                id: SERF_HEALTH.into(),
                status: CheckStatus::Passing,
                ..HealthCheck::default()
            }],
            ..Register::default()
        };
        let register = Command::Register(Box::new(register));
        cluster.write(register).await.unwrap();
    }

    #[derive(Debug)]
    pub(crate) struct Solo {
        replica: Mutex<Replica>,
        registry: Registry,
        /// When set, every proposal fails with it.
        pub(crate) failure: Mutex<Option<ClusterError>>,
        /// Comes right after the next change of the platform, before its proposer hears of it: somebody else is fast.
        pub(crate) follow_up: Mutex<Option<Command>>,
        pub(crate) contact: Mutex<Option<std::time::Duration>>,
        /// The barriers that were asked for.
        pub(crate) barriers: Mutex<Vec<Consistency>>,
        pub(crate) servers: Mutex<Vec<Member>>,
        pub(crate) out_of_reach: Mutex<BTreeSet<String>>,
        pub(crate) leaderless: std::sync::atomic::AtomicBool,
    }

    impl Solo {
        pub(crate) fn new() -> Solo {
            let mut replica = Replica::new();
            replica
                .apply(&[Committed {
                    index: 1,
                    command: None,
                }])
                .unwrap();
            let registry = replica.registry();
            Solo {
                replica: Mutex::new(replica),
                registry,
                failure: Mutex::new(None),
                follow_up: Mutex::new(None),
                contact: Mutex::new(Some(std::time::Duration::ZERO)),
                barriers: Mutex::default(),
                servers: Mutex::default(),
                out_of_reach: Mutex::default(),
                leaderless: false.into(),
            }
        }
    }

    impl Cluster for Solo {
        fn registry(&self) -> &Registry {
            &self.registry
        }

        fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ClusterError>> {
            Box::pin(async move {
                if let Some(failure) = self.failure.lock().unwrap().clone() {
                    return Err(failure);
                }
                // What the agent has to say of its own node may come at any time.
                let is_awaited = matches!(command, Command::Platform(_));
                let mut replica = self.replica.lock().unwrap();
                let index = replica.last_applied() + 1;
                let entry = Committed {
                    index,
                    command: Some(command.encode()),
                };
                let outcome = replica.apply(&[entry]).unwrap().remove(0);
                let follow_up = is_awaited.then(|| self.follow_up.lock().unwrap().take());
                if let Some(next) = follow_up.flatten() {
                    let entry = Committed {
                        index: index + 1,
                        command: Some(next.encode()),
                    };
                    replica.apply(&[entry]).unwrap();
                }
                Ok(outcome)
            })
        }

        fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), ClusterError>> {
            self.barriers.lock().unwrap().push(consistency);
            Box::pin(async { Ok(()) })
        }

        fn out_of_reach(&self) -> BTreeSet<String> {
            self.out_of_reach.lock().unwrap().clone()
        }

        fn servers(&self) -> Vec<Member> {
            self.servers.lock().unwrap().clone()
        }

        fn leader(&self) -> Option<Leader> {
            if self.leaderless.load(std::sync::atomic::Ordering::Relaxed) {
                return None;
            }
            Some(Leader {
                address: "127.0.0.1:8300".into(),
                is_self: true,
            })
        }

        fn peers(&self) -> Vec<String> {
            vec!["127.0.0.1:8300".into()]
        }

        fn term(&self) -> u64 {
            1
        }

        fn leader_changed(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::pending())
        }

        fn last_contact(&self) -> Option<std::time::Duration> {
            *self.contact.lock().unwrap()
        }

        fn stats(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }
}
