//! The directory that a layer is unpacked into, as if it were `/`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};

use super::Ownership;

/// The attribute with which a directory hides what is below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// Nothing outside of it can be named through it.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    pub(super) ownership: Ownership,
}

/// Owner, mode and time of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: Timespec,
}

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

pub(super) const EPOCH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

impl Root {
    pub(super) fn open(path: &Path, ownership: Ownership) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Root {
            directory,
            ownership,
        })
    }

    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens a directory by its path below the root. Links in the path lead where they would if the root
    /// were `/`.
    pub(super) fn open_directory(&self, path: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.open_with(path, OFlags::empty())
    }

    /// The same, but the last part may be no link.
    pub(super) fn open_directory_itself(&self, path: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.open_with(path, OFlags::NOFOLLOW)
    }

    fn open_with(&self, path: &OsStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = match path.as_bytes() {
            b"" => OsStr::new("."),
            _ => path,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                // Something was renamed on the machine while the kernel walked: it wants to walk again.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// What is at `name` in a directory; links are not followed.
    pub(super) fn look(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Found> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(Found::Nothing),
            Err(error) => Err(error.into()),
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Found::Directory,
                FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
                _ => Found::Other,
            }),
        }
    }

    pub(super) fn make_directory(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        // The layer's own mode comes at the end: without root it might keep us out.
        Ok(rustix::fs::mkdirat(parent, name, Mode::RWXU)?)
    }

    pub(super) fn create(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::openat(parent, name, flags, mode)?.into())
    }

    pub(super) fn make_whiteout(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mknodat(
            parent,
            name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )?)
    }

    pub(super) fn make_fifo(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkfifoat(parent, name, Mode::RUSR | Mode::WUSR)?)
    }

    pub(super) fn make_link(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        target: &OsStr,
    ) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, parent, name)?)
    }

    /// A second name for what is at `(from, old)`; if that is a link, for the link.
    pub(super) fn make_hard_link(
        &self,
        from: BorrowedFd<'_>,
        old: &OsStr,
        to: BorrowedFd<'_>,
        new: &OsStr,
    ) -> io::Result<()> {
        Ok(rustix::fs::linkat(from, old, to, new, AtFlags::empty())?)
    }

    /// Hides what the layers below have in this directory.
    pub(super) fn make_opaque(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(
            directory,
            OPAQUE,
            b"y",
            XattrFlags::empty(),
        )?)
    }

    /// Removes what is at a place, with everything in it. Links are not followed.
    pub(super) fn clear(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => {
                // The standard library removes trees by descriptors, without following links.
                let parent = format!("/proc/self/fd/{}", parent.as_raw_fd());
                fs::remove_dir_all(Path::new(&parent).join(name))
            }
            result => Ok(result?),
        }
    }

    /// Mode and time. The owner comes before: changing it takes the set-user bit away.
    pub(super) fn dress(&self, open: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
        rustix::fs::fchmod(open, Mode::from_raw_mode(metadata.mode))?;
        rustix::fs::futimens(open, &times(metadata.mtime))?;
        Ok(())
    }

    pub(super) fn own(&self, open: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
        if self.ownership == Ownership::Kept {
            let (uid, gid) = owner(metadata);
            rustix::fs::fchown(open, uid, gid)?;
        }
        Ok(())
    }

    /// The same for what cannot be opened: a link, which has no mode, or a pipe, which has.
    pub(super) fn dress_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        metadata: &Metadata,
        has_mode: bool,
    ) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.ownership == Ownership::Kept {
            let (uid, gid) = owner(metadata);
            rustix::fs::chownat(parent, name, uid, gid, nofollow)?;
        }
        if has_mode {
            let mode = Mode::from_raw_mode(metadata.mode);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(parent, name, &times(metadata.mtime), nofollow)?;
        Ok(())
    }
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(metadata.uid)),
        Some(Gid::from_raw(metadata.gid)),
    )
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}
