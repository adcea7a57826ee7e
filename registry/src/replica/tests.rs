//! Properties of the state machine as a whole, over random histories.

mod mirror;
mod platform;
mod restore;

use std::{collections::BTreeMap, net::IpAddr};

use bytes::Bytes;
use futures_util::FutureExt as _;
use proptest::prelude::*;
use wharf_tests::promises::{self, Shown};

use super::*;
use crate::{
    command::{
        Changed, ConfigCommand, Departure, Deregister, DeregisterTarget, KvCommand, Register,
    },
    model::{
        CheckStatus, ConfigEntry, ConfigEntryKind, HealthCheck, KvEntry, Node, NodeService,
        ServiceDefaults, Str,
    },
    state::Instance,
    view::KvChange,
};

fn name(set: &'static [&'static str]) -> impl Strategy<Value = Str> {
    proptest::sample::select(set).prop_map(Str::from)
}

fn node_name() -> impl Strategy<Value = Str> {
    name(&["n1", "N1", "n2", "n3"])
}

fn service_id() -> impl Strategy<Value = Str> {
    name(&["web-1", "web-2", "db"])
}

fn check_id() -> impl Strategy<Value = Str> {
    name(&["alive", "disk", "http"])
}

fn key() -> impl Strategy<Value = Str> {
    name(&["a", "a/b", "a/b/c", "a/d", "b", "é/x"])
}

fn status() -> impl Strategy<Value = CheckStatus> {
    prop_oneof![
        Just(CheckStatus::Passing),
        Just(CheckStatus::Warning),
        Just(CheckStatus::Critical)
    ]
}

const ADDRESSES: &[&str] = &[
    "",
    "10.0.0.1",
    "10.0.0.2",
    "fd00::1",
    "fd00:0::1",
    "db.example",
];

/// An empty one is refused for a node, and stands for the node's for an instance.
fn address() -> impl Strategy<Value = Str> {
    name(ADDRESSES)
}

fn service() -> impl Strategy<Value = NodeService> {
    (
        service_id(),
        name(&["web", "Web", "db"]),
        address(),
        0u16..3,
        proptest::bool::ANY,
    )
        .prop_map(|(id, name, address, port, tagged)| NodeService {
            id,
            name,
            address,
            port,
            tags: if tagged {
                ["v1".into()].into()
            } else {
                [].into()
            },
            ..NodeService::default()
        })
}

fn check() -> impl Strategy<Value = HealthCheck> {
    (
        check_id(),
        prop_oneof![Just(Str::from("")), service_id()],
        status(),
    )
        .prop_map(|(id, service_id, status)| HealthCheck {
            id,
            service_id,
            status,
            ..HealthCheck::default()
        })
}

fn departure() -> impl Strategy<Value = Departure> {
    let unless = proptest::option::of((check_id(), 0u64..40));
    (service_id(), 0i64..3, unless).prop_map(|(service, time, unless)| Departure {
        service,
        time,
        unless: unless.map(|(check, index)| Changed { check, index }),
    })
}

fn command() -> impl Strategy<Value = Command> {
    let register = (
        node_name(),
        name(&["", "u1", "u2"]),
        address(),
        proptest::bool::ANY,
        proptest::option::of(service()),
        proptest::collection::vec(check(), 0..3),
    )
        .prop_map(|(name, id, address, skip_node_update, service, checks)| {
            Command::Register(Box::new(Register {
                node: Node {
                    name,
                    id,
                    address,
                    ..Node::default()
                },
                skip_node_update,
                service,
                checks,
            }))
        });
    let target = prop_oneof![
        Just(DeregisterTarget::Node),
        (check_id(), 0u64..40).prop_map(|(check, index)| DeregisterTarget::NodeAt { check, index }),
        departure().prop_map(DeregisterTarget::Member),
        proptest::option::of(0i64..3).prop_map(|time| DeregisterTarget::LeftMember { time }),
        service_id().prop_map(DeregisterTarget::Service),
        check_id().prop_map(DeregisterTarget::Check),
    ];
    let deregister = (node_name(), target)
        .prop_map(|(node, target)| Command::Deregister(Deregister { node, target }));
    let entry = || {
        (key(), 0u8..3).prop_map(|(key, value)| KvEntry {
            key,
            value: Bytes::copy_from_slice(&[value]),
            ..KvEntry::default()
        })
    };
    let kv = prop_oneof![
        entry().prop_map(|entry| KvCommand::Set { entry }),
        (entry(), 0u64..40).prop_map(|(entry, index)| KvCommand::CompareAndSet { entry, index }),
        key().prop_map(|key| KvCommand::Delete { key }),
        (key(), 0u64..40).prop_map(|(key, index)| KvCommand::CompareAndDelete { key, index }),
        name(&["", "a", "a/", "a/b", "zz"]).prop_map(|prefix| KvCommand::DeleteTree { prefix }),
        (0u64..40).prop_map(|up_to| KvCommand::ReapTombstones { up_to }),
    ]
    .prop_map(Command::Kv);
    let config = (
        name(&["web", "db"]),
        name(&["http", "tcp"]),
        proptest::bool::ANY,
    )
        .prop_map(|(name, protocol, delete)| {
            Command::Config(if delete {
                ConfigCommand::Delete {
                    kind: ConfigEntryKind::ServiceDefaults,
                    name,
                }
            } else {
                let entry = ServiceDefaults {
                    name,
                    protocol,
                    ..ServiceDefaults::default()
                };
                ConfigCommand::Upsert {
                    entry: ConfigEntry::ServiceDefaults(Box::new(entry)),
                }
            })
        });
    prop_oneof![4 => register, 2 => deregister, 3 => kv, 1 => config, 5 => platform::command()]
}

/// A question that a blocking query may ask: its key, and its answer with the answer's index.
type Question = (WatchKey, fn(&View, &WatchKey) -> (u64, String));

fn questions() -> Vec<Question> {
    let mut questions: Vec<Question> = vec![
        (WatchKey::Nodes, |view, _| {
            let nodes: Vec<_> = view.nodes().map(|entry| entry.node.clone()).collect();
            (view.indexes().nodes, format!("{nodes:?}"))
        }),
        (WatchKey::ServiceNames, |view, _| {
            let names: BTreeMap<_, _> = view
                .services()
                .map(|entry| (&entry.name, entry.tags()))
                .collect();
            (view.indexes().service_names, format!("{names:?}"))
        }),
        (WatchKey::Services, |view, _| {
            let services: Vec<_> = view.nodes().map(|entry| entry.services.clone()).collect();
            let services: Vec<_> = services.into_iter().filter(|all| !all.is_empty()).collect();
            (view.indexes().services, format!("{services:?}"))
        }),
        (WatchKey::Checks, |view, _| {
            let checks: Vec<_> = view.checks().collect();
            (view.indexes().checks, format!("{checks:?}"))
        }),
        (WatchKey::Config, |view, _| {
            let entries: Vec<_> = view.config_entries().collect();
            (view.indexes().config, format!("{entries:?}"))
        }),
    ];
    for node in ["n1", "n2", "n3"] {
        questions.push((WatchKey::node(node), |view, key| {
            let WatchKey::Node(name) = key else {
                unreachable!()
            };
            (view.node_index(name), format!("{:?}", view.node(name)))
        }));
    }
    for service in ["web", "db"] {
        questions.push((WatchKey::service(service), |view, key| {
            let WatchKey::Service(name) = key else {
                unreachable!()
            };
            let entry = view.service(name);
            let shown = entry.map(|entry| (&entry.name, &entry.instances));
            (view.service_index(name), format!("{shown:?}"))
        }));
    }
    for key in ["a", "a/b", "b"] {
        questions.push((WatchKey::Kv(key.into()), |view, key| {
            let WatchKey::Kv(name) = key else {
                unreachable!()
            };
            (view.kv_index(name), format!("{:?}", view.kv(name)))
        }));
    }
    for prefix in ["", "a", "a/b/", "é"] {
        questions.push((WatchKey::KvPrefix(prefix.into()), |view, key| {
            let WatchKey::KvPrefix(prefix) = key else {
                unreachable!()
            };
            let entries: Vec<_> = view.kv_prefix(prefix).collect();
            (view.kv_prefix_index(prefix), format!("{entries:?}"))
        }));
    }
    questions.extend(platform::questions());
    questions
}

fn entries(commands: &[Command]) -> Vec<Committed> {
    // The first entry of a log is its membership: commands come after.
    let entry = |(at, command): (usize, &Command)| Committed {
        index: at as u64 + 2,
        command: Some(command.encode()),
    };
    commands.iter().enumerate().map(entry).collect()
}

fn records(view: &View) -> Vec<Record> {
    view.records().collect()
}

proptest! {
    /// Whoever asked before a batch and whose answer changed is woken, and sees a larger index;
    /// whoever is not concerned keeps answer and sleep; no index ever goes back.
    #[test]
    fn a_changed_answer_moves_its_index_and_wakes(
        commands in proptest::collection::vec(command(), 1..60),
        batch in 1usize..4,
    ) {
        let mut replica = Replica::new();
        let registry = replica.registry();
        for batch in entries(&commands).chunks(batch) {
            let before = registry.view();
            let mut watchers: Vec<(Question, Watcher)> = questions()
                .into_iter()
                .map(|question| (question.clone(), registry.watch(question.0)))
                .collect();
            replica.apply(batch).unwrap();
            let after = registry.view();
            for ((key, ask), watcher) in &mut watchers {
                let (old_index, old_answer) = ask(&before, key);
                let (new_index, new_answer) = ask(&after, key);
                let woken = watcher.changed().now_or_never().is_some();
                prop_assert!(new_index >= old_index, "{key:?} went back: {old_index} -> {new_index}");
                if old_answer != new_answer {
                    prop_assert!(woken, "{key:?} changed unnoticed");
                    prop_assert!(new_index > old_index, "{key:?} changed without its index");
                }
            }
        }
    }

    /// The promises of a watch, to watchers of every question that look after a batch or do not.
    #[test]
    fn a_watch_keeps_its_promises(
        commands in proptest::collection::vec(command(), 1..60),
        batch in 1usize..4,
        looks in proptest::collection::vec(proptest::bool::ANY, 60),
    ) {
        let mut replica = Replica::new();
        let registry = replica.registry();
        let now = |(key, ask): &Question| -> Shown<String> {
            let (index, answer) = ask(&registry.view(), key);
            Shown { index, answer }
        };
        struct Watch {
            watcher: Watcher,
            truth: Vec<Shown<String>>,
            seen: Vec<Shown<String>>,
        }
        let mut all: Vec<(Question, Watch)> = questions()
            .into_iter()
            .map(|question| {
                let watcher = registry.watch(question.0.clone());
                let (truth, seen) = (vec![now(&question)], vec![now(&question)]);
                (question, Watch { watcher, truth, seen })
            })
            .collect();
        let log = entries(&commands);
        let batches = log.chunks(batch);
        let count = batches.len();
        for (number, batch) in batches.enumerate() {
            replica.apply(batch).unwrap();
            for (at, (question, watch)) in all.iter_mut().enumerate() {
                let held = now(question);
                if watch.truth.last() != Some(&held) {
                    watch.truth.push(held.clone());
                }
                // In the end all of them do.
                if !looks[(number + at) % looks.len()] && number + 1 < count {
                    continue;
                }
                let left_with = watch.seen.last().unwrap().clone();
                let woken = watch.watcher.changed().now_or_never().is_some();
                let shown = (woken && held.index > left_with.index).then(|| held.clone());
                let kept = promises::resumable(&left_with, &held, shown.as_ref());
                prop_assert_eq!(kept, Ok(()), "{:?}", question.0);
                watch.seen.extend(shown);
            }
        }
        for (question, Watch { truth, seen, .. }) in &all {
            let holds = now(question);
            let kept = [
                promises::ordered(truth, seen),
                // An index may move without the answer, and then nobody has to be told.
                promises::without_gap(&holds, seen).or_else(|broken| {
                    let same = seen.last().is_some_and(|last| last.answer == holds.answer);
                    same.then_some(()).ok_or(broken)
                }),
                promises::without_duplicates(seen),
                promises::index_grows(seen),
            ];
            for kept in kept {
                prop_assert_eq!(kept, Ok(()), "{:?}", question.0);
            }
        }
    }

    /// Whoever knows the keys of an earlier view, and is told what changed since, knows those of the
    /// later one: from both views, or from its index alone where that is still known.
    #[test]
    fn what_changed_in_the_tree_can_be_told(
        commands in proptest::collection::vec(command(), 1..60),
        at in 0usize..60,
        prefix in name(&["", "a", "a/", "a/b", "b", "é"]),
    ) {
        let mut replica = Replica::new();
        let log = entries(&commands);
        let (first, second) = log.split_at(at.min(log.len()));
        replica.apply(first).unwrap();
        let before = replica.registry().view();
        replica.apply(second).unwrap();
        let after = replica.registry().view();

        let known = |view: &View| -> BTreeMap<Str, Arc<KvEntry>> {
            view.kv_prefix(&prefix).map(|entry| (entry.key.clone(), entry.clone())).collect()
        };
        let mut told = known(&before);
        for change in after.kv_changes(&before, &prefix) {
            match change {
                KvChange::Upserted(entry) => told.insert(entry.key.clone(), entry.clone()),
                KvChange::Removed(key) => told.remove(key),
            };
        }
        prop_assert_eq!(&told, &known(&after));

        let index = before.applied();
        if let Some(removed) = after.kv_removed_since(&prefix, index) {
            let mut told = known(&before);
            let changed = after.kv_prefix(&prefix).filter(|entry| entry.modify_index > index);
            told.extend(changed.map(|entry| (entry.key.clone(), entry.clone())));
            told.retain(|key, _| !removed.contains(key));
            prop_assert_eq!(told, known(&after));
        }
    }

    /// A batch at a time or one by one: the same state. A snapshot of it, restored: the same state.
    #[test]
    fn replicas_agree_and_snapshots_are_the_state(
        commands in proptest::collection::vec(command(), 1..60),
    ) {
        let log = entries(&commands);
        let mut one = Replica::new();
        let mut other = Replica::new();
        let outcomes = one.apply(&log).unwrap();
        let singly: Vec<Outcome> = log
            .iter()
            .flat_map(|entry| other.apply(std::slice::from_ref(entry)).unwrap())
            .collect();
        prop_assert_eq!(outcomes, singly);
        prop_assert_eq!(records(&one.freeze()), records(&other.freeze()));

        let mut restored = Replica::new();
        let source = records(&one.freeze()).into_iter().map(Ok::<_, RecordError>);
        restored.restore(source, one.last_applied()).unwrap();
        prop_assert_eq!(records(&one.freeze()), records(&restored.freeze()));
        for (key, ask) in questions() {
            prop_assert_eq!(ask(&one.freeze(), &key), ask(&restored.freeze(), &key));
        }
        prop_assert_eq!(one.last_applied(), restored.last_applied());
    }

    /// The joined instances of services are exactly what the nodes carry.
    #[test]
    fn services_are_the_join_of_their_nodes(
        commands in proptest::collection::vec(command(), 1..60),
    ) {
        let mut replica = Replica::new();
        replica.apply(&entries(&commands)).unwrap();
        let view = replica.freeze();
        let mut instances = 0;
        for service in view.services() {
            prop_assert!(!service.instances.is_empty());
            for ((node_key, id), instance) in &service.instances {
                let node = view.node(node_key).expect("the node exists");
                prop_assert_eq!(&instance.node, &node.node);
                prop_assert_eq!(&instance.service, &node.services[id]);
                let checks = node.checks.values().filter(|check| {
                    check.service_id.is_empty() || check.service_id == *id
                });
                prop_assert_eq!(instance.checks.len(), checks.count());
                prop_assert_eq!(
                    node.checks_of(id).count() + node.checks_of("").count(),
                    instance.checks.len()
                );
                let worst = instance.checks.iter().map(|check| check.status).max();
                prop_assert_eq!(instance.status, worst.unwrap_or(CheckStatus::Passing));
                instances += 1;
            }
        }
        prop_assert_eq!(instances, view.nodes().map(|node| node.services.len()).sum::<usize>());
    }

    /// Who is found by an address is who a look at all rows finds, also after a restore.
    #[test]
    fn addresses_lead_back_to_all_who_have_them(
        commands in proptest::collection::vec(command(), 1..60),
    ) {
        let mut replica = Replica::new();
        replica.apply(&entries(&commands)).unwrap();
        let view = replica.freeze();
        let mut restored = Replica::new();
        let source = records(&view).into_iter().map(Ok::<_, RecordError>);
        restored.restore(source, replica.last_applied()).unwrap();
        for view in [view, restored.freeze()] {
            for address in ADDRESSES.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
                let has = |text: &str| text.parse() == Ok(address);
                let nodes = view.nodes().filter(|entry| has(&entry.node.address));
                prop_assert_eq!(
                    view.nodes_at(address).map(|entry| &entry.node.name).collect::<Vec<_>>(),
                    nodes.map(|entry| &entry.node.name).collect::<Vec<_>>()
                );
                let key = |service: &Str, instance: &Instance| {
                    (service.clone(), instance.node.name.clone(), instance.service.id.clone())
                };
                let found = view.instances_at(address);
                let found: Vec<_> = found.map(|(entry, one)| key(&entry.name, one)).collect();
                let mut all = Vec::new();
                for entry in view.services() {
                    let own = entry.instances.values().filter(|one| has(&one.service.address));
                    all.extend(own.map(|one| key(&entry.name, one)));
                }
                prop_assert_eq!(found, all);
            }
        }
    }
}

#[test]
fn an_unreadable_entry_stops_the_batch_before_it() {
    let mut replica = Replica::new();
    let set = Command::Kv(KvCommand::Set {
        entry: KvEntry {
            key: "k".into(),
            ..KvEntry::default()
        },
    });
    let batch = [
        Committed {
            index: 1,
            command: Some(set.encode()),
        },
        Committed {
            index: 2,
            command: Some(Bytes::from_static(&[9, 9])),
        },
        Committed {
            index: 3,
            command: None,
        },
    ];
    let error = replica.apply(&batch).unwrap_err();
    assert_eq!(error.index, 2);
    assert_eq!(replica.last_applied(), 1);
    assert!(replica.registry().view().kv("k").is_some());
}

#[test]
fn a_broken_snapshot_changes_nothing() {
    let mut replica = Replica::new();
    let set = Command::Kv(KvCommand::Set {
        entry: KvEntry {
            key: "k".into(),
            ..KvEntry::default()
        },
    });
    replica
        .apply(&[Committed {
            index: 1,
            command: Some(set.encode()),
        }])
        .unwrap();
    let orphan = Record::Service {
        node: "gone".into(),
        service: Arc::default(),
    };
    let error = replica
        .restore([Ok::<_, RecordError>(orphan)], 9)
        .unwrap_err();
    assert!(matches!(error, RecordError::UnknownNode { .. }));
    assert_eq!(replica.last_applied(), 1);
    assert!(replica.registry().view().kv("k").is_some());
}
