//! The teller's side of one follower.

use std::{collections::BTreeSet, sync::Arc};

use super::{News, Topic, news};
use crate::{view::View, watch::WatchKey};

/// What one follower was told: always the difference between two views, that of which it was told last, and the
/// newest. So one that is slow is told less often, never from a queue.
#[derive(Debug)]
pub struct Feed {
    /// The state as of which everything in `topics` was told.
    view: Arc<View>,
    topics: BTreeSet<Topic>,
    /// Followed, and not told yet.
    fresh: BTreeSet<Topic>,
}

impl Feed {
    /// Of somebody who follows nothing yet.
    pub fn new(view: Arc<View>) -> Feed {
        Feed {
            view,
            topics: BTreeSet::new(),
            fresh: BTreeSet::new(),
        }
    }

    /// The topic is told whole next. Who asks for one again has given it up in between.
    pub fn follow(&mut self, topic: Topic) {
        self.topics.remove(&topic);
        self.fresh.insert(topic);
    }

    pub fn unfollow(&mut self, topic: &Topic) {
        self.topics.remove(topic);
        self.fresh.remove(topic);
    }

    /// How many topics are followed.
    pub fn len(&self) -> usize {
        self.topics.len() + self.fresh.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a topic that has not been told.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// The watch keys that announce that there is something to tell. To be watched before the view is taken.
    pub fn keys(&self) -> impl Iterator<Item = WatchKey> {
        self.topics.iter().chain(&self.fresh).flat_map(Topic::keys)
    }

    /// The view that was told last.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// What is to be told of `view`, which is no older than the last one.
    pub fn tell(&mut self, view: Arc<View>) -> Vec<News> {
        let earlier = std::mem::replace(&mut self.view, view);
        let now = &self.view;
        let old = self.topics.iter();
        let old = old.filter_map(|topic| news(topic, Some(&earlier), now));
        let new = self.fresh.iter();
        let new = new.filter_map(|topic| news(topic, None, now));
        let told = old.chain(new).collect();
        self.topics.append(&mut self.fresh);
        told
    }
}
