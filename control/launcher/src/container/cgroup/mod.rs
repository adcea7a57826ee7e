//! Control groups: what a container may use, who belongs to it, and whether the kernel killed for memory.
//!
//! Both generations are real: version 1 with a hierarchy per controller (also beside an empty version 2, "hybrid"),
//! and version 2. Only groups below `wharf/` are touched. The text that is written is decided by pure functions,
//! so that the half a machine does not have is tested on a directory.

mod v1;
mod v2;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Limits, host_root::mount};

/// The group all others are in.
pub const ROOT: &str = "wharf";

/// How long processes that were killed may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Why a control group does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no control groups that can limit a container: {missing} is not mounted (mount cgroup2 on /sys/fs/cgroup, or the version 1 controllers below it)"
    )]
    Unavailable { missing: &'static str },
    #[error("/proc/self/mountinfo: {0}")]
    Mounts(io::Error),
    #[error("control group {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{count} processes of control group {path} are still there after SIGKILL")]
    Occupied { path: PathBuf, count: usize },
}

/// How control groups are mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One mount per controller. `tracking` are hierarchies without limits that other programs follow processes in
    /// (systemd's, and version 2 beside version 1).
    V1 {
        controllers: Vec<(String, PathBuf)>,
        tracking: Vec<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

/// The controllers of version 1 that have a use here.
const V1_CONTROLLERS: [&str; 8] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio",
];

/// Those without which a container cannot be limited or ended.
const V1_NEEDED: [&str; 4] = ["cpu", "memory", "pids", "freezer"];

/// The controllers of version 2 that carry limits.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Hierarchy {
    /// The control groups of this machine.
    ///
    /// # Errors
    /// What is missing.
    pub fn detect() -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let available =
            |root: &Path| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Self::of(&mounts, &available)
    }

    /// [`Hierarchy::detect`] over the text of mountinfo, and of `cgroup.controllers` at a mount of version 2.
    fn of(mountinfo: &str, available: &dyn Fn(&Path) -> String) -> Result<Self, CgroupError> {
        let mut controllers: Vec<(String, PathBuf)> = Vec::new();
        let mut tracking = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((point, kind)) = mount(line) else {
                continue;
            };
            match kind.as_str() {
                "cgroup2" => unified = unified.or(Some(point)),
                "cgroup" => {
                    let options = line.rsplit(' ').next().unwrap_or("");
                    if options.split(',').any(|option| option == "name=systemd") {
                        tracking.push(point.clone());
                    }
                    for option in options.split(',') {
                        let known = V1_CONTROLLERS.contains(&option);
                        if known && !controllers.iter().any(|(name, _)| name == option) {
                            controllers.push((option.to_owned(), point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = &unified {
            let offered = available(root);
            let has = |name: &str| offered.split_whitespace().any(|word| word == name);
            if V2_CONTROLLERS.iter().all(|name| has(name)) {
                return Ok(Self::V2 { root: root.clone() });
            }
        }
        tracking.extend(unified);
        for needed in V1_NEEDED {
            if !controllers.iter().any(|(name, _)| name == needed) {
                return Err(CgroupError::Unavailable { missing: needed });
            }
        }
        Ok(Self::V1 {
            controllers,
            tracking,
        })
    }

    /// `v1`, `hybrid` or `v2`, as a node describes itself.
    pub fn version(&self) -> &'static str {
        match self {
            Self::V2 { .. } => "v2",
            Self::V1 { tracking, .. } if tracking.iter().any(|at| at.ends_with("unified")) => {
                "hybrid"
            }
            Self::V1 { .. } => "v1",
        }
    }

    /// The group at `path`, such as `wharf/<alloc>/<task>`, whether it exists or not.
    pub fn group(&self, path: &Path) -> Group {
        Group {
            hierarchy: self.clone(),
            path: path.to_owned(),
        }
    }

    /// The allocations that have groups here: the names below `wharf/`.
    pub fn allocations(&self) -> Vec<String> {
        let roots: Vec<&PathBuf> = match self {
            Self::V1 { controllers, .. } => controllers.iter().map(|(_, at)| at).collect(),
            Self::V2 { root } => vec![root],
        };
        let mut names: Vec<String> = roots
            .iter()
            .flat_map(|root| directories(&root.join(ROOT)))
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Where a container looks for its own limits: (directory on the host, place in the container).
    pub(crate) fn views(&self, path: &Path) -> Vec<(PathBuf, PathBuf)> {
        let inside = Path::new("/sys/fs/cgroup");
        match self {
            Self::V2 { root } => vec![(root.join(path), inside.to_owned())],
            Self::V1 { controllers, .. } => controllers
                .iter()
                .filter(|(name, _)| ["cpu", "cpuacct", "memory", "pids"].contains(&name.as_str()))
                .map(|(name, root)| (root.join(path), inside.join(name)))
                .collect(),
        }
    }
}

/// What is behind the descriptor that tells of a kill for memory.
#[derive(Debug)]
pub enum OomWatch {
    /// An eventfd: readable once for each.
    Counter(rustix::fd::OwnedFd),
    /// `memory.events`: priority data when it changed.
    Events(rustix::fd::OwnedFd),
}

/// A control group by its path, in all hierarchies at once.
#[derive(Clone, Debug)]
pub struct Group {
    hierarchy: Hierarchy,
    path: PathBuf,
}

impl Group {
    /// Its directories, one per mount.
    fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = match &self.hierarchy {
            Hierarchy::V1 {
                controllers,
                tracking,
            } => controllers
                .iter()
                .map(|(_, at)| at)
                .chain(tracking)
                .map(|at| at.join(&self.path))
                .collect(),
            Hierarchy::V2 { root } => vec![root.join(&self.path)],
        };
        all.sort();
        all.dedup();
        all
    }

    fn v1(&self, controller: &str) -> Option<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => controllers
                .iter()
                .find(|(name, _)| name == controller)
                .map(|(_, at)| at.join(&self.path)),
            Hierarchy::V2 { .. } => None,
        }
    }

    /// The directory its processes are read from.
    fn main(&self) -> PathBuf {
        match &self.hierarchy {
            Hierarchy::V2 { root } => root.join(&self.path),
            Hierarchy::V1 { .. } => self.v1("freezer").unwrap_or_default(),
        }
    }

    /// Makes the group, with limits if any are given. An existing one gets them too.
    ///
    /// # Errors
    /// What the kernel refused, and where.
    pub fn create(&self, limits: Option<&Limits>) -> Result<(), CgroupError> {
        // Another allocation that ends may take an empty parent away under our feet.
        for _ in 0..3 {
            match self.try_create(limits) {
                Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                result => return result,
            }
        }
        self.try_create(limits)
    }

    fn try_create(&self, limits: Option<&Limits>) -> Result<(), CgroupError> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                v2::prepare_parents(root, &self.path)?;
                let at = root.join(&self.path);
                create_dir(&at)?;
                for (file, text) in limits.map(v2::settings).unwrap_or_default() {
                    v2::set(&at, file, &text)?;
                }
            }
            Hierarchy::V1 { controllers, .. } => {
                for (controller, root) in controllers {
                    // For a container all of them: libcontainer joins each it knows, and would make them itself
                    // without a thought for a parent that goes away at the same time.
                    let needed = V1_NEEDED.contains(&controller.as_str()) || limits.is_some();
                    if !needed {
                        continue;
                    }
                    let at = root.join(&self.path);
                    create_dir(&at)?;
                    for (file, text) in limits
                        .map(|l| v1::settings(controller, l))
                        .unwrap_or_default()
                    {
                        v1::set(&at, file, &text)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves a process into the group, also where other programs look for it.
    ///
    /// # Errors
    /// As from the kernel; a process that has ended is one.
    pub fn enter(&self, pid: u32) -> Result<(), CgroupError> {
        if let Hierarchy::V1 { tracking, .. } = &self.hierarchy {
            for root in tracking {
                // Nothing depends on it but the ways of other programs.
                let at = root.join(&self.path);
                if create_dir(&at).is_ok() {
                    let _ = fs::write(at.join("cgroup.procs"), pid.to_string());
                }
            }
        }
        let at = match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.join(&self.path)],
            Hierarchy::V1 { .. } => V1_NEEDED.iter().filter_map(|name| self.v1(name)).collect(),
        };
        for directory in at {
            write(&directory.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Its processes, those of groups below it included.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        walk(&self.main(), &mut |directory| {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        });
        pids.retain(|pid| *pid != 0);
        pids
    }

    pub fn exists(&self) -> bool {
        self.directories().iter().any(|at| at.exists())
    }

    /// Sends SIGKILL to all in the group, so that none can fork away from it, and says how many there were.
    pub fn kill(&self) -> usize {
        let count = self.processes().len();
        if count == 0 {
            return 0;
        }
        match &self.hierarchy {
            // Since Linux 5.14; atomic.
            Hierarchy::V2 { root }
                if fs::write(root.join(&self.path).join("cgroup.kill"), "1").is_ok() => {}
            Hierarchy::V2 { root } => v2::kill_frozen(&root.join(&self.path), &|| self.kill_each()),
            Hierarchy::V1 { .. } => v1::kill_frozen(&self.main(), &|| self.kill_each()),
        }
        count
    }

    fn kill_each(&self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Kills until nobody is left. Blocks for at most some seconds.
    ///
    /// # Errors
    /// [`CgroupError::Occupied`] when the kernel does not let them go.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        let until = Instant::now() + GONE;
        let mut pause = Duration::from_millis(1);
        while self.kill() > 0 {
            if Instant::now() > until {
                return Err(CgroupError::Occupied {
                    path: self.path.clone(),
                    count: self.processes().len(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// How often the kernel has killed in this group for want of memory.
    pub fn oom_kills(&self) -> u64 {
        match &self.hierarchy {
            Hierarchy::V2 { root } => v2::oom_kills(
                &fs::read_to_string(root.join(&self.path).join("memory.events"))
                    .unwrap_or_default(),
            ),
            Hierarchy::V1 { .. } => {
                let at = self.v1("memory").unwrap_or_default();
                v1::oom_kills(
                    &fs::read_to_string(at.join("memory.oom_control")).unwrap_or_default(),
                )
            }
        }
    }

    /// A descriptor to wait on for the next kill for memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                let path = root.join(&self.path).join("memory.events");
                fs::File::open(&path)
                    .map(|file| OomWatch::Events(file.into()))
                    .map_err(|source| CgroupError::Io { path, source })
            }
            Hierarchy::V1 { .. } => v1::watch_oom(&self.v1("memory").unwrap_or_default()),
        }
    }

    /// Removes the group, the groups below it, and the parents this leaves empty.
    ///
    /// # Errors
    /// Processes that are still in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for at in self.directories() {
            let mut below = Vec::new();
            walk(&at, &mut |directory| below.push(directory.to_owned()));
            // The deepest first.
            for directory in below.iter().rev() {
                remove_dir(directory)?;
            }
            let parents = self.path.ancestors().count().saturating_sub(2);
            for parent in at.ancestors().skip(1).take(parents) {
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The kernel needs a moment to let go of a process that has been reaped.
fn remove_dir(path: &Path) -> Result<(), CgroupError> {
    let until = Instant::now() + Duration::from_millis(200);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(source) => {
                return Err(CgroupError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Visits `path` and every directory below it, parents first.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path)) {
    if !path.is_dir() {
        return;
    }
    visit(path);
    for directory in directories(path) {
        walk(&directory, visit);
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn create_dir(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(path).map_err(|source| CgroupError::Io {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
