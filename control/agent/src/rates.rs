//! How many requests a second are served, Consul's `limits.request_limits`; and how many a client agent passes on to
//! servers, `limits.rpc_rate` and `limits.rpc_max_burst`.
//!
//! Of those that are served, reads and writes have a bucket each, for all clients together. It holds ten seconds'
//! worth, so that a burst after a quiet time is no offence. What is about this agent alone, and what an operator needs
//! to repair a cluster, is not counted. Of those that are passed on, whatever somebody asks of the agent counts; what
//! the agent itself has to say of its node and its checks does not, or a flood at its door would silence it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

/// How many seconds' worth of requests may come at once.
const BURST: f64 = 10.0;
/// Longer than an agent runs.
const LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What happens to a request beyond the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateMode {
    /// Nothing is counted.
    #[default]
    Disabled,
    /// It is served, counted, and said in the log.
    Permissive,
    /// It is refused.
    Enforcing,
}

/// Requests a second; `None`: as many as come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimits {
    pub mode: RateMode,
    pub reads: Option<f64>,
    pub writes: Option<f64>,
    pub passed_on: PassedOn,
}

/// What a client agent passes on to servers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassedOn {
    /// Requests a second; `None`: as many as come.
    pub rate: Option<f64>,
    /// How many may come at once.
    pub burst: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
        }
    }
}

/// A request beyond the rate. The text is Consul's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate limit exceeded, try again later or against a different server")]
pub(crate) struct RateExceeded;

/// A request beyond what this agent may ask of servers. The text is Consul's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RPC rate limit exceeded")]
pub struct TooManyCalls;

/// The limits in force, for everybody who serves requests.
#[derive(Clone, Debug, Default)]
pub struct Rates(Arc<ArcSwap<Inner>>);

#[derive(Debug)]
struct Inner {
    limits: RateLimits,
    reads: Option<Bucket>,
    writes: Option<Bucket>,
    passed_on: Option<Bucket>,
    /// When a request beyond the rate was last said, in milliseconds after the start of the buckets, plus one.
    said: AtomicU64,
    started: Instant,
}

impl Default for Inner {
    fn default() -> Inner {
        Inner::new(RateLimits::default())
    }
}

impl Inner {
    fn new(limits: RateLimits) -> Inner {
        let bucket = |rate: Option<f64>| match limits.mode {
            RateMode::Disabled => None,
            _ => rate.map(|rate| {
                // Of less than one request in ten seconds, one may come.
                let burst = if rate > 0.0 {
                    (rate * BURST).max(1.0)
                } else {
                    0.0
                };
                Bucket::full(rate, burst)
            }),
        };
        let PassedOn { rate, burst } = limits.passed_on;
        Inner {
            passed_on: rate.map(|rate| Bucket::full(rate, burst.into())),
            reads: bucket(limits.reads),
            writes: bucket(limits.writes),
            limits,
            said: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// At most once a second.
    fn say(&self, operation: Operation) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let said = self.said.load(Ordering::Relaxed);
        let is_time = said == 0 || now.saturating_sub(said) >= 1000;
        let is_first = self
            .said
            .compare_exchange(said, now, Ordering::Relaxed, Ordering::Relaxed);
        if is_time && is_first.is_ok() {
            tracing::warn!(
                operation = operation.name(),
                enforced = self.limits.mode == RateMode::Enforcing,
                "requests are beyond limits.request_limits"
            );
        }
    }
}

impl Rates {
    pub fn new(limits: RateLimits) -> Rates {
        let rates = Rates::default();
        rates.set(limits);
        rates
    }

    /// Changes what is in force. The same again changes nothing.
    pub fn set(&self, limits: RateLimits) {
        if self.0.load().limits != limits {
            self.0.store(Arc::new(Inner::new(limits)));
        }
    }

    /// Counts a request, which may be one too many.
    pub(crate) fn admit(&self, operation: Operation) -> Result<(), RateExceeded> {
        let inner = self.0.load();
        let bucket = match operation {
            Operation::Read => &inner.reads,
            Operation::Write => &inner.writes,
        };
        if bucket.as_ref().is_none_or(Bucket::take) {
            return Ok(());
        }
        inner.say(operation);
        let enforced = inner.limits.mode == RateMode::Enforcing;
        metrics::counter!(
            "wharf_requests_over_limit_total",
            "operation" => operation.name(),
            "outcome" => if enforced { "refused" } else { "served" },
        )
        .increment(1);
        match enforced {
            true => Err(RateExceeded),
            false => Ok(()),
        }
    }

    /// Counts a request that a client agent is about to pass on, which may be one too many.
    pub(crate) fn pass_on(&self) -> Result<(), TooManyCalls> {
        if self.0.load().passed_on.as_ref().is_none_or(Bucket::take) {
            return Ok(());
        }
        metrics::counter!("wharf_calls_over_limit_total").increment(1);
        Err(TooManyCalls)
    }
}

/// A bucket of tokens, as the time at which it would be full again: one number, so that no lock is needed.
#[derive(Debug)]
struct Bucket {
    started: Instant,
    /// What one request costs, in nanoseconds.
    cost: u64,
    /// How much may be owed, in nanoseconds.
    burst: u64,
    /// When everything that was taken is paid, in nanoseconds after the start.
    paid_at: AtomicU64,
}

impl Bucket {
    /// With room for `burst` requests. A rate of 0 admits these, and then none in the life of an agent.
    fn full(rate: f64, burst: f64) -> Bucket {
        let seconds = (1.0 / rate).min(LIFETIME.as_secs_f64() / burst.max(1.0));
        let nanos = seconds * 1e9;
        Bucket {
            started: Instant::now(),
            cost: nanos as u64,
            burst: (nanos * burst) as u64,
            paid_at: AtomicU64::new(0),
        }
    }

    fn take(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let took = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
                let paid_at = paid_at.max(now).checked_add(self.cost)?;
                (paid_at - now <= self.burst).then_some(paid_at)
            });
        took.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(rates: &Rates, operation: Operation, tries: usize) -> usize {
        (0..tries)
            .filter(|_| rates.admit(operation).is_ok())
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate_each_for_itself() {
        let limits = RateLimits {
            mode: RateMode::Enforcing,
            reads: Some(5.0),
            writes: Some(0.0),
            ..RateLimits::default()
        };
        let rates = Rates::new(limits);
        assert_eq!(admitted(&rates, Operation::Read, 100), 50);
        assert_eq!(admitted(&rates, Operation::Write, 10), 0);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(admitted(&rates, Operation::Read, 100), 10);
        // The same limits again forgive nothing.
        rates.set(limits);
        assert_eq!(admitted(&rates, Operation::Read, 10), 0);
        rates.set(RateLimits {
            mode: RateMode::Permissive,
            ..limits
        });
        assert_eq!(admitted(&rates, Operation::Write, 10), 10);
        rates.set(RateLimits {
            reads: None,
            ..limits
        });
        assert_eq!(admitted(&rates, Operation::Read, 1000), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_rate_admits_one_now_and_then() {
        let rates = Rates::new(RateLimits {
            mode: RateMode::Enforcing,
            reads: None,
            writes: Some(0.05),
            ..RateLimits::default()
        });
        assert_eq!(admitted(&rates, Operation::Write, 10), 1);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(admitted(&rates, Operation::Write, 10), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_passed_on_has_a_rate_of_its_own() {
        let passed_on = |rates: &Rates| (0..100).filter(|_| rates.pass_on().is_ok()).count();
        let rates = Rates::default();
        assert_eq!(passed_on(&rates), 100);
        let limited = |rate, burst| RateLimits {
            passed_on: PassedOn { rate, burst },
            ..RateLimits::default()
        };
        rates.set(limited(Some(2.0), 7));
        assert_eq!(passed_on(&rates), 7);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(passed_on(&rates), 4);
        rates.set(limited(Some(0.0), 7));
        assert_eq!(passed_on(&rates), 7);
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert_eq!(passed_on(&rates), 0);
        rates.set(limited(Some(100.0), 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(passed_on(&rates), 0, "with no burst none comes");
    }
}
