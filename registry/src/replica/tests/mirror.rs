//! Whoever follows a part of the state has that part, whatever happens and however it is told.

use std::collections::BTreeSet;

use super::*;
use crate::mirror::{Mirror, News, Topic, news, pack, reverse, unpack};

fn topics() -> Vec<Topic> {
    let mut topics = vec![Topic::Config];
    for name in ["n1", "n2", "n3"] {
        topics.push(Topic::node(name));
        topics.push(Topic::PlatformNode(name.into()));
    }
    topics.extend(["web", "db"].map(Topic::service));
    topics
}

/// What happens to the follower between two batches of entries.
#[derive(Clone, Debug)]
enum Step {
    /// It is told what is new.
    Tell,
    /// It is told everything, as by another server.
    Again,
    Follow(usize),
    Unfollow(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Tell),
        1 => Just(Step::Again),
        4 => (0usize..9).prop_map(Step::Follow),
        1 => (0usize..9).prop_map(Step::Unfollow),
    ]
}

/// A follower and its server.
struct Following {
    mirror: Mirror,
    /// As of when the topics that are told were told.
    told: std::sync::Arc<View>,
    followed: BTreeSet<Topic>,
}

impl Following {
    fn tell(&mut self, now: &std::sync::Arc<View>, fresh: Option<&Topic>, rows: usize) {
        let old = self.followed.iter().filter(|topic| Some(*topic) != fresh);
        let old = old.filter_map(|topic| news(topic, Some(&self.told), now));
        let new = fresh.and_then(|topic| news(topic, None, now));
        let pieces = old.chain(new).flat_map(|news| news.split(rows));
        let pieces: Vec<News> = pieces
            .map(|piece| unpack(&pack(&piece).unwrap()).unwrap())
            .collect();
        self.mirror.apply(now.applied(), pieces).unwrap();
        self.told = now.clone();
    }
}

fn follow(
    commands: &[Command],
    steps: &[Step],
    batch: usize,
    rows: usize,
) -> Result<(), TestCaseError> {
    let mut replica = Replica::new();
    let registry = replica.registry();
    let topics = topics();
    let mut following = Following {
        mirror: Mirror::new(),
        told: registry.view(),
        followed: BTreeSet::new(),
    };
    let copy = following.mirror.registry();
    let all = entries(commands);
    let mut steps = steps.iter().cycle();
    for batch in all.chunks(batch) {
        replica.apply(batch).unwrap();
        let before: Vec<_> = topics.iter().map(|t| news(t, None, &copy.view())).collect();
        let watched: Vec<_> = topics.iter().map(|topic| topic.keys()).collect();
        let mut watchers: Vec<_> = watched
            .iter()
            .map(|keys| {
                keys.iter()
                    .map(|key| copy.watch(key.clone()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let now = registry.view();
        let mut gone = None;
        match steps.next() {
            None | Some(Step::Tell) => following.tell(&now, None, rows),
            Some(Step::Again) => {
                let again: Vec<Topic> = following.followed.iter().cloned().collect();
                for topic in again {
                    following.tell(&now, Some(&topic), rows);
                }
            }
            Some(Step::Follow(n)) => {
                let topic = topics[n % topics.len()].clone();
                // There is room for one of these.
                let taken = |t: &Topic| matches!(t, Topic::PlatformNode(_)) && *t != topic;
                let taken = following.followed.iter().any(taken);
                if !(taken && matches!(topic, Topic::PlatformNode(_))) {
                    following.followed.insert(topic.clone());
                    following.tell(&now, Some(&topic), rows);
                }
            }
            Some(Step::Unfollow(n)) => {
                let topic = &topics[n % topics.len()];
                following.followed.remove(topic);
                let kept: Vec<Topic> = following.followed.iter().cloned().collect();
                match n % 2 {
                    0 => following.mirror.forget(topic),
                    _ => following.mirror.retain(&kept),
                }
                gone = Some(topic);
                following.tell(&now, None, rows);
            }
        }
        let view = copy.view();
        for ((topic, before), watchers) in topics.iter().zip(before).zip(&mut watchers) {
            let after = news(topic, None, &view);
            if following.followed.contains(topic) {
                prop_assert_eq!(&after, &news(topic, None, &following.told));
            }
            if after != before && gone != Some(topic) {
                let woken = watchers
                    .iter_mut()
                    .filter_map(|watcher| watcher.changed().now_or_never());
                prop_assert!(woken.count() > 0, "nobody was woken for {:?}", topic);
            }
        }
        prop_assert_eq!(following.mirror.index(), following.told.applied());
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_mirror_has_what_it_follows(
        commands in proptest::collection::vec(command(), 1..60),
        steps in proptest::collection::vec(step(), 1..20),
        batch in 1usize..4,
        rows in 1usize..4,
    ) {
        follow(&commands, &steps, batch, rows)?;
    }

    #[test]
    fn a_mirror_has_the_allocations_of_its_node(
        commands in platform::history(),
        steps in proptest::collection::vec(step(), 1..20),
        batch in 1usize..4,
    ) {
        follow(&commands, &steps, batch, 1)?;
    }

    #[test]
    fn who_has_an_address_is_told_whole(
        commands in proptest::collection::vec(command(), 1..60),
    ) {
        let mut replica = Replica::new();
        replica.apply(&entries(&commands)).unwrap();
        let view = replica.freeze();
        for address in ADDRESSES.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let told = View::of_records(reverse(&view, address)).unwrap();
            let nodes = |view: &View| -> Vec<Str> {
                view.nodes_at(address).map(|entry| entry.node.name.clone()).collect()
            };
            prop_assert_eq!(nodes(&told), nodes(&view));
            let instances = |view: &View| -> Vec<(Str, Str, Str, CheckStatus)> {
                let all = view.instances_at(address);
                all.map(|(_, one)| {
                    let service = &one.service;
                    (one.node.name.clone(), service.name.clone(), service.id.clone(), one.status)
                })
                .collect()
            };
            prop_assert_eq!(instances(&told), instances(&view));
        }
    }
}

#[test]
fn changes_of_what_was_never_told_are_refused_and_change_nothing() {
    let mut replica = Replica::new();
    let register = |port: u16| {
        Command::Register(Box::new(Register {
            node: Node {
                name: "n1".into(),
                address: "10.0.0.1".into(),
                ..Node::default()
            },
            service: Some(NodeService {
                id: "web".into(),
                name: "web".into(),
                port,
                ..NodeService::default()
            }),
            ..Register::default()
        }))
    };
    replica.apply(&entries(&[register(80)])).unwrap();
    let earlier = replica.freeze();
    let later = Committed {
        index: replica.last_applied() + 1,
        command: Some(register(81).encode()),
    };
    replica.apply(&[later]).unwrap();
    let mut mirror = Mirror::new();
    for topic in [Topic::service("web"), Topic::node("n1")] {
        let change = news(&topic, Some(&earlier), &replica.freeze()).unwrap();
        assert!(mirror.apply(9, vec![change]).is_err(), "{topic:?}");
    }
    assert_eq!(mirror.index(), 0);
    assert!(unpack::<News>(b"\xc1").is_err());
}
