//! A log that is slow, stalls or fails under a running server.

use std::{io, ops::Range};

use tokio::sync::mpsc;

use super::*;
use crate::log::{Entry, LogId, LogState, OnDurable, Vote};

/// A memory log whose appends, once told so, take their time, stall until released, or fail.
#[derive(Debug, Default)]
pub(super) struct FaultyLog {
    log: MemoryLog,
    fault: Mutex<Option<Fault>>,
    stalled: Mutex<Vec<OnDurable>>,
    /// When a slow one is done with what it has.
    busy_until: Mutex<Option<tokio::time::Instant>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// So many bytes a millisecond.
    Slow(u64),
    Stall,
    /// The fsync after an append fails.
    Fsync,
    /// The append itself fails.
    Write,
}

impl FaultyLog {
    pub(super) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    pub(super) fn release(&self) {
        *self.fault.lock().unwrap() = None;
        for done in self.stalled.lock().unwrap().drain(..) {
            done.call(Ok(()));
        }
    }

    /// Calls back when the disk, after all that it has, is done with this too.
    fn slowly(&self, bytes: u64, rate: u64, done: OnDurable) {
        let mut busy_until = self.busy_until.lock().unwrap();
        let now = tokio::time::Instant::now();
        let begins = busy_until.map_or(now, |until| until.max(now));
        let ends = begins + Duration::from_micros(bytes * 1000 / rate);
        *busy_until = Some(ends);
        tokio::spawn(async move {
            tokio::time::sleep_until(ends).await;
            done.call(Ok(()));
        });
    }
}

impl LogStore for FaultyLog {
    fn append(&self, entries: Vec<Entry>, done: OnDurable) -> io::Result<()> {
        let fault = *self.fault.lock().unwrap();
        let Some(fault) = fault else {
            return self.log.append(entries, done);
        };
        if let Fault::Write = fault {
            return Err(io::Error::other("no space left on device"));
        }
        let bytes = entries.iter().map(Entry::size).sum::<usize>();
        self.log.append(entries, OnDurable::new(|_| {}))?;
        match fault {
            Fault::Slow(rate) => self.slowly(bytes as u64, rate, done),
            Fault::Stall => self.stalled.lock().unwrap().push(done),
            _ => done.call(Err(io::Error::other("input/output error"))),
        }
        Ok(())
    }

    fn state(&self) -> LogState {
        self.log.state()
    }
    fn vote(&self) -> Option<Vote> {
        self.log.vote()
    }
    fn committed(&self) -> Option<LogId> {
        self.log.committed()
    }
    fn save_vote(&self, vote: Vote, done: OnDurable) -> io::Result<()> {
        self.log.save_vote(vote, done)
    }
    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last)
    }
    fn purge(&self, up_to: LogId) -> io::Result<()> {
        self.log.purge(up_to)
    }
    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed)
    }
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        self.log.read(range, max_bytes)
    }
    fn close(&self) -> io::Result<()> {
        self.log.close()
    }
}

async fn led_on(log: Arc<FaultyLog>, config: ConsensusConfig) -> Consensus {
    let opened = Opened::in_memory(config.node_uuid, log);
    let raft_config = Arc::new(raft_config(&config).unwrap());
    let consensus = Consensus::start_on(opened, config, raft_config)
        .await
        .unwrap();
    wait_for_leader(&consensus).await;
    // The entry that opens the term is not to meet the fault.
    consensus.propose(&set("first", "v")).await.unwrap();
    consensus
}

#[tokio::test]
async fn beyond_the_limit_proposals_are_refused_and_those_within_it_succeed() {
    let log = Arc::new(FaultyLog::default());
    let config = ConsensusConfig {
        limits: Limits {
            proposals_in_flight: 4,
            bytes_in_flight: 1 << 20,
            ..Limits::default()
        },
        ..single()
    };
    let consensus = led_on(log.clone(), config).await;
    log.set(Fault::Stall);
    let waiting: Vec<_> = (0..4)
        .map(|n| {
            let consensus = consensus.clone();
            tokio::spawn(async move { consensus.propose(&set(&format!("key-{n}"), "v")).await })
        })
        .collect();
    while stat(&consensus, "proposals_in_flight") != "4" {
        tokio::task::yield_now().await;
    }
    let refused = consensus.propose(&set("one too many", "v")).await;
    assert_eq!(refused, Err(ProposeError::Overloaded));

    log.release();
    for outcome in waiting {
        assert_eq!(outcome.await.unwrap(), Ok(Outcome::Applied(true)));
    }
    assert!(has_all(&consensus, 0..4));
    assert!(consensus.registry().view().kv("one too many").is_none());
    consensus
        .propose(&set("now there is room", "v"))
        .await
        .unwrap();
    consensus.shutdown().await;
}

/// Of several servers or one: a small write waits for what is given to the log, and not for all that was there before
/// it; those who write large values go on meanwhile.
pub(super) async fn small_writes_pass_large_ones(leader: &Consensus) {
    const LARGE: usize = 512 << 10;
    const WRITERS: usize = 96;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (leader, acknowledged) = (leader.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let value = "v".repeat(LARGE);
                loop {
                    let outcome = leader
                        .propose(&set(&format!("large-{number}"), &value))
                        .await;
                    assert_eq!(outcome, Ok(Outcome::Applied(true)));
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while acknowledged.load(Ordering::Relaxed) < WRITERS as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let in_log = (Limits::default().bytes_in_log / LARGE) as u64;
    let mut passed = Vec::new();
    for number in 0..50 {
        let before = acknowledged.load(Ordering::Relaxed);
        leader
            .propose(&set(&format!("small-{number}"), "v"))
            .await
            .unwrap();
        passed.push(acknowledged.load(Ordering::Relaxed) - before);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    let most = passed.iter().max();
    assert!(
        most <= Some(&(2 * in_log)),
        "so many large ones came first: {passed:?}"
    );
    for writer in writers {
        writer.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn small_writes_do_not_wait_for_the_large_ones_that_came_before() {
    let log = Arc::new(FaultyLog::default());
    let consensus = led_on(log.clone(), single()).await;
    log.set(Fault::Slow(17 << 10));
    small_writes_pass_large_ones(&consensus).await;
    consensus.shutdown().await;
}

#[tokio::test]
async fn bytes_in_flight_are_limited_too() {
    let config = ConsensusConfig {
        limits: Limits {
            proposals_in_flight: 100,
            bytes_in_flight: 1000,
            ..Limits::default()
        },
        ..single()
    };
    let consensus = led(config).await;
    let refused = consensus.propose(&set("k", &"v".repeat(2000))).await;
    assert!(matches!(
        refused,
        Err(ProposeError::TooLarge { limit: 1000, .. })
    ));
    consensus
        .propose(&set("k", &"v".repeat(500)))
        .await
        .unwrap();
    consensus.shutdown().await;
}

#[tokio::test]
async fn a_failed_write_or_fsync_is_fatal_and_acknowledges_nothing() {
    for fault in [Fault::Fsync, Fault::Write] {
        let (reasons, mut reported) = mpsc::channel(1);
        let config = ConsensusConfig {
            on_fatal: FatalHandler::new(move |reason| {
                reasons.try_send(reason.to_owned()).unwrap();
            }),
            ..single()
        };
        let log = Arc::new(FaultyLog::default());
        let consensus = led_on(log.clone(), config).await;
        log.set(fault);
        let outcome = consensus.propose(&set("lost", "v")).await;
        assert_eq!(outcome, Err(ProposeError::OutcomeUnknown), "{fault:?}");
        let reason = reported.recv().await.unwrap();
        assert!(
            reason.contains("input/output error") || reason.contains("no space left"),
            "{reason}"
        );
        assert!(consensus.registry().view().kv("lost").is_none());
        assert_eq!(consensus.leader(), None);
        consensus.shutdown().await;
    }
}

/// A proposal that stalls for ever learns at the shutdown that its outcome is unknown.
#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_stalled_disk() {
    let log = Arc::new(FaultyLog::default());
    let consensus = led_on(log.clone(), single()).await;
    log.set(Fault::Stall);
    let waiting = {
        let consensus = consensus.clone();
        tokio::spawn(async move { consensus.propose(&set("stalled", "v")).await })
    };
    while stat(&consensus, "proposals_in_flight") != "1" {
        tokio::task::yield_now().await;
    }
    let shutdown = tokio::time::timeout(Duration::from_secs(5), consensus.shutdown());
    shutdown.await.unwrap();
    assert_eq!(waiting.await.unwrap(), Err(ProposeError::OutcomeUnknown));
}
