//! Who holds which lease, and what is due of those that broke. Pure: the time comes in, what is to
//! be done comes out.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wharf_registry::model::Str;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long the instance still counts after its stream broke.
    pub(super) hold: Duration,
    /// How long it stays registered after that.
    pub(super) remove_after: Duration,
}

/// One holding of a lease. A later one for the same instance has another generation.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) generation: u64,
    /// Cancelled when another stream takes the instance over.
    pub(super) superseded: CancellationToken,
}

/// What happens to an instance whose lease broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    TurnCritical,
    Remove,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    leases: HashMap<Str, Lease>,
    /// Broken leases by the time of their next step.
    due: BTreeSet<(Instant, Str)>,
    last_generation: u64,
}

#[derive(Debug)]
struct Lease {
    grant: Grant,
    terms: Terms,
    /// The next step and its time; `None` while a stream holds the lease.
    next: Option<(Instant, Step)>,
}

impl Table {
    /// Grants the lease of an instance, away from whoever holds it.
    pub(super) fn open(&mut self, id: &Str, terms: Terms) -> Grant {
        self.forget(id);
        self.last_generation += 1;
        let grant = Grant {
            generation: self.last_generation,
            superseded: CancellationToken::new(),
        };
        let lease = Lease {
            grant: grant.clone(),
            terms,
            next: None,
        };
        self.leases.insert(id.clone(), lease);
        grant
    }

    /// Whether this is the holding that counts.
    pub(super) fn is_current(&self, id: &str, generation: u64) -> bool {
        self.leases
            .get(id)
            .is_some_and(|lease| lease.grant.generation == generation)
    }

    /// Whether a stream holds the lease of this instance.
    pub(super) fn is_held(&self, id: &str) -> bool {
        self.leases
            .get(id)
            .is_some_and(|lease| lease.next.is_none())
    }

    /// The stream of a holding broke. Of an earlier holding that means nothing.
    pub(super) fn broke(&mut self, id: &Str, generation: u64, now: Instant) {
        if let Some(lease) = self.leases.get_mut(id)
            && lease.grant.generation == generation
            && lease.next.is_none()
        {
            let at = now + lease.terms.hold;
            lease.next = Some((at, Step::TurnCritical));
            self.due.insert((at, id.clone()));
        }
    }

    /// The instance is no longer under a lease. Whoever holds it is told.
    pub(super) fn forget(&mut self, id: &Str) {
        if let Some(lease) = self.leases.remove(id) {
            lease.grant.superseded.cancel();
            if let Some((at, _)) = lease.next {
                self.due.remove(&(at, id.clone()));
            }
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next step that is due, as taken. A lease is over with its last.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Str, Step)> {
        let (at, id) = self.due.first().filter(|(at, _)| *at <= now)?.clone();
        self.due.pop_first();
        let lease = self.leases.get_mut(&id)?;
        let (_, step) = lease.next?;
        match step {
            Step::TurnCritical => {
                let at = at + lease.terms.remove_after;
                lease.next = Some((at, Step::Remove));
                self.due.insert((at, id.clone()));
            }
            Step::Remove => {
                self.leases.remove(&id);
            }
        }
        Some((id, step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        hold: Duration::from_secs(5),
        remove_after: Duration::from_secs(60),
    };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_broken_lease_turns_critical_and_is_removed_in_its_time() {
        let (mut table, now) = (Table::default(), Instant::now());
        let id = Str::from("web-1");
        let grant = table.open(&id, TERMS);
        assert_eq!(
            (table.next_due(), table.take_due(now + secs(1000))),
            (None, None)
        );
        table.broke(&id, grant.generation, now);
        table.broke(&id, grant.generation, now + secs(1));
        assert_eq!(table.next_due(), Some(now + secs(5)), "it breaks once");
        assert_eq!(table.take_due(now + secs(4)), None);
        assert_eq!(
            table.take_due(now + secs(9)),
            Some((id.clone(), Step::TurnCritical))
        );
        assert_eq!(
            table.next_due(),
            Some(now + secs(65)),
            "counted from when it was due"
        );
        assert_eq!(table.take_due(now + secs(65)), Some((id, Step::Remove)));
        assert_eq!((table.leases.len(), table.next_due()), (0, None));
    }

    #[test]
    fn without_hold_everything_is_due_at_once() {
        let (mut table, now) = (Table::default(), Instant::now());
        let terms = Terms {
            hold: Duration::ZERO,
            remove_after: Duration::ZERO,
        };
        let grant = table.open(&"a".into(), terms);
        table.broke(&"a".into(), grant.generation, now);
        let steps: Vec<_> = std::iter::from_fn(|| table.take_due(now))
            .map(|(_, step)| step)
            .collect();
        assert_eq!(steps, [Step::TurnCritical, Step::Remove]);
    }

    #[test]
    fn another_stream_takes_over_without_a_gap() {
        let (mut table, now) = (Table::default(), Instant::now());
        let id = Str::from("web-1");
        let first = table.open(&id, TERMS);
        table.broke(&id, first.generation, now);
        let second = table.open(&id, TERMS);
        assert_eq!(table.next_due(), None, "nothing is due any more");
        assert!(
            !table.is_current(&id, first.generation) && table.is_current(&id, second.generation)
        );

        let third = table.open(&id, TERMS);
        assert!(second.superseded.is_cancelled(), "the holder is told");
        table.broke(&id, second.generation, now);
        assert_eq!(
            table.next_due(),
            None,
            "it was no longer the second's to break"
        );
        assert!(!third.superseded.is_cancelled());
        table.forget(&id);
        assert!(third.superseded.is_cancelled());
        table.broke(&id, third.generation, now);
        assert_eq!((table.leases.len(), table.next_due()), (0, None));
    }
}
