//! A network between servers that does what it is told: cut links, lose messages, let them wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::MutexGuard,
};

use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use wharf_tests::Chance;

use super::super::{process::Process, *};
use crate::log::Vote;

/// How long a message waits on a link that is cut, before the connection counts as broken: keepalive's patience.
const WAITS: Duration = Duration::from_secs(5);

/// A server that can be reached.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) consensus: Consensus,
    pub(super) process: Arc<Process>,
}

#[derive(Default)]
pub(super) struct Net {
    links: Mutex<Links>,
    healed: Notify,
    voted: Notify,
    trace: Option<Trace>,
}

#[derive(Default)]
struct Links {
    servers: BTreeMap<String, Host>,
    /// Messages from the first to the second do not get through.
    cut: BTreeSet<(ServerId, ServerId)>,
    /// They wait for the link, as those of a connection do. Otherwise they come back at once.
    waits: bool,
    /// One message of so many is lost.
    loss: Option<(Chance, u64)>,
    /// Each message is on its way for so many milliseconds at most.
    delay: Option<Chance>,
    /// How long a snapshot is on its way, and how many have arrived.
    snapshots_take: Duration,
    snapshots: usize,
    /// Who gives a vote is cut off from the candidate right after, once; and then it is here who it was.
    cut_voter: bool,
    voter: Option<ServerId>,
}

/// Everything that happened, in order: what a seed repeats.
pub(super) struct Trace {
    began: tokio::time::Instant,
    events: Mutex<Vec<String>>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    pub(super) fn traced() -> Net {
        let trace = Trace {
            began: tokio::time::Instant::now(),
            events: Mutex::default(),
        };
        Net {
            trace: Some(trace),
            ..Net::default()
        }
    }

    /// Writes down what happened.
    pub(super) fn note(&self, event: impl FnOnce() -> String) {
        if let Some(Trace { began, events }) = &self.trace {
            let event = format!("{:>9.3?} {}", began.elapsed(), event());
            events.lock().unwrap().push(event);
        }
    }

    pub(super) fn events(&self) -> Vec<String> {
        let trace = self.trace.as_ref();
        trace.map_or_else(Vec::new, |trace| trace.events.lock().unwrap().clone())
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap()
    }

    pub(super) fn attach(&self, address: &str, host: Host) {
        self.links().servers.insert(address.to_owned(), host);
    }

    pub(super) fn detach(&self, address: &str) {
        self.links().servers.remove(address);
    }

    /// Cuts every link between the two sides.
    pub(super) fn partition(&self, one: &[ServerId], other: &[ServerId]) {
        for a in one {
            for b in other {
                self.cut_one_way(*a, *b);
                self.cut_one_way(*b, *a);
            }
        }
    }

    pub(super) fn cut_one_way(&self, from: ServerId, to: ServerId) {
        self.links().cut.insert((from, to));
    }

    /// Whether messages on links that are cut wait for them.
    pub(super) fn let_wait(&self, waits: bool) {
        self.links().waits = waits;
    }

    pub(super) fn lose_one_of(&self, seed: u64, every: u64) {
        self.links().loss = Some((Chance::new(seed), every));
    }

    pub(super) fn heal(&self) {
        {
            let mut links = self.links();
            links.cut.clear();
            links.waits = false;
            links.loss = None;
            links.delay = None;
            links.cut_voter = false;
        }
        self.healed.notify_waiters();
    }

    pub(super) fn heal_between(&self, one: ServerId, other: ServerId) {
        {
            let mut links = self.links();
            links.cut.remove(&(one, other));
            links.cut.remove(&(other, one));
        }
        self.healed.notify_waiters();
    }

    pub(super) fn delay(&self, seed: u64) {
        self.links().delay = Some(Chance::new(seed));
    }

    pub(super) fn slow_snapshots(&self, take: Duration) {
        self.links().snapshots_take = take;
    }

    /// How many snapshots have been sent to their end.
    pub(super) fn snapshots(&self) -> usize {
        self.links().snapshots
    }

    pub(super) fn cut_next_voter(&self) {
        let mut links = self.links();
        links.cut_voter = true;
        links.voter = None;
    }

    /// Waits until somebody has given its vote and was cut off, and says who.
    pub(super) async fn cut_voter(&self) -> ServerId {
        loop {
            if let Some(voter) = self.links().voter.take() {
                return voter;
            }
            self.voted.notified().await;
        }
    }

    pub(super) fn hosts(&self) -> Vec<Host> {
        self.links().servers.values().cloned().collect()
    }

    pub(super) fn host(&self, address: &str) -> Option<Host> {
        self.links().servers.get(address).cloned()
    }

    /// Whether nothing is in the way from one to the other, and nothing gets lost there.
    pub(super) fn passes(&self, from: ServerId, to: ServerId) -> bool {
        !self.links().cut.contains(&(from, to))
    }

    /// A message is on its way; whether it arrives.
    pub(super) async fn arrives(&self, from: ServerId, to: ServerId) -> bool {
        let delay = {
            let mut links = self.links();
            if let Some((chance, every)) = &mut links.loss
                && chance.below(*every) == 0
            {
                return false;
            }
            let delay = links.delay.as_mut();
            delay.map(|chance| Duration::from_millis(chance.below(60)))
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let passable = async {
            loop {
                let healed = self.healed.notified();
                if self.passes(from, to) {
                    return true;
                }
                if !self.links().waits {
                    return false;
                }
                healed.await;
            }
        };
        let passable = tokio::time::timeout(WAITS, passable).await;
        passable.unwrap_or(false)
    }

    /// One server asks another. `None`: it did not get there; an error: there is no answer.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        from: ServerId,
        host: &Host,
        serve: impl Future<Output = T> + Send + 'static,
    ) -> Option<Result<T, ()>> {
        let to = host.consensus.id();
        if !self.arrives(from, to).await {
            return None;
        }
        let Ok(answer) = host.process.spawn(serve).await else {
            return Some(Err(()));
        };
        let arrives = self.arrives(to, from).await;
        Some(arrives.then_some(answer).ok_or(()))
    }

    fn has_voted(&self, envelope: &Envelope, request: &VoteRequest, answer: &VoteReply) {
        let mut links = self.links();
        let given = answer.granted && request.election != Election::Probe;
        if given && std::mem::take(&mut links.cut_voter) {
            let Envelope { from, to, .. } = *envelope;
            links.cut.extend([(from, to), (to, from)]);
            links.voter = Some(to);
            self.voted.notify_one();
        }
    }

    /// Delivers a message. Its receiver works it off whether or not the sender waits for the answer, which may be lost.
    async fn deliver<T, F>(
        self: &Arc<Self>,
        route: Route,
        what: &'static str,
        vote: Vote,
        serve: impl FnOnce(Host) -> F + Send + 'static,
    ) -> Result<T, TransportError>
    where
        F: Future<Output = Result<T, ReceiveError>> + Send + 'static,
        T: Send + 'static,
    {
        let Route {
            envelope, address, ..
        } = route;
        let Envelope { from, to, .. } = envelope;
        let unreachable = |reason: &str| TransportError::Unreachable {
            address: address.clone(),
            reason: reason.to_owned(),
        };
        let broken = |reason: String| TransportError::Broken {
            address: address.clone(),
            reason,
        };
        let host = self.host(&address);
        let host = host.ok_or_else(|| unreachable("nobody listens"))?;
        let net = self.clone();
        let served = host.process.clone().spawn(async move {
            if !net.arrives(from, to).await {
                return None;
            }
            if let Err(error) = host.consensus.check_envelope(&envelope) {
                return Some(Err(error));
            }
            net.note(|| format!("{what} {from} {to} {vote:?}"));
            Some(Ok(serve(host).await))
        });
        let answer = match served.await {
            Ok(Some(Ok(Ok(answer)))) => answer,
            Ok(Some(Ok(Err(error)))) => return Err(broken(error.to_string())),
            Ok(Some(Err(error))) => {
                return Err(TransportError::Refused {
                    address,
                    reason: error.to_string(),
                });
            }
            Ok(None) => return Err(unreachable("cut off")),
            Err(_) => return Err(broken("the server is gone".to_owned())),
        };
        match self.arrives(to, from).await {
            true => Ok(answer),
            false => Err(broken("the answer is lost".to_owned())),
        }
    }
}

/// The network as one server sees it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) net: Arc<Net>,
    pub(super) process: Arc<Process>,
    pub(super) own: ServerId,
}

impl Transport for Wire {
    fn who_is_at(&self, address: &str) -> BoxFuture<'_, Result<ServerId, TransportError>> {
        let unreachable = |reason: &str| TransportError::Unreachable {
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let (nobody, cut_off) = (unreachable("nobody listens"), unreachable("cut off"));
        let host = self.net.host(address);
        Box::pin(async move {
            let host = host.ok_or(nobody)?;
            let id = host.consensus.id();
            let asked = self.net.ask(self.own, &host, async move { id }).await;
            asked.and_then(Result::ok).ok_or(cut_off)
        })
    }

    fn vote(
        &self,
        route: Route,
        request: VoteRequest,
    ) -> BoxFuture<'_, Result<VoteReply, TransportError>> {
        let (envelope, net) = (route.envelope, self.net.clone());
        let what = match request.election {
            Election::Probe => "probe",
            Election::Campaign => "vote",
            Election::HandOver => "vote (hand over)",
        };
        let asked = request.clone();
        let serve = move |host: Host| async move {
            host.consensus.receive_vote(envelope.from, asked).await
        };
        Box::pin(async move {
            let answer = net.deliver(route, what, request.vote, serve).await?;
            net.has_voted(&envelope, &request, &answer);
            Ok(answer)
        })
    }

    fn heartbeat(
        &self,
        route: Route,
        request: Append,
    ) -> BoxFuture<'_, Result<HeartbeatReply, TransportError>> {
        let (from, vote) = (route.envelope.from, request.vote);
        let serve =
            move |host: Host| async move { host.consensus.receive_heartbeat(from, request).await };
        Box::pin(self.net.deliver(route, "heartbeat", vote, serve))
    }

    fn append(
        &self,
        route: Route,
        requests: BoxStream<Append>,
    ) -> BoxFuture<'_, Result<BoxStream<Result<AppendReply, TransportError>>, TransportError>> {
        Box::pin(async move {
            let Envelope { from, to, .. } = route.envelope;
            let address = route.address;
            let host = self.net.host(&address);
            let host = host.ok_or_else(|| TransportError::Unreachable {
                address: address.clone(),
                reason: "nobody listens".to_owned(),
            })?;
            if !self.net.arrives(from, to).await {
                return Err(TransportError::Unreachable {
                    address,
                    reason: "cut off".to_owned(),
                });
            }
            let broken = move |reason: String| TransportError::Broken {
                address: address.clone(),
                reason,
            };
            // What comes after a lost message is lost too: a stream is in order.
            let net = self.net.clone();
            let envelope = route.envelope;
            let requests = self.process.within(requests).then(move |request| {
                let net = net.clone();
                async move {
                    let arrives = net.arrives(from, to).await;
                    if arrives {
                        let (vote, count) = (request.vote, request.entries.len());
                        net.note(|| format!("append {from} {to} {vote:?} {count}"));
                    }
                    arrives.then_some(request)
                }
            });
            let requests = requests
                .take_while(|request| std::future::ready(request.is_some()))
                .filter_map(std::future::ready);
            let Host { consensus, process } = host;
            let begun = process.run(async move {
                consensus.check_envelope(&envelope)?;
                Ok::<_, Misdirected>(consensus.receive_append(from, Box::pin(requests)))
            });
            let replies = match begun.await {
                Some(Ok(replies)) => replies,
                Some(Err(error)) => return Err(broken(error.to_string())),
                None => return Err(broken("the server is gone".to_owned())),
            };
            // It breaks when the other end is gone, or stopped for longer than keepalive waits.
            let net = self.net.clone();
            let replies = stream::unfold(Some((replies, process)), move |state| {
                let (net, broken) = (net.clone(), broken.clone());
                async move {
                    let (mut replies, process) = state?;
                    let reply = loop {
                        let next = tokio::time::timeout(WAITS, process.run(replies.next()));
                        match next.await {
                            Ok(Some(reply)) => break reply?.map_err(|error| error.to_string()),
                            Ok(None) => break Err("the server is gone".to_owned()),
                            Err(_) if process.is_stopped() => break Err("silence".to_owned()),
                            Err(_) => {}
                        }
                    };
                    let reply = match reply {
                        Ok(_) if !net.arrives(to, from).await => Err("a reply is lost".to_owned()),
                        reply => reply,
                    };
                    let next = reply.is_ok().then_some((replies, process));
                    Some((reply.map_err(broken), next))
                }
            });
            Ok(Box::pin(replies) as BoxStream<_>)
        })
    }

    fn snapshot(
        &self,
        route: Route,
        vote: Vote,
        snapshot: crate::snapshot::Snapshot,
    ) -> BoxFuture<'_, Result<Vote, TransportError>> {
        let (from, net) = (route.envelope.from, self.net.clone());
        let serve = move |host: Host| async move {
            let take = net.links().snapshots_take;
            if !take.is_zero() {
                tokio::time::sleep(take).await;
            }
            net.links().snapshots += 1;
            let bytes = snapshot.bytes();
            host.consensus.receive_snapshot(from, vote, bytes).await
        };
        Box::pin(self.net.deliver(route, "snapshot", vote, serve))
    }

    fn hand_over(
        &self,
        route: Route,
        request: HandOver,
    ) -> BoxFuture<'_, Result<(), TransportError>> {
        let (from, vote) = (route.envelope.from, request.vote);
        let serve =
            move |host: Host| async move { host.consensus.receive_hand_over(from, request).await };
        Box::pin(self.net.deliver(route, "hand over", vote, serve))
    }
}
