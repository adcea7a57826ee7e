use super::*;
use crate::{
    command::{Command, Deregister, DeregisterTarget, Outcome, Refusal, Register},
    state::{State, Touched},
    watch::WatchKey,
};

fn node(name: &str, id: &str, address: &str) -> Node {
    Node {
        name: name.into(),
        id: id.into(),
        address: address.into(),
        ..Node::default()
    }
}

fn service(id: &str, name: &str) -> NodeService {
    NodeService {
        id: id.into(),
        name: name.into(),
        port: 80,
        ..NodeService::default()
    }
}

fn check(id: &str, service_id: &str, status: CheckStatus) -> HealthCheck {
    HealthCheck {
        id: id.into(),
        service_id: service_id.into(),
        status,
        ..HealthCheck::default()
    }
}

fn apply(state: &mut State, command: Command) -> (Outcome, Vec<WatchKey>) {
    let mut touched = Touched::default();
    let outcome = state.apply(state.applied() + 1, &command, &mut touched);
    (outcome, touched.iter().cloned().collect())
}

fn register(state: &mut State, register: Register) -> (Outcome, Vec<WatchKey>) {
    apply(state, Command::Register(Box::new(register)))
}

fn deregister(state: &mut State, node: &str, target: DeregisterTarget) -> Vec<WatchKey> {
    apply(
        state,
        Command::Deregister(Deregister {
            node: node.into(),
            target,
        }),
    )
    .1
}

fn web_on(name: &str) -> Register {
    Register {
        node: node(name, "", "10.0.0.1"),
        service: Some(service("web-1", "web")),
        checks: vec![check("service:web-1", "web-1", CheckStatus::Passing)],
        ..Register::default()
    }
}

#[test]
fn the_same_registration_again_changes_nothing() {
    let mut state = State::default();
    let (_, first) = register(&mut state, web_on("n1"));
    let before = state.indexes;
    let (outcome, second) = register(&mut state, web_on("n1"));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(
        first.len(),
        6,
        "nodes, the node, services, the service, the names, the checks"
    );
    assert!(second.is_empty());
    assert_eq!(
        state.indexes,
        super::super::Indexes {
            applied: 2,
            ..before
        }
    );
}

#[test]
fn a_service_is_as_healthy_as_its_worst_check() {
    let mut state = State::default();
    register(&mut state, web_on("n1"));
    let status = |state: &State| {
        state.services["web"]
            .instances
            .values()
            .next()
            .unwrap()
            .status
    };
    assert_eq!(status(&state), CheckStatus::Passing);
    register(
        &mut state,
        Register {
            node: node("n1", "", "10.0.0.1"),
            checks: vec![check("disk", "", CheckStatus::Warning)],
            ..Register::default()
        },
    );
    assert_eq!(status(&state), CheckStatus::Warning);
    assert_eq!(
        state.services["web"].index, 2,
        "a node check moves the node's services"
    );
    deregister(&mut state, "N1", DeregisterTarget::Check("disk".into()));
    assert_eq!(status(&state), CheckStatus::Passing);
}

#[test]
fn a_change_to_one_service_does_not_touch_another() {
    let mut state = State::default();
    register(&mut state, web_on("n1"));
    let other = Register {
        node: node("n2", "", "10.0.0.2"),
        service: Some(service("db", "db")),
        ..Register::default()
    };
    let (_, touched) = register(&mut state, other);
    assert!(touched.contains(&WatchKey::Service("db".into())));
    assert!(!touched.contains(&WatchKey::Service("web".into())));
    assert!(!touched.contains(&WatchKey::Node("n1".into())));
    assert_eq!(state.services["web"].index, 1);
}

#[test]
fn a_node_is_not_removed_for_a_check_that_has_changed() {
    let mut state = State::default();
    let says = |state: &mut State, status| {
        let says = Register {
            node: node("n1", "", "10.0.0.1"),
            checks: vec![check("alive", "", status)],
            ..Register::default()
        };
        register(state, says);
        state.nodes["n1"].checks["alive"].modify_index
    };
    let remove = |state: &mut State, check: &str, index| {
        let check = check.into();
        deregister(state, "N1", DeregisterTarget::NodeAt { check, index })
    };
    let seen = says(&mut state, CheckStatus::Critical);
    says(&mut state, CheckStatus::Passing);
    assert!(remove(&mut state, "alive", seen).is_empty(), "it was back");
    let again = says(&mut state, CheckStatus::Critical);
    assert!(remove(&mut state, "alive", seen).is_empty(), "it was back");
    assert!(remove(&mut state, "other", again).is_empty(), "no check");
    // To say the same again is no change.
    assert_eq!(says(&mut state, CheckStatus::Critical), again);
    let touched = remove(&mut state, "alive", again);
    assert!(touched.contains(&WatchKey::Node("n1".into())));
    assert!(state.nodes.is_empty());
    assert!(remove(&mut state, "alive", again).is_empty(), "gone");
}

#[test]
fn the_last_instance_takes_the_service_away() {
    let mut state = State::default();
    register(&mut state, web_on("n1"));
    let touched = deregister(&mut state, "n1", DeregisterTarget::Service("web-1".into()));
    assert!(state.services.is_empty());
    assert!(
        state.nodes["n1"].checks.is_empty(),
        "its checks went with it"
    );
    assert_eq!(state.indexes.service_extinction, 2);
    assert!(touched.contains(&WatchKey::Service("web".into())));
    assert!(deregister(&mut state, "n1", DeregisterTarget::Service("web-1".into())).is_empty());
}

/// Names that differ in case are one service, which is shown under one of them: the same on every server.
#[test]
fn a_service_is_called_as_its_first_instance_calls_it() {
    let mut state = State::default();
    let on = |name: &str, called: &str| Register {
        node: node(name, "", "10.0.0.1"),
        service: Some(service("web-1", called)),
        ..Register::default()
    };
    register(&mut state, on("n2", "web"));
    register(&mut state, on("n3", "WEB"));
    assert_eq!(&*state.services["web"].name, "web");
    let (_, touched) = register(&mut state, on("n1", "Web"));
    assert_eq!(&*state.services["web"].name, "Web");
    assert!(touched.contains(&WatchKey::ServiceNames));
    // The same instance, spelt otherwise.
    let (_, touched) = register(&mut state, on("n1", "wEb"));
    assert_eq!(&*state.services["web"].name, "wEb");
    assert!(touched.contains(&WatchKey::ServiceNames));
    assert_eq!(state.indexes.service_names, 4);
    let (_, touched) = register(&mut state, on("n3", "web"));
    assert!(!touched.contains(&WatchKey::ServiceNames));

    let mut restored = State::restored(state.applied()).unwrap();
    for record in state.records() {
        restored.insert(record).unwrap();
    }
    assert_eq!(restored.services["web"].name, state.services["web"].name);
    deregister(&mut state, "n1", DeregisterTarget::Node);
    assert_eq!(&*state.services["web"].name, "web");
}

#[test]
fn an_id_under_a_new_name_renames_the_node() {
    let mut state = State::default();
    register(
        &mut state,
        Register {
            node: node("old", "u1", "10.0.0.1"),
            ..Register::default()
        },
    );
    register(
        &mut state,
        Register {
            node: node("new", "u1", "10.0.0.1"),
            ..Register::default()
        },
    );
    assert_eq!(
        state.nodes.keys().map(|key| &**key).collect::<Vec<_>>(),
        ["new"]
    );
    assert_eq!(&*state.node_ids["u1"], "new");
}

#[test]
fn a_name_is_reserved_until_its_node_has_failed() {
    let mut state = State::default();
    let alive = Register {
        node: node("n1", "u1", "10.0.0.1"),
        checks: vec![check("serfHealth", "", CheckStatus::Passing)],
        ..Register::default()
    };
    register(&mut state, alive.clone());
    let thief = Register {
        node: node("n1", "u2", "10.0.0.9"),
        ..Register::default()
    };
    let (outcome, touched) = register(&mut state, thief.clone());
    assert!(matches!(
        outcome,
        Outcome::Refused(Refusal::NodeNameReserved { .. })
    ));
    assert!(touched.is_empty());
    let dead = Register {
        checks: vec![check("serfHealth", "", CheckStatus::Critical)],
        ..alive
    };
    register(&mut state, dead);
    assert_eq!(register(&mut state, thief).0, Outcome::Done);
    assert_eq!(&*state.nodes["n1"].node.address, "10.0.0.9");
    assert!(!state.node_ids.contains_key("u1"));
}

#[test]
fn a_refused_registration_leaves_nothing_behind() {
    let mut state = State::default();
    let bad = Register {
        checks: vec![check("c", "missing", CheckStatus::Passing)],
        ..web_on("n1")
    };
    let (outcome, _) = register(&mut state, bad);
    assert!(matches!(
        outcome,
        Outcome::Refused(Refusal::UnknownService(..))
    ));
    assert!(state.nodes.is_empty() && state.services.is_empty());
}

#[test]
fn an_instance_that_changes_its_name_leaves_the_old_service() {
    let mut state = State::default();
    register(&mut state, web_on("n1"));
    let renamed = Register {
        node: node("n1", "", "10.0.0.1"),
        service: Some(service("web-1", "api")),
        ..Register::default()
    };
    let (_, touched) = register(&mut state, renamed);
    assert_eq!(
        state.services.keys().map(|key| &**key).collect::<Vec<_>>(),
        ["api"]
    );
    assert!(touched.contains(&WatchKey::Service("web".into())));
    assert!(touched.contains(&WatchKey::Service("api".into())));
}
