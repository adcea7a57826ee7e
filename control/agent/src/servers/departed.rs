//! Who was a member, and is none any more: to force out who has left already is no mistake.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long it is remembered who left: as long as Consul's gossip remembers it.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// How many are.
const KEPT: usize = 1024;

/// As this server saw it since it started.
#[derive(Debug, Default)]
pub struct Departed(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// At the last look.
    present: BTreeSet<String>,
    left: BTreeMap<String, Instant>,
}

impl Departed {
    /// Takes note of who is there now.
    pub(super) fn look(&self, now: Instant, present: impl Iterator<Item = String>) {
        let present: BTreeSet<String> = present.map(|name| name.to_lowercase()).collect();
        let mut known = self.lock();
        let before = std::mem::replace(&mut known.present, present);
        let Known { present, left } = &mut *known;
        left.retain(|name, at| now - *at < REMEMBERED && !present.contains(name));
        let gone = before.into_iter().filter(|name| !present.contains(name));
        for name in gone {
            if left.len() >= KEPT {
                break;
            }
            left.insert(name, now);
        }
    }

    /// Whether a node of this name was a member lately. To be asked about one that is none.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        let known = self.lock();
        // One that went after the last look counts too.
        known.left.contains_key(&name) || known.present.contains(&name)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_was_there_is_known_for_a_day() {
        let departed = Departed::default();
        let look = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            departed.look(Instant::now(), names);
        };
        look(&["s1", "S2", "s3"]);
        look(&["s1", "s3"]);
        assert!(departed.knows("s2") && departed.knows("S2") && departed.knows("s1"));
        assert!(!departed.knows("s4"));
        // It is back, and goes again later.
        look(&["s1", "s2"]);
        tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
        look(&["s1"]);
        tokio::time::advance(Duration::from_secs(2)).await;
        look(&["s1"]);
        assert!(departed.knows("s2") && !departed.knows("s3"));
        tokio::time::advance(REMEMBERED).await;
        look(&["s1"]);
        assert!(!departed.knows("s2"));
    }
}
