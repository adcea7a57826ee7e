//! From a description to a process that waits for the sign to begin.

use std::{
    error::Error as _,
    fs,
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use rustix::fs::OFlags;

use super::{
    Bind, InvalidSpec, Rootfs, Spec, UserError,
    cgroup::{CgroupError, Hierarchy},
    executor::TaskExecutor,
    host_root, in_root, oci,
    rootfs::{self, RootfsError},
    seccomp::{self, SeccompError},
    user,
};

/// Most links that are followed to the place of a bind mount.
const LINKS: usize = 16;

/// Where a container's output goes. It reads nothing.
#[derive(Debug)]
pub struct Stdio {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("{0}")]
    Rootfs(String),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("working directory {path}: {source}")]
    WorkDir { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the runtime configuration: {0}")]
    Configuration(oci_spec::OciSpecError),
    #[error("{0}")]
    Runtime(String),
}

impl From<RootfsError> for LaunchError {
    fn from(error: RootfsError) -> Self {
        Self::Rootfs(error.to_string())
    }
}

/// Sets the container up to the point where its first process, a child of the caller's parent, waits for
/// [`begin`]; returns that process. Everything that happens to the calling process (mount namespace, dumpability,
/// score) makes it fit for nothing else: call it in a fork that ends afterwards.
///
/// Why the command cannot be run is told over `progress`, from inside; what else fails is returned.
///
/// # Errors
/// The first thing that does not work. Nothing of the container is left but its empty control group.
pub fn launch(
    spec: &Spec,
    stdio: Stdio,
    hierarchy: &Hierarchy,
    progress: Rc<OwnedFd>,
) -> Result<u32, LaunchError> {
    spec.validate()?;
    let filter = seccomp::compile()?;
    hierarchy.group(&spec.cgroup).create(Some(&spec.limits))?;
    private_dir(&spec.bundle)?;
    let mounted = rootfs::mount(spec)?;
    let root = in_root::root(&mounted).map_err(|source| LaunchError::File {
        path: mounted.clone(),
        source,
    })?;
    let account = user::resolve(&root, &spec.user)?;
    rootfs::ensure_directory(&root, &spec.cwd).map_err(|source| LaunchError::WorkDir {
        path: spec.cwd.clone(),
        source,
    })?;
    let binds = placed(spec, &root);
    let mut spec = spec.clone();
    if spec.rootfs == Rootfs::Host {
        spec.masked.extend(host_root::SECRETS.map(PathBuf::from));
        spec.read_only = true;
    }
    let open_files = open_files();
    let configuration =
        oci::configuration(&spec, &account, &mounted, &binds, hierarchy, open_files)
            .map_err(LaunchError::Configuration)?;
    let path = spec.bundle.join("config.json");
    configuration
        .save(&path)
        .map_err(LaunchError::Configuration)?;

    let state = state_dir(&spec);
    match fs::remove_dir_all(&state) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(LaunchError::File {
                path: state,
                source,
            });
        }
        _ => private_dir(&state)?,
    }
    let null = fs::File::open("/dev/null").map_err(|source| LaunchError::File {
        path: "/dev/null".into(),
        source,
    })?;
    let container = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
        .with_root_path(state)
        .map_err(runtime)?
        .with_stdin(null)
        .with_stdout(stdio.stdout)
        .with_stderr(stdio.stderr)
        .with_executor(TaskExecutor::new(filter, progress))
        .as_init(&spec.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(runtime)?;
    container
        .pid()
        .and_then(|pid| u32::try_from(pid.as_raw()).ok())
        .ok_or_else(|| LaunchError::Runtime("libcontainer names no process".into()))
}

/// Lets a container that was launched begin.
///
/// # Errors
/// Its first process is gone.
pub(crate) fn begin(spec: &Spec) -> io::Result<()> {
    let directory = state_dir(spec).join(&spec.id);
    // The path may be longer than a socket's address: go through the directory's descriptor.
    let directory = fs::File::open(directory)?;
    let path = format!(
        "/proc/self/fd/{}/notify.sock",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    );
    UnixStream::connect(path)?.write_all(b"start container")
}

/// Removes what libcontainer wrote down about the container; what it wrote to its own layer too.
pub(crate) fn clean(spec: &Spec) {
    for directory in [state_dir(spec), spec.bundle.join("writable")] {
        let _ = fs::remove_dir_all(directory);
    }
}

/// How many files a container's processes may have open: what all get, or as many as this process can give where it
/// may not raise its own limit.
fn open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = Rlimit {
        current: Some(oci::NOFILE.0),
        maximum: Some(oci::NOFILE.1),
    };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => oci::NOFILE.1,
        Err(_) => getrlimit(Resource::Nofile).maximum.unwrap_or(oci::NOFILE.1),
    }
}

fn state_dir(spec: &Spec) -> PathBuf {
    spec.bundle.join("state")
}

fn private_dir(path: &Path) -> Result<(), LaunchError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| LaunchError::File {
            path: path.to_owned(),
            source,
        })
}

/// The binds at the places they can be put. A target that is a link (`/etc/resolv.conf` often is) moves to where
/// it leads. On a read-only root the target must exist, or be below a directory that is the container's own; what
/// has no place there is left out, as a host without the file does without it.
fn placed(spec: &Spec, root: &OwnedFd) -> Vec<Bind> {
    spec.binds
        .iter()
        .filter_map(|bind| {
            let target = follow(root, &bind.target);
            let own = ["/run", "/tmp", "/dev"]
                .iter()
                .any(|own| target.starts_with(own));
            let possible = own || spec.rootfs != Rootfs::Host || in_root::exists(root, &target);
            possible.then(|| Bind {
                target,
                ..bind.clone()
            })
        })
        .collect()
}

/// Where `path` leads when it is itself a link, and so on.
fn follow(root: &OwnedFd, path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let link = in_root::open(root, &at, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|file| Ok(rustix::fs::readlinkat(file, "", Vec::new())?));
        let Ok(link) = link else {
            return at;
        };
        let link = PathBuf::from(std::ffi::OsStr::new(&*link.to_string_lossy()));
        at = normal(&at.parent().unwrap_or(Path::new("/")).join(link));
    }
    path.to_owned()
}

/// `path` without `.` and `..`, which at the root stay there.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

/// libcontainer nests its errors, and repeats itself on the way.
fn runtime(error: libcontainer::error::LibcontainerError) -> LaunchError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    LaunchError::Runtime(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::container::spec::tests::sample;

    #[test]
    fn a_target_that_is_a_link_moves_to_where_it_leads() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        fs::write(directory.path().join("etc/hosts"), "").unwrap();
        symlink(
            "../run/resolve/stub.conf",
            directory.path().join("etc/resolv.conf"),
        )
        .unwrap();
        symlink("/etc/hosts", directory.path().join("etc/alias")).unwrap();
        symlink("loop", directory.path().join("etc/loop")).unwrap();
        let root = in_root::root(directory.path()).unwrap();
        let at = |path: &str| follow(&root, Path::new(path));
        assert_eq!(at("/etc/resolv.conf"), Path::new("/run/resolve/stub.conf"));
        assert_eq!(at("/etc/alias"), Path::new("/etc/hosts"));
        assert_eq!(at("/etc/hosts"), Path::new("/etc/hosts"));
        assert_eq!(at("/etc/none"), Path::new("/etc/none"));
        assert_eq!(at("/etc/loop"), Path::new("/etc/loop"));

        let mut spec = sample();
        spec.rootfs = Rootfs::Host;
        spec.binds = ["/etc/resolv.conf", "/etc/hosts", "/etc/none"]
            .map(|target| Bind {
                source: "/x".into(),
                target: target.into(),
                read_only: true,
            })
            .into();
        let targets: Vec<PathBuf> = placed(&spec, &root).into_iter().map(|b| b.target).collect();
        assert_eq!(
            targets,
            [PathBuf::from("/run/resolve/stub.conf"), "/etc/hosts".into()]
        );
        spec.rootfs = Rootfs::Layers(vec!["/l".into()]);
        assert_eq!(placed(&spec, &root).len(), 3);
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(normal(Path::new("/etc/../../../a/./b")), Path::new("/a/b"));
    }
}
