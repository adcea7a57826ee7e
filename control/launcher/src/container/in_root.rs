//! Paths inside a root filesystem that somebody else made: no link, however it is built, leads out of it.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{self, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Opens a root filesystem for [`open`].
pub(crate) fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens `path` as it resolves when `root` is `/`.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Whether something is at `path`.
pub(crate) fn exists(root: impl AsFd, path: &Path) -> bool {
    open(root, path, OFlags::PATH).is_ok()
}

/// The content of a regular file of at most `limit` bytes. `None` if there is none.
///
/// # Errors
/// What the system says; `InvalidData` for anything but a file of that size.
pub(crate) fn read(root: impl AsFd, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // NONBLOCK: a FIFO by that name must not hold us.
    let file = match open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(file) => std::fs::File::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no regular file",
        ));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is larger than {limit} bytes"),
        ));
    }
    Ok(Some(content))
}

/// Makes `path` a directory, with the parents that are missing.
pub(crate) fn create_dir_all(root: impl AsFd, path: &Path) -> io::Result<()> {
    let mut directory = open(&root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    let mut so_far = std::path::PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        match fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A directory that exists on a read-only filesystem is as good.
            Err(Errno::ROFS) if exists(&root, &so_far.join(name)) => {}
            Err(error) => return Err(error.into()),
        }
        so_far.push(name);
        directory = open(&root, &so_far, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_end_inside() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let inside = tempfile::tempdir().unwrap();
        symlink(
            outside.path().join("secret"),
            inside.path().join("absolute"),
        )
        .unwrap();
        symlink("../../../../../../etc/hostname", inside.path().join("up")).unwrap();
        symlink(outside.path(), inside.path().join("dir")).unwrap();
        let root = root(inside.path()).unwrap();
        for path in ["/absolute", "/up", "/dir/secret"] {
            assert!(
                read(&root, Path::new(path), 100).unwrap().is_none(),
                "{path}"
            );
        }
        // A directory made through the link is made inside as well.
        create_dir_all(&root, Path::new("/dir/made")).unwrap_err();
        assert!(!outside.path().join("made").exists());
    }

    #[test]
    fn only_small_regular_files_are_read() {
        let inside = tempfile::tempdir().unwrap();
        std::fs::write(inside.path().join("big"), [b'a'; 11]).unwrap();
        std::fs::create_dir(inside.path().join("directory")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = root(inside.path()).unwrap();
        for path in ["/big", "/directory", "/fifo"] {
            read(&root, Path::new(path), 10).unwrap_err();
        }
        assert_eq!(read(&root, Path::new("/none"), 10).unwrap(), None);
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let inside = tempfile::tempdir().unwrap();
        let root = root(inside.path()).unwrap();
        create_dir_all(&root, Path::new("/a/b/c")).unwrap();
        create_dir_all(&root, Path::new("/a/b/c")).unwrap();
        assert!(inside.path().join("a/b/c").is_dir());
    }
}
