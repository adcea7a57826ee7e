//! Job files: HCL or JSON, strictly read.
//!
//! ```hcl
//! job "web" {
//!   group "web" {
//!     count = 3
//!     network { port "http" { to = 8080 } }
//!     service {
//!       name = "web"
//!       port = "http"
//!       check { type = "http"  path = "/health" }
//!       connect { sidecar_service {} }
//!     }
//!     task "web" {
//!       driver = "container"
//!       image  = "web:1"
//!       resources { cpu = "250m"  memory = "128MiB" }
//!     }
//!   }
//! }
//! ```
//!
//! A block's label is its name. A `config` block in a task, where Nomad keeps what belongs to the driver, means
//! the same as its content in the task itself. JSON is the same document, or the model as the API shows it.
//! Whatever is wrong is told with file, line and column, as much of it as can be told at once.

mod labels;
#[cfg(test)]
mod tests;

use std::fmt;

use wharf_config::{
    DecodeError, FileError, Mode, Node, Position, Value, decode_all, parse_json, same_key,
};
use wharf_registry::model::platform::{Job, Problem};

/// The largest job that is accepted, in bytes of its text.
pub const MAX_SIZE: usize = 512 * 1024;

/// Why a text is not a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0}")]
    Syntax(#[from] Box<wharf_config::ParseError>),
    #[error("not text in UTF-8 (byte {0})")]
    NotUtf8(usize),
    #[error("{}", at(.position, .message))]
    Shape { position: Position, message: String },
    #[error("{}", lines(.0))]
    Decode(Vec<DecodeError>),
    #[error("{}", lines(.0))]
    Invalid(Vec<Misplaced>),
}

/// A problem of a job, and where in the file it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    pub position: Option<Position>,
    pub problem: Problem,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position.as_ref().filter(|place| place.is_in_file()) {
            Some(position) => write!(f, "{position}: {}", self.problem),
            None => self.problem.fmt(f),
        }
    }
}

fn lines<T: fmt::Display>(errors: &[T]) -> String {
    let lines: Vec<String> = errors.iter().map(T::to_string).collect();
    lines.join("\n")
}

fn at(position: &Position, message: &str) -> String {
    match position.is_in_file() {
        true => format!("{position}: {message}"),
        false => message.to_owned(),
    }
}

fn shape<T>(position: &Position, message: impl Into<String>) -> Result<T, JobError> {
    Err(JobError::Shape {
        position: position.clone(),
        message: message.into(),
    })
}

/// The job in the JSON body of a request: the model, alone or under the key `Job`.
pub fn decode_body(body: &[u8]) -> Result<Job, JobError> {
    let text = std::str::from_utf8(body).map_err(|error| JobError::NotUtf8(error.valid_up_to()))?;
    decode(parse_json("", text)?)
}

/// The job in the document of a file.
pub fn decode(document: Node) -> Result<Job, JobError> {
    let node = find_job(document)?;
    let mut job: Job = decode_all(&node, Mode::Strict).map_err(JobError::Decode)?;
    if job.name.is_empty() {
        job.name = job.id.clone();
    }
    // These are the state machine's: what comes from outside says nothing.
    job = Job {
        version: 0,
        stop: false,
        submit_time: 0,
        create_index: 0,
        modify_index: 0,
        job_modify_index: 0,
        ..job
    };
    match job.validate() {
        Ok(()) => Ok(job),
        Err(problems) => Err(JobError::Invalid(
            problems
                .into_iter()
                .map(|problem| Misplaced {
                    position: place(&node, &problem.path),
                    problem,
                })
                .collect(),
        )),
    }
}

/// The one job of a document, with names in place of labels.
fn find_job(document: Node) -> Result<Node, JobError> {
    let position = document.position.clone();
    let Value::Map(map) = document.value else {
        return shape(&position, "a job file is an object, or blocks");
    };
    if labels::names_itself(&map) {
        return labels::in_job(Node::new(Value::Map(map), position));
    }
    let mut entries = map.into_iter();
    let (first, second) = (entries.next(), entries.next());
    let Some(entry) = first else {
        return shape(
            &position,
            "there is no job in it: write job \"name\" { ... }",
        );
    };
    if !same_key(&entry.key, "job") {
        let text = format!(
            "unknown key {:?}: a job file has one block, job \"name\" {{ ... }}",
            entry.key
        );
        return shape(&entry.position, text);
    }
    if let Some(other) = second {
        let text = format!(
            "unknown key {:?}: a job file has one job and nothing else",
            other.key
        );
        return shape(&other.position, text);
    }
    let mut jobs = labels::named(entry.node)?;
    match (jobs.pop(), jobs.pop()) {
        (Some(job), None) => labels::in_job(job),
        (Some(job), Some(_)) => shape(&job.position, "a second job: a job file has one"),
        (None, _) => shape(&entry.position, "a job needs a name: job \"name\" { ... }"),
    }
}

/// Where `Groups[0].Tasks[1].Image` was written, or the nearest that was written around it.
fn place(root: &Node, path: &str) -> Option<Position> {
    let mut node = root;
    for step in path.split('.') {
        let (key, index) = match step.split_once('[') {
            Some((key, rest)) => (key, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        // Files say `group` and `memory` for `Groups` and `MemoryMB`.
        let spellings = [key, key.trim_end_matches('s'), key.trim_end_matches("MB")];
        let Some(entry) = spellings
            .iter()
            .find_map(|key| node.as_map().and_then(|map| map.entry(key)))
        else {
            break;
        };
        node = match (&entry.node.value, index) {
            (Value::List(items), Some(index)) => items.get(index).unwrap_or(&entry.node),
            (Value::List(items), None) if items.len() == 1 => &items[0],
            _ => &entry.node,
        };
    }
    Some(node.position.clone())
}
