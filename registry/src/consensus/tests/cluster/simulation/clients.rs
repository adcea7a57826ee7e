//! What clients do, and what they see.

use std::collections::BTreeMap;

use wharf_tests::{
    Chance,
    history::{Action, Operation},
    promises::Shown,
};

use super::{
    super::{
        super::*,
        net::{Host, Net},
    },
    Break, KEYS, any,
};
use crate::{command::KvCommand, model::KvEntry, watch::WatchKey};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// What clients share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) net: Arc<Net>,
    pub(super) histories: Arc<Mutex<BTreeMap<u64, Vec<Operation>>>>,
    pub(super) values: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) broken: Option<Break>,
}

pub(super) fn key(number: u64) -> String {
    format!("register-{number}")
}

pub(super) fn value_of(entry: Option<&Arc<KvEntry>>) -> u64 {
    let text = entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap());
    text.map_or(0, |text| text.parse().unwrap())
}

pub(super) fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

impl Shared {
    pub(super) fn new(net: Arc<Net>, broken: Option<Break>) -> Shared {
        Shared {
            net,
            histories: Arc::default(),
            values: Arc::new(AtomicU64::new(1)),
            stop: Arc::default(),
            broken,
        }
    }

    /// As a server answers its client: it asks the leader for what it does not know itself.
    pub(super) async fn read(&self, at: &Host, key: &str, consistency: Consistency) -> Option<u64> {
        let server = &at.consensus;
        let read = async {
            let leads = || {
                server
                    .inner
                    .raft
                    .metrics()
                    .borrow_watched()
                    .state
                    .is_leader()
            };
            let unasked = self.broken == Some(Break::LeaseNotChecked) && leads();
            let fresh = match unasked {
                true => Ok(()),
                false => server.read_barrier(consistency).await,
            };
            match fresh {
                Ok(()) => {}
                Err(ReadError::NotLeader { leader }) => {
                    let leader = self.net.host(&leader.address)?;
                    let asked = leader.clone();
                    let index = self.net.ask(server.id(), &leader, async move {
                        asked.consensus.read_index(consistency).await
                    });
                    server.wait_applied(index.await?.ok()?.ok()?).await.ok()?;
                }
                Err(_) => return None,
            }
            Some(value_of(server.registry().view().kv(key)))
        };
        at.process.run(read).await.flatten()
    }

    /// As a server writes for its client, which finds it there when it has its answer. `None`: it certainly did nothing.
    pub(super) async fn propose(&self, at: &Host, command: Command) -> Option<Result<Outcome, ()>> {
        let server = &at.consensus;
        let proposed = async {
            let outcome = match server.propose(&command).await {
                Err(ProposeError::NotLeader { leader }) => {
                    let leader = self.net.host(&leader.address)?;
                    let asked = leader.clone();
                    let command = command.encode();
                    let proposed = self.net.ask(server.id(), &leader, async move {
                        asked.consensus.propose_encoded(command).await
                    });
                    match proposed.await? {
                        Ok(Ok((index, outcome))) => match server.wait_applied(index).await {
                            Ok(()) => Ok(outcome),
                            Err(_) => return Some(Err(())),
                        },
                        Ok(Err(error)) => Err(error),
                        Err(()) => return Some(Err(())),
                    }
                }
                outcome => outcome,
            };
            match outcome {
                Ok(outcome) => Some(Ok(outcome)),
                Err(ProposeError::NotLeader { .. } | ProposeError::NoLeader) => None,
                Err(_) => Some(Err(())),
            }
        };
        at.process.run(proposed).await.unwrap_or(Some(Err(())))
    }

    async fn operate(&self, at: &Host, key: &str, what: u64) -> Option<Action> {
        let entry = |value: u64| KvEntry {
            key: key.into(),
            value: value.to_string().into(),
            ..KvEntry::default()
        };
        let propose = async |command: KvCommand| {
            let proposed = self.propose(at, Command::Kv(command));
            let outcome = tokio::time::timeout(PATIENCE, proposed).await;
            outcome.unwrap_or(Some(Err(())))
        };
        match what {
            0 | 1 => {
                let consistency = match what {
                    0 => Consistency::Default,
                    _ => Consistency::Consistent,
                };
                let read = tokio::time::timeout(PATIENCE, self.read(at, key, consistency));
                read.await.ok().flatten().map(Action::Read)
            }
            2 => {
                let view = at.consensus.registry().view();
                let from = value_of(view.kv(key));
                let index = view.kv(key).map_or(0, |entry| entry.modify_index);
                drop(view);
                let to = self.values.fetch_add(1, Ordering::Relaxed);
                let entry = entry(to);
                match propose(KvCommand::CompareAndSet { entry, index }).await? {
                    Ok(outcome) => (outcome == Outcome::Applied(true)).then_some(Action::Swap {
                        from,
                        to,
                        swapped: true,
                    }),
                    Err(()) => Some(Action::MaybeSwap { from, to }),
                }
            }
            _ => {
                let value = self.values.fetch_add(1, Ordering::Relaxed);
                let entry = entry(value);
                match propose(KvCommand::Set { entry }).await? {
                    Ok(_) => Some(Action::Write(value)),
                    Err(()) => Some(Action::MaybeWrite(value)),
                }
            }
        }
    }

    /// One client, with servers of its choice.
    pub(super) async fn client(self, seed: u64) {
        let mut chance = Chance::new(seed);
        while !self.stop.load(Ordering::Relaxed) {
            let number = chance.below(KEYS);
            let what = chance.below(4);
            if let Some(at) = any(&mut chance, self.net.hosts()) {
                let called = now();
                let action = self.operate(&at, &key(number), what).await;
                self.net.note(|| {
                    let server = at.consensus.id();
                    let took = now() - called;
                    format!("client {seed} at {server}: key {number}: {action:?} after {took:?}")
                });
                if let Some(action) = action {
                    self.add(number, action, called);
                }
            }
            tokio::time::sleep(chance.millis(20, 200)).await;
        }
    }

    pub(super) fn add(&self, number: u64, action: Action, called: std::time::Instant) {
        let returned = (!action.is_unknown()).then(now);
        let mut histories = self.histories.lock().unwrap();
        histories.entry(number).or_default().push(Operation {
            action,
            called,
            returned,
        });
    }
}

/// A client with blocking queries for one key, on one server.
pub(super) struct Watch {
    pub(super) at: Host,
    pub(super) number: u64,
    seen: Arc<Mutex<Vec<Shown<u64>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    pub(super) fn begin(at: Host, number: u64, broken: Option<Break>) -> Watch {
        let seen = Arc::default();
        let watching = watch(at.consensus.clone(), number, broken, Arc::clone(&seen));
        let task = at.process.spawn(watching);
        Watch {
            at,
            number,
            seen,
            task,
        }
    }

    /// What its client was shown.
    pub(super) fn seen(&self) -> Vec<Shown<u64>> {
        self.seen.lock().unwrap().clone()
    }

    /// What it should have been shown by now.
    pub(super) fn holds(&self) -> Shown<u64> {
        let view = self.at.consensus.registry().view();
        let key = key(self.number);
        Shown {
            index: view.kv_index(&key),
            answer: value_of(view.kv(&key)),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(
    at: Consensus,
    number: u64,
    broken: Option<Break>,
    seen: Arc<Mutex<Vec<Shown<u64>>>>,
) {
    let key = key(number);
    let watch = || at.registry().watch(WatchKey::Kv(key.as_str().into()));
    loop {
        let begun = (broken != Some(Break::WakeMissed)).then(watch);
        let view = at.registry().view();
        let now = Shown {
            index: view.kv_index(&key),
            answer: value_of(view.kv(&key)),
        };
        {
            let mut seen = seen.lock().unwrap();
            if seen.last().is_none_or(|last| last.index != now.index) {
                seen.push(now);
                continue;
            }
        }
        drop(view);
        // A thread may be interrupted anywhere, and for long.
        tokio::time::sleep(Duration::from_millis(25)).await;
        let mut watcher = begun.unwrap_or_else(watch);
        watcher.changed().await;
    }
}
