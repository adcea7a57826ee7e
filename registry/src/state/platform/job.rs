//! Jobs and their versions.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet};

use super::{JobEntry, PlatformState};
use crate::{
    command::PlatformRefusal,
    model::{
        Str,
        platform::{Job, MAX_COUNT, TaskGroup, UnixNanos},
    },
    state::Touched,
    watch::WatchKey,
};

/// How many versions of a job are kept, besides those that an allocation was made from.
const KEPT_VERSIONS: usize = 6;

impl PlatformState {
    pub(super) fn register_job(
        &mut self,
        index: u64,
        wanted: &Job,
        check_index: Option<u64>,
        time: UnixNanos,
        touched: &mut Touched,
    ) -> Result<(), PlatformRefusal> {
        if wanted.name.is_empty() {
            return Err(PlatformRefusal::JobNameMissing);
        }
        let name = &wanted.name;
        let entry = self.jobs.get(name);
        let existing = entry.and_then(|entry| entry.job.as_ref());
        match (check_index, existing.map(|job| job.job_modify_index)) {
            (Some(0), Some(index)) => {
                let name = name.clone();
                return Err(PlatformRefusal::JobExists { name, index });
            }
            (Some(expected), Some(index)) if expected != index => {
                return Err(PlatformRefusal::JobChanged {
                    name: name.clone(),
                    index,
                    expected,
                });
            }
            (Some(expected), None) if expected != 0 => {
                let name = name.clone();
                return Err(PlatformRefusal::JobNotThere { name, expected });
            }
            _ => {}
        }
        let mut job = wanted.clone();
        job.id = name.clone();
        job.stop = false;
        job.submit_time = time;
        job.modify_index = index;
        // Purged, and registered again while allocations of it are left: their versions are taken.
        let last_version = entry.and_then(|entry| entry.versions.get_max());
        let last_version = last_version.map(|(version, _)| *version);
        match existing {
            Some(old) => {
                let same = old.is_same_spec(&job);
                job.create_index = old.create_index;
                job.version = match same {
                    true => old.version,
                    false => last_version.map_or(0, |last| last + 1),
                };
                job.job_modify_index = match same && !old.stop {
                    true => old.job_modify_index,
                    false => index,
                };
            }
            None => {
                job.create_index = index;
                job.version = last_version.map_or(0, |last| last + 1);
                job.job_modify_index = index;
            }
        }
        self.put_job(index, job, touched);
        Ok(())
    }

    pub(super) fn deregister_job(
        &mut self,
        index: u64,
        name: &Str,
        purge: bool,
        time: UnixNanos,
        touched: &mut Touched,
    ) -> Result<(), PlatformRefusal> {
        let job = self.job_or_refuse(name)?;
        if purge {
            if let Some(entry) = self.jobs.get_mut(name) {
                let entry = Arc::make_mut(entry);
                entry.job = None;
                entry.index = index;
            }
            self.indexes.jobs = index;
            touched.add(WatchKey::Jobs);
            touched.add(WatchKey::Job(name.clone()));
            self.prune_job(index, name, touched);
            return Ok(());
        }
        if job.stop {
            return Ok(());
        }
        let mut job = Job::clone(job);
        job.stop = true;
        job.submit_time = time;
        job.modify_index = index;
        job.job_modify_index = index;
        self.put_job(index, job, touched);
        Ok(())
    }

    pub(super) fn scale_job(
        &mut self,
        index: u64,
        name: &Str,
        group: &Str,
        count: u32,
        time: UnixNanos,
        touched: &mut Touched,
    ) -> Result<(), PlatformRefusal> {
        let job = self.job_or_refuse(name)?;
        if job.stop {
            return Err(PlatformRefusal::JobStopped(name.clone()));
        }
        if count > MAX_COUNT {
            return Err(PlatformRefusal::CountTooHigh {
                count,
                max: MAX_COUNT,
            });
        }
        let known = || {
            let names: Vec<&str> = job.groups.iter().map(|group| &*group.name).collect();
            names.join(", ")
        };
        let at = match job.groups.len() {
            1 if group.is_empty() => 0,
            _ if group.is_empty() => {
                return Err(PlatformRefusal::WhichGroup {
                    job: name.clone(),
                    known: known(),
                });
            }
            _ => match job.groups.iter().position(|own| own.name == *group) {
                Some(at) => at,
                None => {
                    return Err(PlatformRefusal::UnknownGroup {
                        job: name.clone(),
                        group: group.clone(),
                        known: known(),
                    });
                }
            },
        };
        if job.groups[at].count == count {
            return Ok(());
        }
        let mut job = Job::clone(job);
        job.groups[at] = Arc::new(TaskGroup {
            count,
            ..TaskGroup::clone(&job.groups[at])
        });
        self.register_job(index, &job, None, time, touched)
    }

    fn put_job(&mut self, index: u64, job: Job, touched: &mut Touched) {
        let name = job.name.clone();
        let job = Arc::new(job);
        let mut entry = match self.jobs.get(&name) {
            Some(entry) => JobEntry::clone(entry),
            None => JobEntry {
                name: name.clone(),
                job: None,
                versions: OrdMap::new(),
                allocs: OrdSet::new(),
                index,
                allocs_index: index,
            },
        };
        entry.versions.insert(job.version, job.clone());
        entry.job = Some(job);
        entry.index = index;
        self.jobs.insert(name.clone(), Arc::new(entry));
        self.indexes.jobs = index;
        touched.add(WatchKey::Jobs);
        touched.add(WatchKey::Job(name.clone()));
        self.prune_job(index, &name, touched);
    }

    /// Forgets versions that are neither new nor in use, and the entry of a job that is gone with its
    /// last allocation.
    pub(super) fn prune_job(&mut self, index: u64, name: &Str, touched: &mut Touched) {
        let Some(entry) = self.jobs.get(name) else {
            return;
        };
        if entry.job.is_none() && entry.allocs.is_empty() {
            self.jobs.remove(name);
            self.indexes.job_extinction = index;
            touched.add(WatchKey::Job(name.clone()));
            touched.add(WatchKey::JobAllocs(name.clone()));
            return;
        }
        let kept = if entry.job.is_some() {
            KEPT_VERSIONS
        } else {
            0
        };
        if entry.versions.len() <= kept {
            return;
        }
        let used: BTreeSet<u64> = self
            .allocs_of(Some(&entry.allocs))
            .map(|alloc| alloc.job_version)
            .collect();
        let newest = entry.versions.keys().rev().take(kept);
        let keep: BTreeSet<u64> = newest.chain(&used).copied().collect();
        let gone: Vec<u64> = entry
            .versions
            .keys()
            .filter(|version| !keep.contains(version))
            .copied()
            .collect();
        if gone.is_empty() {
            return;
        }
        if let Some(entry) = self.jobs.get_mut(name) {
            let entry = Arc::make_mut(entry);
            for version in &gone {
                entry.versions.remove(version);
            }
            entry.index = index;
            touched.add(WatchKey::Job(name.clone()));
        }
    }
}
