//! The history of one key shows that an acknowledged write is gone, where no server is left that could notice and end itself.

use wharf_tests::history::{Action, contradiction};

use super::{
    super::{super::lossy::Flaw, *},
    clients::{Shared, key, now},
    paused,
};

/// How [`Register::judge`] begins.
const LOST: &str = "no order explains";

/// One key, and what its only client did and saw.
pub(super) struct Register {
    shared: Shared,
    written: AtomicU64,
}

impl Register {
    pub(super) fn new(cluster: &Cluster) -> Register {
        Register {
            shared: Shared::new(cluster.net.clone(), None),
            written: AtomicU64::new(0),
        }
    }

    /// Writes the next value through one of these servers, until it is acknowledged.
    pub(super) async fn write(&self, cluster: &Cluster, servers: &[usize]) {
        let value = self.written.fetch_add(1, Ordering::Relaxed) + 1;
        let (command, called) = (set(&key(0), &value.to_string()), now());
        let acknowledged = async {
            loop {
                for at in servers {
                    let proposed = cluster.at(*at).propose(&command);
                    let proposed = tokio::time::timeout(Duration::from_secs(1), proposed).await;
                    if let Ok(Ok(_)) = proposed {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let acknowledged = tokio::time::timeout(Duration::from_secs(60), acknowledged).await;
        assert!(acknowledged.is_ok(), "no write is acknowledged");
        self.shared.add(0, Action::Write(value), called);
    }

    pub(super) async fn read(&self, cluster: &Cluster) {
        let (key, called) = (key(0), now());
        let read = async {
            loop {
                let leader = cluster.host(cluster.leader().await);
                let read = self.shared.read(leader, &key, Consistency::Consistent);
                if let Some(value) = read.await {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let value = tokio::time::timeout(Duration::from_secs(60), read).await;
        let value = value.expect("a read is answered");
        self.shared.add(0, Action::Read(value), called);
    }

    /// Panics if it is not what a register does.
    pub(super) fn judge(&self) {
        let histories = self.shared.histories.lock().unwrap();
        let history = histories.get(&0).map(Vec::as_slice);
        if let Some(operation) = history.and_then(contradiction) {
            panic!("{LOST} the history at {operation:?}: {history:?}");
        }
    }
}

/// Plays until a history shows it. What servers notice before is passed over.
pub(super) fn is_seen<F>(flaw: Flaw, within: u64, history: impl Fn(u64) -> F)
where
    F: Future<Output = ()>,
{
    let lost = (0..within).find_map(|seed| {
        let wrong = paused(history(seed)).err()?;
        wrong.starts_with(LOST).then_some((seed, wrong))
    });
    let (seed, wrong) = lost.expect("no client sees it");
    println!("{flaw:?} is seen in history {}: {wrong}", seed + 1);
}
