//! What this agent follows, and for how long. Pure.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use wharf_registry::mirror::Topic;

/// How long a topic is followed that nobody asks for any more and nobody watches.
const IDLE: Duration = Duration::from_secs(300);
/// How many are followed at once. Beyond that the one that was asked for the longest time ago goes: names that do not
/// exist are asked for too.
const MOST: usize = 4096;

#[derive(Debug)]
struct Followed {
    /// It has been told once: what is known of it is complete.
    told: bool,
    last_used: Instant,
}

/// The topics of this agent.
#[derive(Debug, Default)]
pub(super) struct Topics {
    followed: BTreeMap<Topic, Followed>,
}

impl Topics {
    /// Somebody wants these. Returns those that were not followed before.
    pub(super) fn want(&mut self, topics: &[Topic], now: Instant) -> Vec<Topic> {
        let mut new = Vec::new();
        for topic in topics {
            match self.followed.get_mut(topic) {
                Some(followed) => followed.last_used = now,
                None => {
                    let followed = Followed {
                        told: false,
                        last_used: now,
                    };
                    self.followed.insert(topic.clone(), followed);
                    new.push(topic.clone());
                }
            }
        }
        new
    }

    pub(super) fn are_told(&self, topics: &[Topic]) -> bool {
        topics
            .iter()
            .all(|topic| self.followed.get(topic).is_some_and(|one| one.told))
    }

    /// A topic has come. Whether it is the first time; false also for one that is not followed any more.
    pub(super) fn told(&mut self, topic: &Topic) -> bool {
        match self.followed.get_mut(topic) {
            Some(followed) => !std::mem::replace(&mut followed.told, true),
            None => false,
        }
    }

    pub(super) fn is_followed(&self, topic: &Topic) -> bool {
        self.followed.contains_key(topic)
    }

    pub(super) fn are_too_many(&self) -> bool {
        self.followed.len() > MOST
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Topic> {
        self.followed.keys()
    }

    /// Gives up what is not needed any more, and returns it.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        is_watched: impl Fn(&Topic) -> bool,
    ) -> Vec<Topic> {
        let mut idle: Vec<(Instant, Topic)> = self
            .followed
            .iter()
            .filter(|(topic, _)| !is_watched(topic))
            .map(|(topic, followed)| (followed.last_used, topic.clone()))
            .collect();
        idle.sort();
        let too_many = self.followed.len().saturating_sub(MOST);
        let mut given_up = Vec::new();
        for (at, (last_used, topic)) in idle.into_iter().enumerate() {
            if at < too_many || now >= last_used + IDLE {
                self.followed.remove(&topic);
                given_up.push(topic);
            }
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Topic {
        Topic::service(name)
    }

    #[tokio::test]
    async fn a_topic_is_there_when_it_was_told_and_until_nobody_wants_it() {
        let now = Instant::now();
        let mut topics = Topics::default();
        let (web, db) = (service("web"), service("db"));
        let both = [web.clone(), db.clone()];
        assert_eq!(topics.want(&both, now), both);
        assert_eq!(topics.want(&both, now), []);
        assert!(!topics.are_told(&both));
        assert!(topics.told(&web) && !topics.told(&web));
        assert!(topics.told(&db) && topics.are_told(&both));
        assert!(!topics.told(&service("other")));

        let later = now + IDLE;
        topics.want(std::slice::from_ref(&db), now + IDLE / 2);
        assert_eq!(topics.expire(later, |_| true), []);
        assert_eq!(topics.expire(later, |_| false), std::slice::from_ref(&web));
        assert!(topics.are_told(&[db]) && !topics.are_told(&[web]));
    }

    #[tokio::test]
    async fn of_too_many_the_oldest_go() {
        let now = Instant::now();
        let mut topics = Topics::default();
        for n in 0..MOST + 3 {
            let at = now + Duration::from_millis(n as u64);
            topics.want(&[service(&format!("s{n}"))], at);
        }
        let gone = topics.expire(now + Duration::from_secs(60), |topic| {
            *topic == service("s1")
        });
        assert_eq!(gone, [service("s0"), service("s2"), service("s3")]);
    }
}
