//! `/v1/allocation/ID/logs`: what a task of this node wrote, as it is and as it comes.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;
use wharf_launcher::{runner::log_dir, shim::LogReader};
use wharf_registry::{View, model::platform::Alloc};

use super::{
    HttpContext,
    error::HttpError,
    request::{Request, go_bool},
    response::{self, Response},
};
use crate::{
    authz::{Access, Resource},
    cluster::Cluster,
};

/// Size of one piece of the answer, and how many wait for a client that does not read.
const PIECE: usize = 32 << 10;
const PIECES: usize = 8;

/// Pause between two looks at a task that has written nothing.
const LOOK: Duration = Duration::from_millis(200);

/// Streams the output of one task. `task` may be left out if there is one; `type` is `stdout` (the default) or
/// `stderr`; `follow` goes on until the allocation has ended; `tail` begins about so many bytes before the end.
pub(super) fn logs(
    context: &HttpContext,
    request: &Request,
    id: &str,
) -> Result<Response, HttpError> {
    let view = context.cluster.registry().view();
    let alloc = view
        .alloc(id)
        .ok_or_else(|| HttpError::not_found(format!("there is no allocation {id}")))?;
    request
        .caller
        .check(Resource::Job(&alloc.job_name), Access::Read)?;
    let task = task_of(
        alloc,
        request.query.get("task").filter(|task| !task.is_empty()),
    )?;
    let stream = match request.query.get("type").unwrap_or("stdout") {
        stream @ ("stdout" | "stderr") => stream,
        other => {
            let text = format!("?type={other} is no output: it is stdout or stderr");
            return Err(HttpError::bad_request(text));
        }
    };
    let follow = match request.query.get("follow") {
        None | Some("") => request.query.has("follow"),
        Some(text) => {
            go_bool(text).ok_or_else(|| HttpError::bad_request("Invalid value for ?follow"))?
        }
    };
    let tail =
        match request.query.get("tail").filter(|tail| !tail.is_empty()) {
            None => None,
            Some(text) => Some(text.parse::<u64>().map_err(|_| {
                HttpError::bad_request(format!("?tail={text} is no number of bytes"))
            })?),
        };
    let Some(allocs) = &context.allocs else {
        return Err(HttpError::not_found("this node runs no allocations"));
    };
    if *alloc.node_id != *context.node.id {
        let text = format!("allocation {id} is on node {}: ask its agent", alloc.node);
        return Err(HttpError::not_found(text));
    }
    let (pieces, receiver) = mpsc::channel(PIECES);
    let source = Source {
        dir: log_dir(allocs, &alloc.id, &task),
        stream: stream.to_owned(),
        tail,
        follow: follow.then(|| (context.cluster.clone(), alloc.id.to_string())),
    };
    // Ends with its client, whose going closes the channel; or with the allocation.
    tokio::spawn(source.copy(pieces));
    Ok(response::stream(
        "text/plain; charset=utf-8",
        receiver,
        context.shutdown.clone(),
    ))
}

fn task_of(alloc: &Alloc, named: Option<&str>) -> Result<String, HttpError> {
    let names: Vec<&str> = alloc.task_states.keys().map(|name| &**name).collect();
    match (named, &names[..]) {
        (Some(name), names) if names.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => Err(HttpError::not_found(
            "nothing of the allocation has started yet",
        )),
        (Some(name), names) => Err(HttpError::not_found(format!(
            "the allocation has no task {name:?}; its tasks: {}",
            names.join(", ")
        ))),
        (None, names) => Err(HttpError::bad_request(format!(
            "the allocation has more than one task, name one with ?task=: {}",
            names.join(", ")
        ))),
    }
}

struct Source {
    dir: PathBuf,
    stream: String,
    tail: Option<u64>,
    /// Where it is seen that the allocation has ended.
    follow: Option<(std::sync::Arc<dyn Cluster>, String)>,
}

impl Source {
    async fn copy(self, pieces: mpsc::Sender<Bytes>) {
        let mut reader = LogReader::new(&self.dir, &self.stream);
        if let Some(tail) = self.tail
            && reader.skip_to_last(tail).is_err()
        {
            return;
        }
        let mut ended = false;
        loop {
            // From the page cache, some kB at a time.
            let mut piece = vec![0; PIECE];
            match reader.read(&mut piece) {
                Ok(0) => {}
                Ok(count) => {
                    piece.truncate(count);
                    if pieces.send(piece.into()).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(error) => {
                    tracing::warn!(dir = %self.dir.display(), %error, "output of a task cannot be read");
                    return;
                }
            }
            let Some((cluster, id)) = &self.follow else {
                return;
            };
            // What was written before its end was seen is read once more.
            if ended {
                return;
            }
            let view: std::sync::Arc<View> = cluster.registry().view();
            ended = !view.alloc(id).is_some_and(|alloc| alloc.is_live());
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = pieces.closed() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(tasks: &[&str]) -> Alloc {
        Alloc {
            task_states: tasks
                .iter()
                .map(|task| ((*task).into(), Default::default()))
                .collect(),
            ..Alloc::default()
        }
    }

    #[test]
    fn a_task_is_named_where_there_are_several() {
        assert_eq!(task_of(&alloc(&["web"]), None).unwrap(), "web");
        assert_eq!(
            task_of(&alloc(&["web", "log"]), Some("log")).unwrap(),
            "log"
        );
        let error = task_of(&alloc(&["web", "log"]), None).unwrap_err();
        assert!(error.text.contains("log, web"), "{}", error.text);
        // A name that leads elsewhere is no task's.
        assert!(task_of(&alloc(&["web"]), Some("../../x")).is_err());
        assert!(task_of(&alloc(&[]), None).is_err());
    }

    #[tokio::test]
    async fn all_of_it_comes_and_then_an_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("stdout.3"), "one\n").unwrap();
        std::fs::write(dir.path().join("stdout.4"), "two\n").unwrap();
        let source = |tail| Source {
            dir: dir.path().to_owned(),
            stream: "stdout".into(),
            tail,
            follow: None,
        };
        for (tail, expected) in [(None, "one\ntwo\n"), (Some(2), "o\n")] {
            let (pieces, mut receiver) = mpsc::channel(PIECES);
            source(tail).copy(pieces).await;
            let mut text = Vec::new();
            while let Some(piece) = receiver.recv().await {
                text.extend_from_slice(&piece);
            }
            assert_eq!(text, expected.as_bytes());
        }
    }
}
