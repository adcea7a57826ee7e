//! The log.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use uuid::Uuid;
use wharf_registry::log::{
    DiskLog, DiskLogConfig, Entry, LogId, LogState, LogStore, MemoryLog, OnDurable, Payload,
    ServerId, Vote,
};

use super::*;

/// Small, so that a short workload has several.
const CHUNK: usize = 4096;

fn open(directory: &Path) -> io::Result<DiskLog> {
    DiskLog::open(DiskLogConfig {
        chunk_bytes: CHUNK,
        // So that everything is read from the files.
        cache_bytes: 0,
        ..DiskLogConfig::new(directory.to_owned())
    })
}

#[derive(Clone, Debug)]
enum Call {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(Option<LogId>),
    Purge(LogId),
    Commit(LogId),
}

impl Call {
    fn is_answered(&self) -> bool {
        matches!(self, Call::Append(_) | Call::Vote(_))
    }
}

/// All that a log holds.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    state: LogState,
    vote: Option<Vote>,
    committed: Option<LogId>,
    entries: Vec<Entry>,
}

fn held(log: &dyn LogStore) -> io::Result<Held> {
    Ok(Held {
        state: log.state(),
        vote: log.vote(),
        committed: log.committed(),
        entries: log.read(0..u64::MAX, usize::MAX)?,
    })
}

/// What is asked of a log, and what it holds after each step of that: an entry is a step.
#[derive(Debug)]
struct Script {
    calls: Vec<Call>,
    /// How many steps there are up to the end of each call.
    ends: Vec<usize>,
    after: Vec<Held>,
}

fn ignored() -> OnDurable {
    OnDurable::new(|_| {})
}

fn server(number: u128) -> ServerId {
    ServerId(Uuid::from_u128(number))
}

impl Script {
    /// What a follower's log lives through, shortened.
    fn random(seed: u64, length: usize) -> Script {
        let mut chance = Chance::new(seed);
        let model = MemoryLog::new();
        let mut script = Script {
            calls: Vec::new(),
            ends: Vec::new(),
            after: vec![held(&model).unwrap()],
        };
        let mut term = 1;
        while script.calls.len() < length {
            let LogState { purged, last } = model.state();
            let next = last.map_or(0, |last| last.index + 1);
            let committed = model.committed();
            let id_at = |index: u64| -> LogId {
                let entries = model.read(index..index + 1, 1).unwrap();
                entries
                    .first()
                    .map_or_else(|| purged.unwrap(), |entry| entry.id)
            };
            match chance.below(12) {
                0 | 1 => {
                    term += 1;
                    script.add(
                        &model,
                        Call::Vote(Vote {
                            term,
                            candidate: server(1 + u128::from(chance.below(3))),
                            granted: chance.below(2) == 0,
                        }),
                    );
                }
                2 if last > committed => {
                    // Another leader's log is another from here on.
                    let least = committed.max(purged).map_or(0, |id| id.index + 1);
                    let keep = least + chance.below(next - least);
                    let keep = keep.checked_sub(1).map(id_at);
                    script.add(&model, Call::Truncate(keep));
                    term += 1;
                }
                3 if last.is_some() && last > purged => {
                    let first = committed.max(purged).map_or(0, |id| id.index);
                    script.add(
                        &model,
                        Call::Commit(id_at(first + chance.below(next - first))),
                    );
                }
                4 if committed > purged => {
                    let first = purged.map_or(0, |id| id.index + 1);
                    let up_to = first + chance.below(committed.unwrap().index + 1 - first);
                    script.add(&model, Call::Purge(id_at(up_to)));
                }
                _ => {
                    let entries =
                        (0..1 + chance.below(4)).map(|n| entry(term, next + n, &mut chance));
                    let entries = entries.collect();
                    script.add(&model, Call::Append(entries));
                }
            }
        }
        script
    }

    fn add(&mut self, model: &MemoryLog, call: Call) {
        match call.clone() {
            Call::Append(entries) => {
                for entry in entries {
                    model.append(vec![entry], ignored()).unwrap();
                    self.after.push(held(model).unwrap());
                }
            }
            call => {
                perform(model, call, ignored()).unwrap();
                self.after.push(held(model).unwrap());
            }
        }
        self.calls.push(call);
        self.ends.push(self.after.len() - 1);
    }
}

fn entry(term: u64, index: u64, chance: &mut Chance) -> Entry {
    let id = LogId {
        term,
        leader: server(u128::from(term)),
        index,
    };
    let size = match chance.below(8) {
        0 => {
            return Entry {
                id,
                payload: Payload::Blank,
            };
        }
        1 => 1500 + chance.below(5000),
        2 | 3 => 300 + chance.below(700),
        _ => chance.below(120),
    };
    let bytes: Vec<u8> = (0..size).map(|_| chance.below(256) as u8).collect();
    Entry {
        id,
        payload: Payload::Command(Bytes::from(bytes)),
    }
}

fn perform(log: &dyn LogStore, call: Call, done: OnDurable) -> io::Result<()> {
    match call {
        Call::Append(entries) => log.append(entries, done),
        Call::Vote(vote) => log.save_vote(vote, done),
        Call::Truncate(last) => log.truncate_after(last),
        Call::Purge(up_to) => log.purge(up_to),
        Call::Commit(id) => log.save_committed(Some(id)),
    }
}

/// Writes that were not answered yet.
#[derive(Debug, Default)]
struct Waiting {
    number: Mutex<usize>,
    answered: Condvar,
}

impl Waiting {
    fn until_fewer_than(&self, limit: usize) {
        let number = self.number.lock().unwrap();
        let fewer = self.answered.wait_while(number, |number| *number >= limit);
        drop(fewer.unwrap());
    }
}

/// What a run on a disk came to.
#[derive(Debug)]
struct Run {
    ops: Vec<Op>,
    /// The first error that a caller heard, of a call or of a write that it waited for.
    heard: Option<String>,
    faulted: bool,
    /// All that asks for an answer has a good one.
    acknowledged_all: bool,
}

/// Performs a script on a log in an empty directory. Steps are waited for, or follow each other closely.
fn run(script: &Script, seed: u64, fault: Option<Fault>) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let recording = Recording::start(directory.path(), fault);
    let heard: Arc<Mutex<Option<String>>> = Arc::default();
    // The first step of which a failure was told.
    let broken = Arc::new(AtomicUsize::new(usize::MAX));
    let wrongly_acknowledged = Arc::new(AtomicUsize::new(0));
    match open(directory.path()) {
        Err(error) => *heard.lock().unwrap() = Some(error.to_string()),
        Ok(log) => {
            let mut chance = Chance::new(seed ^ 0xc0ff_ee00);
            let waiting = Arc::new(Waiting::default());
            for (call, end) in script.calls.iter().zip(&script.ends) {
                let end = *end;
                recording.mark(Op::Issued(end));
                let mark = recording.marker();
                let (heard_of, broken_by) = (heard.clone(), broken.clone());
                let (waits, wrong) = (waiting.clone(), wrongly_acknowledged.clone());
                let answers = call.is_answered();
                *waiting.number.lock().unwrap() += usize::from(answers);
                let done = move |result: io::Result<()>| {
                    match result {
                        Ok(()) => {
                            mark(Op::Acknowledged(end));
                            wrong.fetch_add(
                                usize::from(end > broken_by.load(Ordering::SeqCst)),
                                Ordering::SeqCst,
                            );
                        }
                        Err(error) => {
                            broken_by.fetch_min(end, Ordering::SeqCst);
                            heard_of.lock().unwrap().get_or_insert(error.to_string());
                        }
                    }
                    *waits.number.lock().unwrap() -= 1;
                    waits.answered.notify_all();
                };
                let done = if answers {
                    OnDurable::new(done)
                } else {
                    ignored()
                };
                if let Err(error) = perform(&log, call.clone(), done) {
                    broken.fetch_min(end, Ordering::SeqCst);
                    heard.lock().unwrap().get_or_insert(error.to_string());
                }
                let limit = 1 + usize::try_from(chance.below(3)).unwrap();
                waiting.until_fewer_than(limit);
            }
            let closed = log.close();
            if let Err(error) = closed {
                heard.lock().unwrap().get_or_insert(error.to_string());
            }
            drop(log);
            waiting.until_fewer_than(1);
        }
    }
    assert_eq!(
        wrongly_acknowledged.load(Ordering::SeqCst),
        0,
        "seed {seed}, {fault:?}: something is acknowledged that follows a failure"
    );
    let heard = heard.lock().unwrap().clone();
    let ops = recording.ops();
    let asked = script
        .calls
        .iter()
        .filter(|call| call.is_answered())
        .count();
    let answers = ops.iter().filter(|op| matches!(op, Op::Acknowledged(_)));
    Run {
        acknowledged_all: answers.count() == asked,
        ops,
        heard,
        faulted: recording.has_failed(),
    }
}

/// Looks at a log after a crash. Returns the step that it stands at.
fn verify(directory: &Path, script: &Script, crash: &Crash) -> Result<(DiskLog, usize), String> {
    let log = open(directory).map_err(|error| format!("cannot be opened: {error}"))?;
    let found = held(&log).map_err(|error| format!("cannot be read: {error}"))?;
    let possible = crash.acknowledged..=crash.issued;
    let after = |step: &usize| script.after[*step] == found;
    match possible.clone().rev().find(after) {
        Some(step) => Ok((log, step)),
        None => {
            let elsewhere: Vec<usize> = (0..script.after.len()).filter(after).collect();
            Err(format!(
                "holds {:?}, vote {:?}, committed {:?}, {} entries: expected as after one of the steps {possible:?}, found as after {elsewhere:?}",
                found.state,
                found.vote,
                found.committed,
                found.entries.len()
            ))
        }
    }
}

/// It takes more, and keeps it.
fn goes_on(log: DiskLog, directory: &Path) -> Result<(), String> {
    let before = held(&log).map_err(|error| error.to_string())?;
    let last = before.state.last;
    let term = last
        .map_or(0, |last| last.term)
        .max(before.vote.map_or(0, |vote| vote.term))
        + 1;
    let entry = Entry {
        id: LogId {
            term,
            leader: server(9),
            index: last.map_or(0, |last| last.index + 1),
        },
        payload: Payload::Command("and on".into()),
    };
    log.append(vec![entry.clone()], ignored())
        .map_err(|error| error.to_string())?;
    log.close().map_err(|error| error.to_string())?;
    drop(log);
    let log = open(directory).map_err(|error| format!("after more was written: {error}"))?;
    let after = held(&log).map_err(|error| error.to_string())?;
    let mut expected = before;
    expected.state.last = Some(entry.id);
    expected.entries.push(entry);
    (after == expected)
        .then_some(())
        .ok_or_else(|| format!("{after:?} after more was written"))
}

#[test]
fn a_power_cut_at_any_place_leaves_what_was_acknowledged() {
    let mut tried = 0;
    let mut stands: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds(3) {
        let script = Script::random(seed, 40);
        let ran = run(&script, seed, None);
        assert_eq!(ran.heard, None);
        let mut chance = Chance::new(seed);
        let mut onward = Chance::new(seed);
        for crash in every_crash(&ran.ops, &mut chance, 3) {
            tried += 1;
            after(&format!("seed {seed}"), &crash, |directory| {
                let (log, step) = verify(directory, &script, &crash)?;
                *stands
                    .entry(match step {
                        step if step == crash.issued => "all that was issued",
                        step if step == crash.acknowledged => "what was acknowledged",
                        _ => "something between",
                    })
                    .or_default() += 1;
                match onward.below(8) {
                    0 => goes_on(log, directory),
                    _ => Ok(()),
                }
            });
        }
    }
    println!("{tried} disks after power cuts; found was {stands:?}");
    assert!(
        stands.len() == 3,
        "the cuts do not tell anything apart: {stands:?}"
    );
}

/// A process is killed, and another opens the log on the machine that went on: what it sees there, and tells
/// others of, must not be lost in a power cut right after.
#[test]
fn what_a_restarted_process_was_shown_survives_a_power_cut() {
    let mut tried = 0;
    for seed in seeds(2) {
        let script = Script::random(seed + 1000, 25);
        let ran = run(&script, seed, None);
        let mut chance = Chance::new(seed);
        for cut in 0..=ran.ops.len() {
            // A process that is killed leaves everything that it wrote, if not what it was about to write.
            let killed = Cut::new(&ran.ops, cut).kill();
            let what = format!("seed {seed}, killed before operation {cut}");
            let ops = after(&what, &killed, |directory| {
                let recording = Recording::resume(directory, ran.ops[..cut].to_vec(), None);
                let (log, step) = verify(directory, &script, &killed)?;
                recording.mark(Op::Acknowledged(step));
                // Nothing is written after that: what a closing log syncs does not count.
                let ops = recording.ops();
                drop(recording);
                drop(log);
                Ok(ops)
            });
            let ends = [cut + (ops.len() - cut) / 2, ops.len()];
            for end in ends {
                for crash in Cut::new(&ops, end).crashes(&mut chance, 1) {
                    tried += 1;
                    after(&what, &crash, |directory| {
                        verify(directory, &script, &crash).map(|_| ())
                    });
                }
            }
        }
    }
    println!("{tried} disks after a kill, a restart and a power cut");
}

/// Every write in turn finds no room, every fsync in turn fails.
#[test]
fn a_full_disk_or_a_failed_fsync_is_heard_and_takes_nothing_back() {
    let mut tried = 0;
    for seed in seeds(1) {
        let script = Script::random(seed + 2000, 25);
        let undisturbed = run(&script, seed, None).ops;
        for kind in 0..2 {
            let is_met = |op: &&Op| match kind {
                0 => matches!(op, Op::Write { .. } | Op::Create { .. }),
                _ => matches!(op, Op::Sync { .. }),
            };
            let met = undisturbed.iter().filter(is_met).count();
            for at in 0.. {
                let fault = match kind {
                    0 => Fault::NoSpace { from: at },
                    _ => Fault::Sync { at },
                };
                let ran = run(&script, seed, Some(fault));
                if !ran.faulted {
                    // Writes that are asked for together may be done together, or not.
                    assert!(2 * at > met, "{fault:?} meets nothing any more, of {met}");
                    break;
                }
                let what = format!("seed {seed}, {fault:?}");
                // If it met the removal of old files at the very end, nobody has asked since.
                assert!(
                    ran.heard.is_some() || ran.acknowledged_all,
                    "{what}: nobody heard of it"
                );
                let mut chance = Chance::new(seed);
                for crash in Cut::new(&ran.ops, ran.ops.len()).crashes(&mut chance, 4) {
                    tried += 1;
                    after(&what, &crash, |directory| {
                        let (log, _) = verify(directory, &script, &crash)?;
                        goes_on(log, directory)
                    });
                }
            }
        }
    }
    println!("{tried} disks after a fault");
}

/// The record is of what the log does: without it all of the above would hold of nothing.
#[test]
fn the_record_has_all_that_the_log_writes() {
    let directory = tempfile::tempdir().unwrap();
    let recording = Recording::start(directory.path(), None);
    let log = open(directory.path()).unwrap();
    let mut chance = Chance::new(1);
    let entries = (0..40).map(|index| entry(1, index, &mut chance)).collect();
    log.append(entries, ignored()).unwrap();
    log.close().unwrap();
    drop(log);
    let ops = recording.ops();
    let count = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count();
    assert!(count(|op| matches!(op, Op::Create { .. })) > 4, "{ops:?}");
    assert!(count(|op| matches!(op, Op::Sync { .. })) > 4, "{ops:?}");
    let replayed = Cut::new(&ops, ops.len()).kill().content;
    let files = fs::read_dir(directory.path()).unwrap();
    let found = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, Some(fs::read(path).unwrap()))
    });
    assert!(replayed == found.collect(), "the record gives another disk");
}
