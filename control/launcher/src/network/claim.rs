//! Which agent has which bridge: several may run on one machine, each with a bridge and a subnet of its own.
//!
//! A claim is a locked file, so it ends with its process. A bridge that is there without one belongs to an agent that
//! is away, whose containers run on: it is left alone.

use std::{
    fs::{self, TryLockError},
    io::{self, Write as _},
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

/// Held while a bridge and a subnet are chosen, so that two agents that start at once choose one after the other.
pub(super) fn choosing(directory: &Path) -> Result<fs::File, NetworkError> {
    let path = directory.join(".choosing");
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

/// Claims a bridge. `Ok(None)` if another process has it.
pub(super) fn claim(
    directory: &Path,
    bridge: &str,
    subnet: Subnet,
) -> Result<Option<Claim>, NetworkError> {
    let path = directory.join(bridge);
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
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
    directory: &Path,
    bridge: &str,
    subnet: Subnet,
) -> Result<Option<Claim>, NetworkError> {
    for _ in 0..ATTEMPTS {
        let claimed = claim(directory, bridge, subnet)?;
        if claimed.is_some() {
            return Ok(claimed);
        }
        thread::sleep(PAUSE);
    }
    claim(directory, bridge, subnet)
}

/// The subnets that running agents have.
pub(super) fn subnets(directory: &Path) -> Result<Vec<Subnet>, NetworkError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
        let path = entry.map_err(failed("read", directory))?.path();
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
        let subnet = "172.26.64.0/24".parse().expect("a subnet");
        let held = claim(directory.path(), "wharf0", subnet).expect("possible");
        assert!(held.is_some());
        let second = claim(directory.path(), "wharf0", subnet).expect("possible");
        assert!(second.is_none());
        assert_eq!(subnets(directory.path()).expect("readable"), [subnet]);
        drop(held);
        assert_eq!(subnets(directory.path()).expect("readable"), []);
        assert!(
            claim(directory.path(), "wharf0", subnet)
                .expect("possible")
                .is_some()
        );
    }
}
