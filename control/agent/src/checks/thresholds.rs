//! When results become a status. Pure.

use wharf_registry::model::CheckStatus;

use crate::local::Thresholds;

/// Counts results in a row.
#[derive(Debug)]
pub(super) struct Counter {
    thresholds: Thresholds,
    successes: u32,
    failures: u32,
}

impl Counter {
    pub(super) fn new(thresholds: Thresholds) -> Counter {
        Counter {
            thresholds,
            successes: 0,
            failures: 0,
        }
    }

    /// The status after one more result; `None`: it stays what it is, as there were too few in a row.
    ///
    /// As in Consul a warning counts as a success: the service answered.
    pub(super) fn observe(&mut self, result: CheckStatus) -> Option<CheckStatus> {
        let Thresholds {
            success_before_passing,
            failures_before_warning,
            failures_before_critical,
        } = self.thresholds;
        if result != CheckStatus::Critical {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            return (self.successes >= success_before_passing).then_some(result);
        }
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= failures_before_critical {
            Some(CheckStatus::Critical)
        } else if self.failures >= failures_before_warning.unwrap_or(failures_before_critical) {
            Some(CheckStatus::Warning)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use CheckStatus::{Critical, Passing, Warning};
    use proptest::prelude::*;

    use super::*;

    fn statuses(thresholds: Thresholds, results: &[CheckStatus]) -> Vec<Option<CheckStatus>> {
        let mut counter = Counter::new(thresholds);
        results
            .iter()
            .map(|&result| counter.observe(result))
            .collect()
    }

    #[test]
    fn without_thresholds_every_result_counts() {
        let results = [Passing, Warning, Critical, Passing];
        let expected = results.map(Some);
        assert_eq!(statuses(Thresholds::default(), &results), expected);
    }

    #[test]
    fn failures_turn_warning_and_then_critical() {
        let thresholds = Thresholds {
            success_before_passing: 2,
            failures_before_warning: Some(2),
            failures_before_critical: 3,
        };
        let results = [
            Critical, Critical, Critical, Critical, Passing, Passing, Critical,
        ];
        let expected = [
            None,
            Some(Warning),
            Some(Critical),
            Some(Critical),
            None,
            Some(Passing),
            None,
        ];
        assert_eq!(statuses(thresholds, &results), expected);
    }

    #[test]
    fn without_a_warning_threshold_there_is_no_warning_on_the_way() {
        let thresholds = Thresholds {
            failures_before_critical: 3,
            ..Thresholds::default()
        };
        let expected = [None, None, Some(Critical)];
        assert_eq!(statuses(thresholds, &[Critical; 3]), expected);
    }

    proptest! {
        /// A change of status needs the whole run of results that it asks for.
        #[test]
        fn a_status_follows_from_the_last_results_only(
            critical in 0u32..5, passing in 0u32..5,
            results in prop::collection::vec(prop_oneof![Just(Passing), Just(Critical)], 1..40),
        ) {
            let thresholds = Thresholds {
                success_before_passing: passing,
                failures_before_warning: None,
                failures_before_critical: critical,
            };
            let observed = statuses(thresholds, &results);
            for (index, status) in observed.iter().enumerate() {
                let last = results[index];
                let run = results[..=index].iter().rev().take_while(|&&r| r == last).count();
                let needed = if last == Critical { critical } else { passing };
                prop_assert_eq!(*status, (run as u32 >= needed).then_some(last));
            }
        }
    }
}
