//! From jobs to allocations: which instances a job is short of, which must go, and where the new ones run.
//!
//! Everything here is a pure function of a snapshot of the state, the time and the seed it is given.
//!
//! * [`reconcile`] compares what a job asks for with its allocations, and says what to stop, what is missing,
//!   and when to look again.
//! * [`ClusterView`] knows what each node has left; it is kept up to date change by change.
//! * [`Scheduler::place`] finds the node for what is missing, and says why there, or why nowhere.
//! * [`Round::schedule`] puts these together for one job, into a [`Plan`](wharf_registry::command::Plan).

#![forbid(unsafe_code)]

mod cluster;
mod feasibility;
mod place;
mod random;
mod reconcile;
mod schedule;
mod score;

pub use cluster::{Candidate, ClusterView};
pub use feasibility::{Dimension, Lack, Nowhere};
pub use place::{Ask, Placed, Scheduler};
pub use random::Random;
pub use reconcile::{Input, Missing, Reconciled, reconcile, reschedule_delay};
pub use schedule::{Round, Scheduled, Unplaced};
pub use score::{BinPacking, JobAntiAffinity, ReschedulePenalty, Scorer, Scoring};

#[cfg(test)]
mod tests;
