//! What disks forget is a loss to clients, too. In random histories a server mostly notices first, and ends itself: its
//! log contradicts what it is told. Here nobody is left who could notice, so the history of a key has to show it.

use wharf_tests::{
    Chance,
    history::{Action, contradiction},
};

use super::{
    super::{super::lossy::Flaw, *},
    Disks,
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

/// All servers lose their power right after a write was acknowledged, and come back.
async fn power_cut(seed: u64, flaw: Option<Flaw>) {
    let mut cluster = Cluster::empty();
    cluster.chance = Chance::new(seed);
    cluster.disks = Some(Disks {
        chance: Chance::new(seed),
        flaw: flaw.map(|flaw| (flaw, None)),
    });
    let mut cluster = cluster.found(3).await;
    let register = Register::new(&cluster);
    register.write(&cluster, &[0, 1, 2]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    register.write(&cluster, &[0, 1, 2]).await;
    for at in 0..3 {
        cluster.cut_power(at).await;
    }
    for at in 0..3 {
        cluster.start(at).await;
    }
    register.read(&cluster).await;
    register.judge();
    cluster.agree_on(&[]).await;
}

#[test]
fn an_fsync_that_is_reported_early_is_seen_by_clients() {
    for seed in 0..5 {
        paused(power_cut(seed, None)).unwrap();
    }
    let flaw = Flaw::EarlyFsync;
    is_seen(flaw, 10, |seed| power_cut(seed, Some(flaw)));
}
