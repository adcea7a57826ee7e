//! The actor of a runner: [`up`], then [`supervise`], at last [`down`]; [`story`] is what others see of it.

mod down;
mod line;
mod story;
mod supervise;
mod up;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{sync::mpsc, time::Instant};
use wharf_registry::model::{
    Str,
    platform::{Alloc, TaskGroup},
};

use self::line::Line;
use super::{
    Assignment,
    node::{Connected, Link, Node, PreparedImage, Shim},
    plan,
    record::{Ending, Places, Record},
    restart::Decision,
};
use crate::{
    services::Sidecar,
    shim::{
        ClientError,
        protocol::{Event, Reply, Request, State},
    },
};

/// Why an allocation is taken down.
#[derive(Debug)]
enum Outcome {
    Stop(String),
    Failed(String),
}

pub(super) struct Actor {
    node: Arc<Node>,
    alloc: Arc<Alloc>,
    group: Arc<TaskGroup>,
    places: Places,
    record: Record,
    images: BTreeMap<Str, PreparedImage>,
    connected: Connected,
    line: Option<Line>,
    sidecars: Vec<Sidecar>,
    sidecar_ready: bool,
    /// When tasks that ended are started again.
    due: BTreeMap<Str, Instant>,
}

impl Actor {
    pub(super) fn new(assignment: Assignment, node: Arc<Node>) -> Self {
        let Assignment { alloc, group } = assignment;
        let places = Places::new(&node.allocs, &node.run, &alloc.id);
        Self {
            node,
            alloc,
            group,
            places,
            record: Record::default(),
            images: BTreeMap::new(),
            connected: Connected::default(),
            line: None,
            sidecars: Vec::new(),
            sidecar_ready: false,
            due: BTreeMap::new(),
        }
    }

    /// Runs until nothing of the allocation is left.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<String>) {
        match Record::load(&self.places.dir) {
            Ok(record) => self.record = record,
            Err(error) => {
                // What ran under it is found by its control group.
                self.end(Outcome::Failed(format!("its record is lost: {error}")))
                    .await;
                return;
            }
        }
        if self.record.done {
            self.report();
            return;
        }
        let outcome = match self.record.ending.clone() {
            Some(Ending { failed: true, why }) => Outcome::Failed(why),
            Some(Ending { failed: false, why }) => Outcome::Stop(why),
            None => {
                // A stop counts from wherever the allocation is: all steps can be cut off.
                tokio::select! {
                    biased;
                    why = stopped(&mut commands) => Outcome::Stop(why),
                    outcome = self.live() => outcome,
                }
            }
        };
        self.end(outcome).await;
    }

    async fn live(&mut self) -> Outcome {
        match self.up().await {
            Ok(()) => self.supervise().await,
            Err(why) => Outcome::Failed(why),
        }
    }
}

/// The next wish to stop; for ever, if nobody can have one.
async fn stopped(commands: &mut mpsc::Receiver<String>) -> String {
    match commands.recv().await {
        Some(why) => why,
        None => std::future::pending().await,
    }
}

fn nanos(millis: u64) -> i64 {
    i64::try_from(millis)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000)
}

fn now_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
