//! One entry of a layer after the other.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
};

use rustix::{
    fs::{Timespec, XattrFlags},
    io::Errno,
};
use tar::{Entry, EntryType};

use super::{
    UnpackError, of_writing,
    root::{EPOCH, Found, Metadata, Root},
    stream::Stream,
};
use crate::image::limits::Limits;

/// What a whiteout's name begins with.
const WHITEOUT: &[u8] = b".wh.";
/// Names that aufs kept for itself, and one that counts.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// PAX keys of extended attributes.
const PAX_XATTR: &str = "SCHILY.xattr.";
/// The longest path the kernel takes.
const PATH_MAX: usize = 4096;
/// Times beyond the year 36812 are none of files.
const LAST_SECOND: i64 = 1 << 40;

/// Puts entries into a root.
pub(super) struct Unpacker {
    root: Root,
    limits: Limits,
    /// Directories by path, with what they get at the end: files that come into a directory change its
    /// time.
    directories: BTreeMap<OsString, Metadata>,
    /// The directory of the entry before, which is mostly that of the next.
    parent: Option<(OsString, OwnedFd)>,
}

impl Unpacker {
    pub(super) fn new(root: Root, limits: Limits) -> Unpacker {
        Unpacker {
            root,
            limits,
            directories: BTreeMap::new(),
            parent: None,
        }
    }

    pub(super) fn add<R: Read>(
        &mut self,
        mut entry: Entry<'_, &Stream<R>>,
        stream: &Stream<R>,
    ) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let shown = shown(&raw);
        let kind = entry.header().entry_type();
        match kind {
            // Defaults for all entries that follow; none of them matters here.
            EntryType::XGlobalHeader => return Ok(()),
            EntryType::Char | EntryType::Block => {
                return Err(UnpackError::Device { entry: shown });
            }
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Fifo => {}
            EntryType::GNUSparse => {
                let kind = "a sparse file";
                return Err(UnpackError::Kind { entry: shown, kind });
            }
            _ => {
                let kind = "unknown";
                return Err(UnpackError::Kind { entry: shown, kind });
            }
        }
        let path = clean(&raw, &shown)?;
        // Before there was a kind for directories, a slash at the end made one.
        let kind = match kind {
            EntryType::Regular if raw.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let metadata = metadata(&mut entry, &shown)?;
        let attributes = attributes(&mut entry, &shown)?;
        let Some((name, above)) = path.split_last() else {
            return match kind {
                EntryType::Directory => self.dress_top(&metadata, &attributes, &shown),
                _ => Err(UnpackError::Name {
                    entry: shown,
                    why: "only a directory can be the root",
                }),
            };
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(above, name, &shown);
        }
        let name = OsStr::from_bytes(name);
        let parent = self.parent_of(above, &shown)?;
        let found = self.look(parent.as_fd(), name, &shown)?;
        let write = |error| of_writing(&shown, error);
        if kind == EntryType::Directory {
            let fresh = found != Found::Directory;
            if fresh {
                self.clear(parent.as_fd(), name, found, &shown)?;
                self.root
                    .make_directory(parent.as_fd(), name)
                    .map_err(write)?;
            }
            let path = join(&path);
            let directory = self.root.open_directory(&path).map_err(io::Error::from);
            let directory = directory.map_err(write)?;
            if found == Found::Whiteout {
                self.root.make_opaque(directory.as_fd()).map_err(write)?;
            }
            self.root.own(directory.as_fd(), &metadata).map_err(write)?;
            set_attributes(directory.as_fd(), &attributes).map_err(write)?;
            self.directories.insert(path, metadata);
            self.keep_parent(above, parent, found);
            return Ok(());
        }
        // The target first: replacing a file by a link to itself would lose it.
        let target = match kind {
            EntryType::Link => Some(self.link_target(&entry, &shown)?),
            _ => None,
        };
        if let Some((directory, old)) = &target
            && same_place(directory.as_fd(), old, parent.as_fd(), name).map_err(write)?
        {
            return Ok(());
        }
        self.clear(parent.as_fd(), name, found, &shown)?;
        let at = parent.as_fd();
        match kind {
            EntryType::Link => {
                if let Some((directory, old)) = target {
                    let linked = self.root.make_hard_link(directory.as_fd(), &old, at, name);
                    linked.map_err(write)?;
                }
            }
            EntryType::Symlink => {
                let target = link_name(&entry, &shown)?;
                let target = OsStr::from_bytes(&target);
                self.root.make_link(at, name, target).map_err(write)?;
                self.root
                    .dress_at(at, name, &metadata, false)
                    .map_err(write)?;
            }
            EntryType::Fifo => {
                self.root.make_fifo(at, name).map_err(write)?;
                self.root
                    .dress_at(at, name, &metadata, true)
                    .map_err(write)?;
            }
            _ => self.file(at, name, &mut entry, stream, &metadata, &attributes, &shown)?,
        }
        self.keep_parent(above, parent, found);
        Ok(())
    }

    /// Gives directories their modes and times, the deepest first.
    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        self.parent = None;
        for (path, metadata) in self.directories.iter().rev() {
            let directory = match self.root.open_directory_itself(path) {
                Ok(directory) => directory,
                // Replaced by something else further on in the layer.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(of_writing(&path.to_string_lossy(), error.into())),
            };
            self.root
                .own(directory.as_fd(), metadata)
                .and_then(|()| self.root.dress(directory.as_fd(), metadata))
                .map_err(|error| of_writing(&path.to_string_lossy(), error))?;
        }
        Ok(())
    }

    fn dress_top(
        &mut self,
        metadata: &Metadata,
        attributes: &[(OsString, Vec<u8>)],
        shown: &str,
    ) -> Result<(), UnpackError> {
        set_attributes(self.root.top(), attributes).map_err(|error| of_writing(shown, error))?;
        self.directories.insert(OsString::new(), *metadata);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "all that makes a file")]
    fn file<R: Read>(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &mut Entry<'_, &Stream<R>>,
        stream: &Stream<R>,
        metadata: &Metadata,
        attributes: &[(OsString, Vec<u8>)],
        shown: &str,
    ) -> Result<(), UnpackError> {
        let write = |error| of_writing(shown, error);
        let size = entry.size();
        if size > self.limits.layer {
            return Err(UnpackError::TooLarge {
                limit: self.limits.layer,
            });
        }
        let mut file = self.root.create(parent, name).map_err(write)?;
        let mut left = size;
        let mut buffer = vec![0; usize::try_from(size.clamp(1, 128 << 10)).unwrap_or(1)];
        while left > 0 {
            let read = entry
                .read(&mut buffer)
                .map_err(|error| stream.explain(error, write))?;
            if read == 0 {
                return Err(UnpackError::Truncated {
                    entry: shown.to_owned(),
                    missing: left,
                });
            }
            io::Write::write_all(&mut file, &buffer[..read]).map_err(write)?;
            left = left.saturating_sub(read as u64);
        }
        // Neither capabilities nor the set-user bit survive a change of owner.
        self.root.own(file.as_fd(), metadata).map_err(write)?;
        set_attributes(file.as_fd(), attributes).map_err(write)?;
        self.root.dress(file.as_fd(), metadata).map_err(write)
    }

    /// `.wh.NAME` hides NAME of the layers below; `.wh..wh..opq` hides everything of the directory.
    fn whiteout(&mut self, above: &[&[u8]], name: &[u8], shown: &str) -> Result<(), UnpackError> {
        let write = |error| of_writing(shown, error);
        if name.starts_with(AUFS) && name != OPAQUE_MARK {
            return Ok(());
        }
        let parent = self.parent_of(above, shown)?;
        if name == OPAQUE_MARK {
            self.root.make_opaque(parent.as_fd()).map_err(write)?;
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Escapes {
                entry: shown.to_owned(),
            });
        }
        let hidden = OsStr::from_bytes(hidden);
        match self.look(parent.as_fd(), hidden, shown)? {
            Found::Nothing => {
                self.root
                    .make_whiteout(parent.as_fd(), hidden)
                    .map_err(write)?;
            }
            // This layer has it too: a directory of its own, with nothing of those below.
            Found::Directory => {
                let path: Vec<&[u8]> = above.iter().copied().chain([hidden.as_bytes()]).collect();
                let directory = self.root.open_directory(&join(&path));
                let directory = directory.map_err(io::Error::from).map_err(write)?;
                self.root.make_opaque(directory.as_fd()).map_err(write)?;
            }
            // A file hides what is below it by being there.
            Found::Whiteout | Found::Other => {}
        }
        Ok(())
    }

    fn look(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &str,
    ) -> Result<Found, UnpackError> {
        self.root
            .look(parent, name)
            .map_err(|error| of_writing(shown, error))
    }

    fn clear(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        found: Found,
        shown: &str,
    ) -> Result<(), UnpackError> {
        if found == Found::Nothing {
            return Ok(());
        }
        self.root
            .clear(parent, name)
            .map_err(|error| of_writing(shown, error))
    }

    /// Opens the directory an entry goes into, and makes it if the layer did not.
    fn parent_of(&mut self, above: &[&[u8]], shown: &str) -> Result<OwnedFd, UnpackError> {
        let path = join(above);
        if let Some((_, directory)) = self.parent.take_if(|(own, _)| *own == path) {
            return Ok(directory);
        }
        match self.root.open_directory(&path) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(of_writing(shown, error.into())),
        }
        let write = |error: io::Error| of_writing(shown, error);
        for end in 1..=above.len() {
            let path = join(&above[..end]);
            match self.root.open_directory(&path) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(write(error.into())),
            }
            let not_a_directory = || UnpackError::Parent {
                entry: shown.to_owned(),
                parent: path.to_string_lossy().into_owned(),
            };
            let name = OsStr::from_bytes(above[end - 1]);
            let parent = self.root.open_directory(&join(&above[..end - 1]));
            let parent = parent.map_err(|_| not_a_directory())?;
            let found = self.root.look(parent.as_fd(), name).map_err(write)?;
            match found {
                Found::Nothing => {}
                Found::Whiteout => self.root.clear(parent.as_fd(), name).map_err(write)?,
                // A file, or a link that leads nowhere.
                Found::Directory | Found::Other => return Err(not_a_directory()),
            }
            self.root
                .make_directory(parent.as_fd(), name)
                .map_err(write)?;
            if found == Found::Whiteout {
                let directory = self.root.open_directory(&path).map_err(io::Error::from);
                self.root
                    .make_opaque(directory.map_err(write)?.as_fd())
                    .map_err(write)?;
            }
            let implied = Metadata {
                uid: 0,
                gid: 0,
                mode: 0o755,
                mtime: EPOCH,
            };
            self.directories.insert(path, implied);
        }
        let directory = self.root.open_directory(&path).map_err(io::Error::from);
        directory.map_err(write)
    }

    /// Remembers a directory, unless something was replaced in it: that may have been a link on the way to
    /// where it is.
    fn keep_parent(&mut self, above: &[&[u8]], directory: OwnedFd, replaced: Found) {
        if matches!(replaced, Found::Nothing | Found::Directory) {
            self.parent = Some((join(above), directory));
        }
    }

    /// The directory and the name of what a hard link is to.
    fn link_target<R: Read>(
        &self,
        entry: &Entry<'_, &Stream<R>>,
        shown: &str,
    ) -> Result<(OwnedFd, OsString), UnpackError> {
        let target = link_name(entry, shown)?;
        let missing = || UnpackError::LinkTarget {
            entry: shown.to_owned(),
            target: self::shown(&target),
        };
        let path = clean(&target, &self::shown(&target)).map_err(|_| UnpackError::Escapes {
            entry: format!("{shown} (a hard link to {})", self::shown(&target)),
        })?;
        let (name, above) = path.split_last().ok_or_else(missing)?;
        let name = OsStr::from_bytes(name).to_owned();
        let directory = match self.root.open_directory(&join(above)) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(error) => return Err(of_writing(shown, error.into())),
        };
        match self.look(directory.as_fd(), &name, shown)? {
            Found::Other => Ok((directory, name)),
            // A link to a whiteout would be one more whiteout, which nobody asked for.
            Found::Nothing | Found::Whiteout | Found::Directory => Err(missing()),
        }
    }
}

/// Whether two names are one.
fn same_place(
    one: BorrowedFd<'_>,
    one_name: &OsStr,
    other: BorrowedFd<'_>,
    other_name: &OsStr,
) -> io::Result<bool> {
    if one_name != other_name {
        return Ok(false);
    }
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// A name for a message: bounded, and without what a terminal would obey.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(300)]);
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The parts of a path below the root. Empty parts and `.` say nothing; `..` is no part of a layer.
fn clean<'n>(name: &'n [u8], shown: &str) -> Result<Vec<&'n [u8]>, UnpackError> {
    let bad = |why| UnpackError::Name {
        entry: shown.to_owned(),
        why,
    };
    if name.len() >= PATH_MAX {
        return Err(bad("it is too long"));
    }
    if name.contains(&0) {
        return Err(bad("it has a zero byte"));
    }
    let mut path = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(UnpackError::Escapes {
                    entry: shown.to_owned(),
                });
            }
            part if part.len() > 255 => return Err(bad("a part of it is too long")),
            part => path.push(part),
        }
    }
    Ok(path)
}

fn join(path: &[&[u8]]) -> OsString {
    OsString::from_vec(path.join(&b'/'))
}

fn link_name<R: Read>(entry: &Entry<'_, &Stream<R>>, shown: &str) -> Result<Vec<u8>, UnpackError> {
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    let why = match target {
        _ if target.is_empty() => "a link to nothing",
        _ if target.contains(&0) => "its target has a zero byte",
        _ if target.len() >= PATH_MAX => "its target is too long",
        target => return Ok(target),
    };
    Err(UnpackError::Name {
        entry: shown.to_owned(),
        why,
    })
}

fn metadata<R: Read>(
    entry: &mut Entry<'_, &Stream<R>>,
    shown: &str,
) -> Result<Metadata, UnpackError> {
    let range = |what| UnpackError::Range {
        entry: shown.to_owned(),
        what,
    };
    let header = entry.header();
    let id = |result: io::Result<u64>, what| {
        let id = result.ok().and_then(|id| u32::try_from(id).ok());
        // The largest means "leave it" to the kernel.
        id.filter(|id| *id != u32::MAX).ok_or_else(|| range(what))
    };
    let uid = id(header.uid(), "the user id")?;
    let gid = id(header.gid(), "the group id")?;
    let mode = header.mode().map_err(|_| range("the mode"))? & 0o7777;
    let seconds = header.mtime().map_err(|_| range("the time"))?;
    let mut mtime = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX).min(LAST_SECOND),
        tv_nsec: 0,
    };
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if extension.key() == Ok("mtime")
                && let Some(precise) = extension.value().ok().and_then(pax_time)
            {
                mtime = precise;
            }
        }
    }
    Ok(Metadata {
        uid,
        gid,
        mode,
        mtime,
    })
}

/// `1700000000.123456789`
fn pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let mut nanos: i64 = 0;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).map_or(b'0', |byte| *byte);
        nanos = nanos * 10 + i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    Some(Timespec {
        tv_sec: tv_sec.clamp(0, LAST_SECOND),
        tv_nsec: nanos,
    })
}

/// The extended attributes that an image may set.
fn attributes<R: Read>(
    entry: &mut Entry<'_, &Stream<R>>,
    shown: &str,
) -> Result<Vec<(OsString, Vec<u8>)>, UnpackError> {
    let mut attributes = Vec::new();
    let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Tar)? else {
        return Ok(attributes);
    };
    for extension in extensions {
        let extension = extension.map_err(UnpackError::Tar)?;
        let key = String::from_utf8_lossy(extension.key_bytes());
        if key.starts_with("GNU.sparse.") {
            return Err(UnpackError::Kind {
                entry: shown.to_owned(),
                kind: "a sparse file",
            });
        }
        let Some(name) = key.strip_prefix(PAX_XATTR) else {
            continue;
        };
        let wanted = name == "security.capability"
            || (name.starts_with("user.") && !name.starts_with("user.overlay."));
        if wanted && !name.contains('\0') {
            attributes.push((name.into(), extension.value_bytes().to_vec()));
        }
    }
    Ok(attributes)
}

fn set_attributes(open: BorrowedFd<'_>, attributes: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in attributes {
        match rustix::fs::fsetxattr(open, name.as_os_str(), value, XattrFlags::empty()) {
            // Not every file system keeps what users attach; without root, capabilities cannot be given.
            Err(Errno::NOTSUP) if name.as_bytes().starts_with(b"user.") => {}
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {}
            result => result?,
        }
    }
    Ok(())
}
