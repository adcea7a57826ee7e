//! Power cuts, kills, full disks and failed fsyncs, at every single change that the stores make to files.
//!
//! A workload runs on the real store while [`syscalls`] writes down what it does to its directory. From that
//! record come the disks that a crash could have left, before each operation ([`disk`]); each is put into a
//! directory and opened, and what is found there must be what the store has promised.
//!
//! `WHARF_CRASH_SEEDS` plays more workloads than a test run does; a failure names its seed, which
//! `WHARF_CRASH_SEED` plays alone.

mod disk;
mod log;
mod server;
mod snapshots;
mod syscalls;

use std::{env, path::Path};

use wharf_tests::Chance;

use self::{
    disk::{Crash, Cut, Op, materialise},
    syscalls::{Fault, Recording},
};

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// The seeds to play: `few`, unless the environment wants others.
fn seeds(few: u64) -> std::ops::Range<u64> {
    match number("WHARF_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WHARF_CRASH_SEEDS").unwrap_or(few),
    }
}

/// Opens the disk of a crash with `look`, in a directory of its own; says of what crash it fails.
fn after<T>(what: &str, crash: &Crash, look: impl FnOnce(&Path) -> Result<T, String>) -> T {
    let directory = tempfile::tempdir().unwrap();
    materialise(&crash.content, directory.path());
    look(directory.path()).unwrap_or_else(|wrong| {
        let files: Vec<_> = crash
            .content
            .iter()
            .map(|(name, bytes)| (name, bytes.as_ref().map(Vec::len)))
            .collect();
        panic!("{what}: {wrong}\n{}\non the disk: {files:?}", crash.story)
    })
}

/// Every crash of a record, with `random` ones at each place.
fn every_crash<'a>(
    ops: &'a [Op],
    chance: &'a mut Chance,
    random: usize,
) -> impl Iterator<Item = Crash> + 'a {
    // Between two things that are only said the disk is the same.
    let cuts = (0..=ops.len()).filter(|cut| {
        let said = |op: &Op| matches!(op, Op::Issued(_));
        ops.get(*cut).is_none_or(|op| !said(op))
    });
    cuts.flat_map(move |cut| Cut::new(ops, cut).crashes(chance, random))
}
