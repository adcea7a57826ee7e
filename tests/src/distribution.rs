//! How long something took, many times.

use std::{fmt, time::Duration};

/// Durations, and what is said of them in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    sorted: Vec<Duration>,
}

impl Distribution {
    pub fn add(&mut self, duration: Duration) {
        let at = self.sorted.partition_point(|other| *other <= duration);
        self.sorted.insert(at, duration);
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// What so many percent of them do not exceed (nearest rank); zero without any.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    pub fn worst(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |duration: Duration| duration.as_secs_f64();
        write!(
            f,
            "median {:.2} s, p90 {:.2} s, worst {:.2} s of {}",
            seconds(self.median()),
            seconds(self.percentile(90)),
            seconds(self.worst()),
            self.count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let mut of = Distribution::default();
        assert_eq!((of.median(), of.worst()), (Duration::ZERO, Duration::ZERO));
        for n in [7, 1, 10, 3, 5, 2, 9, 4, 6, 8] {
            of.add(Duration::from_secs(n));
        }
        let seconds = |percent| of.percentile(percent).as_secs();
        assert_eq!([seconds(50), seconds(90), seconds(100)], [5, 9, 10]);
        assert_eq!(
            of.to_string(),
            "median 5.00 s, p90 9.00 s, worst 10.00 s of 10"
        );
    }
}
