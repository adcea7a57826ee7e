//! File systems of their own size, for tests of full disks and of ones that hang.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::run;

/// A file system in memory, until this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    /// Mounts one of this size at `directory`, which it makes. `None` where file systems cannot be mounted.
    ///
    /// # Panics
    ///
    /// When the directory cannot be made.
    pub fn mount(directory: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(directory).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "wharf-test"]);
        mounted(mount.arg(directory)).then(|| SmallDisk {
            directory: directory.to_owned(),
        })
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        run(Command::new("mount")
            .args(["-o", &options])
            .arg(&self.directory))
        .success();
    }

    /// Fills it with something else, until so many bytes are left, or fewer were left before.
    ///
    /// # Panics
    ///
    /// When that cannot be written.
    pub fn fill(&self, leaving: u64) {
        let mut options = fs::OpenOptions::new();
        let mut filler = options
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        // What else is written there meanwhile takes its part.
        loop {
            let found = rustix::fs::statvfs(&self.directory).unwrap();
            let free = found.f_bavail * found.f_frsize;
            let bytes = free.saturating_sub(leaving).min(1 << 20);
            if bytes == 0 {
                return;
            }
            match filler.write(&vec![0; usize::try_from(bytes).unwrap()]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes that away again.
    ///
    /// # Panics
    ///
    /// When it was not filled.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.directory);
    }
}

/// An ext4 file system in a file, which can be made to hang: whoever writes to it waits.
#[derive(Debug)]
pub struct FreezableDisk {
    directory: PathBuf,
    image: PathBuf,
}

impl FreezableDisk {
    /// Mounts one at `directory`, which it makes, with its image beside it. `None` where that is not possible.
    ///
    /// # Panics
    ///
    /// When the directory or the image cannot be made.
    pub fn mount(directory: &Path) -> Option<FreezableDisk> {
        fs::create_dir_all(directory).unwrap();
        let image = directory.with_extension("img");
        fs::File::create(&image)
            .unwrap()
            .set_len(128 << 20)
            .unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&image)
            .output();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(directory);
        let there = made.is_ok_and(|made| made.status.success()) && mounted(&mut mount);
        there.then(|| FreezableDisk {
            directory: directory.to_owned(),
            image,
        })
    }

    pub fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.directory)).success();
    }

    pub fn thaw(&self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.directory)).success();
    }
}

impl Drop for FreezableDisk {
    fn drop(&mut self) {
        // It may not be frozen: what counts is that it is not any more.
        let _ = Command::new("fsfreeze")
            .arg("-u")
            .arg(&self.directory)
            .output();
        unmount(&self.directory);
        let _ = fs::remove_file(&self.image);
    }
}

fn mounted(mount: &mut Command) -> bool {
    mount.output().is_ok_and(|ended| ended.status.success())
}

fn unmount(directory: &Path) {
    // A process that still holds a file must not keep the mount in the way.
    let _ = Command::new("umount").arg("-l").arg(directory).output();
}
