//! How good a node is for an instance.
//!
//! Each scorer judges one thing, from -1 to 1, and keeps out of what does not concern it. A node's score is the
//! weighted mean of those that spoke. Constraints, affinities and spread come in as further scorers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use wharf_registry::model::Str;

use crate::{Ask, Candidate};

/// One point of view on a node.
pub trait Scorer: fmt::Debug + Send + Sync {
    /// What the score is called where a placement is explained.
    fn name(&self) -> &'static str;

    /// From -1 (avoid) to 1 (prefer); `None`: nothing to say.
    fn score(&self, ask: &Ask<'_>, candidate: &Candidate) -> Option<f64>;
}

/// The scorers with their weights.
#[derive(Clone, Debug)]
pub struct Scoring(Vec<(Arc<dyn Scorer>, f64)>);

impl Default for Scoring {
    fn default() -> Self {
        Scoring::new()
            .with(BinPacking, 1.0)
            .with(JobAntiAffinity, 1.0)
            .with(ReschedulePenalty, 1.0)
    }
}

impl Scoring {
    /// Without any scorer: every node is as good.
    pub fn new() -> Scoring {
        Scoring(Vec::new())
    }

    pub fn with(mut self, scorer: impl Scorer + 'static, weight: f64) -> Scoring {
        self.0.push((Arc::new(scorer), weight));
        self
    }

    /// Each score by name, and their weighted mean.
    pub(crate) fn score(&self, ask: &Ask<'_>, candidate: &Candidate) -> (BTreeMap<Str, f64>, f64) {
        let mut scores = BTreeMap::new();
        let (mut sum, mut weights) = (0.0, 0.0);
        for (scorer, weight) in &self.0 {
            if let Some(score) = scorer.score(ask, candidate) {
                let score = score.clamp(-1.0, 1.0);
                scores.insert(scorer.name().into(), score);
                sum += score * weight;
                weights += weight;
            }
        }
        let mean = if weights > 0.0 { sum / weights } else { 0.0 };
        (scores, mean)
    }
}

/// Prefers nodes that are full already, so that large instances find room elsewhere: 1 for a node that the
/// instance fills, 0 for an empty one. The best fit of Google's cluster trace work as Nomad documents it.
#[derive(Clone, Copy, Debug)]
pub struct BinPacking;

impl Scorer for BinPacking {
    fn name(&self) -> &'static str {
        "binpack"
    }

    fn score(&self, ask: &Ask<'_>, candidate: &Candidate) -> Option<f64> {
        let free = |free: u64, needed: u64, total: u64| match total {
            0 => 0.0,
            total => free.saturating_sub(needed) as f64 / total as f64,
        };
        let (total, needed) = (candidate.total(), ask.resources);
        let cpu = free(candidate.free_cpu(), needed.cpu, total.cpu);
        let memory = free(
            candidate.free_memory_mb(),
            needed.memory_mb,
            total.memory_mb,
        );
        Some((20.0 - 10f64.powf(cpu) - 10f64.powf(memory)) / 18.0)
    }
}

/// Avoids nodes that have instances of the same group already.
#[derive(Clone, Copy, Debug)]
pub struct JobAntiAffinity;

impl Scorer for JobAntiAffinity {
    fn name(&self) -> &'static str {
        "job-anti-affinity"
    }

    fn score(&self, ask: &Ask<'_>, candidate: &Candidate) -> Option<f64> {
        let here = candidate.count_of(ask.job, &ask.group.name);
        (here > 0).then(|| -f64::from(here + 1) / f64::from(ask.group.count.max(1)))
    }
}

/// Avoids the node on which this instance failed last.
#[derive(Clone, Copy, Debug)]
pub struct ReschedulePenalty;

impl Scorer for ReschedulePenalty {
    fn name(&self) -> &'static str {
        "reschedule-penalty"
    }

    fn score(&self, ask: &Ask<'_>, candidate: &Candidate) -> Option<f64> {
        let node = candidate.node()?;
        (ask.avoid == Some(&node.id)).then_some(-1.0)
    }
}
