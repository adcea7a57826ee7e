//! What a leader knows of its cluster, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{Instant as _, Raft, async_runtime::watch::WatchReceiver as _};

use super::{ALIVE, CAUGHT_UP, DEAD};
use crate::{
    consensus::{
        machine::Machine,
        raft::{self, TypeConfig},
        runtime,
    },
    log::{Membership, Server, ServerId},
};

/// What a leader knows of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Situation {
    pub(super) own: ServerId,
    pub(super) leading: bool,
    pub(super) membership: Membership,
    pub(super) last_log: u64,
    pub(super) replicated: BTreeMap<ServerId, u64>,
    pub(super) heard: BTreeMap<ServerId, Duration>,
    /// How long this server has led.
    pub(super) led: Duration,
    /// For how long it has known each server: whom it never heard was silent for as long.
    pub(super) known_for: BTreeMap<ServerId, Duration>,
    /// For how long this server, leading or not, has known each.
    pub(super) member_for: BTreeMap<ServerId, Duration>,
    /// For how long each server has been there with the log.
    pub(super) ready_for: BTreeMap<ServerId, Duration>,
}

impl Situation {
    pub(super) fn of(raft: &Raft<TypeConfig, Machine>, own: ServerId) -> Situation {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let now = runtime::now();
        let leading = metrics.state.is_leader();
        let mut situation = Situation {
            own,
            leading,
            membership: raft::membership(metrics.membership_config.membership()),
            last_log: metrics.last_log_index.unwrap_or(0),
            ..Situation::default()
        };
        if leading {
            let replicated = metrics.replication.iter().flatten();
            situation.replicated = replicated
                .filter_map(|(id, at)| Some((*id, at.as_ref()?.index)))
                .collect();
            let heard = metrics.heartbeat.iter().flatten();
            situation.heard = heard
                .filter_map(|(id, at)| Some((*id, now.saturating_duration_since(**at.as_ref()?))))
                .collect();
            situation.replicated.insert(own, situation.last_log);
            situation.heard.insert(own, Duration::ZERO);
        }
        situation
    }

    /// Those with a vote now or after the change that is under way.
    pub(super) fn voters(&self) -> BTreeSet<ServerId> {
        self.membership.voters.iter().flatten().copied().collect()
    }

    /// Those with a vote when the change that may be under way is finished.
    pub(super) fn voters_to_be(&self) -> BTreeSet<ServerId> {
        self.membership.voters.last().cloned().unwrap_or_default()
    }

    pub(super) fn is_voter(&self, id: &ServerId) -> bool {
        self.membership.voters.iter().any(|set| set.contains(id))
    }

    pub(super) fn is_alive(&self, id: &ServerId) -> bool {
        self.heard.get(id).is_some_and(|ago| *ago < ALIVE)
    }

    pub(super) fn silence(&self, id: &ServerId) -> Duration {
        let heard = self.heard.get(id).or_else(|| self.known_for.get(id));
        heard.copied().unwrap_or_default()
    }

    /// Whether it is away for longer than one that is there can be. A leader that has just begun has not heard of
    /// everybody, and takes nobody for gone.
    pub(super) fn is_gone(&self, id: &ServerId) -> bool {
        self.silence(id) >= ALIVE
    }

    /// The member whose name server `id` would take: it is there, and at another address.
    pub(super) fn name_holder(&self, id: &ServerId, server: &Server) -> Option<&Server> {
        let mut members = self.membership.servers.iter();
        let holder = members.find(|(other, known)| {
            *other != id
                && known.name == server.name
                && known.address != server.address
                && !self.is_gone(other)
        });
        holder.map(|(_, known)| known)
    }

    /// The voter that is dead for longest.
    pub(super) fn dead_voter(&self) -> Option<ServerId> {
        let dead = self.voters().into_iter().map(|id| (self.silence(&id), id));
        dead.filter(|(silence, _)| *silence >= DEAD)
            .max()
            .map(|(_, id)| id)
    }

    pub(super) fn has_log(&self, id: &ServerId) -> bool {
        let replicated = self.replicated.get(id);
        replicated.is_some_and(|at| at + CAUGHT_UP >= self.last_log)
    }

    /// Whether it could do with a vote what a voter has to.
    pub(super) fn is_ready(&self, id: &ServerId) -> bool {
        self.is_alive(id) && self.has_log(id)
    }

    pub(super) fn has_live_majority(&self, voters: &BTreeSet<ServerId>) -> bool {
        voters.iter().filter(|id| self.is_alive(id)).count() > voters.len() / 2
    }

    pub(super) fn name(&self, id: &ServerId) -> String {
        let server = self.membership.servers.get(id);
        server.map_or_else(|| id.to_string(), |server| server.name.clone())
    }

    /// The members whose place `server` takes: those at its address, which can only be one server's, and
    /// those of its name that are gone.
    pub(super) fn replaced_by<'a>(
        &'a self,
        server: &'a Server,
    ) -> impl Iterator<Item = ServerId> + 'a {
        let members = self.membership.servers.iter();
        members
            .filter(move |(id, known)| {
                known.address == server.address || known.name == server.name && self.is_gone(id)
            })
            .map(|(id, _)| *id)
    }
}
