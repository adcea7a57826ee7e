//! Which instance serves the next request.
//!
//! Pure: weights, loads, the turn and the random numbers are passed in, an index comes out. The default is the power
//! of two choices over requests in flight (Mitzenmacher 2001): draw two instances, take the less loaded. It needs no
//! global order, so workers need not agree, and it does not stampede onto the one idle instance.

mod rng;
#[cfg(test)]
mod tests;

pub(crate) use rng::Rng;

/// How a cluster's instances take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    LeastRequest,
    RoundRobin,
    Random,
}

impl Policy {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
        }
    }
}

/// The draw of one cluster, prepared when its snapshot is built.
#[derive(Debug)]
pub(crate) struct Balancer {
    policy: Policy,
    len: usize,
    /// `ends[i]` is the sum of the weights up to and with `i`. `None` when all weights are equal, the usual case.
    ends: Option<Box<[u64]>>,
    /// The sum of the weights, or the number of instances when the weights are equal.
    total: u64,
    /// Round robin walks the weights in steps of this size. It shares no factor with `total`, so `total` turns visit
    /// each instance exactly as often as it weighs, and near the golden ratio, so a heavy one is not hit in a row.
    stride: u64,
}

impl Balancer {
    /// A weight of 0 counts as 1.
    pub(crate) fn new(policy: Policy, weights: &[u32]) -> Self {
        let weight = |w: u32| u64::from(w.max(1));
        let equal = weights
            .windows(2)
            .all(|pair| weight(pair[0]) == weight(pair[1]));
        if equal {
            return Self {
                policy,
                len: weights.len(),
                ends: None,
                total: weights.len() as u64,
                stride: 1,
            };
        }
        let ends: Box<[u64]> = weights
            .iter()
            .scan(0, |sum, &w| {
                *sum += weight(w);
                Some(*sum)
            })
            .collect();
        let total = ends.last().copied().unwrap_or(0);
        Self {
            policy,
            len: weights.len(),
            ends: Some(ends),
            total,
            stride: golden_stride(total),
        }
    }

    /// Picks one of the instances for which `usable` holds, or `None` when it holds for none. `load` is the number of
    /// requests in flight, `turn` a counter that grows by one with each pick of this cluster.
    pub(crate) fn pick(
        &self,
        rng: &Rng,
        turn: u64,
        load: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.len < 2 {
            return (self.len == 1 && usable(0)).then_some(0);
        }
        let choice = match self.policy {
            Policy::LeastRequest => return self.less_loaded(rng, load, usable),
            Policy::Random => self.draw(rng),
            Policy::RoundRobin => self
                .at(((u128::from(turn) * u128::from(self.stride)) % u128::from(self.total)) as u64),
        };
        if usable(choice) {
            Some(choice)
        } else {
            self.any(rng, usable)
        }
    }

    fn less_loaded(
        &self,
        rng: &Rng,
        load: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let a = self.draw(rng);
        let b = self.draw_other(rng, a);
        match (usable(a), usable(b)) {
            (true, true) => {
                // Which has the shorter queue for its size? A tie keeps the first, whose draw already follows the weights.
                let cost = |i: usize, j: usize| u64::from(load(i)).saturating_mul(self.weight(j));
                Some(if cost(a, b) <= cost(b, a) { a } else { b })
            }
            (true, false) => Some(a),
            (false, true) => Some(b),
            (false, false) => self.any(rng, usable),
        }
    }

    /// An instance, by weight.
    fn draw(&self, rng: &Rng) -> usize {
        self.at(rng.below(self.total))
    }

    /// An instance by weight, another one than `not`.
    fn draw_other(&self, rng: &Rng, not: usize) -> usize {
        // Draw from the line of weights with the segment of `not` cut out.
        let start = self.start(not);
        let width = self.weight(not);
        let point = rng.below(self.total - width);
        self.at(if point < start { point } else { point + width })
    }

    /// The rare path: most instances are not usable. One pass, a weighted draw among those that are.
    fn any(&self, rng: &Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut seen = 0;
        let mut chosen = None;
        for i in (0..self.len).filter(|&i| usable(i)) {
            seen += self.weight(i);
            if rng.below(seen) < self.weight(i) {
                chosen = Some(i);
            }
        }
        chosen
    }

    /// The instance whose segment of the line of weights holds `point`.
    fn at(&self, point: u64) -> usize {
        match &self.ends {
            None => point as usize,
            Some(ends) => ends.partition_point(|&end| end <= point),
        }
    }

    fn start(&self, i: usize) -> u64 {
        match &self.ends {
            None => i as u64,
            Some(_) if i == 0 => 0,
            Some(ends) => ends[i - 1],
        }
    }

    fn weight(&self, i: usize) -> u64 {
        match &self.ends {
            None => 1,
            Some(ends) => ends[i] - self.start(i),
        }
    }
}

/// A step near `total / phi` without a common factor with `total`.
fn golden_stride(total: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let near = (total as f64 * 0.618_033_988_749_894_9) as u64;
    (near.max(1)..)
        .find(|&step| gcd(step, total) == 1)
        .unwrap_or(1)
}
