use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, pending, select_all};
use tokio::time::{Instant, sleep_until};
use wharf_registry::{
    Command, Outcome, View,
    command::{Plan, PlatformCommand},
    model::{
        Str,
        platform::{Alloc, UnixNanos},
    },
    state::JobEntry,
    watch::{WatchKey, Watcher},
};
use wharf_scheduler::{ClusterView, Random, Round, Scheduled, Scheduler};

use super::{Decisions, garbage};
use crate::{
    cluster::{Cluster, ClusterError},
    platform::{health, unix_now},
};

/// A plan is written when it has this many placements: about a quarter of a MiB.
const BATCH: usize = 256;

/// How long a job waits of which something was left out, unless something changes: nanoseconds.
const LEFT_OUT: UnixNanos = 500_000_000;

/// What the leader knows and has to do.
pub(super) struct Leading<'a> {
    cluster: &'a dyn Cluster,
    scheduler: &'a Scheduler,
    decisions: &'a Decisions,
    /// Any change of a job, an allocation or a node.
    tables: [Watcher; 3],
    view: Arc<View>,
    /// What `view` says of the nodes, with what is planned and not written yet.
    nodes: ClusterView,
    dirty: BTreeSet<Str>,
    /// Jobs that time makes dirty.
    timers: BTreeMap<Str, UnixNanos>,
    /// Jobs that capacity makes dirty.
    blocked: BTreeSet<Str>,
    /// Services whose health makes a job dirty.
    health: BTreeMap<Str, Vec<Watcher>>,
    next_garbage: Instant,
}

impl<'a> Leading<'a> {
    pub(super) fn new(
        cluster: &'a dyn Cluster,
        scheduler: &'a Scheduler,
        decisions: &'a Decisions,
    ) -> Leading<'a> {
        let registry = cluster.registry();
        // Watched first, loaded after: nothing is missed.
        let tables = [WatchKey::Jobs, WatchKey::Allocs, WatchKey::PlatformNodes]
            .map(|key| registry.watch(key).standing());
        let view = registry.view();
        Leading {
            cluster,
            scheduler,
            decisions,
            tables,
            nodes: ClusterView::new(view.platform_nodes(), view.allocs()),
            dirty: view.job_names().cloned().collect(),
            view,
            timers: BTreeMap::new(),
            blocked: BTreeSet::new(),
            health: BTreeMap::new(),
            next_garbage: Instant::now() + garbage::INTERVAL,
        }
    }

    /// Decides about every dirty job, and writes what was decided.
    pub(super) async fn pass(&mut self) -> Result<(), ClusterError> {
        if Instant::now() >= self.next_garbage {
            self.next_garbage = Instant::now() + garbage::INTERVAL;
            if let Some(command) = garbage::collect(&self.view, unix_now()) {
                self.cluster.write(Command::Platform(command)).await?;
                self.catch_up();
            }
        }
        let now = unix_now();
        let due = self.timers.extract_if(.., |_, at| *at <= now);
        self.dirty.extend(due.map(|(name, _)| name));
        while !self.dirty.is_empty() {
            let mut plan = Plan {
                time: unix_now(),
                ..Plan::default()
            };
            let mut planned = Vec::new();
            while plan.placements.len() < BATCH {
                let Some(name) = self.dirty.pop_first() else {
                    break;
                };
                self.timers.remove(&name);
                self.blocked.remove(&name);
                self.health.remove(&name);
                let Some(entry) = self.view.job_entry(&name).cloned() else {
                    self.decisions.forget_job(&name);
                    continue;
                };
                let mut scheduled = self.decide(&entry, plan.time);
                plan.stops.append(&mut scheduled.plan.stops);
                plan.placements
                    .extend(scheduled.plan.placements.iter().cloned());
                planned.push((entry, scheduled));
            }
            for (entry, scheduled) in &planned {
                self.remember(entry, scheduled);
                self.decisions.record(entry, scheduled, plan.time);
            }
            if !plan.is_empty() {
                self.write(plan).await?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, entry: &JobEntry, now: UnixNanos) -> Scheduled {
        let view = self.view.clone();
        let allocs: Vec<Arc<Alloc>> = view.job_allocs(&entry.name).cloned().collect();
        let mut seed = DefaultHasher::new();
        (&entry.name, entry.index, view.applied()).hash(&mut seed);
        let mut round = Round {
            scheduler: self.scheduler,
            cluster: &mut self.nodes,
            healthy: &|alloc| health::is_healthy(&view, alloc),
            now,
            random: &mut Random::new(seed.finish()),
            new_id: &mut || uuid::Uuid::new_v4().to_string().into(),
        };
        round.schedule(entry, &allocs)
    }

    /// When to look at a job again, besides when it changes.
    fn remember(&mut self, entry: &JobEntry, scheduled: &Scheduled) {
        let name = &entry.name;
        if let Some(at) = scheduled.look_again {
            self.timers.insert(name.clone(), at);
        }
        if !scheduled.unplaced.is_empty() {
            self.blocked.insert(name.clone());
        }
        if scheduled.waits_for_health
            && let Some(job) = &entry.job
        {
            let services: BTreeSet<&Str> = job
                .groups
                .iter()
                .flat_map(|group| &group.services)
                .map(|service| &service.name)
                .collect();
            let registry = self.cluster.registry();
            let watchers = services
                .into_iter()
                .map(|service| registry.watch(WatchKey::service(service)).standing());
            self.health.insert(name.clone(), watchers.collect());
            // What changed between the view that was asked and these watchers is looked at once more.
            if registry.view().applied() != self.view.applied() {
                self.timers.insert(name.clone(), unix_now());
            }
        }
    }

    async fn write(&mut self, plan: Plan) -> Result<(), ClusterError> {
        let jobs: BTreeMap<Str, Str> = plan
            .placements
            .iter()
            .map(|alloc| (alloc.id.clone(), alloc.job_name.clone()))
            .collect();
        let command = Command::Platform(PlatformCommand::ApplyPlan(plan));
        if let Outcome::Planned(outcome) = self.cluster.propose(command).await? {
            for (id, reason) in outcome.left_out {
                tracing::warn!(alloc = &*id, %reason, "a placement was left out of its plan");
                self.nodes.remove_alloc(&id);
                if let Some(job) = jobs.get(&id) {
                    self.timers.insert(job.clone(), unix_now() + LEFT_OUT);
                }
            }
        }
        self.catch_up();
        Ok(())
    }

    /// Takes over what changed since the last view, and marks the jobs that it concerns.
    fn catch_up(&mut self) {
        let view = self.cluster.registry().view();
        let earlier = std::mem::replace(&mut self.view, view.clone());
        let mut capacity = false;
        for (id, change) in view.changed_platform_nodes(&earlier) {
            match change.new {
                Some(node) => self.nodes.set_node(node.clone()),
                None => self.nodes.remove_node(id),
            }
            capacity = true;
            let allocs = view.node_allocs(id).filter(|alloc| alloc.is_live());
            self.dirty
                .extend(allocs.map(|alloc| alloc.job_name.clone()));
        }
        for (id, change) in view.changed_allocs(&earlier) {
            match change.new {
                Some(alloc) => self.nodes.set_alloc(alloc),
                None => self.nodes.remove_alloc(id),
            }
            let was_live = change.old.is_some_and(|alloc| alloc.is_live());
            let is_live = change.new.is_some_and(|alloc| alloc.is_live());
            capacity |= was_live && !is_live;
            if let Some(alloc) = change.new.or(change.old) {
                self.dirty.insert(alloc.job_name.clone());
            }
        }
        self.dirty.extend(view.changed_jobs(&earlier).cloned());
        if capacity {
            self.dirty.append(&mut self.blocked);
        }
    }

    /// Completes when there is something to do.
    pub(super) async fn changed(&mut self) {
        let now = unix_now();
        let timer = self.timers.values().min().map(|at| {
            let wait = Duration::from_nanos(u64::try_from(at - now).unwrap_or(0));
            Instant::now() + wait
        });
        let timer = timer.map_or(self.next_garbage, |at| at.min(self.next_garbage));
        let healthier = self.next_wake(timer).await;
        self.dirty.extend(healthier);
        self.catch_up();
    }

    /// Completes when a table or the health of a service changed, or at `timer`; with the job whose service
    /// it was.
    async fn next_wake(&mut self, timer: Instant) -> Option<Str> {
        let tables = select_all(
            self.tables
                .iter_mut()
                .map(|watcher| Box::pin(watcher.changed())),
        );
        let services: Vec<_> = self
            .health
            .iter_mut()
            .flat_map(|(name, watchers)| watchers.iter_mut().map(move |watcher| (name, watcher)))
            .map(|(name, watcher)| {
                Box::pin(async move {
                    watcher.changed().await;
                    name.clone()
                })
            })
            .collect();
        let services = match services.is_empty() {
            true => Either::Left(pending()),
            false => Either::Right(select_all(services)),
        };
        tokio::select! {
            _ = tables => None,
            (name, ..) = services => Some(name),
            () = sleep_until(timer) => None,
        }
    }
}
