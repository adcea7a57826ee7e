//! What development agents left that were killed. Their state was theirs alone, so nobody comes back for it: what
//! still runs is ended, and everything goes.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use wharf_launcher::{
    container::cgroup::{self, Hierarchy},
    network::{Network, NetworkConfig},
};

use super::dirs::{LOCK, TEMPORARY, short_hash};

/// One agent's directories, locked.
struct Abandoned {
    state: PathBuf,
    run: PathBuf,
    _lock: File,
}

/// Clears away what every such agent left.
pub(super) fn clear(temporary_root: &Path, run_root: &Path) {
    clear_with(temporary_root, run_root, take_down);
}

fn clear_with(
    temporary_root: &Path,
    run_root: &Path,
    take_down: impl Fn(&Path, &Path) -> Result<(), String>,
) {
    for Abandoned { state, run, _lock } in find(temporary_root, run_root) {
        match take_down(&state, &run) {
            Ok(()) => {
                // What cannot be removed is in nobody's way.
                let _ = fs::remove_dir_all(&run);
                let _ = fs::remove_dir_all(&state);
            }
            Err(why) => tracing::warn!(
                state = %state.display(), %why,
                "what a killed development agent left cannot be cleared away"
            ),
        }
    }
}

fn find(temporary_root: &Path, run_root: &Path) -> Vec<Abandoned> {
    let entries = fs::read_dir(temporary_root).into_iter().flatten().flatten();
    let temporary =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY));
    temporary
        .filter_map(|entry| {
            let state = fs::canonicalize(entry.path()).ok()?;
            let lock = File::open(state.join(LOCK)).ok()?;
            lock.try_lock().ok()?;
            Some(Abandoned {
                run: run_root.join(short_hash(&state)),
                state,
                _lock: lock,
            })
        })
        .collect()
}

/// Ends what runs, and takes the network of it away.
fn take_down(state: &Path, run: &Path) -> Result<(), String> {
    let allocs = fs::read_dir(state.join("allocs")).into_iter().flatten();
    let mut allocs = allocs.flatten().peekable();
    if allocs.peek().is_none() {
        return Ok(());
    }
    let hierarchy = Hierarchy::detect().map_err(|error| error.to_string())?;
    for alloc in allocs {
        let group = hierarchy.group(&Path::new(cgroup::ROOT).join(alloc.file_name()));
        if group.exists() {
            tracing::info!(alloc = %alloc.file_name().to_string_lossy(), "an allocation of a killed development agent is ended");
        }
        group
            .kill_all()
            .and_then(|()| group.remove())
            .map_err(|error| error.to_string())?;
    }
    let network = Network::open(&NetworkConfig {
        bridge: None,
        subnet: None,
        state_dir: state.to_owned(),
        run_dir: run.to_owned(),
        claims_dir: NetworkConfig::CLAIMS_DIR.into(),
    });
    network
        .and_then(|network| network.sweep(&HashSet::new()))
        .map(drop)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{super::Dirs, *};

    #[test]
    fn what_a_killed_agent_left_goes_and_what_one_has_that_runs_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let run = root.path().join("run");
        let open = || Dirs::open_in(None, &run, root.path()).expect("opened");
        let (killed, stubborn, alive) = (open(), open(), open());
        let paths = [&killed, &stubborn, &alive]
            .map(|dirs| [dirs.state().to_owned(), dirs.run().to_owned()]);
        // The locks go with them, as with a process.
        drop((killed, stubborn));
        let asked = RefCell::new(Vec::new());
        clear_with(root.path(), &run, |state, _| {
            asked.borrow_mut().push(state.to_owned());
            match state == paths[1][0] {
                true => Err("it does not end".into()),
                false => Ok(()),
            }
        });
        assert_eq!(asked.borrow().len(), 2, "{asked:?}");
        assert!(paths[0].iter().all(|path| !path.exists()));
        assert!(paths[1].iter().all(|path| path.exists()));
        assert!(paths[2].iter().all(|path| path.exists()));
        drop(alive);
    }
}
