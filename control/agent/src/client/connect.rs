//! Which server, and when to go to another.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::seq::SliceRandom as _;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wharf_registry::Mirror;

use super::{
    Ask, Shared,
    session::{End, Session},
};
use crate::servers::{Complaints, lookup};

/// Pauses between two rounds over all servers, none of which takes this agent.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long to wait for the welcome of a server that took the connection: while every server that is stopped is tried,
/// the lease runs. When nobody welcomes, all may be slow, and each round waits twice as long.
pub(crate) const FIRST_WELCOME: Duration = Duration::from_secs(2);
pub(crate) const LAST_WELCOME: Duration = Duration::from_secs(12);

/// Keeps a session, with one server after the other.
pub(super) struct Connector {
    pub(super) datacenter: String,
    pub(super) shared: Arc<Shared>,
    pub(super) mirror: Mirror,
    pub(super) asked: mpsc::Receiver<Ask>,
    /// The cluster of the first server that took this agent. It belongs to no other while it runs.
    pub(super) cluster: Option<Uuid>,
    complaints: Complaints,
}

impl Connector {
    pub(super) fn new(
        datacenter: String,
        shared: Arc<Shared>,
        mirror: Mirror,
        asked: mpsc::Receiver<Ask>,
    ) -> Connector {
        Connector {
            datacenter,
            shared,
            mirror,
            asked,
            cluster: None,
            complaints: Complaints::default(),
        }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep_session() => {}
            () = stop.cancelled() => {}
        }
        self.shared.link.send_replace(None);
    }

    async fn keep_session(&mut self) {
        let mut pause = FIRST_PAUSE;
        let mut welcome_within = FIRST_WELCOME;
        // The server that was left last: tried again after all others.
        let mut left = None;
        loop {
            for address in self.candidates(left.take()).await {
                let Some(end) = self.session_with(&address, welcome_within).await else {
                    continue;
                };
                (pause, welcome_within) = (FIRST_PAUSE, FIRST_WELCOME);
                match end {
                    End::Lost(reason) => {
                        tracing::info!(address, reason, "the session with a server is over");
                    }
                    End::Moving(reason) => {
                        tracing::debug!(address, reason, "going to another server")
                    }
                    End::Over => std::future::pending().await,
                }
                left = Some(address);
                break;
            }
            if left.is_none() {
                // Not all agents at the same moment.
                sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                pause = (pause * 2).min(LAST_PAUSE);
                welcome_within = (welcome_within * 2).min(LAST_WELCOME);
            }
        }
    }

    /// One session from beginning to end; `None` where there was none.
    async fn session_with(&mut self, address: &str, welcome_within: Duration) -> Option<End> {
        match Session::open(self, address, welcome_within).await {
            Ok(session) => {
                let end = session.run(self).await;
                self.shared.link.send_replace(None);
                Some(end)
            }
            Err(error) if error.is_refusal => {
                self.complaints.warn(&format!(
                    "the server at {address} does not take this agent: {}",
                    error.reason
                ));
                None
            }
            Err(error) => {
                tracing::debug!(
                    address,
                    reason = error.reason,
                    "no session with this server"
                );
                None
            }
        }
    }

    /// Where to try, in an order of its own for every agent and every time.
    async fn candidates(&self, left: Option<String>) -> Vec<String> {
        let known: BTreeSet<String> = {
            let servers = self.shared.servers.borrow();
            let members = servers.members.iter();
            members.map(|member| member.address.clone()).collect()
        };
        let mut first: Vec<String> = known.iter().cloned().collect();
        first.shuffle(&mut rand::rng());
        // Names may take long to look up, or for ever: they are the last resort once servers are known.
        let mut rest = Vec::new();
        if first.is_empty() || left.is_none() {
            let places = self.shared.places().clone();
            let places = lookup(&places, self.shared.default_port, &self.complaints).await;
            rest = places
                .into_iter()
                .filter(|place| !known.contains(place))
                .collect();
            rest.shuffle(&mut rand::rng());
            // None of them may be a server any more.
            let mut before = self.shared.remembered_places.clone();
            before.shuffle(&mut rand::rng());
            before.retain(|place| !known.contains(place) && !rest.contains(place));
            rest.append(&mut before);
        }
        first.extend(rest);
        if let Some(left) = left {
            first.retain(|address| *address != left);
            first.push(left);
        }
        first
    }
}
