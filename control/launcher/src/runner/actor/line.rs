//! The line to a shim: questions, and what it tells meanwhile.

use std::{collections::VecDeque, fmt};

use tokio::sync::mpsc;

use super::{ClientError, Event, Link, Reply, Request, Shim};

/// A connection to a shim. Answers and events come the same way, one after the other, and what comes first has to be
/// taken first: so what is told while an answer is awaited is put aside. It is bounded by how long that may take.
pub(super) struct Line {
    shim: Box<dyn Shim>,
    events: mpsc::Receiver<Event>,
    aside: VecDeque<Event>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    pub(super) fn new((shim, events): Link) -> Line {
        Line {
            shim,
            events,
            aside: VecDeque::new(),
        }
    }

    pub(super) async fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        let mut answer = self.shim.ask(request);
        loop {
            tokio::select! {
                biased;
                reply = &mut answer => return reply,
                event = self.events.recv() => match event {
                    Some(event) => self.aside.push_back(event),
                    // The shim is gone, and says no more.
                    None => return answer.await,
                },
            }
        }
    }

    /// What is told next; `None` when the shim is gone. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match self.aside.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// Ends everything and the shim, and waits for it.
    pub(super) async fn shutdown(&mut self) -> Result<(), ClientError> {
        let mut ending = self.shim.shutdown();
        loop {
            tokio::select! {
                biased;
                ended = &mut ending => return ended,
                // Nobody wants to know any more, but it must not wait to be heard.
                event = self.events.recv() => if event.is_none() {
                    return ending.await;
                },
            }
        }
    }
}
