//! Who was a member of the cluster, and left.
//!
//! Liveness is somebody else's to judge; here it is kept what a member was when it left, because people ask for it: for how
//! long, and that one of the same name is back, is for others to say too.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{State, Touched};
use crate::{
    command::Departure,
    model::{Node, NodeService, Str, platform::UnixNanos},
};

/// A member as it was when it left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftMember {
    pub node: Arc<Node>,
    /// The instance on it that says what kind of a member it was.
    pub service: Option<Arc<NodeService>>,
    /// When it left.
    pub time: UnixNanos,
}

impl State {
    /// Takes the node out of the catalog, and remembers it.
    pub(super) fn depart(
        &mut self,
        index: u64,
        key: &Str,
        departure: &Departure,
        touched: &mut Touched,
    ) {
        let Some(entry) = self.nodes.get(key) else {
            return;
        };
        let unless = departure.unless.as_ref();
        if unless.is_some_and(|unless| !entry.says_still(&unless.check, unless.index)) {
            return;
        }
        let left = LeftMember {
            node: entry.node.clone(),
            service: entry.services.get(&departure.service).cloned(),
            time: departure.time,
        };
        self.remove_node(index, key, touched);
        self.left.insert(key.clone(), Arc::new(left));
    }

    /// Forgets who left, if it was then; otherwise it has left once more since.
    pub(super) fn forget(&mut self, key: &Str, time: Option<UnixNanos>) {
        let left = self.left.get(key);
        if left.is_some_and(|left| time.is_none_or(|time| left.time == time)) {
            self.left.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::{Changed, Command, Deregister, DeregisterTarget, Register},
        model::{CheckStatus, HealthCheck},
    };

    struct Bench(State);

    impl Bench {
        fn apply(&mut self, command: Command) {
            let index = self.0.applied() + 1;
            self.0.apply(index, &command, &mut Touched::default());
        }

        /// A node with an instance, and a check at whose index it is.
        fn says(&mut self, status: CheckStatus) -> u64 {
            let register = Register {
                node: Node {
                    name: "N1".into(),
                    address: "10.0.0.1".into(),
                    ..Node::default()
                },
                service: Some(NodeService {
                    id: "kind".into(),
                    name: "kind".into(),
                    port: 8300,
                    ..NodeService::default()
                }),
                checks: vec![HealthCheck {
                    id: "alive".into(),
                    status,
                    ..HealthCheck::default()
                }],
                ..Register::default()
            };
            self.apply(Command::Register(Box::new(register)));
            self.0.nodes["n1"].checks["alive"].modify_index
        }

        fn depart(&mut self, time: UnixNanos, unless: Option<(&str, u64)>) {
            self.deregister(DeregisterTarget::Member(Departure {
                service: "kind".into(),
                time,
                unless: unless.map(|(check, index)| Changed {
                    check: check.into(),
                    index,
                }),
            }));
        }

        fn deregister(&mut self, target: DeregisterTarget) {
            let node = "n1".into();
            self.apply(Command::Deregister(Deregister { node, target }));
        }

        /// When it left, as is remembered.
        fn left(&self) -> Option<UnixNanos> {
            self.0.left.get("n1").map(|left| left.time)
        }
    }

    #[test]
    fn who_leaves_is_remembered_as_it_was_until_it_is_forgotten() {
        let mut bench = Bench(State::default());
        bench.depart(1, None);
        assert_eq!(bench.left(), None, "it was none");
        bench.says(CheckStatus::Passing);
        bench.depart(2, None);
        assert!(bench.0.nodes.is_empty());
        let left = bench.0.left["n1"].clone();
        assert_eq!((&*left.node.name, left.time), ("N1", 2));
        assert_eq!(left.service.as_ref().unwrap().port, 8300);
        // It comes and goes again; what is remembered is the last time.
        bench.says(CheckStatus::Passing);
        assert_eq!(bench.left(), Some(2), "who is back is for others to judge");
        bench.depart(3, None);
        bench.deregister(DeregisterTarget::LeftMember { time: Some(2) });
        assert_eq!(bench.left(), Some(3));
        bench.deregister(DeregisterTarget::LeftMember { time: Some(3) });
        assert_eq!(bench.left(), None);
        bench.says(CheckStatus::Passing);
        bench.depart(4, None);
        bench.deregister(DeregisterTarget::LeftMember { time: None });
        assert_eq!(bench.left(), None);
    }

    #[test]
    fn who_is_back_since_somebody_looked_has_not_left() {
        let mut bench = Bench(State::default());
        let seen = bench.says(CheckStatus::Critical);
        bench.says(CheckStatus::Passing);
        let again = bench.says(CheckStatus::Critical);
        bench.depart(1, Some(("alive", seen)));
        bench.depart(1, Some(("other", again)));
        assert_eq!(bench.left(), None);
        bench.depart(1, Some(("alive", again)));
        assert_eq!(bench.left(), Some(1));
    }

    #[test]
    fn it_is_in_snapshots() {
        let mut bench = Bench(State::default());
        bench.says(CheckStatus::Passing);
        bench.depart(7, None);
        let mut restored = State::restored(bench.0.applied()).unwrap();
        for record in bench.0.records() {
            restored.insert(record).unwrap();
        }
        assert_eq!(restored.left["n1"], bench.0.left["n1"]);
    }
}
