//! Taking the place of the whole state, by commands.
//!
//! What a snapshot holds comes in parts, which are kept until the last has come; then the new state is built beside
//! the old one, and takes its place at once or not at all. Every replica does the same, as with every command.

use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use imbl::Vector;

use super::{Record, State, Touched};
use crate::{
    command::{MAX_RESTORE_PART, Outcome, RestoreCommand, RestoreRefusal},
    model::{Str, platform::UnixNanos},
    pieces::Pieces,
    snapshot::{SnapshotError, SnapshotReader},
};

/// The parts of a restore that have come so far.
#[derive(Clone, Debug)]
pub struct Restoring {
    id: Str,
    /// When the last of them came.
    time: UnixNanos,
    parts: Vector<Bytes>,
}

impl Restoring {
    pub(super) fn new(id: Str, time: UnixNanos) -> Restoring {
        Restoring {
            id,
            time,
            parts: Vector::new(),
        }
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.parts.push_back(bytes);
    }

    pub fn id(&self) -> &Str {
        &self.id
    }

    /// When the last part came, as its sender says.
    pub fn time(&self) -> UnixNanos {
        self.time
    }

    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.parts.iter().map(|bytes| Record::RestorePart {
            id: self.id.clone(),
            time: self.time,
            bytes: bytes.clone(),
        })
    }

    fn len(&self) -> u32 {
        u32::try_from(self.parts.len()).unwrap_or(u32::MAX)
    }
}

impl State {
    pub(super) fn apply_restore(
        &mut self,
        log_index: u64,
        command: &RestoreCommand,
        touched: &mut Touched,
    ) -> Outcome {
        let done = match command {
            RestoreCommand::Part {
                id,
                at,
                bytes,
                time,
            } => self.restore_part(id, *at, bytes, *time),
            RestoreCommand::Finish { id, parts } => {
                self.restore_finish(log_index, id, *parts, touched)
            }
            RestoreCommand::Abandon { id } => {
                self.restoring.take_if(|restoring| restoring.id == *id);
                Ok(())
            }
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(refusal.into()),
        }
    }

    fn restore_part(
        &mut self,
        id: &Str,
        at: u32,
        bytes: &Bytes,
        time: UnixNanos,
    ) -> Result<(), RestoreRefusal> {
        if bytes.len() > MAX_RESTORE_PART {
            return Err(RestoreRefusal::PartTooLarge(bytes.len()));
        }
        let ours = self.restoring.as_mut();
        let restoring = match ours.filter(|restoring| restoring.id == *id) {
            Some(restoring) => restoring,
            None if at == 0 => self.restoring.insert(Restoring::new(id.clone(), time)),
            None => return Err(RestoreRefusal::Superseded),
        };
        let expected = restoring.len();
        if at.checked_add(1) == Some(expected) && restoring.parts.last() == Some(bytes) {
            return Ok(());
        }
        if at != expected {
            return Err(RestoreRefusal::OutOfOrder { at, expected });
        }
        restoring.time = time;
        restoring.push(bytes.clone());
        Ok(())
    }

    fn restore_finish(
        &mut self,
        log_index: u64,
        id: &Str,
        parts: u32,
        touched: &mut Touched,
    ) -> Result<(), RestoreRefusal> {
        let restoring = self.restoring.take_if(|restoring| restoring.id == *id);
        let restoring = restoring.ok_or(RestoreRefusal::Superseded)?;
        if restoring.len() != parts {
            return Err(RestoreRefusal::OutOfOrder {
                at: parts,
                expected: restoring.len(),
            });
        }
        let parts = restoring.parts.into_iter().map(Ok);
        let input = GzDecoder::new(Pieces::new(parts));
        let (mut state, saved_at) =
            read_state(input).map_err(|error| RestoreRefusal::Snapshot(error.to_string()))?;
        // Above everything that was seen here, and everything that the snapshot says.
        let index = (log_index + self.offset).max(saved_at + 1);
        state.offset = index - log_index;
        state.restoring = None;
        // What another cluster's members were is not of this one's.
        state.left = std::mem::take(&mut self.left);
        state.indexes.applied = index;
        state.indexes.restored = index;
        *self = state;
        touched.add_everything();
        Ok(())
    }
}

/// The state that a snapshot holds, and its index.
pub(crate) fn read_state(input: impl Read) -> Result<(State, u64), SnapshotError> {
    let reader = SnapshotReader::new(input)?;
    let mut state = State::restored(reader.meta().index())?;
    for record in reader {
        state.insert(record?)?;
    }
    let index = state.applied();
    Ok((state, index))
}
