//! What comes of a round of greetings. Pure.

use std::collections::{BTreeMap, BTreeSet};

use wharf_registry::{
    consensus::{ClusterId, Leader},
    log::{Server, ServerId},
};

use super::super::Introduction;

/// A server that answered a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Met {
    /// Where it was asked.
    pub(super) place: String,
    pub(super) id: ServerId,
    pub(super) server: Server,
    pub(super) datacenter: String,
    pub(super) expect: u32,
    pub(super) cluster: Option<ClusterId>,
    pub(super) founded: bool,
    pub(super) founding: bool,
    pub(super) known: BTreeMap<ServerId, Server>,
    pub(super) leader: Option<Leader>,
}

/// What to do after a round of greetings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Wait,
    Found(BTreeMap<ServerId, Server>),
    Join {
        leader: Leader,
        cluster: ClusterId,
    },
    /// The founder has forgotten the promise.
    Withdraw,
    /// It needs somebody who looks after it.
    Complain(String),
}

/// This server before a round.
#[derive(Clone, Debug)]
pub(super) struct Own<'a> {
    pub(super) id: ServerId,
    pub(super) about: &'a Introduction,
    pub(super) cluster: Option<ClusterId>,
    pub(super) promised: Option<Server>,
}

pub(super) fn decide(own: &Own<'_>, met: &[Met]) -> Action {
    let about = own.about;
    let others: Vec<&Met> = met
        .iter()
        .filter(|met| met.id != own.id && met.datacenter == about.datacenter)
        .collect();
    let founded: Vec<&&Met> = others.iter().filter(|met| met.founded).collect();
    let ours = |met: &&&&Met| own.cluster.is_none_or(|ours| met.cluster == Some(ours));
    if let Some(first) = founded.iter().find(ours) {
        let clusters: BTreeSet<_> = founded.iter().map(|met| met.cluster.map(|c| c.0)).collect();
        if own.cluster.is_none() && clusters.len() > 1 {
            return Action::Complain(format!(
                "the places of retry_join are of {} clusters: this server joins none of them",
                clusters.len()
            ));
        }
        let leader = founded
            .iter()
            .filter(ours)
            .find_map(|met| met.leader.clone());
        return match (leader, first.cluster) {
            (Some(leader), Some(cluster)) => Action::Join { leader, cluster },
            _ => Action::Wait,
        };
    }
    if let Some(ours) = own.cluster.filter(|cluster| cluster.0 != own.id.0) {
        let forgotten = others.iter().any(|met| {
            let is_founder = met.id.0 == ours.0;
            let took_its_place = own
                .promised
                .as_ref()
                .is_some_and(|founder| founder.address == met.server.address);
            is_founder && !met.founding || !is_founder && took_its_place
        });
        if forgotten {
            return Action::Withdraw;
        }
        if let Some(other) = founded.first() {
            return Action::Complain(format!(
                "this server belongs to cluster {ours}, and the one at {} to another: to join that one, \
                 empty this server's data directory",
                other.place
            ));
        }
        return Action::Wait;
    }
    if about.expect == 0 {
        return Action::Wait;
    }
    if let Some(other) = others.iter().find(|met| met.expect != about.expect) {
        return Action::Complain(format!(
            "this server expects {} servers to found a cluster (bootstrap_expect), and {} at {} expects {}",
            about.expect, other.server.name, other.place, other.expect
        ));
    }
    let mut all: BTreeMap<ServerId, Server> = others
        .iter()
        .map(|met| (met.id, met.server.clone()))
        .collect();
    all.insert(own.id, about.server.clone());
    let names: BTreeSet<&str> = all.values().map(|server| server.name.as_str()).collect();
    if names.len() < all.len() {
        return Action::Complain(
            "two of the servers that are to found a cluster have the same name: give each its own (-node)"
                .to_owned(),
        );
    }
    let enough = all.len() >= usize::try_from(about.expect).unwrap_or(usize::MAX);
    let agreed = others.iter().all(|met| met.known.keys().eq(all.keys()));
    let lowest = all.keys().next() == Some(&own.id);
    if enough && agreed && lowest {
        Action::Found(all)
    } else {
        Action::Wait
    }
}

/// Who leads the others, for a server of their cluster that hears of no leader. It may have been taken out while
/// it was away, which it can only learn from them; if it was not, to ask changes nothing.
pub(super) fn led_by(cluster: ClusterId, own: ServerId, met: &[Met]) -> Option<Leader> {
    let same = met
        .iter()
        .filter(|met| met.founded && met.cluster == Some(cluster));
    let mut leaders = same.filter_map(|met| met.leader.clone());
    leaders.find(|leader| leader.id != own)
}
