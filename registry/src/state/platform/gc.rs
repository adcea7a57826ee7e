//! Forgetting what has ended.

use std::sync::Arc;

use super::PlatformState;
use crate::{
    model::{
        Str,
        platform::{DesiredStatus, NodeStatus},
    },
    state::Touched,
    watch::WatchKey,
};

impl PlatformState {
    /// Allocations go when they have ended and nobody waits to replace them, jobs when they are stopped
    /// and nothing of them is live, nodes when they are down and carry no record.
    pub(super) fn gc(
        &mut self,
        index: u64,
        allocs: &[Str],
        jobs: &[Str],
        nodes: &[Str],
        touched: &mut Touched,
    ) {
        for id in allocs {
            let Some(alloc) = self.allocs.get(id) else {
                continue;
            };
            let job = self
                .jobs
                .get(&alloc.job_name)
                .and_then(|entry| entry.job.as_ref());
            let replaced = alloc.desired_status == DesiredStatus::Stop
                || job.is_none_or(|job| job.stop || job.group(&alloc.group).is_none());
            if !alloc.is_live() && replaced {
                let job = alloc.job_name.clone();
                self.forget_alloc(index, id, touched);
                self.prune_job(index, &job, touched);
            }
        }
        for name in jobs {
            let Some(entry) = self.jobs.get(name) else {
                continue;
            };
            let stopped = entry.job.as_ref().is_none_or(|job| job.stop);
            let ids: Vec<Str> = entry.allocs.iter().cloned().collect();
            if !stopped
                || self
                    .allocs_of(Some(&entry.allocs))
                    .any(|alloc| alloc.is_live())
            {
                continue;
            }
            for id in &ids {
                self.forget_alloc(index, id, touched);
            }
            if let Some(entry) = self.jobs.get_mut(name) {
                if entry.job.is_some() {
                    self.indexes.jobs = index;
                    touched.add(WatchKey::Jobs);
                }
                Arc::make_mut(entry).job = None;
            }
            self.prune_job(index, name, touched);
        }
        for id in nodes {
            let removable = self.nodes.get(id).is_some_and(|entry| {
                entry.node.status == NodeStatus::Down && entry.allocs.is_empty()
            });
            if removable {
                self.nodes.remove(id);
                self.indexes.node_extinction = index;
                self.node_changed(index, id.clone(), touched);
                touched.add(WatchKey::NodeAllocs(id.clone()));
            }
        }
    }

    fn forget_alloc(&mut self, index: u64, id: &Str, touched: &mut Touched) {
        let Some(alloc) = self.allocs.remove(id) else {
            return;
        };
        self.indexes.alloc_extinction = index;
        self.alloc_changed(index, &alloc, touched, |ids| {
            ids.remove(id);
        });
    }
}
