//! This node's half of the platform: what the state wants here, runs here.
//!
//! Level-triggered like the scheduler: the allocations of this node are watched, and each look compares what is wanted
//! with the runners there are. What an earlier agent started is found by its directory. What nobody knows any more is
//! taken down.

mod adapters;
mod facts;
mod reports;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_launcher::runner::{AllocRunner, Assignment, Node, Reports as _};
use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{Alloc, AllocUpdate, ClientStatus, DesiredStatus, PlatformNode},
    },
    watch::WatchKey,
};

pub(crate) use adapters::Parts;
use reports::ReportQueue;

use super::unix_now;
use crate::cluster::{Cluster, Consistency};

/// Pause after a write that failed.
const RETRY: Duration = Duration::from_millis(500);

/// How long the allocations of an agent that takes all of them along may take to end.
const END: Duration = Duration::from_secs(60);

/// The task that keeps this node as the state wants it.
#[derive(Debug)]
pub(crate) struct NodeLoop {
    cluster: Arc<dyn Cluster>,
    facts: PlatformNode,
    node: Arc<Node>,
    reports: Arc<ReportQueue>,
    runners: BTreeMap<Str, AllocRunner>,
    /// A runner has ended.
    ended: Arc<Notify>,
    /// At the end everything is stopped.
    temporary: bool,
}

impl NodeLoop {
    pub(crate) fn new(cluster: Arc<dyn Cluster>, parts: Parts) -> Self {
        let reports = Arc::new(ReportQueue::default());
        let temporary = parts.temporary;
        let (facts, node) = parts.assemble(reports.clone());
        Self {
            cluster,
            facts,
            node: Arc::new(node),
            reports,
            runners: BTreeMap::new(),
            ended: Arc::default(),
            temporary,
        }
    }

    /// Runs until `stop`; then, in an agent that keeps nothing, until everything is stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let writing = CancellationToken::new();
        let writer = TaskTracker::new();
        writer.spawn(self.reports.clone().run(
            self.cluster.clone(),
            self.facts.id.clone(),
            writing.clone(),
        ));
        tokio::select! {
            () = self.follow() => {}
            () = stop.cancelled() => {}
        }
        if self.temporary {
            self.end().await;
        }
        writing.cancel();
        writer.close();
        writer.wait().await;
        // Dropped runners leave what runs to the next agent.
    }

    async fn follow(&mut self) {
        let mut watcher = self
            .cluster
            .registry()
            .watch(WatchKey::NodeAllocs(self.facts.id.clone()))
            .standing();
        let mut known = self.cluster.registry().watch(self.watch_key()).standing();
        // Before it is known what is wanted here, nothing is stopped.
        have(&*self.cluster, &self.facts.id).await;
        register(&*self.cluster, &self.facts).await;
        let mut swept = false;
        loop {
            let ended = self.ended.clone();
            let ended = ended.notified();
            let mut view = self.cluster.registry().view();
            if view.platform_node(&self.facts.id).is_none() {
                // The state was replaced by one that does not know it.
                register(&*self.cluster, &self.facts).await;
                view = self.cluster.registry().view();
            }
            self.apply(&view);
            if !std::mem::replace(&mut swept, true) {
                // Every allocation that has something here has a runner now.
                let known = self.runners.keys().map(ToString::to_string).collect();
                self.node.sweep(&known).await;
            }
            tokio::select! {
                () = watcher.changed() => {}
                () = known.changed() => {}
                () = ended => {}
            }
        }
    }

    fn watch_key(&self) -> WatchKey {
        WatchKey::PlatformNode(self.facts.id.clone())
    }

    fn apply(&mut self, view: &View) {
        let mut known = BTreeSet::new();
        let id = self.facts.id.clone();
        for alloc in view.node_allocs(&id) {
            known.insert(alloc.id.clone());
            self.compare(view, alloc);
        }
        self.runners
            .retain(|id, runner| !runner.is_finished() || known.contains(id));
        for (id, assignment) in self.strangers(&known) {
            match assignment {
                Some(assignment) if !self.runners.contains_key(&id) => {
                    tracing::info!(
                        alloc = &*id,
                        "an allocation that nobody knows is taken down"
                    );
                    self.start(assignment);
                }
                Some(_) => {}
                None => {
                    let _ = fs::remove_dir_all(self.node.allocs.join(&*id));
                }
            }
            if let Some(runner) = self.runners.get(&id) {
                runner.stop("the servers do not know it any more");
            }
        }
    }

    fn compare(&mut self, view: &View, alloc: &Arc<Alloc>) {
        let wanted = alloc.desired_status == DesiredStatus::Run;
        if let Some(runner) = self.runners.get(&alloc.id) {
            if !wanted || !alloc.is_live() {
                runner.stop(&alloc.desired_description);
            }
            return;
        }
        let here = self.node.allocs.join(&*alloc.id).exists();
        let unfinished = here && Assignment::is_unfinished(&self.node.allocs, &alloc.id);
        if !alloc.is_live() && !unfinished {
            return;
        }
        if !wanted && !here {
            // It never began.
            self.reports.update(AllocUpdate {
                id: alloc.id.clone(),
                client_status: ClientStatus::Complete,
                client_description: alloc.desired_description.clone(),
                ..AllocUpdate::default()
            });
            return;
        }
        let group = view
            .job_version(&alloc.job_name, alloc.job_version)
            .and_then(|job| job.group(&alloc.group))
            .cloned();
        let Some(group) = group else {
            self.reports.update(AllocUpdate {
                id: alloc.id.clone(),
                client_status: ClientStatus::Failed,
                client_description: format!(
                    "version {} of job {:?} has no group {:?}",
                    alloc.job_version, alloc.job_name, alloc.group
                )
                .into(),
                ..AllocUpdate::default()
            });
            return;
        };
        self.start(Assignment {
            alloc: alloc.clone(),
            group,
        });
        // Also one that was given up while this agent was away: it runs elsewhere by now.
        if (!wanted || !alloc.is_live())
            && let Some(runner) = self.runners.get(&alloc.id)
        {
            runner.stop(&alloc.desired_description);
        }
    }

    fn start(&mut self, assignment: Assignment) {
        let id = assignment.alloc.id.clone();
        let ended = self.ended.clone();
        let runner = AllocRunner::start(assignment, self.node.clone(), move || ended.notify_one());
        self.runners.insert(id, runner);
    }

    /// Directories of allocations that are not `known`, with what they were; nothing, if nothing of them runs.
    fn strangers(&self, known: &BTreeSet<Str>) -> Vec<(Str, Option<Assignment>)> {
        let entries = fs::read_dir(&self.node.allocs)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| Some(Str::from(entry.file_name().to_str()?)))
            .filter(|id| !known.contains(id))
            .map(|id| {
                let unfinished = Assignment::is_unfinished(&self.node.allocs, &id);
                let assignment = unfinished
                    .then(|| Assignment::load(&self.node.allocs, &id))
                    .flatten();
                (id, assignment)
            })
            .collect()
    }

    async fn end(&mut self) {
        for runner in self.runners.values() {
            runner.stop("the agent ends");
        }
        let all = async {
            for runner in self.runners.values_mut() {
                runner.finished().await;
            }
        };
        if tokio::time::timeout(END, all).await.is_err() {
            tracing::error!("some allocations did not end");
        }
    }
}

/// Makes a node known; after that, all that was written before has been seen here.
async fn register(cluster: &dyn Cluster, facts: &PlatformNode) {
    loop {
        let command = Command::Platform(PlatformCommand::RegisterNode {
            node: Box::new(facts.clone()),
            time: unix_now(),
        });
        let registered = async {
            cluster.write(command).await?;
            cluster.barrier(Consistency::Default).await
        };
        match registered.await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "this node is not registered yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Waits until what the state wants of a node is known here.
async fn have(cluster: &dyn Cluster, id: &Str) {
    while let Err(error) = cluster.have(&[WatchKey::PlatformNode(id.clone())]).await {
        tracing::debug!(%error, "what is wanted of this node is not known yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// A node that can run nothing says why, where people look for it: at the job that finds no node.
#[derive(Debug)]
pub(crate) struct IdleNode {
    cluster: Arc<dyn Cluster>,
    facts: PlatformNode,
}

impl IdleNode {
    pub(crate) fn new(
        cluster: Arc<dyn Cluster>,
        id: &str,
        name: &str,
        address: IpAddr,
        why: &str,
    ) -> IdleNode {
        let facts = facts::idle(id, name, &address.to_string(), why);
        IdleNode { cluster, facts }
    }

    /// Keeps itself known until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let registry = self.cluster.registry();
        let key = WatchKey::PlatformNode(self.facts.id.clone());
        let mut known = registry.watch(key).standing();
        let keep = async {
            have(&*self.cluster, &self.facts.id).await;
            loop {
                if registry.view().platform_node(&self.facts.id).is_none() {
                    register(&*self.cluster, &self.facts).await;
                }
                known.changed().await;
            }
        };
        tokio::select! {
            () = keep => {}
            () = stop.cancelled() => {}
        }
    }
}
