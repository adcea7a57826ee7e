//! What a disk may hold after a crash, given what was done to it.
//!
//! The model is that of POSIX, and of what filesystems make of it:
//!
//! * What was written to a file, and its length, is durable after an fsync of the file. Before that, each write
//!   may be there, or not, or a part of it; in the place of what is missing are zeros, if anything behind it is
//!   there. Writes may overtake each other, but not within a sector: a sector goes to the disk as it is in memory.
//! * A name is durable after an fsync of its directory: an fsync of the file does nothing for it. Until then it
//!   may be missing, but the changes of one directory stay in order, as every filesystem with a journal has it.
//! * An fsync that failed has lost what it was for, and a later one that succeeds does not bring it back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use bytes::Bytes;
use wharf_tests::Chance;

pub(crate) type Inode = usize;

/// The directory that is recorded.
pub(crate) const ROOT: Inode = 0;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// One change, or something said about it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        name: String,
        inode: Inode,
    },
    MakeDir {
        name: String,
        inode: Inode,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        name: String,
    },
    Write {
        inode: Inode,
        offset: u64,
        bytes: Bytes,
    },
    SetLength {
        inode: Inode,
        length: u64,
    },
    Sync {
        inode: Inode,
    },
    FailedSync {
        inode: Inode,
    },
    /// The so many first steps of the workload were asked for.
    Issued(usize),
    /// The so many first steps of the workload were said to be durable, or seen by somebody.
    Acknowledged(usize),
}

fn directory(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Which file has which name.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    names: BTreeMap<String, Inode>,
    directories: BTreeSet<Inode>,
    next: Inode,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            names: [(String::new(), ROOT)].into(),
            directories: [ROOT].into(),
            next: ROOT + 1,
        }
    }
}

impl Names {
    pub(crate) fn get(&self, name: &str) -> Option<Inode> {
        self.names.get(name).copied()
    }

    pub(crate) fn next(&self) -> Inode {
        self.next
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { name, inode } | Op::MakeDir { name, inode } => {
                self.names.insert(name.clone(), *inode);
                if let Op::MakeDir { .. } = op {
                    self.directories.insert(*inode);
                }
                self.next = self.next.max(inode + 1);
            }
            Op::Rename { from, to } => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Op::Unlink { name } => {
                self.names.remove(name);
            }
            _ => {}
        }
    }
}

/// What became of a write that was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// So many of its bytes are there, and the file ends with them unless something comes behind.
    Torn(usize),
    /// The file is as long as it would be, and of the write the sectors are there that a number with this
    /// seed picks: none for 0.
    Sectors(u64),
}

/// The content of a disk after a crash: directories are `None`.
pub(crate) type Content = BTreeMap<String, Option<Vec<u8>>>;

/// A disk after a crash, and how it came to be.
#[derive(Debug)]
pub(crate) struct Crash {
    pub(crate) content: Content,
    pub(crate) acknowledged: usize,
    pub(crate) issued: usize,
    pub(crate) story: String,
}

/// A crash right before the operation at `cut`.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    ops: &'a [Op],
    /// Changes to files that are not durable.
    data: Vec<usize>,
    /// Changes of names that are not durable, by directory.
    names: BTreeMap<Inode, Vec<usize>>,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(ops: &'a [Op], cut: usize) -> Cut<'a> {
        let ops = &ops[..cut];
        let mut data: Vec<usize> = Vec::new();
        let mut lost: Vec<usize> = Vec::new();
        let mut pending: BTreeMap<Inode, Vec<usize>> = BTreeMap::new();
        let mut names = Names::default();
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Write { .. } | Op::SetLength { .. } => data.push(at),
                Op::Create { name, .. }
                | Op::MakeDir { name, .. }
                | Op::Rename { to: name, .. }
                | Op::Unlink { name } => {
                    let parent = names.get(directory(name)).unwrap_or(ROOT);
                    pending.entry(parent).or_default().push(at);
                }
                Op::Sync { inode } => {
                    data.retain(|at| target(&ops[*at]) != Some(*inode));
                    pending.remove(inode);
                }
                Op::FailedSync { inode } => {
                    lost.extend(data.extract_if(.., |at| target(&ops[*at]) == Some(*inode)));
                }
                Op::Issued(_) | Op::Acknowledged(_) => {}
            }
            names.apply(op);
        }
        data.extend(lost);
        data.sort_unstable();
        Cut {
            ops,
            data,
            names: pending,
        }
    }

    /// The disks that there may be: those that are told apart by one write or one name, and `random` others.
    pub(crate) fn crashes(&self, chance: &mut Chance, random: usize) -> Vec<Crash> {
        let kept = vec![Fate::Kept; self.data.len()];
        let lost = vec![Fate::Lost; self.data.len()];
        let all_names: Vec<usize> = self.names.values().map(Vec::len).collect();
        let no_names = vec![0; all_names.len()];
        let mut choices = vec![
            (kept.clone(), all_names.clone()),
            (lost.clone(), no_names.clone()),
            (lost.clone(), all_names.clone()),
            (kept.clone(), no_names),
        ];
        for (at, most) in all_names.iter().enumerate() {
            for some in 0..*most {
                let mut names = all_names.clone();
                names[at] = some;
                choices.push((kept.clone(), names));
            }
        }
        for at in 0..self.data.len() {
            let mut without = kept.clone();
            without[at] = Fate::Lost;
            choices.push((without, all_names.clone()));
            let mut alone = lost.clone();
            alone[at] = Fate::Kept;
            choices.push((alone, all_names.clone()));
            let Op::Write { bytes, .. } = &self.ops[self.data[at]] else {
                continue;
            };
            if at + 1 == self.data.len() {
                let length = bytes.len();
                let places = [1, 4, length / 3, length / 2, length.saturating_sub(1)];
                for torn in places.into_iter().chain([SECTOR, 2 * SECTOR]) {
                    if (1..length).contains(&torn) {
                        let mut last = kept.clone();
                        last[at] = Fate::Torn(torn);
                        choices.push((last, all_names.clone()));
                    }
                }
            }
            for seed in [0, 1 + chance.below(u64::MAX - 1)] {
                let mut holes = kept.clone();
                holes[at] = Fate::Sectors(seed);
                choices.push((holes, all_names.clone()));
            }
        }
        for _ in 0..random {
            let names = all_names.iter().map(|most| any(chance, most + 1));
            let names = names.collect();
            let fates = self.data.iter().map(|at| self.fate(*at, chance));
            choices.push((fates.collect(), names));
        }
        let mut seen = BTreeSet::new();
        let crashes = choices
            .into_iter()
            .map(|choice| self.crash(&choice.0, &choice.1));
        crashes
            .filter(|crash| seen.insert(crash.content.clone()))
            .collect()
    }

    /// The disk as a process finds it that starts again on a machine that went on.
    pub(crate) fn kill(&self) -> Crash {
        let names: Vec<usize> = self.names.values().map(Vec::len).collect();
        self.crash(&vec![Fate::Kept; self.data.len()], &names)
    }

    fn fate(&self, at: usize, chance: &mut Chance) -> Fate {
        let length = match &self.ops[at] {
            Op::Write { bytes, .. } => bytes.len(),
            _ => 0,
        };
        match chance.below(4) {
            0 => Fate::Kept,
            1 if length > 1 => Fate::Torn(1 + any(chance, length - 1)),
            2 if length > 0 => Fate::Sectors(chance.below(u64::MAX)),
            _ => Fate::Lost,
        }
    }

    fn crash(&self, fates: &[Fate], kept_names: &[usize]) -> Crash {
        let mut missing: BTreeSet<usize> = BTreeSet::new();
        for (pending, kept) in self.names.values().zip(kept_names) {
            missing.extend(&pending[*kept..]);
        }
        let fates: BTreeMap<usize, Fate> = self
            .data
            .iter()
            .copied()
            .zip(fates.iter().copied())
            .collect();
        let mut names = Names::default();
        let mut files: BTreeMap<Inode, File> = BTreeMap::new();
        let (mut acknowledged, mut issued) = (0, 0);
        for (at, op) in self.ops.iter().enumerate() {
            match op {
                Op::Issued(steps) => issued = *steps,
                Op::Acknowledged(steps) => acknowledged = acknowledged.max(*steps),
                Op::Write {
                    inode,
                    offset,
                    bytes,
                } => {
                    let fate = fates.get(&at).copied().unwrap_or(Fate::Kept);
                    let file = files.entry(*inode).or_default();
                    file.write(usize::try_from(*offset).unwrap(), bytes, fate);
                }
                Op::SetLength { inode, length } => {
                    let kept = fates.get(&at).is_none_or(|fate| *fate == Fate::Kept);
                    let file = files.entry(*inode).or_default();
                    file.set_length(usize::try_from(*length).unwrap(), kept);
                }
                _ if missing.contains(&at) => {}
                _ => names.apply(op),
            }
        }
        let mut content = Content::new();
        for (name, inode) in &names.names {
            let parent = directory(name);
            // What is in a directory without a name is not to be found.
            if name.is_empty() || !(parent.is_empty() || content.contains_key(parent)) {
                continue;
            }
            let file = match names.directories.contains(inode) {
                true => None,
                false => Some(files.get(inode).map(File::content).unwrap_or_default()),
            };
            content.insert(name.clone(), file);
        }
        let lost = fates.iter().filter(|(_, fate)| **fate != Fate::Kept);
        let story = format!(
            "cut before operation {}, names missing: {missing:?}, writes that are not whole: {:?}",
            self.ops.len(),
            lost.collect::<Vec<_>>()
        );
        Crash {
            content,
            acknowledged,
            issued,
            story,
        }
    }
}

/// The file that is written to.
fn target(op: &Op) -> Option<Inode> {
    match op {
        Op::Write { inode, .. } | Op::SetLength { inode, .. } => Some(*inode),
        _ => None,
    }
}

fn any(chance: &mut Chance, below: usize) -> usize {
    usize::try_from(chance.below(below as u64)).unwrap()
}

/// A file in memory, and what of it is on the disk.
#[derive(Debug, Default)]
struct File {
    memory: Vec<u8>,
    /// Sectors, which may be there beyond the length.
    disk: Vec<u8>,
    length: usize,
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8], fate: Fate) {
        let end = offset + bytes.len();
        self.memory.resize(self.memory.len().max(end), 0);
        self.memory[offset..end].copy_from_slice(bytes);
        match fate {
            Fate::Lost => {}
            Fate::Kept => self.flush(offset, end),
            Fate::Torn(length) => self.flush(offset, offset + length),
            Fate::Sectors(seed) => {
                let mut chance = (seed != 0).then(|| Chance::new(seed));
                self.length = self.length.max(end);
                let mut at = offset;
                while at < end {
                    let next = (at + SECTOR - at % SECTOR).min(end);
                    if chance.as_mut().is_some_and(|chance| chance.below(2) == 0) {
                        self.flush(at, next);
                    }
                    at = next;
                }
            }
        }
    }

    /// Whole sectors: what was written there before comes along.
    fn flush(&mut self, from: usize, to: usize) {
        let from = from - from % SECTOR;
        let end = to.next_multiple_of(SECTOR).min(self.memory.len());
        self.disk.resize(self.disk.len().max(end), 0);
        self.disk[from..end].copy_from_slice(&self.memory[from..end]);
        self.length = self.length.max(to);
    }

    fn set_length(&mut self, length: usize, kept: bool) {
        self.memory.resize(length, 0);
        if kept {
            self.disk.truncate(length);
            self.length = length;
        }
    }

    /// What is read of it after the crash.
    fn content(&self) -> Vec<u8> {
        let mut content = self.disk.clone();
        content.resize(self.length, 0);
        content
    }
}

/// How it could have come to be, with nothing left that could be lost.
pub(crate) fn durable(content: &Content) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut directories = vec![ROOT];
    for (number, (name, file)) in content.iter().enumerate() {
        let (name, inode) = (name.clone(), ROOT + 1 + number);
        match file {
            None => {
                ops.push(Op::MakeDir { name, inode });
                directories.push(inode);
            }
            Some(bytes) => {
                ops.push(Op::Create { name, inode });
                let bytes = Bytes::from(bytes.clone());
                let offset = 0;
                ops.push(Op::Write {
                    inode,
                    offset,
                    bytes,
                });
                ops.push(Op::Sync { inode });
            }
        }
    }
    ops.extend(directories.into_iter().map(|inode| Op::Sync { inode }));
    ops
}

/// Puts it into an empty directory.
pub(crate) fn materialise(content: &Content, root: &Path) {
    for (name, file) in content {
        match file {
            None => fs::create_dir(root.join(name)).unwrap(),
            Some(bytes) => fs::write(root.join(name), bytes).unwrap(),
        }
    }
}
