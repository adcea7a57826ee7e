//! The root of a container: layers stacked by overlayfs.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
        move_mount, unmount,
    },
};

/// What mount(2) takes as options: one page, with the zero at its end.
const OPTIONS_MAX: usize = 4096;

/// Where what a container writes goes. Both directories on one file system, `work` empty.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
}

/// Why a root is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("mounting a container's root needs root (CAP_SYS_ADMIN)")]
    NotPermitted,
    #[error("this kernel has no overlayfs (CONFIG_OVERLAY_FS): load the module \"overlay\"")]
    NoOverlay,
    #[error(
        "the image has too many layers for this kernel: {layers} take more than a page of options"
    )]
    TooManyLayers { layers: usize },
    #[error("a read-only root needs two layers at least, not {0}")]
    TooFewLayers(usize),
    #[error("layer {path}: {source}")]
    Layer { path: PathBuf, source: io::Error },
    #[error("mounting the root at {target}: {source}{}", told(.kernel))]
    Mount {
        target: PathBuf,
        source: io::Error,
        /// What the kernel wrote into the mount's own log.
        kernel: String,
    },
    #[error("unmounting {target}: {source}")]
    Unmount { target: PathBuf, source: io::Error },
}

fn told(kernel: &str) -> String {
    match kernel {
        "" => String::new(),
        kernel => format!(" ({kernel})"),
    }
}

/// Mounts layers, the top one first, at `target`; read-only if there is no upper directory. Device nodes do
/// not work in it, set-user bits do as far as the container lets them.
pub fn mount_rootfs(
    target: &Path,
    layers: &[PathBuf],
    upper: Option<Upper<'_>>,
) -> Result<(), MountError> {
    let least = if upper.is_some() { 1 } else { 2 };
    if layers.len() < least {
        return Err(MountError::TooFewLayers(layers.len()));
    }
    match by_new_calls(target, layers, upper)? {
        Attempt::Mounted => Ok(()),
        Attempt::Unsupported => by_mount(target, layers, upper),
    }
}

/// Takes a mount away. Who is still in it keeps it until they leave. What is not mounted is no error.
pub fn unmount_rootfs(target: &Path) -> Result<(), MountError> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(MountError::Unmount {
            target: target.to_owned(),
            source: error.into(),
        }),
    }
}

enum Attempt {
    Mounted,
    /// The kernel is older than the calls or than `lowerdir+` (Linux 6.7).
    Unsupported,
}

/// One option for each layer, so that their number has no limit but overlayfs's own.
fn by_new_calls(
    target: &Path,
    layers: &[PathBuf],
    upper: Option<Upper<'_>>,
) -> Result<Attempt, MountError> {
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Ok(Attempt::Unsupported),
        Err(error) => return Err(refused(target, error, String::new())),
    };
    let failed = |error| refused(target, error, kernel_log(&context));
    for layer in layers {
        match fsconfig_set_string(context.as_fd(), "lowerdir+", layer) {
            Ok(()) => {}
            // `layer` is a directory of ours, so it is the option that is not known.
            Err(Errno::INVAL) if layer.is_dir() => return Ok(Attempt::Unsupported),
            Err(error) => {
                return Err(MountError::Layer {
                    path: layer.clone(),
                    source: error.into(),
                });
            }
        }
    }
    if let Some(Upper { upper, work }) = upper {
        fsconfig_set_string(context.as_fd(), "upperdir", upper).map_err(failed)?;
        fsconfig_set_string(context.as_fd(), "workdir", work).map_err(failed)?;
    } else {
        fsconfig_set_flag(context.as_fd(), "ro").map_err(failed)?;
    }
    fsconfig_set_string(context.as_fd(), "source", "wharf").map_err(failed)?;
    fsconfig_create(context.as_fd()).map_err(failed)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if upper.is_none() {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let mounted = mounted.map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mounted.as_fd(), "", CWD, target, flags).map_err(failed)?;
    Ok(Attempt::Mounted)
}

/// All options in one page. Layers are named by descriptors, whose paths are short: about 190 fit.
fn by_mount(target: &Path, layers: &[PathBuf], upper: Option<Upper<'_>>) -> Result<(), MountError> {
    let mut open: Vec<OwnedFd> = Vec::with_capacity(layers.len());
    let mut options = OsString::from("lowerdir=").into_vec();
    for (index, layer) in layers.iter().enumerate() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(layer, flags, rustix::fs::Mode::empty());
        let directory = directory.map_err(|error| MountError::Layer {
            path: layer.clone(),
            source: error.into(),
        })?;
        if index > 0 {
            options.push(b':');
        }
        options.extend(format!("/proc/self/fd/{}", directory.as_raw_fd()).bytes());
        open.push(directory);
    }
    if let Some(Upper { upper, work }) = upper {
        for (name, path) in [("upperdir", upper), ("workdir", work)] {
            options.extend(format!(",{name}=").bytes());
            // What separates options is a character of paths too.
            for byte in path.as_os_str().as_bytes() {
                if matches!(byte, b',' | b'\\') {
                    options.push(b'\\');
                }
                options.push(*byte);
            }
        }
    }
    if options.len() >= OPTIONS_MAX {
        return Err(MountError::TooManyLayers {
            layers: layers.len(),
        });
    }
    let mut flags = MountFlags::NODEV;
    if upper.is_none() {
        flags |= MountFlags::RDONLY;
    }
    let Ok(options) = std::ffi::CString::new(options) else {
        return Err(refused(target, Errno::INVAL, String::new()));
    };
    mount("wharf", target, "overlay", flags, options.as_c_str())
        .map_err(|error| refused(target, error, String::new()))
}

fn refused(target: &Path, error: Errno, kernel: String) -> MountError {
    match error {
        Errno::PERM => MountError::NotPermitted,
        Errno::NODEV => MountError::NoOverlay,
        error => MountError::Mount {
            target: target.to_owned(),
            source: error.into(),
            kernel,
        },
    }
}

/// What the kernel has to say about a refused option: messages like `e overlay: ...`, one for each read.
fn kernel_log(context: &OwnedFd) -> String {
    let Ok(copy) = context.try_clone() else {
        return String::new();
    };
    let mut file = File::from(copy);
    let mut messages = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(read @ 1..) = io::Read::read(&mut file, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..read]);
        messages.push(text.trim_start_matches("e ").trim().to_owned());
        if messages.len() == 8 {
            break;
        }
    }
    messages.join("; ")
}

#[cfg(test)]
mod tests;
