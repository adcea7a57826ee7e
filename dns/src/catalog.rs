//! Where the views come from that questions are answered from.
//!
//! A server of the cluster has everything at hand. A client agent has what it follows: of what it is asked for the
//! first time it has to hear first.

use std::{cell::RefCell, fmt, net::IpAddr, pin::Pin, sync::Arc};

use wharf_registry::{Registry, View, mirror::Topic};

/// A future that a [`Partial`] catalog gives.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A source of views.
pub trait Catalog: fmt::Debug + Send + Sync + 'static {
    /// The newest view. Must be cheap.
    fn view(&self) -> Arc<View>;

    /// How to get at what the views do not have; `None` if they have everything.
    fn partial(&self) -> Option<&dyn Partial> {
        None
    }
}

/// What a catalog can do that has only what it follows.
pub trait Partial: Send + Sync {
    /// Whether the views have these topics. They are kept for as long as somebody asks now and then.
    fn has(&self, topics: &[Topic]) -> bool;

    /// Follows topics, and completes when the views have them. False: that cannot be had now.
    fn follow(&self, topics: Vec<Topic>) -> BoxFuture<'_, bool>;

    /// A view that knows who has this address, and nothing else. `None`: that cannot be had now.
    fn reverse(&self, address: IpAddr) -> BoxFuture<'_, Option<Arc<View>>>;
}

impl Catalog for Registry {
    fn view(&self) -> Arc<View> {
        Registry::view(self)
    }
}

/// What was looked up for an answer.
#[derive(Debug, Default)]
pub struct Wanted {
    topics: RefCell<Vec<Topic>>,
    address: RefCell<Option<IpAddr>>,
}

impl Wanted {
    pub(crate) fn topic(&self, topic: Topic) {
        let mut topics = self.topics.borrow_mut();
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }

    pub(crate) fn address(&self, address: IpAddr) {
        self.address.replace(Some(address));
    }

    /// The topics, and the address whose holder was looked for.
    pub fn take(self) -> (Vec<Topic>, Option<IpAddr>) {
        (self.topics.into_inner(), self.address.into_inner())
    }
}
