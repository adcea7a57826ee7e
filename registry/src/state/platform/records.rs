//! The tables of the platform in a snapshot.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::{JobEntry, NodeEntry, PlatformIndexes, PlatformState};
use crate::{
    model::{
        Str,
        platform::{Alloc, Job, PlatformNode},
    },
    state::RecordError,
};

/// One row of a table of the platform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PlatformRecord {
    Indexes(PlatformIndexes),
    Job {
        name: Str,
        job: Option<Arc<Job>>,
        index: u64,
        allocs_index: u64,
    },
    JobVersion(Arc<Job>),
    Node {
        node: Arc<PlatformNode>,
        allocs_index: u64,
    },
    Alloc(Arc<Alloc>),
}

impl PlatformRecord {
    /// See [`Record::table`](crate::state::Record::table).
    pub(in crate::state) fn table(&self) -> u8 {
        match self {
            PlatformRecord::Indexes(_) => 40,
            PlatformRecord::Job { .. } => 41,
            PlatformRecord::JobVersion(_) => 42,
            PlatformRecord::Node { .. } => 43,
            PlatformRecord::Alloc(_) => 44,
        }
    }

    pub(in crate::state) fn table_name(table: u8) -> &'static str {
        match table {
            40 => "PlatformIndex",
            41 => "Job",
            42 => "JobVersion",
            43 => "PlatformNode",
            44 => "Allocation",
            _ => "Unknown",
        }
    }
}

impl PlatformState {
    /// Allocations come last: what they refer to is there already.
    pub(in crate::state) fn records(&self) -> impl Iterator<Item = PlatformRecord> + '_ {
        let jobs = self.jobs.values().map(|entry| PlatformRecord::Job {
            name: entry.name.clone(),
            job: entry.job.clone(),
            index: entry.index,
            allocs_index: entry.allocs_index,
        });
        let versions = self.jobs.values().flat_map(|entry| {
            entry
                .versions
                .values()
                .cloned()
                .map(PlatformRecord::JobVersion)
        });
        let nodes = self.nodes.values().map(|entry| PlatformRecord::Node {
            node: entry.node.clone(),
            allocs_index: entry.allocs_index,
        });
        let allocs = self.allocs.values().cloned().map(PlatformRecord::Alloc);
        std::iter::once(PlatformRecord::Indexes(self.indexes))
            .chain(jobs)
            .chain(versions)
            .chain(nodes)
            .chain(allocs)
    }

    /// Those of one node, with as much of the jobs as its allocations refer to; nothing for an unknown node.
    pub(crate) fn node_records(&self, id: &str) -> Vec<PlatformRecord> {
        let Some(entry) = self.nodes.get(id) else {
            return Vec::new();
        };
        let allocs: Vec<&Arc<Alloc>> = self.allocs_of(Some(&entry.allocs)).collect();
        let used: BTreeSet<(&Str, u64)> = allocs
            .iter()
            .map(|alloc| (&alloc.job_name, alloc.job_version))
            .collect();
        let names: BTreeSet<&Str> = used.iter().map(|(name, _)| *name).collect();
        // Nothing that changes with other nodes' allocations.
        let jobs = names.into_iter().map(|name| PlatformRecord::Job {
            name: name.clone(),
            job: None,
            index: 0,
            allocs_index: 0,
        });
        let versions = used.into_iter().filter_map(|(name, version)| {
            let job = self.jobs.get(name)?.versions.get(&version)?;
            Some(PlatformRecord::JobVersion(job.clone()))
        });
        let node = PlatformRecord::Node {
            node: entry.node.clone(),
            allocs_index: entry.allocs_index,
        };
        let allocs = allocs
            .iter()
            .map(|alloc| PlatformRecord::Alloc((*alloc).clone()));
        jobs.chain(versions).chain([node]).chain(allocs).collect()
    }

    pub(in crate::state) fn insert(&mut self, record: PlatformRecord) -> Result<(), RecordError> {
        match record {
            PlatformRecord::Indexes(indexes) => self.indexes = indexes,
            PlatformRecord::Job {
                name,
                job,
                index,
                allocs_index,
            } => {
                let entry = JobEntry {
                    name: name.clone(),
                    job,
                    versions: OrdMap::new(),
                    allocs: OrdSet::new(),
                    index,
                    allocs_index,
                };
                self.jobs.insert(name, Arc::new(entry));
            }
            PlatformRecord::JobVersion(job) => match self.jobs.get_mut(&job.name) {
                Some(entry) => {
                    Arc::make_mut(entry).versions.insert(job.version, job);
                }
                None => return Err(RecordError::UnknownJob(job.name.clone())),
            },
            PlatformRecord::Node { node, allocs_index } => {
                let id = node.id.clone();
                let entry = NodeEntry {
                    node,
                    allocs: OrdSet::new(),
                    allocs_index,
                };
                self.nodes.insert(id, Arc::new(entry));
            }
            PlatformRecord::Alloc(alloc) => {
                let (Some(job), Some(node)) = (
                    self.jobs.get_mut(&alloc.job_name),
                    self.nodes.get_mut(&alloc.node_id),
                ) else {
                    return Err(RecordError::StrayAlloc(alloc.id.clone()));
                };
                Arc::make_mut(job).allocs.insert(alloc.id.clone());
                Arc::make_mut(node).allocs.insert(alloc.id.clone());
                self.allocs.insert(alloc.id.clone(), alloc);
            }
        }
        Ok(())
    }
}
