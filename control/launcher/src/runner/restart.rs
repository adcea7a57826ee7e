//! When a task that ended by itself is started again. Pure: the clock is an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_registry::model::platform::{Restart, RestartMode};

/// The restarts of one task that still count, as milliseconds since 1970, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct History(Vec<u64>);

/// What follows from an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    After(Duration),
    /// The instance has failed.
    Fail,
}

impl History {
    /// Decides at `now`, and remembers a restart.
    pub(crate) fn decide(&mut self, policy: &Restart, now: u64) -> Decision {
        let interval = millis(policy.interval.to_std());
        self.0.retain(|at| now.saturating_sub(*at) < interval);
        let earlier = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let wait = if earlier < policy.attempts {
            policy.delay_after(earlier)
        } else {
            match (policy.mode, self.0.first()) {
                (RestartMode::Fail, _) => return Decision::Fail,
                // The oldest leaves the interval, and makes room for one.
                (RestartMode::Delay, Some(oldest)) => {
                    Duration::from_millis((oldest + interval).saturating_sub(now))
                }
                // No attempts at all, but delay asked for.
                (RestartMode::Delay, None) => Duration::from_millis(interval),
            }
        };
        self.0.push(now + millis(wait));
        // In the mode `delay` at most `attempts` count; more are never looked at.
        let excess = self.0.len().saturating_sub(policy.attempts.max(1) as usize);
        self.0.drain(..excess);
        Decision::After(wait)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(attempts: u32, mode: RestartMode) -> Restart {
        serde_json::from_value(serde_json::json!({
            "Attempts": attempts, "Interval": "10s", "Delay": "1s", "MaxDelay": "3s",
            "Mode": if mode == RestartMode::Fail { "fail" } else { "delay" },
        }))
        .unwrap()
    }

    #[test]
    fn pauses_double_and_attempts_end() {
        let policy = policy(3, RestartMode::Fail);
        let mut history = History::default();
        let waits: Vec<Decision> = (0..4).map(|at| history.decide(&policy, at * 100)).collect();
        let after = |seconds| Decision::After(Duration::from_secs(seconds));
        assert_eq!(waits, [after(1), after(2), after(3), Decision::Fail]);
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let policy = policy(1, RestartMode::Fail);
        let mut history = History::default();
        assert_eq!(
            history.decide(&policy, 0),
            Decision::After(Duration::from_secs(1))
        );
        assert_eq!(history.decide(&policy, 5_000), Decision::Fail);
        assert_eq!(
            history.decide(&policy, 11_001),
            Decision::After(Duration::from_secs(1))
        );
    }

    #[test]
    fn the_other_mode_waits_for_the_interval_and_never_gives_up() {
        let policy = policy(1, RestartMode::Delay);
        let mut history = History::default();
        assert_eq!(
            history.decide(&policy, 0),
            Decision::After(Duration::from_secs(1))
        );
        assert_eq!(
            history.decide(&policy, 3_000),
            Decision::After(Duration::from_secs(8))
        );
    }

    #[test]
    fn no_attempts_are_none() {
        let mut history = History::default();
        assert_eq!(
            history.decide(&policy(0, RestartMode::Fail), 0),
            Decision::Fail
        );
    }

    proptest! {
        /// At most `attempts` restarts begin in any interval, in either mode.
        #[test]
        fn restarts_are_bounded(attempts in 1u32..4, fail: bool, ends in proptest::collection::vec(0u64..4000, 1..40)) {
            let policy = policy(attempts, if fail { RestartMode::Fail } else { RestartMode::Delay });
            let mut history = History::default();
            let (mut now, mut starts) = (0, Vec::new());
            for lived in ends {
                now += lived;
                match history.decide(&policy, now) {
                    Decision::After(wait) => {
                        now += millis(wait);
                        starts.push(now);
                    }
                    Decision::Fail => break,
                }
            }
            for window in starts.windows(attempts as usize + 1) {
                prop_assert!(window[attempts as usize] - window[0] >= 10_000);
            }
        }
    }
}
