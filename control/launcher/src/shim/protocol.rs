//! What an agent and a shim say to each other: frames of a length (four bytes, big-endian) and one JSON object of
//! at most [`MAX_FRAME`] bytes, over a stream socket that only root can open.
//!
//! A shim lives on while the agent is replaced, so every frame carries [`VERSION`], new fields have defaults, and a
//! request of another version is refused by name instead of being guessed at.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::container::Spec;

/// Version of this protocol.
pub const VERSION: u32 = 1;

/// Largest frame either side accepts.
pub const MAX_FRAME: usize = 1 << 20;

/// A request with a number of the client's choice, which the reply repeats.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToShim {
    pub v: u32,
    pub id: u64,
    pub request: Request,
}

/// What a shim is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Starts a task under a name that is free or whose task has ended.
    StartTask(Box<StartTask>),
    /// Starts the sidecar and keeps it running.
    StartSidecar(Box<StartSidecar>),
    /// Ends the sidecar: SIGTERM, and SIGKILL after `timeout_ms`.
    StopSidecar {
        timeout_ms: u64,
    },
    /// Sends a signal to a task.
    Signal {
        task: String,
        signal: i32,
    },
    /// Ends a task: its signal, and SIGKILL after `timeout_ms`.
    Stop {
        task: String,
        signal: i32,
        timeout_ms: u64,
    },
    State,
    /// Sends this connection the events after a sequence number, past ones and those to come.
    Subscribe {
        after: u64,
    },
    /// Kills what still runs, and ends the shim.
    Shutdown,
}

/// A task: its container and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTask {
    pub task: String,
    pub spec: Spec,
    pub logs: LogSettings,
    /// Where the exit record is put. See [`ExitRecord`].
    pub exit_file: PathBuf,
}

/// Where output goes, and how much of it is kept per stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    pub dir: PathBuf,
    pub max_files: u32,
    pub max_file_bytes: u64,
}

/// A process beside the tasks, in their network but otherwise on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSidecar {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub netns: Option<PathBuf>,
    pub logs: LogSettings,
}

/// What a shim sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromShim {
    pub v: u32,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Reply { id: u64, reply: Reply },
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    State(State),
    /// The request was understood and is not possible now; why.
    Refused(String),
}

/// Everything a shim knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub pid: u32,
    pub tasks: BTreeMap<String, TaskState>,
    pub sidecar: Option<SidecarState>,
    /// The number of the last event; subscribe after it to miss nothing.
    pub last_event: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    pub status: TaskStatus,
    /// The first process of the container, as the host counts.
    pub pid: Option<u32>,
    /// Milliseconds since 1970.
    pub started_at: Option<u64>,
    pub exit: Option<ExitRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    Starting,
    Running,
    Stopping,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarState {
    pub pid: Option<u32>,
    pub ready: bool,
    pub restarts: u32,
}

/// How a task ended. Written to disk before anybody hears of it, so that it outlives the shim and the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The code the command ended with, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed in its group for want of memory.
    pub oom_killed: bool,
    /// Why it never ran.
    pub failure: Option<String>,
    /// Milliseconds since 1970.
    pub started_at: Option<u64>,
    pub finished_at: u64,
}

/// Something that happened, in the order it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1, without gaps as far as the shim remembers.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at: u64,
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    TaskStarted {
        task: String,
        pid: u32,
    },
    /// The kernel killed a process of the task for want of memory. The task may go on.
    TaskOutOfMemory {
        task: String,
    },
    /// A stop found the task alive after its timeout.
    TaskKilled {
        task: String,
    },
    TaskExited {
        task: String,
        exit: ExitRecord,
    },
    /// Output that could not be written.
    LogLost {
        stream: String,
        bytes: u64,
        why: String,
    },
    SidecarStarted {
        pid: u32,
    },
    SidecarReady,
    SidecarExited {
        code: Option<i32>,
        signal: Option<i32>,
        /// Set when it will be started again.
        restart_in_ms: Option<u64>,
    },
    SidecarFailed {
        why: String,
        restart_in_ms: u64,
    },
}

/// What arrived is no frame of this protocol. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes, more than {MAX_FRAME}")]
    TooLarge(usize),
    #[error("a frame that is no message: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// One message as the bytes to send.
///
/// # Errors
/// It is larger than a frame may be.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Puts frames together from what a socket gives.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next complete message.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(head) = self.pending.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        if self.pending.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.pending[4..4 + length])?;
        self.pending.drain(..4 + length);
        if self.pending.is_empty() {
            // An idle connection keeps nothing.
            self.pending = Vec::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_survive_any_division() {
        let message = FromShim {
            v: VERSION,
            body: Body::Event(Event {
                seq: 3,
                at: 4,
                kind: EventKind::SidecarReady,
            }),
        };
        let frame = encode(&message).unwrap();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for byte in frame.iter().chain(&frame) {
            decoder.feed(&[*byte]);
            while let Some(message) = decoder.message::<FromShim>().unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, [message.clone(), message]);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_kept() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(
            decoder.message::<ToShim>(),
            Err(FrameError::TooLarge(_))
        ));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut decoder = Decoder::default();
        decoder.feed(b"\0\0\0\x02{}");
        assert!(matches!(
            decoder.message::<ToShim>(),
            Err(FrameError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let _ = decoder.message::<ToShim>();
        }
    }
}
