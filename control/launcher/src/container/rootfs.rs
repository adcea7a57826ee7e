//! The root filesystem of a container, mounted where only the container will see it.
//!
//! All of this happens in the private mount namespace of the process that launches the container. The container's
//! own namespace is a copy of that one, and when both have ended the mounts are gone: there is nothing to unmount
//! on the host, whatever was killed in between.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::OFlags,
    mount::{MountFlags, MountPropagationFlags},
};

use super::{Rootfs, Spec, host_root, in_root};
use crate::{
    image::{MountError, Upper, mount_rootfs},
    sys,
};

/// Size of the layer that takes mount points in an otherwise read-only root filesystem.
const SCRATCH: &CStr = c"mode=0755,size=4m,nr_inodes=4096";

/// Why there is no root filesystem.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("no mount namespace: {0}")]
    Namespace(io::Error),
    #[error("{path}: {source}")]
    Path { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Overlay(#[from] MountError),
    #[error("{path} of the host cannot be shown in the container: {source}")]
    Bind { path: PathBuf, source: io::Error },
}

/// Mounts what `spec` asks for below its bundle and returns the path. The caller is a process of one thread which
/// does nothing else than launching this container.
pub(crate) fn mount(spec: &Spec) -> Result<PathBuf, RootfsError> {
    sys::unshare_mounts().map_err(RootfsError::Namespace)?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .map_err(|error| RootfsError::Namespace(error.into()))?;
    let root = spec.bundle.join("rootfs");
    create_dir(&root)?;
    match &spec.rootfs {
        Rootfs::Layers(layers) => overlay(spec, layers, &root)?,
        Rootfs::Host => host(&root)?,
    }
    Ok(root)
}

fn create_dir(path: &Path) -> Result<(), RootfsError> {
    fs::create_dir_all(path).map_err(|source| RootfsError::Path {
        path: path.to_owned(),
        source,
    })
}

/// Layers below, and above them a directory for what changes: on disk if the container may write, otherwise in
/// memory and only for the mount points that the image lacks, before everything is made read-only.
fn overlay(spec: &Spec, layers: &[PathBuf], root: &Path) -> Result<(), RootfsError> {
    let over = spec.bundle.join("writable");
    create_dir(&over)?;
    if spec.read_only {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", &over, "tmpfs", flags, Some(SCRATCH)).map_err(|error| {
            RootfsError::Path {
                path: over.clone(),
                source: error.into(),
            }
        })?;
    }
    let (upper, work) = (over.join("upper"), over.join("work"));
    create_dir(&upper)?;
    create_dir(&work)?;
    let upper = Upper {
        upper: &upper,
        work: &work,
    };
    Ok(mount_rootfs(root, layers, Some(upper))?)
}

/// The host's root without its submounts, and then those of them that hold programs; nothing of it can be written
/// to or is a device.
fn host(root: &Path) -> Result<(), RootfsError> {
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").map_err(|source| RootfsError::Path {
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
    read_only_bind(Path::new("/"), root)?;
    for point in host_root::program_mounts(&mountinfo) {
        let below = point.strip_prefix("/").unwrap_or(&point);
        let target = root.join(below);
        // The directory may be covered by a mount in between that is not shown.
        if target.is_dir() == point.is_dir() && target.exists() {
            read_only_bind(&point, &target)?;
        }
    }
    Ok(())
}

fn read_only_bind(source: &Path, target: &Path) -> Result<(), RootfsError> {
    let failed = |error: rustix::io::Errno| RootfsError::Bind {
        path: source.to_owned(),
        source: error.into(),
    };
    rustix::mount::mount_bind(source, target).map_err(failed)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount_remount(target, flags, "").map_err(failed)
}

/// Whether `path` is there in the mounted root, or can be made.
pub(crate) fn ensure_directory(root: impl AsFd, path: &Path) -> io::Result<()> {
    if in_root::open(&root, path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
        return Ok(());
    }
    in_root::create_dir_all(root, path)
}
