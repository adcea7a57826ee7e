//! The watches of the configuration: what the agent runs when something changes.
//!
//! A watch asks the agent's own API, as one from outside would: with its token, through the same seam,
//! with blocking queries. Each has one task, which asks and runs its handler in turns: while a handler
//! runs, changes gather, and it is told the newest state next. A handler that fails is logged, and the watch goes on.

mod handler;
mod query;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{handler::Handler, query::Query};
use crate::{
    config::WatchDefinition,
    http::{HttpContext, Inside, InsideError},
};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The running watches of an agent.
#[derive(Debug)]
pub(crate) struct Watches {
    api: Arc<Inside>,
    tasks: TaskTracker,
    stop: CancellationToken,
    running: Vec<(WatchDefinition, CancellationToken)>,
}

impl Watches {
    /// None yet. All of them end with `stop`.
    pub(crate) fn new(
        context: Arc<HttpContext>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Watches {
        Watches {
            api: Arc::new(Inside::new(context)),
            tasks,
            stop,
            running: Vec::new(),
        }
    }

    /// Makes these the watches that run. One that ran already, just as it is defined, is not disturbed.
    pub(crate) fn replace(&mut self, definitions: &[WatchDefinition]) {
        let mut before = std::mem::take(&mut self.running);
        for definition in definitions {
            let same = before.iter().position(|(running, _)| running == definition);
            let stop = match same {
                Some(place) => before.swap_remove(place).1,
                None => self.start(definition),
            };
            self.running.push((definition.clone(), stop));
        }
        for (_, stop) in before {
            stop.cancel();
        }
    }

    fn start(&self, definition: &WatchDefinition) -> CancellationToken {
        let stop = self.stop.child_token();
        let Some(query) = Query::of(definition) else {
            tracing::error!(
                "a watch of type {:?} is not run: that is not built yet",
                definition.kind
            );
            return stop;
        };
        let watch = Watch {
            api: self.api.clone(),
            query,
            handler: Handler::of(definition),
        };
        let ended = stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = watch.run() => {}
                () = ended.cancelled() => {}
            }
        });
        stop
    }
}

/// One watch.
struct Watch {
    api: Arc<Inside>,
    query: Query,
    handler: Handler,
}

/// How far a watch has seen.
#[derive(Debug, Default)]
struct Cursor {
    index: u64,
    hash: String,
    last: Option<Bytes>,
}

impl Watch {
    async fn run(self) {
        let mut cursor = Cursor::default();
        let mut pause = FIRST_PAUSE;
        // One line when something changes, not one per attempt.
        let mut told = String::new();
        loop {
            match self.next(&mut cursor).await {
                Ok(state) => {
                    pause = FIRST_PAUSE;
                    told.clear();
                    if let Some(state) = state
                        && let Err(error) = self.handler.run(&state, cursor.index).await
                    {
                        tracing::error!(watch = %self.query, "the handler of a watch failed: {error}");
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != told {
                        tracing::warn!(watch = %self.query, "a watch cannot ask, and tries again: {text}");
                        told = text;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits for the next answer; `None` if it is the state that is known already.
    async fn next(&self, cursor: &mut Cursor) -> Result<Option<Bytes>, InsideError> {
        let path = self.query.path(cursor.index, &cursor.hash);
        let answer = self.api.get(&path, self.query.token()).await?;
        let (index, hash) = (answer.index, answer.hash.clone());
        let state = self.query.state(answer)?;
        cursor.index = match index {
            // The log was restored from an older one: what was seen means nothing any more.
            Some(index) if index < cursor.index => 0,
            Some(index) => index,
            None => cursor.index,
        };
        cursor.hash = hash.unwrap_or_default();
        if cursor.last.as_ref() == Some(&state) {
            return Ok(None);
        }
        cursor.last = Some(state.clone());
        Ok(Some(state))
    }
}
