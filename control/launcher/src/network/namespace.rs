//! Network namespaces: made, pinned by a bind mount so that they outlive every process, and given up.

use std::{fs, io, os::fd::OwnedFd, path::Path, thread};

use rustix::{
    fs::statfs,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::UnshareFlags,
};

use super::{
    link,
    netlink::{NetlinkError, Socket},
};

/// The file system of namespaces (`linux/magic.h`).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A step of making a namespace that failed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot {what}: {source}")]
    Step {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> NamespaceError {
    move |source| NamespaceError::Step {
        what: what.into(),
        source,
    }
}

/// A namespace that is pinned.
#[derive(Debug)]
pub(super) struct Namespace {
    /// Refers to it, for those who move things into it.
    pub(super) fd: OwnedFd,
    /// Speaks with the kernel about it.
    pub(super) socket: Socket,
}

/// Makes a network namespace with its loopback up, and pins it at `path`, where nothing may be.
///
/// A namespace is made by a thread that leaves its own: a helper thread does it and ends, so that no other work ever
/// finds itself in the wrong one.
pub(super) fn create(path: &Path) -> Result<Namespace, NamespaceError> {
    let failed = |what: &str| step(format!("{what} {}", path.display()));
    let file = fs::File::options().write(true).create_new(true).open(path);
    file.map_err(failed("create the file of the network namespace"))?;
    let pinned = thread::scope(|scope| {
        let helper = thread::Builder::new()
            .name("wharf-netns".to_owned())
            .spawn_scoped(scope, || enter_new(path))
            .map_err(step("start a thread"))?;
        helper.join().unwrap_or_else(|_| {
            let source = io::Error::other("the helper thread panicked");
            Err(step("make a network namespace")(source))
        })
    });
    let opened = pinned.and_then(|socket| {
        let fd = fs::File::open(path).map_err(failed("open the network namespace"))?;
        Ok(Namespace {
            fd: fd.into(),
            socket,
        })
    });
    if opened.is_err() {
        // The error that is returned is the one that counts.
        let _ = remove(path);
    }
    opened
}

/// In the helper thread: leaves its namespace, and pins the new one.
fn enter_new(path: &Path) -> Result<Socket, NamespaceError> {
    unshare(UnshareFlags::NEWNET).map_err(step("make a network namespace"))?;
    let mut socket = Socket::route().map_err(step("open a netlink socket"))?;
    socket.request(&[link::bring_up("lo", link::LOOPBACK)])?;
    // As in other runtimes: a user that is not root may serve on port 80 of a network that is its own.
    let ports = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(ports, "0").map_err(step(format!("write {ports}")))?;
    mount_bind("/proc/thread-self/ns/net", path).map_err(|error| {
        step(format!("pin the network namespace at {}", path.display()))(error.into())
    })?;
    Ok(socket)
}

/// Moves this thread into new namespaces.
#[allow(unsafe_code)]
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    let namespaces = flags.intersection(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
    // SAFETY: what makes the call unsafe is CLONE_FILES, which leaves a thread with descriptors of its own. It is not
    // among these flags.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Whether a namespace is pinned at `path`.
pub(super) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| i128::from(found.f_type) == i128::from(NSFS_MAGIC))
}

/// Unpins what is at `path`, if anything is. The namespace itself goes with its last process.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    while is_pinned(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
