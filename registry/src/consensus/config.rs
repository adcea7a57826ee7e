//! How a server is started.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Transport, machine::SnapshotPolicy};

/// What a server needs to know to take part in the consensus.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Where the log and the snapshots go; `None` keeps them in memory, for development.
    pub data_dir: Option<PathBuf>,
    pub node_name: String,
    pub node_uuid: Uuid,
    /// The node's id was given by somebody and may have been used with other data before. A server's
    /// id must be new whenever its data is, so it gets one of its own.
    pub node_uuid_reused: bool,
    /// Where peers reach this server: `host:port`.
    pub server_address: String,
    /// Found a cluster of this one server if the data directory has none. A server without it waits
    /// to be taken into one, or to be told to found one ([`super::Consensus::found`]).
    pub bootstrap: bool,
    /// The way to other servers; without one this server is alone.
    pub transport: Option<Arc<dyn Transport>>,
    pub timings: Timings,
    /// How long a proposal that is in the log here waits without a leader, before its outcome counts as unknown.
    pub hold: Duration,
    pub limits: Limits,
    pub snapshots: SnapshotPolicy,
    pub on_fatal: FatalHandler,
}

/// How patient servers are with each other.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How often a leader says that it is there.
    pub heartbeat: Duration,
    /// How long a follower waits without hearing it before it stands for election: the longer of these
    /// two, which is the leader's lease, and then a random time between them.
    pub election_min: Duration,
    pub election_max: Duration,
}

/// What may be proposed at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Beyond these, proposals are refused.
    pub proposals_in_flight: usize,
    pub bytes_in_flight: usize,
    /// So many bytes of them are given to the log, where one waits for the other; the rest waits where small ones pass
    /// large ones.
    pub bytes_in_log: usize,
}

impl ConsensusConfig {
    /// A server alone, in memory unless a data directory is set.
    pub fn single(node_name: &str, node_uuid: Uuid, server_address: &str) -> ConsensusConfig {
        ConsensusConfig {
            data_dir: None,
            node_name: node_name.to_owned(),
            node_uuid,
            node_uuid_reused: false,
            server_address: server_address.to_owned(),
            bootstrap: true,
            transport: None,
            timings: Timings::single(),
            hold: Duration::from_secs(7),
            limits: Limits::default(),
            snapshots: SnapshotPolicy::default(),
            on_fatal: FatalHandler::default(),
        }
    }
}

impl Timings {
    /// Servers in one region. A leader that is lost is replaced after three quarters of a second to a
    /// second. A slow fsync does not delay a leader's heartbeats, and a follower that missed some of them
    /// asks the others first whether they miss the leader too, so this leaves room for a busy machine.
    pub fn lan() -> Timings {
        Timings {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
        }
    }

    /// The same, `factor` times as patient: for slow machines, and servers that are far apart.
    pub fn stretched(self, factor: f64) -> Timings {
        Timings {
            heartbeat: self.heartbeat.mul_f64(factor),
            election_min: self.election_min.mul_f64(factor),
            election_max: self.election_max.mul_f64(factor),
        }
    }

    /// A server without peers has nobody to wait for.
    pub fn single() -> Timings {
        Timings {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            proposals_in_flight: 16_384,
            bytes_in_flight: 64 << 20,
            // What disks take in some milliseconds, and enough to keep them and a network busy.
            bytes_in_log: 2 << 20,
        }
    }
}

/// What to do when the server can no longer keep its promises: a write or an fsync failed, or an
/// entry cannot be applied. It gets the reason. The default ends the process, because nothing else
/// is safe: after a failed fsync the kernel may show data that the disk does not have, and a server
/// that goes on without an entry differs from its peers.
#[derive(Clone)]
pub struct FatalHandler(Arc<dyn Fn(&str) + Send + Sync>);

impl FatalHandler {
    pub fn new(handler: impl Fn(&str) + Send + Sync + 'static) -> FatalHandler {
        FatalHandler(Arc::new(handler))
    }

    pub(super) fn call(&self, reason: &str) {
        (self.0)(reason);
    }
}

/// `EX_IOERR` of sysexits.h.
const EXIT_IO_ERROR: i32 = 74;

impl Default for FatalHandler {
    fn default() -> FatalHandler {
        FatalHandler::new(|reason| {
            let message = format!(
                "the server cannot go on safely and stops; acknowledged writes are on disk: {reason}"
            );
            tracing::error!("{message}");
            if !tracing::dispatcher::has_been_set() {
                print_last_words(&message);
            }
            std::process::exit(EXIT_IO_ERROR);
        })
    }
}

/// Without a log to write to, the process would vanish silently.
#[expect(clippy::print_stderr, reason = "nobody listens to the log")]
fn print_last_words(message: &str) {
    eprintln!("{message}");
}

impl fmt::Debug for FatalHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHandler")
    }
}
