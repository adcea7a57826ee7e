//! Which server, and when to go to another.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand::seq::SliceRandom as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
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

/// How many servers that do not answer are named.
const NAMED: usize = 8;
/// Connections that are not needed any more, and kept for their servers' sake.
const MAX_PARTING: usize = 4;

/// For how long a server that was of no use is tried after all others.
const AVOIDED_FOR: Duration = Duration::from_secs(30);

/// The servers that were left or tried in vain lately, the last one at the end: so each that is of no use costs its time
/// once. Those that are cut off from the others together take everybody in, and whoever avoids only the last one goes back
/// and forth between them until its lease is over.
#[derive(Debug)]
pub(crate) struct Left<S>(Vec<(S, Instant)>);

impl<S> Default for Left<S> {
    fn default() -> Left<S> {
        Left(Vec::new())
    }
}

impl<S: PartialEq> Left<S> {
    pub(crate) fn add(&mut self, server: S, now: Instant) {
        self.0.retain(|(other, _)| *other != server);
        self.0.push((server, now));
    }

    /// Puts them behind all others, the one that was left first before the rest of them.
    pub(crate) fn put_last(&mut self, now: Instant, servers: &mut Vec<S>) {
        self.0.retain(|(_, at)| now < *at + AVOIDED_FOR);
        for (left, _) in &self.0 {
            if let Some(at) = servers.iter().position(|server| server == left) {
                let left = servers.remove(at);
                servers.push(left);
            }
        }
    }
}

/// Keeps a session, with one server after the other.
pub(super) struct Connector {
    pub(super) datacenter: String,
    pub(super) shared: Arc<Shared>,
    pub(super) mirror: Mirror,
    pub(super) asked: mpsc::Receiver<Ask>,
    /// The cluster of the first server that took this agent. It belongs to no other while it runs.
    pub(super) cluster: Option<Uuid>,
    /// There was a session.
    was_welcome: bool,
    /// Who did not answer in this round, and why.
    silent: BTreeMap<String, String>,
    /// The connections of the session before, and of the last attempts at one. They are kept until there is another, so
    /// that their servers come to read that they were left, and do not find them broken.
    parting: VecDeque<Channel>,
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
            was_welcome: false,
            silent: BTreeMap::new(),
            parting: VecDeque::new(),
            complaints: Complaints::default(),
        }
    }

    /// Keeps a connection that is not needed any more for a while.
    pub(super) fn parts_with(&mut self, connection: Channel) {
        if self.parting.len() >= MAX_PARTING {
            self.parting.pop_front();
        }
        self.parting.push_back(connection);
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
        let mut left = Left::default();
        let mut just_left = false;
        loop {
            self.silent.clear();
            let mut candidates = self.candidates(!just_left).await;
            left.put_last(Instant::now(), &mut candidates);
            just_left = false;
            for address in candidates {
                let Some(end) = self.session_with(&address, welcome_within).await else {
                    left.add(address, Instant::now());
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
                left.add(address, Instant::now());
                just_left = true;
                break;
            }
            if !just_left {
                self.complain_of_silence();
                if !self.was_welcome {
                    self.shared.none_found.send_replace(true);
                }
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
                self.shared.none_found.send_replace(false);
                self.was_welcome = true;
                self.parting.clear();
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
                self.silent.insert(address.to_owned(), error.reason);
                None
            }
        }
    }

    /// After a round that found nobody: whoever was asked, with the reason.
    fn complain_of_silence(&self) {
        let silent = self.silent.iter().take(NAMED);
        let silent: Vec<String> = silent
            .map(|(address, reason)| format!("{address} ({reason})"))
            .collect();
        if !silent.is_empty() {
            let text = format!(
                "no server takes this agent, and it tries again: {}",
                silent.join(", ")
            );
            self.complaints.warn(&text);
        }
    }

    /// Where to try, in an order of its own for every agent and every time; `everywhere`: also where there may be servers
    /// that are not known.
    async fn candidates(&self, everywhere: bool) -> Vec<String> {
        let known: BTreeSet<String> = {
            let servers = self.shared.servers.borrow();
            let members = servers.members.iter();
            members.map(|member| member.address.clone()).collect()
        };
        let mut first: Vec<String> = known.iter().cloned().collect();
        first.shuffle(&mut rand::rng());
        // Names may take long to look up, or for ever: they are the last resort once servers are known.
        let mut rest = Vec::new();
        if first.is_empty() || everywhere {
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
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_left_lately_is_tried_last_and_the_last_one_after_all_others() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut left = Left::default();
        for (server, at) in [(4, 0), (5, 20), (4, 22)] {
            left.add(server, now + at * second);
        }
        let order = |left: &mut Left<u32>, at: u32| {
            let mut servers = vec![5, 1, 4, 2];
            left.put_last(now + at * second, &mut servers);
            servers
        };
        assert_eq!(order(&mut left, 24), [1, 2, 5, 4]);
        assert_eq!(order(&mut left, 51), [5, 1, 2, 4]);
        assert_eq!(order(&mut left, 60), [5, 1, 4, 2]);
    }
}
