use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;
use tokio_util::task::TaskTracker;
use tonic::Code;
use wharf_proto::v1::{self, KeyValue, ServiceInstance};
use wharf_registry::{
    Command, Committed, Replica,
    command::{Deregister, DeregisterTarget, KvCommand, Register},
    model::{CheckStatus, HealthCheck, KvEntry, Node, NodeService},
};

use super::*;
use crate::{
    authz::{AllowAll, Authorizer as _},
    grpc::feed::{self, FeedStream},
};

const PROGRESS: Duration = Duration::from_secs(30);

struct Fixture {
    replica: Replica,
    registry: Registry,
}

impl Fixture {
    fn new() -> Fixture {
        let replica = Replica::new();
        let registry = replica.registry();
        Fixture { replica, registry }
    }

    /// Applies commands as one batch and returns the index of the last.
    fn apply(&mut self, commands: impl IntoIterator<Item = Command>) -> u64 {
        let mut index = self.replica.last_applied();
        let mut next = |command: Command| {
            index += 1;
            let command = Some(command.encode());
            Committed { index, command }
        };
        let batch: Vec<_> = commands.into_iter().map(&mut next).collect();
        self.replica.apply(&batch).unwrap();
        index
    }

    fn watch<S: Subject>(&self, subject: S, resume_index: u64) -> FeedStream<WatchResponse> {
        let registry = self.registry.clone();
        feed::open(&TaskTracker::new(), PROGRESS, |feed| {
            follow(subject, registry, resume_index, PROGRESS, feed)
        })
    }
}

fn caller() -> Caller {
    AllowAll.resolve(None).unwrap()
}

fn keys(prefix: &str) -> KeyValues {
    KeyValues {
        prefix: prefix.into(),
        caller: caller(),
    }
}

fn web() -> Instances {
    Instances {
        name: "Web".into(),
        tags: Vec::new(),
        passing_only: false,
        caller: caller(),
    }
}

fn set(key: &str, value: &str) -> Command {
    let entry = KvEntry {
        key: key.into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..KvEntry::default()
    };
    Command::Kv(KvCommand::Set { entry })
}

fn delete(key: &str) -> Command {
    Command::Kv(KvCommand::Delete { key: key.into() })
}

fn instance(node: &str, id: &str, port: u16, output: &str, status: CheckStatus) -> Command {
    let check = HealthCheck {
        id: id.into(),
        service_id: id.into(),
        output: output.into(),
        status,
        ..HealthCheck::default()
    };
    let tags = if port.is_multiple_of(2) {
        ["even".into()].into()
    } else {
        [].into()
    };
    Command::Register(Box::new(Register {
        node: Node {
            name: node.into(),
            address: "10.0.0.1".into(),
            ..Node::default()
        },
        service: Some(NodeService {
            id: id.into(),
            name: "web".into(),
            port,
            tags,
            ..NodeService::default()
        }),
        checks: vec![check],
        ..Register::default()
    }))
}

fn remove(node: &str, id: &str) -> Command {
    Command::Deregister(Deregister {
        node: node.into(),
        target: DeregisterTarget::Service(id.into()),
    })
}

/// The next message, as text.
async fn next(stream: &mut FeedStream<WatchResponse>) -> String {
    let WatchResponse { index, event } = stream.next().await.unwrap().unwrap();
    let event = match event.unwrap() {
        Event::InstanceUpserted(upserted) => format!("+{}", upserted.instance.unwrap().id),
        Event::InstanceRemoved(key) => format!("-{}", key.id),
        Event::KeyUpserted(entry) => format!("+{}", entry.key),
        Event::KeyRemoved(key) => format!("-{key}"),
        Event::SnapshotComplete(_) => "complete".into(),
        Event::Progress(_) => "progress".into(),
    };
    format!("{index} {event}")
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_then_a_marker_then_changes_and_signs_of_life() {
    let mut fixture = Fixture::new();
    fixture.apply([set("a/1", "x"), set("a/2", "x"), set("b", "x")]);
    let mut watch = fixture.watch(keys("a/"), 0);
    assert_eq!(next(&mut watch).await, "0 +a/1");
    assert_eq!(next(&mut watch).await, "0 +a/2");
    assert_eq!(next(&mut watch).await, "3 complete");

    fixture.apply([set("b", "y")]);
    assert_eq!(
        next(&mut watch).await,
        "4 progress",
        "after half a minute of nothing"
    );
    fixture.apply([set("a/1", "y"), delete("a/2"), set("a/3", "x")]);
    assert_eq!(
        next(&mut watch).await,
        "4 +a/1",
        "resuming from 7 would miss the others"
    );
    assert_eq!(next(&mut watch).await, "4 -a/2");
    assert_eq!(next(&mut watch).await, "7 +a/3");
}

#[tokio::test]
async fn an_empty_snapshot_is_complete_at_once() {
    let fixture = Fixture::new();
    assert_eq!(next(&mut fixture.watch(web(), 0)).await, "0 complete");
    assert_eq!(next(&mut fixture.watch(keys("a/"), 0)).await, "0 complete");
}

#[tokio::test]
async fn only_what_a_client_can_see_of_an_instance_is_a_change() {
    use CheckStatus::{Critical, Passing};
    let mut fixture = Fixture::new();
    fixture.apply([instance("n1", "web-1", 80, "", Passing)]);
    let mut watch = fixture.watch(web(), 0);
    assert_eq!(next(&mut watch).await, "0 +web-1");
    assert_eq!(next(&mut watch).await, "1 complete");
    fixture.apply([instance("n1", "web-1", 80, "200 OK", Passing)]);
    fixture.apply([instance("n1", "web-1", 80, "200 OK", Critical)]);
    assert_eq!(
        next(&mut watch).await,
        "3 +web-1",
        "not at 2: its output is not shown"
    );
    fixture.apply([
        instance("n2", "web-2", 80, "", Passing),
        remove("n1", "web-1"),
    ]);
    assert_eq!(next(&mut watch).await, "3 -web-1");
    assert_eq!(next(&mut watch).await, "5 +web-2");
    fixture.apply([remove("n2", "web-2")]);
    assert_eq!(next(&mut watch).await, "6 -web-2");
}

#[tokio::test]
async fn a_slow_reader_gets_the_difference_not_the_history() {
    let mut fixture = Fixture::new();
    let mut watch = fixture.watch(keys(""), 0);
    assert_eq!(next(&mut watch).await, "0 complete");
    for round in 0..1000 {
        fixture.apply([set("hot", &round.to_string())]);
        // Now and then the task gets to look, as far as the client lets it.
        if round % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut messages = 0;
    loop {
        messages += 1;
        if next(&mut watch).await == "1000 +hot" {
            break;
        }
    }
    assert!(messages <= 4, "{messages} messages");
}

#[tokio::test(start_paused = true)]
async fn who_reads_a_little_now_and_then_is_given_up_as_well() {
    let mut fixture = Fixture::new();
    fixture.apply((0..BATCH_MESSAGES * 100).map(|i| set(&format!("k/{i:05}"), "x")));
    let started = tokio::time::Instant::now();
    let mut watch = fixture.watch(keys("k/"), 0);
    let ended = loop {
        match watch.next().await.unwrap() {
            Ok(_) => tokio::time::sleep(PROGRESS / BATCH_MESSAGES as u32 / 2).await,
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted);
    assert!(
        started.elapsed() < PROGRESS * (LAPS + 2),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_watch_resumes_where_nothing_was_lost() {
    let mut fixture = Fixture::new();
    fixture.apply([set("a/1", "x"), set("a/2", "x")]);
    fixture.apply([delete("a/1"), set("a/3", "x"), set("b", "x")]);
    let mut watch = fixture.watch(keys("a/"), 2);
    assert_eq!(next(&mut watch).await, "2 -a/1");
    assert_eq!(next(&mut watch).await, "5 +a/3");
    assert_eq!(next(&mut watch).await, "5 progress");
    fixture.apply([set("a/1", "z")]);
    assert_eq!(next(&mut watch).await, "6 +a/1");

    fixture.apply([instance("n1", "web-1", 80, "", CheckStatus::Passing)]);
    let mut watch = fixture.watch(web(), 7);
    assert_eq!(next(&mut watch).await, "7 progress");
    fixture.apply([remove("n1", "web-1")]);
    assert_eq!(next(&mut watch).await, "8 -web-1");
}

#[tokio::test]
async fn what_is_no_longer_known_is_compacted() {
    let mut fixture = Fixture::new();
    fixture.apply([
        set("a/1", "x"),
        instance("n1", "web-1", 80, "", CheckStatus::Passing),
    ]);
    let tree = KvCommand::DeleteTree {
        prefix: "a/".into(),
    };
    fixture.apply([Command::Kv(tree), remove("n1", "web-1")]);
    let mut refused = Vec::new();
    refused.push(fixture.watch(keys("a/1"), 2).next().await);
    refused.push(fixture.watch(web(), 3).next().await);
    // An index that was never reached is one of another history.
    refused.push(fixture.watch(web(), 5).next().await);
    for refusal in refused {
        assert_eq!(refusal.unwrap().unwrap_err().code(), Code::OutOfRange);
    }
    assert_eq!(next(&mut fixture.watch(web(), 4)).await, "4 progress");
}

#[tokio::test]
async fn a_request_is_checked() {
    use v1::{KeyValueTarget, ServiceTarget, watch_request::Target};
    let parse = |target| {
        let resume_index = 0;
        parse(
            WatchRequest {
                target,
                resume_index,
            },
            &caller(),
        )
        .map(drop)
        .map_err(|s| s.code())
    };
    let service = |name: &str, tags| {
        let name = name.into();
        let passing_only = false;
        parse(Some(Target::Service(ServiceTarget {
            name,
            tags,
            passing_only,
        })))
    };
    assert_eq!(parse(None), Err(Code::InvalidArgument));
    assert_eq!(service("", vec![]), Err(Code::InvalidArgument));
    assert_eq!(
        service("web", vec![String::new(); 65]),
        Err(Code::InvalidArgument)
    );
    assert_eq!(service("web", vec!["v1".into()]), Ok(()));
    let prefix = "x".repeat(5000);
    let too_long = Some(Target::KeyValue(KeyValueTarget { prefix }));
    assert_eq!(parse(too_long), Err(Code::InvalidArgument));
}

/// What a client knows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    instances: BTreeMap<(String, String), ServiceInstance>,
    keys: BTreeMap<String, KeyValue>,
}

impl Known {
    /// Takes an event in; whether it said anything new.
    fn hear(&mut self, event: Event) -> bool {
        let before = self.clone();
        match event {
            Event::InstanceUpserted(instance) => {
                let id = instance.instance.clone().unwrap().id;
                self.instances.insert((instance.node.clone(), id), instance);
            }
            Event::InstanceRemoved(key) => drop(self.instances.remove(&(key.node, key.id))),
            Event::KeyUpserted(entry) => drop(self.keys.insert(entry.key.clone(), entry)),
            Event::KeyRemoved(key) => drop(self.keys.remove(&key)),
            Event::SnapshotComplete(_) | Event::Progress(_) => {}
        }
        *self != before
    }
}

fn command() -> impl Strategy<Value = Command> {
    use CheckStatus::{Critical, Passing};
    let node = || prop::sample::select(vec!["n1", "n2"]);
    let id = || prop::sample::select(vec!["web-1", "web-2"]);
    let key = || prop::sample::select(vec!["a", "a/b", "a/c", "b"]);
    let output = prop::sample::select(vec!["", "ok"]);
    let status = prop::sample::select(vec![Passing, Critical]);
    prop_oneof![
        (node(), id(), 80..82u16, output, status)
            .prop_map(|(node, id, port, output, status)| instance(node, id, port, output, status)),
        (node(), id()).prop_map(|(node, id)| remove(node, id)),
        (key(), prop::sample::select(vec!["1", "2"])).prop_map(|(key, value)| set(key, value)),
        key().prop_map(delete),
        key().prop_map(|prefix| Command::Kv(KvCommand::DeleteTree {
            prefix: prefix.into()
        })),
        (0..20u64).prop_map(|up_to| Command::Kv(KvCommand::ReapTombstones { up_to })),
    ]
}

/// Follows a subject in jumps over a history, and resumes from everywhere in it.
fn is_followed<S: Subject>(subject: &S, history: &[Command], jump: usize) {
    let mut fixture = Fixture::new();
    let (nothing, mut seen) = (subject.nothing(), subject.nothing());
    let mut known = Known::default();
    let mut checkpoints: Vec<(u64, Known)> = Vec::new();
    for batch in history.chunks(jump) {
        let mut watcher = fixture.registry.watch(subject.key());
        let index = fixture.apply(batch.iter().cloned());
        let view = fixture.registry.view();
        let now = subject.see(&view);
        let mut silent = true;
        for event in subject.changes(&seen, &now) {
            silent = false;
            assert!(known.hear(event.clone()), "told for nothing: {event:?}");
        }
        assert!(
            silent || watcher.changed().now_or_never().is_some(),
            "unannounced"
        );
        let mut fresh = Known::default();
        subject.changes(&nothing, &now).for_each(|event| {
            fresh.hear(event);
        });
        assert_eq!(known, fresh);
        for (since, before) in &checkpoints {
            if let Some(events) = subject.changes_since(&view, *since) {
                let mut resumed = before.clone();
                events.for_each(|event| {
                    resumed.hear(event);
                });
                assert_eq!(resumed, fresh, "resumed from {since}");
            }
        }
        assert!(
            subject.changes_since(&view, index).is_some(),
            "nothing happened since"
        );
        checkpoints.push((index, fresh));
        seen = now;
    }
}

proptest! {
    #[test]
    fn whoever_follows_knows_what_is_there(
        history in prop::collection::vec(command(), 1..40),
        jump in 1..5usize,
        prefix in prop::sample::select(vec!["", "a", "a/", "b"]),
        (passing_only, tagged) in any::<(bool, bool)>(),
    ) {
        is_followed(&keys(prefix), &history, jump);
        let tags = if tagged { vec!["EVEN".to_owned()] } else { Vec::new() };
        is_followed(&Instances { tags, passing_only, ..web() }, &history, jump);
    }
}
