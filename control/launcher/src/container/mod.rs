//! One container: a small description becomes an OCI runtime configuration, a root filesystem, a control group,
//! and a process that libcontainer sets up and that can do less than the one which made it.
//!
//! Whoever calls [`launch`] is a forked child of a shim: libcontainer changes the process it runs in, and the mounts
//! of the root filesystem live in a mount namespace that ends with that child and the container, so that nothing is
//! left on the host whichever way they end.

pub mod cgroup;
mod executor;
mod host_root;
mod in_root;
mod init;
mod launch;
mod oci;
mod rootfs;
pub mod seccomp;
mod spec;
mod user;

pub use executor::{Progress, ProgressReader};
pub use launch::{LaunchError, Stdio, launch};
pub(crate) use launch::{begin, clean};
pub use spec::{Bind, InvalidSpec, Limits, Rootfs, Spec};
pub use user::{Account, UserError, resolve as resolve_user};

/// What this machine lacks, by driver, in words; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// For containers of images.
    pub container: Option<String>,
    /// For programs of the host's own root.
    pub exec: Option<String>,
}

/// Looks for what containers need.
pub fn missing() -> Missing {
    let both = if !rustix::process::geteuid().is_root() {
        Some("containers need root: start the agent as root".to_owned())
    } else if let Err(error) = cgroup::Hierarchy::detect() {
        Some(error.to_string())
    } else {
        seccomp::compile().err().map(|error| error.to_string())
    };
    let container = both.clone().or_else(|| {
        // Loads the module where it is one.
        let opened = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
        no_overlayfs(opened.map(drop))
    });
    Missing {
        container,
        exec: both,
    }
}

/// Why overlayfs cannot be used, if it could not be opened.
fn no_overlayfs(opened: Result<(), rustix::io::Errno>) -> Option<String> {
    match opened {
        Err(rustix::io::Errno::NODEV) => Some(
            "this kernel has no overlayfs (CONFIG_OVERLAY_FS): load the module \"overlay\""
                .to_owned(),
        ),
        Err(error) => Some(format!("overlayfs cannot be used: {error}")),
        Ok(()) => None,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_kernel_without_overlayfs_is_told_from_one_that_refuses_it() {
        assert_eq!(no_overlayfs(Ok(())), None);
        let none = no_overlayfs(Err(Errno::NODEV)).unwrap();
        assert!(none.contains("CONFIG_OVERLAY_FS"), "{none}");
        let refused = no_overlayfs(Err(Errno::PERM)).unwrap();
        assert!(refused.contains("cannot be used"), "{refused}");
    }
}
