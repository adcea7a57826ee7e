//! Which agent has which bridge: several may run on one machine, each with a bridge and a subnet of its own.
//!
//! A claim is a locked file, so it ends with its process. A bridge that is there without one belongs to an agent that
//! is away, whose containers run on: it is left alone. Bridges are names of one network namespace, and so are claims:
//! an agent elsewhere may well have a bridge of the same name.

use std::{
    fs::{self, TryLockError},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{NetworkError, subnet::Subnet};

/// How long a bridge of before is waited for.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// A bridge's name and subnet, held until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    _file: fs::File,
}

/// Where claims on the bridges of one network namespace are.
#[derive(Debug)]
pub(super) struct Place {
    netns: u64,
    directory: PathBuf,
}

impl Place {
    /// That of this thread's network namespace, below the directory of all claims.
    pub(super) fn find(claims: &Path) -> Result<Place, NetworkError> {
        let own = Path::new("/proc/thread-self/ns/net");
        let netns = fs::metadata(own).map_err(failed("look at", own))?.ino();
        let directory = claims.join(netns.to_string());
        fs::create_dir_all(&directory).map_err(failed("create the directory", &directory))?;
        Ok(Place { netns, directory })
    }

    /// The inode of the network namespace.
    pub(super) fn netns(&self) -> u64 {
        self.netns
    }

    /// Held while a bridge and a subnet are chosen, so that two agents that start at once choose one after the other.
    pub(super) fn choosing(&self) -> Result<fs::File, NetworkError> {
        let path = self.directory.join(".choosing");
        let file = open(&path)?;
        file.lock().map_err(failed("lock", &path))?;
        Ok(file)
    }

    /// Claims a bridge. `Ok(None)` if another process has it.
    pub(super) fn claim(
        &self,
        bridge: &str,
        subnet: Subnet,
    ) -> Result<Option<Claim>, NetworkError> {
        let path = self.directory.join(bridge);
        let mut file = open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{subnet}"))
            .map_err(failed("write", &path))?;
        Ok(Some(Claim { _file: file }))
    }

    /// Claims a bridge of before again. The process that had it may still be ending.
    pub(super) fn claim_again(
        &self,
        bridge: &str,
        subnet: Subnet,
    ) -> Result<Option<Claim>, NetworkError> {
        for _ in 0..ATTEMPTS {
            let claimed = self.claim(bridge, subnet)?;
            if claimed.is_some() {
                return Ok(claimed);
            }
            thread::sleep(PAUSE);
        }
        self.claim(bridge, subnet)
    }

    /// The subnets that running agents have.
    pub(super) fn subnets(&self) -> Result<Vec<Subnet>, NetworkError> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.directory).map_err(failed("read", &self.directory))?;
        for entry in entries {
            let path = entry.map_err(failed("read", &self.directory))?.path();
            let Ok(file) = fs::File::open(&path) else {
                continue;
            };
            let held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
            if let (true, Ok(text)) = (held, fs::read_to_string(&path)) {
                found.extend(text.trim().parse::<Subnet>());
            }
        }
        Ok(found)
    }
}

fn open(path: &Path) -> Result<fs::File, NetworkError> {
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("open", path))
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> NetworkError {
    let path = PathBuf::from(path);
    move |source| NetworkError::File {
        what,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_claimed_once_and_free_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = Place::find(directory.path()).expect("a place");
        let subnet = "172.26.64.0/24".parse().expect("a subnet");
        let held = place.claim("wharf0", subnet).expect("possible");
        assert!(held.is_some());
        let second = place.claim("wharf0", subnet).expect("possible");
        assert!(second.is_none());
        assert_eq!(place.subnets().expect("readable"), [subnet]);
        drop(held);
        assert_eq!(place.subnets().expect("readable"), []);
        let again = place.claim("wharf0", subnet).expect("possible");
        assert!(again.is_some());
    }
}
