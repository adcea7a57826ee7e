//! How many requests a second are served: Consul's `limits.request_limits`.
//!
//! Reads and writes have a bucket each, for all clients together. It holds ten seconds' worth, so that a burst after
//! a quiet time is no offence. What is about this agent alone, and what an operator needs to repair a cluster, is not
//! counted.

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

/// The limits in force, for everybody who serves requests.
#[derive(Clone, Debug, Default)]
pub struct Rates(Arc<ArcSwap<Inner>>);

#[derive(Debug)]
struct Inner {
    limits: RateLimits,
    reads: Option<Bucket>,
    writes: Option<Bucket>,
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
            _ => rate.map(Bucket::full),
        };
        Inner {
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
    fn full(rate: f64) -> Bucket {
        // A rate of 0 admits nothing: no time pays for a request.
        let cost = Duration::try_from_secs_f64(1.0 / rate).map_or(u64::MAX, |cost| {
            u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX)
        });
        let burst = Duration::from_secs_f64(BURST).as_nanos();
        Bucket {
            started: Instant::now(),
            cost,
            // Of less than one request in ten seconds, one may come.
            burst: u64::try_from(burst).unwrap_or(u64::MAX).max(match cost {
                u64::MAX => 0,
                cost => cost,
            }),
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
        });
        assert_eq!(admitted(&rates, Operation::Write, 10), 1);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(admitted(&rates, Operation::Write, 10), 1);
    }
}
