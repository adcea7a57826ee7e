//! Who was a member and left is shown for a day, unless an operator has it pruned or one of that name is there again.

use std::time::Duration;

use wharf_registry::{
    Command, View,
    command::{Changed, Departure, Deregister, DeregisterTarget},
    consensus::Member,
    model::{CheckStatus, Str, platform::UnixNanos},
    state::{LeftMember, NodeEntry},
};

use crate::{
    local::{SERF_HEALTH, SERVER_SERVICE},
    platform::unix_now,
};

/// For how long, in nanoseconds: as Consul's gossip remembers it.
const REMEMBERED: UnixNanos = Duration::from_secs(24 * 3600).as_nanos() as UnixNanos;
/// How many are: the last ones.
const KEPT: usize = 4096;

/// A node that says itself that it leaves.
pub(crate) fn leave(node: Str) -> Command {
    depart(node, None)
}

/// A node that was found to have left, or to be dead. Nothing happens if something else is said of it meanwhile.
pub(crate) fn take_out(entry: &NodeEntry) -> Command {
    let check = entry.checks.get(SERF_HEALTH);
    let unless = check.map(|check| Changed {
        check: SERF_HEALTH.into(),
        index: check.modify_index,
    });
    depart(entry.node.name.clone(), unless)
}

fn depart(node: Str, unless: Option<Changed>) -> Command {
    Command::Deregister(Deregister {
        node,
        target: DeregisterTarget::Member(Departure {
            service: SERVER_SERVICE.into(),
            time: unix_now(),
            unless,
        }),
    })
}

/// Forgets a member of that name, and takes out its node, if it has one still. Where it lives after all, it comes back by
/// itself. A node of that name that is no member's is somebody else's.
pub(crate) fn prune(name: &str, member: Option<&NodeEntry>) -> Vec<Command> {
    let node = member.map(|_| DeregisterTarget::Node);
    let targets = [DeregisterTarget::LeftMember { time: None }];
    let commands = node.into_iter().chain(targets).map(|target| {
        let node = name.into();
        Command::Deregister(Deregister { node, target })
    });
    commands.collect()
}

/// Whether a member of that name is there, dead or alive.
pub(crate) fn is_present(members: &[Member], view: &View, name: &str) -> bool {
    view.node(name).is_some_and(|entry| is_member(entry)) || is_server(members, name)
}

/// Whether an agent speaks for this node.
pub(crate) fn is_member(entry: &NodeEntry) -> bool {
    !entry.node.id.is_empty() && entry.checks.contains_key(SERF_HEALTH)
}

/// Whether it is dead, or said that it leaves.
pub(crate) fn is_failed(entry: &NodeEntry) -> bool {
    let check = entry.checks.get(SERF_HEALTH);
    check.is_some_and(|check| check.status == CheckStatus::Critical)
}

/// The nodes that say that they are servers, and are none of ours.
pub(crate) fn left_behind<'a>(
    members: &'a [Member],
    view: &'a View,
) -> impl Iterator<Item = &'a NodeEntry> {
    let nodes = view.nodes().map(|entry| &**entry);
    nodes.filter(|entry| {
        let service = entry.services.get(SERVER_SERVICE);
        service.is_some_and(|service| *service.name == *SERVER_SERVICE)
            && entry.checks.contains_key(SERF_HEALTH)
            && !is_server(members, &entry.node.name)
    })
}

pub(crate) fn is_server(members: &[Member], name: &str) -> bool {
    let mut members = members.iter();
    members.any(|member| member.name.eq_ignore_ascii_case(name))
}

/// What is to be forgotten now.
pub(super) fn over(members: &[Member], view: &View, now: UnixNanos) -> Vec<Command> {
    let mut left: Vec<&LeftMember> = view.left_members().map(|left| &**left).collect();
    left.sort_by_key(|left| std::cmp::Reverse(left.time));
    let over = left.iter().enumerate().filter(|(place, left)| {
        *place >= KEPT
            || now.saturating_sub(left.time) >= REMEMBERED
            || is_present(members, view, &left.node.name)
    });
    let commands = over.map(|(_, left)| {
        Command::Deregister(Deregister {
            node: left.node.name.clone(),
            target: DeregisterTarget::LeftMember {
                time: Some(left.time),
            },
        })
    });
    commands.collect()
}

#[cfg(test)]
mod tests {
    use wharf_registry::{
        Committed, Replica,
        command::Register,
        model::{Node, NodeService},
    };

    use super::*;
    use crate::local::serf_health;

    fn apply(replica: &mut Replica, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            let entry = Committed {
                index: replica.last_applied() + 1,
                command: Some(command.encode()),
            };
            replica.apply(&[entry]).unwrap();
        }
    }

    fn agent(name: &str, alive: bool) -> Command {
        Command::Register(Box::new(Register {
            node: Node {
                name: name.into(),
                id: format!("id of {name}").into(),
                address: "10.0.0.1".into(),
                ..Node::default()
            },
            service: Some(NodeService {
                id: SERVER_SERVICE.into(),
                name: SERVER_SERVICE.into(),
                port: 8300,
                ..NodeService::default()
            }),
            checks: vec![serf_health(&name.into(), alive)],
            ..Register::default()
        }))
    }

    fn names(replica: &Replica) -> Vec<String> {
        let view = replica.registry().view();
        let left = view.left_members();
        left.map(|left| left.node.name.to_string()).collect()
    }

    #[test]
    fn it_is_forgotten_after_a_day_or_when_one_of_that_name_is_there() {
        let mut replica = Replica::new();
        for name in ["a", "b"] {
            apply(&mut replica, [agent(name, true), leave(name.into())]);
        }
        assert_eq!(names(&replica), ["a", "b"]);
        let port = |name: &str| {
            let view = replica.registry().view();
            let left = view.left_member(name).unwrap();
            left.service.as_ref().map(|service| service.port)
        };
        assert_eq!(port("A"), Some(8300));
        let now = unix_now();
        assert!(over(&[], &replica.registry().view(), now).is_empty());
        apply(&mut replica, [agent("a", true)]);
        let commands = over(&[], &replica.registry().view(), now);
        apply(&mut replica, commands);
        assert_eq!(names(&replica), ["b"]);
        assert!(over(&[], &replica.registry().view(), now - REMEMBERED).is_empty());
        let commands = over(&[], &replica.registry().view(), now + REMEMBERED);
        apply(&mut replica, commands);
        assert!(names(&replica).is_empty());
    }

    #[test]
    fn the_last_ones_are_kept() {
        let mut replica = Replica::new();
        for number in 0..KEPT + 3 {
            let name = Str::from(format!("a{number}"));
            let mut leaves = leave(name.clone());
            if let Command::Deregister(Deregister {
                target: DeregisterTarget::Member(departure),
                ..
            }) = &mut leaves
            {
                departure.time = 1000 + number as i64;
            }
            apply(&mut replica, [agent(&name, true), leaves]);
        }
        let commands = over(&[], &replica.registry().view(), 2000);
        assert_eq!(commands.len(), 3);
        apply(&mut replica, commands);
        let view = replica.registry().view();
        assert!(view.left_member("a2").is_none() && view.left_member("a3").is_some());
    }

    #[test]
    fn who_is_back_is_not_taken_out() {
        let mut replica = Replica::new();
        apply(&mut replica, [agent("a", false)]);
        let found = |replica: &Replica| take_out(replica.registry().view().node("a").unwrap());
        let late = found(&replica);
        apply(&mut replica, [agent("a", true), late]);
        assert!(names(&replica).is_empty());
        let in_time = found(&replica);
        apply(&mut replica, [in_time]);
        assert_eq!(names(&replica), ["a"]);
    }
}
